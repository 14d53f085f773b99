"""Detectors with anchor boxes, without torch: axes, voxels, patches, decoding, suppression."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.boxes import (
    Boxes,
    clipped,
    decode,
    find_boxes,
    intersection_over_union,
    starts_along,
    suppressed,
    to_input_grid,
)
from phoi_models.bundle import (
    AnchorBoxParameters,
    AnchorLevel,
    Calibration,
    OperatingPoint,
    validate_parameters,
)
from phoi_models.canonical import to_canonical
from phoi_models.detector import Floats, detect
from phoi_models.errors import BadBundle, Cancelled
from phoi_models.findings import LungCoverage, Region, Side
from phoi_models.geometry import Geometry, Triple
from phoi_models.lungs import LEFT, LungMask
from phoi_models.pipeline import analyze_volume
from phoi_models.volume import Volume
from support.chests import LEFT_LUNG_LPS_MM, plain_chest

LEVEL = AnchorLevel(stride=(4, 4, 2), anchors=((6.0, 8.0, 4.0), (10.0, 10.0, 6.0)))
COARSE = AnchorLevel(stride=(8, 8, 4), anchors=((12.0, 16.0, 8.0),))


def parameters(**changes: Any) -> AnchorBoxParameters:
    values: dict[str, Any] = {
        "name": "test",
        "version": "1.0.0",
        "kind": "anchor-box",
        "axes": "RAS",
        "input_spacing_mm": (0.8, 0.8, 1.25),
        "window_hu": (-1000.0, 400.0),
        "patch_shape": (32, 32, 16),
        "overlap": 0.25,
        "levels": (LEVEL, COARSE),
        "score_threshold": 0.1,
        "top_k_per_level": 100,
        "nms_iou": 0.2,
        "most_boxes": 50,
        "calibration": Calibration(slope=1.0, intercept=0.0),
        "operating_points": {"default": OperatingPoint(probability=0.5)},
    }
    return AnchorBoxParameters(**{**values, **changes})


axis_codes = st.permutations(["LR", "PA", "SI"]).flatmap(
    lambda pairs: st.tuples(*(st.sampled_from(pair) for pair in pairs)).map("".join)
)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any of the 48 ways an array can lie along the patient's axes, turned by some degrees."""
    order = draw(st.permutations(range(3)))
    axes = np.eye(3)[list(order)] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    angle = np.radians(draw(st.floats(-20, 20)))
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    rows = [tuple(row) for row in (axes @ turn).tolist()]
    spacing = draw(st.tuples(*[st.floats(0.5, 3.0)] * 3))
    shape = draw(st.tuples(*[st.integers(2, 12)] * 3))
    origin = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return Geometry(shape, spacing, origin, (rows[0], rows[1], rows[2]))


@settings(max_examples=60)
@given(geometry=geometries(), axes=axis_codes, spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3))
def test_a_voxel_of_the_input_grid_holds_what_lies_there_in_the_patient(
    geometry: Geometry, axes: str, spacing: Triple
) -> None:
    slope = np.array([0.31, -0.17, 0.23])  # HU per mm along LPS: tells every shift, flip and swap
    everywhere = geometry.index_to_lps(np.moveaxis(np.indices(geometry.shape), 0, -1))
    exact = (everywhere - geometry.origin_lps_mm) @ slope * 100
    grid = to_input_grid(Volume(np.rint(exact).astype(np.int16), geometry), axes, spacing)

    index = np.moveaxis(np.indices(grid.hu.shape), 0, -1)
    last = np.array(geometry.shape) - 1
    source = geometry.lps_to_index(grid.index_to_lps(index))
    inside = ((source > -1e-6) & (source < last + 1e-6)).all(axis=-1)
    expected = (grid.index_to_lps(index) - geometry.origin_lps_mm) @ slope * 100
    assert inside.any()
    assert np.abs(grid.hu - expected)[inside].max() < 1.0  # of rounding to whole HU
    assert np.allclose(grid.lps_to_index(grid.index_to_lps(index)), index)


@given(geometry=geometries(), axes=axis_codes)
def test_the_axes_of_the_input_grid_grow_to_where_they_say(geometry: Geometry, axes: str) -> None:
    grid = to_input_grid(Volume(np.zeros(geometry.shape, np.int16), geometry), axes, (1, 1, 1))
    toward = {"L": (1, 0, 0), "P": (0, 1, 0), "S": (0, 0, 1)}
    toward |= {"R": (-1, 0, 0), "A": (0, -1, 0), "I": (0, 0, -1)}
    for letter, step in zip(axes, grid.steps_lps_mm, strict=True):
        assert step @ toward[letter] > 0.9


