"""Laterality is sacred: the picture follows patient coordinates, whatever the storage order."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.web.display import EdgeLabels, display_of
from phoi_models.findings import NoduleMask
from phoi_models.geometry import Geometry, as_triple
from phoi_models.phantom import gantry_tilted
from phoi_models.volume import Volume
from support.fake_desk import ball

# Array axes (z, y, x) of a patient who lies on the back, head first, slices from the feet up.
UPRIGHT = Geometry(
    (12, 20, 24),
    (2.0, 1.0, 1.5),
    (-18.0, -10.0, -12.0),
    ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
)
STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))


def stored(order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The upright patient, a bright voxel on the left, as some scanner or sender may store it."""
    geometry = UPRIGHT
    hu = np.full(geometry.shape, -1000, np.int16)
    hu[9, 4, 21] = 100  # near the head, in front, on the patient's left
    corner = [geometry.shape[a] - 1 if flip else 0 for a, flip in enumerate(flips)]
    axes = [
        as_triple([-c if flip else c for c in axis])
        for axis, flip in zip(geometry.axes_lps, flips, strict=True)
    ]
    hu = hu[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(order)
    shape, spacing = geometry.shape, geometry.spacing_mm
    turned = Geometry(
        (shape[order[0]], shape[order[1]], shape[order[2]]),
        (spacing[order[0]], spacing[order[1]], spacing[order[2]]),
        as_triple(geometry.index_to_lps(corner)),
        (axes[order[0]], axes[order[1]], axes[order[2]]),
    )
    return Volume(np.ascontiguousarray(hu), turned)


@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_every_storage_is_shown_the_same(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = stored(order, flips)
    display = display_of(volume.geometry)
    assert display.geometry.shape == UPRIGHT.shape
    assert display.labels == EdgeLabels(left="R", right="L", top="A", bottom="P")
    # Slice 2 from the head, row 4 from the front, the patient's left on the viewer's right.
    assert display.slice_of(volume.hu, 2)[4, 21] == 100
    where = display.geometry.index_to_lps([2, 4, 21])
    assert where == pytest.approx(UPRIGHT.index_to_lps([9, 4, 21]))
    assert where[0] > 0


@given(st.sampled_from(STORAGES), st.tuples(*[st.floats(-5, 30)] * 3))
def test_a_place_on_the_picture_is_a_place_in_the_patient(
    storage: tuple[tuple[int, ...], tuple[bool, ...]], place: tuple[float, float, float]
) -> None:
    display = display_of(stored(*storage).geometry)
    there = display.geometry.index_to_lps(place)
    assert display.index_of(there) == pytest.approx(place, abs=1e-6)
    assert display_of(UPRIGHT).geometry.index_to_lps(place) == pytest.approx(there, abs=1e-6)


@pytest.mark.parametrize(("order", "flips"), STORAGES)
def test_a_mask_is_shown_where_its_voxels_lie(
    order: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    volume = stored(order, flips)
    display = display_of(volume.geometry)
    center = as_triple(UPRIGHT.index_to_lps([6, 8, 17]))
    mask = display.mask_of(ball(volume, center, 5.0, 0.9).mask)
    voxels = np.argwhere(mask.voxels) + mask.offset
    distance = np.linalg.norm(display.geometry.index_to_lps(voxels) - np.array(center), axis=1)
    assert distance.max() <= 2.5
    assert len(voxels) > 8


@pytest.mark.parametrize("degrees", [-25.0, 25.0])
def test_a_tilted_gantry_keeps_its_sides(degrees: float) -> None:
    volume = stored((0, 1, 2), (False, False, False))
    display = display_of(gantry_tilted(volume, degrees).geometry)
    assert display.labels == EdgeLabels(left="R", right="L", top="A", bottom="P")
    assert display.geometry.index_to_lps([0, 0, 23])[0] > 0


def test_an_oblique_volume_is_turned_to_the_nearest_upright() -> None:
    turn = np.deg2rad(30)
    row = (float(-np.sin(turn)), float(np.cos(turn)), 0.0)
    column = (float(np.cos(turn)), float(np.sin(turn)), 0.0)
    # Stored upside down and mirrored, as from a patient lying on the belly.
    geometry = Geometry(
        (4, 5, 6),
        (2.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
        ((0.0, 0.0, 1.0), as_triple(-np.array(row)), as_triple(-np.array(column))),
    )
    display = display_of(geometry)
    assert display.flipped == (True, True, True)
    assert display.labels == EdgeLabels(left="R", right="L", top="A", bottom="P")


def test_slices_that_do_not_exist() -> None:
    volume = stored((0, 1, 2), (False, False, False))
    display = display_of(volume.geometry)
    for index in (-1, 12):
        with pytest.raises(IndexError):
            display.slice_of(volume.hu, index)


def test_a_mask_of_one_voxel_keeps_its_place() -> None:
    display = display_of(UPRIGHT)
    mask = display.mask_of(NoduleMask((9, 4, 21), np.ones((1, 1, 1), dtype=np.bool_)))
    assert mask.offset == (2, 4, 21)
