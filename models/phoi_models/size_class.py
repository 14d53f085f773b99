"""Provisional size classes: Lung-RADS v2022 and Fleischner 2017, from size and attenuation alone.

Both schemes need what no image holds (priors, risk, history of cancer). These classes answer one
question only: where would this size fall *if this were a baseline screening* (Lung-RADS) or a
first incidental nodule (Fleischner)? They are never a management category.

Two rules of Lung-RADS need more than size and attenuation, and are not applied: a juxtapleural
solid nodule below 10 mm that is smooth and oval, lentiform or triangular is category 2, and one
with benign calcification or fat is category 1. Neither shape and margin nor the pattern of
calcification is measured, so such a nodule gets the class of its size, which is never lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from phoi_models.findings import Attenuation, Finding


class Basis(StrEnum):
    """Which measurement decided the class."""

    MEAN_DIAMETER = "mean_diameter"
    VOLUME = "volume"


@dataclass(frozen=True)
class SizeClass:
    """Provisional, size-based classes of one nodule.

    Attributes:
        lung_rads: "2", "3", "4A" or "4B" (Lung-RADS v2022, baseline).
        fleischner: "<6 mm", "6-8 mm" or ">8 mm" by diameter; "<100 mm3", "100-250 mm3" or
            ">250 mm3" by volume; None for subsolid nodules, whose Fleischner groups also depend
            on number and persistence.
        basis: the measurement that both classes come from.
    """

    lung_rads: str
    fleischner: str | None
    basis: Basis


def size_class(finding: Finding, basis: Basis = Basis.MEAN_DIAMETER) -> SizeClass:
    """Class of a measured finding; see :func:`classify`."""
    return classify(
        finding.attenuation,
        finding.mean_diameter_mm,
        solid_diameter_mm=finding.solid_diameter_mm,
        volume_mm3=finding.volume_mm3 if basis is Basis.VOLUME else None,
    )


def classify(
    attenuation: Attenuation,
    mean_diameter_mm: float,
    *,
    solid_diameter_mm: float | None = None,
    volume_mm3: float | None = None,
) -> SizeClass:
    """Class by volume where one is given and the schemes have volume limits (solid), else by
    mean diameter.

    Args:
        attenuation: class of the nodule.
        mean_diameter_mm: mean of long and short axis, mm, taken to one decimal by Lung-RADS and
            to whole millimetres by Fleischner.
        solid_diameter_mm: mean diameter of the solid part, mm; None counts as none.
        volume_mm3: volume, mm3.

    Raises:
        ValueError: a size is not positive.
    """
    sizes = [v for v in (mean_diameter_mm, solid_diameter_mm, volume_mm3) if v is not None]
    if any(not v > 0 for v in sizes):
        raise ValueError("sizes must be positive")
    total = round(mean_diameter_mm, 1)
    if attenuation is Attenuation.NON_SOLID:
        return SizeClass("2" if total < 30 else "3", None, Basis.MEAN_DIAMETER)
    if attenuation is Attenuation.PART_SOLID:
        solid = round(solid_diameter_mm or 0.0, 1)
        return SizeClass(_part_solid(total, solid), None, Basis.MEAN_DIAMETER)
    if volume_mm3 is not None:
        lung_rads = _step(volume_mm3, (113.0, 268.0, 1767.0), ("2", "3", "4A", "4B"))
        return SizeClass(lung_rads, _fleischner_volume(volume_mm3), Basis.VOLUME)
    lung_rads = _step(total, (6.0, 8.0, 15.0), ("2", "3", "4A", "4B"))
    return SizeClass(lung_rads, _fleischner_diameter(mean_diameter_mm), Basis.MEAN_DIAMETER)


def _step(value: float, limits: tuple[float, ...], classes: tuple[str, ...]) -> str:
    """The class of a value; a value at a limit belongs to the class above it."""
    return classes[sum(value >= limit for limit in limits)]


def _part_solid(total_mm: float, solid_mm: float) -> str:
    if total_mm < 6.0:
        return "2"
    return _step(solid_mm, (6.0, 8.0), ("3", "4A", "4B"))


def _fleischner_diameter(mean_diameter_mm: float) -> str:
    """Fleischner rounds to whole millimetres; halves are rounded up, as readers do."""
    whole = int(mean_diameter_mm + 0.5)
    if whole < 6:
        return "<6 mm"
    return "6-8 mm" if whole <= 8 else ">8 mm"


def _fleischner_volume(volume_mm3: float) -> str:
    if volume_mm3 < 100.0:
        return "<100 mm3"
    return "100-250 mm3" if volume_mm3 <= 250.0 else ">250 mm3"
