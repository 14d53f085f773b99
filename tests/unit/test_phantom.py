"""The procedural chest is a chest: air in the lungs, the heart on the left, everything in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.findings import Lobe
from phoi_models.phantom import (
    LEFT_LUNG,
    RIGHT_LUNG,
    Acquisition,
    Chest,
    Kernel,
    chest_phantom,
    chest_with_lungs,
    flipped,
    gantry_tilted,
)
from phoi_models.planting import plant_nodules
from phoi_models.volume import Volume
from scipy import ndimage

COARSE = (5.0, 2.8, 2.8)


@pytest.fixture(scope="module")
def chest() -> Chest:
    return chest_with_lungs(np.random.default_rng(7), COARSE)


def hu_at(volume: Volume, lps_mm: tuple[float, float, float]) -> int:
    z, y, x = np.rint(volume.geometry.lps_to_index(lps_mm)).astype(int)
    return int(volume.hu[z, y, x])


def sampled(volume: Volume, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    index = volume.geometry.lps_to_index(lps_mm)
    values: NDArray[np.float64] = ndimage.map_coordinates(
        volume.hu.astype(np.float64), index.T, order=1
    )
    return values


def test_same_seed_same_voxels(chest: Chest) -> None:
    again = chest_phantom(np.random.default_rng(7), COARSE)
    other = chest_phantom(np.random.default_rng(8), COARSE)
    assert again.digest() == chest.volume.digest()
    assert other.digest() != chest.volume.digest()


def test_lungs_hold_air_and_lie_on_their_own_side(chest: Chest) -> None:
    for side, sign in ((LEFT_LUNG, 1), (RIGHT_LUNG, -1)):
        voxels = np.argwhere(chest.lungs == side)
        x = chest.volume.geometry.index_to_lps(voxels)[:, 0]
        assert (sign * x > 0).all()
        assert -900 < np.median(chest.volume.hu[chest.lungs == side]) < -780
        assert 1500 < len(voxels) * chest.volume.geometry.voxel_volume_mm3 / 1000 < 4000


def test_heart_is_left_of_the_middle(chest: Chest) -> None:
    slice_index = round(float(chest.volume.geometry.lps_to_index((0.0, 0.0, -45.0))[0]))
    heart_level = chest.lungs[slice_index]
    assert (heart_level == LEFT_LUNG).sum() < 0.9 * (heart_level == RIGHT_LUNG).sum()


def test_trachea_is_air_and_surroundings_are_air(chest: Chest) -> None:
    assert hu_at(chest.volume, (0.0, 8.0, 140.0)) < -850
    assert hu_at(chest.volume, (-170.0, -150.0, 0.0)) < -900


def test_vessels_are_in_the_lungs(chest: Chest) -> None:
    inside = chest.volume.hu[chest.lungs > 0]
    assert 0.005 < float(np.mean(inside > -300)) < 0.08


def test_five_lobes_fill_the_lungs_each_in_its_place(chest: Chest) -> None:
    assert ((chest.lobes > 0) == (chest.lungs > 0)).all()
    middle = {}
    for number, lobe in enumerate(Lobe, start=1):
        voxels = np.argwhere(chest.lobes == number)
        assert len(voxels) * chest.volume.geometry.voxel_volume_mm3 / 1000 > 100
        middle[lobe] = chest.volume.geometry.index_to_lps(voxels).mean(axis=0)
    x, y, z = 0, 1, 2
    for lobe, place in middle.items():
        assert (place[x] > 0) == (lobe in {Lobe.LEFT_UPPER, Lobe.LEFT_LOWER})
    assert middle[Lobe.RIGHT_UPPER][z] > middle[Lobe.RIGHT_MIDDLE][z]
    assert middle[Lobe.RIGHT_MIDDLE][y] < middle[Lobe.RIGHT_LOWER][y]
    assert middle[Lobe.LEFT_LOWER][z] < middle[Lobe.LEFT_UPPER][z]


def test_a_planted_nodule_knows_its_lobe(chest: Chest) -> None:
    space = chest.space()
    rng = np.random.default_rng(0)
    _, truth = plant_nodules(chest.volume, space, [10.0] * 6, rng=rng)
    assert len(truth) >= 4
    for nodule in truth:
        z, y, x = np.rint(chest.volume.geometry.lps_to_index(nodule.center_lps_mm)).astype(int)
        numbers = chest.lobes[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
        assert nodule.lobe is not None
        assert list(Lobe).index(nodule.lobe) + 1 in numbers
    assert space.lobe((0.0, 0.0, 500.0)) is None


def scanned(**protocol: Any) -> Volume:
    acquisition = Acquisition(**protocol)
    return chest_phantom(np.random.default_rng(7), COARSE, acquisition=acquisition)


def test_noise_follows_dose_and_kernel(chest: Chest) -> None:
    def noise(volume: Volume) -> float:
        z, y, x = np.rint(volume.geometry.lps_to_index((22.0, -28.0, -45.0))).astype(int)
        heart = volume.hu[z, y - 6 : y + 7, x - 6 : x + 7].astype(float)
        return float(heart.std())

    full = noise(chest.volume)
    assert noise(scanned(dose=0.25)) == pytest.approx(2 * full, rel=0.1)
    assert noise(scanned(kernel=Kernel.SOFT)) < 0.75 * full
    assert noise(scanned(kernel=Kernel.SHARP)) > 1.5 * full


def test_thick_overlapping_slices_blur_along_z(chest: Chest) -> None:
    def steps(volume: Volume) -> float:
        return float(np.diff(volume.hu.astype(np.float32), axis=0).std())

    assert steps(scanned(slice_mm=10.0, dose=100.0)) < 0.8 * steps(scanned(dose=100.0))


@pytest.mark.parametrize("protocol", [{"dose": 0.0}, {"slice_mm": -1.0}])
def test_an_impossible_acquisition_is_refused(protocol: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Acquisition(**protocol)  # type: ignore[arg-type]


def test_apex_and_base_can_be_cut(chest: Chest) -> None:
    cut = chest_with_lungs(np.random.default_rng(7), COARSE, cut_apex=True, cut_base=True)
    assert (cut.lungs[0] > 0).any()
    assert (cut.lungs[-1] > 0).any()
    assert not (chest.lungs[0] > 0).any()
    assert not (chest.lungs[-1] > 0).any()


def test_flipped_keeps_every_voxel_in_its_place(chest: Chest) -> None:
    place = (60.0, 40.0, 21.0)
    for axes in ((0,), (1, 2), (0, 2)):
        turned = flipped(chest.volume, *axes)
        assert hu_at(turned, place) == hu_at(chest.volume, place)
        assert turned.hu.tobytes() != chest.volume.hu.tobytes()


def test_gantry_tilt_keeps_anatomy_in_its_place(chest: Chest) -> None:
    tilted = gantry_tilted(chest.volume, 15.0)
    assert not np.allclose(tilted.geometry.axes_lps[1], (0, 1, 0))
    points = np.random.default_rng(0).uniform((-90, -70, -60), (90, 70, 60), (2000, 3))
    same = np.corrcoef(sampled(tilted, points), sampled(chest.volume, points))[0, 1]
    mirrored = np.corrcoef(sampled(tilted, points * (-1, 1, 1)), sampled(chest.volume, points))
    assert same > 0.95
    assert mirrored[0, 1] < 0.9
