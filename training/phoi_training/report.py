"""Evaluate a model as it is shipped, through ONNX Runtime, and say how it did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from phoi_models.bundle import (
    METADATA,
    MODEL,
    SECOND_LOOK,
    AnyParameters,
    Form,
    form_file,
    parse_parameters,
)
from phoi_models.detector import Heads
from phoi_models.detector_sessions import DetectorSessions
from phoi_models.errors import NotAnalysable, PhoiError
from phoi_models.sessions import FormChoice, Provider, SessionSettings
from phoi_models.transplant import Lesion

from phoi_training.background import Background
from phoi_training.breakdown import (
    LEAST_RATED,
    Share,
    breakdown,
    calibration_error,
    false_per_scan,
    overall,
    reliability,
    seconds_by_step,
    size_errors,
)
from phoi_training.card import LEAST_MM, froc_lines, group_lines, scan_table, size_table
from phoi_training.cutouts import TITLES, Cutout, cutouts
from phoi_training.dataset import scored_copy
from phoi_training.evaluation import RATES, ScanResult, as_rows, examine, froc, has_froc
from phoi_training.transplanted import transplanted_copy

EXPERIMENT = "phoi-evaluation"
_NODULES = 10
FLOAT32_ON_CPU = SessionSettings(Provider.CPU, form=FormChoice.FP32)
"""What gives the same figures wherever it runs."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A bundle's networks, ready to run, signed or not.

    Attributes:
        parameters: as the networks are run here.
        heads, second_look: the networks.
        runtime: execution provider and form, as the worker tells them; "" if it is not known.
        batch_size: patches given to a network at once.
    """

    parameters: AnyParameters
    heads: Heads
    second_look: Heads | None = None
    runtime: str = ""
    batch_size: int = 1

    @classmethod
    def open(cls, bundle: Path, sessions: SessionSettings = FLOAT32_ON_CPU) -> Self:
        """Load a bundle, as the worker does but for the signature.

        Args:
            bundle: its folder.
            sessions: where and in which form its networks run.

        Raises:
            BadBundle: its metadata are malformed, or it lacks the form asked for.
            PhoiError: a file of it is missing, or the provider does not work here.
        """
        if missing := [name for name in (METADATA, MODEL) if not (bundle / name).is_file()]:
            raise PhoiError(f"{bundle} is no model bundle: it lacks {missing[0]}")
        return cls.of(parse_parameters((bundle / METADATA).read_bytes()), bundle, sessions)

    @classmethod
    def of(cls, parameters: AnyParameters, folder: Path, sessions: SessionSettings) -> Self:
        """Networks that lie in a folder as in a bundle.

        Raises:
            BadBundle: a network cannot be read, or not in the form asked for.
            PhoiError: the provider does not work here.
        """
        second = _forms(folder, SECOND_LOOK) or None
        started = DetectorSessions.start(parameters, _forms(folder, MODEL), second, sessions)
        return cls(
            started.parameters,
            started.heads,
            started.second_look,
            started.runtime,
            started.batch_size,
        )


def _forms(folder: Path, name: str) -> dict[Form, bytes]:
    """A network in the forms that are there."""
    files = {form: folder / form_file(name, form) for form in Form}
    return {form: file.read_bytes() for form, file in files.items() if file.is_file()}


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
        runtime: execution provider and form of the networks; "" if it is not known.
    """

    parameters: AnyParameters
    operating_point: str
    real: tuple[ScanResult, ...]
    planted: tuple[ScanResult, ...]
    cutouts: tuple[Cutout, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    transplanted: tuple[ScanResult, ...] = ()
    runtime: str = ""

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
                    batch_size=detector.batch_size,
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
        detector.runtime,
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
        "runtime": evaluation.runtime,
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
        "patients": len({result.whose for result in results}),
        "complete_scans": sum(result.complete for result in results),
        "nodules": sum(len(result.nodules) for result in results),
        "sensitivity": _share(overall(results, threshold)),
        "false_per_scan": false_per_scan(results, threshold),
        "froc": _froc(results, 0.0),
        "froc_by_least_mm": [f for mm in LEAST_MM if (f := _froc(results, mm)) is not None],
        "sensitivity_by": {
            title: [_share(group) for group in groups]
            for title, groups in breakdown(results, threshold).items()
        },
        "calibration_error": calibration_error(bins),
        "calibration_error_of_likely": calibration_error(reliability(results, LEAST_RATED)),
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


def _froc(results: Sequence[ScanResult], least_mm: float) -> dict[str, Any] | None:
    if not has_froc(results, least_mm):
        return None
    curve = froc(results, rng=np.random.default_rng(0), least_mm=least_mm)
    return {
        "least_mm": curve.least_mm,
        "cpm": curve.cpm,
        "interval": curve.interval,
        "scans": curve.scans,
        "nodules": curve.nodules,
        "patients": curve.patients,
        "rates": RATES,
        "sensitivities": curve.sensitivities,
        "intervals": curve.intervals,
    }


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Markdown: by case, by group, FROC, for each kind of nodules apart; misses and false marks."""
    parameters = evaluation.parameters
    lines = [f"# {parameters.name} {parameters.version} at p >= {evaluation.threshold:.2f}", ""]
    lines += [f"Run by {evaluation.runtime}.", ""] if evaluation.runtime else []
    for title, results in evaluation.sets.items():
        seconds = np.mean([result.seconds for result in results])
        lines += [f"## {title.capitalize()} nodules, {seconds:.1f} s per scan", ""]
        lines += [*scan_table(results, evaluation.threshold), ""]
        lines += [*size_table(results, evaluation.threshold), ""]
        lines += [*group_lines(results, evaluation.threshold), *froc_lines(results, LEAST_MM), ""]
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
    simple = ("false_per_scan", "calibration_error", "calibration_error_of_likely")
    found = [(name, figures[name]) for name in simple if figures[name] is not None]
    if figures["sensitivity"]:
        found.append(("sensitivity", figures["sensitivity"]["value"]))
    for curve in [figures["froc"], *figures["froc_by_least_mm"]]:
        found += _froc_metrics(curve) if curve else []
    for title, groups in figures["sensitivity_by"].items():
        found += [(_metric_name(title, group["name"]), group["value"]) for group in groups]
    for group in figures["size_error_mm"][:1]:
        found += [(f"size_error_mm_{key}", group[key]) for key in ("bias", "lower", "upper")]
    found.append(("seconds_per_scan", figures["seconds"]["all"]["median"]))
    return found


def _froc_metrics(curve: dict[str, Any]) -> list[tuple[str, float]]:
    """CPM and sensitivity at four false marks per scan, each with its interval if it has one."""
    suffix = f"_from_{curve['least_mm']:g}_mm" if curve["least_mm"] else ""
    at_4 = curve["rates"].index(4.0)
    found: list[tuple[str, float]] = []
    for name, value, interval in (
        ("cpm", curve["cpm"], curve["interval"]),
        ("sensitivity_at_4", curve["sensitivities"][at_4], curve["intervals"][at_4]),
    ):
        found.append((name + suffix, value))
        bounds = zip(("low", "high"), interval or (), strict=False)
        found += [(f"{name}{suffix}_{bound}", limit) for bound, limit in bounds]
    return found


def _metric_name(title: str, group: str) -> str:
    return re.sub(r"\W+", "_", f"sensitivity {title} {group}")
