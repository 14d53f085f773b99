"""Refuse what cannot be a chest CT in Hounsfield units, before a network sees it.

Wrong rescaling moves or stretches all values, and a network that sees them finds nothing and says
nothing of it. What a chest always holds tells: air near -1000 HU, around the body or in the
trachea, and soft tissue, of which muscle, blood and organs lie above 0 HU and fat below -50 HU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.pixels import AIR_HU

_SLICES = 32
_BLOCK = 4
"""Means of so many rows and columns: noise of a sharp kernel spreads single voxels too widely."""
_AIR_AND_LUNG_HU = (-1100, -700)
_SOFT_TISSUE_HU = (-150, 250)
_LEAST_SHARE = 0.02
_DARKEST_PERCENT = 0.1
_DARKEST_AT_MOST_HU = -930.0
"""The darkest blocks of 14 CT lie at -1023 to -993 HU, also where only a trachea holds air."""
_MUSCLE_HU = (10, 90)
_VALLEY_HU = (-80, 0)
_LEAST_MUSCLE = 0.4
"""Blocks of muscle for one in the valley between muscle and fat: 1.1 to 2.6 in 14 CT; 0.06 to 0.23
in 13 of them less 100 HU, and 0.55 in the noisiest."""
_ALL_SOFT_HU = (-250, 300)
_LEAST_OF_ALL_SOFT = 0.08
"""Share of muscle in it: 0.3 to 0.5 in 14 CT."""
_BONE_HU = 1800
_MOST_BONE = 0.05


def check_hounsfield(hu: NDArray[np.int16]) -> None:
    """Refuse values that cannot be a chest CT in Hounsfield units.

    Padding of the field of view is no air. Contrast, metal and emphysema do not matter.

    Args:
        hu: int16, axes (slice, row, column), in any direction of the patient.

    Raises:
        NotAnalysable: NOT_HOUNSFIELD.
    """
    means = _block_means(hu)
    if _share(means, _AIR_AND_LUNG_HU) < _LEAST_SHARE:
        raise _refusal("no air and no lung")
    if np.percentile(means, _DARKEST_PERCENT) > _DARKEST_AT_MOST_HU:
        raise _refusal("no air near -1000 HU")
    if _share(means, _SOFT_TISSUE_HU) < _LEAST_SHARE:
        raise _refusal("no soft tissue near 0 HU")
    muscle = _share(means, _MUSCLE_HU)
    least = _LEAST_MUSCLE * _share(means, _VALLEY_HU)
    if muscle < max(least, _LEAST_OF_ALL_SOFT * _share(means, _ALL_SOFT_HU)):
        raise _refusal("soft tissue does not lie near 50 HU")
    if np.mean(means > _BONE_HU) > _MOST_BONE:
        raise _refusal("too many values are denser than bone")


def _block_means(hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """Means over blocks of some slices, of which none holds padding; flat, maybe empty."""
    slices = hu[:: max(1, len(hu) // _SLICES)]
    rows, columns = (n // _BLOCK for n in slices.shape[1:])
    cut = slices[:, : rows * _BLOCK, : columns * _BLOCK]
    blocks = cut.reshape(len(slices), rows, _BLOCK, columns, _BLOCK)
    padding = _padding(blocks.max(axis=(2, 4)) <= AIR_HU)
    means: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32)[~padding]
    return means


def _padding(lowest: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The blocks around the field of view, and those that it cuts.

    Args:
        lowest: axes (slice, row, column), blocks that hold nothing above ``AIR_HU``. Those that
            reach the side of the image are padding, or air so clipped that nothing can be told.
    """
    in_slice = np.zeros((3, 3, 3), dtype=bool)
    in_slice[1] = True
    sides = np.ones_like(lowest)
    sides[:, 1:-1, 1:-1] = False
    outer = ndimage.binary_propagation(lowest & sides, structure=in_slice, mask=lowest)
    around: NDArray[np.bool_] = ndimage.binary_dilation(outer, structure=in_slice)
    return around


def _share(means: NDArray[np.float32], within_hu: tuple[int, int]) -> float:
    """Share of the blocks within a range; 0 where there are none."""
    low, high = within_hu
    return np.count_nonzero((means >= low) & (means <= high)) / max(1, means.size)


def _refusal(what: str) -> NotAnalysable:
    return NotAnalysable(
        NotAnalysableReason.NOT_HOUNSFIELD, f"the values are not Hounsfield units: {what}"
    )
