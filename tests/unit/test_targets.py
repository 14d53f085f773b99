"""The table of targets: each row counts what it says, and says when the cases cannot tell."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from phoi_models.findings import Attenuation
from phoi_models.planting_host import Place
from phoi_training.background import Mark
from phoi_training.evaluation import Prediction, ScanResult
from phoi_training.measurement import Measured
from phoi_training.targets import CropResult, Evidence, Row, as_json, judged, target_lines

NOWHERE = (0.0, 0.0, 0.0)
EMPTY = Evidence(0.5, {}, [], [], [], [], [], [], [], [], [], [], [])


def mark(probability: float, nodule: int | None = None) -> Prediction:
    return Prediction(NOWHERE, 8.0, probability, nodule)


def scan(name: str, diameters: list[float], *marks: Prediction, patient: str = "") -> ScanResult:
    nodules = tuple(Mark((30.0 * i, 0.0, 0.0), d) for i, d in enumerate(diameters))
    return ScanResult(name, nodules, marks, True, 1.0, patient=patient or name)


def row(evidence: Evidence, start: str) -> Row:
    (found,) = [row for row in judged(evidence) if row.target.startswith(start)]
    return found


def test_without_evidence_nothing_is_claimed() -> None:
    assert judged(EMPTY) == []
    assert "verdict" in target_lines(EMPTY)[0]


def test_planted_nodules_below_the_limit_count_neither_way() -> None:
    found = [scan(f"{i}", [4.0, 8.0], mark(0.9, 1), patient=str(i)) for i in range(4)]
    rows = judged(replace(EMPTY, planted=found))
    assert [(r.reached, r.met) for r in rows[:2]] == [("1.000", True), ("1.000", True)]
    assert "4 nodules in 4 scans of 4 patients" in rows[0].cases
    assert rows[0].interval == "too few cases"
    assert rows[0].verdict == "met; the interval reaches to the other side"


def test_a_target_that_the_cases_cannot_tell_says_so() -> None:
    half = [scan(f"{i}", [8.0], *([mark(0.9, 0)] if i % 4 else [])) for i in range(40)]
    rows = judged(replace(EMPTY, alone_planted=half))
    assert rows[0].verdict == "not met; the interval reaches to the other side"
    few = [scan(f"{i}", [8.0], *([] if i % 4 else [mark(0.9, 0)])) for i in range(40)]
    assert judged(replace(EMPTY, alone_planted=few))[0].verdict == "not met"


def test_the_one_nodule_is_found_with_at_most_one_false_mark_before_it() -> None:
    first = scan("one", [28.0], mark(0.4, 0), mark(0.9))
    late = scan("one", [28.0], mark(0.4, 0), mark(0.9), mark(0.8))
    evidence = replace(EMPTY, one_nodule={"network 1": first, "network 2": late, "all": first})
    alone = row(evidence, "one's nodule at no more than 1 false mark, every network")
    assert (alone.reached, alone.met) == ("1 of 2", False)
    together = row(evidence, "one's nodule at no more than 1 false mark, the model")
    assert together.met
    assert together.reached == "found, p 0.40; 1 false at the default operating point"


def test_crops_are_counted_by_how_many_readers_marked_them() -> None:
    crops = [
        CropResult(scan(f"crop {i}", [8.0], *marks), readers, 8.0, 5.0)
        for i, (readers, marks) in enumerate(
            [*[(4, [mark(0.6, 0)])] * 5, (3, [mark(0.2, 0)]), (3, []), (1, [mark(0.9, 0)])]
        )
    ]
    agreed = row(replace(EMPTY, crops=crops), "crops that 3 readers or more")
    assert (agreed.reached, agreed.met) == ("5 of 7", True)
    assert row(replace(EMPTY, crops=crops[2:]), "crops that 3 readers or more").met is False
    assert row(replace(EMPTY, crops=crops), "crops that fewer").verdict == "no target"
    assert "| crop 5 | 3 | 8.0 | 5 | 0.20 | no |" in target_lines(replace(EMPTY, crops=crops))


@pytest.mark.parametrize(("further", "reached"), [((), "2 of 2"), ((mark(0.7, 0),), "1 of 2")])
def test_a_tumour_is_to_be_one_mark(further: tuple[Prediction, ...], reached: str) -> None:
    tumours = [scan(name, [30.0], mark(0.9, 0)) for name in ("QIN-1", "QIN-2")]
    alone = [replace(tumours[0], further=further), tumours[1], scan("other", [9.0])]
    evidence = replace(EMPTY, alone=alone, tumours=["QIN-1", "QIN-2"])
    assert row(evidence, "outlined tumours").reached == reached
    assert row(evidence, "outlined tumours").met == (reached == "2 of 2")


def test_quiet_scans_and_phantoms_count_marks_at_the_threshold() -> None:
    noisy = scan("b", [], *[mark(0.6)] * 3, mark(0.4))
    evidence = replace(EMPTY, alone=[scan("a", []), noisy], quiet=["a", "b"], phantoms=[noisy])
    quiet = row(evidence, "scans without nodules")
    assert (quiet.reached, quiet.met) == ("1.5 (a 0, b 3)", True)
    assert row(evidence, "phantoms").met is False


def test_sizes_are_those_of_solid_nodules_of_5_to_15_mm() -> None:
    def measured(true_mm: float, error_mm: float, kind: Attenuation) -> Measured:
        found = true_mm + error_mm
        return Measured("a", 1.0, kind, Place.ISOLATED, true_mm, 1.0, None, kind, found, 1.0, None)

    solid = [measured(8.0, error, Attenuation.SOLID) for error in (0.9, 1.1) * 20]
    others = [measured(8.0, 9.0, Attenuation.NON_SOLID), measured(20.0, 9.0, Attenuation.SOLID)]
    bias, limits = judged(replace(EMPTY, sizes=[*solid, *others]))
    assert (bias.reached, bias.verdict) == ("+1.00 mm", "not met")
    assert limits.met
    assert bias.cases == "40 nodules in 1 scan"
    json.dumps(
        as_json(replace(EMPTY, sizes=[replace(m, diameter_mm=np.float64(8)) for m in solid]))
    )


def test_forms_are_compared_on_the_same_scans() -> None:
    wide = [scan(f"{i}", [8.0, 9.0], mark(0.9, 0), mark(0.8, 1)) for i in range(6)]
    less = [replace(r, predictions=r.predictions[:1]) for r in wide]
    found = row(replace(EMPTY, planted=wide, planted_int8=less), "CPM in 8-bit")
    assert (found.met, found.reached) == (False, "-0.500 (0.500 against 1.000)")
    same = row(replace(EMPTY, planted=wide, planted_int8=wide), "CPM in 8-bit")
    assert same.verdict == "met"


def test_places_of_which_nobody_knows_are_told() -> None:
    lines = target_lines(replace(EMPTY, unknown={"a": 0, "b": 5}))
    assert "Places of which nobody knows, and which count neither way: b 5." in lines


def test_the_file_holds_rows_and_verdicts() -> None:
    written = as_json(replace(EMPTY, phantoms=[scan("a", [])]))
    (only,) = written["targets"]
    assert (only["verdict"], written["threshold"]) == ("met", 0.5)
