"""How a volume is shown: radiological display, from patient coordinates alone.

The first slice is the one nearest to the head; on each slice the patient's front is up and the
patient's **left is on the viewer's right**, however the images were stored or the patient lay.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from phoi_models.findings import NoduleMask
from phoi_models.geometry import Geometry, Index, Triple, as_triple

Scalar = TypeVar("Scalar", bound=np.generic)
T = TypeVar("T")

# Where the displayed (slice, row, column) should grow to: feet, back, patient's left (LPS).
_TOWARDS = np.array([(0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))  # PS3.3 C.7.6.1.1.1, along and against x, y, z


@dataclass(frozen=True)
class EdgeLabels:
    """The patient direction at each edge of the picture, one letter of R, L, A, P, H, F."""

    left: str
    right: str
    top: str
    bottom: str


@dataclass(frozen=True)
class Display:
    """A volume as it is shown.

    Attributes:
        order: array axes that are shown as (slice, row, column).
        flipped: which of the three displayed axes run against their array axis.
        geometry: of the displayed stack, axes (slice, row, column).
    """

    order: Index
    flipped: tuple[bool, bool, bool]
    geometry: Geometry

    def slice_of(self, hu: NDArray[np.int16], index: int) -> NDArray[np.int16]:
        """The picture of one displayed slice, axes (row, column), contiguous.

        Args:
            hu: voxels of the volume as stored.
            index: displayed slice, 0 nearest to the head.

        Raises:
            IndexError: there is no such slice.
        """
        if not 0 <= index < self.geometry.shape[0]:
            raise IndexError("no such slice")
        return np.ascontiguousarray(self._turned(hu)[index])

    def mask_of(self, mask: NoduleMask) -> NoduleMask:
        """A nodule's voxels on the grid of the displayed stack."""
        size = mask.voxels.shape
        offset = []
        for axis, flip, length in zip(self.order, self.flipped, self.geometry.shape, strict=True):
            start = mask.offset[axis]
            offset.append(length - start - size[axis] if flip else start)
        return NoduleMask((offset[0], offset[1], offset[2]), self._turned(mask.voxels))

    def index_of(self, lps_mm: ArrayLike) -> Triple:
        """Displayed (slice, row, column), fractional, of an LPS position in mm."""
        return as_triple(self.geometry.lps_to_index(lps_mm))

    @property
    def labels(self) -> EdgeLabels:
        """The letters at the edges, from the directions in which rows and columns really run."""
        _, row, column = self.geometry.axes_lps
        return EdgeLabels(
            left=_letter([-c for c in column]),
            right=_letter(column),
            top=_letter([-c for c in row]),
            bottom=_letter(row),
        )

    def _turned(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        turned = array.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]


def display_of(geometry: Geometry) -> Display:
    """The display of a volume of this geometry: the nearest turn, nothing is resampled."""
    axes = np.asarray(geometry.axes_lps)
    along = axes @ _TOWARDS.T  # [array axis, displayed axis]
    best = max(permutations(range(3)), key=lambda o: sum(abs(along[a, d]) for d, a in enumerate(o)))
    order: Index = (best[0], best[1], best[2])
    flips = [bool(along[axis, shown] < 0) for shown, axis in enumerate(order)]
    corner = [0, 0, 0]
    for axis, flip in zip(order, flips, strict=True):
        corner[axis] = geometry.shape[axis] - 1 if flip else 0
    turned = [as_triple(-axes[a] if f else axes[a]) for a, f in zip(order, flips, strict=True)]
    shown = Geometry(
        shape=_permuted(geometry.shape, order),
        spacing_mm=_permuted(geometry.spacing_mm, order),
        origin_lps_mm=as_triple(geometry.index_to_lps(corner)),
        axes_lps=(turned[0], turned[1], turned[2]),
    )
    return Display(order, (flips[0], flips[1], flips[2]), shown)


def _letter(direction: ArrayLike) -> str:
    vector = np.asarray(direction, dtype=np.float64)
    axis = int(np.argmax(np.abs(vector)))
    return _LETTERS[axis][0 if vector[axis] > 0 else 1]


def _permuted(values: tuple[T, T, T], order: Index) -> tuple[T, T, T]:
    return (values[order[0]], values[order[1]], values[order[2]])
