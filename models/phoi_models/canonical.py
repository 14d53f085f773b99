"""Bring a volume of any orientation onto one isotropic grid along the patient's axes.

The canonical grid has axes (z, y, x) that grow to the head, the back and the patient's left, so
that an array index alone says where in the patient a voxel lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from phoi_models.geometry import Geometry, Index, Triple, as_triple
from phoi_models.volume import Volume

PADDING_HU = -2048
"""Fills what the scan did not cover, when a leaning or oblique block lies in the upright grid."""

_ALIGNED = 2e-4
_BLOCK = 32
"""Rows of a banded matrix that are multiplied at once: nearly all of it is zero."""
_LPS_OF_AXIS = (2, 1, 0)


@dataclass(frozen=True, eq=False)
class CanonicalGrid:
    """Hounsfield units on an isotropic grid along the patient's axes.

    Attributes:
        hu: int16, axes (z, y, x): head, back, left. ``PADDING_HU`` where nothing was scanned.
        origin_lps_mm: LPS position of the centre of voxel (0, 0, 0), mm.
        spacing_mm: voxel size along all axes, mm.
    """

    hu: NDArray[np.int16]
    origin_lps_mm: Triple
    spacing_mm: float

    def lps_to_index(self, lps_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional indices (z, y, x) of LPS positions, mm; last axis is (x, y, z)."""
        offset = np.asarray(lps_mm, dtype=np.float64) - np.asarray(self.origin_lps_mm)
        index: NDArray[np.float64] = offset[..., ::-1] / self.spacing_mm
        return index

    def index_to_lps(self, index_zyx: ArrayLike) -> NDArray[np.float64]:
        """LPS positions (x, y, z), mm, of (fractional) indices; last axis is (z, y, x)."""
        index = np.asarray(index_zyx, dtype=np.float64)
        lps: NDArray[np.float64] = index[..., ::-1] * self.spacing_mm + self.origin_lps_mm
        return lps


def to_canonical(volume: Volume, spacing_mm: float) -> CanonicalGrid:
    """Resample a volume onto the canonical grid that just holds it.

    Linear where the grid is finer than the volume, the mean over the new voxel where it is
    coarser, so that noise is not aliased. A block whose axes lean or lie oblique is
    interpolated linearly.

    Args:
        volume: any orientation; axes may lean.
        spacing_mm: voxel size of the new grid, mm.

    Raises:
        ValueError: ``spacing_mm`` is not positive.
    """
    if spacing_mm <= 0:
        raise ValueError(f"spacing must be positive, got {spacing_mm} mm")
    order = _aligned_order(volume.geometry)
    if order is None:
        return _interpolated(volume, spacing_mm)
    return _separable(volume, spacing_mm, order)


def _aligned_order(geometry: Geometry) -> Index | None:
    """For each canonical axis (z, y, x) the array axis along it; None unless all are aligned."""
    axes = np.abs(np.asarray(geometry.axes_lps))
    array_axis = axes.argmax(axis=0)
    if sorted(array_axis) != [0, 1, 2]:
        return None
    along = np.zeros_like(axes)
    along[array_axis, np.arange(3)] = 1.0
    if np.abs(axes - along).max() > _ALIGNED:
        return None
    z, y, x = (int(array_axis[lps]) for lps in _LPS_OF_AXIS)
    return (z, y, x)


def _separable(volume: Volume, spacing_mm: float, order: Index) -> CanonicalGrid:
    """Turn the array upright, then resample axis by axis."""
    geometry = volume.geometry
    hu = volume.hu.transpose(order)
    matrices, low = [], []
    for axis, array_axis in enumerate(order):
        lps = _LPS_OF_AXIS[axis]
        size, count = geometry.spacing_mm[array_axis], geometry.shape[array_axis]
        first = geometry.origin_lps_mm[lps]
        if geometry.axes_lps[array_axis][lps] < 0:
            hu = np.flip(hu, axis)
            first -= (count - 1) * size
        new = max(1, round(count * size / spacing_mm))
        matrices.append(_resampling_matrix(count, size, new, spacing_mm))
        low.append(first + ((count - 1) * size - (new - 1) * spacing_mm) / 2)
    return CanonicalGrid(_resampled(hu, matrices), as_triple(low[::-1]), spacing_mm)


def _resampling_matrix(count: int, size: float, new: int, spacing_mm: float) -> NDArray[np.float32]:
    """Weights (new, count) that resample one axis; both grids share their middle."""
    ratio = spacing_mm / size
    center = (np.arange(new) - (new - 1) / 2) * ratio + (count - 1) / 2
    index = np.arange(count)
    if ratio <= 1:
        inside = np.clip(center, 0, count - 1)
        weights = np.maximum(0.0, 1.0 - np.abs(inside[:, None] - index))
    else:
        low = np.maximum(center[:, None] - ratio / 2, index - 0.5)
        high = np.minimum(center[:, None] + ratio / 2, index + 0.5)
        weights = np.maximum(0.0, high - low)
    normed: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normed


def _resampled(hu: NDArray[np.int16], matrices: list[NDArray[np.float32]]) -> NDArray[np.int16]:
    """Apply one resampling matrix along each axis (z, y, x)."""
    along_z, along_y, along_x = matrices
    rows, columns = _blocks(along_y), _blocks(along_x)
    half = np.empty((len(along_y), hu.shape[2]), dtype=np.float32)
    flat = np.empty((len(hu), len(along_y), len(along_x)), dtype=np.float32)
    for plane, result in zip(hu, flat, strict=True):
        values = plane.astype(np.float32)
        for new, old, weights in rows:
            np.matmul(weights, values[old], out=half[new])
        for new, old, weights in columns:
            np.matmul(half[:, old], weights.T, out=result[:, new])
    out = np.empty((len(along_z), *flat.shape[1:]), dtype=np.int16)
    for weights, rounded in zip(along_z, out, strict=True):
        mixed = np.zeros(flat.shape[1:], dtype=np.float32)
        for k in np.flatnonzero(weights):
            mixed += weights[k] * flat[k]
        np.rint(mixed, out=rounded, casting="unsafe")
    return out


def _blocks(matrix: NDArray[np.float32]) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """The parts of a banded matrix that are not zero: rows, columns, weights."""
    blocks = []
    for first in range(0, len(matrix), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(matrix)))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((rows, columns, np.ascontiguousarray(matrix[rows, columns])))
    return blocks


def _interpolated(volume: Volume, spacing_mm: float) -> CanonicalGrid:
    """Linear interpolation of a leaning or oblique block into the box that holds it."""
    geometry = volume.geometry
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in geometry.shape])).reshape(3, -1).T
    lps = geometry.index_to_lps(corners)
    low, high = lps.min(axis=0), lps.max(axis=0)
    shape = np.maximum(1, np.ceil((high - low) / spacing_mm - 1e-6).astype(int))[::-1]
    origin = low + spacing_mm / 2
    # Canonical index (z, y, x) -> LPS -> index in the volume.
    to_lps = np.eye(3)[::-1] * spacing_mm
    matrix = np.linalg.inv(geometry.matrix) @ to_lps
    hu = np.empty(tuple(shape), dtype=np.int16)
    ndimage.affine_transform(
        volume.hu,
        matrix,
        offset=geometry.lps_to_index(origin),
        output=hu,
        order=1,
        mode="constant",
        cval=PADDING_HU,
    )
    return CanonicalGrid(hu, as_triple(origin), spacing_mm)
