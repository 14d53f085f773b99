"""Nodules planted into real or synthetic CT, with exact truth.

A planted nodule is an implicit shape in patient coordinates (LPS, mm): an ellipsoid with
lobulations, an uneven surface and spicules, possibly with a solid core or a cavity. It is sampled
finer than the voxels of the host (partial volume), blurred by the host's in-plane point spread, and
mixed with the host voxel by voxel, so that the host's noise, its vessels and its chest wall stay.

One generator serves training, tests and quality checks. All randomness comes from the
``numpy.random.Generator`` that the caller gives. Arrays are (z, y, x); positions LPS, mm.

Attenuation classes and terms follow the Fleischner Society glossary (2008, 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from phoi_models.canonical import to_canonical
from phoi_models.errors import PhoiError
from phoi_models.findings import Attenuation, NoduleMask
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import segment_lungs
from phoi_models.volume import Volume

_Array = NDArray[np.float64]
_Distance = Callable[[_Array], _Array]
Ball = tuple[Triple, float]
"""LPS centre, mm, and diameter, mm."""

SMALLEST_MM, LARGEST_MM = 3.0, 50.0
_LONGEST_SPICULE_MM = 16.0


class Margin(StrEnum):
    """The surface of a nodule."""

    SMOOTH = "smooth"
    LOBULATED = "lobulated"
    SPICULATED = "spiculated"


class Place(StrEnum):
    """Where in the lung a nodule sits."""

    ISOLATED = "isolated"
    JUXTAPLEURAL = "juxtapleural"
    JUXTAVASCULAR = "juxtavascular"


class NoSite(PhoiError):
    """There is no lung to plant into."""


@dataclass(frozen=True)
class NoduleKind:
    """What sort of nodule to plant.

    Attributes:
        attenuation: solid, part-solid or non-solid.
        margin: smooth, lobulated or spiculated.
        solid_hu: attenuation of the solid part, HU.
        ground_glass_hu: attenuation of the ground-glass part, HU.
        core_fraction: diameter of the solid core over the whole, for part-solid nodules.
        cavity_fraction: diameter of an air-filled cavity over the whole; 0 for none.
        elongation: longest over shortest axis of the underlying ellipsoid, 1 for a ball.
    """

    attenuation: Attenuation = Attenuation.SOLID
    margin: Margin = Margin.SMOOTH
    solid_hu: float = 40.0
    ground_glass_hu: float = -550.0
    core_fraction: float = 0.5
    cavity_fraction: float = 0.0
    elongation: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, diameter_mm: float) -> NoduleKind:
        """A random kind, as varied as what is seen in screening and in oncology."""
        solid, part_solid, non_solid = Attenuation
        if diameter_mm < 5:
            attenuation = Attenuation(rng.choice([solid, non_solid], p=[0.9, 0.1]))
            margin = Margin.SMOOTH
        else:
            attenuation = Attenuation(
                rng.choice([solid, part_solid, non_solid], p=[0.68, 0.16, 0.16])
            )
            # Large tumours are rarely smooth.
            shares = [0.3, 0.4, 0.3] if diameter_mm < 15 else [0.1, 0.4, 0.5]
            margin = Margin(rng.choice(list(Margin), p=shares))
        cavity = diameter_mm > 9 and attenuation is solid and rng.random() < 0.15
        calcified = diameter_mm < 12 and rng.random() < 0.08
        return cls(
            attenuation=attenuation,
            margin=margin,
            solid_hu=rng.uniform(200, 500) if calcified else rng.uniform(-60, 110),
            ground_glass_hu=rng.uniform(-680, -400),
            core_fraction=rng.uniform(0.3, 0.7),
            cavity_fraction=rng.uniform(0.3, 0.85) if cavity else 0.0,
            elongation=1 + abs(rng.normal(0, 0.3)),
        )


@dataclass(frozen=True, eq=False)
class PlantedNodule:
    """The truth about one planted nodule.

    Attributes:
        center_lps_mm: centre of mass, LPS, mm.
        mean_diameter_mm: mean of the longest diameter on the transverse plane where it is largest
            and the one perpendicular to it, of the body without its spicules, mm.
        volume_mm3: of the body, cavity included, spicules not, mm3.
        kind: what it is made of.
        place: where it sits.
        mask: host voxels that are at least half filled by it.
    """

    center_lps_mm: Triple
    mean_diameter_mm: float
    volume_mm3: float
    kind: NoduleKind
    place: Place
    mask: NoduleMask


@dataclass(frozen=True)
class _Shape:
    """An implicit body around the origin; points are LPS offsets from its centre, mm."""

    radius: float
    frame: _Array  # (3, 3): LPS offset to coordinates in which the ellipsoid is a ball
    balls: _Array  # (n, 4): centre and radius of lobules, in the frame, relative to the radius
    waves: _Array  # (n, 4): wave vector and phase of the uneven surface
    unevenness: float
    spicules: _Array  # (n, 5): direction, length over radius, base radius mm

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: NoduleKind) -> _Shape:
        """A body of about unit radius; scale it with ``replace(radius=...)``."""
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        longest = kind.elongation
        axes = np.array([longest, longest ** rng.uniform(-0.5, 0.5), 1.0])
        axes /= np.prod(axes) ** (1 / 3)
        lobules = int(rng.integers(3, 8)) if kind.margin is Margin.LOBULATED else 0
        thorns = int(rng.integers(10, 45)) if kind.margin is Margin.SPICULATED else 0
        uneven = {Margin.SMOOTH: 0.04, Margin.LOBULATED: 0.12, Margin.SPICULATED: 0.25}
        offsets = _directions(rng, lobules) * rng.uniform(0.4, 0.7, (lobules, 1))
        return cls(
            radius=1.0,
            frame=rotation / axes[:, None],
            balls=np.column_stack([offsets, rng.uniform(0.4, 0.65, lobules)]),
            waves=np.column_stack(
                [_directions(rng, 10) * rng.uniform(2, 9, (10, 1)), rng.uniform(0, 6.3, 10)]
            ),
            unevenness=uneven[kind.margin] if kind.elongation > 1 or lobules or thorns else 0.0,
            spicules=np.column_stack(
                [
                    _directions(rng, thorns),
                    rng.uniform(0.5, 1.6, thorns),
                    rng.uniform(0.7, 1.8, thorns),
                ]
            ),
        )

    def body(self, offsets: _Array) -> _Array:
        """About the signed distance, mm, of LPS offsets (n, 3) to the surface of the body."""
        points = offsets @ self.frame.T / self.radius
        core = 0.8 if len(self.balls) else 1.0
        distance = np.sqrt((points**2).sum(axis=1)) - core
        for ball in self.balls:
            lobule = np.sqrt(((points - ball[:3]) ** 2).sum(axis=1)) - ball[3]
            distance = _smooth_minimum(distance, lobule, 0.15)
        if self.unevenness:
            near = np.abs(distance) < 0.6
            ripple = np.sin(points[near] @ self.waves[:, :3].T + self.waves[:, 3]).mean(axis=1)
            distance[near] += 3 * self.unevenness * ripple
        scaled: _Array = distance * self.radius
        return scaled

    def with_spicules(self, offsets: _Array) -> _Array:
        """As :meth:`body`, with thorns that run out from it."""
        distance = self.body(offsets)
        if not len(self.spicules):
            return distance
        length = np.minimum(self.spicules[:, 3] * self.radius, _LONGEST_SPICULE_MM)
        around = (distance > 0) & (distance < length.max())
        points = offsets[around]
        along = points @ self.spicules[:, :3].T
        aside = np.sqrt(np.maximum((points**2).sum(axis=1)[:, None] - along**2, 0))
        taper = 1 - (along - self.radius) / length
        thickness = self.spicules[:, 4] * np.clip(taper, 0, 1)
        thorn = np.where((along > 0.5 * self.radius) & (taper > 0), aside - thickness, np.inf)
        distance[around] = np.minimum(distance[around], thorn.min(axis=1))
        return distance


@dataclass(frozen=True, eq=False)
class LungSpace:
    """Where the lungs are, whatever the grid of the host.

    Attributes:
        inside: bool array (z, y, x) on a canonical grid.
        origin_lps_mm: LPS position of the centre of its first voxel, mm.
        spacing_mm: its voxel size, mm.
    """

    inside: NDArray[np.bool_]
    origin_lps_mm: Triple
    spacing_mm: float

    @classmethod
    def of(cls, volume: Volume) -> LungSpace:
        """Segment the lungs of a volume.

        Raises:
            NotAnalysable: no lungs are found.
        """
        grid = to_canonical(volume, 1.0)
        lungs = segment_lungs(grid.hu, grid.spacing_mm)
        return cls(lungs.inside, grid.origin_lps_mm, grid.spacing_mm)

    @cached_property
    def _voxels(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.inside)

    @cached_property
    def _surface(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.inside & ~ndimage.binary_erosion(self.inside))

    def contains(self, lps_mm: _Array) -> NDArray[np.bool_]:
        """Which LPS positions (n, 3), mm, lie in a lung."""
        offset = (lps_mm - np.asarray(self.origin_lps_mm))[:, ::-1] / self.spacing_mm
        index = np.rint(offset).astype(int)
        within = ((index >= 0) & (index < self.inside.shape)).all(axis=1)
        z, y, x = np.where(within[:, None], index, 0).T
        found: NDArray[np.bool_] = self.inside[z, y, x] & within
        return found

    def draw(self, rng: np.random.Generator, count: int, *, surface: bool = False) -> _Array:
        """Random LPS positions (count, 3), mm, in the lungs or on their surface."""
        voxels = self._surface if surface else self._voxels
        if not voxels.size:
            raise NoSite("there is no lung to plant a nodule in")
        chosen = np.unravel_index(rng.choice(voxels, count), self.inside.shape)
        index = np.stack(chosen, axis=1) + rng.uniform(-0.5, 0.5, (count, 3))
        return np.asarray(index[:, ::-1] * self.spacing_mm + self.origin_lps_mm)


def plant_at(
    volume: Volume,
    center_lps_mm: Triple,
    diameter_mm: float,
    *,
    rng: np.random.Generator,
    kind: NoduleKind | None = None,
    lungs: LungSpace | None = None,
    place: Place = Place.ISOLATED,
) -> tuple[Volume, PlantedNodule]:
    """Plant one nodule at an exact place.

    Args:
        volume: the host; it is not changed.
        center_lps_mm: centre of the shape, LPS, mm.
        diameter_mm: mean diameter of the whole shape, mm.
        rng: shape, texture and point spread.
        kind: what to plant; a smooth solid ball if not given.
        lungs: if given, what lies outside them is not part of the truth.
        place: recorded with the truth.

    Returns:
        The new volume and the truth.

    Raises:
        ValueError: the centre lies outside the volume or the lungs, or the diameter is not 3 to
            50 mm.
    """
    if not SMALLEST_MM <= diameter_mm <= LARGEST_MM:
        raise ValueError(f"a nodule is {SMALLEST_MM} to {LARGEST_MM} mm wide, not {diameter_mm}")
    host = volume.hu.copy()
    site = _Site(as_triple(center_lps_mm), place)
    nodule = _plant(host, volume.geometry, site, diameter_mm, kind or NoduleKind(), lungs, rng)
    return Volume(host, volume.geometry), nodule


def plant_nodules(
    volume: Volume,
    lungs: LungSpace,
    diameters_mm: Sequence[float],
    *,
    rng: np.random.Generator,
    avoid: Sequence[Ball] = (),
) -> tuple[Volume, tuple[PlantedNodule, ...]]:
    """Plant random nodules of given sizes at random, visible places in the lungs.

    Args:
        volume: the host; it is not changed.
        lungs: where nodules may be.
        diameters_mm: one mean diameter per nodule, mm.
        rng: everything random.
        avoid: LPS centres, mm, and diameters, mm, of what must not be covered.

    Returns:
        The new volume and the truth; a nodule for which no place is found is left out.

    Raises:
        NoSite: there are no lungs.
    """
    host = volume.hu.copy()
    sites = _Sites(host, volume.geometry, lungs, rng, avoid)
    planted = []
    for diameter in diameters_mm:
        kind = NoduleKind.draw(rng, diameter)
        site = sites.choose(rng, diameter, _visible_below(kind))
        if site is not None:
            planted.append(_plant(host, volume.geometry, site, diameter, kind, lungs, rng))
    return Volume(host, volume.geometry), tuple(planted)


def plant_distractors(
    volume: Volume,
    lungs: LungSpace,
    count: int,
    *,
    rng: np.random.Generator,
    avoid: Sequence[Ball] = (),
) -> tuple[Volume, tuple[Triple, ...]]:
    """Plant what resembles a nodule on one slice and is none: branching vessels, bands, scars.

    Args and errors as :func:`plant_nodules`.

    Returns:
        The new volume and the centres, LPS, mm.
    """
    host = volume.hu.copy()
    geometry = volume.geometry
    sites = _Sites(host, geometry, lungs, rng, avoid)
    centres = []
    for _ in range(count):
        site = sites.choose(rng, 8.0, -200.0)
        if site is None:
            continue
        body = _Branching.draw(rng) if rng.random() < 0.6 else _Band.draw(rng)
        box = _Box.around(geometry, site.center_lps_mm, 20.0)
        cover = box.coverage(body.distance, 1.0)
        cover *= lungs.contains(box.positions()).reshape(box.shape)
        _fill(host[box.where], box.blurred(cover, rng), _texture(rng, cover, rng.uniform(-40, 80)))
        centres.append(site.center_lps_mm)
    return Volume(host, geometry), tuple(centres)


def _directions(rng: np.random.Generator, count: int) -> _Array:
    vectors = rng.normal(size=(count, 3))
    unit: _Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _smooth_minimum(a: _Array, b: _Array, blend: float) -> _Array:
    """Polynomial smooth minimum: a union without a crease."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    joined: _Array = np.minimum(a, b) - h * h * blend / 4
    return joined


