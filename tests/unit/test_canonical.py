"""The canonical grid: every voxel stays where it was in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.canonical import PADDING_HU, to_canonical
from phoi_models.geometry import Geometry, Triple
from phoi_models.volume import Volume

UNIT = np.eye(3)


def blob(geometry: Geometry, center_lps_mm: Triple, sigma_mm: float = 6.0) -> Volume:
    """Air with one Gaussian of 1000 HU around a point in the patient."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    distance2 = ((geometry.index_to_lps(index) - center_lps_mm) ** 2).sum(axis=-1)
    return Volume(
        np.rint(-1000 + 1000 * np.exp(-distance2 / (2 * sigma_mm**2))).astype(np.int16), geometry
    )


def centered(shape: tuple[int, int, int], spacing: Triple, axes: np.ndarray) -> Geometry:
    """A block of voxels whose middle is the origin of the patient's coordinates."""
    rows = tuple(tuple(float(v) for v in axis) for axis in axes)
    block = Geometry(shape, spacing, (0.0, 0.0, 0.0), rows)  # type: ignore[arg-type]
    x, y, z = -block.index_to_lps((np.array(shape) - 1) / 2)
    return Geometry(shape, spacing, (float(x), float(y), float(z)), block.axes_lps)


def found_center(volume: Volume, spacing_mm: float) -> np.ndarray:
    """LPS centre of mass of the blob on the canonical grid."""
    grid = to_canonical(volume, spacing_mm)
    weight = np.clip(grid.hu.astype(float) + 950, 0, None)
    index = np.moveaxis(np.indices(grid.hu.shape), 0, -1)
    return grid.index_to_lps((index * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_a_point_stays_where_it_is_in_every_orientation(
    order: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    axes = UNIT[list(order)] * np.array(signs)[:, None]
    volume = blob(centered((30, 36, 40), (2.0, 1.7, 1.4), axes), (4.0, -6.0, 5.0))
    assert found_center(volume, 1.5) == pytest.approx((4.0, -6.0, 5.0), abs=0.15)


@settings(max_examples=25, deadline=None)
@given(
    tilt=st.floats(-30, 30),
    turn=st.floats(-30, 30),
    spacing=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    center=st.tuples(*[st.floats(-8, 8)] * 3),
)
def test_a_point_stays_where_it_is_when_axes_lean(
    tilt: float, turn: float, spacing: Triple, center: Triple
) -> None:
    a, b = np.deg2rad([tilt, turn])
    axes = np.array(
        [[0, 0, 1], [0, np.cos(a), np.sin(a)], [np.cos(b), np.sin(b) * np.cos(a), 0]], dtype=float
    )
    axes[2] /= np.linalg.norm(axes[2])
    shape = tuple(int(60 / s) + 1 for s in spacing)
    volume = blob(centered(shape, spacing, axes), center)  # type: ignore[arg-type]
    assert found_center(volume, 1.5) == pytest.approx(center, abs=0.5)


def test_outside_a_leaning_block_is_padding() -> None:
    axes = np.array([[0, 0, 1], [0, np.cos(0.3), np.sin(0.3)], [1, 0, 0]])
    grid = to_canonical(blob(centered((20, 40, 40), (1.0, 1.0, 1.0), axes), (0, 0, 0)), 1.0)
    assert grid.hu[0, -1, 20] == PADDING_HU
    assert grid.hu[grid.hu.shape[0] // 2, grid.hu.shape[1] // 2, 20] > -50


def test_coarser_voxels_are_means_so_noise_falls() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(0, 100, (24, 24, 24)).astype(np.int16)
    volume = Volume(hu, centered(hu.shape, (0.5, 0.5, 0.5), UNIT[::-1]))
    grid = to_canonical(volume, 1.0)
    assert grid.hu.shape == (12, 12, 12)
    assert grid.hu.std() == pytest.approx(100 / np.sqrt(8), rel=0.1)
    assert grid.hu[0, 0, 0] == pytest.approx(hu[:2, :2, :2].mean(), abs=1)


def test_thin_slices_are_interpolated_linearly_from_thick_ones() -> None:
    ramp = (np.arange(10, dtype=np.int16) * 50)[:, None, None] * np.ones((1, 4, 4), np.int16)
    volume = Volume(ramp, centered(ramp.shape, (5.0, 1.0, 1.0), UNIT[::-1]))
    grid = to_canonical(volume, 1.0)
    assert grid.hu.shape == (50, 4, 4)
    assert np.all(np.diff(grid.hu[3:-3, 0, 0]) == 10)


def test_spacing_must_be_positive() -> None:
    volume = blob(centered((4, 4, 4), (1.0, 1.0, 1.0), UNIT[::-1]), (0, 0, 0))
    with pytest.raises(ValueError, match="positive"):
        to_canonical(volume, 0.0)
