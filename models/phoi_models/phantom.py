"""A procedural chest: anatomy without limit, without a patient, and with its truth.

Body, ribs, spine, five lobes with their fissures, trachea and bronchi, tapering and branching
vessels, heart, diaphragm, gastric gas, table, partial volume, kernel, dose and correlated noise, in
Hounsfield units.
It is made for tests and as one of the backgrounds of training; it is no model of a real person.

Coordinates are patient coordinates (LPS, mm) with the origin near the carina. Arrays are
(z, y, x) on the canonical grid: z grows to the head, y to the back, x to the patient's left.
Vessel trees fill the lung by recursive halving of the territory they supply; radii follow
Murray's law (the cube of the parent is the sum of the cubes of its children).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from phoi_models.findings import Lobe
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.planting_host import LungSpace
from phoi_models.volume import Volume

RIGHT_LUNG, LEFT_LUNG = 1, 2

_Float = NDArray[np.float32]
_Points = NDArray[np.float64]

_FIELD_OF_VIEW_MM = 358.0
_BOTTOM_MM, _TOP_MM = -175.0, 165.0
_FINEST_SLICE_MM = 1.5  # thicker slices are averaged from thinner ones: partial volume


class Kernel(StrEnum):
    """How a reconstruction weighs fine detail against noise."""

    SOFT = "soft"
    STANDARD = "standard"
    SHARP = "sharp"


@dataclass(frozen=True)
class Acquisition:
    """How a phantom is scanned.

    Attributes:
        kernel: soft ones blur edges and noise, sharp ones enhance both.
        dose: relative; noise grows with its inverse square root.
        slice_mm: slice thickness, mm; None if slices neither overlap nor leave gaps.

    Raises:
        ValueError: dose or slice thickness is not positive.
    """

    kernel: Kernel = Kernel.STANDARD
    dose: float = 1.0
    slice_mm: float | None = None

    def __post_init__(self) -> None:
        if self.dose <= 0 or (self.slice_mm is not None and self.slice_mm <= 0):
            raise ValueError("dose and slice thickness are positive")

    @classmethod
    def draw(cls, rng: np.random.Generator, spacing_z_mm: float) -> Acquisition:
        """Any kernel, a tenth of the full dose to twice it, up to twofold overlap of slices."""
        kernel = Kernel(rng.choice(list(Kernel)))
        dose = float(np.exp(rng.uniform(np.log(0.1), np.log(2.0))))
        return cls(kernel, dose, spacing_z_mm * rng.uniform(1.0, 2.0))


@dataclass(frozen=True, eq=False)
class Chest:
    """A phantom and its truth.

    Attributes:
        volume: the CT.
        lungs: uint8 array (z, y, x) on the grid of the volume: 0, ``RIGHT_LUNG``, ``LEFT_LUNG``;
            airways and vessels inside a lung count as lung.
        lobes: as ``lungs``: 0, or one more than the position of the lobe in ``Lobe``.
    """

    volume: Volume
    lungs: NDArray[np.uint8]
    lobes: NDArray[np.uint8]

    def space(self, spacing_mm: float = 1.0) -> LungSpace:
        """Where nodules can be planted, with the true lobes, on an isotropic grid, mm."""
        geometry = self.volume.geometry
        nearest = []
        for count, step in zip(geometry.shape, geometry.spacing_mm, strict=True):
            centres = np.arange(int((count - 1) * step / spacing_mm) + 1) * spacing_mm
            nearest.append(np.rint(centres / step).astype(int))
        lobes = self.lobes[np.ix_(*nearest)]
        return LungSpace(lobes > 0, geometry.origin_lps_mm, spacing_mm, lobes)


@dataclass(frozen=True)
class _Anatomy:
    """The dimensions, mm, and attenuations, HU, of one phantom."""

    scale: float
    apex_mm: float
    right_dome_mm: float
    left_dome_mm: float
    heart_mm: Triple
    fat_mm: float
    blood_hu: float
    lung_hu: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Anatomy:
        """A random adult."""
        dome = rng.uniform(-85.0, -65.0)
        size = rng.uniform(0.9, 1.1)
        return cls(
            scale=rng.uniform(0.93, 1.05),
            apex_mm=rng.uniform(115.0, 135.0),
            right_dome_mm=dome,
            left_dome_mm=dome - rng.uniform(5.0, 20.0),
            heart_mm=(50.0 * size, 42.0 * size, 52.0 * size),
            fat_mm=rng.uniform(8.0, 22.0),
            blood_hu=rng.choice([40.0, 180.0]) + rng.uniform(-10.0, 25.0),
            lung_hu=rng.uniform(-890.0, -830.0),
        )


@dataclass(frozen=True)
class _Canvas:
    """Voxels to paint on, and the LPS coordinates, mm, of their centres as open axes."""

    hu: _Float
    z: _Float
    y: _Float
    x: _Float
    spacing: Triple

    def paint(self, coverage: NDArray[np.floating], hu: float | _Float) -> None:
        """Mix ``hu`` in by the covered fraction (0 to 1) of every voxel."""
        change = np.float32(hu) - self.hu if isinstance(hu, float) else hu - self.hu
        change *= coverage
        self.hu[...] += change

    def box(self, low: ArrayLike, high: ArrayLike) -> tuple[slice, slice, slice]:
        """Slices (z, y, x) of the voxels between two LPS corners, mm."""
        bounds = []
        corners = np.stack([low, high])[:, ::-1]
        for ends, values in zip(corners.T, (self.z, self.y, self.x), strict=True):
            start, stop = np.searchsorted(values.ravel(), ends)
            bounds.append(slice(int(start), int(stop)))
        return (bounds[0], bounds[1], bounds[2])

    def crop(self, box: tuple[slice, slice, slice]) -> _Canvas:
        """A part of the canvas; painting on it paints on the whole."""
        zs, ys, xs = box
        return _Canvas(self.hu[box], self.z[zs], self.y[ys], self.x[:, xs], self.spacing)


def chest_phantom(
    rng: np.random.Generator,
    spacing_mm: Triple = (2.5, 1.4, 1.4),
    *,
    noise_hu: float = 20.0,
    cut_apex: bool = False,
    cut_base: bool = False,
    acquisition: Acquisition | None = None,
) -> Volume:
    """The CT of a random chest without nodules.

    Args:
        rng: the only source of randomness; the same state gives the same voxels.
        spacing_mm: voxel spacing (z, y, x), mm.
        noise_hu: standard deviation of the noise at full dose, HU.
        cut_apex: leave out the top of the lungs.
        cut_base: leave out the lowest part of the lungs.
        acquisition: kernel, dose and slice thickness; if not given a standard kernel, full dose
            and slices as thick as they lie apart.

    Returns:
        About 340 x 358 x 358 mm, axes along (S, P, L).
    """
    return chest_with_lungs(
        rng,
        spacing_mm,
        noise_hu=noise_hu,
        cut_apex=cut_apex,
        cut_base=cut_base,
        acquisition=acquisition,
    ).volume


def chest_with_lungs(
    rng: np.random.Generator,
    spacing_mm: Triple = (2.5, 1.4, 1.4),
    *,
    noise_hu: float = 20.0,
    cut_apex: bool = False,
    cut_base: bool = False,
    acquisition: Acquisition | None = None,
) -> Chest:
    """As :func:`chest_phantom`, with the true lungs and lobes."""
    scan = acquisition or Acquisition()
    anatomy = _Anatomy.draw(rng)
    thinner = int(np.ceil(spacing_mm[0] / _FINEST_SLICE_MM))
    bottom = -50.0 if cut_base else _BOTTOM_MM
    top = 70.0 if cut_apex else _TOP_MM
    canvas = _blank(spacing_mm, thinner, bottom, top)

    _paint_body(canvas, anatomy)
    lungs, lobes = _paint_lungs(canvas, anatomy, rng)
    _paint_mediastinum(canvas, anatomy)
    _paint_abdomen(canvas, anatomy, rng)
    _paint_bones(canvas, anatomy)
    _paint_airways(canvas)
    for side in (RIGHT_LUNG, LEFT_LUNG):
        _paint_vessels(canvas, anatomy, lungs, side, rng)
    _paint_table(canvas)

    thickness = scan.slice_mm or spacing_mm[0]
    hu = _reconstructed(
        _slices(canvas.hu, thinner, thickness / canvas.spacing[0]), scan.kernel, spacing_mm
    )
    hu += _noise(hu.shape, noise_hu / np.sqrt(scan.dose), scan.kernel, rng)
    first = (
        float(canvas.x[0, 0]),
        float(canvas.y[0, 0]),
        float(canvas.z.ravel()[:thinner].mean()),
    )
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = Geometry(shape, spacing_mm, first, axes)
    volume = Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), geometry)
    middle = slice(thinner // 2, None, thinner)
    return Chest(volume, lungs[middle].copy(), lobes[middle].copy())


def flipped(volume: Volume, *axes: int) -> Volume:
    """The same patient with array axes reversed: as read from another scanning direction.

    Args:
        volume: any volume.
        axes: array axes to reverse, of (0, 1, 2) = (z, y, x). ``0`` is slices in reverse order,
            ``(1, 2)`` the image of a patient lying on the belly.

    Returns:
        Every voxel keeps its LPS position.
    """
    geometry = volume.geometry
    corner = [geometry.shape[axis] - 1 if axis in axes else 0 for axis in range(3)]
    x, y, z = geometry.index_to_lps(corner)
    directions = tuple(
        (0.0 - a[0], 0.0 - a[1], 0.0 - a[2]) if axis in axes else a
        for axis, a in enumerate(geometry.axes_lps)
    )
    turned = Geometry(
        geometry.shape,
        geometry.spacing_mm,
        (float(x), float(y), float(z)),
        (directions[0], directions[1], directions[2]),
    )
    return Volume(np.ascontiguousarray(np.flip(volume.hu, axes)), turned)


def gantry_tilted(volume: Volume, degrees: float) -> Volume:
    """The same patient scanned with a tilted gantry: table moves along z, slices lean in y.

    Args:
        volume: axes along (S, P, L).
        degrees: tilt about the left-right axis; positive moves the back of a slice to the head.

    Returns:
        Same shape; the slice axis stays along z, the row axis leans, so the axes are not
        orthogonal. Interpolated linearly; air outside.
    """
    geometry = volume.geometry
    angle = np.deg2rad(degrees)
    row_axis = (0.0, float(np.cos(angle)), float(np.sin(angle)))
    middle = geometry.shape[1] / 2 * geometry.spacing_mm[1]
    x, y, z = geometry.origin_lps_mm
    origin = (x, y + middle * (1 - row_axis[1]), z - middle * row_axis[2])
    tilted = Geometry(
        geometry.shape,
        geometry.spacing_mm,
        origin,
        (geometry.axes_lps[0], row_axis, geometry.axes_lps[2]),
    )
    to_index = np.linalg.inv(geometry.matrix)
    hu = ndimage.affine_transform(
        volume.hu.astype(np.float32),
        to_index @ tilted.matrix,
        to_index @ (np.asarray(origin) - np.asarray(geometry.origin_lps_mm)),
        order=1,
        cval=-1000.0,
    )
    return Volume(np.rint(hu).astype(np.int16), tilted)


def _blank(spacing_mm: Triple, thinner: int, bottom: float, top: float) -> _Canvas:
    dz, dy, dx = spacing_mm
    slices = round((top - bottom) / dz)
    ny, nx = round(_FIELD_OF_VIEW_MM / dy), round(_FIELD_OF_VIEW_MM / dx)
    z = bottom + (np.arange(slices * thinner, dtype=np.float32) + 0.5) * (dz / thinner)
    y = (np.arange(ny, dtype=np.float32) - (ny - 1) / 2) * dy
    x = (np.arange(nx, dtype=np.float32) - (nx - 1) / 2) * dx
    hu = np.full((z.size, ny, nx), -1000.0, np.float32)
    spacing = (dz / thinner, dy, dx)
    z, y, x = (values.astype(np.float32) for values in (z, y, x))
    return _Canvas(hu, z[:, None, None], y[:, None], x[None], spacing)


def _inside(distance_mm: NDArray[np.floating], edge_mm: float = 1.5) -> _Float:
    """Covered fraction from a signed distance (negative inside), mm."""
    covered: _Float = np.clip(0.5 - distance_mm / np.float32(edge_mm), 0, 1, dtype=np.float32)
    return covered


def _ellipse(canvas: _Canvas, centre: tuple[float, float], radii: tuple[float, float]) -> _Float:
    """About the signed distance, mm, to an upright elliptic cylinder; shape (y, x)."""
    u = (canvas.x - centre[0]) / radii[0]
    v = (canvas.y - centre[1]) / radii[1]
    distance: _Float = (np.hypot(u, v) - 1) * np.float32(min(radii))
    return distance


def _ellipsoid(canvas: _Canvas, centre: Triple, radii: Triple) -> _Float:
    """About the signed distance, mm, to an ellipsoid; centre and radii (x, y, z)."""
    squares = ((canvas.x - centre[0]) / radii[0]) ** 2 + ((canvas.y - centre[1]) / radii[1]) ** 2
    squares = squares + ((canvas.z - centre[2]) / radii[2]) ** 2
    distance: _Float = (np.sqrt(squares) - 1) * np.float32(min(radii))
    return distance


def _paint_ellipsoid(canvas: _Canvas, centre: Triple, radii: Triple, hu: float) -> None:
    low, high = np.array(centre) - radii - 2, np.array(centre) + radii + 2
    part = canvas.crop(canvas.box(low, high))
    part.paint(_inside(_ellipsoid(part, centre, radii)), hu)


def _paint_body(canvas: _Canvas, anatomy: _Anatomy) -> None:
    """Skin and fat around muscle."""
    radii = (158.0 * anatomy.scale, 112.0 * anatomy.scale)
    skin = _ellipse(canvas, (0.0, 5.0), radii)
    canvas.paint(_inside(skin)[None], -95.0)
    canvas.paint(_inside(skin + np.float32(anatomy.fat_mm))[None], 50.0)


def _paint_lungs(
    canvas: _Canvas, anatomy: _Anatomy, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two lungs on their domes, with parenchyma and fissures; labels of the lungs and lobes."""
    labels = np.zeros(canvas.hu.shape, np.uint8)
    lobes = np.zeros(canvas.hu.shape, np.uint8)
    for side, low, high in ((RIGHT_LUNG, -150.0, 0.0), (LEFT_LUNG, 0.0, 150.0)):
        box = canvas.box((low, -110.0, -1e3), (high, 110.0, anatomy.apex_mm + 2))
        part = canvas.crop(box)
        distance = _lung_distance(part, anatomy, side)
        inside = distance < 0
        part.paint(_inside(distance), anatomy.lung_hu + _smooth_texture(part, rng))
        labels[box][inside] = side
        lean, height = rng.uniform(0.7, 1.1), rng.uniform(-20.0, 0.0)
        above = ((part.z - height - lean * part.y) / np.hypot(1.0, lean)).astype(np.float32)
        _paint_fissure(part, above, distance < -1)
        lobes[box] = _lobes(part, above, height, side) * inside
        if side == RIGHT_LUNG:
            _paint_fissure(part, part.z - _horizontal_mm(height), (distance < -1) & (above > 0))
    return labels, lobes


