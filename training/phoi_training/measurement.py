"""How well planted nodules are measured: agreement with the truth, by size, kind and place.

Agreement is that of Bland and Altman (Lancet 1986;1:307-10): the mean of the errors is the bias,
and 95 % of them are expected between bias - 1.96 and bias + 1.96 standard deviations.
How much a measurement hangs on the mark that it starts from is told by the coefficient of variation
over marks that differ a little.
Lengths are mm, volumes mm3, positions LPS mm.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from phoi_models.canonical import to_canonical
from phoi_models.detector import Candidate
from phoi_models.findings import Attenuation, Finding
from phoi_models.geometry import as_triple
from phoi_models.lungs import segment_lungs
from phoi_models.measure import measure
from phoi_models.planting import Place, PlantedNodule, plant_nodules
from phoi_models.planting_host import LungSpace
from phoi_models.volume import Volume

from phoi_training.readings import Outline

SIZES_MM = (3.0, 5.0, 8.0, 15.0, 30.0, 50.0)
SIZE_ERROR = 0.2
"""The network's diameter is off by up to this share."""
CENTER_ERROR_MM = 1.0
"""The network's centre is off by up to this."""
RESIZED = 0.1
"""The diameter of a mark that is given again is off by up to this share; its centre as above."""
_GRID_MM = 1.0
_FEWEST = 2


@dataclass(frozen=True)
class Measured:
    """One planted nodule: what it is and what was measured.

    Attributes:
        host: name of the CT that it was planted into.
        slice_mm: distance of the slices there, mm.
        attenuation, place: the truth.
        diameter_mm, volume_mm3: the truth: mean diameter, mm, and volume, mm3.
        solid_diameter_mm: true mean diameter of the solid part, mm; None unless part-solid.
        found_attenuation: as measured.
        found_diameter_mm, found_volume_mm3, found_solid_diameter_mm: as measured.
        again_mm: mean diameters, mm, measured from other marks of the same nodule.
    """

    host: str
    slice_mm: float
    attenuation: Attenuation
    place: Place
    diameter_mm: float
    volume_mm3: float
    solid_diameter_mm: float | None
    found_attenuation: Attenuation
    found_diameter_mm: float
    found_volume_mm3: float
    found_solid_diameter_mm: float | None
    again_mm: tuple[float, ...] = ()

    @property
    def error_mm(self) -> float:
        """Measured minus true mean diameter, mm."""
        return self.found_diameter_mm - self.diameter_mm

    @property
    def variation(self) -> float:
        """Coefficient of variation of the mean diameters measured again.

        Raises:
            ValueError: it was measured again less than twice.
        """
        if len(self.again_mm) < _FEWEST:
            raise ValueError("a coefficient of variation needs at least two measurements")
        return statistics.stdev(self.again_mm) / statistics.fmean(self.again_mm)


@dataclass(frozen=True)
class Agreement:
    """Bias and limits of agreement of a number of errors.

    Attributes:
        count: number of errors.
        bias: their mean.
        spread: half the distance between the 95 % limits: 1.96 sample standard deviations.
    """

    count: int
    bias: float
    spread: float

    @property
    def lower(self) -> float:
        """The lower 95 % limit of agreement."""
        return self.bias - self.spread

    @property
    def upper(self) -> float:
        """The upper 95 % limit of agreement."""
        return self.bias + self.spread


def agreement(errors: Sequence[float]) -> Agreement:
    """Bland and Altman's bias and 95 % limits.

    Raises:
        ValueError: fewer than two errors, or one that is no finite number.
    """
    if len(errors) < _FEWEST:
        raise ValueError("limits of agreement need at least two errors")
    if not all(math.isfinite(error) for error in errors):
        raise ValueError("errors must be finite numbers")
    return Agreement(len(errors), statistics.fmean(errors), 1.96 * statistics.stdev(errors))


