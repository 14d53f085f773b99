"""Agreement of measurements with planted truth, and sizes of readers' outlines: the statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_models.findings import Attenuation
from phoi_models.planting import Place
from phoi_training.measurement import (
    Measured,
    agreement,
    between,
    reader_size,
    repeatability,
    solid_part_errors,
    table,
)
from phoi_training.readings import Outline

ROW = Measured(
    host="a chest",
    slice_mm=2.5,
    attenuation=Attenuation.SOLID,
    place=Place.ISOLATED,
    diameter_mm=10.0,
    volume_mm3=520.0,
    solid_diameter_mm=None,
    found_attenuation=Attenuation.SOLID,
    found_diameter_mm=10.5,
    found_volume_mm3=550.0,
    found_solid_diameter_mm=None,
)
errors = st.lists(st.floats(-50, 50), min_size=2, max_size=30)


def test_the_limits_are_those_of_bland_and_altman() -> None:
    found = agreement([-1.0, 0.0, 1.0, 2.0])
    assert found.count == 4
    assert found.bias == pytest.approx(0.5)
    assert found.spread == pytest.approx(1.96 * (5 / 3) ** 0.5)
    assert (found.lower, found.upper) == pytest.approx((0.5 - 2.5303, 0.5 + 2.5303), abs=1e-3)


@given(errors, st.floats(-20, 20))
def test_a_constant_error_moves_the_bias_only(values: list[float], shift: float) -> None:
    before, after = agreement(values), agreement([value + shift for value in values])
    assert after.bias == pytest.approx(before.bias + shift, abs=1e-6)
    assert after.spread == pytest.approx(before.spread, abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_limits_of_too_few_or_impossible_errors_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="errors"):
        agreement(values)


def test_a_size_group_holds_its_lower_end_only() -> None:
    rows = [replace(ROW, diameter_mm=size) for size in (4.9, 5.0, 14.9, 15.0)]
    assert [row.diameter_mm for row in between(rows, 5.0, 15.0)] == [5.0, 14.9]


def test_solid_parts_count_where_they_are_and_are_seen() -> None:
    both = replace(ROW, solid_diameter_mm=6.0, found_solid_diameter_mm=5.5)
    unseen = replace(ROW, solid_diameter_mm=6.0)
    imagined = replace(ROW, found_solid_diameter_mm=5.5)
    assert solid_part_errors([ROW, both, unseen, imagined]) == [-0.5]


def test_the_table_names_groups_of_two_and_more() -> None:
    rows = [ROW, replace(ROW, found_diameter_mm=9.5), replace(ROW, diameter_mm=20.0)]
    lines = table(rows).splitlines()
    assert "| solid, 8 to 15 mm | 2 | +0.00 | -1.39 to +1.39 |" in lines
    assert not any("15 to 30" in line for line in lines)


def test_the_coefficient_of_variation_is_the_spread_over_the_mean() -> None:
    assert replace(ROW, again_mm=(9.0, 10.0, 11.0)).variation == pytest.approx(0.1)
    with pytest.raises(ValueError, match="two measurements"):
        _ = replace(ROW, again_mm=(9.0,)).variation


def test_how_repeatable_sizes_are_is_told_by_true_size() -> None:
    steady, loose = replace(ROW, again_mm=(10.0, 10.0)), replace(ROW, again_mm=(9.0, 10.0, 11.0))
    lines = repeatability([steady, loose, replace(steady, diameter_mm=20.0)]).splitlines()
    assert "| 8 to 15 mm | 2 | 5.0 | 9.0 | 10.0 |" in lines
    assert "| 15 to 30 mm | 1 | 0.0 | 0.0 | 0.0 |" in lines


def test_the_size_of_an_outline_is_that_of_the_lesion_within_it() -> None:
    """A rectangle of 12 x 8 pixels on two slices, and a smaller one; outlines lie half outside."""
    large = np.array([(10, 20), (22, 20), (22, 28), (10, 28)], dtype=np.float64)
    small = (large - large.mean(axis=0)) / 2
    outline = Outline(((0.0, small), (2.5, large), (5.0, large)))
    found = reader_size(outline, 0.5, 2.5)
    long_axis, angle = np.hypot(12, 8), 2 * np.arctan2(8, 12)
    short_axis = long_axis * np.sin(angle)
    assert found.mean_diameter_mm == pytest.approx((long_axis + short_axis) / 2 * 0.5 - 0.5)
    assert found.volume_mm3 == pytest.approx((96 + 96 + 24) * 0.25 * 2.5)
