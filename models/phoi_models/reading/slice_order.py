"""Slices into a volume, by where they lie in the patient and never by how they are numbered.

Instance Number, file names and order of arrival say nothing reliable about place. Image Position
and Image Orientation (Patient) (PS3.3 C.7.6.2.1.1) do. Pure: no files here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry, Triple, as_triple

MAXIMUM_SPACING_MM = 5.0
LARGEST_OFFSET_MM = 0.5
"""How far a corner of a slice may lie from where an even stack would have it, mm."""

_THICKNESS_TOLERANCE_MM = 0.05
_SAME_PLACE_MM = 0.01
# Positions are often written with one decimal: 0.625 mm apart reads as steps of 0.6 and 0.7 mm,
# and where the gantry is tilted, in two directions at once.
_STEP_TOLERANCE_MM = 0.15
_STEP_TOLERANCE = 0.1
_SAME_DIRECTION = 2e-3
_SAME_SPACING = 1e-3
_LARGEST_LEAN_DEGREES = 45.0
_MOST_OBLIQUE_DEGREES = 35.0  # gantries tilt by up to 30


@dataclass(frozen=True)
class SlicePlace:
    """Where one slice lies. All directions are LPS unit vectors, all lengths mm.

    Attributes:
        position_lps_mm: centre of the first pixel.
        along_row_lps: direction in which the column index grows.
        along_column_lps: direction in which the row index grows.
        pixel_spacing_mm: between rows, between columns.
        shape: rows, columns.
        thickness_mm: nominal slice thickness; 0 where the header says nothing.
        frame_of_reference_uid: "" where the header says nothing.

    Raises:
        NotAnalysable: the two directions are no orthogonal unit vectors, or a size or spacing is
            not positive.
    """

    position_lps_mm: Triple
    along_row_lps: Triple
    along_column_lps: Triple
    pixel_spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float = 0.0
    frame_of_reference_uid: str = ""

    def __post_init__(self) -> None:
        directions = np.array([self.along_row_lps, self.along_column_lps])
        if not np.allclose(directions @ directions.T, np.eye(2), atol=_SAME_DIRECTION):
            raise _inconsistent("a slice's rows and columns are not at right angles")
        if not np.isfinite(self.position_lps_mm).all():
            raise _inconsistent("a slice has no usable position")
        if not all(0 < mm < 100 for mm in self.pixel_spacing_mm) or min(self.shape) < 1:
            raise _inconsistent("a slice has no usable size or pixel spacing")

    @property
    def normal_lps(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the slice, right-handed with (row, column)."""
        normal = np.cross(self.along_row_lps, self.along_column_lps)
        unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
        return unit

    def index_to_lps(self, row: int, column: int) -> Triple:
        """Centre of a pixel (PS3.3 C.7.6.2.1.1)."""
        down = row * self.pixel_spacing_mm[0] * np.asarray(self.along_column_lps)
        right = column * self.pixel_spacing_mm[1] * np.asarray(self.along_row_lps)
        return as_triple(np.asarray(self.position_lps_mm) + down + right)


@dataclass(frozen=True)
class SliceOrder:
    """A regular stack.

    Attributes:
        order: ``order[z]`` is the index, in the input, of slice z.
        geometry: of the volume; slices follow each other along the slices' normal, and where the
            gantry is tilted the slice axis leans.
    """

    order: tuple[int, ...]
    geometry: Geometry


def order_slices(places: Sequence[SlicePlace]) -> SliceOrder:
    """Sort slices along their normal and derive the geometry of the stack.

    Raises:
        NotAnalysable: INCONSISTENT_GEOMETRY, NOT_AXIAL, TOO_FEW_SLICES, DUPLICATE_SLICES,
            MISSING_SLICES or SLICES_TOO_THICK.
    """
    if len(places) < 2:
        raise NotAnalysable(NotAnalysableReason.TOO_FEW_SLICES, "the series has a single slice")
    first = places[0]
    _require_alike(places)
    _require_axial(first.normal_lps)
    positions = np.array([place.position_lps_mm for place in places])
    order = np.argsort(positions @ first.normal_lps, kind="stable")
    stacked = positions[order]
    _require_separate(stacked)
    _require_even(stacked)
    origin, step = _line_through(stacked)
    require_thin(float(np.linalg.norm(step)), max(place.thickness_mm for place in places))
    _require_upright(step, first.normal_lps)
    geometry = _geometry(first, origin, step, len(places))
    _require_in_place([places[index] for index in order], geometry)
    return SliceOrder(tuple(int(index) for index in order), geometry)