def draw_diameters(
    numbers: Mapping[tuple[float, float], int], rng: np.random.Generator
) -> list[float]:
    """Mean diameters, mm, to plant; the largest, which finds a place hardest, first.

    Args:
        numbers: how many between which limits, mm.
        rng: everything random.
    """
    drawn = [float(rng.uniform(*limits)) for limits, n in numbers.items() for _ in range(n)]
    return sorted(drawn, reverse=True)


def study(
    hosts: Mapping[str, Volume],
    diameters_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    repeats: int = 0,
) -> list[Measured]:
    """Plant nodules into every host and measure them as if a network had found them.

    What the network says is the truth disturbed: the diameter by up to ``SIZE_ERROR``, the centre
    by up to ``CENTER_ERROR_MM``.

    Args:
        hosts: CT by name; none is changed.
        diameters_mm: mean diameters planted into each host, mm, 3 to 50; the largest first finds
            more places.
        rng: everything random; hosts are taken in the order of the mapping.
        repeats: how often each nodule is measured again, from marks whose diameter
            is off by up to ``RESIZED``, and whose centre as before.

    Returns:
        One entry for each nodule that found a place.
    """
    return [
        row
        for name, host in hosts.items()
        for row in _in_host(name, host, diameters_mm, rng, repeats)
    ]


def _in_host(
    name: str,
    host: Volume,
    diameters_mm: Sequence[float],
    rng: np.random.Generator,
    repeats: int,
) -> list[Measured]:
    planted, nodules = plant_nodules(host, LungSpace.of(host), diameters_mm, rng=rng)
    grid = to_canonical(planted, _GRID_MM)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    slice_mm = host.geometry.spacing_mm[0]

    def found(nodule: PlantedNodule, resized: float) -> Finding:
        return measure(planted, _disturbed(nodule, rng, resized), grid, lungs)

    def again(nodule: PlantedNodule) -> tuple[float, ...]:
        return tuple(found(nodule, RESIZED).mean_diameter_mm for _ in range(repeats))

    rows = [_measured(name, slice_mm, nodule, found(nodule, SIZE_ERROR)) for nodule in nodules]
    return [replace(row, again_mm=again(nodule)) for row, nodule in zip(rows, nodules, strict=True)]


def _disturbed(nodule: PlantedNodule, rng: np.random.Generator, size_error: float) -> Candidate:
    """The nodule as a network marks it."""
    direction = rng.normal(size=3)
    shift = direction / np.linalg.norm(direction) * rng.uniform(0, CENTER_ERROR_MM)
    diameter = nodule.mean_diameter_mm * rng.uniform(1 - size_error, 1 + size_error)
    return Candidate(as_triple(np.add(nodule.center_lps_mm, shift)), float(diameter), 0.9)


def _measured(name: str, slice_mm: float, nodule: PlantedNodule, found: Finding) -> Measured:
    return Measured(
        host=name,
        slice_mm=slice_mm,
        attenuation=nodule.kind.attenuation,
        place=nodule.place,
        diameter_mm=nodule.mean_diameter_mm,
        volume_mm3=nodule.volume_mm3,
        solid_diameter_mm=nodule.solid_diameter_mm,
        found_attenuation=found.attenuation,
        found_diameter_mm=found.mean_diameter_mm,
        found_volume_mm3=found.volume_mm3,
        found_solid_diameter_mm=found.solid_diameter_mm,
    )


@dataclass(frozen=True)
class ReaderSize:
    """The size of a lesion as one reader outlined it.

    Attributes:
        mean_diameter_mm: mean of the longest diameter on the slice where it is largest and of the
            extent perpendicular to it, mm.
        volume_mm3: areas of the outlines times the distance of the slices, mm3.
    """

    mean_diameter_mm: float
    volume_mm3: float


def reader_size(outline: Outline, pixel_mm: float, slice_mm: float) -> ReaderSize:
    """Size of a reader's outline.

    The readers of LIDC-IDRI traced the first pixels outside a lesion (Armato et al., Med Phys
    2011;38:915-31), so the lesion ends half a pixel inside the corners on each side, about.

    Args:
        outline: corners in pixels.
        pixel_mm: size of the square pixels, mm.
        slice_mm: distance of the slices, mm.
    """
    slices = [corners * pixel_mm for _, corners in outline.contours]
    sizes = [_diameters(corners) for corners in slices]
    longest = max(sizes, key=lambda size: size[0])
    area = sum(_area(corners) for corners in slices)
    return ReaderSize(sum(longest) / 2 - pixel_mm, area * slice_mm)


