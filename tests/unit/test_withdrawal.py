"""What is told where a result is withdrawn: that it must not be used, and nothing like a result."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import hl7
import pytest
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.ports import (
    DocumentKind,
    ReceivedInstance,
    ReportedCase,
    ReportStatus,
    ToldBefore,
)
from phoi_edge_node.reported import (
    impression,
    outcome_term,
    reported_at,
    reported_nodules,
    reported_outcome,
    retracted_nodules,
    stated_priority,
    told_priority,
    warnings,
)
from phoi_edge_node.result import Completeness, Outcome, SignedReview
from phoi_edge_node.settings import FhirSettings, Hl7Settings, SiteSettings
from phoi_edge_node.terms import STATUS_NOTICES, WITHDRAWN
from pydicom import dcmread
from support.cases import (
    PHOI_VERSION,
    STUDY,
    WITHDRAWN_AT,
    CountingUids,
    accept_all,
    case,
    known,
    mixed_review,
    result,
    withdrawn,
)

SITE = SiteSettings(name="bvdk")


def message(of: ReportedCase) -> hl7.Message:
    encoder = OruEncoder(Hl7Settings(host="h", port=1), SITE, CountingUids(), PHOI_VERSION)
    return hl7.parse(encoder.encode(of)[0].content.decode())


def resources(of: ReportedCase) -> dict[str, list[dict[str, Any]]]:
    encoder = FhirEncoder(FhirSettings(base_url="http://h"), SITE, CountingUids(), PHOI_VERSION)
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(encoder.encode(of)[0].content)["entry"]:
        found.setdefault(entry["resource"]["resourceType"], []).append(entry["resource"])
    return found


@pytest.mark.parametrize("outcome", Outcome)
def test_it_has_no_outcome_no_nodules_and_no_priority(outcome: Outcome) -> None:
    of = withdrawn(result(outcome))
    assert reported_outcome(of) is None
    assert outcome_term(of) is WITHDRAWN
    assert reported_nodules(of) == ()
    assert stated_priority(of) is None
    assert told_priority(of) is None
    assert reported_at(of) == WITHDRAWN_AT
    lines = impression(of)
    assert lines == ((f"{WITHDRAWN.en}.", f"{WITHDRAWN.vi}."), STATUS_NOTICES[of.status])


def test_what_was_doubted_before_is_not_told_again() -> None:
    assert warnings(withdrawn(known(Outcome.NEGATIVE, Completeness.UNCONFIRMED))) == ()


@pytest.mark.parametrize(
    ("signed", "expected"),
    [(None, ["2.25.701", "2.25.702"]), (mixed_review(), ["2.25.701", "2.25.702"])],
    ids=["unsigned", "signed"],
)
def test_what_the_model_marked_goes_and_what_a_person_added_stands(
    signed: SignedReview | None, expected: list[str]
) -> None:
    of = withdrawn(result(Outcome.POSITIVE), signed)
    assert [n.tracking_uid for n in retracted_nodules(of)] == expected


def analysed_again(outcome: Outcome) -> ReportedCase:
    """The preliminary report after the withdrawal of a signed one with an added nodule."""
    before = ToldBefore(result(Outcome.POSITIVE), mixed_review())
    return replace(case(outcome), told_before=(before,))


@pytest.mark.parametrize("outcome", Outcome)
def test_no_analysis_takes_back_what_a_person_added(outcome: Outcome) -> None:
    of = analysed_again(outcome)
    assert "2.25.799" not in [n.tracking_uid for n in retracted_nodules(of)]
    (added,) = [n for n in reported_nodules(of) if n.nodule is None]
    assert (added.tracking_uid, added.number) == ("2.25.799", len(of.result.nodules) + 1)
    told = reported_outcome(of)
    assert told is (Outcome.POSITIVE if outcome is Outcome.NEGATIVE else outcome)

    found = {o["identifier"][0]["value"]: o for o in resources(of)["Observation"]}
    assert found["urn:oid:2.25.799"]["status"] == "final"
    assert found["urn:oid:2.25.799"]["performer"][0]["display"] == mixed_review().reviewer_name
    (report,) = resources(of)["DiagnosticReport"]
    assert len(report["result"]) == 1 + len(reported_nodules(of))

    by_group = [s for s in message(of).segments("OBX") if str(s[4]) == str(added.number)]
    standing = {str(s[3][0][0]): s for s in by_group if str(s[11]) == "F"}
    assert str(standing["112040"][5]) == "2.25.799"
    assert str(standing["112040"][16][0][0]) == mixed_review().reviewer


def test_the_next_signature_decides_on_what_was_added_before() -> None:
    of = analysed_again(Outcome.POSITIVE)
    signed = replace(of, status=ReportStatus.CORRECTED, review=accept_all(of.result))
    assert [n.tracking_uid for n in reported_nodules(signed)] == ["2.25.701", "2.25.702"]
    assert "2.25.799" in [n.tracking_uid for n in retracted_nodules(signed)]
    deleted = [s for s in message(signed).segments("OBX") if str(s[4]) == "3"]
    assert {str(s[11]) for s in deleted} == {"D"}


@pytest.mark.parametrize("outcome", Outcome)
def test_hl7_corrects_the_outcome_and_deletes_the_rest(outcome: Outcome) -> None:
    told = message(withdrawn(result(outcome)))
    assert str(told.segment("OBR")[25]) == "C"
    by_code = {str(s[3][0][0]): s for s in told.segments("OBX")}
    assert str(by_code["outcome"][5][0][0]) == "withdrawn"
    assert (str(by_code["outcome"][8]), str(by_code["outcome"][11])) == ("A", "C")
    assert (str(by_code["nodule-count"][5]), str(by_code["nodule-count"][11])) == ("", "X")
    for code in ("completeness", "reading-priority"):
        assert (str(by_code[code][5]), str(by_code[code][11])) == ("", "D")
    of_nodules = [s for s in told.segments("OBX") if str(s[4])]
    assert bool(of_nodules) == (outcome is Outcome.POSITIVE)
    assert {str(s[11]) for s in of_nodules} <= {"D"}
    assert "NEGATIVE" not in str(told)
    assert not [s for s in told.segments("OBX") if str(s[8]) == "N"]


@pytest.mark.parametrize("outcome", Outcome)
def test_fhir_marks_all_of_it_as_entered_in_error(outcome: Outcome) -> None:
    found = resources(withdrawn(result(outcome)))
    (report,) = found["DiagnosticReport"]
    assert report["status"] == "entered-in-error"
    assert report["conclusionCode"][0]["coding"][0]["code"] == "withdrawn"
    assert {o["status"] for o in found["Observation"]} == {"entered-in-error"}
    told = found["Observation"][0]
    assert told["interpretation"][0]["coding"][0]["code"] == "IND"
    (count,) = told["component"]
    assert "valueInteger" not in count
    assert found["Task"][0]["status"] == "cancelled"
    assert "priority" not in found["Task"][0]
    (provenance,) = found["Provenance"]
    assert provenance["activity"]["coding"][0]["code"] == "NULLIFY"
    assert len(provenance["target"]) == 1 + len(found["Observation"])


def test_a_withdrawal_is_the_hospitals_and_not_the_word_of_the_recalled_model() -> None:
    (provenance,) = resources(withdrawn(result(Outcome.POSITIVE), mixed_review()))["Provenance"]
    (agent,) = provenance["agent"]
    assert agent["type"]["coding"][0]["code"] == "enterer"
    assert (agent["who"]["type"], agent["who"]["display"]) == ("Organization", "bvdk")


def test_the_identifiers_are_those_of_what_is_withdrawn() -> None:
    of = withdrawn(result(Outcome.POSITIVE))
    before = ReportedCase(of.study, of.result, ReportStatus.PRELIMINARY, (), None, None)
    for kind in ("DiagnosticReport", "Observation", "Task"):
        one, other = resources(before)[kind], resources(of)[kind]
        assert [r["identifier"] for r in one] == [r["identifier"] for r in other]


def test_dicom_says_so_also_where_the_images_were_removed(tmp_path: Path) -> None:
    told = {DocumentKind.STRUCTURED_REPORT: ("1.2.9.1",), DocumentKind.SEGMENTATION: ("1.2.9.2",)}
    removed = ReceivedInstance(
        sop_instance_uid="1.2.3.9.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_instance_uid="1.2.3.9",
        transfer_syntax_uid="",
        path="removed",
        sha256="",
        size=0,
        modality="CT",
        calling_ae_title="",
        received_at=WITHDRAWN_AT,
        study=STUDY,
    )
    of = replace(
        withdrawn(result(Outcome.POSITIVE)),
        instances=(removed,),
        predecessors=told,
        held={"pacs": told},
    )
    documents = DicomEncoder(tmp_path, CountingUids(), PHOI_VERSION).encode(of)
    assert [d.kind for d in documents] == [
        DocumentKind.REJECTION_NOTE,
        DocumentKind.STRUCTURED_REPORT,
        DocumentKind.SECONDARY_CAPTURE,
    ]
    report = dcmread(BytesIO(documents[1].content))
    assert report.VerificationFlag == "UNVERIFIED"
    assert "withdrawn" in str(report)
    assert "Imaging Measurements" not in str(report)
    assert "1.2.9.1" in str(report.PredecessorDocumentsSequence)
