"""A real nodule, set into chests in which nobody trained on it, is found by the shipped model."""

from __future__ import annotations

import numpy as np
import pytest
from phoi_models.phantom import chest_phantom
from phoi_models.planting_host import LungSpace
from phoi_models.reading.dicom_series import read_volume
from phoi_models.shipped import SHIPPED
from phoi_models.transplant import Lesion
from phoi_training.background import Background, Mark
from phoi_training.evaluation import evaluate
from phoi_training.report import Detector
from phoi_training.transplanted import lesions_of, transplanted_copy
from support.real_ct import lidc_idri_0001

# Four readers marked it; they outlined it 23 to 25 mm wide, as a ball of the same volume.
NODULE = Mark((56.0, 86.0, -116.0), 25.0)
IN_THE_WALL = Mark((56.0, 125.0, -116.0), 25.0)


@pytest.fixture(scope="module")
def source() -> Background:
    volume, _ = read_volume(sorted(lidc_idri_0001().rglob("*.dcm")))
    marks = (NODULE, IN_THE_WALL)
    lungs = LungSpace.of(volume)
    return Background("LIDC-IDRI-0001", "LIDC-IDRI-0001", volume, lungs, marks, complete=False)


@pytest.fixture(scope="module")
def lesions(source: Background) -> list[Lesion]:
    return lesions_of([source])[0]


@pytest.fixture(scope="module")
def phantom() -> Background:
    volume = chest_phantom(np.random.default_rng(40))
    known = (Mark((-62.0, 10.0, 20.0), 12.0),)
    return Background("phantom", "phantom", volume, LungSpace.of(volume), known, complete=True)


def test_a_nodule_is_cut_out_and_what_is_buried_is_named(source: Background) -> None:
    lesions, refused = lesions_of([source])
    (lesion,) = lesions
    assert lesion.diameter_mm == pytest.approx(23, abs=2.5)
    assert lesion.hu[lesion.body].mean() > -100
    (reason,) = refused
    assert reason.startswith("LIDC-IDRI-0001, 25 mm: ")


def test_the_shipped_model_finds_it_in_other_places(
    phantom: Background, lesions: list[Lesion]
) -> None:
    twice = [*lesions, *lesions]
    chest, placed = transplanted_copy(phantom, twice, np.random.default_rng(0))
    assert len(placed) == 2
    assert [mark.certain for mark in chest.marks] == [False, True, True]
    model = Detector.open(SHIPPED / "phoi-lung-nodule")
    (result,) = evaluate([chest], model.parameters, model.heads, second_look=model.second_look)
    assert result.found(model.parameters.operating_points["default"].probability) == 2