def require_thin(spacing_mm: float, thickness_mm: float = 0.0) -> None:
    """Slices thin enough to show a nodule.

    Raises:
        NotAnalysable: SLICES_TOO_THICK.
    """
    widest = max(spacing_mm, thickness_mm)
    if widest > MAXIMUM_SPACING_MM + _THICKNESS_TOLERANCE_MM:
        raise NotAnalysable(
            NotAnalysableReason.SLICES_TOO_THICK,
            f"slices of {widest:.1f} mm; at most {MAXIMUM_SPACING_MM:.0f} mm can be analysed",
        )


def _geometry(place: SlicePlace, origin: ArrayLike, step: NDArray[np.float64], n: int) -> Geometry:
    length = float(np.linalg.norm(step))
    return Geometry(
        shape=(n, *place.shape),
        spacing_mm=(length, *place.pixel_spacing_mm),
        origin_lps_mm=as_triple(origin),
        axes_lps=(
            as_triple(step / length),
            _unit(place.along_column_lps),
            _unit(place.along_row_lps),
        ),
    )


def _require_alike(places: Sequence[SlicePlace]) -> None:
    first = places[0]
    if any(place.shape != first.shape for place in places):
        raise _inconsistent("the slices differ in size")
    spacings = [place.pixel_spacing_mm for place in places]
    if not np.allclose(spacings, first.pixel_spacing_mm, atol=_SAME_SPACING):
        raise _inconsistent("the slices differ in pixel spacing")
    directions = [(place.along_row_lps, place.along_column_lps) for place in places]
    if not np.allclose(directions, directions[0], atol=_SAME_DIRECTION):
        raise _inconsistent("the slices differ in orientation")
    if any(place.frame_of_reference_uid != first.frame_of_reference_uid for place in places):
        raise _inconsistent("the slices differ in their frame of reference")


def _require_axial(normal: NDArray[np.float64]) -> None:
    if abs(normal[2]) < np.cos(np.deg2rad(_MOST_OBLIQUE_DEGREES)):
        raise NotAnalysable(NotAnalysableReason.NOT_AXIAL, "the slices are not transverse")


def _require_separate(stacked: NDArray[np.float64]) -> None:
    lengths = np.linalg.norm(np.diff(stacked, axis=0), axis=1)
    twice = int((lengths < _SAME_PLACE_MM).sum())
    if twice:
        raise NotAnalysable(
            NotAnalysableReason.DUPLICATE_SLICES,
            f"{twice} of {len(stacked)} slices lie where another one lies",
        )


def _require_even(stacked: NDArray[np.float64]) -> None:
    lengths = np.linalg.norm(np.diff(stacked, axis=0), axis=1)
    usual = float(np.median(lengths))
    missing = int(np.maximum(np.rint(lengths / usual) - 1, 0).sum())
    if missing:
        raise NotAnalysable(
            NotAnalysableReason.MISSING_SLICES,
            f"{missing} of {len(stacked) + missing} slices are missing",
        )
    if np.abs(lengths - usual).max() > max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE * usual):
        raise NotAnalysable(
            NotAnalysableReason.MISSING_SLICES,
            f"the slices lie unevenly, {lengths.min():.2f} to {lengths.max():.2f} mm apart",
        )


def _line_through(
    stacked: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Origin and step of the even stack that lies nearest to all slices (least squares)."""
    middle = (len(stacked) - 1) / 2
    index = np.arange(len(stacked)) - middle
    step = index @ stacked / (index @ index)
    return stacked.mean(axis=0) - middle * step, step


def _require_in_place(ordered: Sequence[SlicePlace], geometry: Geometry) -> None:
    """Each slice lies where an even stack would have it: small errors must not add up either."""
    rows, columns = geometry.shape[1] - 1, geometry.shape[2] - 1
    index = [[(z, 0, 0), (z, rows, columns)] for z in range(len(ordered))]
    corners = [(place.position_lps_mm, place.index_to_lps(rows, columns)) for place in ordered]
    off = float(np.linalg.norm(geometry.index_to_lps(index) - corners, axis=-1).max())
    if off > LARGEST_OFFSET_MM:
        raise _inconsistent(f"the slices do not lie evenly on one line, {off:.1f} mm off")


def _require_upright(step: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    lean = float(step @ normal / np.linalg.norm(step))
    if lean < np.cos(np.deg2rad(_LARGEST_LEAN_DEGREES)):
        raise _inconsistent("the slices are shifted against each other")


def _unit(vector: Triple) -> Triple:
    return as_triple(np.asarray(vector) / np.linalg.norm(vector))


def _inconsistent(detail: str) -> NotAnalysable:
    return NotAnalysable(NotAnalysableReason.INCONSISTENT_GEOMETRY, detail)
