"""Where a detector is good and where not: sensitivity by group, calibration, sizes, time.

Intervals of shares are Wilson's (J Am Stat Assoc 1927;22:209-12), 95 %. They take each nodule for
independent of the others; those of one patient are not, so the truth is somewhat wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from phoi_training.evaluation import SIZE_NAMES, Group, ScanResult, found_by, size_of
from phoi_training.measurement import Agreement, agreement

_Z = 1.959964
_BINS = 10
LEAST_RATED = 0.05
"""Thousands of marks of almost no probability hide how well the others are calibrated."""
_SLICES_MM = (1.25, 2.5)
_SLICE_NAMES = ("slices up to 1.25 mm", "over 1.25 to 2.5 mm", "over 2.5 mm")


@dataclass(frozen=True)
class Share:
    """So many of so many.

    Attributes:
        name: of what.
        found, total: numbers; ``total`` is at least 1.
    """

    name: str
    found: int
    total: int

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.found / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.found, self.total)


def wilson(found: int, total: int) -> tuple[float, float]:
    """95 % interval of a share of ``total`` independent cases.

    Raises:
        ValueError: not 0 <= found <= total, or no case.
    """
    if not 0 <= found <= total or total == 0:
        raise ValueError(f"{found} of {total} is no share")
    share, weight = found / total, _Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    reach = _Z * np.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    # Of none or all, rounding must not leave the share outside.
    return float(min(share, max(0.0, middle - reach))), float(max(share, min(1.0, middle + reach)))


_GROUPS: Mapping[str, Group] = {
    "size": lambda _, nodule: size_of(nodule),
    "attenuation": lambda _, nodule: nodule.attenuation,
    "margin": lambda _, nodule: nodule.margin,
    "place": lambda _, nodule: nodule.place,
    "side": lambda _, nodule: nodule.lobe and nodule.lobe.partition("_")[0],
    "lobe": lambda _, nodule: nodule.lobe,
    "slice spacing": lambda result, _: _slice_name(result.slice_mm),
}
_ORDER = (*_GROUPS, *SIZE_NAMES, *_SLICE_NAMES)


def _slice_name(slice_mm: float | None) -> str | None:
    if slice_mm is None:
        return None
    return _SLICE_NAMES[int(np.digitize(slice_mm, _SLICES_MM, right=True))]


def breakdown(results: Sequence[ScanResult], threshold: float) -> dict[str, list[Share]]:
    """Sensitivity at a threshold by size, attenuation, margin, place, side, lobe, slice spacing.

    What is not known of any nodule is left out.
    """
    tables = {}
    for title, group in _GROUPS.items():
        counts = found_by(results, threshold, group)
        names = sorted(counts, key=rank)
        if names:
            tables[title] = [Share(str(name), *counts[name]) for name in names]
    return tables


def rank(name: str) -> tuple[int, str]:
    """Orders groups, and what they are groups by: as they are told, then by name."""
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def overall(results: Sequence[ScanResult], threshold: float) -> Share | None:
    """Sensitivity at a threshold over all nodules; None without any."""
    total = sum(len(result.nodules) for result in results)
    found = sum(result.found(threshold) for result in results)
    return Share("all", found, total) if total else None


def false_per_scan(results: Sequence[ScanResult], threshold: float) -> float | None:
    """Mean number of false marks on complete scans; None without one."""
    false = [result.false_marks(threshold) for result in results if result.complete]
    return float(np.mean(false)) if false else None


@dataclass(frozen=True)
class Reliability:
    """Marks of about the same probability.

    Attributes:
        low, high: bounds of the bin, high excluded but for 1.
        predicted: their mean.
        hits: how many were nodules, of how many.
    """

    low: float
    high: float
    predicted: float
    hits: Share


def reliability(results: Sequence[ScanResult], least: float = 0.0) -> list[Reliability]:
    """Marks on complete scans, in ten bins of probability; empty bins are left out.

    Args:
        results: at calibrated probabilities.
        least: marks of less probability are left out.
    """
    every = [p for result in results if result.complete for p in result.predictions]
    marks = [p for p in every if p.probability >= least]
    rows = []
    for number in range(_BINS):
        low, high = number / _BINS, (number + 1) / _BINS
        within = [p for p in marks if min(int(p.probability * _BINS), _BINS - 1) == number]
        if within:
            hits = sum(p.nodule is not None for p in within)
            mean = float(np.mean([p.probability for p in within]))
            name = f"{max(low, least):.2g} to {high:.2g}"
            rows.append(Reliability(low, high, mean, Share(name, hits, len(within))))
    return rows


def calibration_error(rows: Sequence[Reliability]) -> float | None:
    """Expected calibration error (Naeini et al., AAAI 2015); None without a mark."""
    total = sum(row.hits.total for row in rows)
    if total == 0:
        return None
    return sum(row.hits.total * abs(row.predicted - row.hits.value) for row in rows) / total


@dataclass(frozen=True)
class SizeError:
    """Measured minus true mean diameter, mm, of found nodules.

    Attributes:
        name: of which nodules.
        true_mm, errors_mm: one entry for each of them.
    """

    name: str
    true_mm: tuple[float, ...]
    errors_mm: tuple[float, ...]

    @property
    def agreement(self) -> Agreement:
        """Bias and limits of agreement.

        Raises:
            ValueError: fewer than two nodules.
        """
        return agreement(self.errors_mm)


def size_errors(results: Sequence[ScanResult]) -> list[SizeError]:
    """Of all nodules that were measured, then by attenuation, then by attenuation and size.

    Groups of fewer than two are left out.
    """
    measured = [
        (result.nodules[p.nodule], p.measured_mm)
        for result in results
        for p in result.predictions
        if p.nodule is not None and p.measured_mm is not None
    ]
    groups: dict[str, list[tuple[float, float]]] = {}
    for nodule, measured_mm in measured:
        kind = nodule.attenuation or "attenuation not known"
        for name in ("all", str(kind), f"{kind}, {size_of(nodule)}"):
            groups.setdefault(name, []).append((nodule.diameter_mm, measured_mm))
    order = {name: (name != "all", *_parts(name)) for name in groups}
    return [
        SizeError(name, tuple(t for t, _ in groups[name]), tuple(m - t for t, m in groups[name]))
        for name in sorted(groups, key=lambda name: order[name])
        if len(groups[name]) > 1
    ]


def _parts(name: str) -> tuple[str, tuple[int, str]]:
    kind, _, size = name.partition(", ")
    return kind, rank(size) if size else (-1, "")


def seconds_by_step(results: Sequence[ScanResult]) -> dict[str, tuple[float, float]]:
    """Median and largest seconds of each step, and of ``all`` but reading."""
    columns: dict[str, list[float]] = {}
    for result in results:
        for step, seconds in {**result.steps_s, "all": result.seconds}.items():
            columns.setdefault(step, []).append(seconds)
    return {step: (float(np.median(values)), max(values)) for step, values in columns.items()}
