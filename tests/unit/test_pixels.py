"""Stored values become Hounsfield units, exactly, whatever the header says of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable
from phoi_models.reading.ct_image import Rescale
from phoi_models.reading.pixels import AIR_HU, hounsfield

CELLS = st.sampled_from([np.int16, np.uint16]).flatmap(lambda kind: arrays.arrays(kind, (4, 5)))
INTERCEPTS = st.integers(-40000, 40000).map(float) | st.floats(-40000, 40000)
SLOPES = st.just(1.0) | st.floats(0.01, 8.0) | st.floats(-8.0, -0.01)


def by_the_standard(stored: NDArray[np.integer], rescale: Rescale) -> NDArray[np.float64]:
    """PS3.3 C.11.1.1.2, in the arithmetic of the reals, and what int16 can hold of it."""
    hu = np.rint(stored.astype(np.float64) * rescale.slope + rescale.intercept)
    return np.where(hu > 32767, AIR_HU, np.maximum(hu, AIR_HU))


@given(CELLS, SLOPES, INTERCEPTS)
def test_every_value_is_what_the_standard_says(
    stored: NDArray[np.signedinteger], slope: float, intercept: float
) -> None:
    rescale = Rescale(slope, intercept)
    before = stored.copy()
    hu = hounsfield(stored, rescale)
    assert hu.dtype == np.int16
    assert np.array_equal(hu, by_the_standard(before, rescale))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))]
)
def test_what_is_no_line_is_no_rescale(slope: float, intercept: float) -> None:
    with pytest.raises(NotAnalysable, match="no rescale to Hounsfield units"):
        Rescale(slope, intercept)
