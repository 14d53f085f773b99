"""The headers of the instances that a result is derived from, and what is copied from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta, timezone, tzinfo
from pathlib import Path

import pydicom
from phoi_models.reading.ct_image import require_modest
from pydicom import Dataset

from phoi_edge_node.dicom.headers import text
from phoi_edge_node.dicom.uids import derived_uid
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import ReceivedInstance, ReportedCase
from phoi_edge_node.result import Patient, StudyHeader

# Patient, Patient Study and General Study modules (PS3.3 C.7.1.1, C.7.2.2, C.7.2.1), less what is
# retired and free comments.
_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "OtherPatientNames",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "EthnicGroup",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "PatientAge",
    "AdmissionID",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_SEQUENCES = (
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "DeidentificationMethodCodeSequence",
    "IssuerOfAdmissionIDSequence",
    "IssuerOfAccessionNumberSequence",
    "ProcedureCodeSequence",
)
# Type 2: present even when there is nothing to say.
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_IMAGE_REFERENCE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
)
_OF_THE_NUMBER = ("IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence")
_OF_THE_NAME = ("OtherPatientNames",)
_OF_THE_BIRTH = ("PatientBirthTime", "PatientAge")
_LONGEST_NUMBER = 64  # characters of an LO (PS3.5 6.2)
_OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>0\d|1[0-4])(?P<minutes>[0-5]\d)")
_NO_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_NO_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")


def read_header(root: Path, instance: ReceivedInstance) -> Dataset:
    """The header of a stored instance, as it stands in the file, without its pixels.

    Raises:
        EdgeError: the stored file is gone or damaged.
    """
    try:
        with (root / instance.path).open("rb") as file:
            require_modest(file)
            return pydicom.dcmread(file, stop_before_pixels=True)
    except Exception as error:
        # A damaged file makes the parser raise nearly anything, with values of the header in it.
        raise EdgeError(
            f"the stored instance {instance.sop_instance_uid} cannot be read "
            f"({type(error).__name__}): send the study again"
        ) from None


def representative_header(root: Path, case: ReportedCase) -> Dataset:
    """The header that stands for the study: of the analysed series where there is one.

    Of a study that could not be analysed, perhaps since no file of it can be read, what the index
    knows is enough to say so.

    Raises:
        EdgeError: a file of the analysed series is gone or damaged.
    """
    if case.choice:
        return read_header(root, case.choice.instances[0])
    try:
        return read_header(root, case.instances[0])
    except EdgeError:
        return _indexed_header(case.instances[0], case.study)


def _indexed_header(instance: ReceivedInstance, study: StudyHeader) -> Dataset:
    """What was read of an instance when it came; who it is of stands in ``study``."""
    header = Dataset()
    header.SOPClassUID = instance.sop_class_uid
    header.SOPInstanceUID = instance.sop_instance_uid
    header.StudyInstanceUID = study.study_instance_uid
    header.SeriesInstanceUID = instance.series_instance_uid
    header.Modality = instance.modality
    if study.started_at is not None:
        header.StudyDate = study.started_at.strftime("%Y%m%d")
        header.StudyTime = study.started_at.strftime("%H%M%S")
    return header


def image_reference(image: Dataset, frame: int | None = None) -> Dataset:
    """What names an image and places it, with an empty patient.

    highdicom quotes values that it doubts in warnings and logs: what it is not given, it cannot
    tell.

    Args:
        image: header of an instance, or of one frame of it (``single_frames``).
        frame: number of that frame, counted from 1; it stands in the reference as Referenced
            Frame Number (0008,1160).
    """
    reference = Dataset()
    for keyword in _IMAGE_REFERENCE:
        if keyword in image:
            reference[keyword] = image[keyword]
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    for keyword in _NO_PATIENT + _NO_STUDY:
        setattr(reference, keyword, "")
    if not reference.get("FrameOfReferenceUID"):
        # Every CT must name one. The slices of a series that does not share one all the same.
        reference.FrameOfReferenceUID = derived_uid(reference.SeriesInstanceUID, "frame")
    return reference


def reference_to(
    sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str, study_instance_uid: str
) -> Dataset:
    """What names an object that is no CT image, with an empty patient, as highdicom wants it."""
    reference = Dataset()
    reference.SOPClassUID = sop_class_uid
    reference.SOPInstanceUID = sop_instance_uid
    reference.SeriesInstanceUID = series_instance_uid
    reference.StudyInstanceUID = study_instance_uid
    for keyword in _NO_PATIENT + _NO_STUDY:
        setattr(reference, keyword, "")
    return reference


def frame_number(reference: Dataset) -> int | None:
    """The frame that an ``image_reference`` names; None where the instance is one image."""
    frame = reference.get("ReferencedFrameNumber")
    return None if frame is None else int(frame)


def copy_patient_and_study(header: Dataset, study: StudyHeader, target: Dataset) -> None:
    """Copy who and which study it is; ``target`` must be in UTF-8.

    Where the core knows a value it stands: it may have been decoded in spite of a wrong Specific
    Character Set.
    """
    # highdicom lets objects share elements with what they refer to, and to set a value in place
    # would put a name where none may be.
    _forget(target, (*_PATIENT_AND_STUDY, *_SEQUENCES, *_REQUIRED))
    for keyword in _PATIENT_AND_STUDY:
        if keyword in header:
            setattr(target, keyword, text(header, keyword))
    for keyword in _SEQUENCES:
        if keyword in header:
            setattr(target, keyword, [decoded(item) for item in header[keyword].value])
    patient = study.patient
    # A hospital's number may be longer than a DICOM one. Cut, it could be another patient's.
    too_long = len(patient.patient_id) > _LONGEST_NUMBER
    number, issuer = ("", "") if too_long else (patient.patient_id, patient.issuer)
    _forget(target, _outdated(header, patient, number))
    known = {
        "PatientName": patient.name,
        "PatientID": number,
        "IssuerOfPatientID": issuer,
        "PatientBirthDate": patient.birth_date.strftime("%Y%m%d") if patient.birth_date else "",
        "PatientSex": patient.sex,
        "AccessionNumber": study.accession_number,
        "StudyID": study.study_id,
        "StudyDescription": study.description,
        "ReferringPhysicianName": study.referring_physician,
    }
    for keyword, value in known.items():
        if value:
            setattr(target, keyword, value)
    for keyword in _REQUIRED:
        if keyword not in target:
            setattr(target, keyword, "")


def _outdated(header: Dataset, patient: Patient, number: str) -> Iterator[str]:
    """What the images say of a number, a name or a birth date that was corrected since."""
    born = patient.birth_date.strftime("%Y%m%d") if patient.birth_date else ""
    for known, keyword, others in (
        (number, "PatientID", _OF_THE_NUMBER),
        (patient.name, "PatientName", _OF_THE_NAME),
        (born, "PatientBirthDate", _OF_THE_BIRTH),
    ):
        if known and known != text(header, keyword):
            yield from others


def _forget(target: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        if keyword in target:
            delattr(target, keyword)


def decoded(item: Dataset) -> Dataset:
    """An item of a sequence with its text in Unicode, whatever the header was written in."""
    item.decode()
    return item


def time_zone(header: Dataset, local: tzinfo) -> tzinfo:
    """The zone of the header's dates and times: as it says itself (0008,0201), else ``local``."""
    found = _OFFSET.fullmatch(text(header, "TimezoneOffsetFromUTC"))
    if not found:
        return local
    offset = timedelta(hours=int(found["hours"]), minutes=int(found["minutes"]))
    return timezone(-offset if found["sign"] == "-" else offset)
