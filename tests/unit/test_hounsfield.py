"""Which values are taken for Hounsfield units of a chest."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.hounsfield import check_hounsfield
from phoi_models.phantom import chest_with_lungs
from phoi_models.reading.pixels import AIR_HU

Values = NDArray[np.int32]


@cache
def chest() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU as a reader gives them, nothing below ``AIR_HU``, and the labels of the lungs."""
    scan = chest_with_lungs(np.random.default_rng(3), (5.0, 2.0, 2.0))
    return np.maximum(scan.volume.hu, np.int16(AIR_HU)), scan.lungs


def read(hu: Values) -> NDArray[np.int16]:
    return np.clip(hu, AIR_HU, 32767).astype(np.int16)


def close_to_the_lungs(hu: Values) -> Values:
    """A field of view without air around the body."""
    y, x = (np.flatnonzero((chest()[1] > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    return hu[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1]


WRONG: dict[str, Callable[[Values], Values]] = {
    "no intercept": lambda hu: hu + 1024,
    "intercept twice": lambda hu: hu - 1024,
    "200 HU too high": lambda hu: hu + 200,
    "100 HU too low": lambda hu: hu - 100,
    "half the slope": lambda hu: hu // 2,
    "slope too small": lambda hu: hu // 4,
    "slope too large": lambda hu: hu * 4,
    "inverted": lambda hu: -hu,
    "0": np.zeros_like,
}


@pytest.mark.parametrize("field", ["whole", "close to the lungs"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rescaling_is_refused(wrong: str, field: str) -> None:
    hu = WRONG[wrong](chest()[0].astype(np.int32))
    with pytest.raises(NotAnalysable, match="not Hounsfield units") as refusal:
        check_hounsfield(read(hu if field == "whole" else close_to_the_lungs(hu)))
    assert refusal.value.reason is NotAnalysableReason.NOT_HOUNSFIELD


@pytest.mark.parametrize("wrong", WRONG)
def test_padding_does_not_pass_for_air(wrong: str) -> None:
    hu = WRONG[wrong](chest()[0].astype(np.int32))
    y, x = np.indices(hu.shape[1:])
    hu[:, (y - hu.shape[1] / 2) ** 2 + (x - hu.shape[2] / 2) ** 2 > (hu.shape[2] / 2) ** 2] = AIR_HU
    with pytest.raises(NotAnalysable, match="not Hounsfield units"):
        check_hounsfield(read(hu))


@pytest.mark.parametrize("padding", [-1000, -1024, -2000, -3024])
def test_any_usual_padding_of_the_field_of_view_is_accepted(padding: int) -> None:
    hu = chest()[0].copy()
    hu[:, :30] = padding
    check_hounsfield(hu)


def test_a_field_of_view_without_air_around_the_body_is_accepted() -> None:
    check_hounsfield(np.ascontiguousarray(close_to_the_lungs(chest()[0].astype(np.int32))))


def test_contrast_metal_and_emphysema_are_accepted() -> None:
    hu, lungs = chest()
    hu = np.where((lungs > 0) & (hu < -700), np.int16(-980), hu)
    blood = (hu > 30) & (hu < 60) & (np.indices(hu.shape)[1] < hu.shape[1] // 2)
    hu = np.where(blood, np.int16(300), hu)
    hu[20:24, 60:70, 60:70] = 3071
    hu[20:24, 50:60, 50:80] = AIR_HU
    check_hounsfield(hu)


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 3, 3)])
def test_too_few_voxels_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(NotAnalysable):
        check_hounsfield(np.full(shape, -1000, np.int16))
