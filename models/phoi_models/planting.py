"""Nodules planted into real or synthetic CT, with exact truth.

A planted nodule is an implicit shape in patient coordinates (LPS, mm): an ellipsoid with
lobulations, an uneven surface and spicules, possibly with a solid core or a cavity.
:mod:`phoi_models.planting_host` mixes it into the host.

One generator serves training, tests and quality checks. All randomness comes from the
``numpy.random.Generator`` that the caller gives. Arrays are (z, y, x); positions LPS, mm.

Attenuation classes and terms follow the Fleischner Society glossary (2008, 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from phoi_models.distractors import fissure, fissure_hu
from phoi_models.findings import Attenuation, Lobe, NoduleMask
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.planting_host import (
    Ball,
    Box,
    Distance,
    Floats,
    Site,
    Sites,
    Spread,
    directions,
    fill,
    smooth_minimum,
    texture,
)
from phoi_models.planting_host import LungSpace as LungSpace
from phoi_models.planting_host import NoSite as NoSite
from phoi_models.planting_host import Place as Place
from phoi_models.volume import Volume

SMALLEST_MM, LARGEST_MM = 3.0, 50.0
_LONGEST_SPICULE_MM = 16.0


class Margin(StrEnum):
    """The surface of a nodule."""

    SMOOTH = "smooth"
    LOBULATED = "lobulated"
    SPICULATED = "spiculated"


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
        attenuation = _draw_attenuation(rng, diameter_mm)
        cavity = diameter_mm > 9 and attenuation is Attenuation.SOLID and rng.random() < 0.2
        return cls(
            attenuation=attenuation,
            margin=_draw_margin(rng, diameter_mm),
            solid_hu=_draw_solid_hu(rng, diameter_mm),
            ground_glass_hu=_draw_ground_glass_hu(rng, diameter_mm),
            core_fraction=rng.uniform(0.25, 0.75),
            cavity_fraction=_draw_cavity(rng, diameter_mm) if cavity else 0.0,
            elongation=1 + abs(rng.normal(0, 0.3)),
        )


def _draw_attenuation(rng: np.random.Generator, diameter_mm: float) -> Attenuation:
    shares = [0.9, 0.0, 0.1] if diameter_mm < 5 else [0.68, 0.16, 0.16]
    return Attenuation(rng.choice(list(Attenuation), p=shares))


def _draw_margin(rng: np.random.Generator, diameter_mm: float) -> Margin:
    """Large tumours are rarely smooth; at small nodules no margin can be seen."""
    if diameter_mm < 5:
        return Margin.SMOOTH
    shares = [0.3, 0.4, 0.3] if diameter_mm < 15 else [0.1, 0.4, 0.5]
    return Margin(rng.choice(list(Margin), p=shares))


def _draw_solid_hu(rng: np.random.Generator, diameter_mm: float) -> float:
    """Soft tissue, or calcium: granulomas are small, and the smallest show only when dense."""
    calcified = 0.25 if diameter_mm < 6 else 0.08 if diameter_mm < 12 else 0.0
    return rng.uniform(150, 500) if rng.random() < calcified else rng.uniform(-60, 110)


def _draw_ground_glass_hu(rng: np.random.Generator, diameter_mm: float) -> float:
    """Half of the small ones are faint."""
    faint = 6 <= diameter_mm <= 10 and rng.random() < 0.5
    return rng.uniform(-700, -600) if faint else rng.uniform(-680, -400)


def _draw_cavity(rng: np.random.Generator, diameter_mm: float) -> float:
    """Half of the cavities have a thin wall."""
    if rng.random() < 0.5:
        return float(np.clip(1 - 2 * rng.uniform(1.2, 3.0) / diameter_mm, 0.3, 0.93))
    return rng.uniform(0.3, 0.75)


@dataclass(frozen=True, eq=False)
class PlantedNodule:
    """The truth about one planted nodule.

    Attributes:
        center_lps_mm: centre of mass, LPS, mm.
        mean_diameter_mm: mean of the longest diameter on the transverse plane where it is largest
            and the one perpendicular to it, of the body without its spicules, mm.
        volume_mm3: of the body, cavity included, spicules not, mm3.
        solid_diameter_mm: mean diameter of the solid core, mm; None unless part-solid.
        kind: what it is made of.
        place: where it sits.
        lobe: None where the host does not know its lobes.
        mask: host voxels that are at least half filled by it.
    """

    center_lps_mm: Triple
    mean_diameter_mm: float
    volume_mm3: float
    solid_diameter_mm: float | None
    kind: NoduleKind
    place: Place
    lobe: Lobe | None
    mask: NoduleMask


@dataclass(frozen=True)
class _Shape:
    """An implicit body around the origin; points are LPS offsets from its centre, mm."""

    radius: float
    frame: Floats  # (3, 3): LPS offset to coordinates in which the ellipsoid is a ball
    balls: Floats  # (n, 4): centre and radius of lobules, in the frame, relative to the radius
    waves: Floats  # (n, 4): wave vector and phase of the uneven surface
    unevenness: float
    spicules: Floats  # (n, 5): direction, length over radius, base radius mm
    facets: Floats  # (n, 4): outward unit vector and distance, in the frame, of flat sides

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
        offsets = directions(rng, lobules) * rng.uniform(0.4, 0.7, (lobules, 1))
        return cls(
            radius=1.0,
            frame=rotation / axes[:, None],
            balls=np.column_stack([offsets, rng.uniform(0.4, 0.65, lobules)]),
            waves=np.column_stack(
                [directions(rng, 10) * rng.uniform(2, 9, (10, 1)), rng.uniform(0, 6.3, 10)]
            ),
            unevenness=uneven[kind.margin] if kind.elongation > 1 or lobules or thorns else 0.0,
            spicules=np.column_stack(
                [
                    directions(rng, thorns),
                    rng.uniform(0.5, 1.6, thorns),
                    rng.uniform(0.7, 1.8, thorns),
                ]
            ),
            facets=np.empty((0, 4)),
        )

    @classmethod
    def on_fissure(cls, rng: np.random.Generator, normal: Floats) -> _Shape:
        """A flat body with a straight side on a fissure, and often a triangular outline.

        So are perifissural nodules described by de Hoop et al. (Radiology 2012;265:611-6).
        """
        across = np.linalg.qr(np.column_stack([normal, rng.normal(size=(3, 2))]))[0].T
        axes = np.array([rng.uniform(0.5, 0.8), 1.0, rng.uniform(1.0, 1.4)])
        turn = rng.uniform(0, 2 * np.pi)
        corners = turn + np.arange(3) * 2 * np.pi / 3 + rng.normal(0, 0.2, 3)
        sides = np.column_stack(
            [np.zeros(3), np.cos(corners), np.sin(corners), rng.uniform(0.5, 0.9, 3)]
        )
        flat = np.array([[-1.0, 0.0, 0.0, rng.uniform(0.1, 0.7)]])
        plain = cls.draw(rng, NoduleKind())
        triangular = rng.random() < 0.6
        return replace(
            plain,
            frame=across / (axes / np.prod(axes) ** (1 / 3))[:, None],
            facets=np.concatenate([flat, sides]) if triangular else flat,
        )

    def body(self, offsets: Floats) -> Floats:
        """About the signed distance, mm, of LPS offsets (n, 3) to the surface of the body."""
        points = offsets @ self.frame.T / self.radius
        core = 0.8 if len(self.balls) else 1.0
        distance = np.sqrt((points**2).sum(axis=1)) - core
        for ball in self.balls:
            lobule = np.sqrt(((points - ball[:3]) ** 2).sum(axis=1)) - ball[3]
            distance = smooth_minimum(distance, lobule, 0.15)
        for facet in self.facets:
            distance = -smooth_minimum(-distance, facet[3] - points @ facet[:3], 0.2)
        if self.unevenness:
            near = np.abs(distance) < 0.6
            ripple = np.sin(points[near] @ self.waves[:, :3].T + self.waves[:, 3]).mean(axis=1)
            distance[near] += 3 * self.unevenness * ripple
        scaled: Floats = distance * self.radius
        return scaled

    def with_spicules(self, offsets: Floats) -> Floats:
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
        place: recorded with the truth; a perifissural nodule is flat and comes with a piece of
            fissure.

    Returns:
        The new volume and the truth.

    Raises:
        ValueError: the centre lies outside the volume or the lungs, or the diameter is not 3 to
            50 mm.
    """
    if not SMALLEST_MM <= diameter_mm <= LARGEST_MM:
        raise ValueError(f"a nodule is {SMALLEST_MM} to {LARGEST_MM} mm wide, not {diameter_mm}")
    host = volume.hu.copy()
    site = Site(as_triple(center_lps_mm), place)
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
    sites = Sites(host, volume.geometry, lungs, rng, avoid)
    planted = []
    for diameter in diameters_mm:
        kind = NoduleKind.draw(rng, diameter)
        site = sites.choose(rng, diameter, _visible_below(kind))
        if site is not None:
            if _may_lie_on_fissure(site, diameter, kind) and rng.random() < 0.2:
                site = replace(site, place=Place.PERIFISSURAL)
            planted.append(_plant(host, volume.geometry, site, diameter, kind, lungs, rng))
    return Volume(host, volume.geometry), tuple(planted)


