"""Outline one nodule and measure it on the grid of its volume.

A network says how much of each place around a mark the nodule fills
(:mod:`phoi_models.segmentation`); the nodule is where that is one half and more. It is measured
on a block of the volume sampled finer by whole factors, so that each native voxel centre is a
sample: the native mask is read off, and axes lie on native transverse planes.
Arrays have axes (z, y, x) of the native grid unless said otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.canonical import CanonicalGrid
from phoi_models.detector import Candidate
from phoi_models.findings import Attenuation, Finding, NoduleMask, Segment
from phoi_models.geometry import Geometry, Index, as_triple
from phoi_models.lungs import LungMask
from phoi_models.segmentation import SAMPLES, Cube, Segmenter, cut_cube, shipped_segmenter
from phoi_models.volume import Volume

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_SOLID_HU = -350.0
_BLUR_MM = 1.3
_SMALLEST_SOLID_PART_MM = 2.0
_FINER, _FINE_MM = 0.75, (0.35, 0.8)
"""Distance of fine samples: this share of that in the cube, mm within these limits."""
_NEAR_SAMPLES = 4
_SIZES = (0.4, 2.0)
"""Of the mark's diameter: what is smaller or larger is not what was marked."""
_CUBE = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, eq=False)
class _Outline:
    """How much of its surroundings a nodule fills.

    Attributes:
        cube: the surroundings.
        filled: float32, of the cube's shape, 0 to 1; 0 away from the nodule.
    """

    cube: Cube
    filled: Floats

    @property
    def diameter_mm(self) -> float:
        """Diameter of the ball of the same volume, mm."""
        return float(np.cbrt(6 * self.filled.sum() / np.pi)) * self.cube.step_mm


@dataclass(frozen=True, eq=False)
class _Block:
    """A piece of a volume around a nodule, sampled finer by whole factors.

    Attributes:
        hu: float32, axes (z, y, x).
        geometry: of the fine samples.
        first: native index of sample (0, 0, 0).
        factors: samples to a native voxel along each axis.
    """

    hu: Floats
    geometry: Geometry
    first: Index
    factors: Index

    def inner_distance(self, mask: Mask) -> Floats:
        """Distance of each sample inside ``mask`` to the nearest outside, mm."""
        padded = np.pad(mask, 1)
        distance = ndimage.distance_transform_edt(padded, sampling=self.geometry.spacing_mm)
        inner: Floats = distance[1:-1, 1:-1, 1:-1].astype(np.float32)
        return inner

    def equivalent_diameter_mm(self, mask: Mask) -> float:
        """Diameter of the ball of the same volume, mm."""
        volume = np.count_nonzero(mask) * self.geometry.voxel_volume_mm3
        return float(np.cbrt(6 * volume / np.pi))

    def native(self, mask: Mask) -> Mask:
        """The samples of ``mask`` that are native voxel centres."""
        z, y, x = self.factors
        return mask[::z, ::y, ::x]


@dataclass(frozen=True)
class _Axes:
    """Long and perpendicular short axis on one native plane."""

    long_mm: float
    short_mm: float
    long_lps_mm: Segment
    short_lps_mm: Segment

    @property
    def mean_mm(self) -> float:
        """Mean of the two, mm."""
        return (self.long_mm + self.short_mm) / 2


def measure(
    volume: Volume,
    candidate: Candidate,
    canonical: CanonicalGrid,
    lungs: LungMask,
    segmenter: Segmenter | None = None,
) -> Finding:
    """Segment and measure a candidate. Never fails.

    Where no convincing border is found (a mark on the mediastinum, or on nothing at all), the
    ball of the network's diameter, cut to the lung, is measured instead.

    Args:
        volume: as scanned.
        candidate: a mark inside the volume, LPS, mm.
        canonical: the grid of ``lungs``.
        lungs: the lung mask.
        segmenter: what outlines the nodule; the network that comes with Phoi if not given.
    """
    outline = _outlined(volume, candidate, canonical, lungs, segmenter or shipped_segmenter())
    block = _block(volume, outline)
    mask = _mask(block, outline)
    attenuation, solid = _attenuation(block, mask)
    axes = _axes(block, mask)
    solid_axes = _axes(block, solid) if attenuation is Attenuation.PART_SOLID else None
    native = _native_mask(block, mask)
    voxels = native.voxels
    where = tuple(slice(o, o + n) for o, n in zip(native.offset, voxels.shape, strict=True))
    center = block.geometry.index_to_lps(np.argwhere(mask).mean(axis=0))
    side, _ = lungs.nearest(canonical.lps_to_index(center))
    return Finding(
        center_lps_mm=as_triple(center),
        probability=candidate.probability,
        long_axis_mm=axes.long_mm,
        short_axis_mm=axes.short_mm,
        mean_diameter_mm=round(axes.mean_mm, 1),
        volume_mm3=float(np.count_nonzero(voxels) * volume.geometry.voxel_volume_mm3),
        attenuation=attenuation,
        solid_diameter_mm=round(solid_axes.mean_mm, 1) if solid_axes else None,
        mean_hu=float(volume.hu[where][voxels].mean()),
        side=side,
        lobe=None,
        long_axis_lps_mm=axes.long_lps_mm,
        short_axis_lps_mm=axes.short_lps_mm,
        mask=native,
    )


