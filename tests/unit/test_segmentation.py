"""The cube that the segmentation network sees, and the network that is shipped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.findings import LungCoverage
from phoi_models.geometry import Geometry
from phoi_models.lungs import LEFT, LungMask
from phoi_models.phantom import flipped, gantry_tilted
from phoi_models.segmentation import (
    SAMPLES,
    SHIPPED,
    STEP_MM,
    Cube,
    Segmenter,
    cube_positions,
    cut_cube,
    shipped_segmenter,
)
from phoi_models.volume import Volume

UPRIGHT = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
SHAPE, SPACING_MM, ORIGIN_MM = (40, 90, 90), (2.0, 0.8, 0.8), (-36.0, -36.0, -40.0)


def lung_with(hu_of: np.ndarray) -> tuple[Volume, CanonicalGrid, LungMask]:
    volume = Volume(hu_of.astype(np.int16), Geometry(SHAPE, SPACING_MM, ORIGIN_MM, UPRIGHT))
    return volume, *mask_of(volume)


def mask_of(volume: Volume) -> tuple[CanonicalGrid, LungMask]:
    """Lung wherever x is below 10 mm."""
    grid = to_canonical(volume, 1.0)
    x = grid.index_to_lps(np.array([(0, 0, i) for i in range(grid.hu.shape[2])]))[:, 0]
    labels = np.broadcast_to(np.where(x < 10, LEFT, 0), grid.hu.shape).astype(np.uint8)
    return grid, LungMask(labels, 1.0, LungCoverage(apex=True, base=True, volume_ml=1.0))


def places() -> np.ndarray:
    """LPS positions, mm, of all voxels."""
    geometry = Geometry(SHAPE, SPACING_MM, ORIGIN_MM, UPRIGHT)
    return geometry.index_to_lps(np.moveaxis(np.indices(SHAPE), 0, -1))


def ball(diameter_mm: float, hu: float = 40.0) -> np.ndarray:
    """HU, (z, y, x), of a ball about the origin in lung, with partial volume."""
    away = np.linalg.norm(places(), axis=-1)
    values: np.ndarray = -860 + (hu + 860) * np.clip(0.5 + (diameter_mm / 2 - away) / 0.8, 0, 1)
    return values


@settings(max_examples=50, deadline=None)
@given(
    center=st.tuples(*[st.floats(-500, 500)] * 3),
    step_mm=st.floats(*STEP_MM),
    index=st.tuples(*[st.floats(-5, SAMPLES + 5)] * 3),
)
def test_positions_and_indices_of_a_cube_agree(
    center: tuple[float, float, float], step_mm: float, index: tuple[float, float, float]
) -> None:
    block = np.zeros((SAMPLES,) * 3)
    cube = Cube(block.astype(np.float32), block > 0, center, step_mm)
    at = cube.index_to_lps(np.array(index))
    np.testing.assert_allclose(cube.lps_to_index(at), index, atol=1e-6)
    np.testing.assert_allclose(
        cube_positions(center, step_mm)[3, 20, 39], cube.index_to_lps(np.array([3, 20, 39]))
    )


@pytest.mark.parametrize(("diameter", "step"), [(2.0, 0.5), (12.0, 1.0), (80.0, 3.0)])
def test_a_mark_is_twelve_samples_wide_within_limits(diameter: float, step: float) -> None:
    volume, grid, lungs = lung_with(np.full(SHAPE, -860.0))
    assert cut_cube(volume, grid, lungs, (0.0, 0.0, 0.0), diameter).step_mm == step


def test_samples_lie_along_the_axes_of_the_patient_however_it_was_scanned() -> None:
    x, y, z = np.moveaxis(places(), -1, 0)
    volume, grid, lungs = lung_with(-800 + 2 * x + 3 * y - 4 * z)
    center, diameter = (3.0, -2.0, 1.0), 9.6
    cube = cut_cube(volume, grid, lungs, center, diameter)
    x, y, z = np.moveaxis(cube_positions(center, cube.step_mm), -1, 0)
    np.testing.assert_allclose(cube.hu, -800 + 2 * x + 3 * y - 4 * z, atol=1.5)
    assert (cube.lung == (x < 9.5)).mean() > 0.98
    for turned in (flipped(volume, 0, 2), gantry_tilted(volume, 0.0)):
        again = cut_cube(turned, *mask_of(turned), center, diameter)
        np.testing.assert_allclose(again.hu, cube.hu, atol=1.5)


def test_the_outermost_voxels_go_on_beyond_the_scan() -> None:
    volume, grid, lungs = lung_with(np.full(SHAPE, -700.0))
    cube = cut_cube(volume, grid, lungs, (-36.0, -36.0, -40.0), 24.0)
    assert (cube.hu == -700).all()


def test_noise_is_not_aliased_where_samples_lie_far_apart() -> None:
    noise = np.random.default_rng(0).normal(-860, 40, SHAPE)
    volume, grid, lungs = lung_with(noise)
    near, far = (
        cut_cube(volume, grid, lungs, (0.0, 0.0, 0.0), diameter).hu[15:25, 15:25, 15:25].std()
        for diameter in (6.0, 24.0)
    )
    assert far < 0.6 * near


@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0])
def test_the_shipped_network_fills_a_ball(diameter: float) -> None:
    volume, grid, lungs = lung_with(ball(diameter))
    cube = cut_cube(volume, grid, lungs, (0.0, 0.0, 0.0), 1.1 * diameter)
    filled = shipped_segmenter().filled(cube)
    assert filled.min() >= 0
    assert filled.max() <= 1
    found = np.cbrt(6 * filled.sum() / np.pi) * cube.step_mm
    assert found == pytest.approx(diameter, rel=0.1)


def test_of_a_lung_without_a_nodule_the_shipped_network_fills_less_than_the_mark() -> None:
    """It was taught that each mark has a nodule; what it makes up has to stay small."""
    volume, grid, lungs = lung_with(np.full(SHAPE, -860.0))
    for diameter in (5.0, 10.0, 20.0):
        cube = cut_cube(volume, grid, lungs, (-5.0, 0.0, 0.0), diameter)
        filled = shipped_segmenter().filled(cube).sum() * cube.step_mm**3
        assert filled < 0.5 * np.pi / 6 * diameter**3


def test_every_start_of_the_network_says_the_same_to_the_last_bit() -> None:
    volume, grid, lungs = lung_with(ball(8.0))
    cube = cut_cube(volume, grid, lungs, (0.5, 0.0, 0.0), 8.0)
    first, second = (Segmenter(SHIPPED.read_bytes()).filled(cube) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_card_beside_the_network_is_of_this_file() -> None:
    card = (SHIPPED.parent / "README.md").read_text()
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in card
    assert "not a cleared medical device" in card
