"""SEG, SR and Secondary Capture of one real chest CT, judged by tools that are not ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.ports import Document, DocumentKind, ReportedCase, ReportStatus
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
from support.real_ct import lidc_idri_0001
from support.reported_cases import CountingUids, Images, ball, case_of, read_images
from support.seg_reader import read_segments
from support.validators import dciodvfy_errors, dcmdump_value, dsrdump, gdcminfo, pixelmed_errors

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
    positive = _known(case_of(images, Outcome.POSITIVE, [left, right]), Completeness.CONFIRMED)
    first, second = positive.result.nodules
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
            Disposition(
                "2.25.77",
                Verdict.MISSED,
                "duc",
                SIGNED_AT,
                correction=Correction((-50.0, 40.0, -120.0), 5.5),
            ),
        ),
        "unconfirmed": _known(positive, Completeness.UNCONFIRMED),
        "all_rejected": _signed(
            positive,
            Disposition(first.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT),
            Disposition(second.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT),
        ),
        "withdrawn": replace(
            case_of(images, Outcome.NEGATIVE),
            status=ReportStatus.WITHDRAWN,
            predecessors={kind: (f"2.25.{n}",) for n, kind in enumerate(DocumentKind, start=1)},
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


@pytest.mark.parametrize("name", CASES)
def test_dciodvfy_finds_no_error(files: Files, name: str) -> None:
    assert {kind: dciodvfy_errors(path) for kind, path in files[name].items()} == {
        kind: [] for kind in files[name]
    }


def test_dciodvfy_would_find_one(files: Files, tmp_path: Path) -> None:
    report = pydicom.dcmread(files["positive"][DocumentKind.STRUCTURED_REPORT])
    del report.CompletionFlag
    report.save_as(tmp_path / "broken.dcm")
    assert len(dciodvfy_errors(tmp_path / "broken.dcm")) == 1


# 20 s a file: these two have every kind of content between them.
@pytest.mark.parametrize("name", ["signed", "not_analysable"])
def test_pixelmed_finds_no_true_error_in_the_report(files: Files, name: str) -> None:
    assert pixelmed_errors(files[name][DocumentKind.STRUCTURED_REPORT]) == []


@pytest.mark.parametrize("name", CASES)
def test_dcmtk_reads_the_report(files: Files, name: str) -> None:
    tree = dsrdump(files[name][DocumentKind.STRUCTURED_REPORT])
    assert NAME in tree
    assert "Imaging Measurement Report" in tree
    assert tree.count('(121191,DCM,"Referenced Segment")') == {
        "positive": 2,
        "signed": 2,
        "unconfirmed": 2,
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