def _diameters(corners: NDArray[np.float64]) -> tuple[float, float]:
    """The longest diameter of a set of points (n, 2), and the extent perpendicular to it."""
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    along = (corners[b] - corners[a]) / max(float(apart[a, b]), 1e-9)
    return float(apart[a, b]), float(np.ptp(corners @ np.array([-along[1], along[0]])))


def _area(corners: NDArray[np.float64]) -> float:
    """Area of a closed outline (shoelace formula)."""
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def between(rows: Iterable[Measured], low_mm: float, high_mm: float) -> list[Measured]:
    """Those whose true mean diameter is at least ``low_mm`` and less than ``high_mm``."""
    return [row for row in rows if low_mm <= row.diameter_mm < high_mm]


def solid_part_errors(rows: Iterable[Measured]) -> list[float]:
    """Measured minus true diameter, mm, of the solid parts that are there and were seen."""
    return [
        row.found_solid_diameter_mm - row.solid_diameter_mm
        for row in rows
        if row.found_solid_diameter_mm is not None and row.solid_diameter_mm is not None
    ]


def table(rows: Sequence[Measured]) -> str:
    """Markdown: mean-diameter error by attenuation and size, by place, slices; solid parts."""
    groups: list[tuple[str, list[float]]] = []
    for attenuation in Attenuation:
        alike = [row for row in rows if row.attenuation is attenuation]
        groups += _by_size(attenuation.value.replace("_", "-"), alike)
    target = between([r for r in rows if r.attenuation is Attenuation.SOLID], 5.0, 15.0)
    groups.append(("**solid, 5 to 15 mm**", _errors(target)))
    for place in Place:
        here = _errors(row for row in target if row.place is place)
        groups.append((f"of these {place.value}", here))
    for low, high in ((0.0, 2.0), (2.0, 4.0), (4.0, 10.0)):
        slices = _errors(row for row in target if low <= row.slice_mm < high)
        groups.append((f"of these slices of {low:g} to {high:g} mm", slices))
    groups.append(("solid part of part-solid", solid_part_errors(rows)))
    head = "| Nodules | Number | Bias, mm | 95 % limits, mm |\n|---|---|---|---|\n"
    return head + "".join(_line(name, errors) for name, errors in groups if len(errors) >= _FEWEST)


def repeatability(rows: Sequence[Measured]) -> str:
    """Markdown: coefficients of variation, in percent, of diameters measured again, by size."""
    head = "| Nodules | Number | Median, % | 90th percentile, % | Largest, % |\n"
    lines = []
    for low, high in itertools.pairwise(SIZES_MM):
        found = [100 * row.variation for row in between(rows, low, high)]
        if found:
            middle, high_end = np.percentile(found, (50, 90))
            numbers = f"{len(found)} | {middle:.1f} | {high_end:.1f} | {max(found):.1f}"
            lines.append(f"| {low:g} to {high:g} mm | {numbers} |\n")
    return head + "|---|---|---|---|---|\n" + "".join(lines)


def _by_size(name: str, rows: Sequence[Measured]) -> list[tuple[str, list[float]]]:
    return [
        (f"{name}, {low:g} to {high:g} mm", _errors(between(rows, low, high)))
        for low, high in itertools.pairwise(SIZES_MM)
    ]


def _errors(rows: Iterable[Measured]) -> list[float]:
    return [row.error_mm for row in rows]


def _line(name: str, errors: Sequence[float]) -> str:
    found = agreement(errors)
    limits = f"{found.lower:+.2f} to {found.upper:+.2f}"
    return f"| {name} | {found.count} | {found.bias:+.2f} | {limits} |\n"