def _may_lie_on_fissure(site: Site, diameter_mm: float, kind: NoduleKind) -> bool:
    """Intrapulmonary lymph nodes are solid and small."""
    small = diameter_mm <= 12 and kind.attenuation is Attenuation.SOLID
    return small and site.place is Place.ISOLATED


def _visible_below(kind: NoduleKind) -> float:
    """Host HU above which a nodule of this kind does not show."""
    solid = kind.attenuation is Attenuation.SOLID
    return kind.solid_hu - 250 if solid else kind.ground_glass_hu - 120


def _plant(
    host: NDArray[np.int16],
    geometry: Geometry,
    site: Site,
    diameter_mm: float,
    kind: NoduleKind,
    lungs: LungSpace | None,
    rng: np.random.Generator,
) -> PlantedNodule:
    """Change ``host`` in place and return the truth."""
    if lungs is not None and not lungs.contains(np.array([site.center_lps_mm])).all():
        raise ValueError("the centre lies outside the lungs")
    if site.place is Place.PERIFISSURAL:
        kind = replace(kind, margin=Margin.SMOOTH, cavity_fraction=0.0, elongation=1.0)
        normal = directions(rng, 1)[0]
        _plant_fissure(host, geometry, site.center_lps_mm, normal, lungs, rng)
        unit = _Shape.on_fissure(rng, normal)
    else:
        unit = _Shape.draw(rng, kind)
    measured = _measure(unit.body, 1.0)
    scale = diameter_mm / measured.diameter
    shape = replace(unit, radius=scale)
    spicules = min(1.6 * scale, _LONGEST_SPICULE_MM) if len(shape.spicules) else 0.0
    reach = scale * measured.reach + spicules
    box = Box.around(geometry, site.center_lps_mm, reach)
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
    part_solid = kind.attenuation is Attenuation.PART_SOLID
    centre = as_triple(box.centre + truth.centre)
    return PlantedNodule(
        center_lps_mm=centre,
        mean_diameter_mm=truth.diameter,
        volume_mm3=truth.volume,
        solid_diameter_mm=kind.core_fraction * diameter_mm if part_solid else None,
        kind=kind,
        place=site.place,
        lobe=None if lungs is None else lungs.lobe(centre),
        mask=_tight(body, box),
    )