class _Box:
    """Host voxels around a centre, and finer samples within each of them."""

    def __init__(self, geometry: Geometry, centre: Triple, low: _Array, high: _Array) -> None:
        self.geometry = geometry
        self.centre = np.asarray(centre)
        self.low = low
        self.where = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        self.shape = tuple(int(n) for n in high - low)

    @classmethod
    def around(cls, geometry: Geometry, centre: Triple, reach_mm: float) -> _Box:
        """All voxels within a cube of this half side, mm, and a margin of three voxels."""
        index = geometry.lps_to_index(centre)
        shape = np.asarray(geometry.shape)
        if (index < -0.5).any() or (index > shape - 0.5).any():
            raise ValueError("the centre lies outside the volume")
        # Rows of the inverse map tell how far each index moves per mm of displacement.
        step = np.linalg.norm(np.linalg.inv(geometry.matrix), axis=1)
        reach = np.ceil(reach_mm * step).astype(int) + 3
        low = np.maximum(np.floor(index).astype(int) - reach, 0)
        high = np.minimum(np.ceil(index).astype(int) + reach + 1, shape)
        return cls(geometry, centre, low, high)

    def offsets(self, shift: _Array) -> _Array:
        """LPS offsets from the centre, mm, (n, 3), of the voxels moved by a part of an index."""
        grid = np.indices(self.shape).reshape(3, -1).T + self.low + shift
        lps: _Array = self.geometry.index_to_lps(grid) - self.centre
        return lps

    def coverage(self, distance: _Distance, step_mm: float) -> _Array:
        """Fraction, 0 to 1, of each voxel inside a body, sampled every ``step_mm``."""
        spacing = np.asarray(self.geometry.spacing_mm)
        parts = np.clip(np.ceil(spacing / step_mm), 1, 8).astype(int)
        edge = float((spacing / parts).max())
        total = np.zeros(int(np.prod(self.shape)))
        for part in np.ndindex(*parts):
            shift = (np.asarray(part) + 0.5) / parts - 0.5
            total += np.clip(0.5 - distance(self.offsets(shift)) / edge, 0, 1)
        mean: _Array = (total / np.prod(parts)).reshape(self.shape)
        return mean

    def positions(self) -> _Array:
        """LPS positions, mm, (n, 3), of the voxel centres."""
        lps: _Array = self.offsets(np.zeros(3)) + self.centre
        return lps

    def blurred(self, cover: _Array, rng: np.random.Generator, *, softness: float = 0.0) -> _Array:
        """The point spread of a reconstruction kernel, in plane; ``softness`` in mm adds to it."""
        sigma = np.hypot(rng.uniform(0.35, 0.8), softness) / np.asarray(self.geometry.spacing_mm)
        sigma[0] = softness / self.geometry.spacing_mm[0]
        spread: _Array = ndimage.gaussian_filter(cover, np.where(sigma < 0.25, 0, sigma))
        return spread


