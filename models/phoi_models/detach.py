"""Cut a nodule free from what hangs on it: vessels, spicules, scars, neighbours.

Two steps, for masks of anything denser than lung:

1. Opening by a ball whose radius is a share of the nodule's own thickness (after Kuhnigk et al.,
   IEEE Trans Med Imaging 2006;25:417-34). A nodule shrinks little by little as the ball grows; a
   sudden loss means that a neighbour has come off, so the first opening after the last sudden loss
   is taken.
2. What is left is seen from inside along rays. What reaches much farther than the median of the
   rays around it is a stump, not the nodule, and is cut to that median.

Arrays have axes (z, y, x).
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from phoi_models.geometry import Index

Mask = NDArray[np.bool_]
_Floats = NDArray[np.float64]

_OPENINGS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_WIDEST_FIRST_MM = 2.5
_SUDDEN_LOSS = 0.5
_RAYS = 600
_NEIGHBOURHOOD_RAD = np.deg2rad(40.0)
_FARTHER, _FARTHER_MM = 1.15, 0.5
_SEEN, _FILLED = 1.5, 1.1
_RAY_STEP_MM = 0.25
_CUBE = ndimage.generate_binary_structure(3, 3)


def detached(
    mask: Mask, seed: Index, matrix: _Floats, spacing_mm: tuple[float, ...], reach_mm: float
) -> Mask:
    """The body of ``mask`` around ``seed``, without what hangs on it.

    Args:
        mask: bool, axes (z, y, x).
        seed: index (z, y, x) of a sample deep inside the nodule.
        matrix: 3x3, mm offset = matrix @ index offset; the axes may lean.
        spacing_mm: of the samples along (z, y, x), mm.
        reach_mm: nothing farther than this from the seed belongs to the nodule, unless that is
            so nearly all around: then the nodule is larger than was thought.

    Returns:
        A part of ``mask``, one component; empty where the seed is outside ``mask``.
    """
    body = np.zeros_like(mask)
    if not mask[seed]:
        return body
    labels, _ = ndimage.label(mask)
    box = ndimage.find_objects((labels == labels[seed]).view(np.uint8))[0]
    part = labels[box] == labels[seed]
    at = tuple(int(i - axis.start) for i, axis in zip(seed, box, strict=True))
    opened = _opened(part, at, spacing_mm)
    body[box] = _largest(_cut(opened, np.array(at), matrix, reach_mm))
    return body


def _opened(mask: Mask, seed: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Mask:
    """The opening after the last sudden loss of volume; the weakest one where there is none."""
    padded = np.pad(mask, 1)
    inner = ndimage.distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    openings = [_opening(mask, inner, seed, share, spacing_mm) for share in _OPENINGS]
    sizes = [np.count_nonzero(opened) for opened in openings]
    losses = [
        after for after, (a, b) in enumerate(itertools.pairwise(sizes), 1) if b < _SUDDEN_LOSS * a
    ]
    return openings[losses[-1] if losses else 0]


def _opening(
    mask: Mask,
    inner: _Floats,
    seed: tuple[int, ...],
    share: float,
    spacing_mm: tuple[float, ...],
) -> Mask:
    """Opening of the part that holds the seed by a ball of a share of the thickness there."""
    radius = share * float(inner[seed])
    if share == _OPENINGS[0]:
        radius = min(radius, _WIDEST_FIRST_MM)  # lobes of a mass stay
    labels, _ = ndimage.label(inner >= radius, structure=_CUBE)
    core: Mask = labels == labels[seed]
    away = ndimage.distance_transform_edt(~core, sampling=spacing_mm)
    opened: Mask = core | (mask & (away < radius))
    return opened


def _cut(mask: Mask, seed: NDArray[np.int_], matrix: _Floats, reach_mm: float) -> Mask:
    """Along rays from the seed, nothing much farther than along the rays around them."""
    directions, neighbours, tree = _rays()
    extent = _extent(mask, seed, np.linalg.inv(matrix) @ directions.T, _SEEN * reach_mm)
    usual = np.array([np.median(extent[near]) for near in neighbours])
    # What fills its bounds nearly all around is larger than was thought.
    farthest = max(reach_mm, _FILLED * float(np.percentile(extent, 25)))
    limit = np.minimum(_FARTHER * usual + _FARTHER_MM, farthest)
    voxels = np.argwhere(mask)
    offsets = (voxels - seed) @ matrix.T
    distance = np.linalg.norm(offsets, axis=1)
    gap, ray = tree.query(offsets / np.maximum(distance, 1e-6)[:, None], k=3)
    weight = 1 / (gap + 1e-3)
    within = distance <= (limit[ray] * weight).sum(axis=1) / weight.sum(axis=1)
    cut = np.zeros_like(mask)
    cut[tuple(voxels[within].T)] = True
    return cut


def _extent(mask: Mask, seed: NDArray[np.int_], step: _Floats, reach_mm: float) -> _Floats:
    """How far the mask reaches along each ray, mm; ``step`` (3, rays) is 1 mm in indices."""
    along = np.arange(0.0, reach_mm + _RAY_STEP_MM, _RAY_STEP_MM)
    index = np.rint(seed[:, None, None] + step[:, :, None] * along).astype(int)
    shape = np.array(mask.shape)[:, None, None]
    scanned = ((index >= 0) & (index < shape)).all(axis=0)
    hit = mask[tuple(np.where(scanned, index, 0))] & scanned
    extent: _Floats = np.where(hit, along, 0.0).max(axis=1)
    return extent


@cache
def _rays() -> tuple[_Floats, list[NDArray[np.intp]], cKDTree]:
    """Unit vectors spread evenly (golden spiral), the rays around each, and a search tree."""
    order = np.arange(_RAYS) + 0.5
    height = 1 - 2 * order / _RAYS
    turn = np.pi * (1 + np.sqrt(5)) * order
    across = np.sqrt(1 - height**2)
    directions = np.stack([np.cos(turn) * across, np.sin(turn) * across, height], axis=1)
    near = directions @ directions.T >= np.cos(_NEIGHBOURHOOD_RAD)
    return directions, [np.flatnonzero(row) for row in near], cKDTree(directions)


def _largest(mask: Mask) -> Mask:
    """The largest component."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == sizes.argmax()
    return largest