def _paint_fissure(canvas: _Canvas, above_mm: _Float, where: NDArray[np.bool_]) -> None:
    """A surface thinner than a voxel, at distance 0."""
    fissure = np.clip(1.0 - np.abs(above_mm) / np.float32(1.2), 0, 0.12)
    canvas.paint(fissure * where, 0.0)


def _horizontal_mm(oblique_mm: float) -> float:
    """Height, LPS z, of the horizontal fissure for that of the oblique one at y = 0."""
    return oblique_mm + 18.0


def _lobes(canvas: _Canvas, above_mm: _Float, height: float, side: int) -> NDArray[np.uint8]:
    """One more than the position of each voxel's lobe in ``Lobe``, (z, y, x).

    Upper lobes (and the right middle one, below the horizontal fissure) lie in front of the
    oblique fissure, lower lobes behind it.
    """
    number = {lobe: position for position, lobe in enumerate(Lobe, start=1)}
    if side == LEFT_LUNG:
        front: int | NDArray[np.int_] = number[Lobe.LEFT_UPPER]
        behind = number[Lobe.LEFT_LOWER]
    else:
        higher = canvas.z > _horizontal_mm(height)
        front = np.where(higher, number[Lobe.RIGHT_UPPER], number[Lobe.RIGHT_MIDDLE])
        behind = number[Lobe.RIGHT_LOWER]
    return np.where(above_mm > 0, front, behind).astype(np.uint8)


