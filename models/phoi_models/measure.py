"""Segment one nodule on the grid of its volume and measure it.

The nodule is where the attenuation lies above the middle between nodule and surrounding lung
(half-maximum, which a symmetric blur does not move), connected to the candidate's centre, inside
the lung, and cut free from what hangs on it (``detach.py``). What the network said of its size
bounds the search.

The work is done on a block of the volume sampled finer by whole factors, so that each native voxel
centre is a sample: the native mask is read off, and axes lie on native transverse planes.
Arrays have axes (z, y, x) of the native grid unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from phoi_models.canonical import CanonicalGrid
from phoi_models.detach import detached
from phoi_models.detector import Candidate
from phoi_models.findings import Attenuation, Finding, NoduleMask, Segment
from phoi_models.geometry import Geometry, Index, as_triple
from phoi_models.lungs import LungMask
from phoi_models.volume import Volume

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_LUNG_HU = (-950.0, -650.0)
_DENSEST_HU = 100.0
_SOLID_HU = -350.0
_GROUND_GLASS_HU = -550.0
_BLUR_MM = 1.3
_SURROUNDED = 2 / 3
_UNEVEN = 0.1
_WALL_MM = 1.5
_RIM_MM = 0.5
_SMALLEST_SOLID_PART_MM = 2.0
_REACH, _REACH_MM = 0.6, 1.0
_CUBE = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, eq=False)
class _Block:
    """A piece of a volume around a candidate, sampled finer by whole factors.

    Attributes:
        hu: float32, axes (z, y, x).
        lung: bool, same shape: in a lung of the lung mask.
        distance_mm: float32, same shape: distance to the candidate's centre, mm.
        geometry: of the fine samples.
        first: native index of sample (0, 0, 0).
        factors: samples to a native voxel along each axis.
        diameter_mm: the candidate's.
    """

    hu: Floats
    lung: Mask
    distance_mm: Floats
    geometry: Geometry
    first: Index
    factors: Index
    diameter_mm: float

    @property
    def step_mm(self) -> float:
        """The widest distance between samples, mm."""
        return max(self.geometry.spacing_mm)

    def inner_distance(self, mask: Mask) -> Floats:
        """Distance of each sample inside ``mask`` to the nearest outside, mm."""
        padded = np.pad(mask, 1)
        distance = ndimage.distance_transform_edt(padded, sampling=self.geometry.spacing_mm)
        inner: Floats = distance[1:-1, 1:-1, 1:-1].astype(np.float32)
        return inner

    def outer_distance(self, mask: Mask) -> Floats:
        """Distance of each sample to the nearest inside ``mask``, mm."""
        distance = ndimage.distance_transform_edt(~mask, sampling=self.geometry.spacing_mm)
        outer: Floats = distance.astype(np.float32)
        return outer

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
    volume: Volume, candidate: Candidate, canonical: CanonicalGrid, lungs: LungMask
) -> Finding:
    """Segment and measure a candidate. Never fails.

    Where no convincing border is found (a mark on the mediastinum, or on nothing at all), the
    ball of the network's diameter, cut to the lung, is measured instead.

    Args:
        volume: as scanned.
        candidate: a mark inside the volume, LPS, mm.
        canonical: the grid of ``lungs``.
        lungs: the lung mask.
    """
    block = _block(volume, candidate, canonical, lungs)
    mask, threshold = _segmented(block)
    attenuation, solid = _attenuation(block, mask, threshold)
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


def _block(
    volume: Volume, candidate: Candidate, canonical: CanonicalGrid, lungs: LungMask
) -> _Block:
    """Cut out and sample the surroundings of a candidate."""
    geometry = volume.geometry
    diameter = candidate.diameter_mm
    reach = 0.8 * diameter + 5.0
    center = geometry.lps_to_index(candidate.center_lps_mm)
    # Half the extent, in voxels, of the ball of radius ``reach``, also when the axes lean.
    half = reach * np.linalg.norm(np.linalg.inv(geometry.matrix), axis=1)
    limits = np.array(geometry.shape)
    low = np.clip(np.floor(center - half), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(center + half) + 1, low + 1, limits).astype(int)
    cut = tuple(slice(a, b) for a, b in zip(low, high, strict=True))

    wanted = np.clip(diameter / 16, 0.35, 0.8)
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
    index = np.moveaxis(np.indices(hu.shape, dtype=np.float32), 0, -1)
    lps = fine.index_to_lps(index)
    distance = np.linalg.norm(lps - candidate.center_lps_mm, axis=-1).astype(np.float32)
    at = np.rint(canonical.lps_to_index(lps)).astype(np.int32)
    at = np.clip(at, 0, np.array(lungs.labels.shape) - 1)
    lung = lungs.labels[at[..., 0], at[..., 1], at[..., 2]] > 0
    first = (int(low[0]), int(low[1]), int(low[2]))
    by = (int(factors[0]), int(factors[1]), int(factors[2]))
    return _Block(hu, lung, distance, fine, first, by, diameter)


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


def _segmented(block: _Block) -> tuple[Mask, float]:
    """The nodule's samples and the threshold that bounds them; a ball when none convinces."""
    sought, allowed = _allowed(block)
    background = _background(block)
    level = _level(block, allowed, background)
    threshold = (level + background) / 2
    hu = block.hu if level > _SOLID_HU else _smoothed(block, 0.8)
    mask = _grown((hu > threshold) & sought, block) & allowed
    if level > _SOLID_HU:
        mask, threshold = _with_ground_glass(mask, threshold, background, sought, block)
        mask &= allowed
    size = block.equivalent_diameter_mm(mask)
    if not 0.4 * block.diameter_mm <= size <= 2.0 * block.diameter_mm:
        return _ball(block), threshold
    return mask, threshold


