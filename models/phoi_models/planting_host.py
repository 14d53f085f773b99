"""The host of planted tissue: where its lungs are, what is free and visible, how voxels are mixed.

Whatever is planted, nodule or not, is a signed distance in patient coordinates (LPS, mm). It is
sampled finer than the voxels of the host (partial volume), blurred by a point spread, and mixed
with the host voxel by voxel, so that the host's noise, its vessels and its chest wall stay. All
planted things share this path, so that its traces tell nothing.

Arrays are (z, y, x); positions LPS, mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.canonical import to_canonical
from phoi_models.errors import PhoiError
from phoi_models.findings import Lobe
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import segment_lungs
from phoi_models.volume import Volume

_Value = TypeVar("_Value", np.bool_, np.uint8)
Floats = NDArray[np.float64]
Distance = Callable[[Floats], Floats]
"""About the signed distance, mm, of LPS offsets (n, 3), mm, to a surface; negative inside."""
Ball = tuple[Triple, float]
"""LPS centre, mm, and diameter, mm."""


class Place(StrEnum):
    """Where in the lung a nodule sits."""

    ISOLATED = "isolated"
    JUXTAPLEURAL = "juxtapleural"
    JUXTAVASCULAR = "juxtavascular"
    PERIFISSURAL = "perifissural"


class NoSite(PhoiError):
    """There is no lung to plant into."""


@dataclass(frozen=True, eq=False)
class LungSpace:
    """Where the lungs are, whatever the grid of the host.

    Attributes:
        inside: bool array (z, y, x) on a canonical grid.
        origin_lps_mm: LPS position of the centre of its first voxel, mm.
        spacing_mm: its voxel size, mm.
        lobes: on the same grid 0, or one more than the position of the lobe in ``Lobe``; None
            where the lobes are not known.
    """

    inside: NDArray[np.bool_]
    origin_lps_mm: Triple
    spacing_mm: float
    lobes: NDArray[np.uint8] | None = None

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

    @cached_property
    def _depth(self) -> NDArray[np.float32]:
        """Distance to the surface, mm, negative outside, on every second voxel."""
        sparse = self.inside[::2, ::2, ::2]
        inner = ndimage.distance_transform_edt(sparse)
        outer = ndimage.distance_transform_edt(~sparse)
        steps = np.where(sparse, inner - 0.5, 0.5 - outer).astype(np.float32)
        smooth: NDArray[np.float32] = ndimage.gaussian_filter(steps, 1.0)
        return smooth * np.float32(2 * self.spacing_mm)

    def depth(self, lps_mm: Floats) -> Floats:
        """About the distance, mm, of LPS positions (n, 3) to the pleura; negative outside."""
        index = (lps_mm - np.asarray(self.origin_lps_mm))[:, ::-1] / (2 * self.spacing_mm)
        depth: Floats = ndimage.map_coordinates(self._depth, index.T, order=1, mode="nearest")
        return depth.astype(np.float64)

    def inward(self, lps_mm: Floats) -> Floats:
        """Unit vectors (n, 3) at LPS positions (n, 3), mm, that point into the lung.

        Zero where the surface is only the end of the scan.
        """
        steps = 3.0 * np.eye(3)
        slope = [self.depth(lps_mm + step) - self.depth(lps_mm - step) for step in steps]
        gradient = np.stack(slope, axis=1)
        unit: Floats = gradient / np.maximum(np.linalg.norm(gradient, axis=1), 1.0)[:, None]
        return unit

    def contains(self, lps_mm: Floats) -> NDArray[np.bool_]:
        """Which LPS positions (n, 3), mm, lie in a lung."""
        found: NDArray[np.bool_] = self._at(self.inside, lps_mm)
        return found

    def lobe(self, lps_mm: Triple) -> Lobe | None:
        """The lobe at an LPS position, mm; None outside the lungs or where none is known."""
        if self.lobes is None:
            return None
        number = int(self._at(self.lobes, np.array([lps_mm]))[0])
        return list(Lobe)[number - 1] if number else None

    def _at(self, grid: NDArray[_Value], lps_mm: Floats) -> NDArray[_Value]:
        """Values at LPS positions (n, 3), mm; 0 outside the grid."""
        offset = (lps_mm - np.asarray(self.origin_lps_mm))[:, ::-1] / self.spacing_mm
        index = np.rint(offset).astype(int)
        within = ((index >= 0) & (index < grid.shape)).all(axis=1)
        z, y, x = np.where(within[:, None], index, 0).T
        values: NDArray[_Value] = grid[z, y, x] * within
        return values

    def draw(self, rng: np.random.Generator, count: int, *, surface: bool = False) -> Floats:
        """Random LPS positions (count, 3), mm, in the lungs or on their surface."""
        voxels = self._surface if surface else self._voxels
        if not voxels.size:
            raise NoSite("there is no lung to plant a nodule in")
        chosen = np.unravel_index(rng.choice(voxels, count), self.inside.shape)
        index = np.stack(chosen, axis=1) + rng.uniform(-0.5, 0.5, (count, 3))
        return np.asarray(index[:, ::-1] * self.spacing_mm + self.origin_lps_mm)


def directions(rng: np.random.Generator, count: int) -> Floats:
    """Random unit vectors (count, 3), evenly over the sphere."""
    vectors = rng.normal(size=(count, 3))
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def smooth_minimum(a: Floats, b: Floats, blend: float) -> Floats:
    """Polynomial smooth minimum: a union without a crease."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    joined: Floats = np.minimum(a, b) - h * h * blend / 4
    return joined