@dataclass(frozen=True)
class _Branching:
    """A vessel that divides: three tapering arms; (3, 3) ends as LPS offsets, mm."""

    ends: _Array
    radius: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Branching:
        return cls(_directions(rng, 3) * rng.uniform(7, 16, (3, 1)), rng.uniform(1.0, 2.6))

    def distance(self, offsets: _Array) -> _Array:
        """About the signed distance, mm, of LPS offsets (n, 3)."""
        nearest = np.full(len(offsets), np.inf)
        for end in self.ends:
            t = np.clip(offsets @ end / (end @ end), 0, 1)
            gap = np.linalg.norm(offsets - t[:, None] * end, axis=1)
            nearest = np.minimum(nearest, gap - self.radius * (1 - 0.5 * t))
        return nearest


@dataclass(frozen=True)
class _Band:
    """A flat scar: an ellipsoid thin along one direction; rows of ``frame`` over half axes, mm."""

    frame: _Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Band:
        half_axes = np.array([rng.uniform(0.6, 1.3), rng.uniform(3, 9), rng.uniform(8, 16)])
        return cls(np.linalg.qr(rng.normal(size=(3, 3)))[0] / half_axes[:, None])

    def distance(self, offsets: _Array) -> _Array:
        """About the signed distance, mm, of LPS offsets (n, 3)."""
        scaled = offsets @ self.frame.T
        norm = np.linalg.norm(scaled, axis=1)
        gradient = np.linalg.norm(scaled @ self.frame, axis=1)
        distance: _Array = norm * (norm - 1) / np.maximum(gradient, 1e-6)
        return distance


