"""A nodule on the left stays on the left in every DICOM object, however the patient was scanned."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.key_slice import direction_letter, draw_key_slice, key_slice
from phoi_edge_node.dicom.summary_page import font
from phoi_edge_node.ports import DocumentKind, ReportedCase
from phoi_edge_node.reported import reported_nodules
from phoi_edge_node.result import Outcome
from phoi_models.findings import Side
from support.chests import LUNG_HU, TISSUE_HU, plain_chest
from support.dicom_phantom import POSITIONS, SeriesOptions, write_series
from support.reported_cases import CountingUids, Images, ball, case_of, read_images
from support.seg_reader import ReadSegment, read_segments
from support.validators import dciodvfy_errors

LEFT_LPS_MM = (72.0, 30.0, 12.0)
DIAMETER_MM = 24.0
SERIES = {
    f"{position}{name}": replace(options, position=position)
    for position in POSITIONS
    for name, options in (
        ("", SeriesOptions()),
        ("-reversed", SeriesOptions(reversed_numbering=True)),
        ("-tilted", SeriesOptions(gantry_tilt_degrees=15.0)),
    )
}


@pytest.fixture(params=SERIES)
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    chest = plain_chest([(LEFT_LPS_MM, DIAMETER_MM)], spacing_mm=(6.0, 5.0, 5.0))
    write_series(tmp_path, chest, SERIES[request.param])
    return read_images(tmp_path)


@pytest.fixture
def case(images: Images) -> ReportedCase:
    finding = ball(images.volume.geometry, LEFT_LPS_MM, DIAMETER_MM - 8, Side.LEFT)
    return case_of(images, Outcome.POSITIVE, [finding])


def test_segment_report_and_picture_say_left(images: Images, case: ReportedCase) -> None:
    documents = DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case)
    made = {d.kind: pydicom.dcmread(io.BytesIO(d.content)) for d in documents}
    for document in documents:
        path = images.root / f"{document.kind.value}.made"
        path.write_bytes(document.content)
        assert dciodvfy_errors(path) == []
    segment = read_segments(made[DocumentKind.SEGMENTATION])[1]
    np.testing.assert_allclose(segment.points_lps_mm.mean(axis=0), LEFT_LPS_MM, atol=1.0)
    assert (_hu_under(images.root, segment) > (LUNG_HU + TISSUE_HU) / 2).all()
    assert _laterality(made[DocumentKind.STRUCTURED_REPORT]) == ["7771000"] * 2  # Left, SCT
    assert _letter_on_the_side_of_the_mark(case, images) == "L"


@pytest.mark.parametrize(
    ("direction", "letter"),
    [
        ((1, 0, 0), "L"),
        ((-1, 0, 0), "R"),
        ((0, 1, 0), "P"),
        ((0, -0.97, 0.26), "A"),
        ((0, 0, 1), "H"),
        ((0.1, 0, -0.9), "F"),
    ],
)
def test_letters_name_the_direction(direction: tuple[float, float, float], letter: str) -> None:
    assert direction_letter(direction) == letter


def _hu_under(folder: Path, segment: ReadSegment) -> NDArray[np.float64]:
    """CT values of the source images, found by their UIDs, under the voxels of a segment."""
    images = {i.SOPInstanceUID: i for i in map(pydicom.dcmread, folder.glob("*.dcm"))}
    places = zip(segment.sources, segment.rows_columns, strict=True)
    stored = [images[uid].pixel_array[row, column] for uid, (row, column) in places]
    return np.asarray(stored, float) - 1024.0


def _laterality(report: pydicom.Dataset) -> list[str]:
    """Codes of all Laterality items of the report."""
    found = []
    for item in report.get("ContentSequence", []):
        if item.get("ConceptNameCodeSequence", [{}])[0].get("CodeValue") == "272741003":
            found.append(str(item.ConceptCodeSequence[0].CodeValue))
        found += _laterality(item)
    return found


def _letter_on_the_side_of_the_mark(case: ReportedCase, images: Images) -> str:
    """The letter at that edge of the key picture, left or right, to which the mark is nearer."""
    (nodule,) = reported_nodules(case)
    geometry = images.volume.geometry
    z = key_slice(nodule, geometry)
    assert z is not None
    picture = np.asarray(draw_key_slice(nodule, images.volume, z, 300, font(20)))
    amber = (picture[..., 0] > 200) & (picture[..., 2] < 50)
    middle_of_mark = np.argwhere(amber)[:, 1].mean()
    right = np.asarray(geometry.axes_lps[2])
    return direction_letter(right if middle_of_mark > 150 else -right)
