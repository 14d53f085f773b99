"""Every DICOM object of a result, judged by tools that are not ours.

First what the model that comes with Phoi found in a real CT and in a phantom of healthy lungs; then
made-up results on the real CT, for every outcome and every kind of content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.ports import Document, DocumentKind, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Outcome,
    SignedReview,
    Verdict,
)
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Lobe, LungCoverage, Side
from support.analysed import healthy_chest, objects_of
from support.cases import ORDER
from support.real_ct import NODULE_LPS_MM as READERS_CENTER
from support.real_ct import lidc_idri_0001
from support.reported_cases import CountingUids, Images, ball, case_of, read_images
from support.seg_reader import read_segments
from support.validators import (
    dciodvfy_errors,
    dciodvfy_warnings,
    dcm2json,
    dcmdump_value,
    dcmqi_groups,
    dcmqi_segments,
    dsrdump,
    gdcminfo,
    pixelmed_errors,
)

NAME = "Nguyễn^Thị Ánh Tuyết"
# The nodule that four readers marked, and a place in the other lung.
NODULE_LPS_MM = (56.0, 86.0, -116.0)
OTHER_LPS_MM = (-60.0, 60.0, -150.0)
SIGNED_AT = datetime(2026, 3, 15, 3, 0, 0, tzinfo=UTC)
CASES = (
    "positive",
    "negative",
    "limited",
    "not_analysable",
    "failed",
    "signed",
    "unconfirmed",
    "long_number",
    "again",
    "all_rejected",
    "withdrawn",
)


@pytest.fixture(scope="module")
def images() -> Images:
    return read_images(lidc_idri_0001())


@pytest.fixture(scope="module")
def cases(images: Images) -> Mapping[str, ReportedCase]:
    geometry = images.volume.geometry
    left = ball(geometry, NODULE_LPS_MM, 12.0, Side.LEFT)
    right = replace(
        ball(geometry, OTHER_LPS_MM, 8.0, Side.RIGHT),
        lobe=Lobe.RIGHT_LOWER,
        attenuation=Attenuation.PART_SOLID,
        solid_diameter_mm=4.0,
    )
    ordered = replace(case_of(images, Outcome.POSITIVE, [left, right]), order=ORDER)
    positive = _known(ordered, Completeness.CONFIRMED)
    first, second = positive.result.nodules
    told = {kind: (f"2.25.{n}",) for n, kind in enumerate(DocumentKind, start=1)}
    added = Disposition(
        "2.25.77",
        Verdict.MISSED,
        "duc",
        SIGNED_AT,
        correction=Correction((-50.0, 40.0, -120.0), 5.5),
    )
    recalled = _signed(positive, added)
    return {
        "positive": positive,
        "negative": _known(case_of(images, Outcome.NEGATIVE), Completeness.BY_GEOMETRY),
        "limited": _known(
            case_of(
                images,
                Outcome.LIMITED,
                coverage=LungCoverage(apex=True, base=False, volume_ml=3000.0),
            ),
            Completeness.UNCONFIRMED,
        ),
        "not_analysable": case_of(
            images,
            Outcome.NOT_ANALYSABLE,
            reason=NotAnalysableReason.INCONSISTENT_GEOMETRY,
            detail="two slices lie at the same place",
        ),
        "failed": case_of(images, Outcome.FAILED, detail="the worker refused the model"),
        "signed": _signed(
            positive,
            Disposition(
                first.tracking_uid,
                Verdict.MODIFIED,
                "duc",
                SIGNED_AT,
                correction=Correction(mean_diameter_mm=31.2),
            ),
            Disposition(second.tracking_uid, Verdict.ACCEPTED, "duc", SIGNED_AT),
            added,
        ),
        "again": replace(
            case_of(images, Outcome.NEGATIVE),
            told_before=(ToldBefore(recalled.result, recalled.review),),
        ),
        "unconfirmed": _known(positive, Completeness.UNCONFIRMED),
        "long_number": replace(
            positive,
            study=replace(positive.study, accession_number=""),
            order=replace(ORDER, accession_number="BVDK-2026-11-23-00000017"),
        ),
        "all_rejected": _signed(
            positive,
            Disposition(first.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT),
            Disposition(second.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT),
        ),
        "withdrawn": replace(
            case_of(images, Outcome.NEGATIVE),
            status=ReportStatus.WITHDRAWN,
            predecessors=told,
            held={"pacs": told},
        ),
    }


@pytest.fixture(scope="module")
def files(
    images: Images,
    cases: Mapping[str, ReportedCase],
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Mapping[DocumentKind, Path]]:
    """Every document of every case, as a file."""
    folder = tmp_path_factory.mktemp("documents")
    written = {}
    for name, case in cases.items():
        documents = DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case)
        written[name] = {
            d.kind: _write(folder / f"{name}.{d.kind.value}.dcm", d) for d in documents
        }
    return written


Files = Mapping[str, Mapping[DocumentKind, Path]]
SEG, SR, SC, KOS = (
    DocumentKind.SEGMENTATION,
    DocumentKind.STRUCTURED_REPORT,
    DocumentKind.SECONDARY_CAPTURE,
    DocumentKind.KEY_OBJECTS,
)


# --- what the shipped model found ----------------------------------------------------------------


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """LIDC-IDRI-0001, and a phantom without nodules, each analysed by ``phoi analyze``."""
    folder = tmp_path_factory.mktemp("analysed")
    cts = {"lidc": lidc_idri_0001(), "phantom": healthy_chest(folder / "healthy")}
    return {name: objects_of(ct, folder / f"of-{name}") for name, ct in cts.items()}


def test_the_real_nodule_gives_every_object_and_the_phantom_those_of_nothing_found(
    analysed: Files,
) -> None:
    assert set(analysed["lidc"]) == {SEG, SR, SC, KOS}
    assert set(analysed["phantom"]) == {SR, SC}
    assert '(negative,99PHOI,"NEGATIVE: no lung nodule found")' in dsrdump(analysed["phantom"][SR])


@pytest.mark.parametrize("name", ["lidc", "phantom"])
def test_dciodvfy_finds_nothing_that_was_not_judged(analysed: Files, name: str) -> None:
    for path in analysed[name].values():
        assert (path.name, dciodvfy_errors(path)) == (path.name, [])
        assert (path.name, dciodvfy_warnings(path)) == (path.name, [])


@pytest.mark.parametrize(("name", "kind"), [("lidc", SR), ("lidc", KOS), ("phantom", SR)])
def test_pixelmed_finds_no_true_error(analysed: Files, name: str, kind: DocumentKind) -> None:
    assert pixelmed_errors(analysed[name][kind]) == []


def test_dcmtk_and_gdcm_read_all_of_it(analysed: Files) -> None:
    for path in (p for paths in analysed.values() for p in paths.values()):
        dataset = pydicom.dcmread(path)
        written = dcm2json(path)
        assert written["00080018"]["Value"] == [dataset.SOPInstanceUID]
        assert dcmdump_value(path, "0010,0020") == dataset.PatientID
        if dataset.Modality in {"SR", "KO"}:
            assert dataset.SeriesDescription in dsrdump(path)
        else:
            assert f"MediaStorage is {dataset.SOPClassUID}" in gdcminfo(path)


def test_dcmqi_reads_the_segments_where_the_readers_saw_the_nodule(
    analysed: Files, tmp_path: Path
) -> None:
    segments = dcmqi_segments(analysed["lidc"][SEG], tmp_path)
    groups = dcmqi_groups(analysed["lidc"][SR], tmp_path)
    np.testing.assert_allclose(segments[0].center_lps_mm, READERS_CENTER, atol=3.0)
    by_segment = {g["ReferencedSegment"]: g for g in groups if "ReferencedSegment" in g}
    assert set(by_segment) == {s.number for s in segments}
    for segment in segments:
        group = by_segment[segment.number]
        assert group["TrackingIdentifier"] == segment.label
        volume = _measured(group)["Volume"]
        assert segment.volume_mm3 == pytest.approx(volume, abs=0.1)


def _measured(group: Mapping[str, Any]) -> dict[str, float]:
    return {i["quantity"]["CodeMeaning"]: float(i["value"]) for i in group["measurementItems"]}


# --- every outcome -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_dciodvfy_finds_no_error(files: Files, name: str) -> None:
    for path in files[name].values():
        assert (path.name, dciodvfy_errors(path)) == (path.name, [])
        assert (path.name, dciodvfy_warnings(path)) == (path.name, [])


def test_dciodvfy_would_find_one(files: Files, tmp_path: Path) -> None:
    report = pydicom.dcmread(files["positive"][DocumentKind.STRUCTURED_REPORT])
    del report.CompletionFlag
    report.save_as(tmp_path / "broken.dcm")
    assert len(dciodvfy_errors(tmp_path / "broken.dcm")) == 1


# Seconds a file: these have every kind of content between them.
@pytest.mark.parametrize(
    ("name", "kind"),
    [("signed", SR), ("not_analysable", SR), ("withdrawn", DocumentKind.REJECTION_NOTE)],
)
def test_pixelmed_finds_no_true_error_in(files: Files, name: str, kind: DocumentKind) -> None:
    assert pixelmed_errors(files[name][kind]) == []


@pytest.mark.parametrize("name", CASES)
def test_dcmtk_reads_the_report(files: Files, name: str) -> None:
    tree = dsrdump(files[name][DocumentKind.STRUCTURED_REPORT])
    assert NAME in tree
    assert "Imaging Measurement Report" in tree
    assert tree.count('(121191,DCM,"Referenced Segment")') == {
        "positive": 2,
        "signed": 2,
        "unconfirmed": 2,
        "long_number": 2,
    }.get(name, 0)


@pytest.mark.parametrize("name", CASES)
def test_the_patients_name_survives_letter_for_letter(files: Files, name: str) -> None:
    assert {dcmdump_value(path, "0010,0010") for path in files[name].values()} == {NAME}


def test_gdcm_reads_the_images(images: Images, files: Files) -> None:
    seg = gdcminfo(files["positive"][DocumentKind.SEGMENTATION])
    x, y, _ = images.volume.geometry.origin_lps_mm
    assert f"Origin: ({x:g},{y:g}," in seg
    assert "Orientation Label: AXIAL" in seg
    assert "ScalarType found   :SINGLEBIT" in seg
    capture = gdcminfo(files["positive"][DocumentKind.SECONDARY_CAPTURE])
    assert "PhotometricInterpretation: RGB" in capture


def test_segments_lie_on_the_nodule_in_the_real_images(images: Images, files: Files) -> None:
    """Read by hand: the voxels' places, the CT values under them, and the patient's own side."""
    segments = read_segments(pydicom.dcmread(files["positive"][DocumentKind.SEGMENTATION]))
    for number, center in ((1, NODULE_LPS_MM), (2, OTHER_LPS_MM)):
        middle = segments[number].points_lps_mm.mean(axis=0)
        np.testing.assert_allclose(middle, center, atol=0.7)
    left, right = segments[1], segments[2]
    assert left.points_lps_mm[:, 0].min() > 0 > right.points_lps_mm[:, 0].max()
    # Soft tissue under the real nodule, air under the place where there is none.
    assert _mean_hu(images.root, left.sources, left.rows_columns) > -50
    assert _mean_hu(images.root, right.sources, right.rows_columns) < -600


def _mean_hu(folder: Path, sources: tuple[str, ...], places: np.ndarray) -> float:
    images = {
        image.SOPInstanceUID: image
        for image in (pydicom.dcmread(path) for path in folder.glob("*.dcm"))
        if image.SOPInstanceUID in sources
    }
    stored = [
        images[source].pixel_array[row, column]
        for source, (row, column) in zip(sources, places, strict=True)
    ]
    return float(np.mean(stored)) - 1024.0  # Rescale Intercept of this series; its slope is 1


def _known(case: ReportedCase, how: Completeness) -> ReportedCase:
    return replace(case, result=replace(case.result, completeness=how))


def _signed(case: ReportedCase, *dispositions: Disposition) -> ReportedCase:
    review = SignedReview("duc", "BS. Trần Văn Đức", SIGNED_AT, dispositions)
    return replace(
        case,
        status=ReportStatus.FINAL,
        review=review,
        predecessors={DocumentKind.STRUCTURED_REPORT: ("2.25.4711",)},
    )


def _write(path: Path, document: Document) -> Path:
    path.write_bytes(document.content)
    return path
