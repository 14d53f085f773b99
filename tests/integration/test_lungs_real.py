"""The lung mask on a real CT, against the organ mask of another program."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from phoi_models.canonical import to_canonical
from phoi_models.findings import Side
from phoi_models.geometry import Geometry
from phoi_models.lungs import LEFT, RIGHT, LungMask, segment_lungs
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from support.real_ct import NODULE_LPS_MM, lidc_idri_0001, organ_mask

LOBES = {LEFT: (10, 11), RIGHT: (12, 13, 14)}
Labels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def ct() -> Volume:
    volume, _ = read_volume(sorted(lidc_idri_0001().rglob("*.dcm")))
    return volume


@pytest.fixture(scope="module")
def ours(ct: Volume) -> Labels:
    """Our labels at the voxel centres of the CT."""
    grid = to_canonical(ct, 1.0)
    mask = segment_lungs(grid.hu, grid.spacing_mm)
    # The volume is upright, so that each axis of the grid is looked up by itself.
    places = [
        np.stack([np.arange(n) if axis == along else np.zeros(n) for axis in range(3)], axis=1)
        for along, n in enumerate(ct.geometry.shape)
    ]
    index = [
        np.rint(grid.lps_to_index(ct.geometry.index_to_lps(place))[:, along]).astype(int)
        for along, place in enumerate(places)
    ]
    z, y, x = (np.clip(i, 0, n - 1) for i, n in zip(index, grid.hu.shape, strict=True))
    labels: Labels = mask.labels[np.ix_(z, y, x)]
    return labels


@pytest.fixture(scope="module")
def theirs() -> Labels:
    """The lobes of TotalSegmentator as sides, on the grid of the CT."""
    organs = np.flip(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(organ_mask()))), axis=1)
    sides = np.zeros(organs.shape, np.uint8)
    for side, lobes in LOBES.items():
        sides[np.isin(organs, lobes)] = side
    return sides


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def test_the_lungs_agree_with_those_of_totalsegmentator(ours: Labels, theirs: Labels) -> None:
    assert dice(ours > 0, theirs > 0) >= 0.97
    for side in LOBES:
        assert dice(ours == side, theirs == side) >= 0.96


def cut(ct: Volume, start: int, stop: int) -> LungMask:
    """The lungs of some of the slices."""
    geometry = ct.geometry
    x, y, z = geometry.index_to_lps((start, 0, 0))
    part = Geometry(
        (stop - start, *geometry.shape[1:]),
        geometry.spacing_mm,
        (float(x), float(y), float(z)),
        geometry.axes_lps,
    )
    grid = to_canonical(Volume(np.ascontiguousarray(ct.hu[start:stop]), part), 2.0)
    return segment_lungs(grid.hu, grid.spacing_mm)


@pytest.mark.parametrize("columns", [slice(0, 256), slice(256, 512)])
def test_a_field_of_view_on_one_lung_is_known_and_shows_that_lung(
    ct: Volume, theirs: Labels, columns: slice
) -> None:
    part = np.ascontiguousarray(ct.hu[:, :, columns])
    x, y, z = ct.geometry.index_to_lps((0, 0, columns.start))
    geometry = Geometry(
        (part.shape[0], part.shape[1], part.shape[2]),
        ct.geometry.spacing_mm,
        (float(x), float(y), float(z)),
        ct.geometry.axes_lps,
    )
    grid = to_canonical(Volume(part, geometry), 2.0)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    voxel_ml = float(np.prod(ct.geometry.spacing_mm)) / 1000
    shown_ml = np.count_nonzero(theirs[:, :, columns]) * voxel_ml
    assert lungs.coverage.volume_ml == pytest.approx(shown_ml, rel=0.05)
    assert (lungs.coverage.apex, lungs.coverage.base, lungs.coverage.sides) == (True, True, False)
    nodule = grid.lps_to_index(NODULE_LPS_MM)
    if columns.start:
        assert lungs.nearest(nodule) == (Side.LEFT, 0.0)


def test_a_real_scan_that_leaves_out_apex_or_base_is_known_as_such(
    ct: Volume, theirs: Labels
) -> None:
    """Slices grow to the head; a cut 15 mm into the lungs is told from one just outside."""
    slices = np.flatnonzero((theirs > 0).any(axis=(1, 2)))
    lowest, highest, count = int(slices[0]), int(slices[-1]), len(ct.hu)
    inside = round(15 / ct.geometry.spacing_mm[0])
    outside = round(10 / ct.geometry.spacing_mm[0])
    whole = cut(ct, max(0, lowest - outside), min(count, highest + outside)).coverage
    assert whole.complete
    no_apex = cut(ct, 0, highest - inside).coverage
    assert (no_apex.apex, no_apex.base) == (False, True)
    no_base = cut(ct, lowest + inside, count).coverage
    assert (no_base.apex, no_base.base) == (True, False)