def _outlined(
    volume: Volume,
    candidate: Candidate,
    canonical: CanonicalGrid,
    lungs: LungMask,
    segmenter: Segmenter,
) -> _Outline:
    """The nodule under a mark; the ball of the mark where none of about its size is seen."""
    diameter = candidate.diameter_mm
    cube = cut_cube(volume, canonical, lungs, candidate.center_lps_mm, diameter)
    outline = _Outline(cube, _marked_part(segmenter.filled(cube)))
    least, most = _SIZES
    if least * diameter <= outline.diameter_mm <= most * diameter:
        return outline
    return _Outline(cube, _ball(cube, diameter))


def _marked_part(filled: Floats) -> Floats:
    """The largest part that reaches near the middle, with its border; 0 elsewhere."""
    labels, _ = ndimage.label(filled > 0.5, structure=_CUBE)
    near = np.unique(labels[(labels > 0) & (_from_the_middle() <= _NEAR_SAMPLES)])
    if near.size == 0:
        return np.zeros_like(filled)
    own = labels == near[np.argmax(np.bincount(labels.ravel())[near])]
    border = ndimage.binary_dilation(own, structure=_CUBE) & (labels == 0)
    return np.where(own | border, filled, np.float32(0))


def _from_the_middle() -> NDArray[np.float64]:
    """Distance of each sample of a cube from its middle, in samples."""
    along = np.arange(SAMPLES) - (SAMPLES - 1) / 2
    z, y, x = np.meshgrid(along, along, along, indexing="ij", sparse=True)
    distance: NDArray[np.float64] = np.sqrt(z**2 + y**2 + x**2)
    return distance


def _ball(cube: Cube, diameter_mm: float) -> Floats:
    """The ball of the mark's diameter, in the lung; the whole ball where no lung is near."""
    away = _from_the_middle() * cube.step_mm
    ball = np.clip(0.5 + (diameter_mm / 2 - away) / cube.step_mm, 0, 1).astype(np.float32)
    inside: Floats = ball * cube.lung
    return inside if inside.max() > 0.5 else ball


def _block(volume: Volume, outline: _Outline) -> _Block:
    """Cut out and sample the surroundings of a nodule."""
    geometry, cube = volume.geometry, outline.cube
    own = np.argwhere(outline.filled > 0)
    ends = np.stack([own.min(axis=0) - 1, own.max(axis=0) + 1], axis=1)
    corners = np.array(list(itertools.product(*ends)))
    index = geometry.lps_to_index(cube.index_to_lps(corners))
    limits = np.array(geometry.shape)
    low = np.clip(np.floor(index.min(axis=0)), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0)) + 1, low + 1, limits).astype(int)
    cut = tuple(slice(a, b) for a, b in zip(low, high, strict=True))

    wanted = np.clip(_FINER * cube.step_mm, *_FINE_MM)
    factors = np.clip(np.rint(np.array(geometry.spacing_mm) / wanted), 1, 12).astype(int)
    hu = volume.hu[cut].astype(np.float32)
    for axis, factor in enumerate(factors):
        hu = _finer(hu, int(factor), axis)
    fine = replace(
        geometry,
        shape=hu.shape,
        spacing_mm=as_triple(np.array(geometry.spacing_mm) / factors),
        origin_lps_mm=as_triple(geometry.index_to_lps(low)),
    )
    first = (int(low[0]), int(low[1]), int(low[2]))
    by = (int(factors[0]), int(factors[1]), int(factors[2]))
    return _Block(hu, fine, first, by)


def _finer(hu: Floats, factor: int, axis: int) -> Floats:
    """Linear interpolation along one axis; every ``factor``-th sample is an old voxel."""
    if factor == 1 or hu.shape[axis] == 1:
        return hu
    position = np.arange((hu.shape[axis] - 1) * factor + 1) / factor
    below = np.minimum(position.astype(int), hu.shape[axis] - 2)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = (position - below).astype(np.float32).reshape(shape)
    finer: Floats = hu.take(below, axis) * (1 - weight) + hu.take(below + 1, axis) * weight
    return finer


