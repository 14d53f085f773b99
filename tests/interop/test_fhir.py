"""Bundles before Medplum's server and validator, and before the npm package "fhir"."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import Delivered, Document, ReportedCase, ReportStatus
from phoi_edge_node.result import Outcome, TriageResult
from phoi_edge_node.settings import FhirSettings, SiteSettings
from support.analysed import case_of, healthy_chest
from support.cases import PHOI_VERSION, STUDY, CountingUids, case
from support.told_cases import CASES

HERE = Path(__file__).parent
SETTINGS = FhirSettings(base_url="http://127.0.0.1:9/fhir", vn_core=True)
Json = dict[str, Any]

# The package "fhir" looks into value sets that R4 binds loosely (example, preferred, extensible),
# or that it does not hold. RAD is in v2-0074, A, AA, IND and N in v3-ObservationInterpretation.
LOOSELY_BOUND = re.compile(
    r"(Observation\.(code|bodySite|component\[\d+\]\.code)"
    r"|DiagnosticReport\.(code|category\[0\]|conclusionCode\[0\])|Task\.code"
    r"|Provenance\.meta\.tag\[0\]|Observation\.interpretation\[0\])"
)
NOT_FOUND = re.compile(r'Code "[^"]+" \([^)]+\) not found in value set')
# Medplum does not resolve references within a transaction (R4, 3.1.0.11.2): that is done here.
REFERENCE = re.compile(r'Invalid reference: got "(urn:uuid:[^"]+)", expected (.+)')
_numbers = count(1)


def encode(of: ReportedCase) -> Document:
    uids = CountingUids(first=next(_numbers))  # every document is another
    encoder = FhirEncoder(SETTINGS, SiteSettings(name="bvdk"), uids, PHOI_VERSION)
    (document,) = encoder.encode(of)
    return document


def faults(folder: Path, bundles: Mapping[str, Json]) -> dict[str, list[str]]:
    """What both validators find wrong in each; warnings count."""
    for name, bundle in bundles.items():
        (folder / f"{name}.json").write_text(json.dumps(bundle), encoding="utf-8")
    assert (HERE / "node_modules").is_dir(), "run scripts/install-interop-tools first"
    command = ["node", str(HERE / "validate.mjs"), *map(str, sorted(folder.glob("*.json")))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return {
        name: [_words(issue) for issue in told[f"{name}.json"] if _stands(issue, bundle)]
        for name, bundle in bundles.items()
    }


def _words(issue: Json) -> str:
    return f"{issue['by']}: {issue['severity']} {issue['at']}: {issue['text']}"


def _stands(issue: Json, bundle: Json) -> bool:
    if issue["severity"].startswith("info"):
        return False
    if unresolved := REFERENCE.fullmatch(issue["text"]):
        return not _resolves(bundle, unresolved[1], unresolved[2])
    loosely = LOOSELY_BOUND.fullmatch(issue["at"]) and NOT_FOUND.fullmatch(issue["text"])
    return not (issue["by"] == "fhir" and issue["severity"] == "warning" and loosely)


def _resolves(bundle: Json, url: str, expected: str) -> bool:
    """Is there an entry of that name, of one of the types that R4 expects?"""
    profiles = expected.replace('"', "").split(", ")
    return any(
        f"http://hl7.org/fhir/StructureDefinition/{entry['resource']['resourceType']}" in profiles
        for entry in bundle["entry"]
        if entry["fullUrl"] == url
    )


def test_both_validators_find_no_fault(tmp_path: Path) -> None:
    bundles = {name: json.loads(encode(of).content) for name, of in CASES.items()}
    assert {n: found for n, found in faults(tmp_path, bundles).items() if found} == {}


@pytest.fixture(scope="module", params=["ct", "healthy"])
def real(
    request: pytest.FixtureRequest, ct_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ReportedCase:
    """What the model that comes with Phoi says of a real CT, and of a made one without a nodule."""
    folder = tmp_path_factory.mktemp("ct")
    return case_of(ct_folder if request.param == "ct" else healthy_chest(folder / "ct"), folder)


def test_both_validators_find_no_fault_in_what_the_model_says(
    real: ReportedCase, tmp_path: Path
) -> None:
    document = encode(real)
    [found] = faults(tmp_path, {"real": json.loads(document.content)}).values()
    _say(f"medplum and fhir: {len(found)} errors or warnings that stand in {_size(document)}")
    assert found == []


def _size(document: Document) -> str:
    bundle = json.loads(document.content)
    report = _of(bundle, "DiagnosticReport")
    outcome = report["conclusionCode"][0]["coding"][0]["code"]
    return f"a {outcome} Bundle of {len(bundle['entry'])} resources"


def _say(line: str) -> None:
    print(line)  # noqa: T201 - a run is quoted: make interop ARGS=-s


# --- faults that are planted ----------------------------------------------------------------------


def _of(bundle: Json, resource_type: str) -> Json:
    return next(
        entry["resource"]
        for entry in bundle["entry"]
        if entry["resource"]["resourceType"] == resource_type
    )


def _no_status(bundle: Json) -> None:
    del _of(bundle, "Observation")["status"]


def _status_of_no_value_set(bundle: Json) -> None:
    _of(bundle, "DiagnosticReport")["status"] = "done"


def _gender_as_in_dicom(bundle: Json) -> None:
    _of(bundle, "Patient")["gender"] = "F"


def _birth_date_as_in_dicom(bundle: Json) -> None:
    _of(bundle, "Patient")["birthDate"] = "29/02/1968"


def _number_as_words(bundle: Json) -> None:
    _of(bundle, "Observation")["component"][0]["valueInteger"] = "two"


def _unknown_element(bundle: Json) -> None:
    _of(bundle, "Observation")["finding"] = "nodule"


def _no_code(bundle: Json) -> None:
    del _of(bundle, "DiagnosticReport")["code"]


def _dangling_reference(bundle: Json) -> None:
    _of(bundle, "Observation")["subject"] = {
        "reference": "urn:uuid:00000000-0000-4000-8000-000000000000"
    }


def _reference_to_another_type(bundle: Json) -> None:
    patient = next(e for e in bundle["entry"] if e["resource"]["resourceType"] == "Patient")
    _of(bundle, "DiagnosticReport")["result"] = [{"reference": patient["fullUrl"]}]


def _one_where_many_may_be(bundle: Json) -> None:
    patient = _of(bundle, "Patient")
    patient["name"] = patient["name"][0]


def _no_agent(bundle: Json) -> None:
    del _of(bundle, "Provenance")["agent"]


PLANTED: dict[str, Callable[[Json], None]] = {
    plant.__name__: plant
    for plant in (
        _no_status,
        _status_of_no_value_set,
        _gender_as_in_dicom,
        _birth_date_as_in_dicom,
        _number_as_words,
        _unknown_element,
        _no_code,
        _dangling_reference,
        _reference_to_another_type,
        _one_where_many_may_be,
        _no_agent,
    )
}


def test_both_validators_would_find_a_fault(tmp_path: Path) -> None:
    sound = encode(case()).content
    bundles = {name: json.loads(sound) for name in PLANTED}
    for name, plant in PLANTED.items():
        plant(bundles[name])
    assert [name for name, found in faults(tmp_path, bundles).items() if not found] == []


# --- a server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medplum(node_program: Any) -> Iterator[str]:
    with node_program("medplum_server.mjs") as told:
        yield f"http://127.0.0.1:{told['port']}/fhir"


def test_medplum_takes_what_the_model_says_twice_and_keeps_it_once(
    medplum: str, real: ReportedCase
) -> None:
    emr = FhirDestination(SETTINGS.model_copy(update={"base_url": medplum}))
    document = encode(real)
    assert emr.send(document) == Delivered("HTTP 200")
    once = {name: len(found) for name, found in stored(medplum).items()}
    assert emr.send(document) == Delivered("HTTP 200")
    assert {name: len(found) for name, found in stored(medplum).items()} == once
    _say(f"Medplum took {_size(document)} twice without a duplicate")


def stored(base_url: str) -> dict[str, list[Json]]:
    """All that the server holds, by type."""
    types = {
        entry["resource"]["resourceType"] for entry in json.loads(encode(case()).content)["entry"]
    }
    return {
        name: [
            entry["resource"]
            for entry in httpx.get(f"{base_url}/{name}", params={"_count": 1000})
            .json()
            .get("entry", [])
        ]
        for name in types
    }


def _with_nodules_of(uid: str, of: ReportedCase) -> ReportedCase:
    """The case with nodules of its own study, also in what was told before."""

    def anew(result: TriageResult) -> TriageResult:
        own = tuple(replace(n, tracking_uid=f"{uid}.{n.number}") for n in result.nodules)
        return replace(result, nodules=own)

    told = tuple(replace(before, result=anew(before.result)) for before in of.told_before)
    return replace(of, result=anew(of.result), told_before=told)


@pytest.mark.parametrize("outcome", Outcome)
def test_medplum_takes_a_report_from_preliminary_to_withdrawn(
    medplum: str, outcome: Outcome
) -> None:
    emr = FhirDestination(SETTINGS.model_copy(update={"base_url": medplum}))
    uid = f"1.2.3.{next(_numbers)}"
    patient = replace(STUDY.patient, patient_id=f"BN-{uid}")
    study = replace(STUDY, study_instance_uid=uid, patient=patient)
    before = stored(medplum)
    for status in ReportStatus:
        document = encode(_with_nodules_of(uid, replace(case(outcome, status), study=study)))
        for _ in range(2):
            assert emr.send(document) == Delivered("HTTP 200")
    after = stored(medplum)
    more = {name: len(after[name]) - len(before[name]) for name in after}
    told = len(case(outcome).result.nodules)
    assert more.pop("Device") <= 1, "one for all reports of a model"
    assert more == {
        "Patient": 1,
        "ImagingStudy": 1,
        "Observation": 1 + told,
        "DiagnosticReport": 1,
        "Task": 1,
        "Provenance": len(ReportStatus),
    }
    assert "urn:uuid:" not in json.dumps(after)
    report = after["DiagnosticReport"][-1]
    history = httpx.get(f"{medplum}/DiagnosticReport/{report['id']}/_history").json()
    kept = [entry["resource"]["status"] for entry in history["entry"]]
    # The server keeps a version of each: what came twice stands twice in the history only.
    assert list(dict.fromkeys(reversed(kept))) == [
        "preliminary",
        "final",
        "corrected",
        "entered-in-error",
    ]
    assert {o["status"] for o in after["Observation"][-1 - told :]} == {"entered-in-error"}
