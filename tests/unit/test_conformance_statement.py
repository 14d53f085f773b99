"""The conformance statement says what the code does."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from phoi_edge_node import order_lookup
from phoi_edge_node.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE
from phoi_edge_node.dicom import acceptor, part10, storage_scu, stow, taking, worklist
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.query_retrieve import FIND, GET, MOVE
from phoi_edge_node.dicom.storage_commitment import PUSH_MODEL
from phoi_edge_node.dicom.storage_scp import SOP_CLASSES, TRANSFER_SYNTAXES
from phoi_edge_node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from phoi_edge_node.ports import DocumentKind, ReportStatus
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Outcome,
    SignedReview,
    Verdict,
)
from phoi_edge_node.settings import DicomSettings
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Lobe, Side
from pydicom import Dataset
from support.chests import plain_chest
from support.dicom_phantom import write_series
from support.reported_cases import CountingUids, ball, case_of, read_images

AT = datetime(2026, 3, 15, tzinfo=UTC)
STATEMENT = Path(__file__).parents[2] / "docs" / "conformance-statement.md"


@pytest.fixture(scope="module")
def statement() -> str:
    return STATEMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Every kind of object, with every kind of content."""
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, plain_chest(spacing_mm=(20.0, 10.0, 10.0)))
    images = read_images(folder)
    found = ball(images.volume.geometry, (72.0, 30.0, 12.0), 44.0, Side.LEFT)
    mixed = replace(found, attenuation=Attenuation.PART_SOLID, solid_diameter_mm=7.0)
    ground_glass = replace(found, attenuation=Attenuation.NON_SOLID, lobe=Lobe.LEFT_LOWER)
    positive = case_of(images, Outcome.POSITIVE, [found, mixed, ground_glass])
    accepted, modified = (n.tracking_uid for n in positive.result.nodules[:2])
    size, place = Correction(mean_diameter_mm=9.0), Correction((72.0, 30.0, 12.0), 9.0)
    review = SignedReview(
        "duc",
        "Đức",
        AT,
        (
            Disposition(accepted, Verdict.ACCEPTED, "duc", AT),
            Disposition(modified, Verdict.MODIFIED, "duc", AT, correction=size),
            Disposition("2.25.77", Verdict.MISSED, "duc", AT, correction=place),
        ),
    )
    known = [replace(positive.result, completeness=how) for how in Completeness]
    cases = [
        positive,
        *(replace(positive, result=result) for result in known),
        replace(positive, status=ReportStatus.FINAL, review=review),
        replace(
            positive,
            status=ReportStatus.WITHDRAWN,
            held={"pacs": {DocumentKind.STRUCTURED_REPORT: ("2.25.1",)}},
        ),
        case_of(images, Outcome.NOT_ANALYSABLE, reason=NotAnalysableReason.NOT_AXIAL),
    ]
    encoder = DicomEncoder(images.root, CountingUids(), "0.1.0")
    documents = [document for case in cases for document in encoder.encode(case)]
    return [pydicom.dcmread(io.BytesIO(document.content)) for document in documents]


def test_every_sop_class_and_transfer_syntax_is_listed(
    statement: str, objects: list[Dataset]
) -> None:
    uids = {*SOP_CLASSES, *TRANSFER_SYNTAXES, *(o.SOPClassUID for o in objects)}
    assert [uid for uid in uids if f"| {uid} |" not in statement] == []


def test_every_service_that_is_asked_for_is_listed(statement: str) -> None:
    assert [uid for uid in (FIND, MOVE, GET) if f"| {uid} |" not in statement] == []


def test_stow_and_the_worklist_are_listed(statement: str) -> None:
    assert f"SOP Class {worklist.FIND}," in statement
    assert f"at most {order_lookup.TRIES} times" in statement
    reasons = {
        *(stow.PROCESSING_FAILURE, part10.SOP_CLASS_NOT_SUPPORTED),
        *(part10.TRANSFER_SYNTAX_NOT_SUPPORTED, taking.OUT_OF_RESOURCES),
        *(taking.DUPLICATE_SOP_INSTANCE, taking.CANNOT_UNDERSTAND),
        taking.DATA_SET_DOES_NOT_MATCH,
    }
    section = statement.split("### 2.5")[1].split("### 2.6")[0]
    assert {f"{reason:04X}" for reason in reasons} == set(
        re.findall(r"^\| ([0-9A-F]{4}) \|", section, re.MULTILINE)
    )
    assert f"| 503 | {stow.MAXIMUM_REQUESTS} requests" in section
    assert f"| 408 | nothing came for {stow.STALL_TIMEOUT_S:g} s |" in section