def _lung_distance(canvas: _Canvas, anatomy: _Anatomy, side: int) -> _Float:
    """About the signed distance, mm, to one lung's surface."""
    sign = 1.0 if side == LEFT_LUNG else -1.0
    a, b = 53.0 * anatomy.scale, 86.0 * anatomy.scale
    rise = np.clip((canvas.z - 10.0) / (anatomy.apex_mm - 10.0), 0, 1)
    narrowing = np.maximum((1 - rise**2.4) ** 0.55, 1e-3).astype(np.float32)
    centre = sign * (64.0 * anatomy.scale - 24.0 * (1 - narrowing))
    u, v = (canvas.x - centre) / (a * narrowing), canvas.y / (b * narrowing)
    wall = (np.sqrt(u**2 + v**2) - 1) * (a * narrowing)
    top = anatomy.left_dome_mm if side == LEFT_LUNG else anatomy.right_dome_mm
    dome = top - 70.0 * (
        ((canvas.x - sign * 60.0) / a) ** 2 * 0.6 + ((canvas.y + 20.0) / b) ** 2 * 0.7
    )
    wall = np.maximum(wall, canvas.z * -1 + dome)
    heart = _ellipsoid(canvas, _heart_centre(anatomy), anatomy.heart_mm)
    spine = _ellipse(canvas, (0.0, 62.0 * anatomy.scale), (22.0, 24.0))
    away: _Float = np.maximum(np.maximum(wall, -heart), -spine[None]).astype(np.float32)
    return away


