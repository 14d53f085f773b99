"""The FHIR Bundle: what stands in it, how a server is to take it, and what it never says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.elements import identifier, matching
from phoi_edge_node.fhir.vn_core import CITIZEN, INSURANCE
from phoi_edge_node.orders import PatientKey
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import Completeness, Outcome, Priority
from phoi_edge_node.settings import FhirSettings, SiteSettings
from phoi_edge_node.terms import COMPLETENESSES
from support.cases import (
    LEFT_BIG,
    ORDER,
    PATIENT,
    PHOI_VERSION,
    RIGHT_SMALL,
    STUDY,
    STUDY_UID,
    CountingUids,
    case,
    known,
    mixed_review,
    nodule,
    reject_all,
    result,
)

SETTINGS = FhirSettings(base_url="http://127.0.0.1:9/fhir")
ANY_TEXT = st.text(st.characters(), max_size=60)
Json = dict[str, Any]


def encode(of: ReportedCase, settings: FhirSettings = SETTINGS) -> Json:
    encoder = FhirEncoder(settings, SiteSettings(name="bvdk"), CountingUids(), PHOI_VERSION)
    (document,) = encoder.encode(of)
    assert document.kind is DocumentKind.FHIR_BUNDLE
    assert document.identity == "2.25.1"
    bundle = json.loads(document.content.decode("utf-8"))
    assert isinstance(bundle, dict)
    return bundle


def resources(bundle: Json, resource_type: str) -> list[Json]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [resource for resource in found if resource["resourceType"] == resource_type]


def one(bundle: Json, resource_type: str) -> Json:
    (found,) = resources(bundle, resource_type)
    return found


def by_code(bundle: Json, code: str) -> list[Json]:
    return [o for o in resources(bundle, "Observation") if o["code"]["coding"][0]["code"] == code]


def outcome_of(bundle: Json) -> Json:
    (found,) = by_code(bundle, "outcome")
    return found


def component(observation: Json, code: str) -> Json | None:
    found = [c for c in observation["component"] if c["code"]["coding"][0]["code"] == code]
    assert len(found) <= 1
    return found[0] if found else None


def nodules(bundle: Json) -> dict[str, Json]:
    return {o["identifier"][0]["value"]: o for o in by_code(bundle, "786838002")}


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_patient_in_vietnamese_letter_for_letter() -> None:
    patient = one(encode(case()), "Patient")
    assert patient["name"] == [
        {"text": "Nguyễn Thị Ánh Tuyết", "family": "Nguyễn", "given": ["Thị Ánh Tuyết"]}
    ]
    assert (patient["gender"], patient["birthDate"]) == ("female", "1968-02-29")
    assert patient["identifier"][0]["value"] == "BN-000123"


def test_the_imaging_order_is_named_by_its_number() -> None:
    assert "basedOn" not in one(encode(case()), "DiagnosticReport")
    report = one(encode(replace(case(), order=ORDER)), "DiagnosticReport")
    [order] = report["basedOn"]
    assert order["type"] == "ServiceRequest"
    assert order["identifier"]["value"] == "P&1"
    assert order["identifier"]["type"]["coding"][0]["code"] == "PLAC"


@pytest.mark.parametrize(
    ("status", "report_status", "task_status"),
    [
        (ReportStatus.PRELIMINARY, "preliminary", "requested"),
        (ReportStatus.FINAL, "final", "completed"),
        (ReportStatus.CORRECTED, "corrected", "completed"),
    ],
)
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_in_every_status(
    outcome: Outcome, status: ReportStatus, report_status: str, task_status: str
) -> None:
    bundle = encode(case(outcome, status))
    report = one(bundle, "DiagnosticReport")
    assert report["status"] == report_status
    assert report["conclusionCode"][0]["coding"][0]["code"] == outcome.value
    assert outcome_of(bundle)["valueCodeableConcept"]["coding"][0]["code"] == outcome.value
    assert {o["status"] for o in resources(bundle, "Observation")} == {report_status}
    assert one(bundle, "Task")["status"] == task_status


@pytest.mark.parametrize("outcome", Outcome)
def test_only_negative_reads_like_negative(outcome: Outcome) -> None:
    bundle = encode(case(outcome))
    told = outcome_of(bundle)
    count = component(told, "nodule-count")
    assert count is not None
    is_negative = outcome is Outcome.NEGATIVE
    assert (told["interpretation"][0]["coding"][0]["code"] == "N") is is_negative
    assert (count.get("valueInteger") == 0) is is_negative
    words = json.dumps(bundle, ensure_ascii=False).lower()
    assert ("negative" in words) is is_negative
    assert ("âm tính" in words) is is_negative
    if outcome in {Outcome.LIMITED, Outcome.NOT_ANALYSABLE, Outcome.FAILED}:
        assert "dataAbsentReason" in count


@pytest.mark.parametrize("how", Completeness)
def test_how_the_study_is_known_to_be_whole_is_told(how: Completeness) -> None:
    bundle = encode(replace(case(), result=known(Outcome.POSITIVE, how)))
    told = component(outcome_of(bundle), "completeness")
    assert told is not None
    assert told["valueCodeableConcept"]["coding"][0]["code"] == COMPLETENESSES[how].code
    unconfirmed = how is Completeness.UNCONFIRMED
    conclusion = one(bundle, "DiagnosticReport")["conclusion"]
    assert ("COMPLETENESS UNCONFIRMED" in conclusion) is unconfirmed


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("status", ReportStatus)
def test_every_reference_is_answered_inside_the_bundle(
    outcome: Outcome, status: ReportStatus
) -> None:
    bundle = encode(case(outcome, status))
    names = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(names)) == len(names)
    assert set(references(bundle)) <= set(names)


def test_ai_is_marked_until_and_beside_the_signature() -> None:
    def marks(bundle: Json) -> list[str]:
        return [s["code"] for s in one(bundle, "DiagnosticReport")["meta"]["security"]]

    assert marks(encode(case())) == ["AIAST"]
    signed = encode(case(status=ReportStatus.FINAL))
    assert marks(signed) == ["AIAST", "CLINAST"]
    (interpreter,) = one(signed, "DiagnosticReport")["resultsInterpreter"]
    assert interpreter["display"] == "BS. Lê Thị Hòa"


def test_a_nodule_has_place_size_and_class() -> None:
    told = nodules(encode(case()))[f"urn:oid:{LEFT_BIG.tracking_uid}"]
    assert told["bodySite"]["coding"][0]["code"] == "41224006"  # left lower lobe
    assert told["interpretation"][0]["coding"][0]["code"] == "AA"

    def value(code: str) -> object:
        found = component(told, code)
        assert found is not None
        if "valueQuantity" in found:
            return found["valueQuantity"]["value"], found["valueQuantity"]["code"]
        if "valueCodeableConcept" in found:
            return found["valueCodeableConcept"]["coding"][0]["code"]
        return found["valueString"]

    assert value("272741003") == "7771000"  # left
    assert value("81827009") == (12.3, "mm")
    assert value("103339001") == (13.3, "mm")
    assert value("103340004") == (11.3, "mm")
    assert value("118565006") == (974.3, "mm3")
    assert value("111012") == (93.4, "%")
    assert value("attenuation") == "35702001"
    assert value("1362105002") == "lung-rads-4A"
    assert value("112039") == "Nodule 1"


def test_review_modifies_rejects_and_adds() -> None:
    bundle = encode(case(Outcome.POSITIVE, ReportStatus.FINAL, mixed_review()))
    told = nodules(bundle)
    modified = told[f"urn:oid:{LEFT_BIG.tracking_uid}"]
    diameter = component(modified, "81827009")
    assert diameter is not None
    assert diameter["valueQuantity"]["value"] == 10.5
    assert component(modified, "118565006") is None
    rejected = told[f"urn:oid:{RIGHT_SMALL.tracking_uid}"]
    assert rejected["status"] == "entered-in-error"
    missed = told["urn:oid:2.25.799"]
    assert missed["meta"]["security"][0]["code"] == "CLINAST"
    assert "device" not in missed
    assert "bodySite" not in missed  # the reviewer gave a point, not a side
    results = {r["reference"] for r in one(bundle, "DiagnosticReport")["result"]}
    urls = {e["resource"]["identifier"][0]["value"]: e["fullUrl"] for e in bundle["entry"][:-1]}
    assert urls["urn:oid:2.25.799"] in results
    assert urls[f"urn:oid:{RIGHT_SMALL.tracking_uid}"] not in results


def test_all_marks_rejected_is_not_positive_any_more() -> None:
    signed = reject_all(result(Outcome.POSITIVE))
    bundle = encode(case(Outcome.POSITIVE, ReportStatus.FINAL, signed))
    assert outcome_of(bundle)["valueCodeableConcept"]["coding"][0]["code"] == "negative"
    assert {o["status"] for o in nodules(bundle).values()} == {"entered-in-error"}


def test_what_an_earlier_report_told_is_entered_in_error() -> None:
    earlier = replace(result(Outcome.POSITIVE), nodules=(nodule(8), LEFT_BIG))
    bundle = encode(replace(case(), told_before=(ToldBefore(earlier, mixed_review()),)))
    statuses = {uid: o["status"] for uid, o in nodules(bundle).items()}
    assert statuses == {
        f"urn:oid:{LEFT_BIG.tracking_uid}": "preliminary",
        f"urn:oid:{RIGHT_SMALL.tracking_uid}": "preliminary",
        "urn:oid:2.25.708": "entered-in-error",
        "urn:oid:2.25.799": "final",  # a person added it
    }


@pytest.mark.parametrize("priority", Priority)
def test_suggested_priority_is_that_of_the_task(priority: Priority) -> None:
    told = replace(case(), result=replace(result(Outcome.POSITIVE), suggested_priority=priority))
    assert one(encode(told), "Task")["priority"] == priority.value


def test_device_changes_with_the_model() -> None:
    of = result(Outcome.POSITIVE)
    other = replace(of.identity.model, bundle_hash="cd" * 32, version="1.1.0")
    retrained = replace(case(), result=replace(of, identity=replace(of.identity, model=other)))
    before, after = (one(encode(c), "Device") for c in (case(), retrained))
    assert before["identifier"][0]["value"] != after["identifier"][0]["value"]
    assert after["identifier"][1]["value"] == f"urn:oid:{other.device_uid}"
    assert [v["value"] for v in after["version"]] == ["1.1.0", PHOI_VERSION]


def test_every_request_is_conditional_on_identity() -> None:
    preliminary = encode(case())
    final = encode(case(status=ReportStatus.FINAL))

    def requests(bundle: Json) -> list[Json]:
        return [entry["request"] for entry in bundle["entry"]]

    for request in requests(preliminary):
        assert ("ifNoneExist" in request) is (request["method"] == "POST")
        assert ("?" in request["url"]) is (request["method"] == "PUT")
    # The same study is the same report, signed or not. (Provenance is of the document.)
    assert requests(preliminary)[:-1] == requests(final)[:-1]


def test_the_emrs_own_system_names_the_patient() -> None:
    settings = FhirSettings(
        base_url="http://127.0.0.1:9/fhir", patient_identifier_systems={"BVDK": "http://bvdk.vn/id"}
    )
    assert one(encode(case(), settings), "Patient")["identifier"][0]["system"] == (
        "http://bvdk.vn/id"
    )
    elsewhere = replace(case(), study=replace(STUDY, patient=replace(PATIENT, issuer="OTHER")))
    system = one(encode(elsewhere, settings), "Patient")["identifier"][0]["system"]
    assert system != "http://bvdk.vn/id"
    assert system != one(encode(case()), "Patient")["identifier"][0]["system"]


def identifiers(settings: FhirSettings, *keys: PatientKey, own: PatientKey) -> list[Json]:
    patient = replace(PATIENT, patient_id=own.patient_id, issuer=own.issuer)
    of = replace(case(), study=replace(STUDY, patient=patient), order=replace(ORDER, patients=keys))
    found = one(encode(of, settings), "Patient")["identifier"]
    assert isinstance(found, list)
    return found


VN_CORE = FhirSettings(
    base_url="http://127.0.0.1:9/fhir",
    vn_core=True,
    patient_identifier_systems={"BVDK": "http://bvdk.vn/id", "BCA": CITIZEN},
)
OWN = PatientKey("BN-1", "BVDK")


def test_viet_nam_core_names_the_citizen_and_the_insurance() -> None:
    numbers = (
        OWN,
        PatientKey("001085012345", "BCA"),
        PatientKey("HT4790123456789", "BHYT"),
        PatientKey("12", "CCCD"),  # no citizen's number, whatever it says
        PatientKey("001085012345", "ELSEWHERE"),
    )
    first, *others = identifiers(VN_CORE, *numbers, own=OWN)
    assert (first["system"], first["value"]) == ("http://bvdk.vn/id", "BN-1")
    assert first["type"]["coding"][0]["code"] == "MR"
    assert others == [
        {"system": CITIZEN, "value": "001085012345"},
        {"system": INSURANCE, "value": "HT4790123456789"},
    ]
    without = VN_CORE.model_copy(update={"vn_core": False})
    assert identifiers(without, *numbers, own=OWN) == [first]


def test_a_citizens_number_may_be_the_hospitals_own() -> None:
    citizen = PatientKey("001085012345", "CCCD")
    [only] = identifiers(VN_CORE, citizen, own=citizen)
    assert only == {"system": CITIZEN, "value": "001085012345"}
    unfit = PatientKey("00108501234", "CCCD")
    [own] = identifiers(VN_CORE, unfit, own=unfit)
    assert own["system"] != CITIZEN


def test_patients_without_id_are_never_one_patient() -> None:
    nameless = replace(STUDY, patient=replace(PATIENT, patient_id="  "))
    patient = one(encode(replace(case(), study=nameless)), "Patient")
    assert patient["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY_UID}"}]


def test_same_case_same_bytes() -> None:
    assert encode(case()) == encode(case())


@given(ANY_TEXT.filter(lambda text: text.strip()))
def test_a_condition_names_one_value_whatever_stands_in_it(value: str) -> None:
    clean = value.encode("utf-8", "replace").decode()
    ((key, token),) = parse_qsl(
        matching(identifier("urn:oid:1.2", clean)), keep_blank_values=True, strict_parsing=True
    )
    assert key == "identifier"
    system, _, escaped = token.partition("|")
    assert system == "urn:oid:1.2"
    unescaped, rest = "", iter(escaped)
    for character in rest:
        assert character not in "|,$"
        unescaped += next(rest) if character == "\\" else character
    assert unescaped == clean


@example(name="\ud800^\x0b|&", patient_id="\udfff\r\n\x1c", description="\x85\u2028\ud800")
@given(name=ANY_TEXT, patient_id=ANY_TEXT, description=ANY_TEXT)
def test_no_text_breaks_the_bundle(name: str, patient_id: str, description: str) -> None:
    patient = replace(PATIENT, name=name, patient_id=patient_id, issuer=description)
    study = replace(STUDY, patient=patient, accession_number=patient_id, description=description)
    bundle = encode(replace(case(), study=study))
    assert len(bundle["entry"]) == len(encode(case())["entry"])
    assert all(resource["resourceType"] for resource in resources(bundle, "Patient"))
