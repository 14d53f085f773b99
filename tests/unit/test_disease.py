"""Diffuse disease changes the lungs as its pattern says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from phoi_models.disease import Disease, plant_disease
from phoi_models.phantom import chest_phantom
from phoi_models.planting_host import LungSpace, NoSite
from phoi_models.volume import Volume
from scipy import ndimage


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return chest_phantom(np.random.default_rng(5), (2.5, 1.4, 1.4))


@pytest.fixture(scope="module")
def lungs(phantom: Volume) -> LungSpace:
    return LungSpace.of(phantom)


@pytest.mark.parametrize("disease", list(Disease))
def test_only_the_lungs_change_and_the_seed_decides(
    disease: Disease, phantom: Volume, lungs: LungSpace
) -> None:
    before = phantom.digest()
    sick = plant_disease(phantom, lungs, np.random.default_rng(1), disease=disease)
    again = plant_disease(phantom, lungs, np.random.default_rng(1), disease=disease)
    assert sick.digest() == again.digest() != before == phantom.digest()
    changed = np.argwhere(np.abs(sick.hu.astype(int) - phantom.hu) > 30)
    assert len(changed) * phantom.geometry.voxel_volume_mm3 > 1000
    depth = lungs.depth(phantom.geometry.index_to_lps(changed))
    assert (depth > -4).mean() > 0.999


@pytest.mark.parametrize(
    ("disease", "low", "high"),
    [
        (Disease.GROUND_GLASS, 60, 450),
        (Disease.CONSOLIDATION, 300, 1000),
        (Disease.EMPHYSEMA, -300, -40),
    ],
)
def test_attenuation_is_that_of_the_pattern(
    disease: Disease, low: int, high: int, phantom: Volume, lungs: LungSpace
) -> None:
    sick = plant_disease(phantom, lungs, np.random.default_rng(2), disease=disease)
    change = sick.hu.astype(int) - phantom.hu
    assert low < np.median(change[np.abs(change) > 60]) < high


def test_fibrosis_is_a_network_of_thin_walls(phantom: Volume, lungs: LungSpace) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sick = plant_disease(phantom, lungs, rng, disease=Disease.FIBROSIS)
        walls = sick.hu.astype(int) - phantom.hu > 300
        assert walls.sum() > 500
        assert ndimage.binary_erosion(walls, np.ones((1, 5, 5))).sum() < 0.15 * walls.sum()


def test_what_is_to_be_avoided_stays_as_it_is(phantom: Volume, lungs: LungSpace) -> None:
    rng = np.random.default_rng(3)
    balls = [((float(x), float(y), float(z)), 12.0) for x, y, z in lungs.draw(rng, 200)]
    sick = plant_disease(phantom, lungs, rng, disease=Disease.CONSOLIDATION, avoid=balls)
    for centre, _ in balls:
        z, y, x = np.rint(phantom.geometry.lps_to_index(centre)).astype(int)
        assert abs(int(sick.hu[z, y, x]) - int(phantom.hu[z, y, x])) < 10


def test_without_lungs_there_is_no_place(phantom: Volume, lungs: LungSpace) -> None:
    nowhere = LungSpace(np.zeros_like(lungs.inside), lungs.origin_lps_mm, lungs.spacing_mm)
    with pytest.raises(NoSite, match="no lung"):
        plant_disease(phantom, nowhere, np.random.default_rng(0))
