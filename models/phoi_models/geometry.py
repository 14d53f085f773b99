"""Where a volume lies in the patient.

Coordinates are those of DICOM's patient-based system (PS3.3 C.7.6.2.1.1): millimetres,
x grows to the patient's **left**, y to the **back** (posterior), z to the **head** (superior): LPS.
Array axes are always ordered (z, y, x): slice, row, column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Triple = tuple[float, float, float]
Index = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """The affine map from array indices to patient coordinates.

    The three axes need not be orthogonal: with a tilted gantry the slice axis leans.

    Attributes:
        shape: number of voxels along (z, y, x).
        spacing_mm: distance between neighbouring voxel centres along (z, y, x), mm.
        origin_lps_mm: LPS position of the centre of voxel (0, 0, 0), mm.
        axes_lps: for each array axis (z, y, x) the LPS unit vector along which its index grows.

    Raises:
        ValueError: a size or spacing is not positive, an axis is no unit vector, or the axes
            do not span space.
    """

    shape: Index
    spacing_mm: Triple
    origin_lps_mm: Triple
    axes_lps: tuple[Triple, Triple, Triple]

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.shape):
            raise ValueError(f"a volume needs at least one voxel along each axis, got {self.shape}")
        numbers = np.array([*self.spacing_mm, *self.origin_lps_mm, *np.ravel(self.axes_lps)])
        if not np.isfinite(numbers).all():
            raise ValueError("a geometry holds finite numbers only")
        if any(s <= 0 for s in self.spacing_mm):
            raise ValueError(f"spacing must be positive, got {self.spacing_mm} mm")
        axes = np.asarray(self.axes_lps)
        if not np.allclose(np.linalg.norm(axes, axis=1), 1.0, atol=1e-3):
            raise ValueError("each axis must be a unit vector")
        if abs(float(np.linalg.det(axes))) < 0.1:
            raise ValueError("the three axes do not span space")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """3x3 matrix: LPS offset in mm = matrix @ index (z, y, x)."""
        axes = np.asarray(self.axes_lps, dtype=np.float64)
        scaled: NDArray[np.float64] = (axes * np.asarray(self.spacing_mm)[:, None]).T
        return scaled

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, mm3, also when the axes lean."""
        return abs(float(np.linalg.det(self.matrix)))

    def index_to_lps(self, index: ArrayLike) -> NDArray[np.float64]:
        """LPS positions, mm, of (possibly fractional) indices; last axis is (z, y, x)."""
        origin = np.asarray(self.origin_lps_mm, dtype=np.float64)
        points: NDArray[np.float64] = origin + np.asarray(index, dtype=np.float64) @ self.matrix.T
        return points

    def lps_to_index(self, lps_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional indices (z, y, x) of LPS positions, mm; last axis is (x, y, z)."""
        offset = np.asarray(lps_mm, dtype=np.float64) - np.asarray(self.origin_lps_mm)
        index: NDArray[np.float64] = offset @ np.linalg.inv(self.matrix).T
        return index


def as_triple(values: ArrayLike) -> Triple:
    """Three plain floats from any array of three numbers."""
    x, y, z = (float(v) for v in np.asarray(values, dtype=np.float64).ravel())
    return (x, y, z)
