"""Lung mask, sides and coverage on phantoms with a known truth."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import Side
from phoi_models.lungs import LEFT, RIGHT, LungMask, segment_lungs
from phoi_models.phantom import chest_phantom, chest_with_lungs, flipped, gantry_tilted
from phoi_models.volume import Volume

SPACING = (2.5, 1.4, 1.4)


@cache
def truth(seed: int) -> tuple[Volume, np.ndarray]:
    chest = chest_with_lungs(np.random.default_rng(seed), SPACING)
    return chest.volume, chest.lungs


def segmented(volume: Volume, spacing_mm: float = 1.0) -> tuple[CanonicalGrid, LungMask]:
    grid = to_canonical(volume, spacing_mm)
    return grid, segment_lungs(grid.hu, spacing_mm)


def positions(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LPS coordinates, mm, of the voxel centres: x, y, z."""
    index = np.moveaxis(np.indices(volume.geometry.shape), 0, -1)
    x, y, z = np.moveaxis(volume.geometry.index_to_lps(index), -1, 0)
    return x, y, z


def labels_on(volume: Volume, grid: CanonicalGrid, lungs: LungMask) -> np.ndarray:
    """The mask's labels at the voxel centres of a volume."""
    index = np.moveaxis(np.indices(volume.geometry.shape), 0, -1)
    at = np.rint(grid.lps_to_index(volume.geometry.index_to_lps(index))).astype(int)
    at = np.clip(at, 0, np.array(grid.hu.shape) - 1)
    found: np.ndarray = lungs.labels[at[..., 0], at[..., 1], at[..., 2]]
    return found


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


@pytest.mark.parametrize("seed", [0, 1])
def test_both_lungs_of_a_phantom_are_found_on_their_sides(seed: int) -> None:
    volume, lungs = truth(seed)
    grid, mask = segmented(volume)
    found = labels_on(volume, grid, mask)
    for side in (RIGHT, LEFT):
        assert dice(found == side, lungs == side) > 0.96
    assert mask.coverage.complete
    assert mask.coverage.volume_ml == pytest.approx(
        np.count_nonzero(lungs) * np.prod(SPACING) / 1000, rel=0.06
    )


def test_the_trachea_is_not_lung() -> None:
    volume, lungs = truth(0)
    grid, mask = segmented(volume)
    x, y, z = positions(volume)
    lumen = (volume.hu < -930) & (lungs == 0) & (abs(x) < 8) & (abs(y) < 40) & (z > 20) & (z < 100)
    assert np.count_nonzero(lumen) > 1000
    assert np.mean(labels_on(volume, grid, mask)[lumen] == 0) > 0.98


TURNS = {
    "slices reversed": lambda v: flipped(v, 0),
    "prone": lambda v: flipped(v, 1, 2),
    "feet first": lambda v: flipped(v, 0, 2),
    "feet first prone": lambda v: flipped(v, 0, 1),
    "gantry tilted": lambda v: gantry_tilted(v, 15.0),
}


@pytest.mark.parametrize("turn", TURNS)
def test_sides_do_not_depend_on_how_the_patient_was_scanned(turn: str) -> None:
    volume, lungs = truth(0)
    grid, mask = segmented(TURNS[turn](volume), 2.0)
    found = labels_on(volume, grid, mask)
    inside = (found > 0) & (lungs > 0)
    assert np.count_nonzero(inside) > 0.8 * np.count_nonzero(lungs)
    assert np.all(found[inside] == lungs[inside])


@pytest.mark.parametrize(("cut_apex", "cut_base"), [(True, False), (False, True)])
def test_lungs_that_the_scan_cuts_are_not_covered(*, cut_apex: bool, cut_base: bool) -> None:
    volume = chest_phantom(
        np.random.default_rng(2), (2.5, 2.0, 2.0), cut_apex=cut_apex, cut_base=cut_base
    )
    _, mask = segmented(volume, 2.0)
    assert (mask.coverage.apex, mask.coverage.base) == (not cut_apex, not cut_base)
    assert not mask.coverage.complete