def _mask(block: _Block, outline: _Outline) -> Mask:
    """The samples of a block that the nodule fills by half and more, at least one."""
    index = np.moveaxis(np.indices(block.hu.shape), 0, -1)
    at = outline.cube.lps_to_index(block.geometry.index_to_lps(index))
    filled = ndimage.map_coordinates(outline.filled, np.moveaxis(at, -1, 0), order=1)
    if not filled.any():  # what it fills lies beyond the scan
        filled = -np.linalg.norm(at - (SAMPLES - 1) / 2, axis=-1)
    mask: Mask = filled >= min(0.5, float(filled.max()))
    return mask


def _smoothed(block: _Block, sigma_mm: float) -> Floats:
    """HU blurred by a Gaussian."""
    sigma = sigma_mm / np.array(block.geometry.spacing_mm)
    smooth: Floats = ndimage.gaussian_filter(block.hu, sigma)
    return smooth


def _attenuation(block: _Block, mask: Mask) -> tuple[Attenuation, Mask]:
    """Class of the nodule, and its largest solid part.

    The rim is left out where the nodule is thick enough: blur makes it look like ground glass.
    """
    hu = _smoothed(block, 0.5)
    inner = block.inner_distance(mask)
    body = mask & (inner > min(_BLUR_MM, 0.5 * float(inner.max())))
    share = float((hu[body] > _SOLID_HU).mean())
    labels, count = ndimage.label(mask & (hu > _SOLID_HU), structure=_CUBE)
    if count == 0:
        return Attenuation.NON_SOLID, labels > 0
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    part: Mask = labels == sizes.argmax()
    if share >= 0.8:
        return Attenuation.SOLID, part
    if block.equivalent_diameter_mm(part) < _SMALLEST_SOLID_PART_MM or share < 0.02:
        return Attenuation.NON_SOLID, part
    return Attenuation.PART_SOLID, part


def _axes(block: _Block, mask: Mask) -> _Axes:
    """Axes on the native transverse plane where the long axis is longest."""
    z_factor = block.factors[0]
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    native = planes[planes % z_factor == 0]
    best: _Axes | None = None
    for plane in native if native.size else planes:
        axes = _plane_axes(block, mask[plane], int(plane))
        if best is None or axes.long_mm > best.long_mm:
            best = axes
    if best is None:
        raise AssertionError("a nodule has at least one sample")
    return best


def _plane_axes(block: _Block, mask: Mask, plane: int) -> _Axes:
    """Long axis, and the longest perpendicular to it, of the samples on one plane.

    Each sample stands for a cell of the grid; half a cell is added at each end.
    """
    spacing = np.array(block.geometry.spacing_mm[1:])
    cell = float(spacing.mean())
    edge = mask & ~ndimage.binary_erosion(mask)
    points = np.argwhere(edge) * spacing
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    start, end = points[a], points[b]
    along = (end - start) / apart[a, b] if apart[a, b] > 0 else np.array([0.0, 1.0])
    across = np.array([-along[1], along[0]])
    u, v = points @ along, points @ across
    bins = np.rint((u - u.min()) / cell).astype(int)
    low = np.full(bins.max() + 1, np.inf)
    high = np.full(bins.max() + 1, -np.inf)
    np.minimum.at(low, bins, v)
    np.maximum.at(high, bins, v)
    widest = int(np.argmax(high - low))
    middle = (u.min() + widest * cell) * along
    ends = (start - along * cell / 2, end + along * cell / 2)
    sides = (
        middle + across * (low[widest] - cell / 2),
        middle + across * (high[widest] + cell / 2),
    )
    return _Axes(
        long_mm=float(apart[a, b]) + cell,
        short_mm=float(high[widest] - low[widest]) + cell,
        long_lps_mm=_segment(block, plane, ends, spacing),
        short_lps_mm=_segment(block, plane, sides, spacing),
    )


def _segment(
    block: _Block,
    plane: int,
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],
    spacing: NDArray[np.float64],
) -> Segment:
    """End points, LPS, of a line given in mm along (y, x) of a plane of the block."""
    first, last = (
        as_triple(block.geometry.index_to_lps((plane, *(end / spacing)))) for end in ends
    )
    return first, last


def _native_mask(block: _Block, mask: Mask) -> NoduleMask:
    """The nodule on the native grid: at least the native voxel nearest to its middle."""
    native = block.native(mask).copy()
    if not native.any():
        middle = np.argwhere(mask).mean(axis=0) / np.asarray(block.factors)
        nearest = np.minimum(np.rint(middle).astype(int), np.array(native.shape) - 1)
        native[tuple(nearest)] = True
    box = ndimage.find_objects(native.view(np.uint8))[0]
    z, y, x = (int(first + part.start) for first, part in zip(block.first, box, strict=True))
    return NoduleMask((z, y, x), np.ascontiguousarray(native[box]))
