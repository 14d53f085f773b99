"""Slices are ordered by place, whatever their numbering, orientation or tilt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import as_triple
from phoi_models.reading.slice_order import SlicePlace, order_slices

Reason = NotAnalysableReason


def stack(
    count: int = 20,
    spacing: float = 2.5,
    turn: NDArray[np.float64] | None = None,
    lean_degrees: float = 0.0,
) -> list[SlicePlace]:
    """A regular stack, sorted along its normal; ``turn`` rotates the patient, columns first."""
    turn = np.eye(3) if turn is None else turn
    lean = np.deg2rad(lean_degrees)
    # The slice axis leans against the normal, as with a tilted gantry; steps along the normal.
    step = turn @ np.array([0.0, np.tan(lean), 1.0]) * spacing * np.cos(lean)
    origin = np.array([-160.0, -140.0, 30.0])
    return [
        SlicePlace(
            position_lps_mm=as_triple(origin + k * step),
            along_row_lps=as_triple(turn[:, 0]),
            along_column_lps=as_triple(turn[:, 1]),
            pixel_spacing_mm=(0.7, 0.8),
            shape=(64, 48),
            thickness_mm=spacing,
            frame_of_reference_uid="1.2.3",
        )
        for k in range(count)
    ]


def refusal(places: list[SlicePlace]) -> NotAnalysable:
    with pytest.raises(NotAnalysable) as caught:
        order_slices(places)
    return caught.value


def rotations() -> st.SearchStrategy[NDArray[np.float64]]:
    """Transverse, within 20 degrees: head or feet first, supine, prone or lying on a side."""

    def build(roll: float, pitch: float, spin: float, *, feet_first: bool) -> NDArray[np.float64]:
        def about(axis: int, angle: float) -> NDArray[np.float64]:
            matrix = np.eye(3)
            i, j = [k for k in range(3) if k != axis]
            matrix[i, i] = matrix[j, j] = np.cos(angle)
            matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
            return matrix

        flip = np.diag([-1.0, 1.0, -1.0]) if feet_first else np.eye(3)
        result: NDArray[np.float64] = about(0, pitch) @ about(1, roll) @ about(2, spin) @ flip
        return result

    small = st.floats(-0.24, 0.24)
    return st.builds(build, small, small, st.floats(-3.2, 3.2), feet_first=st.booleans())


@given(
    turn=rotations(),
    lean_degrees=st.floats(-30, 30),
    spacing=st.floats(0.4, 5.0),
    count=st.integers(2, 40),
    data=st.data(),
)
def test_every_stack_comes_back_in_order_and_in_place(
    turn: NDArray[np.float64], lean_degrees: float, spacing: float, count: int, data: st.DataObject
) -> None:
    places = stack(count, spacing, turn, lean_degrees)
    shuffle = data.draw(st.permutations(range(count)))

    stacked = order_slices([places[k] for k in shuffle])

    assert [shuffle[index] for index in stacked.order] == list(range(count))
    for k, place in enumerate(places):
        assert np.allclose(stacked.geometry.index_to_lps((k, 0, 0)), place.position_lps_mm)
    row, column = 63, 47
    far = places[0].position_lps_mm + turn[:, 1] * row * 0.7 + turn[:, 0] * column * 0.8
    assert np.allclose(stacked.geometry.index_to_lps((0, row, column)), far)
    assert stacked.geometry.spacing_mm[0] == pytest.approx(spacing)
    # Right-handed, so that left and right cannot change places unseen.
    z, y, x = np.asarray(stacked.geometry.axes_lps)
    assert np.dot(np.cross(x, y), z) > 0


@given(data=st.data(), count=st.integers(6, 40), spacing=st.floats(0.5, 5.0))
def test_a_missing_slice_is_named(data: st.DataObject, count: int, spacing: float) -> None:
    places = stack(count, spacing)
    inner = data.draw(st.sets(st.integers(1, count - 2), min_size=1, max_size=(count - 2) // 3))
    left = [place for k, place in enumerate(places) if k not in inner]

    found = refusal(left)

    assert found.reason is Reason.MISSING_SLICES
    assert found.detail == f"{len(inner)} of {count} slices are missing"


def test_small_differences_of_spacing_may_not_add_up() -> None:
    """Each step passes for an even one; in the middle they are 0.75 mm off."""
    steps = [5.05] * 30 + [4.95] * 29
    depths = np.concatenate([[0.0], np.cumsum(steps)])
    places = [
        replace(p, position_lps_mm=(0.0, 0.0, float(z)))
        for p, z in zip(stack(60, 5.0), depths, strict=True)
    ]
    found = refusal(places)
    assert found.reason is Reason.INCONSISTENT_GEOMETRY
    assert "do not lie evenly on one line" in found.detail


def test_a_slice_that_is_turned_a_little_is_no_millimetre_off_at_its_far_corner() -> None:
    places = [replace(place, shape=(512, 512)) for place in stack(10)]
    places[4] = replace(places[4], along_column_lps=(0.0, 0.999998, 0.0019))
    assert refusal(places).reason is Reason.INCONSISTENT_GEOMETRY


@given(
    spacing=st.sampled_from([0.5, 0.625, 0.75, 1.0, 1.25, 2.5, 5.0]),
    decimals=st.sampled_from([1, 2, 3]),
    lean_degrees=st.sampled_from([0.0, 12.0, 27.5]),
    count=st.integers(20, 600),
)
def test_a_slice_lies_where_the_geometry_says_whatever_its_header_was_rounded_to(
    spacing: float, decimals: int, lean_degrees: float, count: int
) -> None:
    places = [
        replace(p, position_lps_mm=as_triple(np.round(p.position_lps_mm, decimals)))
        for p in stack(count, spacing, lean_degrees=lean_degrees)
    ]
    geometry = order_slices(places).geometry
    found = geometry.index_to_lps([(z, 0, 0) for z in range(count)])
    given_mm = np.array([place.position_lps_mm for place in places])
    assert np.linalg.norm(found - given_mm, axis=1).max() <= 1.5 * 10**-decimals


def test_positions_rounded_to_a_tenth_are_still_a_regular_stack() -> None:
    rounded = [
        replace(p, position_lps_mm=as_triple(np.round(p.position_lps_mm, 1)))
        for p in stack(count=100, spacing=0.625)
    ]

    assert order_slices(rounded).geometry.spacing_mm[0] == pytest.approx(0.625, abs=0.002)


def test_slices_at_the_same_place_are_named() -> None:
    places = stack(10)
    assert refusal([*places, places[3]]).reason is Reason.DUPLICATE_SLICES
    assert refusal([*places, places[3]]).detail == "1 of 11 slices lie where another one lies"


def test_uneven_spacing_is_named() -> None:
    places = stack(10)
    x, y, z = places[-1].position_lps_mm
    places[-1] = replace(places[-1], position_lps_mm=(x, y, z + 0.9))
    assert refusal(places).reason is Reason.MISSING_SLICES


def test_five_millimetres_are_accepted_and_more_are_not() -> None:
    assert order_slices(stack(spacing=5.0)).geometry.spacing_mm[0] == pytest.approx(5.0)
    assert refusal(stack(spacing=5.2)).reason is Reason.SLICES_TOO_THICK
    overlapping = [replace(place, thickness_mm=8.0) for place in stack(spacing=4.0)]
    assert refusal(overlapping).reason is Reason.SLICES_TOO_THICK


def test_coronal_and_sagittal_series_are_not_axial() -> None:
    coronal = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    sagittal = np.array([[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0]])
    assert refusal(stack(turn=coronal)).reason is Reason.NOT_AXIAL
    assert refusal(stack(turn=sagittal)).reason is Reason.NOT_AXIAL


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (64, 64)},
        {"pixel_spacing_mm": (0.7, 0.9)},
        {"along_column_lps": (0.0, 0.9962, 0.0872)},
        {"frame_of_reference_uid": "1.2.4"},
        {"position_lps_mm": (-120.0, -140.0, 52.5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_slice_unlike_the_others_is_inconsistent(change: dict[str, object]) -> None:
    places = stack(10)
    places[9] = replace(places[9], **change)  # type: ignore[arg-type]
    found = refusal(places)
    assert found.reason in {Reason.INCONSISTENT_GEOMETRY, Reason.MISSING_SLICES}


def test_one_slice_is_no_volume() -> None:
    assert refusal(stack(1)).reason is Reason.TOO_FEW_SLICES
    assert refusal([]).reason is Reason.TOO_FEW_SLICES


@pytest.mark.parametrize(
    "change",
    [
        {"along_row_lps": (1.0, 1.0, 0.0)},
        {"along_row_lps": (0.0, 1.0, 0.0)},
        {"position_lps_mm": (float("nan"), 0.0, 0.0)},
        {"pixel_spacing_mm": (0.0, 0.7)},
        {"shape": (0, 48)},
    ],
)
def test_an_impossible_slice_cannot_be_built(change: dict[str, object]) -> None:
    with pytest.raises(NotAnalysable) as caught:
        replace(stack(1)[0], **change)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.INCONSISTENT_GEOMETRY