def _heart_centre(anatomy: _Anatomy) -> Triple:
    return (22.0, -28.0, anatomy.right_dome_mm + 28.0)


def _smooth_texture(canvas: _Canvas, rng: np.random.Generator) -> _Float:
    """Parenchyma: denser towards the back, and patchy on a scale of centimetres; HU."""
    sizes = zip(canvas.hu.shape, canvas.spacing, strict=True)
    coarse = rng.normal(0.0, 1.0, [max(2, int(n * step / 8)) for n, step in sizes])
    coarse = ndimage.gaussian_filter(coarse, 1.0)
    coarse *= 14.0 / coarse.std()
    factors = [n / c for n, c in zip(canvas.hu.shape, coarse.shape, strict=True)]
    patchy = ndimage.zoom(coarse.astype(np.float32), factors, order=1)
    dense: _Float = patchy + np.float32(0.35) * canvas.y
    return dense


def _paint_mediastinum(canvas: _Canvas, anatomy: _Anatomy) -> None:
    """Heart, aorta with its arch, pulmonary trunks."""
    x, y, z = anatomy.heart_mm
    _paint_ellipsoid(canvas, _heart_centre(anatomy), (x, y, z), 45.0)
    _paint_ellipsoid(canvas, _heart_centre(anatomy), (x - 12, y - 12, z - 12), anatomy.blood_hu)
    arch = [(-12.0, -25.0, -10.0), (-10.0, -22.0, 35.0), (6.0, 0.0, 52.0), (20.0, 30.0, 35.0)]
    path = np.array([*arch, (20.0, 42.0, 0.0), (14.0, 42.0, -170.0)])
    _paint_tube(canvas, path, 12.0, anatomy.blood_hu)
    for sign in (-1.0, 1.0):
        trunk = np.array([(8.0, -20.0, 0.0), (sign * 24.0, -2.0, 2.0), (sign * 36.0, 4.0, -4.0)])
        _paint_tube(canvas, trunk, 9.0, anatomy.blood_hu)


