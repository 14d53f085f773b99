"""Measurement of nodules of known size, in every orientation, with and without neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import Candidate
from phoi_models.findings import Attenuation, Finding, LungCoverage, Side
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import LEFT, RIGHT, LungMask
from phoi_models.measure import measure
from phoi_models.phantom import flipped, gantry_tilted
from phoi_models.segmentation import SAMPLES, Cube, Segmenter
from phoi_models.volume import Volume

LUNG_HU, TISSUE_HU = -860.0, 40.0
HALF_MM = 48.0
UPRIGHT = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
WALL_X = 20.0
"""Left of this (LPS x, mm) is chest wall; the lung right of x = -20 is the right one."""


class Scene:
    """Lung with a wall, painted finer than its voxels, so that edges have partial volume."""

    def __init__(self, spacing: Triple = (2.5, 0.7, 0.7), noise_hu: float = 15.0) -> None:
        self.shape = tuple(int(2 * HALF_MM / s) for s in spacing)
        self.finer = (max(1, round(spacing[0] / 0.7)), 2, 2)
        z, y, x = (
            (np.arange(n * f) + 0.5) * s / f - HALF_MM
            for n, s, f in zip(self.shape, spacing, self.finer, strict=True)
        )
        self.z, self.y, self.x = z[:, None, None], y[None, :, None], x[None, None, :]
        self.hu = np.full((len(z), len(y), len(x)), LUNG_HU, np.float32)
        self.spacing, self.noise_hu = spacing, noise_hu
        self.lung = np.ones_like(self.hu, dtype=bool)

    def wall(self) -> Scene:
        self.lung = np.broadcast_to(self.x < WALL_X, self.hu.shape)
        self.hu[~self.lung] = TISSUE_HU
        return self

    def ellipsoid(self, center: Triple, radii: Triple, hu: float = TISSUE_HU) -> Scene:
        """Centre and radii in LPS order (x, y, z), mm."""
        parts = zip((self.x, self.y, self.z), center, radii, strict=True)
        self.hu[sum(((a - c) / r) ** 2 for a, c, r in parts) <= 1] = hu
        return self

    def ball(self, center: Triple, diameter: float, hu: float = TISSUE_HU) -> Scene:
        return self.ellipsoid(center, (diameter / 2,) * 3, hu)

    def vessel(self, center: Triple, diameter: float) -> Scene:
        """A cylinder along the head-foot axis."""
        across = (self.x - center[0]) ** 2 + (self.y - center[1]) ** 2
        self.hu[np.broadcast_to(across <= (diameter / 2) ** 2, self.hu.shape)] = TISSUE_HU
        return self

    def volume(self) -> Volume:
        (z, fz), (y, fy), (x, fx) = zip(self.shape, self.finer, strict=True)
        hu = self.hu.reshape(z, fz, y, fy, x, fx).mean(axis=(1, 3, 5))
        hu = hu + np.random.default_rng(0).normal(0, self.noise_hu, hu.shape)
        origin = tuple(s / 2 - HALF_MM for s in self.spacing[::-1])
        geometry = Geometry((z, y, x), self.spacing, origin, UPRIGHT)  # type: ignore[arg-type]
        return Volume(np.rint(hu).astype(np.int16), geometry)


def lungs_of(grid: CanonicalGrid, *, wall: bool = False) -> LungMask:
    """Everything inside the block is lung, right of x = 0 the right one, but for the wall."""
    x = grid.index_to_lps(np.array([(0, 0, i) for i in range(grid.hu.shape[2])]))[:, 0]
    labels = np.broadcast_to(np.where(x < 0, RIGHT, LEFT), grid.hu.shape).astype(np.uint8)
    labels[..., x >= WALL_X] *= not wall
    labels[grid.hu < -1500] = 0
    return LungMask(labels, grid.spacing_mm, LungCoverage(apex=True, base=True, volume_ml=1.0))


def measured(volume: Volume, center: Triple, diameter: float, *, wall: bool = False) -> Finding:
    grid = to_canonical(volume, 1.0)
    return measure(volume, Candidate(center, diameter, 0.9), grid, lungs_of(grid, wall=wall))


def mask_volume(volume: Volume, finding: Finding) -> float:
    return np.count_nonzero(finding.mask.voxels) * volume.geometry.voxel_volume_mm3


@settings(max_examples=12, deadline=None)
@given(
    diameter=st.floats(5, 15),
    place=st.tuples(*[st.floats(-6, 6)] * 3),
    error=st.tuples(*[st.floats(-1, 1)] * 3),
    guess=st.floats(0.8, 1.25),
    thickness=st.sampled_from([0.7, 1.25, 2.5]),
)
def test_a_solid_ball_is_measured_to_within_a_voxel(
    diameter: float, place: Triple, error: Triple, guess: float, thickness: float
) -> None:
    volume = Scene((thickness, 0.7, 0.7)).ball(place, diameter).volume()
    marked = (place[0] + error[0], place[1] + error[1], place[2] + error[2])
    found = measured(volume, marked, diameter * guess)
    assert found.mean_diameter_mm == pytest.approx(diameter, abs=0.8)
    assert found.center_lps_mm == pytest.approx(place, abs=0.5)
    assert found.volume_mm3 == pytest.approx(mask_volume(volume, found))
    assert found.attenuation is Attenuation.SOLID
    assert found.solid_diameter_mm is None


def test_balls_of_5_to_15_mm_have_almost_no_bias() -> None:
    diameters = np.linspace(5, 15, 9)
    places = np.random.default_rng(1).uniform(-5, 5, (len(diameters), 3))
    errors, ratios = [], []
    for diameter, place in zip(diameters, places, strict=True):
        center = (float(place[0]), float(place[1]), float(place[2]))
        found = measured(Scene().ball(center, diameter).volume(), center, diameter)
        errors.append(found.mean_diameter_mm - diameter)
        ratios.append(found.volume_mm3 / (np.pi / 6 * diameter**3))
    assert abs(np.mean(errors)) < 0.3
    assert 1.96 * np.std(errors) < 0.8
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def test_long_and_short_axis_of_an_ellipsoid_lie_in_the_patient() -> None:
    volume = Scene().ellipsoid((2, -3, 1), (9, 6, 6)).volume()
    found = measured(volume, (2, -3, 1), 15)
    assert found.long_axis_mm == pytest.approx(18, abs=0.8)
    assert found.short_axis_mm == pytest.approx(12, abs=0.8)
    assert found.mean_diameter_mm == round((found.long_axis_mm + found.short_axis_mm) / 2, 1)
    for line, length in (
        (found.long_axis_lps_mm, found.long_axis_mm),
        (found.short_axis_lps_mm, found.short_axis_mm),
    ):
        assert np.linalg.norm(np.subtract(*line)) == pytest.approx(length, abs=1e-3)
        assert line[0][2] == pytest.approx(line[1][2])
    along = np.subtract(*found.long_axis_lps_mm) / found.long_axis_mm
    across = np.subtract(*found.short_axis_lps_mm) / found.short_axis_mm
    assert abs(along[0]) > 0.95
    assert abs(along @ across) < 1e-6


TURNS = {
    "slices reversed": lambda v: flipped(v, 0),
    "prone": lambda v: flipped(v, 1, 2),
    "feet first": lambda v: flipped(v, 0, 2),
    "feet first prone": lambda v: flipped(v, 0, 1),
    "gantry tilted": lambda v: gantry_tilted(v, 18.0),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("x", [-12.0, 12.0])
def test_place_size_and_side_do_not_depend_on_how_the_patient_was_scanned(
    turn: str, x: float
) -> None:
    place = (x, 4.0, -5.0)
    volume = TURNS[turn](Scene((1.25, 0.7, 0.7)).ball(place, 11).volume())
    found = measured(volume, place, 10)
    assert found.center_lps_mm == pytest.approx(place, abs=0.6)
    assert found.mean_diameter_mm == pytest.approx(11, abs=0.8)
    assert found.volume_mm3 == pytest.approx(np.pi / 6 * 11**3, rel=0.12)
    assert found.side is (Side.RIGHT if x < 0 else Side.LEFT)
    voxel = np.array(found.mask.offset) + np.argwhere(found.mask.voxels).mean(axis=0)
    assert volume.geometry.index_to_lps(voxel) == pytest.approx(place, abs=0.6)


def test_a_vessel_is_cut_off() -> None:
    scene = Scene().vessel((3.5, 0.0, 0.0), 3.0).ball((0.0, 0.0, 0.0), 9)
    found = measured(scene.volume(), (0, 0, 0), 9)
    assert found.mean_diameter_mm == pytest.approx(9, abs=1.2)
    assert found.volume_mm3 == pytest.approx(np.pi / 6 * 9**3, rel=0.3)


def test_a_nodule_on_the_pleura_is_cut_from_the_chest_wall() -> None:
    scene = Scene().wall().ball((WALL_X - 4.0, 0.0, 0.0), 10)
    found = measured(scene.volume(), (WALL_X - 4.0, 0, 0), 10, wall=True)
    assert found.mean_diameter_mm == pytest.approx(9.5, abs=1.2)
    assert found.side is Side.LEFT


@pytest.mark.parametrize("guess", [25.0, 40.0])
def test_a_mass_is_measured_whole_even_when_the_network_thinks_it_smaller(guess: float) -> None:
    found = measured(Scene().ball((1, 2, 3), 36).volume(), (1, 2, 3), guess)
    assert found.mean_diameter_mm == pytest.approx(36, abs=1.0)


def test_ground_glass_is_non_solid() -> None:
    volume = Scene(noise_hu=40).ball((0, 0, 0), 14, hu=-580).volume()
    found = measured(volume, (0, 0, 0), 13)
    assert found.attenuation is Attenuation.NON_SOLID
    assert found.mean_diameter_mm == pytest.approx(14, abs=1.2)
    assert found.mean_hu == pytest.approx(-590, abs=50)


def test_a_part_solid_nodule_has_a_solid_part() -> None:
    scene = Scene((1.25, 0.7, 0.7)).ball((0, 0, 0), 18, hu=-560).ball((2, 0, 0), 8)
    found = measured(scene.volume(), (0, 0, 0), 17)
    assert found.attenuation is Attenuation.PART_SOLID
    assert found.mean_diameter_mm == pytest.approx(18, abs=1.5)
    assert found.solid_diameter_mm == pytest.approx(8, abs=1.0)


def test_a_cavity_belongs_to_its_nodule() -> None:
    scene = Scene().ball((0, 0, 0), 20).ball((0, 0, 0), 12, hu=-950)
    found = measured(scene.volume(), (0, 0, 0), 19)
    assert found.mean_diameter_mm == pytest.approx(20, abs=1.0)
    assert found.volume_mm3 == pytest.approx(np.pi / 6 * 20**3, rel=0.15)


@pytest.mark.parametrize(
    "place", [(0.0, 0.0, 0.0), (WALL_X + 12.0, 0.0, 0.0), (-47.5, -47.5, 47.5)]
)
@pytest.mark.parametrize("diameter", [2.0, 8.0, 60.0])
def test_a_mark_on_nothing_is_measured_as_the_network_drew_it(
    place: Triple, diameter: float
) -> None:
    volume = Scene().wall().volume()
    found = measured(volume, place, diameter, wall=True)
    assert found.mask.voxels.any()
    assert found.volume_mm3 == pytest.approx(mask_volume(volume, found))
    assert 0 < found.short_axis_mm <= found.long_axis_mm + 1e-6
    assert found.long_axis_mm < 1.6 * diameter + 4


class BeyondTheEdge(Segmenter):
    """Sees the half of a ball of twelve samples that lies to the patient's right of the mark."""

    def __init__(self) -> None: ...

    def filled(self, cube: Cube) -> NDArray[np.float32]:
        index = np.moveaxis(np.indices(cube.hu.shape), 0, -1) - (SAMPLES - 1) / 2
        inside = (np.linalg.norm(index, axis=-1) < 6) & (index[..., 2] < -1)
        filled: NDArray[np.float32] = inside.astype(np.float32)
        return filled


def test_a_nodule_that_is_seen_beyond_the_scan_only_is_a_voxel_at_its_edge() -> None:
    volume = Scene().volume()
    place = volume.geometry.index_to_lps((19, 60, 0))
    grid = to_canonical(volume, 1.0)
    mark = Candidate(as_triple(place), 8.0, 0.9)
    found = measure(volume, mark, grid, lungs_of(grid), BeyondTheEdge())
    assert found.mask.voxels.sum() == 1
    assert found.center_lps_mm == pytest.approx(tuple(place), abs=1.5)


def test_a_tiny_nodule_between_thick_slices_still_has_a_voxel() -> None:
    volume = Scene((5.0, 0.7, 0.7)).ball((0, 0, 0.1), 3.0).volume()
    found = measured(volume, (0, 0, 0), 3)
    assert found.mask.voxels.any()
    assert found.mean_diameter_mm < 6