def _smoothed(block: _Block, sigma_mm: float) -> Floats:
    """HU blurred by a Gaussian: ground glass has little contrast to noise."""
    sigma = sigma_mm / np.array(block.geometry.spacing_mm)
    smooth: Floats = ndimage.gaussian_filter(block.hu, sigma)
    return smooth


def _allowed(block: _Block) -> tuple[Mask, Mask]:
    """Where the nodule is sought, and where it may be.

    It is sought a little way into the chest wall, so that the opening does not round off the
    edges where it meets the pleura, and then cut to the lung, which may end half a voxel of its
    grid farther out than its mask. A mass so broad that the lung mask leaves out its middle may
    fill the candidate's ball.
    """
    near = block.distance_mm <= 0.8 * block.diameter_mm + 4.0
    own = block.distance_mm <= 0.5 * block.diameter_mm
    within = block.lung
    if np.count_nonzero(own & within) < 0.5 * np.count_nonzero(own):
        within = within | own
    away = block.outer_distance(within)
    return near & (away <= _WALL_MM), near & (away <= _RIM_MM)


def _background(block: _Block) -> float:
    """Attenuation of the lung around the candidate, HU."""
    around = block.lung & (block.distance_mm > 0.6 * block.diameter_mm)
    values = block.hu[around & (block.hu < _LUNG_HU[1])]
    if values.size < 50:
        return -850.0
    return float(np.clip(np.median(values), *_LUNG_HU))


def _level(block: _Block, allowed: Mask, background: float) -> float:
    """Attenuation of the nodule's middle, HU; what is denser than soft tissue counts as that."""
    core = allowed & (block.distance_mm <= max(1.2, 0.3 * block.diameter_mm))
    values = _smoothed(block, 0.5)[core] if core.any() else np.array([0.0])
    level = float(np.percentile(values, 75))
    if level < background + 150.0:
        # The middle is air: a cavity, if there is a wall around it.
        ball = allowed & (block.distance_mm <= 0.6 * block.diameter_mm)
        level = float(np.percentile(block.hu[ball], 85)) if ball.any() else level
    return float(np.clip(level, background + 150.0, _DENSEST_HU))


def _grown(mask: Mask, block: _Block) -> Mask:
    """The part of ``mask`` that is the candidate's, cavities filled, neighbours cut off."""
    mask = _without_holes(mask, block)
    inner = block.inner_distance(mask)
    near = block.distance_mm <= 0.2 * block.diameter_mm + 0.8
    deepest = np.unravel_index(int(np.argmax(np.where(near, inner, -1.0))), mask.shape)
    return _detached(mask, deepest, block)


def _detached(mask: Mask, seed: tuple[np.intp, ...], block: _Block) -> Mask:
    """What of ``mask`` is one body around ``seed`` and no larger than the candidate may be."""
    at = (int(seed[0]), int(seed[1]), int(seed[2]))
    reach = _REACH * block.diameter_mm + _REACH_MM
    return detached(mask, at, block.geometry.matrix, block.geometry.spacing_mm, reach)


