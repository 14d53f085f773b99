"""What SEG, SR and Secondary Capture say, read back with pydicom."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_edge_node import terms
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.lossy import LossyCompression, lossy_compression
from phoi_edge_node.dicom.summary_page import draw_summary, font
from phoi_edge_node.dicom.uids import series_of
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.orders import ImagingOrder, OrderNumber
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Outcome,
    SignedReview,
    Verdict,
)
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import LungCoverage, NoduleMask, Side
from phoi_models.geometry import Geometry, Triple, as_triple
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEG2000, JPEG2000Lossless
from support import planted
from support.chests import plain_chest
from support.dicom_phantom import SeriesOptions, write_series
from support.reported_cases import MODEL, CountingUids, Images, ball, case_of, read_images
from support.seg_reader import read_segments

SEG, SR, SC, KOS, REJECTION = (
    DocumentKind.SEGMENTATION,
    DocumentKind.STRUCTURED_REPORT,
    DocumentKind.SECONDARY_CAPTURE,
    DocumentKind.KEY_OBJECTS,
    DocumentKind.REJECTION_NOTE,
)
LEFT_LPS_MM = (72.0, 30.0, 12.0)
RIGHT_LPS_MM = (-72.0, 20.0, -40.0)
SIGNED_AT = datetime(2026, 3, 15, 20, 0, 0, tzinfo=UTC)
REVIEWER = "BS. Trần Văn Đức"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return _images(tmp_path_factory.mktemp("series"))


def _images(folder: Path, options: SeriesOptions | None = None) -> Images:
    write_series(folder, plain_chest(spacing_mm=(10.0, 6.0, 6.0)), options)
    return read_images(folder)


def _positive(images: Images) -> ReportedCase:
    geometry = images.volume.geometry
    findings = [
        ball(geometry, LEFT_LPS_MM, 30.0, Side.LEFT),
        ball(geometry, RIGHT_LPS_MM, 24.0, Side.RIGHT),
    ]
    return case_of(images, Outcome.POSITIVE, findings)


def _encode(images: Images, case: ReportedCase) -> dict[DocumentKind, Dataset]:
    documents = DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case)
    made: dict[DocumentKind, Dataset] = {
        d.kind: pydicom.dcmread(io.BytesIO(d.content)) for d in documents
    }
    for document in documents:
        assert made[document.kind].SOPInstanceUID == document.identity
    return made


def _signed(case: ReportedCase, *dispositions: Disposition) -> ReportedCase:
    review = SignedReview("duc", REVIEWER, SIGNED_AT, dispositions)
    return replace(case, status=ReportStatus.FINAL, review=review)


# --- reading a report ---------------------------------------------------------------------------


def _items(item: Dataset) -> Iterator[Dataset]:
    """All content items below one."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from _items(child)


def _name(item: Dataset) -> str:
    named = item.get("ConceptNameCodeSequence")  # not the items of a key object document
    return str(named[0].CodeMeaning) if named else ""


def _groups(report: Dataset) -> list[Dataset]:
    return [item for item in _items(report) if _name(item) == "Measurement Group"]


def _texts(item: Dataset, name: str) -> list[str]:
    return [str(i.TextValue) for i in _items(item) if _name(i) == name]


def _codes(item: Dataset, name: str) -> list[str]:
    """Code values of all CODE items of one name, long ones too."""
    concepts = (i.ConceptCodeSequence[0] for i in _items(item) if _name(i) == name)
    return [str(c.get("CodeValue") or c.LongCodeValue) for c in concepts]


def _numbers(item: Dataset) -> dict[str, float]:
    return {
        _name(i): float(i.MeasuredValueSequence[0].NumericValue)
        for i in _items(item)
        if i.ValueType == "NUM"
    }


# --- which documents, and what they say -----------------------------------------------------


def test_the_segmentation_comes_before_the_report_that_refers_to_it(images: Images) -> None:
    made = _encode(images, _positive(images))
    assert list(made) == [SEG, SR, SC, KOS]
    references = [i for i in _items(made[SR]) if _name(i) == "Referenced Segment"]
    assert [
        (
            r.ReferencedSOPSequence[0].ReferencedSOPInstanceUID,
            r.ReferencedSOPSequence[0].ReferencedSegmentNumber,
        )
        for r in references
    ] == [(made[SEG].SOPInstanceUID, 1), (made[SEG].SOPInstanceUID, 2)]


