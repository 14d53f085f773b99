"""Cutting bodies of known shape free from what hangs on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.detach import detached
from phoi_models.geometry import Index
from phoi_models.measure import Mask

SPACING = (1.0, 0.7, 0.7)
MATRIX = np.diag(SPACING)[::-1]
"""mm offset (x, y, z) = MATRIX @ index offset (z, y, x)."""
SHAPE = (60, 80, 80)
MIDDLE: Index = (30, 40, 40)


def offsets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mm from the middle along (z, y, x)."""
    z, y, x = np.indices(SHAPE)
    return (z - MIDDLE[0]) * 1.0, (y - MIDDLE[1]) * 0.7, (x - MIDDLE[2]) * 0.7


def ball(radius: float, z: float = 0.0, y: float = 0.0, x: float = 0.0) -> Mask:
    dz, dy, dx = offsets()
    inside: Mask = (dz - z) ** 2 + (dy - y) ** 2 + (dx - x) ** 2 <= radius**2
    return inside


def rod(radius: float) -> Mask:
    """A vessel along x through the middle."""
    dz, dy, _ = offsets()
    inside: Mask = np.broadcast_to(dz**2 + dy**2 <= radius**2, SHAPE)
    return inside


def cut(mask: Mask, reach_mm: float) -> Mask:
    return detached(mask, MIDDLE, MATRIX, SPACING, reach_mm)


def dice(a: Mask, b: Mask) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


@settings(max_examples=10, deadline=None)
@given(st.floats(3.5, 15.0))
def test_a_ball_stays_as_it_is(radius: float) -> None:
    body = ball(radius)
    assert dice(cut(body, 1.3 * radius), body) > 0.97


@pytest.mark.parametrize("radius", [5.0, 9.0])
def test_a_vessel_through_a_nodule_is_cut_off(radius: float) -> None:
    body = ball(radius)
    assert dice(cut(body | rod(1.4), 2 * radius), body) > 0.95


def test_a_larger_neighbour_that_it_touches_is_cut_off() -> None:
    body = ball(6.0)
    neighbour = ball(10.0, y=14.5)
    found = cut(body | neighbour, 9.0)
    assert dice(found, body) > 0.9
    assert np.count_nonzero(found & neighbour & ~body) < 0.1 * np.count_nonzero(body)


def test_what_fills_its_bounds_all_around_is_kept_whole() -> None:
    body = ball(15.0)
    assert dice(cut(body, 12.0), body) > 0.97


def test_what_reaches_out_of_its_bounds_on_one_side_ends_there() -> None:
    dz, dy, dx = offsets()
    slab = (abs(dz) < 5) & (abs(dy) < 5) & (dx > -5)
    found = cut(slab, 9.0)
    assert float(dx[found].max()) < 9.5
    assert found[MIDDLE]


def test_only_the_component_of_the_seed_counts() -> None:
    apart = ball(4.0, x=20.0)
    found = cut(ball(5.0) | apart, 30.0)
    assert not (found & apart).any()


def test_a_seed_outside_finds_nothing() -> None:
    assert not cut(ball(4.0, x=20.0), 30.0).any()