@dataclass(frozen=True)
class _Site:
    center_lps_mm: Triple
    place: Place


class _Sites:
    """Finds visible, free places for nodules."""

    _tries = 60
    _minimum_visible = 0.65

    def __init__(
        self,
        host: NDArray[np.int16],
        geometry: Geometry,
        lungs: LungSpace,
        rng: np.random.Generator,
        avoid: Sequence[Ball],
    ) -> None:
        self._host, self._geometry, self._lungs = host, geometry, lungs
        self._anywhere = lungs.draw(rng, 4000)
        self._surface = lungs.draw(rng, 1000, surface=True)
        self._vessels = self._anywhere[self._hu(self._anywhere) > -450]
        self._taken = [(np.asarray(centre), diameter) for centre, diameter in avoid]
        self._rays = _directions(rng, 60)

    def choose(
        self, rng: np.random.Generator, diameter_mm: float, visible_below_hu: float
    ) -> _Site | None:
        """A place where most of the nodule replaces something darker; None if none is found."""
        radius = diameter_mm / 2
        for _ in range(self._tries):
            place = Place(rng.choice(list(Place), p=[0.4, 0.3, 0.3]))
            centre = self._propose(rng, place, radius)
            if centre is None or not self._free(centre, diameter_mm):
                continue
            shell = self._lungs.contains(centre + self._rays * radius).mean()
            low, high = {
                Place.ISOLATED: (0.97, 1.0),
                Place.JUXTAPLEURAL: (0.4, 0.95),
                Place.JUXTAVASCULAR: (0.8, 1.0),
            }[place]
            depths = rng.uniform(0, 1, (len(self._rays), 1)) ** (1 / 3)
            visible = self._hu(centre + self._rays * radius * depths) < visible_below_hu
            seen = visible.mean() >= self._minimum_visible
            if low <= shell <= high and seen and self._lungs.contains(centre[None]).all():
                self._taken.append((centre, diameter_mm))
                return _Site(as_triple(centre), place)
        return None

    def _propose(self, rng: np.random.Generator, place: Place, radius: float) -> _Array | None:
        if place is Place.JUXTAVASCULAR and not len(self._vessels):
            return None
        if place is Place.ISOLATED:
            return np.asarray(rng.choice(self._anywhere))
        start = rng.choice(self._surface if place is Place.JUXTAPLEURAL else self._vessels)
        shift = rng.uniform(0.0, 0.9) * radius
        return np.asarray(start + _directions(rng, 1)[0] * shift)

    def _free(self, centre: _Array, diameter_mm: float) -> bool:
        return all(
            np.linalg.norm(centre - other) > (diameter_mm + width) / 2 + 5
            for other, width in self._taken
        )

    def _hu(self, lps_mm: _Array) -> NDArray[np.int16]:
        index = np.rint(self._geometry.lps_to_index(lps_mm)).astype(int)
        z, y, x = np.clip(index, 0, np.asarray(self._geometry.shape) - 1).T
        hu: NDArray[np.int16] = self._host[z, y, x]
        return hu