OUTCOMES: Mapping[Outcome, tuple[LungCoverage | None, NotAnalysableReason | None]] = {
    Outcome.NEGATIVE: (LungCoverage(apex=True, base=True, volume_ml=4000.0), None),
    Outcome.LIMITED: (LungCoverage(apex=False, base=True, volume_ml=4000.0), None),
    Outcome.NOT_ANALYSABLE: (None, NotAnalysableReason.NO_SUITABLE_SERIES),
    Outcome.FAILED: (None, None),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_only_negative_reads_like_negative(images: Images, outcome: Outcome) -> None:
    coverage, reason = OUTCOMES[outcome]
    case = case_of(images, outcome, coverage=coverage, reason=reason, detail="a plain detail")
    made = _encode(images, case)
    assert list(made) == [SR, SC]
    report = made[SR]
    assert _codes(report, "AI triage outcome") == [outcome.value]
    english, vietnamese = _texts(report, "Impression")
    assert ("NEGATIVE" in english) == (outcome is Outcome.NEGATIVE)
    assert ("ÂM TÍNH" in vietnamese) == (outcome is Outcome.NEGATIVE)
    assert _codes(report, "Reason for not analysing") == ([reason.value] if reason else [])
    assert bool(_codes(report, "Suggested reading priority")) == (case.volume is not None)
    assert not _groups(report)


@pytest.mark.parametrize("how", Completeness)
def test_how_the_study_is_known_to_be_whole_is_told(images: Images, how: Completeness) -> None:
    plain = case_of(images, Outcome.POSITIVE, [])
    made = _encode(images, replace(plain, result=replace(plain.result, completeness=how)))
    assert _codes(made[SR], "Completeness of the study") == [terms.COMPLETENESSES[how].code]
    unconfirmed = how is Completeness.UNCONFIRMED
    found = _positive(images)
    found = replace(found, result=replace(found.result, completeness=how))
    description = _encode(images, found)[SEG].ContentDescription
    assert ("COMPLETENESS UNCONFIRMED" in description) is unconfirmed
    assert len(description) <= 64
    english, vietnamese = _texts(made[SR], "Impression")
    assert ("COMPLETENESS UNCONFIRMED" in english) is unconfirmed
    assert ("CHƯA XÁC NHẬN ĐỦ HÌNH" in vietnamese) is unconfirmed
    looks_like_plain = made[SC].PixelData == _encode(images, plain)[SC].PixelData
    assert looks_like_plain is not unconfirmed


def test_every_outcome_looks_different(images: Images) -> None:
    pages = {_encode(images, _positive(images))[SC].PixelData}
    for outcome, (coverage, reason) in OUTCOMES.items():
        case = case_of(images, outcome, coverage=coverage, reason=reason)
        pages.add(_encode(images, case)[SC].PixelData)
    assert len(pages) == len(Outcome)


def test_a_nodule_is_measured_placed_and_classed(images: Images) -> None:
    case = _positive(images)
    volumetric, axes, *_ = _groups(_encode(images, case)[SR])
    finding = case.result.nodules[0].finding
    assert _texts(volumetric, "Tracking Identifier") == ["Nodule 1"]
    assert _numbers(volumetric) == {
        "Long axis": 30.0,
        "Short axis": 29.0,
        "Diameter": 29.5,
        "Volume": pytest.approx(finding.volume_mm3, abs=0.1),
        "Attenuation Coefficient": 35.5,
        "Certainty of Finding": 87.3,
    }
    assert _codes(volumetric, "Laterality") == ["7771000"]
    assert _codes(volumetric, "Attenuation class") == ["35702001"]
    assert _codes(volumetric, "Lung-RADS category") == ["lung-rads-4B"]
    lines = [np.reshape(i.GraphicData, (2, 3)) for i in _items(axes) if i.ValueType == "SCOORD3D"]
    np.testing.assert_allclose(
        lines, [finding.long_axis_lps_mm, finding.short_axis_lps_mm], atol=1e-4
    )
    uids = [i.UID for g in (volumetric, axes) for i in g.ContentSequence if "UID" in i]
    assert set(uids[:1] + uids[-1:]) == {case.result.nodules[0].tracking_uid}


def _drawn(images: Images, center_lps_mm: Triple) -> list[Dataset]:
    """The lines that the report has on an image, of a nodule of 30 mm at that place."""
    finding = ball(images.volume.geometry, center_lps_mm, 30.0, Side.LEFT)
    _, axes = _groups(_encode(images, case_of(images, Outcome.POSITIVE, [finding]))[SR])
    return [item for item in _items(axes) if item.ValueType == "SCOORD"]


def test_axes_are_drawn_on_the_slice_in_which_they_lie(images: Images) -> None:
    center = np.array([72.0, 30.0, 15.0])
    long, short = _drawn(images, as_triple(center))
    (source,) = long.ContentSequence[0].ReferencedSOPSequence
    (path,) = (
        i.path for i in images.instances if i.sop_instance_uid == source.ReferencedSOPInstanceUID
    )
    image = pydicom.dcmread(images.root / path, stop_before_pixels=True)
    assert image.ImagePositionPatient[2] == 15.0
    for line in (long, short):
        # PS3.3 C.18.6.1.2: the centre of the first pixel is at (0.5, 0.5).
        pixels = np.reshape(line.GraphicData, (2, 2)) - 0.5
        places = (
            np.array(image.ImagePositionPatient[:2]) + pixels * np.array(image.PixelSpacing)[::-1]
        )
        np.testing.assert_allclose(places.mean(axis=0), center[:2], atol=1e-3)
    assert _drawn(images, (72.0, 30.0, 12.0)) == [], "between two slices"


def test_the_model_is_named_alike_everywhere_and_anew_after_retraining(images: Images) -> None:
    made = _encode(images, _positive(images))
    for dataset in made.values():
        (maker,) = dataset.ContributingEquipmentSequence
        assert maker.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert maker.DeviceUID == MODEL.device_uid
        assert maker.ManufacturerModelName == dataset.ManufacturerModelName == MODEL.name
        assert list(maker.SoftwareVersions) == [MODEL.version, "phoi 0.1.0"]
    assert set(_texts(made[SR], "Algorithm Name")) == {MODEL.name}
    assert set(_texts(made[SR], "Algorithm Version")) == {MODEL.version}
    (observer,) = (i for i in _items(made[SR]) if _name(i) == "Device Observer UID")
    assert MODEL.device_uid == observer.UID
    assert replace(MODEL, bundle_hash="cd" * 32).device_uid != MODEL.device_uid


def test_equal_inputs_give_equal_bytes(images: Images) -> None:
    case = _positive(images)
    once, again = (
        DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case) for _ in range(2)
    )
    assert once == again