def _plant_fissure(
    host: NDArray[np.int16],
    geometry: Geometry,
    centre: Triple,
    normal: Floats,
    lungs: LungSpace | None,
    rng: np.random.Generator,
) -> None:
    """Change ``host`` in place: a piece of a fissure through a point."""
    plate = fissure(rng, normal)
    box = Box.around(geometry, centre, max(plate.half_axes_mm))
    cover = box.coverage(plate.distance, 1.0)
    if lungs is not None:
        cover *= lungs.contains(box.positions()).reshape(box.shape)
    seen = box.blurred(cover, Spread.draw(rng, geometry))
    fill(host[box.where], seen, texture(rng, cover, fissure_hu(rng)))


_GROUND_GLASS_HU = (20.0, 110.0)
"""Ground glass is less even than solid tissue."""


def _vaguest(radius_mm: float) -> float:
    """Standard deviation of the vaguest border of ground glass of this size, mm."""
    return float(np.clip(0.12 * radius_mm, 0.6, 1.8))


def _fill_kind(
    block: NDArray[np.int16],
    box: Box,
    cover: Floats,
    shape: _Shape,
    kind: NoduleKind,
    step: float,
    rng: np.random.Generator,
) -> None:
    """Mix one nodule into its box of host voxels."""
    spread = Spread.draw(rng, box.geometry)
    if kind.attenuation is Attenuation.SOLID:
        fill(block, box.blurred(cover, spread), texture(rng, cover, kind.solid_hu))
    else:
        soft = box.blurred(cover, spread, softness=rng.uniform(0.3, _vaguest(shape.radius)))
        fill(block, soft, texture(rng, cover, kind.ground_glass_hu, _GROUND_GLASS_HU))
    if kind.attenuation is Attenuation.PART_SOLID:
        core = _Inner.draw(rng, shape, kind.core_fraction)
        inner = box.blurred(box.coverage(core.distance, step), spread)
        fill(block, inner, texture(rng, cover, kind.solid_hu))
    if kind.cavity_fraction:
        hole = _Inner.draw(rng, shape, kind.cavity_fraction)
        inner = box.blurred(box.coverage(hole.distance, step), spread)
        fill(block, inner, texture(rng, cover, rng.uniform(-980, -800)), hollow=True)


