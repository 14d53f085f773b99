"""What an analysis of one volume yields. Pure values; the edge turns them into documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from phoi_models.geometry import Index, Triple

Segment = tuple[Triple, Triple]


class Side(StrEnum):
    """The patient's own side."""

    LEFT = "left"
    RIGHT = "right"


class Lobe(StrEnum):
    """The five lobes of the lungs."""

    RIGHT_UPPER = "right_upper"
    RIGHT_MIDDLE = "right_middle"
    RIGHT_LOWER = "right_lower"
    LEFT_UPPER = "left_upper"
    LEFT_LOWER = "left_lower"


class Attenuation(StrEnum):
    """Attenuation class of a nodule (Fleischner glossary; Lung-RADS v2022)."""

    SOLID = "solid"
    PART_SOLID = "part_solid"
    NON_SOLID = "non_solid"


class Region(StrEnum):
    """What of the volume the detector looks at."""

    LUNGS = "lungs"
    WHOLE = "whole"


@dataclass(frozen=True, eq=False)
class NoduleMask:
    """The voxels of one nodule on the grid of the analysed volume.

    Attributes:
        offset: index (z, y, x) of the first voxel of ``voxels`` in the volume.
        voxels: bool array, axes (z, y, x), the tight bounding box; at least one is True.
    """

    offset: Index
    voxels: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Finding:
    """One suspected lung nodule, measured.

    Attributes:
        center_lps_mm: centre of mass of the mask, LPS, mm.
        probability: calibrated probability, 0 to 1, that this mark is a nodule. Not of cancer.
        long_axis_mm: longest diameter on the transverse plane where it is largest, mm.
        short_axis_mm: longest diameter perpendicular to it on the same plane, mm.
        mean_diameter_mm: mean of the two, one decimal (Lung-RADS v2022).
        volume_mm3: sum of segmented voxel volumes, mm3.
        attenuation: solid, part-solid or non-solid.
        solid_diameter_mm: mean diameter of the solid part, mm; None unless part-solid.
        mean_hu: mean attenuation inside the mask, HU.
        side: the patient's side.
        lobe: None where it cannot be known.
        long_axis_lps_mm, short_axis_lps_mm: end points of the axes, LPS, mm.
        mask: voxels of the nodule on the grid of the analysed volume.
    """

    center_lps_mm: Triple
    probability: float
    long_axis_mm: float
    short_axis_mm: float
    mean_diameter_mm: float
    volume_mm3: float
    attenuation: Attenuation
    solid_diameter_mm: float | None
    mean_hu: float
    side: Side
    lobe: Lobe | None
    long_axis_lps_mm: Segment
    short_axis_lps_mm: Segment
    mask: NoduleMask


@dataclass(frozen=True)
class LungCoverage:
    """How much of the lungs the volume shows.

    Attributes:
        apex: the top of both lungs lies inside the volume.
        base: the lowest part of both lungs lies inside the volume.
        volume_ml: volume of the lung mask, millilitres.
        sides: the field of view cuts no lung at its side, and leaves none out. True where it was
            not looked at: results and workers of before it was.
    """

    apex: bool
    base: bool
    volume_ml: float
    sides: bool = True

    @property
    def parts(self) -> Mapping[str, bool]:
        """Each part of the lungs by name, and whether the volume shows it."""
        return {"apex": self.apex, "base": self.base, "sides": self.sides}

    @property
    def complete(self) -> bool:
        """The volume shows the lungs from apex to base and from side to side."""
        return all(self.parts.values())


@dataclass(frozen=True, eq=False)
class VolumeAnalysis:
    """All that one model says of one volume.

    Attributes:
        findings: most probable first.
        coverage: of the lungs by the volume.
        timing_s: seconds by named step.
        runtime: execution provider and form of the networks, as "CPUExecutionProvider int8"; ""
            where nobody said.
    """

    findings: tuple[Finding, ...]
    coverage: LungCoverage
    timing_s: Mapping[str, float] = field(default_factory=dict)
    runtime: str = ""
