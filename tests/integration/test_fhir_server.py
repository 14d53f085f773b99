"""Bundles before a FHIR server that was not written here (sekmet-fhir)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import Delivered, Document, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.settings import FhirSettings, SiteSettings
from support.cases import (
    PATIENT,
    PHOI_VERSION,
    SIGNED_AT,
    STUDY,
    CountingUids,
    case,
    mixed_review,
)
from support.emr import running_fhir_server

COUNTED = (
    "Patient",
    "ImagingStudy",
    "Device",
    "Observation",
    "DiagnosticReport",
    "Task",
    "Provenance",
)
_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_fhir_server(tmp_path_factory.mktemp("fhir")) as base_url:
        yield base_url


@pytest.fixture
def emr(server: str) -> FhirDestination:
    return FhirDestination(FhirSettings(base_url=server))


@pytest.fixture
def new_case() -> ReportedCase:
    """A study, a patient and nodules that the server has not seen in any other test."""
    number = next(_numbers)
    patient = replace(PATIENT, patient_id=f"BN-{number}, A|B&C=D\\E")
    study = replace(STUDY, study_instance_uid=f"1.2.3.{number}", patient=patient)
    told = case()
    nodules = tuple(
        replace(n, tracking_uid=f"2.25.{number}70{n.number}") for n in told.result.nodules
    )
    return replace(told, study=study, result=replace(told.result, nodules=nodules))


def signed(of: ReportedCase) -> ReportedCase:
    """Signed with ``mixed_review``, of this case's own nodules."""
    review = mixed_review()
    own = [n.tracking_uid for n in of.result.nodules] + [of.result.nodules[0].tracking_uid + "99"]
    dispositions = tuple(
        replace(d, tracking_uid=uid) for d, uid in zip(review.dispositions, own, strict=True)
    )
    return replace(of, status=ReportStatus.FINAL, review=replace(review, dispositions=dispositions))


def encode(of: ReportedCase) -> Document:
    settings = FhirSettings(base_url="http://127.0.0.1:9/fhir")
    uids = CountingUids(first=next(_numbers))  # every document is another
    encoder = FhirEncoder(settings, SiteSettings(name="bvdk"), uids, PHOI_VERSION)
    (document,) = encoder.encode(of)
    return document


def totals(server: str) -> dict[str, int]:
    return {
        name: httpx.get(f"{server}/{name}", params={"_summary": "count"}, timeout=60).json()[
            "total"
        ]
        for name in COUNTED
    }


def found(server: str, resource_type: str, value: str) -> dict[str, Any]:
    (entry,) = httpx.get(
        f"{server}/{resource_type}",
        params={"identifier": f"urn:dicom:uid|urn:oid:{value}"},
        timeout=60,
    ).json()["entry"]
    resource = entry["resource"]
    assert isinstance(resource, dict)
    return resource


def test_check_reads_the_capability_statement(emr: FhirDestination) -> None:
    assert emr.check() == Delivered("FHIR 4.0.1")  # and it names all that Phoi needs


def test_sent_twice_is_there_once(
    server: str, emr: FhirDestination, new_case: ReportedCase
) -> None:
    document = encode(new_case)
    assert isinstance(emr.send(document), Delivered)
    once = totals(server)
    assert isinstance(emr.send(document), Delivered)
    assert totals(server) == once


def test_vietnamese_name_is_read_back_letter_for_letter(
    server: str, emr: FhirDestination, new_case: ReportedCase
) -> None:
    assert isinstance(emr.send(encode(new_case)), Delivered)
    study = found(server, "ImagingStudy", new_case.study.study_instance_uid)
    patient = httpx.get(f"{server}/{study['subject']['reference']}", timeout=60).json()
    assert patient["name"][0]["text"] == "Nguyễn Thị Ánh Tuyết"
    assert patient["identifier"][0]["value"] == new_case.study.patient.patient_id
    assert study["description"] == "CT NGỰC"


def test_signing_updates_what_is_there(
    server: str, emr: FhirDestination, new_case: ReportedCase
) -> None:
    assert isinstance(emr.send(encode(new_case)), Delivered)
    before = totals(server)
    assert isinstance(emr.send(encode(signed(new_case))), Delivered)
    after = totals(server)
    added = {name: after[name] - before[name] for name in COUNTED if after[name] != before[name]}
    assert added == {"Observation": 1, "Provenance": 1}  # the missed nodule; who signed
    kept, rejected = (
        found(server, "Observation", nodule.tracking_uid) for nodule in new_case.result.nodules
    )
    assert (kept["status"], rejected["status"]) == ("final", "entered-in-error")


def test_a_correction_replaces_the_signed_report(
    server: str, emr: FhirDestination, new_case: ReportedCase
) -> None:
    final = signed(new_case)
    assert isinstance(emr.send(encode(final)), Delivered)
    corrected = replace(final, status=ReportStatus.CORRECTED)
    assert isinstance(emr.send(encode(corrected)), Delivered)
    study = found(server, "ImagingStudy", new_case.study.study_instance_uid)
    (entry,) = httpx.get(
        f"{server}/DiagnosticReport",
        params={"subject": study["subject"]["reference"]},
        timeout=60,
    ).json()["entry"]
    assert entry["resource"]["status"] == "corrected"
    history = httpx.get(
        f"{server}/DiagnosticReport/{entry['resource']['id']}/_history", timeout=60
    ).json()
    assert [e["resource"]["status"] for e in history["entry"]] == ["corrected", "final"]


def test_the_whole_life_of_a_report_leaves_one_of_each_with_its_history(
    server: str, emr: FhirDestination, new_case: ReportedCase
) -> None:
    before = totals(server)
    final = signed(new_case)
    earlier = ToldBefore(final.result, final.review)
    life = (
        new_case,
        final,
        replace(final, status=ReportStatus.CORRECTED),
        replace(
            new_case, status=ReportStatus.WITHDRAWN, told_before=(earlier,), withdrawn_at=SIGNED_AT
        ),
    )
    for told in life:
        document = encode(told)
        for _ in range(2):
            assert isinstance(emr.send(document), Delivered)
    added = {name: number - before[name] for name, number in totals(server).items()}
    assert added == {
        "Patient": 1,
        "ImagingStudy": 1,
        "Device": 0 if before["Device"] else 1,
        "Observation": 4,  # the outcome, two of the model, one that the reviewer added
        "DiagnosticReport": 1,
        "Task": 1,
        "Provenance": len(life),
    }
    nodule = found(server, "Observation", new_case.result.nodules[0].tracking_uid)
    assert nodule["status"] == "entered-in-error"
    history = httpx.get(f"{server}/Observation/{nodule['id']}/_history", timeout=60).json()
    kept = [entry["resource"]["status"] for entry in history["entry"]]
    assert list(dict.fromkeys(reversed(kept))) == [
        "preliminary",
        "final",
        "corrected",
        "entered-in-error",
    ]