@dataclass(frozen=True)
class _Inner:
    """A smaller copy of a shape inside it, moved by an LPS shift, mm."""

    shape: _Shape
    fraction: float
    shift: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: _Shape, fraction: float) -> _Inner:
        """Anywhere inside, so that a third of the mean wall is left where it is thinnest."""
        room = 0.67 * (1 - fraction) * shape.radius
        return cls(shape, fraction, directions(rng, 1)[0] * room * rng.random())

    def distance(self, offsets: Floats) -> Floats:
        return self.fraction * self.shape.body((offsets - self.shift) / self.fraction)


@dataclass(frozen=True)
class _Clip:
    """The part of space, around a centre, that lies in the lungs."""

    lungs: LungSpace
    centre: Floats

    def __call__(self, offsets: Floats) -> NDArray[np.bool_]:
        return self.lungs.contains(offsets + self.centre)


def _tight(cover: Floats, box: Box) -> NoduleMask:
    """Voxels at least half covered (or the one covered most) in their bounding box."""
    voxels = cover >= min(0.5, float(cover.max()))
    (bounds,) = ndimage.find_objects(voxels.astype(np.uint8))
    z, y, x = (int(low) + part.start for low, part in zip(box.low, bounds, strict=True))
    return NoduleMask((z, y, x), voxels[bounds])


@dataclass(frozen=True)
class _Measures:
    """Centre of mass (LPS offset, mm), mean transverse diameter, volume, farthest extent; mm."""

    centre: Floats
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
    body: Distance, radius: float, clip: Callable[[Floats], NDArray[np.bool_]] | None = None
) -> _Measures:
    """Measure a body of about this radius, or the part of it inside ``clip``."""

    def inside(offsets: Floats) -> NDArray[np.bool_]:
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


def _axes(points: Floats) -> tuple[float, float]:
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