FIELDS = {
    "right half": np.s_[:, :, :90],
    "left half": np.s_[:, :, 90:],
    "without the right side": np.s_[:, :, 45:],
    "left side": np.s_[:, :, 135:],
    "front": np.s_[:, :90],
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_view_that_cuts_the_lungs_is_known_and_loses_no_more_of_them(
    field: str,
) -> None:
    grid, whole = segmented(truth(0)[0], 2.0)
    mask = segment_lungs(np.ascontiguousarray(grid.hu[FIELDS[field]]), 2.0)
    there = whole.labels[FIELDS[field]]
    assert dice(mask.inside, there > 0) > 0.97
    both = mask.inside & (there > 0)
    assert np.mean(mask.labels[both] == there[both]) > 0.99
    assert (mask.coverage.apex, mask.coverage.base, mask.coverage.sides) == (True, True, False)


def test_a_round_field_of_view_that_cuts_the_lungs_loses_no_more_of_them() -> None:
    """Beyond it lies air without a chest wall between."""
    grid, whole = segmented(truth(0)[0], 2.0)
    y, x = np.indices(grid.hu.shape[1:])
    seen = (y - 90) ** 2 + (x - 90) ** 2 < (90 / 2) ** 2
    mask = segment_lungs(np.where(seen, grid.hu, np.int16(-1024)), 2.0)
    there = (whole.labels > 0) & seen
    assert np.count_nonzero(there) < 0.9 * np.count_nonzero(whole.labels)
    assert dice(mask.inside, there) > 0.95
    assert not mask.coverage.sides


@pytest.mark.parametrize("margin", [2, 20])
def test_a_field_of_view_close_around_both_lungs_changes_nothing(margin: int) -> None:
    grid, whole = segmented(truth(0)[0], 2.0)
    _, y, x = whole.box
    field = np.s_[:, y.start - margin : y.stop + margin, x.start - margin : x.stop + margin]
    mask = segment_lungs(np.ascontiguousarray(grid.hu[field]), 2.0)
    assert np.array_equal(mask.labels, whole.labels[field])
    assert mask.coverage.complete


def test_severe_emphysema_is_lung() -> None:
    """As dark as gas, but it holds vessels."""
    volume, lungs = truth(0)
    hu = np.where((lungs > 0) & (volume.hu < -700), np.int16(-980), volume.hu)
    grid, mask = segmented(Volume(hu, volume.geometry), 2.0)
    found = labels_on(volume, grid, mask)
    for side in (RIGHT, LEFT):
        assert dice(found == side, lungs == side) > 0.95
    assert mask.coverage.complete


def test_a_volume_without_lungs_is_refused() -> None:
    hu = np.full((60, 100, 100), -1000, np.int16)
    hu[:, 20:80, 20:80] = 40
    with pytest.raises(NotAnalysable) as refusal:
        segment_lungs(hu, 2.0)
    assert refusal.value.reason is NotAnalysableReason.NO_LUNGS


def test_a_missing_lung_does_not_move_the_other_to_its_side() -> None:
    volume, lungs = truth(1)
    for gone, kept in ((LEFT, RIGHT), (RIGHT, LEFT)):
        hu = volume.hu.copy()
        hu[lungs == gone] = 30
        _, mask = segmented(Volume(hu, volume.geometry), 2.0)
        counts = np.bincount(mask.labels.ravel(), minlength=3)
        assert counts[kept] > 50 * counts[gone]


def test_a_nodule_on_the_pleura_is_inside() -> None:
    volume, lungs = truth(0)
    z, y = volume.geometry.shape[0] // 2, volume.geometry.shape[1] // 2
    x = int(np.flatnonzero(lungs[z, y] == LEFT).max())
    center = volume.geometry.index_to_lps((z, y, x - 5))
    index = np.moveaxis(np.indices(volume.geometry.shape), 0, -1)
    ball = ((volume.geometry.index_to_lps(index) - center) ** 2).sum(axis=-1) < 7.5**2
    hu = np.where(ball, np.int16(40), volume.hu)
    grid, mask = segmented(Volume(hu, volume.geometry))
    assert mask.nearest(grid.lps_to_index(center)) == (Side.LEFT, 0.0)
    inside = labels_on(volume, grid, mask)[ball & (lungs > 0)]
    assert np.mean(inside == LEFT) > 0.9


def test_a_loop_of_bowel_under_the_diaphragm_is_not_lung() -> None:
    volume, lungs = truth(0)
    x, y, z = positions(volume)
    column = (lungs == LEFT) & (abs(x - 60) < 2) & (abs(y + 20) < 2)
    dome = float(z[column].min())
    loop = (x - 60) ** 2 + (y + 20) ** 2 + (z - dome + 14) ** 2 < 9**2
    hu = np.where(loop, np.int16(-985), volume.hu)
    grid, mask = segmented(Volume(hu, volume.geometry), 2.0)
    assert np.count_nonzero(loop) > 400
    assert np.mean(labels_on(volume, grid, mask)[loop] > 0) < 0.05


@pytest.mark.parametrize("what", ["effusion behind the lung", "consolidated lower lobe"])
def test_lung_without_air_is_outside_and_the_rest_keeps_its_side(what: str) -> None:
    """A stated limit: the mask is that of the lung that holds air."""
    volume, lungs = truth(1)
    _, y, z = positions(volume)
    airless = (lungs == LEFT) & (y > 40 if what.startswith("effusion") else z < 0.8 * y - 10)
    hu = np.where(airless, np.int16(15), volume.hu)
    grid, mask = segmented(Volume(hu, volume.geometry), 2.0)
    found = labels_on(volume, grid, mask)
    assert np.mean(airless[lungs == LEFT]) > 0.15
    assert np.mean(found[airless] == LEFT) < 0.35
    aerated = (lungs > 0) & ~airless
    assert np.mean(found[aerated] == lungs[aerated]) > 0.93


def two_boxes() -> LungMask:
    labels = np.zeros((40, 50, 60), np.uint8)
    labels[10:30, 10:40, 5:20] = RIGHT
    labels[10:30, 10:40, 40:55] = LEFT
    _, mask = truth_coverage()
    return LungMask(labels, 1.0, mask.coverage)


@cache
def truth_coverage() -> tuple[CanonicalGrid, LungMask]:
    return segmented(truth(0)[0], 2.0)


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.floats(-5, 45), st.floats(-5, 55), st.floats(-5, 65)))
def test_the_side_of_a_point_is_that_of_the_nearest_lung(point: tuple[float, float, float]) -> None:
    lungs = two_boxes()
    side, distance = lungs.nearest(point)
    voxels = np.argwhere(lungs.labels > 0)
    away = np.linalg.norm(voxels - np.array(point), axis=1)
    assert distance == pytest.approx(max(0.0, away.min() - 0.87))
    nearest = {int(lungs.labels[tuple(v)]) for v in voxels[away <= away.min() + 1e-9]}
    assert (RIGHT if side is Side.RIGHT else LEFT) in nearest
