"""Bundles of every outcome and status before validators that were not written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.ports import DocumentEncoder, ReportedCase, ReportStatus
from phoi_edge_node.result import Outcome, Patient
from phoi_edge_node.settings import FhirSettings, SiteSettings
from support.analysed import case_of, healthy_chest
from support.cases import PHOI_VERSION, STUDY, CountingUids, case
from support.emr import fhir_faults, fhirkit_faults
from support.told_cases import CASES

SITE = SiteSettings(name="bvdk")


def content(encoder: DocumentEncoder, of: ReportedCase) -> bytes:
    (document,) = encoder.encode(of)
    return document.content


def test_fhir_validators_find_no_fault() -> None:
    bundles = {name: content(_fhir_encoder(), of) for name, of in CASES.items()}
    assert fhir_faults(bundles) == []


def test_fhir_validators_would_find_a_fault() -> None:
    sound = content(_fhir_encoder(), case())
    planted: dict[str, dict[str, Any]] = {
        name: json.loads(sound) for name in ("status", "number", "element", "reference")
    }

    def observation(name: str) -> dict[str, Any]:
        found = planted[name]["entry"][4]["resource"]
        assert isinstance(found, dict)
        return found

    del observation("status")["status"]
    observation("number")["component"][3]["valueQuantity"]["value"] = "two"
    observation("element")["finding"] = "nodule"
    observation("reference")["subject"]["reference"] = (
        "urn:uuid:00000000-0000-4000-8000-000000000000"
    )
    faults = fhir_faults({name: json.dumps(b).encode() for name, b in planted.items()})
    by_fhirkit = [fault for fault in faults if fault.startswith("fhirkit")]
    for name in ("status", "number", "element"):
        assert any(fault.endswith(f"{name}.json: 1 issue(s)") for fault in by_fhirkit)
    by_pyrofile = "\n".join(fault for fault in faults if fault.startswith("pyrofile"))
    for words in ("status is required", "Unknown element", "does not resolve"):
        assert words in by_pyrofile


def _fhir_encoder() -> FhirEncoder:
    settings = FhirSettings(base_url="http://127.0.0.1:9/fhir", vn_core=True)
    return FhirEncoder(settings, SITE, CountingUids(), PHOI_VERSION)


def test_the_model_on_a_healthy_chest_gives_a_valid_negative(tmp_path: Path) -> None:
    healthy = case_of(healthy_chest(tmp_path / "ct"), tmp_path)
    assert healthy.result.outcome is Outcome.NEGATIVE
    assert fhir_faults({"healthy": content(_fhir_encoder(), healthy)}) == []


ANY_TEXT = st.text(st.characters(), max_size=70)  # lone surrogates and controls too
CASES_OF_ANY_WORDS = st.lists(
    st.builds(
        lambda patient, study_words, outcome, status: replace(
            case(outcome, status),
            study=replace(
                STUDY,
                patient=patient,
                accession_number=study_words[0],
                description=study_words[1],
                started_at=study_words[2],
            ),
        ),
        st.builds(
            Patient,
            patient_id=ANY_TEXT,
            issuer=ANY_TEXT,
            name=ANY_TEXT,
            birth_date=st.none() | st.dates(),
            sex=st.sampled_from(["M", "F", "O", "", "X"]),
        ),
        st.tuples(ANY_TEXT, ANY_TEXT, st.none() | st.datetimes()),
        st.sampled_from(Outcome),
        st.sampled_from(ReportStatus),
    ),
    min_size=20,
    max_size=20,
)


@settings(max_examples=5, deadline=None)
@given(CASES_OF_ANY_WORDS)
def test_any_words_make_a_bundle_that_others_find_valid(cases: list[ReportedCase]) -> None:
    bundles = {str(n): content(_fhir_encoder(), of) for n, of in enumerate(cases)}
    assert fhirkit_faults(bundles) == []
