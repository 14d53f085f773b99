"""A CT volume: voxels in Hounsfield units and where they lie in the patient."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phoi_models.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT series as a block of voxels.

    Attributes:
        hu: int16 Hounsfield units, C order, axes (z, y, x), shape ``geometry.shape``.
            Slices are sorted along the slice axis of ``geometry``.
        geometry: index to patient (LPS, mm) map.

    Raises:
        ValueError: wrong dtype, or a shape that differs from the geometry's.
    """

    hu: NDArray[np.int16]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16:
            raise ValueError(f"voxels must be int16 HU, got {self.hu.dtype}")
        if self.hu.shape != self.geometry.shape:
            raise ValueError(f"voxels {self.hu.shape} do not fit geometry {self.geometry.shape}")

    def digest(self) -> str:
        """SHA-256 (hex) of voxels and geometry: the identity of the input of an analysis."""
        geometry = self.geometry
        header = json.dumps(
            [geometry.shape, geometry.spacing_mm, geometry.origin_lps_mm, geometry.axes_lps]
        )
        state = hashlib.sha256(header.encode())
        state.update(np.ascontiguousarray(self.hu).data)
        return state.hexdigest()
