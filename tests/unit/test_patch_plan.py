"""Patches fitted to the lungs: they cover all, and see fewer voxels than patches of one shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.bundle import Calibration, DetectorParameters, OperatingPoint
from phoi_models.canonical import CanonicalGrid
from phoi_models.detector import Floats, detect
from phoi_models.findings import LungCoverage
from phoi_models.lungs import LEFT, LungMask
from pydantic import ValidationError

STRIDE, MULTIPLE = 4, 16
BRIGHT = 400


def parameters(
    patch: int = 64, margin: int = 8, multiple: int | None = MULTIPLE
) -> DetectorParameters:
    return DetectorParameters(
        name="test",
        version="1.0.0",
        kind="center-heatmap",
        spacing_mm=1.0,
        window_hu=(-1000.0, BRIGHT),
        patch_shape=(patch, patch, patch),
        patch_multiple=multiple,
        stride=STRIDE,
        margin=margin,
        calibration=Calibration(slope=1.0, intercept=0.0),
        operating_points={"default": OperatingPoint(probability=0.5)},
    )


class BrightCells:
    """Marks every cell that holds a voxel at the top of the window, and says where in it that is.

    A mark in the middle of the cell instead may lie outside of the lungs, beyond a corner of which
    too little reaches into the mark for it to count.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    @property
    def voxels(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        self.shapes += [patches.shape[2:]] * len(patches)
        d, h, w = (n // STRIDE for n in patches.shape[2:])
        shape = (len(patches), d, STRIDE, h, STRIDE, w, STRIDE)
        cells = patches.reshape(shape).transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, STRIDE**3)
        heat = np.where(cells.max(axis=1) >= 1.0, 0.9, 0.001).astype(np.float32)
        brightest = np.unravel_index(cells.argmax(axis=1), (STRIDE,) * 3)
        offset = np.stack(brightest, axis=1).astype(np.float32) - (STRIDE - 1) / 2
        heat = heat.reshape(-1, 1, d, h, w)
        offset = np.moveaxis(offset.reshape(-1, d, h, w, 3), -1, 1)
        return heat, np.full_like(heat, 6.0), offset


def chest(
    shape: tuple[int, int, int], lung: tuple[slice, slice, slice]
) -> tuple[CanonicalGrid, LungMask]:
    labels = np.zeros(shape, np.uint8)
    labels[lung] = LEFT
    grid = CanonicalGrid(np.full(shape, -800, np.int16), (0.0, 0.0, 0.0), 1.0)
    return grid, LungMask(labels, 1.0, LungCoverage(apex=True, base=True, volume_ml=1.0))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(20, 110)] * 3),
    data=st.data(),
    margin=st.sampled_from([0, 5, 8]),
    batch=st.integers(1, 3),
)
def test_a_mark_anywhere_in_the_lungs_is_found_once(
    shape: tuple[int, int, int], data: st.DataObject, margin: int, batch: int
) -> None:
    lows = [data.draw(st.integers(0, n - 8)) for n in shape]
    ends = [
        (low, data.draw(st.integers(low + 7, n - 1))) for low, n in zip(lows, shape, strict=True)
    ]
    z, y, x = (slice(low, high + 1) for low, high in ends)
    grid, lungs = chest(shape, (z, y, x))
    voxel = tuple(data.draw(st.integers(low, high)) for low, high in ends)
    grid.hu[voxel] = BRIGHT
    heads = BrightCells()
    found = detect(grid, lungs, parameters(margin=margin), heads, batch_size=batch)
    assert len(found) == 1
    assert found[0].center_lps_mm == pytest.approx(tuple(grid.index_to_lps(np.array(voxel))))
    assert all(n % MULTIPLE == 0 for patch in heads.shapes for n in patch)


def test_fitted_patches_see_fewer_voxels_and_stay_small() -> None:
    """Lungs of an adult: 290 x 180 x 260 mm; 96 voxels fit none of these lengths."""
    grid, lungs = chest((320, 210, 300), (slice(10, 300), slice(10, 190), slice(20, 280)))
    fitted, fixed = BrightCells(), BrightCells()
    detect(grid, lungs, parameters(96), fitted)
    detect(grid, lungs, parameters(96, multiple=None), fixed)
    assert fitted.voxels < 0.75 * fixed.voxels
    assert max(np.prod(shape) for shape in fitted.shapes) <= 3_000_000
    assert set(fixed.shapes) == {(96, 96, 96)}


@pytest.mark.parametrize("multiple", [6, 48])
def test_a_multiple_that_fits_neither_stride_nor_patch_is_refused(multiple: int) -> None:
    with pytest.raises(ValidationError, match="patch_multiple"):
        parameters(multiple=multiple)
