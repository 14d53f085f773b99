"""Real lesions, cut out of one CT and set into another.

A lesion is kept as its voxels on the slices it was scanned in, and is mixed into the host as a
partial volume of soft tissue: a voxel that was half lung and half tissue in the source is half the
host's lung and half tissue in the host. So ground glass adapts to the lung it is set into, what is
denser in the host shows through, and where the lesion is no denser than its own lung nothing
changes. The lesion keeps its own noise; where the host is noisier, the host's noise makes up the
difference. Kernels differ, and that is not hidden.

The idea is that of Pezeshk et al., Seamless insertion of pulmonary nodules in chest CT images
(IEEE Trans Biomed Eng 2015;62), who blend gradients instead. Arrays are (z, y, x); positions LPS,
mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.canonical import to_canonical
from phoi_models.detector import Candidate
from phoi_models.errors import PhoiError
from phoi_models.findings import LungCoverage
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import LungMask
from phoi_models.measure import measure
from phoi_models.planting_host import Ball, Box, LungSpace, Sites
from phoi_models.volume import Volume

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_TISSUE_HU = 50.0
_LUNG_HU = (-950.0, -650.0)
_SOLID_HU = -350.0
_SHELL_MM = (2.0, 4.5)
_SHELL_IS_LUNG_BELOW_HU = -500.0
_LEAST_LUNG_AROUND = 0.6
_LEAST_OPACITY = 0.12
# A lesion fades out over its blurred border, one slice, or the inner part of its spicules.
_FULL_MM, _FADED_MM, _FADED_SLICES, _FADED_DIAMETERS = 0.5, 2.0, 1.2, 0.3
_FINE_ENOUGH_MM = 2.5


class NotTransplantable(PhoiError):
    """This lesion cannot be cut out so that it would look real elsewhere."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion without its patient: voxels about an origin at its centre of mass.

    Attributes:
        hu: float32, axes (z, y, x) of the source, HU.
        soft: float32, same shape, 0 to 1: how far a voxel belongs to the lesion and its blurred
            border; 0 on every face of the block.
        body: bool, same shape: the lesion as segmented.
        geometry: of the block; the centre of mass of ``body`` lies at (0, 0, 0).
        diameter_mm: of the ball of the body's volume, mm.
        background_hu: median attenuation of the lung around it in the source, HU.
    """

    hu: NDArray[np.float32]
    soft: NDArray[np.float32]
    body: Mask
    geometry: Geometry
    diameter_mm: float
    background_hu: float

    @classmethod
    def cut(
        cls, volume: Volume, lungs: LungSpace, center_lps_mm: Triple, diameter_mm: float
    ) -> Lesion:
        """Cut a marked lesion out of a CT; vessels and chest wall stay behind.

        Args:
            volume: the source, as scanned.
            lungs: of the source.
            center_lps_mm: of the mark, LPS, mm.
            diameter_mm: of the mark, mm; bounds the segmentation.

        Raises:
            NotTransplantable: less than 60 % of what surrounds it is lung, it hardly differs from
                the lung around it, or it reaches the border of the volume.
        """
        part = _surroundings(volume, center_lps_mm, 0.8 * diameter_mm + 12.0)
        body = _segmented(part, lungs, center_lps_mm, diameter_mm)
        outside = _outside_mm(body, part.geometry)
        _check_lung_around(part, outside)
        background = _background(part, outside)
        soft = _faded(outside, part.geometry, diameter_mm) * ~_wall(part, lungs, body)
        box = _box_with_a_margin(soft > 0)
        center = part.geometry.index_to_lps(np.argwhere(body).mean(axis=0))
        low = [side.start for side in box]
        origin = as_triple(part.geometry.index_to_lps(low) - center)
        lesion = cls(
            hu=part.hu[box].astype(np.float32),
            soft=soft[box].astype(np.float32),
            body=body[box],
            geometry=replace(part.geometry, shape=soft[box].shape, origin_lps_mm=origin),
            diameter_mm=_ball_diameter_mm(body.sum() * part.geometry.voxel_volume_mm3),
            background_hu=background,
        )
        if lesion.opacity[lesion.body].mean() < _LEAST_OPACITY:
            raise NotTransplantable("the lesion hardly differs from the lung around it")
        return lesion

    @property
    def opacity(self) -> Floats:
        """How much of each voxel is tissue of this lesion, the rest being lung; (z, y, x).

        Slightly negative where noise makes a voxel darker than the lung, so that the noise keeps
        its mean.
        """
        share = (self.hu - self.background_hu) / (_TISSUE_HU - self.background_hu)
        opacity: Floats = np.clip(share, -0.2, 1.0) * self.soft
        return opacity

    @property
    def visible_below_hu(self) -> float:
        """Host HU above which this lesion would not show."""
        level = float(np.percentile(self.hu[self.body], 75))
        return level - (250.0 if level > _SOLID_HU else 120.0)

    @property
    def noise_hu(self) -> float:
        """Standard deviation of the noise in its planes, HU."""
        return _spread(self.hu - _calm(self.hu))

    @property
    def reach_mm(self) -> float:
        """How far it extends from the centre, mm."""
        places = self.geometry.index_to_lps(np.argwhere(self.soft > 0))
        return float(np.linalg.norm(places, axis=1).max())

    def fits(self, host: Geometry) -> bool:
        """Whether the source's slices are fine enough to look real on those of the host."""
        source = self.geometry.spacing_mm[0]
        return source <= max(1.5 * host.spacing_mm[0], _FINE_ENOUGH_MM)


