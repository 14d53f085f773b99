"""The DICOM objects of any CT, by the model that comes with Phoi, judged by tools of others.

What each says is printed, so that a run can be quoted: ``make interop CT=DIR ARGS=-s``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pydicom
import pytest
from phoi_edge_node.ports import DocumentKind
from support.analysed import objects_of
from support.validators import (
    dciodvfy_errors,
    dciodvfy_warnings,
    dcm2json,
    dcmqi_groups,
    dcmqi_segments,
    dsrdump,
    gdcminfo,
    pixelmed_errors,
)

SEG, SR = DocumentKind.SEGMENTATION, DocumentKind.STRUCTURED_REPORT


@pytest.fixture(scope="module")
def made(ct_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[DocumentKind, Path]:
    return objects_of(ct_folder, tmp_path_factory.mktemp("ct"))


def test_dciodvfy_finds_no_error_and_no_new_warning(made: Mapping[DocumentKind, Path]) -> None:
    for path in made.values():
        errors, warnings = dciodvfy_errors(path), dciodvfy_warnings(path)
        _say(f"dciodvfy -new {path.name}: {len(errors)} errors, {len(warnings)} new warnings")
        assert (path.name, errors, warnings) == (path.name, [], [])


def test_pixelmed_finds_no_true_error(made: Mapping[DocumentKind, Path]) -> None:
    for path in made.values():
        if pydicom.dcmread(path, stop_before_pixels=True).Modality in {"SR", "KO"}:
            assert pixelmed_errors(path) == []
            _say(f"DicomSRValidator {path.name}: 0 true errors")


def test_dcmtk_and_gdcm_read_every_object(made: Mapping[DocumentKind, Path]) -> None:
    for path in made.values():
        dataset = pydicom.dcmread(path)
        assert dcm2json(path)["00080018"]["Value"] == [dataset.SOPInstanceUID]
        if dataset.Modality in {"SR", "KO"}:
            said = dsrdump(path).splitlines()
            _say(f"dsrdump {path.name}: {len(said)} lines of {said[0]}")
        else:
            said = gdcminfo(path).splitlines()
            _say(f"gdcminfo {path.name}: {said[0]}")


def test_dcmqi_measures_the_segments_as_the_report_says(
    made: Mapping[DocumentKind, Path], tmp_path: Path
) -> None:
    """Where nothing was found the report has no group, and there is no segmentation."""
    groups = {
        group["ReferencedSegment"]: {
            item["quantity"]["CodeMeaning"]: float(item["value"])
            for item in group["measurementItems"]
        }
        for group in dcmqi_groups(made[SR], tmp_path)
        if "ReferencedSegment" in group
    }
    segments = dcmqi_segments(made[SEG], tmp_path) if SEG in made else ()
    assert set(groups) == {segment.number for segment in segments}
    for segment in segments:
        assert segment.volume_mm3 == pytest.approx(groups[segment.number]["Volume"], abs=0.1)
        _say(f"dcmqi {segment.label}: {segment.volume_mm3:.1f} mm3, as the report says")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
