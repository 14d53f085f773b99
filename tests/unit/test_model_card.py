"""The model card: what is written into it later, and that it says on how much a figure rests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from phoi_models.errors import PhoiError
from phoi_training.background import Mark
from phoi_training.card import Part, Provenance, int8_lines, model_card, with_part
from phoi_training.evaluation import PairedCpm, Prediction, ScanResult
from phoi_training.train import untuned

NOWHERE = (0.0, 0.0, 0.0)
PROVENANCE = Provenance(
    trained_on={"a": "0" * 64},
    held_out={},
    folds=[["a"], ["b"]],
    sources=["Made up, CC0"],
    phantoms=2,
    data_sha256="0" * 64,
    seed=0,
    started_from=None,
)


def scan(patient: str, *found: bool) -> ScanResult:
    nodules = tuple(Mark((20.0 * i, 0.0, 0.0), 8.0) for i in range(len(found)))
    hits = [Prediction(NOWHERE, 8.0, 0.9, i) for i, hit in enumerate(found) if hit]
    false = Prediction(NOWHERE, 8.0, 0.6, None)
    return ScanResult(patient, nodules, (*hits, false), True, 1.0, patient=patient)


def card() -> str:
    results = [scan("a", True, False), scan("b", True, True), scan("c", False)]
    return model_card(untuned("0.0.1"), PROVENANCE, results)


def test_a_card_tells_targets_sizes_and_on_how_much_they_rest() -> None:
    text = card()
    assert "5 nodules in 3 scans of 3 patients" in text
    assert "- 6 mm and more: CPM " in text
    assert "calibrated on the other patients: 0." in text
    assert "Not tried yet." in text
    alone = model_card(untuned("0.0.1"), PROVENANCE, [scan("a", True, False)])
    assert "calibrated on the other patients: not known." in alone


def test_later_parts_take_the_place_of_what_stood_there() -> None:
    once = with_part(card(), Part.TARGETS, ["| met |"])
    assert "Not tried yet." not in once
    assert "| met |" in once
    twice = with_part(once, Part.TARGETS, ["| not met |"])
    assert "| met |" not in twice
    assert with_part(twice, Part.TARGETS, ["| met |"]) == once
    assert with_part(once, Part.NOTES, ["By hand."]).count("By hand.") == 1
    with pytest.raises(PhoiError, match="no place for int8"):
        with_part("# a card of other people", Part.INT8, [])


def test_networks_that_go_on_from_their_own_earlier_ones_saw_no_one_held_out() -> None:
    results = [scan("a", True, False)]
    bundle = replace(PROVENANCE, started_from="phoi-lung-nodule")
    text = model_card(untuned("0.0.1"), bundle, results)
    assert "fine-tuned from `phoi-lung-nodule`, which may have been trained on" in text
    earlier = replace(PROVENANCE, started_from="work", of_earlier_run=True)
    text = model_card(untuned("0.0.1"), earlier, results)
    assert "goes on from its network of an earlier run, `work`, which never saw" in text
    assert "may have been trained on" not in text


def test_two_forms_are_told_with_their_difference() -> None:
    (line,) = int8_lines(PairedCpm(0.804, 0.79, (-0.01, 0.03), 6, 32, 4))
    assert "difference +0.014 (95 % interval -0.010 to +0.030" in line
    assert "32 nodules in 6 scans of 4 patients" in line
    (line,) = int8_lines(PairedCpm(0.5, 0.5, None, 2, 3, 1))
    assert "too few cases for an interval" in line
    assert "2 scans of 1 patient," in line
