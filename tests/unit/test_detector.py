"""The detector's decoding: patches, peaks, merging, calibration. The network is a stand-in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.bundle import Calibration, DetectorParameters, OperatingPoint, SecondLook
from phoi_models.canonical import CanonicalGrid
from phoi_models.detector import Cancelled, Candidate, Floats, calibrated, cut_patch, detect, merged
from phoi_models.findings import LungCoverage, Region
from phoi_models.lungs import LEFT, RIGHT, LungMask

STRIDE = 4
BRIGHT = 400.0


def parameters(
    patch: int = 32, margin: int = 8, slope: float = 1.0, intercept: float = 0.0
) -> DetectorParameters:
    return DetectorParameters(
        name="test",
        version="1.0.0",
        kind="center-heatmap",
        spacing_mm=1.0,
        window_hu=(-1000.0, BRIGHT),
        patch_shape=(patch, patch, patch),
        stride=STRIDE,
        margin=margin,
        calibration=Calibration(slope=slope, intercept=intercept),
        operating_points={"default": OperatingPoint(probability=0.5)},
    )


class BrightVoxels:
    """Marks the cell of every voxel at the top of the window, exactly where the voxel lies."""

    def __init__(self, score: float = 0.9, diameter_mm: float = 6.0) -> None:
        self.score = score
        self.diameter_mm = diameter_mm
        self.batches: list[int] = []

    def run(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        self.batches.append(len(patches))
        cells = tuple(n // STRIDE for n in patches.shape[2:])
        heat = np.full((len(patches), 1, *cells), 0.001, np.float32)
        offset = np.zeros((len(patches), 3, *cells), np.float32)
        for n, _, z, y, x in np.argwhere(patches >= 1.0):
            cell = (z // STRIDE, y // STRIDE, x // STRIDE)
            heat[(n, 0, *cell)] = self.score
            middle = np.array(cell) * STRIDE + (STRIDE - 1) / 2
            offset[n, :, *cell] = np.array((z, y, x)) - middle
        return heat, np.full_like(heat, self.diameter_mm), offset


def chest(shape: tuple[int, int, int], *bright: tuple[int, int, int]) -> CanonicalGrid:
    hu = np.full(shape, -800, np.int16)
    for voxel in bright:
        hu[voxel] = BRIGHT
    return CanonicalGrid(hu, (-10.0, 20.0, 30.0), 1.0)


def lungs_filling(shape: tuple[int, int, int], border: int = 0) -> LungMask:
    labels = np.zeros(shape, np.uint8)
    inner = tuple(slice(border, n - border) for n in shape)
    labels[inner] = LEFT
    labels[inner[0], inner[1], border : shape[2] // 2] = RIGHT
    return LungMask(labels, 1.0, LungCoverage(apex=True, base=True, volume_ml=1.0))


# The outermost voxels go on beyond the grid, and a bright one with them.
voxel_index = st.tuples(st.integers(1, 48), st.integers(1, 39), st.integers(1, 59))


@given(start=st.tuples(*[st.integers(-20, 20)] * 3), shape=st.tuples(*[st.integers(1, 24)] * 3))
def test_a_patch_beyond_the_grid_goes_on_with_the_outermost_voxels(
    start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    hu = np.random.default_rng(0).integers(-1000, 400, (6, 9, 12)).astype(np.int16)
    low, high = parameters().window_hu
    padded = np.pad((hu - low) / (high - low), 50, mode="edge")
    where = tuple(slice(a + 50, a + 50 + n) for a, n in zip(start, shape, strict=True))
    np.testing.assert_allclose(
        cut_patch(hu, start, shape, parameters()), np.clip(padded[where], 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("voxel", [(0, 0, 0), (49, 40, 60), (0, 20, 60)])
def test_a_mark_at_the_border_lies_in_the_scan(voxel: tuple[int, int, int]) -> None:
    grid = chest((50, 41, 61), voxel)
    lungs = lungs_filling(grid.hu.shape)
    for found in detect(grid, lungs, looking_twice(), BrightVoxels(), second_look=BrightVoxels()):
        index = grid.lps_to_index(found.center_lps_mm)
        assert (index > -1e-6).all()
        assert (index < np.array(grid.hu.shape) - 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(
    voxel=voxel_index,
    tiling=st.sampled_from([(32, 8), (32, 0), (16, 4), (64, 12), (32, 5)]),
    batch=st.integers(1, 5),
)
def test_a_mark_is_found_once_at_its_exact_place_wherever_it_lies(
    voxel: tuple[int, int, int], tiling: tuple[int, int], batch: int
) -> None:
    grid = chest((50, 41, 61), voxel)
    found = detect(
        grid, lungs_filling(grid.hu.shape), parameters(*tiling), BrightVoxels(), batch_size=batch
    )
    assert len(found) == 1
    assert found[0].center_lps_mm == pytest.approx(tuple(grid.index_to_lps(voxel)), abs=1e-4)
    assert found[0].diameter_mm == pytest.approx(6.0)
    assert found[0].probability == pytest.approx(0.9, abs=1e-5)


def test_only_patches_that_touch_the_lungs_are_run() -> None:
    grid = chest((64, 64, 256), (32, 32, 20))
    labels = np.zeros(grid.hu.shape, np.uint8)
    labels[20:44, 20:44, 10:30] = RIGHT
    labels[20:44, 20:44, 220:240] = LEFT
    lungs = LungMask(labels, 1.0, LungCoverage(apex=True, base=True, volume_ml=1.0))
    run: dict[Region, int] = {}
    for region in Region:
        heads = BrightVoxels()
        assert len(detect(grid, lungs, parameters(), heads, region=region)) == 1
        run[region] = sum(heads.batches)
    assert run[Region.LUNGS] < run[Region.WHOLE] / 4


def test_marks_far_from_the_lungs_are_dropped_unless_the_whole_volume_is_asked_for() -> None:
    inside, border, outside = (32, 32, 32), (32, 32, 50), (32, 60, 32)
    grid = chest((64, 64, 64), inside, border, outside)
    lungs = lungs_filling((64, 64, 64), border=16)
    found = detect(grid, lungs, parameters(), BrightVoxels())
    assert {c.center_lps_mm for c in found} == {
        tuple(grid.index_to_lps(v).tolist()) for v in (inside, border)
    }
    assert len(detect(grid, lungs, parameters(), BrightVoxels(), region=Region.WHOLE)) == 3


def test_a_mass_on_the_chest_wall_counts_although_its_middle_lies_outside_the_lung() -> None:
    """A real one of 45 mm on the diaphragm: its middle lay 15 mm outside the lung mask."""
    grid = chest((96, 64, 64), (48, 40, 32))
    lungs = lungs_filling((96, 64, 64), border=4)
    lungs.labels[30:66, 26:, 13:51] = 0  # the mask goes around it
    assert len(detect(grid, lungs, parameters(), BrightVoxels(diameter_mm=40.0))) == 1
    assert detect(grid, lungs, parameters(), BrightVoxels(diameter_mm=20.0)) == ()


def test_a_large_mark_in_the_mediastinum_does_not_count_although_a_lung_is_as_near() -> None:
    """One of 38 mm beside the trachea lay 15.7 mm outside the lung mask."""
    grid = chest((64, 64, 96), (32, 32, 65))
    lungs = lungs_filling((64, 64, 96))
    lungs.labels[..., 50:] = 0
    found = detect(grid, lungs, parameters(), BrightVoxels(diameter_mm=38.0))
    assert found == ()


def test_progress_rises_to_one_and_cancelling_stops_before_the_next_batch() -> None:
    grid = chest((64, 64, 64), (32, 32, 32))
    lungs = lungs_filling((64, 64, 64))
    told: list[float] = []
    heads = BrightVoxels()
    detect(grid, lungs, parameters(), heads, on_progress=told.append, batch_size=4)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) == len(heads.batches) > 2
    heads = BrightVoxels()
    with pytest.raises(Cancelled):
        detect(grid, lungs, parameters(), heads, cancelled=lambda: len(heads.batches) == 2)
    assert len(heads.batches) == 2


def test_a_grid_of_another_spacing_is_refused() -> None:
    grid = CanonicalGrid(np.zeros((8, 8, 8), np.int16), (0, 0, 0), 2.0)
    with pytest.raises(ValueError, match=r"got 2\.0 mm"):
        detect(grid, lungs_filling((8, 8, 8)), parameters(), BrightVoxels())


def candidate(x: float, diameter: float, probability: float) -> Candidate:
    return Candidate((x, 0.0, 0.0), diameter, probability)


@pytest.mark.parametrize(
    ("marks", "left"),
    [
        ([(0, 40, 0.9), (15, 12, 0.8), (-18, 30, 0.7)], [0]),
        ([(0, 12, 0.8), (15, 40, 0.9)], [1]),
        ([(0, 5, 0.9), (6, 5, 0.8)], [0, 1]),
        ([(0, 3, 0.9), (3, 3, 0.8)], [0]),
        ([(0, 8, 0.5), (30, 8, 0.9)], [1, 0]),
    ],
    ids=["mass", "the best mark stays", "neighbours", "plateau", "ranked"],
)
def test_one_lesion_is_one_mark(marks: list[tuple[float, float, float]], left: list[int]) -> None:
    all_marks = [candidate(*mark) for mark in marks]
    assert merged(all_marks) == tuple(all_marks[n] for n in left)


@given(st.lists(st.builds(candidate, st.floats(-99, 99), st.floats(2, 80), st.floats(0, 1))))
def test_merging_keeps_every_lesion_and_is_stable(marks: list[Candidate]) -> None:
    kept = merged(marks)
    assert merged(kept) == kept
    if marks:
        assert max(m.probability for m in marks) == kept[0].probability
    for mark in marks:
        assert any(
            abs(mark.center_lps_mm[0] - k.center_lps_mm[0])
            <= max(mark.diameter_mm / 2, k.diameter_mm / 2, 4.0)
            for k in kept
        )


@given(st.floats(0.01, 0.99), st.floats(0.2, 3), st.floats(-3, 3))
def test_calibration_is_a_sigmoid_of_the_logit(
    score: float, slope: float, intercept: float
) -> None:
    identity = Calibration(slope=1.0, intercept=0.0)
    scores: Callable[[float], Floats] = lambda s: np.array([s], np.float32)  # noqa: E731
    assert calibrated(scores(score), identity)[0] == pytest.approx(score, abs=1e-5)
    two = calibrated(
        np.array([score, 0.995], np.float32), Calibration(slope=slope, intercept=intercept)
    )
    assert 0 < two[0] < two[1] < 1


class Constant:
    """Gives every cell the same score, diameter and offset, and notes what it was shown."""

    def __init__(self, score: float, diameter_mm: float, offset: float = 0.0) -> None:
        self.score, self.diameter_mm, self.offset = score, diameter_mm, offset
        self.seen: list[Floats] = []

    def run(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        self.seen.append(patches)
        cells = (len(patches), 1, *(n // STRIDE for n in patches.shape[2:]))
        heat = np.full(cells, self.score, np.float32)
        offset = np.full((len(patches), 3, *cells[2:]), self.offset, np.float32)
        return heat, np.full_like(heat, self.diameter_mm), offset


def looking_twice(most: int = 10, least_score: float = 0.1) -> DetectorParameters:
    second = SecondLook(patch_shape=(16, 16, 16), least_score=least_score, most=most, weight=0.75)
    return parameters().model_copy(update={"second_look": second})


def test_the_second_look_joins_scores_places_and_sizes() -> None:
    voxel = (21, 18, 30)
    grid = chest((50, 41, 61), voxel)
    lungs = lungs_filling(grid.hu.shape)
    second = Constant(score=0.2, diameter_mm=12.0)
    (found,) = detect(grid, lungs, looking_twice(), BrightVoxels(), second_look=second)
    logit = 0.25 * np.log(0.9 / 0.1) + 0.75 * np.log(0.2 / 0.8)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert found.diameter_mm == pytest.approx(6.0**0.25 * 12.0**0.75, rel=1e-4)
    (patch,) = second.seen
    assert patch.shape == (1, 1, 16, 16, 16)
    assert np.argwhere(patch[0, 0] >= 1.0).tolist() == [[8, 8, 8]], "the mark is in the middle"
    away = np.linalg.norm(np.subtract(found.center_lps_mm, grid.index_to_lps(voxel)))
    assert away <= 0.75 * 5.1, "a cell near the mark, not any of the patch"


@settings(max_examples=20, deadline=None)
@given(voxel=voxel_index)
def test_two_networks_that_agree_change_nothing(voxel: tuple[int, int, int]) -> None:
    grid = chest((50, 41, 61), voxel)
    lungs = lungs_filling(grid.hu.shape)
    (once,) = detect(grid, lungs, parameters(), BrightVoxels())
    twice = detect(grid, lungs, looking_twice(), BrightVoxels(), second_look=BrightVoxels())
    assert twice[0].center_lps_mm == pytest.approx(once.center_lps_mm, abs=1e-3)
    assert twice[0].probability == pytest.approx(once.probability, abs=1e-5)
    assert len(twice) == 1


def test_only_the_foremost_marks_are_looked_at_again() -> None:
    grid = chest((50, 41, 61), (10, 10, 10), (10, 30, 50), (40, 20, 30))
    lungs = lungs_filling(grid.hu.shape)
    for most, least, expected in ((2, 0.1, [0.9, 0.4, 0.4]), (9, 0.95, [0.9] * 3)):
        second = Constant(score=0.4, diameter_mm=6.0)
        how = looking_twice(most, least)
        found = detect(grid, lungs, how, BrightVoxels(), second_look=second)
        assert len(second.seen) == sum(p < 0.9 for p in expected)
        assert sum(c.probability > 0.89 for c in found) == expected.count(0.9)
        assert found == tuple(sorted(found, key=lambda c: -c.probability))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_the_second_look_says_the_same_in_batches(batch: int) -> None:
    grid = chest((50, 41, 61), (10, 10, 10), (10, 30, 50), (40, 20, 30))
    lungs = lungs_filling(grid.hu.shape)
    alone, together = BrightVoxels(0.7, 8.0), BrightVoxels(0.7, 8.0)
    one_by_one = detect(grid, lungs, looking_twice(), BrightVoxels(), second_look=alone)
    found = detect(
        grid, lungs, looking_twice(), BrightVoxels(), second_look=together, batch_size=batch
    )
    assert found == one_by_one
    assert (sum(together.batches), max(together.batches)) == (3, min(batch, 3))


def test_a_second_look_needs_its_network_and_its_parameters() -> None:
    grid = chest((50, 41, 61))
    lungs = lungs_filling(grid.hu.shape)
    with pytest.raises(ValueError, match="second look"):
        detect(grid, lungs, looking_twice(), BrightVoxels())
    with pytest.raises(ValueError, match="second look"):
        detect(grid, lungs, parameters(), BrightVoxels(), second_look=BrightVoxels())


class Attracted:
    """Sees the first bright voxel, whatever it is asked about: one lesion under two marks."""

    def run(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        heat, diameter, offset = BrightVoxels(diameter_mm=5.0).run(patches)
        first = np.argwhere(heat[0, 0] > 0.5)[0]
        heat[:] = 0.001
        heat[0, 0][tuple(first)] = 0.9
        return heat, diameter, offset


def test_marks_that_the_second_look_brings_together_are_one_lesion() -> None:
    grid = chest((50, 41, 61), (20, 20, 20), (20, 20, 24))
    lungs = lungs_filling(grid.hu.shape)
    once = BrightVoxels(diameter_mm=2.0)
    assert len(detect(grid, lungs, parameters(), once)) == 2
    how = looking_twice().model_copy(
        update={
            "second_look": SecondLook(
                patch_shape=(32, 32, 32), least_score=0.1, most=10, weight=0.9
            )
        }
    )
    assert len(detect(grid, lungs, how, once, second_look=Attracted())) == 1


def test_the_second_look_finds_a_cell_on_a_coarse_grid_too() -> None:
    coarse = looking_twice().model_copy(update={"spacing_mm": 2.0})
    grid = CanonicalGrid(chest((50, 41, 61), (29, 29, 29)).hu, (0.0, 0.0, 0.0), 2.0)
    lungs = lungs_filling(grid.hu.shape)
    second = Constant(score=0.5, diameter_mm=6.0)
    (found,) = detect(grid, lungs, coarse, BrightVoxels(diameter_mm=2.0), second_look=second)
    away = np.linalg.norm(np.subtract(found.center_lps_mm, grid.index_to_lps((29, 29, 29))))
    assert away < 8.0


def test_the_second_look_tells_how_far_it_is() -> None:
    grid = chest((50, 41, 61), (10, 10, 10), (10, 30, 50), (40, 20, 30))
    told: list[float] = []
    detect(
        grid,
        lungs_filling(grid.hu.shape),
        looking_twice(),
        BrightVoxels(),
        second_look=BrightVoxels(),
        on_progress=told.append,
    )
    assert told == sorted(told)
    assert len([fraction for fraction in told if 0.75 < fraction < 1]) == 2
    assert told[-1] == 1.0