def transplant(
    volume: Volume,
    lungs: LungSpace,
    lesion: Lesion,
    *,
    rng: np.random.Generator,
    avoid: Sequence[Ball] = (),
    zoom: tuple[float, float] = (0.8, 1.25),
) -> tuple[Volume, Triple, float] | None:
    """Set a lesion into a host: turned about z, mirrored and scaled at random, at a visible place.

    Args:
        volume: the host; it is not changed.
        lungs: of the host.
        lesion: what to set into it.
        rng: place, turn and scale.
        avoid: LPS centres, mm, and diameters, mm, of what must not be covered.
        zoom: smallest and largest scale.

    Returns:
        The new volume, the LPS centre of mass, mm, and the diameter, mm, of the ball of the same
        volume, of what lies in the lungs. None where no free, visible place is found, or where
        the lesion was scanned in slices too thick for the host.

    Raises:
        NoSite: there are no lungs.
    """
    geometry = volume.geometry
    if not lesion.fits(geometry):
        return None
    scale = float(np.exp(rng.uniform(*np.log(zoom))))
    sites = Sites(volume.hu, geometry, lungs, rng, avoid)
    site = sites.choose(rng, scale * lesion.diameter_mm, lesion.visible_below_hu)
    if site is None:
        return None
    box = Box.around(geometry, site.center_lps_mm, scale * lesion.reach_mm)
    tissue = _sampled(lesion, box, _random_turn(rng) / scale)
    within = lungs.contains(box.positions()).reshape(box.shape)
    body = tissue.body * within
    if not body.any():
        return None
    host = volume.hu.copy()
    _mix(host[box.where], tissue, _softened(within, geometry), lesion.noise_hu)
    index = np.average(np.argwhere(body > 0), axis=0, weights=body[body > 0]) + box.low
    diameter = _ball_diameter_mm(body.sum() * geometry.voxel_volume_mm3)
    return Volume(host, geometry), as_triple(geometry.index_to_lps(index)), diameter


def _surroundings(volume: Volume, center_lps_mm: Triple, reach_mm: float) -> Volume:
    """A copy of what lies within a cube of this half side, mm."""
    try:
        box = Box.around(volume.geometry, center_lps_mm, reach_mm)
    except ValueError as error:
        raise NotTransplantable("the mark lies outside the volume") from error
    origin = as_triple(volume.geometry.index_to_lps(box.low))
    hu = np.ascontiguousarray(volume.hu[box.where])
    return Volume(hu, replace(volume.geometry, shape=hu.shape, origin_lps_mm=origin))


def _segmented(part: Volume, lungs: LungSpace, center_lps_mm: Triple, diameter_mm: float) -> Mask:
    """The voxels of the lesion, as a finding would be segmented."""
    grid = to_canonical(part, 1.0)
    places = grid.index_to_lps(np.indices(grid.hu.shape).reshape(3, -1).T)
    labels = lungs.contains(places).reshape(grid.hu.shape).astype(np.uint8)
    if not labels.any():
        raise NotTransplantable("there is no lung around the mark")
    mask = LungMask(labels, grid.spacing_mm, LungCoverage(apex=False, base=False, volume_ml=0.0))
    finding = measure(part, Candidate(center_lps_mm, diameter_mm, 1.0), grid, mask)
    body = np.zeros(part.hu.shape, dtype=bool)
    offset, voxels = finding.mask.offset, finding.mask.voxels
    body[tuple(slice(o, o + n) for o, n in zip(offset, voxels.shape, strict=True))] = voxels
    return body


def _outside_mm(body: Mask, geometry: Geometry) -> Floats:
    """Distance, mm, of each voxel from the surface of the body; 0 inside. Axes taken as upright."""
    away = ndimage.distance_transform_edt(~body, sampling=geometry.spacing_mm)
    outside: Floats = np.maximum(away - 0.5 * min(geometry.spacing_mm), 0)
    return outside


def _faded(outside_mm: Floats, geometry: Geometry, diameter_mm: float) -> Floats:
    """1 in the lesion and at its border, falling to 0 outside."""
    slice_mm = geometry.spacing_mm[0]
    end = max(_FADED_MM, _FADED_SLICES * slice_mm, _FADED_DIAMETERS * diameter_mm)
    soft: Floats = np.clip((end - outside_mm) / (end - _FULL_MM), 0, 1)
    return soft