def _visible_below(kind: NoduleKind) -> float:
    """Host HU above which a nodule of this kind does not show."""
    solid = kind.attenuation is Attenuation.SOLID
    return kind.solid_hu - 250 if solid else kind.ground_glass_hu - 120


def _plant(
    host: NDArray[np.int16],
    geometry: Geometry,
    site: _Site,
    diameter_mm: float,
    kind: NoduleKind,
    lungs: LungSpace | None,
    rng: np.random.Generator,
) -> PlantedNodule:
    """Change ``host`` in place and return the truth."""
    if lungs is not None and not lungs.contains(np.array([site.center_lps_mm])).all():
        raise ValueError("the centre lies outside the lungs")
    unit = _Shape.draw(rng, kind)
    measured = _measure(unit.body, 1.0)
    scale = diameter_mm / measured.diameter
    shape = replace(unit, radius=scale)
    spicules = min(1.6 * scale, _LONGEST_SPICULE_MM) if len(shape.spicules) else 0.0
    reach = scale * measured.reach + spicules
    box = _Box.around(geometry, site.center_lps_mm, reach)
    step = float(np.clip(shape.radius / 6, 0.3, 1.0))
    cover = box.coverage(shape.with_spicules, step)
    _fill_kind(host[box.where], box, cover, shape, kind, step, rng)

    body = box.coverage(shape.body, step) if len(shape.spicules) else cover
    truth = measured.scaled(scale)
    if lungs is not None:
        within = body * lungs.contains(box.positions()).reshape(box.shape)
        if 0 < within.sum() < 0.99 * body.sum():
            body = within
            truth = _measure(shape.body, scale, _Clip(lungs, box.centre))
    return PlantedNodule(
        center_lps_mm=as_triple(box.centre + truth.centre),
        mean_diameter_mm=truth.diameter,
        volume_mm3=truth.volume,
        kind=kind,
        place=site.place,
        mask=_tight(body, box),
    )


