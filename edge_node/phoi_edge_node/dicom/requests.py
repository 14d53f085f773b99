"""What was ordered: Referenced Request Sequence (PS3.3 C.17.2 and C.17.6.2)."""

from __future__ import annotations

from pydicom import Dataset

from phoi_edge_node.dicom.headers import text
from phoi_edge_node.dicom.source import decoded
from phoi_edge_node.ports import ReportedCase
from phoi_edge_node.reported import accession_number

# Characters (PS3.5 6.2).
_LONGEST_ACCESSION_NUMBER = 16  # SH
_LONGEST_NUMBER = 64  # LO
_OF_THE_IMAGES = (
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "ReasonForTheRequestedProcedure",
)


def referenced_requests(case: ReportedCase, header: Dataset) -> list[Dataset]:
    """The request behind a study, as its images and its order tell it; none where neither does.

    Args:
        header: of an image of the study. Its Request Attributes Sequence (0040,0275) holds the
            numbers that the worklist gave to the modality.
    """
    asked = next(iter(header.get("RequestAttributesSequence") or ()), None)
    if asked is None and case.order is None and not case.study.accession_number:
        return []
    request = _with_all_of_type_2(case)
    if asked is not None:
        for keyword in _OF_THE_IMAGES:
            if keyword in asked:
                setattr(request, keyword, text(asked, keyword))
        codes = asked.get("RequestedProcedureCodeSequence") or ()
        request.RequestedProcedureCodeSequence = [decoded(code) for code in codes]
    if case.order is not None:
        request.PlacerOrderNumberImagingServiceRequest = _number(case.order.placer.value)
        request.FillerOrderNumberImagingServiceRequest = _number(case.order.filler.value)
    return [request]


def _with_all_of_type_2(case: ReportedCase) -> Dataset:
    request = Dataset()
    request.StudyInstanceUID = case.study.study_instance_uid
    request.ReferencedStudySequence = []
    request.AccessionNumber = _number(accession_number(case), _LONGEST_ACCESSION_NUMBER)
    request.PlacerOrderNumberImagingServiceRequest = ""
    request.FillerOrderNumberImagingServiceRequest = ""
    request.RequestedProcedureID = ""
    request.RequestedProcedureDescription = ""
    request.RequestedProcedureCodeSequence = []
    return request


def _number(value: str, longest: int = _LONGEST_NUMBER) -> str:
    """A hospital's number may be longer than a DICOM one. Cut, it could be another order's."""
    return value if len(value) <= longest else ""
