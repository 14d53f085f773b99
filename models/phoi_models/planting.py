"""Nodules planted into real or synthetic CT, with exact truth.

A planted nodule is an implicit shape in patient coordinates (:mod:`phoi_models.nodule_shapes`),
possibly with a solid core or a cavity; :mod:`phoi_models.planting_host` mixes it into the host.

One generator serves training, tests and quality checks. All randomness comes from the
``numpy.random.Generator`` that the caller gives. Arrays are (z, y, x); positions LPS, mm.

Attenuation classes and terms follow the Fleischner Society glossary (2008, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.distractors import fissure, fissure_hu
from phoi_models.findings import Attenuation, Lobe, NoduleMask
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.nodule_shapes import LONGEST_SPICULE_MM, Inner, Measures, Shape, measure
from phoi_models.nodule_shapes import Margin as Margin
from phoi_models.nodule_shapes import NoduleKind as NoduleKind
from phoi_models.planting_host import (
    Ball,
    Box,
    Floats,
    Site,
    Sites,
    Spread,
    directions,
    fill,
    texture,
)
from phoi_models.planting_host import LungSpace as LungSpace
from phoi_models.planting_host import NoSite as NoSite
from phoi_models.planting_host import Place as Place
from phoi_models.volume import Volume

SMALLEST_MM, LARGEST_MM = 3.0, 50.0


@dataclass(frozen=True, eq=False)
class Body:
    """The exact body of a planted nodule: without its spicules, with its core and its cavity.

    Attributes:
        shape: its surface.
        origin_lps_mm: LPS position, mm, of the shape's origin; not its centre of mass.
        lungs: what lies outside them is outside the body; None if nothing is cut off.
    """

    shape: Shape
    origin_lps_mm: Triple
    lungs: LungSpace | None

    def distance_mm(self, lps_mm: Floats) -> Floats:
        """About the signed distance, mm, of LPS positions (..., 3), mm, to the surface: (...).

        Negative inside; infinite outside the lungs.
        """
        return self._distance_mm(np.asarray(lps_mm) - self.origin_lps_mm)

    def measures(self) -> Measures:
        """Its size and its centre of mass, from its origin."""
        return measure(self._distance_mm, self.shape.radius)

    def _distance_mm(self, offsets: Floats) -> Floats:
        """As :meth:`distance_mm`, of LPS offsets from the origin."""
        flat = offsets.reshape(-1, 3)
        distance = self.shape.body(flat)
        if self.lungs is not None:
            distance[~self.lungs.contains(flat + self.origin_lps_mm)] = np.inf
        return distance.reshape(offsets.shape[:-1])


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
        body: what the numbers above were measured on.
    """

    center_lps_mm: Triple
    mean_diameter_mm: float
    volume_mm3: float
    solid_diameter_mm: float | None
    kind: NoduleKind
    place: Place
    lobe: Lobe | None
    mask: NoduleMask
    body: Body


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
        unit = Shape.on_fissure(rng, normal)
    else:
        unit = Shape.draw(rng, kind)
    measured = measure(unit.body, 1.0)
    scale = diameter_mm / measured.diameter
    shape = replace(unit, radius=scale)
    spicules = min(1.6 * scale, LONGEST_SPICULE_MM) if len(shape.spicules) else 0.0
    reach = scale * measured.reach + spicules
    box = Box.around(geometry, site.center_lps_mm, reach)
    step = float(np.clip(shape.radius / 6, 0.3, 1.0))
    cover = box.coverage(shape.with_spicules, step)
    _fill_kind(host[box.where], box, cover, shape, kind, step, rng)

    if len(shape.spicules):
        cover = box.coverage(shape.body, step)
    body = Body(shape, site.center_lps_mm, None)
    truth = measured.scaled(scale)
    solid = kind.core_fraction * diameter_mm if kind.attenuation is Attenuation.PART_SOLID else None
    if lungs is not None:
        within = cover * lungs.contains(box.positions()).reshape(box.shape)
        if 0 < within.sum() < 0.99 * cover.sum():
            cover = within
            body = replace(body, lungs=lungs)
            truth = body.measures()
            solid = None  # the core is cut as well, by nobody knows how much
    centre = as_triple(box.centre + truth.centre)
    return PlantedNodule(
        center_lps_mm=centre,
        mean_diameter_mm=truth.diameter,
        volume_mm3=truth.volume,
        solid_diameter_mm=solid,
        kind=kind,
        place=site.place,
        lobe=None if lungs is None else lungs.lobe(centre),
        mask=_tight(cover, box),
        body=body,
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
    shape: Shape,
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
        core = Inner.draw(rng, shape, kind.core_fraction)
        inner = box.blurred(box.coverage(core.distance, step), spread)
        fill(block, inner, texture(rng, cover, kind.solid_hu))
    if kind.cavity_fraction:
        hole = Inner.draw(rng, shape, kind.cavity_fraction)
        inner = box.blurred(box.coverage(hole.distance, step), spread)
        fill(block, inner, texture(rng, cover, rng.uniform(-980, -800)), hollow=True)


def _tight(cover: Floats, box: Box) -> NoduleMask:
    """Voxels at least half covered (or the one covered most) in their bounding box."""
    voxels = cover >= min(0.5, float(cover.max()))
    (bounds,) = ndimage.find_objects(voxels.astype(np.uint8))
    z, y, x = (int(low) + part.start for low, part in zip(box.low, bounds, strict=True))
    return NoduleMask((z, y, x), voxels[bounds])
