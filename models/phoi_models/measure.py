"""Segment one nodule on the grid of its volume and measure it.

The nodule is where the attenuation lies above the middle between nodule and surrounding lung
(half-maximum, which a symmetric blur does not move), connected to the candidate's centre, inside
the lung, and cut free from vessels and pleura by an opening whose radius follows the nodule's own
thickness (after Kuhnigk et al., IEEE Trans Med Imaging 2006;25:417-34). What the network said of
its size bounds the search.

The work is done on a block of the volume sampled finer by whole factors, so that each native voxel
centre is a sample: the native mask is read off, and axes lie on native transverse planes.
Arrays have axes (z, y, x) of the native grid unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.canonical import CanonicalGrid
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
_WALL_MM = 1.5
# Radius of the opening as a fraction of the nodule's own thickness, tried in this order. The
# first is never wider than a small vessel, so that the lobes of a mass stay.
_OPENINGS = (0.4, 0.6, 0.8, 0.9, 0.95)
_FIRST_OPENING_MM = 1.5
_SMALLEST_SOLID_PART_MM = 2.0
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
        inner = np.zeros(mask.shape, np.float32)
        if mask.any():
            box = ndimage.find_objects(mask.view(np.uint8))[0]
            padded = np.pad(mask[box], 1)
            distance = ndimage.distance_transform_edt(padded, sampling=self.geometry.spacing_mm)
            inner[box] = distance[1:-1, 1:-1, 1:-1]
        return inner

    def outer_distance(self, mask: Mask) -> Floats:
        """Distance of each sample to the nearest inside ``mask``, mm."""
        distance = ndimage.distance_transform_edt(~mask, sampling=self.geometry.spacing_mm)
        outer: Floats = distance.astype(np.float32)
        return outer

    def widened(self, mask: Mask, radius_mm: float) -> Mask:
        """The samples nearer than this to one inside ``mask``, and these."""
        wide = mask.copy()
        steps = np.ceil(radius_mm / np.asarray(self.geometry.spacing_mm)).astype(int)
        box = tuple(
            slice(max(0, part.start - step), part.stop + step)
            for part, step in zip(ndimage.find_objects(mask.view(np.uint8))[0], steps, strict=True)
        )
        away = ndimage.distance_transform_edt(~mask[box], sampling=self.geometry.spacing_mm)
        wide[box] |= away < radius_mm
        return wide

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
    edges where it meets the pleura, and then cut to the lung. A mass so broad that the lung
    mask leaves out its middle may fill the candidate's ball.
    """
    near = block.distance_mm <= 0.8 * block.diameter_mm + 4.0
    own = block.distance_mm <= 0.5 * block.diameter_mm
    within = block.lung
    if np.count_nonzero(own & within) < 0.5 * np.count_nonzero(own):
        within = within | own
    return near & (block.outer_distance(within) <= _WALL_MM), near & within


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
    """The part of ``mask`` that belongs to the candidate, cut free from what is thinner.

    The weakest opening whose result stays near the size that the network gave is taken. Where
    none does (a nodule that melts into a large vessel or the hilum), that size bounds it.
    """
    mask = ndimage.binary_fill_holes(mask)
    inner = block.inner_distance(mask)
    near = block.distance_mm <= 0.2 * block.diameter_mm + 0.8
    seed = np.unravel_index(int(np.argmax(np.where(near, inner, -1.0))), mask.shape)
    radius = float(inner[seed])
    if radius <= 0:
        return np.zeros_like(mask)
    opened = mask
    gentle = min(_OPENINGS[0] * radius, _FIRST_OPENING_MM)
    for opening in (gentle, *(fraction * radius for fraction in _OPENINGS)):
        opened = _opened(mask, inner, seed, opening, block)
        if float(block.distance_mm[opened].max()) <= 0.7 * block.diameter_mm + 2.0:
            return opened
    index = np.moveaxis(np.indices(mask.shape, dtype=np.float32), 0, -1) - np.array(seed)
    away = np.linalg.norm(index @ block.geometry.matrix.T, axis=-1)
    bounded: Mask = opened & (away <= 0.55 * block.diameter_mm + 0.5)
    return bounded


def _opened(
    mask: Mask, inner: Floats, seed: tuple[np.intp, ...], radius: float, block: _Block
) -> Mask:
    """Opening by a ball of ``radius`` mm, of the component that holds ``seed``."""
    labels, _ = ndimage.label(inner >= max(radius, 1e-3), structure=_CUBE)
    core: Mask = labels == labels[seed]
    return core | (mask & block.widened(core, radius))


def _with_ground_glass(
    mask: Mask, threshold: float, background: float, allowed: Mask, block: _Block
) -> tuple[Mask, float]:
    """A solid core widened to the ground glass around it, where there is some.

    Ground glass is what lies above the middle between lung and ground glass and farther from
    the core than blur explains.
    """
    lower = (background + _GROUND_GLASS_HU) / 2
    if not mask.any() or lower >= threshold:
        return mask, threshold
    wide = _grown((_smoothed(block, 0.8) > lower) & allowed, block)
    halo = wide & (block.outer_distance(mask) > _BLUR_MM)
    if np.count_nonzero(halo) < 0.5 * np.count_nonzero(mask):
        return mask, threshold
    return wide | mask, lower


def _ball(block: _Block) -> Mask:
    """The ball of the network's diameter, in the lung; the whole ball where no lung is near."""
    ball: Mask = block.distance_mm <= block.diameter_mm / 2
    inside = ball & block.lung
    if inside.any():
        return inside
    return ball if ball.any() else block.distance_mm == block.distance_mm.min()


def _attenuation(block: _Block, mask: Mask, threshold: float) -> tuple[Attenuation, Mask]:
    """Class of the nodule, and its largest solid part.

    The rim is left out where the nodule is thick enough: blur makes it look like ground glass.
    """
    hu = _smoothed(block, 0.5)
    inner = block.inner_distance(mask)
    body = mask & (inner > min(_BLUR_MM, 0.5 * float(inner.max())))
    solid = body & (hu > _SOLID_HU)
    share = float(solid[body].mean())
    labels, count = ndimage.label(mask & (hu > _SOLID_HU), structure=_CUBE)
    if count == 0:
        return Attenuation.NON_SOLID, solid
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    part: Mask = labels == sizes.argmax()
    if share >= 0.8 or (threshold > -600.0 and share >= 0.5):
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
