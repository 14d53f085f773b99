"""What nodules are made of and how they are shaped.

A nodule is an implicit shape: an ellipsoid with lobulations, an uneven surface and spicules, or a
flat body on a fissure. Positions are LPS offsets from its centre, mm. Terms follow the Fleischner
Society glossary (2008, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from phoi_models.findings import Attenuation
from phoi_models.planting_host import Distance, Floats, directions, smooth_minimum

LONGEST_SPICULE_MM = 16.0


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


@dataclass(frozen=True)
class Shape:
    """An implicit body around the origin; points are LPS offsets from its centre, mm."""

    radius: float
    frame: Floats  # (3, 3): LPS offset to coordinates in which the ellipsoid is a ball
    balls: Floats  # (n, 4): centre and radius of lobules, in the frame, relative to the radius
    waves: Floats  # (n, 4): wave vector and phase of the uneven surface
    unevenness: float
    spicules: Floats  # (n, 5): direction, length over radius, base radius mm
    facets: Floats  # (n, 4): outward unit vector and distance, in the frame, of flat sides

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: NoduleKind) -> Shape:
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
    def on_fissure(cls, rng: np.random.Generator, normal: Floats) -> Shape:
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
        length = np.minimum(self.spicules[:, 3] * self.radius, LONGEST_SPICULE_MM)
        around = (distance > 0) & (distance < length.max())
        points = offsets[around]
        along = points @ self.spicules[:, :3].T
        aside = np.sqrt(np.maximum((points**2).sum(axis=1)[:, None] - along**2, 0))
        taper = 1 - (along - self.radius) / length
        thickness = self.spicules[:, 4] * np.clip(taper, 0, 1)
        thorn = np.where((along > 0.5 * self.radius) & (taper > 0), aside - thickness, np.inf)
        distance[around] = np.minimum(distance[around], thorn.min(axis=1))
        return distance


@dataclass(frozen=True)
class Inner:
    """A smaller copy of a shape inside it, moved by an LPS shift, mm."""

    shape: Shape
    fraction: float
    shift: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: Shape, fraction: float) -> Inner:
        """Anywhere inside, so that a third of the mean wall is left where it is thinnest."""
        room = 0.67 * (1 - fraction) * shape.radius
        return cls(shape, fraction, directions(rng, 1)[0] * room * rng.random())

    def distance(self, offsets: Floats) -> Floats:
        """About the signed distance, mm, of LPS offsets (n, 3) from the centre of the whole."""
        return self.fraction * self.shape.body((offsets - self.shift) / self.fraction)


@dataclass(frozen=True)
class Measures:
    """Centre of mass (LPS offset, mm), mean transverse diameter, volume, farthest extent; mm."""

    centre: Floats
    diameter: float
    volume: float
    reach: float

    def scaled(self, factor: float) -> Measures:
        """Of the same body enlarged."""
        return Measures(
            self.centre * factor,
            self.diameter * factor,
            self.volume * factor**3,
            self.reach * factor,
        )


def measure(body: Distance, radius: float) -> Measures:
    """Measure a body of about this radius, mm."""
    step = radius / 11
    line = np.arange(-22, 23) * step
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    filled = points[body(points) < 0]
    heights = filled[:, 2]
    widest = max(np.unique(heights), key=lambda h: _axes(filled[heights == h, :2])[0])

    fine = np.arange(-100, 101) * (radius / 50)
    y2, x2 = np.meshgrid(fine, fine, indexing="ij")
    plane = np.stack([x2.ravel(), y2.ravel(), np.full(x2.size, widest)], axis=1)
    longest, perpendicular = _axes(plane[body(plane) < 0, :2])
    diameter = (longest + perpendicular) / 2
    reach = float(np.linalg.norm(filled, axis=1).max()) + step
    return Measures(filled.mean(axis=0), diameter, len(filled) * step**3, reach)


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
