"""The page docs/reference/hl7-and-fhir.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hl7
import pytest
from phoi_edge_node import terms
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import _judge
from phoi_edge_node.fhir.http import Answer
from phoi_edge_node.hl7v2 import orders
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.ports import Erred, Refused, Unreachable
from phoi_edge_node.result import Outcome
from phoi_edge_node.settings import FhirSettings, Hl7Settings, SiteSettings
from phoi_edge_node.terms import Scheme, Term
from support.cases import PHOI_VERSION, CountingUids, case

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "hl7-and-fhir.md"
SITE = SiteSettings(name="bvdk")


def rows(heading: str) -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("outcome", Outcome)
def test_outcomes(outcome: Outcome) -> None:
    (row,) = [row for row in rows("Outcomes") if row[0] == outcome.value]
    _, flag, obx_count, interpretation, fhir_count = row
    oru = OruEncoder(Hl7Settings(host="h", port=1), SITE, CountingUids(), PHOI_VERSION)
    message = hl7.parse(oru.encode(case(outcome))[0].content.decode())
    told, counted = (
        next(s for s in message.segments("OBX") if str(s[3][0][0]) == code)
        for code in ("outcome", "nodule-count")
    )
    assert str(told[8]) in re.findall(r"\b[AN]+\b", flag)
    if obx_count == "OBX-11 X":
        assert str(counted[11]) == "X"
    else:
        assert str(counted[5]) == ("2" if obx_count == "number" else obx_count)
    fhir = FhirEncoder(FhirSettings(base_url="http://h"), SITE, CountingUids(), PHOI_VERSION)
    bundle = json.loads(fhir.encode(case(outcome))[0].content)
    observation = bundle["entry"][3]["resource"]
    code = observation["interpretation"][0]["coding"][0]["code"]
    assert code in interpretation.split(", ")
    count = observation["component"][0]
    if fhir_count.startswith("absent: "):
        absent = count["dataAbsentReason"]["coding"][0]["code"]
        assert absent == fhir_count.removeprefix("absent: ")
    else:
        assert count["valueInteger"] == (2 if fhir_count == "number" else int(fhir_count))


def test_resources_and_how_they_are_found() -> None:
    fhir = FhirEncoder(FhirSettings(base_url="http://h"), SITE, CountingUids(), PHOI_VERSION)
    bundle = json.loads(fhir.encode(case())[0].content)
    methods = {"create if none": "POST", "update": "PUT"}
    documented = {
        (row[0].split(",")[0], methods[row[1]]) for row in rows("Transaction Bundle, FHIR R4")
    }
    assert documented == {
        (e["resource"]["resourceType"], e["request"]["method"]) for e in bundle["entry"]
    }
    systems = set(re.findall(r"urn:oid:[0-9.]+|urn:dicom:uid", PAGE.read_text(encoding="utf-8")))
    for entry in bundle["entry"][1:]:
        resource = entry["resource"]
        known_as = (resource.get("identifier") or resource["meta"]["tag"])[0]
        assert known_as["system"] in systems


def test_answers_of_a_fhir_server() -> None:
    meaning: dict[str, type] = {"refused": Refused, "erred": Erred, "passing": Unreachable}
    others = {"other 4xx": [402, 406, 418, 451], "other 5xx": [505, 508, 520, 599]}
    seen: set[int] = set()
    for told, with_fhir, without in rows("Answers of a FHIR server"):
        for status in [s for part in told.split(", ") for s in others.get(part) or [int(part)]]:
            seen.add(status)
            for body, words in (({"resourceType": "OperationOutcome"}, with_fhir), ({}, without)):
                assert isinstance(_judge(Answer(status, body)), meaning[words]), (status, words)
    assert {400, 401, 403, 404, 409, 412, 422, 429, 500, 501, 502, 503, 504} <= seen


def test_messages_that_are_taken() -> None:
    section = PAGE.read_text(encoding="utf-8").split("\n## Orders and patients")[1]
    section = section.split("\n## ")[0]
    taken = {f"{code}^{event}" for code, event in orders.ORDERS}
    controls = (orders._PLACING | orders._CANCELLING | orders._UPDATING) - {""}
    events = orders._MERGES | orders._UPDATES
    words = set(re.findall(r"[A-Z][A-Z0-9^]+", section))
    assert taken <= words
    assert {
        event for event in events if event not in words and f"ADT^{event}" not in words
    } == set()
    assert controls - words == set()


def test_own_codes() -> None:
    own = {
        (term.code, term.en, term.vi)
        for value in vars(terms).values()
        for term in (value.values() if isinstance(value, dict) else [value])
        if isinstance(term, Term) and term.scheme is Scheme.PHOI
    }
    categories = map(terms.lung_rads_category, ("2", "3", "4A", "4B"))
    own |= {(term.code, term.en, term.vi) for term in categories}
    assert {tuple(row) for row in rows("Phoi's own codes")} == own