def test_storage_commitment_is_listed(statement: str) -> None:
    assert PUSH_MODEL in statement
    for reason in (PROCESSING_FAILURE, NO_SUCH_INSTANCE, CLASS_CONFLICT):
        assert f"| {reason:04X} |" in statement


def test_every_code_of_the_reports_is_listed(statement: str, objects: list[Dataset]) -> None:
    codes = {code for dataset in objects for code in _codes(dataset)}
    assert len(codes) > 60
    listed = re.sub(r"[`,;()]", " ", statement)
    assert {code for code in codes if f" {code} " not in listed} == set()


def test_the_policies_of_associations_are_as_said(statement: str) -> None:
    dicom = DicomSettings()
    at_once = (
        f"| {dicom.maximum_associations}, of one address {dicom.maximum_associations_per_peer} "
    )
    assert at_once in statement
    assert f"bytes | {acceptor.MAXIMUM_PDU} | {storage_scu.MAXIMUM_PDU} |" in statement
    assert f"| {IMPLEMENTATION_CLASS_UID} |" in statement
    assert f"| {IMPLEMENTATION_VERSION_NAME} |" in statement


def test_the_table_of_ai_results_decides_every_row_and_names_a_section_that_exists(
    statement: str,
) -> None:
    rows = re.findall(
        r"^\| (.+?) \| (yes|no|.*?) \| (.+) \|$", _section(statement, "7"), re.MULTILINE
    )
    decided = [row for row in rows if row[0] not in {"Requirement", "---"}]
    assert len(decided) > 15
    assert {met for _, met, _ in decided} == {"yes", "no"}
    for requirement, met, where in decided:
        named = re.findall(r"(?<![0-9])[2-5](?:\.[0-9])?(?![0-9])", where)
        assert named or met == "no", requirement
        for number in named:
            assert re.search(rf"^##+ {re.escape(number)}[. ]", statement, re.MULTILINE), number


def test_no_object_is_of_a_kind_that_ai_results_forbids(objects: list[Dataset]) -> None:
    assert {dataset.Modality for dataset in objects} == {"SEG", "SR", "OT", "KO"}
    templates = {
        dataset.ContentTemplateSequence[0].TemplateIdentifier
        for dataset in objects
        if dataset.Modality in {"SR", "KO"}
    }
    assert templates == {"1500", "2010"}


def test_the_algorithm_is_the_same_in_the_tree_and_in_the_equipment(
    objects: list[Dataset],
) -> None:
    for report in (dataset for dataset in objects if dataset.Modality == "SR"):
        (equipment,) = report.ContributingEquipmentSequence
        told = {
            (str(item.ConceptNameCodeSequence[0].CodeValue), str(item.TextValue))
            for item in _items(report)
            if item.ValueType == "TEXT"
        }
        names = {text for code, text in told if code == "111001"}
        versions = {text for code, text in told if code == "111003"}
        assert names <= {equipment.ManufacturerModelName}
        assert versions <= {equipment.SoftwareVersions[0]}
        assert equipment.DeviceUID.startswith("2.25.")


def _section(statement: str, number: str) -> str:
    return re.split(r"^## ", statement.split(f"## {number}. ")[1], maxsplit=1, flags=re.MULTILINE)[
        0
    ]


def _items(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from _items(child)


def test_every_reason_is_listed(statement: str) -> None:
    assert [r for r in NotAnalysableReason if f"`{r.value}`" not in statement] == []


def test_series_are_named_as_said(statement: str, objects: list[Dataset]) -> None:
    numbers = {str(number) for number in range(9101, 9106)}
    assert {str(dataset.SeriesNumber) for dataset in objects} == numbers
    for dataset in objects:
        assert str(dataset.SeriesNumber) in statement
        assert dataset.SeriesDescription.startswith("Phoi AI")


def _codes(item: Dataset) -> Iterator[str]:
    """All code values of a content tree but units, which are UCUM's."""
    for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
        for code in item.get(keyword, []):
            yield str(code.get("CodeValue") or code.LongCodeValue)
    for child in item.get("ContentSequence", []):
        yield from _codes(child)