def _paint_abdomen(canvas: _Canvas, anatomy: _Anatomy, rng: np.random.Generator) -> None:
    """Liver below the right dome, gas in the stomach below the left one."""
    liver = (-55.0, 0.0, anatomy.right_dome_mm - 75.0)
    _paint_ellipsoid(canvas, liver, (70.0, 75.0, 62.0), 65.0)
    radii = as_triple(rng.uniform(12.0, 24.0, 3))
    below = anatomy.left_dome_mm - 20.0 - max(radii)
    _paint_ellipsoid(canvas, (55.0, -25.0, below), radii, -990.0)


def _paint_bones(canvas: _Canvas, anatomy: _Anatomy) -> None:
    """Vertebral column with discs, canal and spinous processes; sternum; twelve pairs of ribs."""
    back = 62.0 * anatomy.scale
    body = _ellipse(canvas, (0.0, back), (18.0, 15.0))
    level = np.abs((canvas.z % 24.0) - 12.0)
    disc = np.clip((level - 9.5) / 2, 0, 1).astype(np.float32)
    canvas.paint(_inside(body)[None] * (1 - 0.8 * disc), 450.0)
    canvas.paint(_inside(body + 2)[None] * (1 - disc), 170.0)
    canvas.paint(_inside(_ellipse(canvas, (0.0, back + 23), (9.0, 7.0)))[None], 35.0)
    spinous = _inside(_ellipse(canvas, (0.0, back + 38), (5.0, 9.0)))[None]
    canvas.paint(spinous * (1 - disc), 350.0)
    _paint_ellipsoid(canvas, (0.0, -86.0 * anatomy.scale, 30.0), (16.0, 7.0, 75.0), 250.0)
    for path in _rib_paths(anatomy):
        _paint_tube(canvas, path, 5.0, 480.0)
        _paint_tube(canvas, path, 3.2, 180.0)