def _shell(part: Volume, outside_mm: Floats) -> Floats:
    """HU of what surrounds the lesion beyond its blurred border."""
    near, far = _SHELL_MM
    far = max(far, _FADED_SLICES * part.geometry.spacing_mm[0])
    shell: Floats = _calm(part.hu)[(outside_mm > near) & (outside_mm < far)]
    return shell


def _calm(hu: NDArray[np.int16] | NDArray[np.float32]) -> Floats:
    """HU (z, y, x) without the noise in the planes."""
    calm: Floats = ndimage.median_filter(hu.astype(np.float64), (1, 3, 3))
    return calm


def _spread(noise_hu: Floats) -> float:
    """Standard deviation, robust against edges."""
    return 1.4826 * float(np.median(np.abs(noise_hu)))


def _check_lung_around(part: Volume, outside_mm: Floats) -> None:
    share = float((_shell(part, outside_mm) < _SHELL_IS_LUNG_BELOW_HU).mean())
    if share < _LEAST_LUNG_AROUND:
        raise NotTransplantable(
            f"only {share:.0%} of what surrounds the lesion is lung: it cannot be cut free from"
            " the chest wall or the hilum"
        )


def _background(part: Volume, outside_mm: Floats) -> float:
    shell = _shell(part, outside_mm)
    return float(np.clip(np.median(shell[shell < _SHELL_IS_LUNG_BELOW_HU]), *_LUNG_HU))


def _wall(part: Volume, lungs: LungSpace, body: Mask) -> Mask:
    """Voxels outside the lungs that are not the lesion's own."""
    places = part.geometry.index_to_lps(np.indices(body.shape).reshape(3, -1).T)
    return ~lungs.contains(places).reshape(body.shape) & ~body


def _box_with_a_margin(used: Mask) -> tuple[slice, slice, slice]:
    """The tight box and one voxel more, which must exist, on every side."""
    (z, y, x) = ndimage.find_objects(used.astype(np.uint8))[0]
    if any(s.start < 1 or s.stop >= n for s, n in zip((z, y, x), used.shape, strict=True)):
        raise NotTransplantable("the lesion reaches the border of the volume")
    return (_wider(z), _wider(y), _wider(x))


def _wider(side: slice) -> slice:
    return slice(side.start - 1, side.stop + 1)


def _ball_diameter_mm(volume_mm3: float) -> float:
    return float(np.cbrt(6 * volume_mm3 / np.pi))


def _random_turn(rng: np.random.Generator) -> Floats:
    """(3, 3): a turn about z and a random mirroring of x, y and z, of LPS offsets."""
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    about_z = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    turn: Floats = about_z * rng.choice([-1.0, 1.0], 3)
    return turn


@dataclass(frozen=True, eq=False)
class _Tissue:
    """A lesion on a box of host voxels: opacity, HU where it is opaque, share of its body."""

    opacity: Floats
    hu: Floats
    body: Floats


def _sampled(lesion: Lesion, box: Box, to_lesion: Floats) -> _Tissue:
    """The lesion, linearly interpolated; its mean where voxels of the host are coarser.

    Args:
        lesion: what to sample.
        box: voxels of the host.
        to_lesion: (3, 3), from LPS offsets in the host to those in the source.
    """
    fields = (lesion.opacity, np.maximum(lesion.hu, _TISSUE_HU), lesion.body.astype(np.float64))
    totals = np.zeros((len(fields), int(np.prod(box.shape))))
    finer = np.asarray(box.geometry.spacing_mm) / np.asarray(lesion.geometry.spacing_mm)
    parts = np.clip(np.ceil(finer), 1, 8).astype(int)
    for part in np.ndindex(*parts):
        offsets = box.offsets((np.asarray(part) + 0.5) / parts - 0.5)
        index = lesion.geometry.lps_to_index(offsets @ to_lesion.T).T
        for total, values in zip(totals, fields, strict=True):
            total += ndimage.map_coordinates(values, index, order=1)
    opacity, hu, body = (totals / np.prod(parts)).reshape(-1, *box.shape)
    return _Tissue(opacity, hu, body)


def _softened(within: Mask, geometry: Geometry) -> Floats:
    """The border of the lungs without steps."""
    sigma = 0.7 / np.asarray(geometry.spacing_mm)
    softened: Floats = ndimage.gaussian_filter(within.astype(np.float64), sigma)
    return softened


def _mix(block: NDArray[np.int16], tissue: _Tissue, within: Floats, lesion_noise_hu: float) -> None:
    """Mix a lesion into host voxels in place; what is denser in the host shows through."""
    host = block.astype(np.float64)
    calm = _calm(block)
    noise = host - calm
    spread = max(_spread(noise), 1e-6)
    lacking = np.sqrt(max(0.0, 1 - (lesion_noise_hu / spread) ** 2))
    filled = np.maximum(tissue.hu, calm) + lacking * np.clip(noise, -3 * spread, 3 * spread)
    mixed = host + tissue.opacity * within * (filled - host)
    block[...] = np.clip(np.rint(mixed), -1024, 3071).astype(np.int16)
