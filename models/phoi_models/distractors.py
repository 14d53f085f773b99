"""What resembles a nodule and is none, planted as hard negatives.

Vessels that divide, cross or bend, bronchi, mucus plugs, scars, fissures, pleural plaques, apical
caps and dependent atelectasis. All are sampled, filled, blurred and textured exactly as nodules
are, so that the generator's own traces tell nothing. Terms follow the Fleischner Society
glossary (2008, 2024). Arrays are (z, y, x); positions LPS, mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phoi_models.geometry import Triple, as_triple
from phoi_models.planting_host import (
    Ball,
    Box,
    Distance,
    Floats,
    LungSpace,
    Sites,
    Spread,
    directions,
    fill,
    texture,
)
from phoi_models.volume import Volume

_STEP_MM = 1.0
_DOWN, _FORWARD = (0.0, 0.0, -1.0), (0.0, -1.0, 0.0)
_APEX_MM = 45.0


def plant_distractors(
    volume: Volume,
    lungs: LungSpace,
    count: int,
    *,
    rng: np.random.Generator,
    avoid: Sequence[Ball] = (),
) -> tuple[Volume, tuple[Triple, ...]]:
    """Plant what resembles a nodule on one slice and is none.

    Args and errors as :func:`phoi_models.planting.plant_nodules`.

    Returns:
        The new volume and the centres, LPS, mm; what finds no place is left out.
    """
    host = volume.hu.copy()
    sites = Sites(host, volume.geometry, lungs, rng, avoid)
    makers = list(_SHARES)
    centres = []
    for maker in rng.choice(len(makers), count, p=list(_SHARES.values())):
        distractor = makers[maker](rng, sites, lungs)
        if distractor is not None:
            _plant(host, volume, distractor, lungs, rng)
            centres.append(distractor.center_lps_mm)
    return Volume(host, volume.geometry), tuple(centres)


@dataclass(frozen=True)
class _Distractor:
    """A body of tissue, perhaps with air in it.

    Attributes:
        center_lps_mm: LPS, mm.
        tissue: its signed distance.
        reach_mm: it lies within this distance of its centre.
        hu: its attenuation, HU.
        softness_mm: how vague its border is beyond the point spread.
        lumen: signed distance of the air in it.
        in_lung: it ends at the surface of the lung; otherwise it lines that surface.
    """

    center_lps_mm: Triple
    tissue: Distance
    reach_mm: float
    hu: float
    softness_mm: float = 0.0
    lumen: Distance | None = None
    in_lung: bool = True


def _plant(
    host: NDArray[np.int16],
    volume: Volume,
    distractor: _Distractor,
    lungs: LungSpace,
    rng: np.random.Generator,
) -> None:
    """Change ``host`` in place."""
    box = Box.around(volume.geometry, distractor.center_lps_mm, distractor.reach_mm)
    spread = Spread.draw(rng, volume.geometry)
    within = lungs.contains(box.positions()).reshape(box.shape) if distractor.in_lung else 1.0
    cover = box.coverage(distractor.tissue, _STEP_MM) * within
    soft = box.blurred(cover, spread, softness=distractor.softness_mm)
    fill(host[box.where], soft, texture(rng, cover, distractor.hu))
    if distractor.lumen is not None:
        hole = box.blurred(box.coverage(distractor.lumen, _STEP_MM) * within, spread)
        air = texture(rng, cover, rng.uniform(-1000, -900))
        fill(host[box.where], hole, air, hollow=True)


_Maker = Callable[[np.random.Generator, Sites, LungSpace], _Distractor | None]


@dataclass(frozen=True)
class Tubes:
    """Straight tubes: (n, 3) starts and ends, LPS offsets, mm; (n, 2) radii there, mm."""

    starts: Floats
    ends: Floats
    radii: Floats

    @classmethod
    def arms(cls, ends: ArrayLike, radius: float, taper: float, start: ArrayLike = 0.0) -> Tubes:
        """Arms that start at one point and narrow to a part of their radius."""
        to = np.atleast_2d(np.asarray(ends, dtype=np.float64))
        begin = np.broadcast_to(np.asarray(start, dtype=np.float64), to.shape)
        return cls(begin, begin + to, np.tile([radius, taper * radius], (len(to), 1)))

    def __add__(self, other: Tubes) -> Tubes:
        return Tubes(
            np.concatenate([self.starts, other.starts]),
            np.concatenate([self.ends, other.ends]),
            np.concatenate([self.radii, other.radii]),
        )

    @property
    def reach_mm(self) -> float:
        """Farthest extent from the origin, mm."""
        return float(np.linalg.norm([self.starts, self.ends], axis=2).max() + self.radii.max())

    def distance(self, offsets: Floats) -> Floats:
        """About the signed distance, mm, of LPS offsets (n, 3)."""
        nearest = np.full(len(offsets), np.inf)
        for start, end, (first, last) in zip(self.starts, self.ends, self.radii, strict=True):
            along = end - start
            t = np.clip((offsets - start) @ along / (along @ along), 0, 1)
            gap = np.linalg.norm(offsets - start - t[:, None] * along, axis=1)
            nearest = np.minimum(nearest, gap - first - (last - first) * t)
        return nearest


def bend(rng: np.random.Generator, direction: Floats, degrees: float) -> Floats:
    """A unit vector turned away from another by an angle, to any side."""
    aside = np.cross(direction, directions(rng, 1)[0])
    aside /= np.linalg.norm(aside)
    angle = np.deg2rad(degrees)
    turned: Floats = np.cos(angle) * direction + np.sin(angle) * aside
    return turned


def _in_lung(
    rng: np.random.Generator, sites: Sites, tubes: Tubes, hu: float, lumen: Tubes | None = None
) -> _Distractor | None:
    site = sites.choose(rng, 8.0, -200.0)
    if site is None:
        return None
    inner = None if lumen is None else lumen.distance
    return _Distractor(site.center_lps_mm, tubes.distance, tubes.reach_mm, hu, lumen=inner)


def _blood(rng: np.random.Generator) -> float:
    return rng.uniform(-40, 80) if rng.random() < 0.7 else rng.uniform(80, 250)


def _dividing_vessel(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    ends = directions(rng, 3) * rng.uniform(7, 16, (3, 1))
    tubes = Tubes.arms(ends, rng.uniform(1.0, 2.6), rng.uniform(0.2, 0.6))
    return _in_lung(rng, sites, tubes, _blood(rng))


def _bent_vessel(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    one = directions(rng, 1)[0]
    other = bend(rng, one, rng.uniform(35, 110))
    ends = np.stack([one, other]) * rng.uniform(8, 18, (2, 1))
    tubes = Tubes.arms(ends, rng.uniform(1.2, 3.0), rng.uniform(0.2, 0.6))
    return _in_lung(rng, sites, tubes, _blood(rng))


def _crossing_vessels(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    one = directions(rng, 1)[0]
    other = bend(rng, one, rng.uniform(30, 90))
    radii = rng.uniform(1.0, 2.4, 2)
    normal = np.cross(one, other)
    apart = normal / np.linalg.norm(normal) * radii.sum() * rng.uniform(0.3, 1.1)
    length, taper = rng.uniform(8, 18, (2, 1)), rng.uniform(0.2, 0.6)
    tubes = Tubes.arms(np.stack([one, -one]) * length, radii[0], taper)
    tubes += Tubes.arms(np.stack([other, -other]) * length, radii[1], taper, apart)
    return _in_lung(rng, sites, tubes, _blood(rng))


def _mucus_plug(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    """A filled bronchus: thicker than the vessels there, blunt, at least three times as long."""
    radius = rng.uniform(1.5, 3.0)
    along = directions(rng, 1)[0] * radius * rng.uniform(3.3, 6.0)
    tubes = Tubes.arms(np.stack([along, -along]), radius, rng.uniform(0.7, 1.0))
    for _branch in range(rng.integers(3)):
        twig = bend(rng, along / np.linalg.norm(along), rng.uniform(25, 60))
        twig *= radius * rng.uniform(3.0, 5.0)
        tubes += Tubes.arms(twig, 0.8 * radius, 0.8, along * rng.uniform(-0.5, 0.5))
    return _in_lung(rng, sites, tubes, rng.uniform(-30, 60))


def _bronchus(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    """A thickened wall around air, often with its artery beside it."""
    radius, wall = rng.uniform(2.2, 5.0), rng.uniform(0.8, 1.6)
    one = directions(rng, 1)[0]
    other = -bend(rng, one, rng.uniform(0, 25))
    ends = np.stack([one, other]) * rng.uniform(8, 16, (2, 1))
    tubes = Tubes.arms(ends, radius, 0.7)
    lumen = Tubes.arms(ends * 1.4, radius - wall, 0.55)
    if rng.random() < 0.6:
        artery = radius * rng.uniform(0.6, 1.0)
        tubes += Tubes.arms(ends, artery, 0.6, bend(rng, one, 90) * (radius + artery))
    return _in_lung(rng, sites, tubes, rng.uniform(-60, 60), lumen)


@dataclass(frozen=True)
class Plate:
    """A thin, slightly curved disc; it thins out to its rim.

    Attributes:
        frame: rows are the normal and two tangents, LPS unit vectors.
        half_axes_mm: extent along the tangents, mm.
        half_thickness_mm: in its middle, mm.
        curvature: 1 / mm.
    """

    frame: Floats
    half_axes_mm: tuple[float, float]
    half_thickness_mm: float
    curvature: float

    def distance(self, offsets: Floats) -> Floats:
        """About the signed distance, mm, of LPS offsets (n, 3)."""
        n, u, v = self.frame @ offsets.T
        rim = (u / self.half_axes_mm[0]) ** 2 + (v / self.half_axes_mm[1]) ** 2
        height = np.abs(n - self.curvature * (u**2 + v**2) / 2)
        distance: Floats = height - self.half_thickness_mm * (1 - rim)
        return distance


def fissure(rng: np.random.Generator, normal: Floats) -> Plate:
    """A piece of a fissure, seen as a line on most slices."""
    frame = frame_about(rng, normal)
    axes = (rng.uniform(18, 32), rng.uniform(18, 32))
    return Plate(frame, axes, rng.uniform(0.3, 0.6), rng.normal(0, 0.006))


def fissure_hu(rng: np.random.Generator) -> float:
    """Two layers of pleura thinner than a voxel: far below soft tissue, HU."""
    return rng.uniform(-700, -400)


def frame_about(rng: np.random.Generator, normal: Floats) -> Floats:
    """Rows: a unit vector and two across it, turned at random."""
    across = bend(rng, normal, 90)
    return np.stack([normal, across, np.cross(normal, across)])


def _fissure(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    site = sites.choose(rng, 8.0, -200.0)
    if site is None:
        return None
    plate = fissure(rng, directions(rng, 1)[0])
    reach = max(plate.half_axes_mm)
    return _Distractor(site.center_lps_mm, plate.distance, reach, fissure_hu(rng))


def _scar(rng: np.random.Generator, sites: Sites, _: LungSpace) -> _Distractor | None:
    """A parenchymal band."""
    site = sites.choose(rng, 8.0, -200.0)
    if site is None:
        return None
    axes = (rng.uniform(4, 10), rng.uniform(9, 18))
    frame = frame_about(rng, directions(rng, 1)[0])
    plate = Plate(frame, axes, rng.uniform(0.6, 1.5), rng.normal(0, 0.02))
    return _Distractor(site.center_lps_mm, plate.distance, max(axes), rng.uniform(-100, 80))


@dataclass(frozen=True)
class _Lens:
    """A flat body that lines the pleura; its height falls to nothing at its rim.

    Attributes:
        lungs: whose surface it lines.
        centre: on the pleura, LPS, mm.
        frame: rows are the inward normal and two tangents.
        half_axes_mm: along the tangents, mm.
        height_mm: in the middle, mm.
        waves: (n, 4) wave vector, 1 / mm, and phase of its uneven surface.
    """

    lungs: LungSpace
    centre: Floats
    frame: Floats
    half_axes_mm: tuple[float, float]
    height_mm: float
    waves: Floats

    def distance(self, offsets: Floats) -> Floats:
        """About the signed distance, mm, of LPS offsets (n, 3)."""
        n, u, v = self.frame @ offsets.T
        rim = (u / self.half_axes_mm[0]) ** 2 + (v / self.half_axes_mm[1]) ** 2
        near = (rim < 1) & (np.abs(n) < _DEEPEST_MM)
        distance = np.full(len(offsets), _DEEPEST_MM)
        points = offsets[near]
        depth = self.lungs.depth(points + self.centre)
        uneven = np.sin(points @ self.waves[:, :3].T + self.waves[:, 3]).mean(axis=1)
        height = self.height_mm * (1 - rim[near]) * (1 + 0.5 * uneven)
        distance[near] = np.maximum(depth - height, -_INTO_WALL_MM - depth)
        return distance


_DEEPEST_MM = 15.0
_INTO_WALL_MM = 2.0  # so that no slit of lung is left where the mask and the pleura differ


def _lens(
    rng: np.random.Generator,
    sites: Sites,
    lungs: LungSpace,
    height_mm: float,
    half_axes_mm: tuple[float, float],
    hu: float,
    *,
    toward: Triple | None = None,
    top_mm: float = np.inf,
    softness_mm: float = 0.0,
) -> _Distractor | None:
    reach = max(half_axes_mm)
    found = sites.at_pleura(rng, 2 * reach, toward, top_mm)
    if found is None:
        return None
    centre, inward = found
    waves = np.column_stack(
        [directions(rng, 6) * rng.uniform(0.15, 0.6, (6, 1)), rng.uniform(0, 6.3, 6)]
    )
    lens = _Lens(lungs, centre, frame_about(rng, inward), half_axes_mm, height_mm, waves)
    return _Distractor(as_triple(centre), lens.distance, reach, hu, softness_mm, in_lung=False)


def _plaque(rng: np.random.Generator, sites: Sites, lungs: LungSpace) -> _Distractor | None:
    """More than three times as wide as it is high; sometimes calcified."""
    height = rng.uniform(1.5, 5.0)
    axes = (height * rng.uniform(2.0, 4.0), height * rng.uniform(2.0, 6.0))
    hu = rng.uniform(200, 600) if rng.random() < 0.2 else rng.uniform(-20, 90)
    return _lens(rng, sites, lungs, height, axes, hu)


def _apical_cap(rng: np.random.Generator, sites: Sites, lungs: LungSpace) -> _Distractor | None:
    height = rng.uniform(2.5, 7.0)
    axes = (rng.uniform(11, 28), rng.uniform(11, 28))
    hu = rng.uniform(-150, 60)
    return _lens(rng, sites, lungs, height, axes, hu, toward=_DOWN, top_mm=_APEX_MM)


def _atelectasis(rng: np.random.Generator, sites: Sites, lungs: LungSpace) -> _Distractor | None:
    """The dependent, hazy crescent at the back of a patient who lies on it."""
    axes = (rng.uniform(12, 30), rng.uniform(12, 30))
    height, hu, soft = rng.uniform(2, 7), rng.uniform(-600, 0), rng.uniform(0.5, 1.5)
    return _lens(rng, sites, lungs, height, axes, hu, toward=_FORWARD, softness_mm=soft)


_SHARES: dict[_Maker, float] = {
    _dividing_vessel: 0.22,
    _bent_vessel: 0.12,
    _crossing_vessels: 0.14,
    _mucus_plug: 0.10,
    _bronchus: 0.07,
    _scar: 0.10,
    _fissure: 0.07,
    _plaque: 0.08,
    _apical_cap: 0.05,
    _atelectasis: 0.05,
}