def _rib_paths(anatomy: _Anatomy) -> Iterator[_Points]:
    """Centre lines (points, LPS mm) of the ribs, from the spine around each lung, sloping down."""
    angle = np.linspace(0.0, 0.8 * np.pi, 24)
    for height in np.arange(-150.0, 150.0, 24.0):
        for sign in (-1.0, 1.0):
            z = height + 30.0 - 60.0 * angle / np.pi
            rise = np.clip((z - 10.0) / (anatomy.apex_mm - 10.0), 0, 0.9)
            narrowing = (1 - rise**2.4) ** 0.55
            x = 64.0 * anatomy.scale - 24.0 * (1 - narrowing)
            x = x + (53.0 * anatomy.scale * narrowing + 8) * np.sin(angle)
            y = (86.0 * anatomy.scale * narrowing + 8) * np.cos(angle)
            arc = np.stack([sign * x, y, z], axis=1)
            head = [(sign * 20.0, 66.0 * anatomy.scale, z[0] + 4)]
            yield np.concatenate([head, arc])


def _paint_airways(canvas: _Canvas) -> None:
    """Trachea and main bronchi with their walls."""
    carina = (0.0, 12.0, 12.0)
    trachea = np.array([(0.0, 8.0, _TOP_MM + 20), carina])
    bronchi = [np.array([carina, (s * 22, 12, -6), (s * 38, 10, -16)]) for s in (-1.0, 1.0)]
    tubes = [(trachea, 9.0), *((bronchus, 6.5) for bronchus in bronchi)]
    for path, radius in tubes:
        _paint_tube(canvas, path, radius + 1.5, 30.0)
    for path, radius in tubes:
        _paint_tube(canvas, path, radius, -1000.0)


def _paint_vessels(
    canvas: _Canvas,
    anatomy: _Anatomy,
    lungs: NDArray[np.uint8],
    side: int,
    rng: np.random.Generator,
) -> None:
    """An artery tree with bronchi beside it, and a vein tree, within one lung."""
    sign = 1.0 if side == LEFT_LUNG else -1.0
    territory = np.argwhere(lungs[::4, ::4, ::4] == side) * 4
    for hilum, bronchi in (((sign * 34.0, 8.0, -4.0), True), ((sign * 30.0, 0.0, -22.0), False)):
        chosen = territory[rng.choice(len(territory), 450)]
        points = np.stack(
            [canvas.x[0, chosen[:, 2]], canvas.y[chosen[:, 1], 0], canvas.z[chosen[:, 0], 0, 0]],
            axis=1,
        ).astype(np.float64)
        for start, end, radius in _tree(points, np.array(hilum), rng):
            if bronchi and radius > 1.3:
                beside = np.array([0.0, 1.0, -0.6]) * (1.9 * radius)
                tube = np.stack([start, end]) + beside
                _paint_tube(canvas, tube, 0.95 * radius, -150.0, lungs, side)
                _paint_tube(canvas, tube, 0.7 * radius, -990.0, lungs, side)
            _paint_tube(canvas, np.stack([start, end]), radius, anatomy.blood_hu, lungs, side)