def _fill_kind(
    block: NDArray[np.int16],
    box: _Box,
    cover: _Array,
    shape: _Shape,
    kind: NoduleKind,
    step: float,
    rng: np.random.Generator,
) -> None:
    """Mix one nodule into its box of host voxels."""
    if kind.attenuation is Attenuation.SOLID:
        _fill(block, box.blurred(cover, rng), _texture(rng, cover, kind.solid_hu))
    else:
        soft = box.blurred(cover, rng, softness=rng.uniform(0.3, 1.0))
        _fill(block, soft, _texture(rng, cover, kind.ground_glass_hu))
    if kind.attenuation is Attenuation.PART_SOLID:
        core = _Inner(shape, kind.core_fraction, rng.normal(0, 0.12, 3) * shape.radius)
        inner = box.blurred(box.coverage(core.distance, step), rng)
        _fill(block, inner, _texture(rng, cover, kind.solid_hu))
    if kind.cavity_fraction:
        hole = _Inner(shape, kind.cavity_fraction, rng.normal(0, 0.05, 3) * shape.radius)
        inner = box.blurred(box.coverage(hole.distance, step), rng)
        air = rng.uniform(-980, -800)
        block[...] = np.rint(block + inner * (air - block)).astype(np.int16)


@dataclass(frozen=True)
class _Inner:
    """A smaller copy of a shape inside it, moved by an LPS shift, mm."""

    shape: _Shape
    fraction: float
    shift: _Array

    def distance(self, offsets: _Array) -> _Array:
        return self.fraction * self.shape.body((offsets - self.shift) / self.fraction)


