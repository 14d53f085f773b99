"""Evaluate a model as it is shipped, through ONNX Runtime, and say how it did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from phoi_models.bundle import METADATA, MODEL, SECOND_LOOK, AnyParameters, parse_parameters
from phoi_models.detector import Floats, Heads
from phoi_models.errors import NotAnalysable, PhoiError
from phoi_models.transplant import Lesion

from phoi_training.background import Background
from phoi_training.breakdown import (
    Share,
    breakdown,
    calibration_error,
    false_per_scan,
    overall,
    reliability,
    seconds_by_step,
    size_errors,
)
from phoi_training.card import froc_lines, group_lines, scan_table, size_table
from phoi_training.cutouts import TITLES, Cutout, cutouts
from phoi_training.dataset import scored_copy
from phoi_training.evaluation import RATES, ScanResult, as_rows, examine, froc
from phoi_training.transplanted import transplanted_copy

EXPERIMENT = "phoi-evaluation"
_NODULES = 10
_HEATMAP_OUTPUTS = ("heatmap", "diameter_mm", "offset")


class OnnxHeads:
    """A network of a bundle in ONNX Runtime on the CPU."""

    def __init__(self, model: Path, outputs: Iterable[str] = _HEATMAP_OUTPUTS) -> None:
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(model), providers=providers)
        self._outputs = list(outputs)

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        """See :class:`phoi_models.detector.Heads`."""
        return tuple(self._session.run(self._outputs, {"image": patches}))


@dataclass(frozen=True, eq=False)
class Detector:
    """A bundle's networks, ready to run, signed or not."""

    parameters: AnyParameters
    heads: Heads
    second_look: Heads | None = None

    @classmethod
    def open(cls, bundle: Path) -> Self:
        """Load a bundle.

        Raises:
            BadBundle: its metadata are malformed.
            PhoiError: a file of it is missing.
        """
        if missing := [name for name in (METADATA, MODEL) if not (bundle / name).is_file()]:
            raise PhoiError(f"{bundle} is no model bundle: it lacks {missing[0]}")
        parameters = parse_parameters((bundle / METADATA).read_bytes())
        second = bundle / SECOND_LOOK
        return cls(
            parameters,
            OnnxHeads(bundle / MODEL, parameters.outputs),
            OnnxHeads(second) if second.is_file() else None,
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results on chests as they are, and apart from them on copies with more nodules.

    Attributes:
        parameters: of the model.
        operating_point: at which marks count in all but FROC and calibration.
        real, planted: one result per scan.
        cutouts: pictures of misses and of marks on no nodule, at the operating point.
        left_out: scans that could not be analysed, each with the reason.
        transplanted: one result per scan into which real nodules of others were set.
    """

    parameters: AnyParameters
    operating_point: str
    real: tuple[ScanResult, ...]
    planted: tuple[ScanResult, ...]
    cutouts: tuple[Cutout, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    transplanted: tuple[ScanResult, ...] = ()

    @property
    def threshold(self) -> float:
        """Probability at the operating point."""
        return self.parameters.operating_points[self.operating_point].probability

    @property
    def sets(self) -> dict[str, tuple[ScanResult, ...]]:
        """The results by what was to be found, without empty ones."""
        every = {"real": self.real, "planted": self.planted, "transplanted": self.transplanted}
        return {name: results for name, results in every.items() if results}

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every mark and every miss."""
        sets = {"real": self.real, "planted": self.planted, **self.sets}
        return {name: as_rows(results) for name, results in sets.items()}


def run_evaluation(
    detector: Detector,
    chests: Iterable[Background],
    *,
    copies: int,
    seed: int,
    lesions: Sequence[Lesion] = (),
    operating_point: str = "default",
    batch_size: int = 1,
    on_scan: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run a model over chests, over ``copies`` planted copies of each, and one with real nodules.

    Args:
        detector: the model.
        chests: read one by one; one that cannot be analysed is left out and listed.
        copies: planted copies of each chest.
        seed: of what is planted, and of where.
        lesions: real nodules; if there are any, some are set into one more copy of each chest.
        operating_point: name of the threshold at which misses and false marks are listed.
        batch_size: patches given to the network at once.
        on_scan: called when a chest and its copies are done.

    Raises:
        PhoiError: the model has no such operating point.
    """
    points = detector.parameters.operating_points
    if operating_point not in points:
        raise PhoiError(
            f"no operating point {operating_point!r}; the model has {', '.join(points)}"
        )
    threshold = points[operating_point].probability
    sets: dict[str, list[ScanResult]] = {"real": [], "planted": [], "transplanted": []}
    pictures: list[Cutout] = []
    left_out: list[tuple[str, str]] = []
    for number, chest in enumerate(chests):
        try:
            for name, scan in _variants(chest, copies, lesions, [seed, number]):
                result, grid = examine(
                    scan,
                    detector.parameters,
                    detector.heads,
                    second_look=detector.second_look,
                    batch_size=batch_size,
                    # The diameters of real nodules are those of readers, who differ among them.
                    measured_from=threshold if name == "planted" else None,
                )
                sets[name].append(result)
                pictures += cutouts(result, grid, threshold)
        except NotAnalysable as reason:
            left_out.append((chest.name, str(reason)))
        on_scan()
    return Evaluation(
        detector.parameters,
        operating_point,
        tuple(sets["real"]),
        tuple(sets["planted"]),
        tuple(pictures),
        tuple(left_out),
        tuple(sets["transplanted"]),
    )


def _variants(
    chest: Background, copies: int, lesions: Sequence[Lesion], seed: Sequence[int]
) -> Iterator[tuple[str, Background]]:
    """The chest, and copies with more nodules, in which its own count as neither found nor missed.

    Raises:
        NotAnalysable: there are no lungs to plant into.
    """
    yield "real", chest
    for copy in range(1, copies + 1):
        rng = np.random.default_rng([*seed, copy])
        yield "planted", scored_copy(chest, copy, _NODULES, rng)
    if lesions:
        rng = np.random.default_rng([*seed, 0])
        some = [lesions[i] for i in rng.permutation(len(lesions))[:_NODULES]]
        moved, _ = transplanted_copy(chest, some, rng)
        yield "transplanted", replace(moved, name=f"{chest.name}, transplanted")


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """All figures, as they go into ``summary.json``, the page and MLflow."""
    return {
        "model": evaluation.parameters.name,
        "version": evaluation.parameters.version,
        "operating_point": evaluation.operating_point,
        "threshold": evaluation.threshold,
        "left_out": [{"scan": name, "reason": why} for name, why in evaluation.left_out],
        **{
            name: _set_summary(results, evaluation.threshold)
            for name, results in evaluation.sets.items()
        },
    }


def _set_summary(results: Sequence[ScanResult], threshold: float) -> dict[str, Any]:
    bins = reliability(results)
    return {
        "scans": len(results),
        "complete_scans": sum(result.complete for result in results),
        "nodules": sum(len(result.nodules) for result in results),
        "sensitivity": _share(overall(results, threshold)),
        "false_per_scan": false_per_scan(results, threshold),
        "froc": _froc(results),
        "sensitivity_by": {
            title: [_share(group) for group in groups]
            for title, groups in breakdown(results, threshold).items()
        },
        "calibration_error": calibration_error(bins),
        "calibration": [{"predicted": row.predicted, **_known(row.hits)} for row in bins],
        "size_error_mm": [
            {
                "name": group.name,
                "count": group.agreement.count,
                "bias": group.agreement.bias,
                "lower": group.agreement.lower,
                "upper": group.agreement.upper,
            }
            for group in size_errors(results)
        ],
        "seconds": {
            step: {"median": middle, "largest": largest}
            for step, (middle, largest) in seconds_by_step(results).items()
        },
    }


def _share(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else _known(share)


def _known(share: Share) -> dict[str, Any]:
    return {
        "name": share.name,
        "found": share.found,
        "total": share.total,
        "value": share.value,
        "interval": share.interval,
    }


def _froc(results: Sequence[ScanResult]) -> dict[str, Any] | None:
    if not any(result.complete and result.nodules for result in results):
        return None
    curve = froc(results, rng=np.random.default_rng(0))
    return {
        "cpm": curve.cpm,
        "interval": curve.interval,
        "scans": curve.scans,
        "nodules": curve.nodules,
        "rates": RATES,
        "sensitivities": curve.sensitivities,
        "intervals": curve.intervals,
    }


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Markdown: by case, by group, FROC, for each kind of nodules apart; misses and false marks."""
    parameters = evaluation.parameters
    lines = [f"# {parameters.name} {parameters.version} at p >= {evaluation.threshold:.2f}", ""]
    for title, results in evaluation.sets.items():
        seconds = np.mean([result.seconds for result in results])
        lines += [f"## {title.capitalize()} nodules, {seconds:.1f} s per scan", ""]
        lines += [*scan_table(results, evaluation.threshold), ""]
        lines += [*size_table(results, evaluation.threshold), ""]
        lines += [*group_lines(results, evaluation.threshold), *froc_lines(results), ""]
        lines += _size_lines(results)
    return lines + _list_lines(evaluation)


def _size_lines(results: Sequence[ScanResult]) -> list[str]:
    groups = size_errors(results)
    if not groups:
        return []
    lines = [
        "| error of the mean diameter | found | bias, mm | 95 % limits, mm |",
        "|---|---|---|---|",
    ]
    for group in groups:
        found = group.agreement
        limits = f"{found.lower:+.1f} to {found.upper:+.1f}"
        lines.append(f"| {group.name} | {found.count} | {found.bias:+.2f} | {limits} |")
    return [*lines, ""]


def _list_lines(evaluation: Evaluation) -> list[str]:
    lines = []
    if evaluation.left_out:
        lines += ["## Not analysed", ""]
        lines += [f"- {name}: {reason}" for name, reason in evaluation.left_out] + [""]
    for kind, title in TITLES.items():
        shown = [c for c in evaluation.cutouts if c.kind is kind]
        if shown:
            lines += [f"## {title}", ""]
            lines += [f"- {c.scan}, {c.where}: {c.caption}" for c in shown] + [""]
    return lines


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """Figures for MLflow, by name."""
    told: dict[str, float] = {}
    figures = summary(evaluation)
    for name in evaluation.sets:
        told |= {f"{name}_{key}": value for key, value in _metrics(figures[name])}
    return told


def _metrics(figures: dict[str, Any]) -> list[tuple[str, float]]:
    simple = ("false_per_scan", "calibration_error")
    found = [(name, figures[name]) for name in simple if figures[name] is not None]
    if figures["sensitivity"]:
        found.append(("sensitivity", figures["sensitivity"]["value"]))
    if figures["froc"]:
        low, high = figures["froc"]["interval"]
        found += [("cpm", figures["froc"]["cpm"]), ("cpm_low", low), ("cpm_high", high)]
    for title, groups in figures["sensitivity_by"].items():
        found += [(_metric_name(title, group["name"]), group["value"]) for group in groups]
    for group in figures["size_error_mm"][:1]:
        found += [(f"size_error_mm_{key}", group[key]) for key in ("bias", "lower", "upper")]
    found.append(("seconds_per_scan", figures["seconds"]["all"]["median"]))
    return found


def _metric_name(title: str, group: str) -> str:
    return re.sub(r"\W+", "_", f"sensitivity {title} {group}")