@dataclass(frozen=True)
class Spread:
    """The point spread of a scan beyond the averaging over its voxels.

    Attributes:
        sigma_mm: standard deviations along the array axes (z, y, x), mm.
    """

    sigma_mm: Triple

    @classmethod
    def draw(cls, rng: np.random.Generator, geometry: Geometry) -> Spread:
        """A reconstruction kernel in plane and the slice sensitivity profile through it.

        The profile of a helical scan is bell-shaped and its full width at half maximum is the
        slice thickness, at the least about 0.7 mm. A voxel's own average is part of that width.
        Overlapping slices are thicker than they lie apart.
        """
        spacing = geometry.spacing_mm[0]
        profile = max(0.7, spacing * rng.uniform(0.9, 1.4)) / 2.355
        through = np.sqrt(max(0.0, profile**2 - spacing**2 / 12))
        kernel = rng.uniform(0.35, 0.8)
        return cls((float(through), kernel, kernel))


class Box:
    """Host voxels around a centre, and finer samples within each of them."""

    def __init__(self, geometry: Geometry, centre: Triple, low: Floats, high: Floats) -> None:
        self.geometry = geometry
        self.centre = np.asarray(centre)
        self.low = low
        self.where = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        self.shape = tuple(int(n) for n in high - low)

    @classmethod
    def around(cls, geometry: Geometry, centre: Triple, reach_mm: float) -> Box:
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

    @cached_property
    def _offsets(self) -> Floats:
        """LPS offsets of the voxel centres from the centre of the box, mm, (n, 3)."""
        grid = np.indices(self.shape).reshape(3, -1).T + self.low
        lps: Floats = self.geometry.index_to_lps(grid) - self.centre
        return lps

    def offsets(self, shift: Floats) -> Floats:
        """LPS offsets from the centre, mm, (n, 3), of the voxels moved by a part of an index."""
        moved: Floats = self._offsets + self.geometry.matrix @ shift
        return moved

    def coverage(self, distance: Distance, step_mm: float) -> Floats:
        """Fraction, 0 to 1, of each voxel inside a body, sampled every ``step_mm`` at its edge."""
        spacing = np.asarray(self.geometry.spacing_mm)
        parts = np.clip(np.ceil(spacing / step_mm), 1, 8).astype(int)
        edge = float((spacing / parts).max())
        from_centre = distance(self._offsets)
        cover = np.clip(0.5 - from_centre / edge, 0, 1)
        # Distances are approximate: three times farther than a voxel reaches is safe.
        border = np.abs(from_centre) < 1.5 * np.linalg.norm(spacing)
        near = self._offsets[border]
        total = np.zeros(len(near))
        for part in np.ndindex(*parts):
            shift = self.geometry.matrix @ ((np.asarray(part) + 0.5) / parts - 0.5)
            total += np.clip(0.5 - distance(near + shift) / edge, 0, 1)
        cover[border] = total / np.prod(parts)
        mean: Floats = cover.reshape(self.shape)
        return mean

    def positions(self) -> Floats:
        """LPS positions, mm, (n, 3), of the voxel centres."""
        lps: Floats = self._offsets + self.centre
        return lps

    def blurred(self, cover: Floats, spread: Spread, *, softness: float = 0.0) -> Floats:
        """Coverage as a scanner sees it; ``softness`` in mm adds to the point spread."""
        sigma = np.hypot(spread.sigma_mm, softness) / np.asarray(self.geometry.spacing_mm)
        seen: Floats = ndimage.gaussian_filter(cover, np.where(sigma < 0.2, 0, sigma))
        return seen


@dataclass(frozen=True)
class Site:
    """Where something is planted: LPS, mm, and the sort of place."""

    center_lps_mm: Triple
    place: Place


_SHELLS = {
    Place.ISOLATED: (0.97, 1.0),
    Place.JUXTAPLEURAL: (0.4, 0.95),
    Place.JUXTAVASCULAR: (0.8, 1.0),
}
"""Which fraction of a nodule's surface lies in the lung, at the places that a host has itself."""