@dataclass(frozen=True)
class _Clip:
    """The part of space, around a centre, that lies in the lungs."""

    lungs: LungSpace
    centre: _Array

    def __call__(self, offsets: _Array) -> NDArray[np.bool_]:
        return self.lungs.contains(offsets + self.centre)


def _texture(rng: np.random.Generator, like: _Array, hu: float) -> _Array:
    """Tissue that is uneven on a scale of a few voxels, HU."""
    rough = ndimage.gaussian_filter(rng.normal(size=like.shape), 1.2)
    uneven: _Array = hu + rough * (rng.uniform(5, 25) / max(float(rough.std()), 1e-6))
    return uneven


def _fill(block: NDArray[np.int16], cover: _Array, tissue_hu: _Array) -> None:
    """Mix tissue into host voxels; what is denser shows through, the host's noise stays."""
    host = block.astype(np.float64)
    calm = ndimage.median_filter(host, (1, 3, 3))
    noise = host - calm
    limit = 3 * 1.4826 * float(np.median(np.abs(noise)))
    filled = np.maximum(tissue_hu, calm) + np.clip(noise, -limit, limit)
    mixed = host + cover * (filled - host)
    block[...] = np.clip(np.rint(mixed), -1024, 3071).astype(np.int16)


def _tight(cover: _Array, box: _Box) -> NoduleMask:
    """Voxels at least half covered (or the one covered most) in their bounding box."""
    voxels = cover >= min(0.5, float(cover.max()))
    (bounds,) = ndimage.find_objects(voxels.astype(np.uint8))
    z, y, x = (int(low) + part.start for low, part in zip(box.low, bounds, strict=True))
    return NoduleMask((z, y, x), voxels[bounds])


@dataclass(frozen=True)
class _Measures:
    """Centre of mass (LPS offset, mm), mean transverse diameter, volume, farthest extent; mm."""

    centre: _Array
    diameter: float
    volume: float
    reach: float

    def scaled(self, factor: float) -> _Measures:
        """Of the same body enlarged."""
        return _Measures(
            self.centre * factor,
            self.diameter * factor,
            self.volume * factor**3,
            self.reach * factor,
        )


def _measure(
    body: _Distance, radius: float, clip: Callable[[_Array], NDArray[np.bool_]] | None = None
) -> _Measures:
    """Measure a body of about this radius, or the part of it inside ``clip``."""

    def inside(offsets: _Array) -> NDArray[np.bool_]:
        within = body(offsets) < 0
        return within if clip is None else within & clip(offsets)

    step = radius / 11
    line = np.arange(-22, 23) * step
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    filled = points[inside(points)]
    heights = filled[:, 2]
    widest = max(np.unique(heights), key=lambda h: _axes(filled[heights == h, :2])[0])

    fine = np.arange(-100, 101) * (radius / 50)
    y2, x2 = np.meshgrid(fine, fine, indexing="ij")
    plane = np.stack([x2.ravel(), y2.ravel(), np.full(x2.size, widest)], axis=1)
    longest, perpendicular = _axes(plane[inside(plane), :2])
    diameter = (longest + perpendicular) / 2
    reach = float(np.linalg.norm(filled, axis=1).max()) + step
    return _Measures(filled.mean(axis=0), diameter, len(filled) * step**3, reach)


def _axes(points: _Array) -> tuple[float, float]:
    """Longest diameter of points in a plane and the extent perpendicular to it."""
    try:
        hull = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return 0.0, 0.0
    apart = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    i, j = np.unravel_index(apart.argmax(), apart.shape)
    along = (hull[j] - hull[i]) / apart[i, j]
    across = hull @ np.array([-along[1], along[0]])
    return float(apart[i, j]), float(np.ptp(across))