def _without_holes(mask: Mask, block: _Block) -> Mask:
    """Cavities filled: closed ones, and those closed at least on their transverse plane."""
    filled: Mask = ndimage.binary_fill_holes(mask)
    own = block.distance_mm <= 0.5 * block.diameter_mm
    for plane in np.flatnonzero(own.any(axis=(1, 2))):
        filled[plane] |= ndimage.binary_fill_holes(mask[plane]) & own[plane]
    return filled


def _with_ground_glass(
    core: Mask, threshold: float, background: float, sought: Mask, block: _Block
) -> tuple[Mask, float]:
    """A solid core widened to the ground glass around it, where there is some.

    Ground glass surrounds its core, farther out than blur explains; spicules and vessels do so
    only here and there. It ends in the middle between its own attenuation and that of the lung.
    """
    lower = (background + _GROUND_GLASS_HU) / 2
    if not core.any() or lower >= threshold:
        return core, threshold
    hu = _smoothed(block, 0.8)
    around = _shell(core, block)
    halo = around & (hu > lower)
    if np.count_nonzero(halo) < _SURROUNDED * max(1, int(np.count_nonzero(around))):
        return core, threshold
    lower = (background + float(np.median(hu[halo]))) / 2
    return _grown(((hu > lower) | core) & sought, block) | core, lower


def _shell(core: Mask, block: _Block) -> Mask:
    """The lung just beyond the rim of a core, on the transverse plane where it is widest.

    Only there, because slices blur less in plane than across. The rim is the blur, and wider at
    large lesions, whose uneven border mixes with the lung.
    """
    rim = max(_BLUR_MM, _UNEVEN * block.diameter_mm)
    plane = int(np.argmax(np.count_nonzero(core, axis=(1, 2))))
    away = ndimage.distance_transform_edt(~core[plane], sampling=block.geometry.spacing_mm[1:])
    shell = np.zeros_like(core)
    shell[plane] = (away > rim) & (away <= rim + 1.0) & block.lung[plane]
    return shell


def _ball(block: _Block) -> Mask:
    """The ball of the network's diameter, in the lung; the whole ball where no lung is near."""
    ball: Mask = block.distance_mm <= block.diameter_mm / 2
    inside = ball & block.lung
    if inside.any():
        return inside
    return ball if ball.any() else block.distance_mm == block.distance_mm.min()


def _attenuation(block: _Block, mask: Mask, threshold: float) -> tuple[Attenuation, Mask]:
    """Class of the nodule, and its solid part, free of the vessels that run to it.

    The rim is left out where the nodule is thick enough: blur makes it look like ground glass.
    """
    hu = _smoothed(block, 0.5)
    inner = block.inner_distance(mask)
    body = mask & (inner > min(_BLUR_MM, 0.5 * float(inner.max())))
    share = float((hu[body] > _SOLID_HU).mean())
    solid = mask & (hu > _SOLID_HU)
    if share >= 0.8 or (threshold > -600.0 and share >= 0.5):
        return Attenuation.SOLID, solid
    part = _solid_part(solid, block)
    if block.equivalent_diameter_mm(part) < _SMALLEST_SOLID_PART_MM or share < 0.02:
        return Attenuation.NON_SOLID, part
    return Attenuation.PART_SOLID, part


def _solid_part(solid: Mask, block: _Block) -> Mask:
    """The thickest of the solid parts, without what hangs on it."""
    inner = block.inner_distance(solid)
    deepest = np.unravel_index(int(np.argmax(inner)), solid.shape)
    return _detached(solid, deepest, block)


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
    ends = _outermost(points)
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    start, end = ends[a], ends[b]
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
    tips = (start - along * cell / 2, end + along * cell / 2)
    sides = (
        middle + across * (low[widest] - cell / 2),
        middle + across * (high[widest] + cell / 2),
    )
    return _Axes(
        long_mm=float(apart[a, b]) + cell,
        short_mm=float(high[widest] - low[widest]) + cell,
        long_lps_mm=_segment(block, plane, tips, spacing),
        short_lps_mm=_segment(block, plane, sides, spacing),
    )


def _outermost(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the convex hull; all points where they lie on a line."""
    try:
        corners: NDArray[np.float64] = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return points
    return corners


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