# --- after the review -------------------------------------------------------------------------


def test_a_signed_report_is_verified_and_replaces_the_first(images: Images) -> None:
    case = _positive(images)
    first = _encode(images, case)[SR]
    assert (first.VerificationFlag, first.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    signed = replace(_signed(case), predecessors={SR: (first.SOPInstanceUID,)})
    report = _encode(images, signed)[SR]
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = report.VerifyingObserverSequence
    assert str(observer.VerifyingObserverName).rstrip("^") == REVIEWER
    assert observer.VerificationDateTime == "20260316030000+0700"
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID == series_of(first.SOPInstanceUID)
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_rejected_nodules_are_left_out(images: Images) -> None:
    case = _positive(images)
    first, second = case.result.nodules
    rejected = Disposition(first.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT)
    made = _encode(images, _signed(case, rejected))
    assert {s.tracking_uid for s in read_segments(made[SEG]).values()} == {second.tracking_uid}
    assert set(_texts(made[SR], "Tracking Identifier")) == {"Nodule 2"}


def test_no_segmentation_is_made_when_all_are_rejected(images: Images) -> None:
    case = _positive(images)
    rejections = (
        Disposition(n.tracking_uid, Verdict.REJECTED, "duc", SIGNED_AT) for n in case.result.nodules
    )
    made = _encode(images, _signed(case, *rejections))
    assert list(made) == [SR, SC]
    assert _codes(made[SR], "AI triage outcome") == ["negative"]


def test_a_missed_nodule_is_a_point_by_the_reviewer(images: Images) -> None:
    case = case_of(images, Outcome.NEGATIVE)
    missed = Disposition(
        "2.25.77", Verdict.MISSED, "duc", SIGNED_AT, correction=Correction(LEFT_LPS_MM, 7.25)
    )
    made = _encode(images, _signed(case, missed))
    assert list(made) == [SR, SC, KOS]
    assert _codes(made[SR], "AI triage outcome") == ["positive"]
    (group,) = _groups(made[SR])
    (point,) = (i for i in _items(group) if i.ValueType == "SCOORD3D")
    assert point.GraphicType == "POINT"
    np.testing.assert_allclose(point.GraphicData, LEFT_LPS_MM)
    assert point.ReferencedFrameOfReferenceUID == SeriesOptions().uid("frame")
    assert _persons(group) == [REVIEWER]
    assert _numbers(group) == {"Diameter": 7.2}


def test_what_a_reviewer_added_stands_in_the_next_unsigned_report(images: Images) -> None:
    case = case_of(images, Outcome.NEGATIVE)
    missed = Disposition(
        "2.25.77", Verdict.MISSED, "duc", SIGNED_AT, correction=Correction(LEFT_LPS_MM, 7.25)
    )
    withdrawn = _signed(case, missed)
    told = (ToldBefore(withdrawn.result, withdrawn.review),)
    report = _encode(images, replace(case, told_before=told))[SR]
    assert report.VerificationFlag == "UNVERIFIED"
    (group,) = _groups(report)
    assert (_persons(group), _numbers(group)) == ([REVIEWER], {"Diameter": 7.2})


def test_a_modified_diameter_is_the_reviewers(images: Images) -> None:
    case = _positive(images)
    nodule = case.result.nodules[0]
    modified = Disposition(
        nodule.tracking_uid,
        Verdict.MODIFIED,
        "duc",
        SIGNED_AT,
        correction=Correction(mean_diameter_mm=14.0),
    )
    groups = [
        group
        for group in _groups(_encode(images, _signed(case, modified))[SR])
        if _texts(group, "Tracking Identifier") == ["Nodule 1"]
    ]
    category = [_codes(group, "Lung-RADS category") for group in groups]
    assert [(_persons(g), _numbers(g)) for g in groups] == [
        ([], {"Certainty of Finding": 87.3}),
        ([REVIEWER], {"Diameter": 14.0}),
    ]
    assert category == [[], ["lung-rads-4A"]]  # of 14.0 mm; the model's 29.5 mm would be 4B


def _persons(group: Dataset) -> list[str]:
    names = (i.PersonName for i in _items(group) if _name(i) == "Person Observer Name")
    return [str(name).rstrip("^") for name in names]


@settings(max_examples=15, deadline=None)
@given(name=st.text(max_size=80))
def test_any_display_name_can_sign(images: Images, name: str) -> None:
    signed = _signed(case_of(images, Outcome.NEGATIVE))
    assert signed.review is not None
    case = replace(signed, review=replace(signed.review, reviewer_name=name))
    report = _encode(images, case)[SR]
    encoded = str(report.VerifyingObserverSequence[0].VerifyingObserverName)
    assert len(encoded) <= 64
    assert encoded.count("=") == 0


# --- what the images lost, and who asked for them -----------------------------------------------


@pytest.mark.parametrize(
    ("header", "ratios", "methods"),
    [
        ((("LossyImageCompression", "01"),), None, None),
        (
            (
                ("LossyImageCompression", "01"),
                ("LossyImageCompressionRatio", ["9.4", "2.04369863014"]),
                ("LossyImageCompressionMethod", ["ISO_10918_1", "ISO_15444_1"]),
            ),
            [9.4, 2.04369863014],
            ["ISO_10918_1", "ISO_15444_1"],
        ),
    ],
)
def test_what_images_lost_is_said_of_all_that_is_derived_from_them(
    tmp_path: Path,
    header: tuple[tuple[str, object], ...],
    ratios: list[float] | None,
    methods: list[str] | None,
) -> None:
    images = _images(tmp_path, SeriesOptions(header=header))
    made = _encode(images, _positive(images))
    for kind in (SEG, SC):
        assert made[kind].LossyImageCompression == "01"
        assert made[kind].get("LossyImageCompressionRatio") == ratios
        assert made[kind].get("LossyImageCompressionMethod") == methods
    remarks = [text for text in _texts(made[SR], "Comment") if "Series analysed" not in text]
    assert len(remarks) == 2  # English and Vietnamese
    assert "lossy compressed" in remarks[0]
    assert ("(ISO_15444_1, 2.0:1)" in remarks[0]) == (methods is not None)


def test_how_images_are_stored_says_what_they_lost() -> None:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.Rows = header.Columns = 512
    header.BitsAllocated = 16
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    assert lossy_compression(header, 50_000) is None
    header.file_meta.TransferSyntaxUID = JPEG2000
    assert lossy_compression(header, 52_429) == LossyCompression(("10.0",), ("ISO_15444_1",))


def test_what_was_not_lossy_says_nothing_of_it(images: Images) -> None:
    made = _encode(images, _positive(images))
    assert made[SEG].LossyImageCompression == made[SC].LossyImageCompression == "00"
    assert not [text for text in _texts(made[SR], "Comment") if "lossy" in text]


def test_the_request_is_that_of_the_worklist_and_the_order(tmp_path: Path) -> None:
    asked = Dataset()
    asked.RequestedProcedureID = "RP-7"
    asked.RequestedProcedureDescription = "CT ngực"
    images = _images(tmp_path, SeriesOptions(header=(("RequestAttributesSequence", [asked]),)))
    ordered = ImagingOrder(OrderNumber("P&1", "HIS"), OrderNumber("9" * 65), "ACC-9")
    study = replace(images.study, accession_number="")
    made = _encode(images, replace(_positive(images), study=study, order=ordered))
    for kind in (SR, KOS):
        (request,) = made[kind].ReferencedRequestSequence
        assert request.RequestedProcedureID == "RP-7"
        assert request.RequestedProcedureDescription == "CT ngực"
        assert request.AccessionNumber == "ACC-9"
        assert request.PlacerOrderNumberImagingServiceRequest == "P&1"
        assert request.FillerOrderNumberImagingServiceRequest == ""  # cut, it could be another's
        assert request.StudyInstanceUID == made[kind].StudyInstanceUID


def test_an_accession_number_too_long_for_dicom_stands_nowhere_cut(images: Images) -> None:
    ordered = ImagingOrder(accession_number="BVDK-2026-11-23-00000017")
    study = replace(images.study, accession_number="")
    made = _encode(images, replace(_positive(images), study=study, order=ordered))
    for kind in (SR, KOS):
        (request,) = made[kind].ReferencedRequestSequence
        assert request.AccessionNumber == ""


def test_the_summary_has_the_orders_accession_number_where_the_images_have_none(
    images: Images,
) -> None:
    case = _positive(images)
    without = replace(case, study=replace(case.study, accession_number=""))
    ordered = replace(without, order=ImagingOrder(accession_number="ACC-9"))
    named = replace(case, study=replace(case.study, accession_number="ACC-9"))
    pages = [draw_summary(c, "0.1.0", SIGNED_AT).tobytes() for c in (without, ordered, named)]
    assert pages[0] != pages[1] == pages[2]


def test_what_nobody_asked_for_names_no_request(images: Images) -> None:
    case = _positive(images)
    made = _encode(images, replace(case, study=replace(case.study, accession_number="")))
    assert not any("ReferencedRequestSequence" in dataset for dataset in made.values())


# --- key images, and the note that withdraws ----------------------------------------------------


def test_key_images_are_those_on_which_the_nodules_are_seen_best(images: Images) -> None:
    note = _encode(images, _positive(images))[KOS]
    assert note.Modality == "KO"
    assert note.ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"
    heights = {
        i.sop_instance_uid: images.volume.geometry.index_to_lps((z, 0, 0))[2]
        for z, i in enumerate(images.instances)
    }
    shown = [heights[uid] for uid in _referenced(note)]
    np.testing.assert_allclose(shown, [LEFT_LPS_MM[2], RIGHT_LPS_MM[2]], atol=5.0)
    assert {_name(i) for i in _items(note) if i.ValueType == "IMAGE"} == {""}  # TID 2010
    (description,) = _texts(note, "Key Object Description")
    assert "CÓ NỐT PHỔI" in description
    assert "LUNG NODULE FOUND" in description
    assert "chưa được bác sĩ xác nhận" in description


def test_two_nodules_on_one_slice_are_one_key_image(images: Images) -> None:
    finding = ball(images.volume.geometry, LEFT_LPS_MM, 30.0, Side.LEFT)
    note = _encode(images, case_of(images, Outcome.POSITIVE, [finding, finding]))[KOS]
    assert len(_referenced(note)) == 1


def test_what_is_withdrawn_is_rejected_before_anything_replaces_it(images: Images) -> None:
    before = {
        SEG: ("2.25.1",),
        SR: ("2.25.2", "2.25.3"),
        SC: ("2.25.4",),
        KOS: ("2.25.5",),
        REJECTION: ("2.25.6",),
        DocumentKind.HL7_ORU: ("message-7",),
    }
    case = replace(_positive(images), status=ReportStatus.WITHDRAWN, held={"pacs": before})
    made = _encode(images, case)
    assert next(iter(made)) is REJECTION
    note = made[REJECTION]
    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113037", "DCM")
    # Never an earlier note: to reject it is to show again what it rejected.
    assert _referenced(note) == ["2.25.1", "2.25.2", "2.25.3", "2.25.4", "2.25.5"]
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == note.StudyInstanceUID == case.study.study_instance_uid
    assert {
        (series.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    } == {(series_of(uid), uid) for uid in _referenced(note)}
    (description,) = _texts(note, "Key Object Description")
    assert terms.STATUS_NOTICES[ReportStatus.WITHDRAWN][1] in description


def test_each_archive_gets_a_note_over_what_it_holds(images: Images) -> None:
    held: dict[str, dict[DocumentKind, tuple[str, ...]]] = {
        "one": {SEG: ("2.25.1",), SR: ("2.25.2",)},
        "other": {SC: ("2.25.4",)},
        "emr": {DocumentKind.HL7_ORU: ("message-7",)},
    }
    case = replace(_positive(images), status=ReportStatus.WITHDRAWN, held=held)
    notes = {
        document.only_to: _referenced(pydicom.dcmread(io.BytesIO(document.content)))
        for document in DicomEncoder(images.root, CountingUids(), "0.1.0").encode(case)
        if document.kind is REJECTION
    }
    assert notes == {"one": ["2.25.1", "2.25.2"], "other": ["2.25.4"]}


def test_what_told_nothing_before_rejects_nothing(images: Images) -> None:
    case = replace(_positive(images), status=ReportStatus.WITHDRAWN)
    assert REJECTION not in _encode(images, case)


def _referenced(dataset: Dataset) -> list[str]:
    """SOP Instance UIDs that the content tree refers to, in order."""
    return [
        str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for i in _items(dataset)
        if i.ValueType in {"IMAGE", "COMPOSITE"}
    ]


# --- where it lies ----------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_mask_comes_back_voxel_by_voxel(images: Images, data: st.DataObject) -> None:
    geometry = images.volume.geometry
    case = _positive(images)
    masks = [data.draw(_masks(geometry)) for _ in case.result.nodules]
    nodules = tuple(
        replace(nodule, finding=replace(nodule.finding, mask=mask))
        for nodule, mask in zip(case.result.nodules, masks, strict=True)
    )
    made = _encode(images, replace(case, result=replace(case.result, nodules=nodules)))
    segments = read_segments(made[SEG])
    for number, mask in enumerate(masks, start=1):
        expected = geometry.index_to_lps(np.argwhere(mask.voxels) + np.asarray(mask.offset))
        found = segments[number].points_lps_mm
        np.testing.assert_allclose(_sorted(found), _sorted(expected), atol=1e-3)


@st.composite
def _masks(draw: st.DrawFn, geometry: Geometry) -> NoduleMask:
    """Any mask near the middle, so that two of them often overlap."""
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    offset = tuple(draw(st.integers(n // 2 - 2, n // 2 + 2)) for n in geometry.shape)
    bits = draw(st.lists(st.booleans(), min_size=64, max_size=64))
    voxels = np.array(bits[: int(np.prod(shape))]).reshape(shape)
    voxels[0, 0, 0] = True
    return NoduleMask((offset[0], offset[1], offset[2]), voxels)


def _sorted(points: np.ndarray) -> np.ndarray:
    rounded = np.round(points, 3)
    return rounded[np.lexsort(rounded.T)]


def test_slices_in_another_order_than_the_volume_are_refused(images: Images) -> None:
    """A mask must never be written to the wrong images."""
    case = _positive(images)
    assert case.choice is not None
    turned = replace(case.choice, slices=case.choice.slices[::-1])
    with pytest.raises(EdgeError, match="does not lie where its image does"):
        _encode(images, replace(case, choice=turned))


def test_a_series_without_frame_of_reference_is_still_reported(tmp_path: Path) -> None:
    header = (("FrameOfReferenceUID", None), ("SliceThickness", None))
    images = _images(tmp_path, SeriesOptions(header=header))
    made = _encode(images, _positive(images))
    frames = {i.ReferencedFrameOfReferenceUID for i in _items(made[SR]) if "GraphicData" in i}
    assert frames == {made[SEG].FrameOfReferenceUID}


# --- whose it is, and when --------------------------------------------------------------------


@pytest.mark.parametrize("character_set", ["ISO_IR 192", "ISO_IR 100", ""])
def test_names_survive_whatever_the_source_was_labelled(tmp_path: Path, character_set: str) -> None:
    """Old scanners write UTF-8 and call it something else: the core has decoded it rightly."""
    images = _images(tmp_path)
    for path in tmp_path.glob("*.dcm"):
        content = path.read_bytes()
        label = character_set.ljust(len("ISO_IR 192")).encode()
        path.write_bytes(content.replace(b"ISO_IR 192", label, 1))
    made = _encode(images, _positive(images))
    for dataset in made.values():
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
        assert str(dataset.PatientName) == "Nguyễn^Thị Ánh Tuyết"
        assert str(dataset.ReferringPhysicianName) == "Trần^Văn Đức"
        assert dataset.StudyDescription == "CT ngực"


def test_what_the_core_has_corrected_stands(images: Images) -> None:
    case = _positive(images)
    patient = replace(case.study.patient, patient_id="BN-0043", name="Lê^Thị Hoà")
    made = _encode(images, replace(case, study=replace(case.study, patient=patient)))
    for dataset in made.values():
        assert dataset.PatientID == "BN-0043"
        assert str(dataset.PatientName) == "Lê^Thị Hoà"
        assert dataset.PatientBirthDate == "19600229"
        assert dataset.StudyInstanceUID == case.study.study_instance_uid


def test_nothing_that_was_said_of_a_corrected_name_or_birth_date_is_left(tmp_path: Path) -> None:
    old = {
        "OtherPatientNames": "Nguyễn^Tuyết",
        "PatientBirthTime": "0400",
        "PatientAge": "066Y",
        "TypeOfPatientID": "TEXT",
    }
    images = _images(tmp_path, SeriesOptions(header=tuple(old.items())))
    case = _positive(images)
    patient = replace(case.study.patient, patient_id=planted.PATIENT_ID)
    same = replace(case, study=replace(case.study, patient=patient))
    for dataset in _encode(images, same).values():
        assert {keyword: str(dataset.get(keyword)) for keyword in old} == old
    patient = replace(
        patient, patient_id="BN-0043", name="Lê^Thị Hoà", birth_date=date(1990, 1, 31)
    )
    for dataset in _encode(
        images, replace(case, study=replace(case.study, patient=patient))
    ).values():
        assert dataset.PatientBirthDate == "19900131"
        assert not [keyword for keyword in old if keyword in dataset]


def test_a_number_that_is_too_long_for_dicom_is_not_cut(images: Images) -> None:
    case = _positive(images)
    patient = replace(case.study.patient, patient_id="9" * 65, issuer="BV-B")
    made = _encode(images, replace(case, study=replace(case.study, patient=patient)))
    assert {dataset.PatientID for dataset in made.values()} == {planted.PATIENT_ID}
    assert not any("IssuerOfPatientID" in dataset for dataset in made.values())


def test_a_study_of_which_no_file_can_be_read_is_reported_all_the_same(tmp_path: Path) -> None:
    images = _images(tmp_path)
    whole = case_of(
        images, Outcome.NOT_ANALYSABLE, reason=NotAnalysableReason.UNREADABLE_PIXELS, detail="why"
    )
    expected = _encode(images, whole)[SR]
    for path in tmp_path.glob("*.dcm"):
        path.write_bytes(b"damaged")
    report = _encode(images, whole)[SR]
    assert _codes(report, "Reason for not analysing") == ["unreadable_pixels"]
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyTime"):
        assert report[keyword].value == expected[keyword].value


@pytest.mark.parametrize(
    ("offset", "expected"), [(None, "090304"), ("+0000", "020304"), ("-0330", "223304")]
)
def test_times_are_those_of_the_source_zone(
    tmp_path: Path, offset: str | None, expected: str
) -> None:
    header = (("TimezoneOffsetFromUTC", offset),) if offset else ()
    images = _images(tmp_path, SeriesOptions(header=header))
    for dataset in _encode(images, _positive(images)).values():
        assert dataset.ContentTime == dataset.InstanceCreationTime == expected
        assert dataset.get("TimezoneOffsetFromUTC") == offset
        assert dataset.StudyTime == "083000"


def test_nothing_of_the_patient_is_logged_or_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = _images(tmp_path, SeriesOptions(patient_name="NGUYEN THI TUYET"))
    case = _positive(images)
    with caplog.at_level(logging.DEBUG):
        _encode(images, case)
    assert "TUYET" not in caplog.text
    for path in tmp_path.glob("*.dcm"):
        path.unlink()
    with pytest.raises(EdgeError, match="send the study again") as raised:
        _encode(images, case)
    assert "TUYET" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_highdicom_is_told_no_name_and_so_cannot_warn_of_one(images: Images) -> None:
    """It quotes a name of one component in a warning, and a warning is an error here."""
    case = _positive(images)
    patient = replace(case.study.patient, name="TUYET")
    made = _encode(images, replace(case, study=replace(case.study, patient=patient)))
    assert {str(dataset.PatientName) for dataset in made.values()} == {"TUYET"}
    assert set(made) == {SEG, SR, SC, KOS}


# --- the picture ------------------------------------------------------------------------------


def test_the_summary_is_a_picture_of_its_own_kind(images: Images) -> None:
    capture = _encode(images, _positive(images))[SC]
    assert capture.Modality == "OT"
    assert "AI" in capture.SeriesDescription
    assert capture.BurnedInAnnotation == "YES"
    picture = capture.pixel_array
    assert picture.shape == (capture.Rows, 1280, 3)
    assert picture.max() == 255


def test_many_nodules_are_listed_and_more_than_fit_are_counted(images: Images) -> None:
    finding = ball(images.volume.geometry, LEFT_LPS_MM, 30.0, Side.LEFT)
    heights = []
    for n in (19, 20, 25, 30):
        made = _encode(images, case_of(images, Outcome.POSITIVE, [finding] * n))
        assert len(read_segments(made[SEG])) == n
        heights.append(made[SC].Rows)
    row, line, none = np.diff(heights)
    assert row > 40  # in two languages
    assert 20 < line < 40
    assert none == 0


def test_the_font_has_every_letter_of_vietnamese() -> None:
    letters = "aăâbcdđeêghiklmnoôơpqrstuưvxy" + "áàảãạắằẳẵặấầẩẫậéèẻẽẹếềểễệíìỉĩị"
    letters += "óòỏõọốồổỗộớờởỡợúùủũụứừửữựýỳỷỹỵ×³·–"
    missing = bytes(font(24).getmask("\uffff"))
    assert [c for c in letters + letters.upper() if bytes(font(24).getmask(c)) == missing] == []