@given(
    cells=st.integers(4, 40),
    patch_cells=st.integers(1, 4),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_patches_cover_the_part_and_lie_on_the_lattice(
    cells: int, patch_cells: int, overlap: float, part: tuple[float, float]
) -> None:
    lattice, size, patch = 8, 8 * cells, 8 * patch_cells
    low, high = sorted(size * fraction for fraction in part)

    starts = starts_along((low, high), size, patch, lattice, overlap)

    assert all(start % lattice == 0 and 0 <= start <= size - patch for start in starts)
    assert starts[0] <= low
    assert starts[-1] + patch >= high
    assert all(
        0 < b - a <= max(patch * (1 - overlap), lattice) for a, b in itertools.pairwise(starts)
    )


def test_an_anchor_of_which_the_network_says_nothing_is_itself_around_the_middle_of_its_cell() -> (
    None
):
    boxes = decode(np.zeros((1, 6)), np.array([[2, 0, 3]]), np.array([0]), LEVEL)

    assert boxes.tolist() == [[10 - 3, 2 - 4, 7 - 2, 10 + 3, 2 + 4, 7 + 2]]


def test_a_box_is_moved_in_parts_of_its_anchor_and_grows_at_most_62_fold() -> None:
    codes = np.array([[0.5, 0.0, -1.0, np.log(2.0), 0.0, 100.0]])
    (box,) = decode(codes, np.array([[0, 0, 0]]), np.array([1]), LEVEL)
    center, extent = (box[:3] + box[3:]) / 2, box[3:] - box[:3]

    assert center == pytest.approx([2 + 5, 2, 1 - 6])
    assert extent == pytest.approx([20, 10, 6 * 62.5])


def test_boxes_are_cut_to_the_image_and_dropped_when_nothing_is_left() -> None:
    corners = np.array([[-2.0, 1, 1, 4, 9, 5], [-9, 1, 1, 0.5, 5, 5]])
    boxes = clipped(Boxes(corners, np.array([0.9, 0.8])), (8, 8, 8))

    assert boxes.corners.tolist() == [[0, 1, 1, 4, 8, 5]]
    assert boxes.scores.tolist() == [0.9]


def test_intersection_over_union_is_that_of_volumes() -> None:
    box = np.array([0.0, 0, 0, 2, 2, 2])
    others = np.array([[0.0, 0, 0, 2, 2, 2], [1, 0, 0, 3, 2, 2], [5, 5, 5, 6, 6, 6]])

    assert intersection_over_union(box, others) == pytest.approx([1.0, 1 / 3, 0.0])


def test_suppression_keeps_the_better_of_two_that_overlap_too_much_and_no_more_than_asked() -> None:
    corners = np.array([[0.0, 0, 0, 2, 2, 2], [1, 0, 0, 3, 2, 2], [5, 5, 5, 6, 6, 6]])
    boxes = Boxes(corners, np.array([0.6, 0.9, 0.7]))

    assert suppressed(boxes, parameters(nms_iou=0.3)).scores.tolist() == [0.9, 0.7]
    assert suppressed(boxes, parameters(nms_iou=0.34)).scores.tolist() == [0.9, 0.7, 0.6]
    assert suppressed(boxes, parameters(nms_iou=0.34, most_boxes=1)).scores.tolist() == [0.9]


class BrightVoxels:
    """Tells the box of 8x8x5 voxels around every voxel at the top of the window, on both levels."""

    def __init__(self) -> None:
        self.patches = 0

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        self.patches += len(patches)
        shapes = parameters().outputs
        outputs = {n: np.zeros((len(patches), *shape), np.float32) for n, shape in shapes.items()}
        for name in ("logits_0", "logits_1"):
            outputs[name][:] = -9.0
        for patch, _, x, y, z in np.argwhere(patches >= 1.0):
            cell = (x // 4, y // 4, z // 2)
            outputs["logits_0"][(patch, 0, *cell)] = 2.0
            shift = (np.array([x, y, z]) - np.array(cell) * (4, 4, 2) - (2, 2, 1)) / (6, 8, 4)
            code = np.array([*shift, *np.log(np.array([8, 8, 5]) / (6, 8, 4))])
            outputs["boxes_0"][(patch, slice(0, 6), *cell)] = code
        return tuple(outputs.values())


def chest(bright_lps_mm: Triple) -> Volume:
    """Air with one bright voxel; the table's axes, 2.5 mm slices."""
    axes: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = Geometry((40, 120, 140), (1.25, 0.8, 0.8), (-60.0, -50.0, -300.0), axes)
    hu = np.full(geometry.shape, -800, np.int16)
    z, y, x = np.rint(geometry.lps_to_index(bright_lps_mm)).astype(int)
    hu[z, y, x] = 400
    return Volume(hu, geometry)


@pytest.mark.parametrize("bright", [(-40.0, -34.0, -270.0), (32.0, 30.0, -260.0)])
@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_a_mark_lies_in_the_patient_where_the_network_saw_it(bright: Triple, axes: str) -> None:
    volume, heads = chest(bright), BrightVoxels()
    canonical = to_canonical(volume, 1.0)
    lungs = LungMask(
        np.full(canonical.hu.shape, LEFT, np.uint8), 1.0, LungCoverage(True, True, 1.0)
    )

    (mark,) = detect(
        canonical, lungs, parameters(axes=axes), heads, volume=volume, region=Region.WHOLE
    )

    assert mark.center_lps_mm == pytest.approx(bright, abs=0.7)  # half a slice
    assert mark.diameter_mm == pytest.approx((8 * 0.8 + 8 * 0.8 + 5 * 1.25) / 3, rel=1e-3)
    assert mark.probability == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)


def test_only_patches_that_touch_the_lungs_are_run() -> None:
    volume, whole, near = chest((32.0, 30.0, -260.0)), BrightVoxels(), BrightVoxels()
    canonical = to_canonical(volume, 1.0)
    labels = np.zeros(canonical.hu.shape, np.uint8)
    labels[35:45, 70:85, 85:95] = LEFT
    lungs = LungMask(labels, 1.0, LungCoverage(True, True, 1.0))
    told: list[float] = []

    detect(canonical, lungs, parameters(), whole, volume=volume, region=Region.WHOLE)
    (mark,) = detect(canonical, lungs, parameters(), near, volume=volume, on_progress=told.append)

    assert mark.center_lps_mm == pytest.approx((32.0, 30.0, -260.0), abs=0.7)
    assert near.patches < whole.patches / 4
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_whole_analysis_ends_in_one_measured_finding_on_its_side() -> None:
    empty, ball = plain_chest(), plain_chest([(LEFT_LUNG_LPS_MM, 16.0)])
    dense = np.where(ball.hu != empty.hu, 500, ball.hu).astype(np.int16)
    coarse = parameters(input_spacing_mm=(2.0, 2.0, 2.5))

    result = analyze_volume(Volume(dense, ball.geometry), coarse, BrightVoxels())

    (finding,) = result.findings
    assert finding.side is Side.LEFT
    assert finding.center_lps_mm == pytest.approx(LEFT_LUNG_LPS_MM, abs=2.0)


def test_it_stops_when_asked() -> None:
    volume = chest((32.0, 30.0, -260.0))
    grid = to_input_grid(volume, "RAS", (0.8, 0.8, 1.25))

    with pytest.raises(Cancelled):
        find_boxes(grid, parameters(), BrightVoxels().run, cancelled=lambda: True)


def test_the_volume_is_needed() -> None:
    canonical = to_canonical(chest((0.0, 0.0, -270.0)), 1.0)
    lungs = LungMask(np.zeros(canonical.hu.shape, np.uint8), 1.0, LungCoverage(True, True, 1.0))

    with pytest.raises(ValueError, match="needs the volume"):
        detect(canonical, lungs, parameters(), BrightVoxels())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"axes": "RAR"}, "axes"),
        ({"axes": "XYZ"}, "axes"),
        ({"patch_shape": (32, 32, 18)}, "patch_shape"),
        ({"window_hu": (0.0, 0.0)}, "window_hu"),
        ({"input_spacing_mm": (0.8, 0.0, 1.0)}, "input_spacing_mm"),
        ({"overlap": 1.0}, "overlap"),
        ({"levels": ()}, "levels"),
        ({"stride": 4}, "stride"),
        ({"operating_points": {}}, "default"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changes: dict[str, Any], where: str) -> None:
    content = {**parameters().model_dump(), **changes}

    with pytest.raises(BadBundle, match=where):
        validate_parameters(content, "phoi")


def test_parameters_come_back_from_json_as_they_were() -> None:
    content = parameters().model_dump(mode="json")

    assert validate_parameters(content, "phoi") == parameters()
