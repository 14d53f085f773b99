"""Provisional size classes against the tables of Lung-RADS v2022 and Fleischner 2017."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_models.findings import Attenuation
from phoi_models.size_class import Basis, SizeClass, classify

SOLID, PART_SOLID, NON_SOLID = Attenuation.SOLID, Attenuation.PART_SOLID, Attenuation.NON_SOLID
ORDER = ("2", "3", "4A", "4B")
sizes = st.floats(0.5, 80)


@pytest.mark.parametrize(
    ("diameter", "lung_rads", "fleischner"),
    [
        (3.0, "2", "<6 mm"),
        (5.4, "2", "<6 mm"),
        (5.5, "2", "6-8 mm"),
        (5.94, "2", "6-8 mm"),
        (5.95, "3", "6-8 mm"),
        (6.0, "3", "6-8 mm"),
        (7.9, "3", "6-8 mm"),
        (8.0, "4A", "6-8 mm"),
        (8.4, "4A", "6-8 mm"),
        (8.5, "4A", ">8 mm"),
        (14.9, "4A", ">8 mm"),
        (15.0, "4B", ">8 mm"),
    ],
)
def test_solid_by_mean_diameter(diameter: float, lung_rads: str, fleischner: str) -> None:
    assert classify(SOLID, diameter) == SizeClass(lung_rads, fleischner, Basis.MEAN_DIAMETER)


@pytest.mark.parametrize(
    ("volume", "lung_rads", "fleischner"),
    [
        (99.9, "2", "<100 mm3"),
        (100.0, "2", "100-250 mm3"),
        (112.9, "2", "100-250 mm3"),
        (113.0, "3", "100-250 mm3"),
        (250.0, "3", "100-250 mm3"),
        (250.1, "3", ">250 mm3"),
        (268.0, "4A", ">250 mm3"),
        (1766.9, "4A", ">250 mm3"),
        (1767.0, "4B", ">250 mm3"),
    ],
)
def test_solid_by_volume(volume: float, lung_rads: str, fleischner: str) -> None:
    assert classify(SOLID, 6.0, volume_mm3=volume) == SizeClass(lung_rads, fleischner, Basis.VOLUME)


@pytest.mark.parametrize(
    ("total", "solid", "lung_rads"),
    [
        (5.9, 5.0, "2"),
        (6.0, 5.9, "3"),
        (20.0, None, "3"),
        (9.0, 6.0, "4A"),
        (9.0, 7.9, "4A"),
        (9.0, 8.0, "4B"),
    ],
)
def test_part_solid(total: float, solid: float | None, lung_rads: str) -> None:
    found = classify(PART_SOLID, total, solid_diameter_mm=solid)
    assert found == SizeClass(lung_rads, None, Basis.MEAN_DIAMETER)


@pytest.mark.parametrize(("total", "lung_rads"), [(6.0, "2"), (29.9, "2"), (30.0, "3")])
def test_non_solid_goes_by_diameter_even_when_a_volume_is_known(
    total: float, lung_rads: str
) -> None:
    found = classify(NON_SOLID, total, volume_mm3=9000.0)
    assert found == SizeClass(lung_rads, None, Basis.MEAN_DIAMETER)


@given(st.sampled_from(Attenuation), sizes, sizes, st.floats(0, 20))
def test_a_larger_nodule_is_never_in_a_lower_class(
    attenuation: Attenuation, diameter: float, solid: float, more: float
) -> None:
    small = classify(attenuation, diameter, solid_diameter_mm=solid)
    large = classify(attenuation, diameter + more, solid_diameter_mm=solid + more)
    assert ORDER.index(large.lung_rads) >= ORDER.index(small.lung_rads)


@given(st.floats(1, 60))
def test_a_ball_has_the_same_class_by_diameter_and_by_volume_within_the_rounding(
    diameter: float,
) -> None:
    volume = 3.14159265 / 6 * diameter**3
    by_volume = ORDER.index(classify(SOLID, diameter, volume_mm3=volume).lung_rads)
    near = {ORDER.index(classify(SOLID, diameter + d).lung_rads) for d in (-0.1, 0.0, 0.1)}
    assert by_volume in near


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_sizes_must_be_positive(size: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        classify(SOLID, size)
