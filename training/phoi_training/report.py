"""Evaluate a model as it is shipped, through ONNX Runtime, and say how it did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from phoi_models.bundle import METADATA, MODEL, SECOND_LOOK, AnyParameters, parse_parameters
from phoi_models.detector import Floats, Heads
from phoi_models.errors import NotAnalysable, PhoiError

from phoi_training.background import Background
from phoi_training.breakdown import (
    Share,
    breakdown,
    calibration_error,
    false_per_scan,
    overall,
    reliability,
    seconds_by_step,
)
from phoi_training.card import froc_lines, scan_table, size_table
from phoi_training.cutouts import TITLES, Cutout, cutouts
from phoi_training.dataset import planted_copy
from phoi_training.evaluation import RATES, ScanResult, as_rows, examine, froc

EXPERIMENT = "phoi-evaluation"
_NODULES = 10
_DIAMETERS_MM = (4.0, 32.0)
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
    """Results on chests as they are, and apart from them on planted copies.

    Attributes:
        parameters: of the model.
        operating_point: at which marks count in all but FROC and calibration.
        real, planted: one result per scan.
        cutouts: pictures of misses and of marks on no nodule, at the operating point.
        left_out: scans that could not be analysed, each with the reason.
    """

    parameters: AnyParameters
    operating_point: str
    real: tuple[ScanResult, ...]
    planted: tuple[ScanResult, ...]
    cutouts: tuple[Cutout, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def threshold(self) -> float:
        """Probability at the operating point."""
        return self.parameters.operating_points[self.operating_point].probability

    @property
    def sets(self) -> dict[str, tuple[ScanResult, ...]]:
        """The results by what was to be found, without empty ones."""
        both = {"real": self.real, "planted": self.planted}
        return {name: results for name, results in both.items() if results}

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every mark and every miss."""
        return {"real": as_rows(self.real), "planted": as_rows(self.planted)}


def run_evaluation(
    detector: Detector,
    chests: Iterable[Background],
    *,
    copies: int,
    seed: int,
    operating_point: str = "default",
    batch_size: int = 1,
    on_scan: Callable[[ScanResult | None], None] = lambda _result: None,
) -> Evaluation:
    """Run a model over chests and over ``copies`` planted copies of each.

    Args:
        detector: the model.
        chests: read one by one; one that cannot be analysed is left out and listed.
        copies: planted copies of each chest.
        seed: of what is planted.
        operating_point: name of the threshold at which misses and false marks are listed.
        batch_size: patches given to the network at once.
        on_scan: told each result, and None instead of each that there is none of.

    Raises:
        PhoiError: the model has no such operating point.
    """
    points = detector.parameters.operating_points
    if operating_point not in points:
        raise PhoiError(
            f"no operating point {operating_point!r}; the model has {', '.join(points)}"
        )
    threshold = points[operating_point].probability
    real: list[ScanResult] = []
    planted: list[ScanResult] = []
    pictures: list[Cutout] = []
    left_out: list[tuple[str, str]] = []
    for number, chest in enumerate(chests):
        for copy in range(copies + 1):
            rng = np.random.default_rng([seed, number, copy])
            try:
                result, grid = examine(
                    _planted(chest, rng, copy) if copy else chest,
                    detector.parameters,
                    detector.heads,
                    second_look=detector.second_look,
                    batch_size=batch_size,
                )
            except NotAnalysable as reason:
                left_out.append((_name(chest, copy), str(reason)))
                for _ in range(copy, copies + 1):
                    on_scan(None)
                break
            (planted if copy else real).append(result)
            pictures += cutouts(result, grid, threshold)
            on_scan(result)
    return Evaluation(
        detector.parameters,
        operating_point,
        tuple(real),
        tuple(planted),
        tuple(pictures),
        tuple(left_out),
    )


def _planted(chest: Background, rng: np.random.Generator, copy: int) -> Background:
    """A copy with nodules planted; real ones are counted apart, so neither found nor missed."""
    low, high = np.log(_DIAMETERS_MM)
    known = replace(chest, marks=tuple(replace(mark, certain=False) for mark in chest.marks))
    changed, _ = planted_copy(known, rng, list(np.exp(rng.uniform(low, high, _NODULES))))
    return replace(changed, name=_name(chest, copy))


def _name(chest: Background, copy: int) -> str:
    return f"{chest.name}, planted {copy}" if copy else chest.name


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
    """Markdown: by case, by group, FROC; real and planted nodules apart; misses, false marks."""
    parameters = evaluation.parameters
    lines = [f"# {parameters.name} {parameters.version} at p >= {evaluation.threshold:.2f}", ""]
    for title, results in evaluation.sets.items():
        seconds = np.mean([result.seconds for result in results])
        lines += [f"## {title.capitalize()} nodules, {seconds:.1f} s per scan", ""]
        lines += [*scan_table(results, evaluation.threshold), ""]
        lines += [*size_table(results, evaluation.threshold), ""]
        lines += [*_group_lines(results, evaluation.threshold), *froc_lines(results), ""]
    return lines + _list_lines(evaluation)


def _group_lines(results: Sequence[ScanResult], threshold: float) -> list[str]:
    lines = []
    for title, groups in breakdown(results, threshold).items():
        if title == "size":
            continue
        lines += [f"| {title} | found | of | 95 % interval |", "|---|---|---|---|"]
        for group in groups:
            low, high = group.interval
            interval = f"{low:.2f} to {high:.2f}"
            lines.append(f"| {group.name} | {group.found} | {group.total} | {interval} |")
        lines.append("")
    return lines


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
    found.append(("seconds_per_scan", figures["seconds"]["all"]["median"]))
    return found


def _metric_name(title: str, group: str) -> str:
    return re.sub(r"\W+", "_", f"sensitivity {title} {group}")
