"""What is planted as no nodule looks like what it is called, and lies where that lies."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models import distractors
from phoi_models.distractors import plant_distractors
from phoi_models.geometry import Geometry
from phoi_models.planting_host import LungSpace, Sites
from phoi_models.volume import Volume

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
RADIUS_MM = 42.0
SEEDS = range(4)


def ball_of_lung() -> tuple[Volume, LungSpace]:
    """A lung as round as a ball in tissue, origin at its middle; millimetres."""
    line = np.arange(-50.0, 51.0)
    z, y, x = np.meshgrid(line, line, line, indexing="ij", sparse=True)
    inside = x**2 + y**2 + z**2 < RADIUS_MM**2
    hu = np.where(inside, -850, 40).astype(np.int16)
    corner = (-50.0, -50.0, -50.0)
    return Volume(hu, Geometry(hu.shape, (1.0, 1.0, 1.0), corner, AXES)), LungSpace(
        inside, corner, 1.0
    )


HOST, LUNGS = ball_of_lung()


def change(name: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """LPS positions from the middle, mm, (n, 3), of the voxels that change, and by how much, HU."""
    rng = np.random.default_rng(seed)
    sites = Sites(HOST.hu, HOST.geometry, LUNGS, rng, ())
    drawn = [getattr(distractors, name)(rng, sites, LUNGS) for _ in range(10)]
    one = next(distractor for distractor in drawn if distractor is not None)
    hu = HOST.hu.copy()
    distractors._plant(hu, HOST, one, LUNGS, rng)
    rise = hu.astype(np.int64) - HOST.hu
    voxels = np.argwhere(np.abs(rise) > 40)
    return HOST.geometry.index_to_lps(voxels), rise[tuple(voxels.T)]


def extents(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Extent along the three main axes, mm, largest first."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    widths: NDArray[np.float64] = np.ptp(centred @ axes.T, axis=0)
    return widths


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["_plaque", "_apical_cap", "_atelectasis"])
def test_what_lines_the_pleura_is_flat_and_touches_it(name: str, seed: int) -> None:
    points, rise = change(name, seed)
    dense = points[rise > 0.5 * rise.max()]
    depth = RADIUS_MM - np.linalg.norm(dense, axis=1)
    assert depth.min() < 1.5
    assert extents(dense)[0] > 2.5 * depth.max()


@pytest.mark.parametrize("seed", SEEDS)
def test_caps_lie_at_the_apex_and_atelectasis_at_the_back(seed: int) -> None:
    cap, _ = change("_apical_cap", seed)
    back, _ = change("_atelectasis", seed)
    assert cap.mean(axis=0)[2] > 0.5 * RADIUS_MM
    assert back.mean(axis=0)[1] > 0.5 * RADIUS_MM


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bronchus_is_a_wall_around_air(seed: int) -> None:
    points, rise = change("_bronchus", seed)
    assert rise.max() > 300
    assert rise.min() < -40
    wall, air = points[rise > 150], points[rise < -40]
    assert len(wall) > len(air)
    apart = np.linalg.norm(air[:, None] - wall[None], axis=2).min(axis=1)
    assert np.median(apart) < 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["_dividing_vessel", "_bent_vessel", "_crossing_vessels", "_mucus_plug"]
)
def test_tubes_are_longer_than_a_nodule_of_their_volume(name: str, seed: int) -> None:
    points, rise = change(name, seed)
    dense = points[rise > 300]
    ball = (6 / np.pi * len(dense)) ** (1 / 3)
    assert extents(dense)[0] > 1.5 * ball


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fissure_is_a_faint_line_and_a_scar_a_dense_band(seed: int) -> None:
    line, faint = change("_fissure", seed)
    band, dense = change("_scar", seed)
    assert 60 < faint.max() < 500
    assert dense.max() > 400
    assert extents(band)[2] < 0.6 * extents(band)[0]
    assert extents(line)[2] < 0.6 * extents(line)[0]


def test_the_seed_decides_and_nothing_outside_the_lung_is_darkened() -> None:
    first, centres = plant_distractors(HOST, LUNGS, 12, rng=np.random.default_rng(3))
    again, _ = plant_distractors(HOST, LUNGS, 12, rng=np.random.default_rng(3))
    assert first.digest() == again.digest() != HOST.digest()
    assert len(centres) >= 4
    outside = HOST.hu > 0
    assert (first.hu[outside] >= HOST.hu[outside]).all()


def test_distractors_avoid_what_they_are_told() -> None:
    avoid = [((0.0, 0.0, 0.0), 40.0)]
    changed, centres = plant_distractors(HOST, LUNGS, 12, rng=np.random.default_rng(2), avoid=avoid)
    assert changed.digest() != HOST.digest()
    assert centres
    assert np.linalg.norm(centres, axis=1).min() > 20