class Sites:
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
        self._rays = directions(rng, 60)

    def choose(
        self, rng: np.random.Generator, diameter_mm: float, visible_below_hu: float
    ) -> Site | None:
        """A place where most of the nodule replaces something darker; None if none is found."""
        radius = diameter_mm / 2
        for _ in range(self._tries):
            place = Place(rng.choice(list(_SHELLS), p=[0.4, 0.3, 0.3]))
            centre = self._propose(rng, place, radius)
            if centre is None or not self._free(centre, diameter_mm):
                continue
            shell = self._lungs.contains(centre + self._rays * radius).mean()
            low, high = _SHELLS[place]
            depths = rng.uniform(0, 1, (len(self._rays), 1)) ** (1 / 3)
            visible = self._hu(centre + self._rays * radius * depths) < visible_below_hu
            seen = visible.mean() >= self._minimum_visible
            if low <= shell <= high and seen and self._lungs.contains(centre[None]).all():
                self._taken.append((centre, diameter_mm))
                return Site(as_triple(centre), place)
        return None

    def at_pleura(
        self,
        rng: np.random.Generator,
        width_mm: float,
        toward: Triple | None = None,
        top_mm: float = np.inf,
    ) -> tuple[Floats, Floats] | None:
        """A free point of the pleura, LPS, mm, and the unit vector there that points inward.

        Args:
            rng: chooses.
            width_mm: what must be free around it.
            toward: if given, the inward vector points within about 50 degrees of it.
            top_mm: at most this far below the top of the lungs, mm.
        """
        high = self._surface[:, 2] > self._surface[:, 2].max() - top_mm
        some = rng.choice(self._surface[high], self._tries)
        inward = self._lungs.inward(some)
        at_surface = np.linalg.norm(inward, axis=1) > 0.5
        facing = np.ones(len(some), bool) if toward is None else inward @ np.asarray(toward) > 0.65
        for centre, vector in zip(
            some[at_surface & facing], inward[at_surface & facing], strict=True
        ):
            if self._free(centre, width_mm):
                self._taken.append((centre, width_mm))
                return centre, vector
        return None

    def _propose(self, rng: np.random.Generator, place: Place, radius: float) -> Floats | None:
        if place is Place.JUXTAVASCULAR and not len(self._vessels):
            return None
        if place is Place.ISOLATED:
            return np.asarray(rng.choice(self._anywhere))
        start = rng.choice(self._surface if place is Place.JUXTAPLEURAL else self._vessels)
        shift = rng.uniform(0.0, 0.9) * radius
        return np.asarray(start + directions(rng, 1)[0] * shift)

    def _free(self, centre: Floats, diameter_mm: float) -> bool:
        # The canonical grid of the lungs may reach a little beyond the scan.
        index = self._geometry.lps_to_index(centre)
        scanned = (index > -0.5).all() and (index < np.asarray(self._geometry.shape) - 0.5).all()
        return bool(scanned) and all(
            np.linalg.norm(centre - other) > (diameter_mm + width) / 2 + 5
            for other, width in self._taken
        )

    def _hu(self, lps_mm: Floats) -> NDArray[np.int16]:
        index = np.rint(self._geometry.lps_to_index(lps_mm)).astype(int)
        z, y, x = np.clip(index, 0, np.asarray(self._geometry.shape) - 1).T
        hu: NDArray[np.int16] = self._host[z, y, x]
        return hu


def texture(
    rng: np.random.Generator, like: Floats, hu: float, unevenness_hu: tuple[float, float] = (5, 25)
) -> Floats:
    """Tissue that is uneven on a scale of one to three voxels, HU.

    Args:
        rng: everything random.
        like: the shape (z, y, x) to return.
        hu: mean.
        unevenness_hu: from and to which standard deviation, HU.
    """
    rough = ndimage.gaussian_filter(rng.normal(size=like.shape), rng.uniform(1.0, 3.0))
    uneven: Floats = hu + rough * (rng.uniform(*unevenness_hu) / max(float(rough.std()), 1e-6))
    return uneven


def fill(
    block: NDArray[np.int16], cover: Floats, tissue_hu: Floats, *, hollow: bool = False
) -> None:
    """Mix tissue into host voxels, in place; the host's noise stays.

    Args:
        block: host voxels, HU.
        cover: the covered fraction, 0 to 1, of each.
        tissue_hu: what to mix in, HU.
        hollow: what is less dense shows through; otherwise what is denser.
    """
    host = block.astype(np.float64)
    calm = ndimage.median_filter(host, (1, 3, 3))
    noise = host - calm
    limit = 3 * 1.4826 * float(np.median(np.abs(noise)))
    mixed_in = np.minimum(tissue_hu, calm) if hollow else np.maximum(tissue_hu, calm)
    filled = mixed_in + np.clip(noise, -limit, limit)
    mixed = host + cover * (filled - host)
    block[...] = np.clip(np.rint(mixed), -1024, 3071).astype(np.int16)
