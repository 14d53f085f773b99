"""Modality Worklist SCU (PS3.4 K): the order behind a study, asked of the radiology system.

Asked by accession number; a study without one by patient, day and modality, which counts only
where the answer has its Study Instance UID: that of another order of the day proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from phoi_edge_node.dicom.headers import text
from phoi_edge_node.dicom.storage_scu import NothingAccepted, Peer, PeerUnreachable, association
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.orders import ImagingOrder, OrderNumber, PatientKey
from phoi_edge_node.result import Priority, StudyHeader
from phoi_edge_node.settings import WorklistSettings
from phoi_edge_node.terms import plain_text

FIND = "1.2.840.10008.5.1.4.31"  # Modality Worklist Information Model

_SUCCESS = 0x0000
_PENDING = frozenset({0xFF00, 0xFF01})
_MOST_ANSWERS = 100

# Requested Procedure Priority (PS3.3 C.4.11).
_PRIORITIES = {
    "STAT": Priority.STAT,
    "HIGH": Priority.URGENT,
    "ROUTINE": Priority.ROUTINE,
    "MEDIUM": Priority.ROUTINE,
    "LOW": Priority.ROUTINE,
}
_RETURN_KEYS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyInstanceUID",
    "ReferringPhysicianName",
    "RequestingPhysician",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedurePriority",
    "ReasonForTheRequestedProcedure",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
)


class ModalityWorklist:
    """The worklist SCP of the settings. Safe to use from several threads."""

    def __init__(self, settings: WorklistSettings, calling_ae_title: str) -> None:
        self._peer = Peer(settings.ae_title, settings.host, settings.port, settings.timeout_s)
        self._calling_ae_title = calling_ae_title

    def order_for(self, study: StudyHeader) -> ImagingOrder | None:
        """The order behind a study; None where it lists none, or cannot tell which.

        Raises:
            SourceUnavailable: no usable answer; the text holds no patient data.
        """
        by_number = bool(study.accession_number)
        return self._by_number(study) if by_number else self._by_patient(study)

    def _by_number(self, study: StudyHeader) -> ImagingOrder | None:
        if not _is_one_value(study.accession_number):
            return None
        orders = self._ask(AccessionNumber=study.accession_number)
        uids = ("", study.study_instance_uid)
        return _only([o for o in orders if o.study_instance_uid in uids and o.is_for(study)])

    def _by_patient(self, study: StudyHeader) -> ImagingOrder | None:
        if study.started_at is None or not _is_one_value(study.patient.patient_id):
            return None
        orders = self._ask(f"{study.started_at:%Y%m%d}", PatientID=study.patient.patient_id)
        uid = study.study_instance_uid
        return _only([o for o in orders if o.study_instance_uid == uid and o.is_for(study)])

    def _ask(self, day: str = "", **keys: str) -> Sequence[ImagingOrder]:
        """One C-FIND (PS3.4 K.4.1), one association."""
        answers: list[Dataset] = []
        contexts = {(FIND, ExplicitVRLittleEndian), (FIND, ImplicitVRLittleEndian)}
        try:
            with association(self._peer, self._calling_ae_title, contexts) as link:
                for status, identifier in link.send_c_find(_query(day, keys), FIND):
                    code = status.get("Status")
                    if code == _SUCCESS:
                        break
                    if code not in _PENDING or identifier is None or len(answers) >= _MOST_ANSWERS:
                        link.abort()
                        raise SourceUnavailable("the worklist gives no usable answer")
                    answers.append(identifier)
        except (PeerUnreachable, NothingAccepted) as error:
            raise SourceUnavailable(str(error)) from None
        except (RuntimeError, ValueError) as error:  # pynetdicom: the association was lost
            raise SourceUnavailable(
                f"the worklist cannot be asked ({type(error).__name__})"
            ) from None
        return [_order(answer) for answer in answers]


def _only(orders: Sequence[ImagingOrder]) -> ImagingOrder | None:
    return orders[0] if len(orders) == 1 else None


def _is_one_value(value: str) -> bool:
    """Something to match, and no wildcard or list that would match more (PS3.4 C.2.2.2)."""
    return bool(value) and not any(character in value for character in "*?\\")


def _query(day: str, keys: dict[str, str]) -> Dataset:
    step = Dataset()
    step.Modality = "CT" if day else ""
    step.ScheduledProcedureStepStartDate = day
    step.ScheduledProcedureStepStartTime = ""
    step.ScheduledStationAETitle = ""
    code = Dataset()
    code.CodeValue = code.CodingSchemeDesignator = code.CodeMeaning = ""
    query = Dataset()
    query.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _RETURN_KEYS:
        setattr(query, keyword, keys.get(keyword, ""))
    query.RequestedProcedureCodeSequence = [code]
    query.ScheduledProcedureStepSequence = [step]
    return query


def _order(answer: Dataset) -> ImagingOrder:
    def said(keyword: str) -> str:
        return plain_text(text(answer, keyword))

    codes = answer.get("RequestedProcedureCodeSequence") or []
    return ImagingOrder(
        placer=OrderNumber(said("PlacerOrderNumberImagingServiceRequest")),
        filler=OrderNumber(said("FillerOrderNumberImagingServiceRequest")),
        accession_number=said("AccessionNumber"),
        study_instance_uid=said("StudyInstanceUID"),
        patients=(PatientKey(said("PatientID"), said("IssuerOfPatientID")),),
        requester=said("RequestingPhysician") or said("ReferringPhysicianName"),
        clinical_question=said("ReasonForTheRequestedProcedure"),
        procedure_code=plain_text(text(codes[0], "CodeValue")) if codes else "",
        procedure=said("RequestedProcedureDescription"),
        priority=_PRIORITIES.get(said("RequestedProcedurePriority").upper()),
    )
