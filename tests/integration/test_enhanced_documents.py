"""What is said of an enhanced multi-frame CT names the frame, and is what is said of a classic one.

The same patient, scanned once, written in both forms; judged by tools that are not ours.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.ports import DocumentKind, ReportedCase
from phoi_edge_node.result import Outcome
from phoi_models.findings import Side
from pydicom import Dataset
from support.chests import plain_chest
from support.dicom_phantom import write_series
from support.enhanced_ct import write_enhanced
from support.reported_cases import CountingUids, Images, ball, case_of
from support.seg_reader import read_segments
from support.validators import dciodvfy_errors, dsrdump, pixelmed_errors

LEFT_LPS_MM = (72.0, 30.0, 12.0)
RIGHT_LPS_MM = (-72.0, 20.0, -40.0)
Made = Mapping[DocumentKind, Dataset]


def case_in(folder: Path) -> tuple[ReportedCase, Made]:
    """Two nodules at the same places of the patient, found in the files of a folder."""
    reader = DicomSeriesReader(folder)
    instances = tuple(instance_from_file(folder, path.name) for path in folder.glob("*.dcm"))
    choice = reader.choose(instances)
    images = Images(folder, choice.instances, reader.read(choice))
    geometry = images.volume.geometry
    findings = [
        ball(geometry, LEFT_LPS_MM, 30.0, Side.LEFT),
        ball(geometry, RIGHT_LPS_MM, 24.0, Side.RIGHT),
    ]
    case = replace(case_of(images, Outcome.POSITIVE, findings), choice=choice)
    documents = DicomEncoder(folder, CountingUids(), "0.1.0").encode(case)
    return case, {d.kind: pydicom.dcmread(io.BytesIO(d.content)) for d in documents}


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportedCase, Made]:
    folder = tmp_path_factory.mktemp("classic")
    write_series(folder, plain_chest(spacing_mm=(5.0, 4.0, 4.0)))
    return case_in(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("enhanced")


@pytest.fixture(scope="module")
def enhanced(folder: Path) -> tuple[ReportedCase, Made]:
    write_enhanced(folder / "ct.dcm", plain_chest(spacing_mm=(5.0, 4.0, 4.0)))
    return case_in(folder)


@pytest.fixture(scope="module")
def written(
    enhanced: tuple[ReportedCase, Made], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[DocumentKind, Path]:
    folder = tmp_path_factory.mktemp("documents")
    paths = {kind: folder / f"{kind.value}.dcm" for kind in enhanced[1]}
    for kind, path in paths.items():
        enhanced[1][kind].save_as(path)
    return paths


def items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", []):
        yield from items(child)


def references(dataset: Dataset) -> Iterator[Dataset]:
    """Every item, however deep, that refers to a SOP instance."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item
                yield from references(item)


def test_the_validators_find_no_error(written: Mapping[DocumentKind, Path]) -> None:
    assert {kind: dciodvfy_errors(path) for kind, path in written.items()} == {
        kind: [] for kind in written
    }
    assert len(written) == 4


def test_pixelmed_and_dcmtk_read_the_report(written: Mapping[DocumentKind, Path]) -> None:
    report = written[DocumentKind.STRUCTURED_REPORT]
    assert pixelmed_errors(report) == []
    assert "(CTe image,," in dsrdump(report)  # DCMTK names the frame after the instance


def test_nodules_lie_where_they_lie_in_the_classic_series(
    classic: tuple[ReportedCase, Made], enhanced: tuple[ReportedCase, Made]
) -> None:
    lines = [
        [
            np.asarray(item.GraphicData, float)
            for item in items(made[DocumentKind.STRUCTURED_REPORT])
            if "GraphicData" in item
        ]
        for _, made in (classic, enhanced)
    ]
    assert len(lines[0]) == len(lines[1]) > 3
    for one, other in zip(*lines, strict=True):
        assert np.allclose(one, other, atol=1e-3)
    voxels = [read_segments(made[DocumentKind.SEGMENTATION]) for _, made in (classic, enhanced)]
    for number, segment in voxels[0].items():
        points = np.sort(segment.points_lps_mm.round(2), axis=0)
        others = np.sort(voxels[1][number].points_lps_mm.round(2), axis=0)
        assert np.allclose(points, others, atol=0.02)


def test_every_reference_to_the_source_names_its_frame_once(
    enhanced: tuple[ReportedCase, Made],
) -> None:
    case, made = enhanced
    source = case.instances[0].sop_instance_uid
    segmentation = made[DocumentKind.SEGMENTATION]
    (series,) = segmentation.ReferencedSeriesSequence
    assert [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence] == [source]
    (evidence,) = made[DocumentKind.STRUCTURED_REPORT].CurrentRequestedProcedureEvidenceSequence
    named = [
        instance.ReferencedSOPInstanceUID
        for one in evidence.ReferencedSeriesSequence
        for instance in one.ReferencedSOPSequence
    ]
    assert named.count(source) == 1
    shown = {
        kind: [
            item.ReferencedFrameNumber
            for item in references(made[kind])
            if item.ReferencedSOPInstanceUID == source and "ReferencedFrameNumber" in item
        ]
        for kind in (
            DocumentKind.STRUCTURED_REPORT,
            DocumentKind.SECONDARY_CAPTURE,
            DocumentKind.KEY_OBJECTS,
        )
    }
    report, capture, (key_images,) = shown.values()
    assert sorted(report) == sorted(capture) == sorted(key_images)
    assert len(report) == 2


def test_each_frame_of_the_segmentation_lies_on_the_frame_that_it_names(
    folder: Path, enhanced: tuple[ReportedCase, Made]
) -> None:
    case, made = enhanced
    source = pydicom.dcmread(folder / case.instances[0].path)
    for group in made[DocumentKind.SEGMENTATION].PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frame = source.PerFrameFunctionalGroupsSequence[int(image.ReferencedFrameNumber) - 1]
        assert np.allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            group.PlanePositionSequence[0].ImagePositionPatient,
            atol=1e-3,
        )
