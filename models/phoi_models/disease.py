"""Diffuse lung disease as a background: what a detector must stay quiet in.

Ground glass of an infection, reticulation and honeycombing of fibrosis, consolidation with air
bronchograms, emphysema. None of it is a nodule: its areas are large, or vague, or a network.
Shapes are drawn on small isotropic grids along the patient's axes and resampled to the host; they
are pictures of the patterns, not models of the diseases. Terms follow the Fleischner Society
glossary (2008, 2024). Arrays are (z, y, x); positions LPS, mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from phoi_models.distractors import Tubes, bend
from phoi_models.geometry import Geometry, as_triple
from phoi_models.planting_host import (
    Ball,
    Box,
    Floats,
    LungSpace,
    NoSite,
    Spread,
    directions,
    fill,
    texture,
)
from phoi_models.volume import Volume

_COARSE_MM, _FINE_MM = 2.5, 1.2
_LEAST_COVER = 0.003


class Disease(StrEnum):
    """Patterns of diffuse disease."""

    GROUND_GLASS = "ground_glass"
    FIBROSIS = "fibrosis"
    CONSOLIDATION = "consolidation"
    EMPHYSEMA = "emphysema"


def plant_disease(
    volume: Volume,
    lungs: LungSpace,
    rng: np.random.Generator,
    *,
    disease: Disease | None = None,
    avoid: Sequence[Ball] = (),
) -> Volume:
    """Plant one diffuse disease, mild to severe.

    Args:
        volume: the host; it is not changed.
        lungs: its lungs, before the disease.
        rng: everything random.
        disease: which; any if not given.
        avoid: LPS centres, mm, and diameters, mm, of what stays as it is, such as real nodules.

    Raises:
        NoSite: there are no lungs.
    """
    chosen = disease or Disease(rng.choice(list(Disease)))
    hu = volume.hu.copy()
    host = _Host(hu, volume.geometry, lungs, avoid, Spread.draw(rng, volume.geometry))
    {
        Disease.GROUND_GLASS: _ground_glass,
        Disease.FIBROSIS: _fibrosis,
        Disease.CONSOLIDATION: _consolidation,
        Disease.EMPHYSEMA: _emphysema,
    }[chosen](host, rng)
    return Volume(hu, volume.geometry)


@dataclass(frozen=True, eq=False)
class _Host:
    """The voxels that are changed in place, and what limits the change."""

    hu: NDArray[np.int16]
    geometry: Geometry
    lungs: LungSpace
    avoid: Sequence[Ball]
    spread: Spread

    def at_pleura(self, rng: np.random.Generator, *, basal: bool = False) -> tuple[Floats, Floats]:
        """A point of the pleura, LPS, mm, low in the lungs if basal, and the way inward."""
        points = self.lungs.draw(rng, 200, surface=True)
        points = points[self.inside_scan(points)]
        if not len(points):
            raise NoSite("there is no lung to plant a disease in")
        if basal:
            points = points[points[:, 2] <= np.quantile(points[:, 2], 0.4)]
        inward = self.lungs.inward(points)
        # The first that is no end of the scan.
        chosen = int((np.linalg.norm(inward, axis=1) > 0.5).argmax())
        return points[chosen], inward[chosen]

    def inside_scan(self, lps_mm: Floats) -> NDArray[np.bool_]:
        """Which LPS positions (n, 3), mm, the scan shows."""
        index = self.geometry.lps_to_index(lps_mm)
        within = (index >= 0) & (index <= np.array(self.hu.shape) - 1)
        shown: NDArray[np.bool_] = np.all(within, axis=1)
        return shown

    def paint(
        self,
        area: _Area,
        cover: Floats,
        hu: float,
        rng: np.random.Generator,
        *,
        hollow: bool = False,
    ) -> None:
        """Mix tissue, or with ``hollow`` air, into the voxels by the cover (0 to 1) of an area.

        An area whose middle lies beyond the scan is left out.
        """
        if not self.inside_scan(np.asarray(area.centre)[None]).all():
            return
        box = Box.around(self.geometry, as_triple(area.centre), area.reach_mm)
        dz, dy, dx = self.geometry.spacing_mm
        voxel = np.array([dz, dy, dx]) / np.sqrt(12)
        sigma = np.hypot(self.spread.sigma_mm, voxel) / area.spacing_mm
        seen = area.on(box, ndimage.gaussian_filter(cover * self._allowed(area), sigma))
        bounds = ndimage.find_objects((seen > _LEAST_COVER).view(np.uint8))
        if bounds:
            part = seen[bounds[0]]
            fill(self.hu[box.where][bounds[0]], part, texture(rng, part, hu), hollow=hollow)

    def airy(self, area: _Area) -> Floats:
        """1 in parenchyma, 0 at vessels, at the walls of airways and outside, (z, y, x)."""
        index = np.rint(self.geometry.lps_to_index(area.points)).astype(int)
        z, y, x = np.clip(index, 0, np.asarray(self.hu.shape) - 1).T
        hu = self.hu[z, y, x].astype(np.float64).reshape(area.shape)
        airy: Floats = np.clip((-600 - hu) / 100, 0, 1) * (area.depth > 0)
        return airy

    def _allowed(self, area: _Area) -> Floats:
        """1 in the lung, 0 outside and about what is avoided."""
        allowed = np.clip(area.depth - 0.5, 0, 1)
        for centre, diameter in self.avoid:
            gap = np.linalg.norm(area.points - np.asarray(centre), axis=1) - diameter / 2
            allowed *= np.clip((gap - 2) / 6, 0, 1).reshape(area.shape)
        return allowed


@dataclass(frozen=True, eq=False)
class _Area:
    """An isotropic grid (z, y, x) along the patient's axes around a centre, LPS, mm."""

    lungs: LungSpace
    centre: Floats
    reach_mm: float
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis, odd."""
        n = 2 * int(np.ceil(self.reach_mm / self.spacing_mm)) + 1
        return (n, n, n)

    @cached_property
    def points(self) -> Floats:
        """LPS positions, mm, (n, 3), of all voxels."""
        middle = self.shape[0] // 2
        grid = (np.indices(self.shape).reshape(3, -1).T - middle) * self.spacing_mm
        points: Floats = grid[:, ::-1] + self.centre
        return points

    @cached_property
    def depth(self) -> Floats:
        """Distance to the pleura, mm, (z, y, x); negative outside the lungs."""
        return self.lungs.depth(self.points).reshape(self.shape)

    def noise(self, rng: np.random.Generator, size_mm: float) -> Floats:
        """Smooth noise, (z, y, x), of unit deviation and about this grain, mm."""
        raw = ndimage.gaussian_filter(rng.normal(size=self.shape), size_mm / self.spacing_mm / 2)
        noise: Floats = raw / raw.std()
        return noise

    def radius(self, rng: np.random.Generator) -> Floats:
        """Distance from the centre over the reach, (z, y, x), of an ellipsoid turned at random."""
        stretch = rng.uniform(1.0, 1.8, 3)
        frame = np.linalg.qr(rng.normal(size=(3, 3)))[0] * stretch[:, None]
        radius: Floats = np.linalg.norm((self.points - self.centre) @ frame.T, axis=1)
        return radius.reshape(self.shape) / self.reach_mm

    def on(self, box: Box, values: Floats) -> Floats:
        """Values of this grid at the voxels of a box of the host; 0 outside."""
        geometry = box.geometry
        matrix = geometry.matrix[::-1] / self.spacing_mm
        first = (geometry.index_to_lps(box.low) - self.centre)[::-1] / self.spacing_mm
        sampled: Floats = ndimage.affine_transform(
            values, matrix, first + self.shape[0] // 2, output_shape=box.shape, order=1
        )
        return sampled


def _vague(level: Floats, width: float) -> Floats:
    """0 to 1, a smooth step of this width around level 0."""
    t = np.clip(0.5 + level / width, 0, 1)
    step: Floats = t * t * (3 - 2 * t)
    return step


def _network(
    rng: np.random.Generator, area: _Area, wanted: NDArray[np.bool_], cell_mm: float, wall_mm: float
) -> Floats:
    """Walls between the cells of random points (Worley, SIGGRAPH 1996), 0 to 1, (z, y, x)."""
    size = 2 * area.reach_mm
    seeds = rng.uniform(-size / 2, size / 2, (max(8, int((size / cell_mm) ** 3)), 3)) + area.centre
    points = area.points[wanted.ravel()]
    near, _ = cKDTree(seeds).query(points, k=2)
    walls = np.zeros(area.shape)
    between = (near[:, 1] - near[:, 0]) / 2 - wall_mm / 2
    walls[wanted] = np.clip(0.5 - between / area.spacing_mm, 0, 1)
    return walls


def _ground_glass(host: _Host, rng: np.random.Generator) -> None:
    """Ragged, vague areas of 30 to 80 mm under the pleura; some with crazy paving."""
    hu = rng.uniform(-700, -400)
    for _ in range(rng.integers(3, 9)):
        start, inward = host.at_pleura(rng)
        size = rng.uniform(40, 100)
        centre = start + inward * size * rng.uniform(0, 0.25)
        area = _Area(host.lungs, centre, 0.6 * size, _COARSE_MM)
        near_pleura = np.exp(-np.maximum(area.depth, 0) / rng.uniform(15, 60))
        ragged = 0.3 * area.noise(rng, size / 4) + 0.12 * area.noise(rng, size / 10)
        cover = _vague(0.5 - area.radius(rng) + ragged, rng.uniform(0.4, 0.9)) * near_pleura
        host.paint(area, cover, hu + rng.normal(0, 40), rng)
        if rng.random() < 0.25:
            _thicken_septa(host, area, cover, rng)


def _thicken_septa(host: _Host, area: _Area, cover: Floats, rng: np.random.Generator) -> None:
    """Fine lines through ground glass: crazy paving."""
    fine = _Area(host.lungs, area.centre, area.reach_mm, _FINE_MM)
    zoom = [n / m for n, m in zip(fine.shape, cover.shape, strict=True)]
    finer = ndimage.zoom(cover, zoom, order=1, grid_mode=False)
    walls = _network(rng, fine, finer > 0.15, rng.uniform(5, 10), rng.uniform(0.6, 1.2))
    host.paint(fine, 0.5 * walls * finer, rng.uniform(-200, 50), rng)


def _fibrosis(host: _Host, rng: np.random.Generator) -> None:
    """A network under the pleura of the lung bases; in some with holes: honeycombing."""
    honeycomb = rng.random() < 0.5
    for _ in range(rng.integers(2, 7)):
        start, _ = host.at_pleura(rng, basal=rng.random() < 0.8)
        area = _Area(host.lungs, start, rng.uniform(18, 36), _FINE_MM)
        thickness = rng.uniform(6, 20)
        level = 1 - area.radius(rng) - 0.5 * np.maximum(area.depth, 0) / thickness
        zone = _vague(level + 0.12 * area.noise(rng, 10), 0.5)
        cell = rng.uniform(5, 10)
        walls = _network(rng, area, zone > 0.05, cell, cell * rng.uniform(0.1, 0.2)) * zone
        host.paint(area, 0.7 * zone, rng.uniform(-800, -600), rng)
        if honeycomb:
            host.paint(area, zone - walls, rng.uniform(-980, -900), rng, hollow=True)
        host.paint(area, walls, rng.uniform(-200, 50), rng)


def _consolidation(host: _Host, rng: np.random.Generator) -> None:
    """A wedge on the pleura, as wide as a part of a segment, with bronchi full of air."""
    for _ in range(rng.integers(1, 3)):
        start, inward = host.at_pleura(rng)
        length, base = rng.uniform(35, 65), rng.uniform(18, 36)
        area = _Area(host.lungs, start + inward * length / 2, 0.6 * length + 0.5 * base, _COARSE_MM)
        offsets = area.points - start
        along = (offsets @ inward).reshape(area.shape)
        aside = np.linalg.norm(offsets - np.outer(along.ravel(), inward), axis=1)
        width = base * np.clip(1 - along / length, 0, 1)
        distance = np.maximum(aside.reshape(area.shape) - width, along - length)
        distance += 2.5 * area.noise(rng, 10)
        host.paint(area, _vague(-distance - 4, 16), rng.uniform(-650, -450), rng)
        solid = _vague(-distance, rng.uniform(4, 9))
        host.paint(area, solid, rng.uniform(0, 60), rng)
        bronchi = _bronchi(rng, start + inward * 0.9 * length - area.centre, -inward, length)
        fine = _Area(host.lungs, area.centre, area.reach_mm, 1.5)
        lumen = np.clip(0.5 - bronchi.distance(fine.points - fine.centre), 0, 1)
        host.paint(fine, lumen.reshape(fine.shape), rng.uniform(-980, -900), rng, hollow=True)


def _bronchi(rng: np.random.Generator, root: Floats, outward: Floats, length: float) -> Tubes:
    """Two to four tubes that spread from the tip of a wedge; LPS offsets, mm."""
    ends = [
        bend(rng, outward, rng.uniform(2, 22)) * length * rng.uniform(0.4, 0.75)
        for _ in range(rng.integers(2, 5))
    ]
    return Tubes.arms(ends, rng.uniform(1.2, 2.2), 0.5, root)


def _emphysema(host: _Host, rng: np.random.Generator) -> None:
    """Holes without walls, in some regions more than in others; vessels stay in them."""
    for focus in host.lungs.draw(rng, int(rng.integers(2, 7))):
        if not host.inside_scan(focus[None]).all():
            continue
        area = _Area(host.lungs, focus, rng.uniform(20, 45), 2.0)
        holes = directions(rng, 60) * area.reach_mm * np.sqrt(rng.uniform(0, 0.8, (60, 1)))
        sizes = rng.uniform(1.5, 6.0, len(holes))
        airy = host.airy(area)
        near, which = cKDTree(holes).query((area.points - focus)[airy.ravel() > 0], k=2)
        distance = np.full(area.shape, np.inf)
        distance[airy > 0] = (near - sizes[which]).min(axis=1)
        cover = _vague(area.noise(rng, 5) - distance, 3.0) * airy
        host.paint(area, cover, rng.uniform(-1000, -960), rng, hollow=True)