def _tree(
    points: _Points, root: _Points, rng: np.random.Generator
) -> Iterator[tuple[_Points, _Points, float]]:
    """Segments (start, end, radius mm) of a tree that supplies every point."""
    leaf_radius = rng.uniform(0.5, 0.65)
    pending = [(points, root)]
    while pending:
        supplied, start = pending.pop()
        centre = supplied.mean(axis=0)
        reach = 1.0 if len(supplied) == 1 else rng.uniform(0.4, 0.65)
        end = start + reach * (centre - start)
        if len(supplied) > 1:
            end += rng.normal(0.0, 0.06, 3) * np.linalg.norm(centre - start)
        yield start, end, leaf_radius * len(supplied) ** (1 / 3)
        if len(supplied) == 1:
            continue
        direction = np.linalg.svd(supplied - centre, full_matrices=False)[2][0]
        order = np.argsort(supplied @ direction)
        cut = int(np.clip(round(len(order) * rng.uniform(0.3, 0.7)), 1, len(order) - 1))
        pending += [(supplied[order[:cut]], end), (supplied[order[cut:]], end)]


def _paint_tube(
    canvas: _Canvas,
    path: _Points,
    radius: float,
    hu: float,
    lungs: NDArray[np.uint8] | None = None,
    side: int = 0,
) -> None:
    """A round tube along a path (points, LPS mm), if given only inside one lung."""
    for start, end in itertools.pairwise(path):
        margin = radius + 2.0
        box = canvas.box(np.minimum(start, end) - margin, np.maximum(start, end) + margin)
        part = canvas.crop(box)
        dz, dy, dx = part.z - start[2], part.y - start[1], part.x - start[0]
        along = end - start
        length2 = max(float(along @ along), 1e-6)
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length2, 0, 1)
        gap = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2
        # A tube thinner than the edge fills only part of a voxel: keep its cross section.
        covered = _inside(np.sqrt(gap) - radius) * np.float32(min(1.0, radius / 0.75))
        if lungs is not None:
            covered *= lungs[box] == side
        part.paint(covered, hu)


def _paint_table(canvas: _Canvas) -> None:
    """A carbon shell filled with foam, under the back."""
    curve = canvas.y - (128.0 - (canvas.x / 60.0) ** 2 * 3.0)
    within = np.abs(canvas.x) < 150
    foam = np.where(within, _inside(np.abs(curve - 12.0) - 12.0), 0)
    shell = np.where(within, _inside(np.abs(np.abs(curve - 12.0) - 12.0) - 1.0), 0)
    canvas.paint(foam[None].astype(np.float32), -930.0)
    canvas.paint(shell[None].astype(np.float32), -100.0)


def _slices(hu: _Float, thinner: int, thickness: float) -> _Float:
    """Average thin slices into thick ones; both numbers count thin slices, the first is a step."""
    width = max(1, round(thickness))
    if width != thinner:
        hu = ndimage.uniform_filter1d(hu, width, axis=0, mode="nearest")
        chosen: _Float = np.ascontiguousarray(hu[thinner // 2 :: thinner][: len(hu) // thinner])
        return chosen
    count = hu.shape[0] // thinner
    means: _Float = hu[: count * thinner].reshape(count, thinner, *hu.shape[1:]).mean(axis=1)
    return means


_SOFT_MM, _SHARP_MM, _OVERSHOOT = 0.6, 0.9, 0.7


def _reconstructed(hu: _Float, kernel: Kernel, spacing: Triple) -> _Float:
    """What a kernel does to edges, in plane."""
    if kernel is Kernel.STANDARD:
        return hu
    width = _SOFT_MM if kernel is Kernel.SOFT else _SHARP_MM
    blurred: _Float = ndimage.gaussian_filter(hu, (0, width / spacing[1], width / spacing[2]))
    return blurred if kernel is Kernel.SOFT else hu + np.float32(_OVERSHOOT) * (hu - blurred)


_GRAIN = {
    Kernel.SOFT: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    Kernel.STANDARD: (0.25, 0.5, 0.25),
    Kernel.SHARP: (-0.25, 1.0, -0.25),
}


def _noise(
    shape: tuple[int, ...], sigma_hu: float, kernel: Kernel, rng: np.random.Generator
) -> _Float:
    """Noise of a standard deviation for the standard kernel, HU, correlated in plane.

    A kernel changes its grain and its strength: a soft one has less of it, a sharp one more.
    """
    taps = np.array(_GRAIN[kernel], np.float32)
    grain = rng.standard_normal(shape, dtype=np.float32)
    for axis in (1, 2):
        grain = ndimage.convolve1d(grain, taps, axis)
    strength = {Kernel.SOFT: 0.6, Kernel.STANDARD: 1.0, Kernel.SHARP: 1.8}[kernel]
    noise: _Float = grain * np.float32(sigma_hu * strength / float(taps @ taps))
    return noise
