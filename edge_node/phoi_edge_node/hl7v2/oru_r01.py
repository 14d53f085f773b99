"""ORU^R01, HL7 v2.5.1 (chapter 7.3.1): the result of a triage as an unsolicited observation.

One order of Phoi's own (filler number and service code), so that no receiver takes it for the
answer to the imaging order: the accession number stands in OBR-18, and the imaging order's own
numbers name it as the parent (ORC-8, OBR-29), not as the order that is answered. A withdrawal is a
correction (OBR-25 and OBX-11 ``C``). A hospital's mapping changes the message last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from phoi_edge_node.hl7v2.fields import (
    SEGMENT_END,
    OutgoingSegment,
    coded,
    components,
    day,
    extended_name,
    local_timestamp,
    repeated,
    text,
    timestamp,
)
from phoi_edge_node.hl7v2.known_values import APPLICATION, filler, person
from phoi_edge_node.hl7v2.mapped import Changes, chosen, observation_code, observed_value
from phoi_edge_node.hl7v2.mapping import MessageMapping
from phoi_edge_node.hl7v2.observations import Observation, lines_told, observations
from phoi_edge_node.orders import PatientKey, key_of
from phoi_edge_node.person_name import person_name
from phoi_edge_node.ports import Document, DocumentKind, ReportedCase, ReportStatus, UidSource
from phoi_edge_node.reported import (
    accession_number,
    filler_number,
    reported_at,
    told_priority,
)
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import Hl7Settings, SiteSettings
from phoi_edge_node.terms import MANUFACTURER, PRIORITIES, TRIAGE_REPORT

_STATUS = {
    ReportStatus.PRELIMINARY: "P",
    ReportStatus.FINAL: "F",
    ReportStatus.CORRECTED: "C",
    ReportStatus.WITHDRAWN: "C",
}
_PRIORITY = {Priority.ROUTINE: "R", Priority.URGENT: "A", Priority.STAT: "S"}  # TQ1-9, table 0485
_STANDARD = MessageMapping()


class OruEncoder:
    """Encodes a case as one ORU^R01 message, UTF-8, segments ended by CR.

    Args:
        mapping: what the hospital wants otherwise.
    """

    def __init__(
        self,
        settings: Hl7Settings,
        site: SiteSettings,
        uids: UidSource,
        phoi_version: str,
        mapping: MessageMapping = _STANDARD,
    ) -> None:
        self._settings = settings
        self._site = site
        self._uids = uids
        self._phoi_version = phoi_version
        self._mapping = mapping

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        """One message, whose identity is MSH-10; none where the hospital wants none yet."""
        if not self._wanted(case):
            return ()
        control_id = self._uids.message_id()
        changes = Changes(self._mapping, case, self._site.name)
        segments = changes.apply(self._segments(case, control_id))
        content = "".join(segment.encoded() + SEGMENT_END for segment in segments).encode()
        return (Document(DocumentKind.HL7_ORU, control_id, content),)

    def _wanted(self, case: ReportedCase) -> bool:
        if self._mapping.preliminary:
            return True
        if case.status is ReportStatus.WITHDRAWN:
            return bool((case.predecessors or {}).get(DocumentKind.HL7_ORU))
        return case.status is not ReportStatus.PRELIMINARY

    def _segments(self, case: ReportedCase, control_id: str) -> Iterator[OutgoingSegment]:
        yield self._msh(case, control_id)
        yield self._sft(case)
        yield self._pid(case)
        yield _pv1(case)
        yield _orc(case)
        yield _obr(case)
        if (priority := told_priority(case)) is not None:
            yield _tq1(priority)
        preliminary = self._mapping.preliminary
        told = observations(case, preliminary=preliminary)
        before = lines_told(case, preliminary=preliminary)
        for number, item in enumerate(chosen(told, self._mapping, before), start=1):
            yield self._obx(case, number, item)

    def _msh(self, case: ReportedCase, control_id: str) -> OutgoingSegment:
        return OutgoingSegment(
            "MSH",
            {
                3: APPLICATION,
                4: text(self._site.name),
                5: text(self._settings.receiving_application),
                6: text(self._settings.receiving_facility),
                7: timestamp(reported_at(case)),
                9: components("ORU", "R01", "ORU_R01"),
                10: text(control_id),
                11: "P",
                12: self._mapping.version,
                17: "VNM",
                18: "UNICODE UTF-8",
            },
        )

    def _sft(self, case: ReportedCase) -> OutgoingSegment:
        model = case.result.identity.model
        return OutgoingSegment(
            "SFT",
            {
                1: text(MANUFACTURER),
                2: text(f"{self._phoi_version}, model {model.version}"),
                3: text(f"Phoi, model {model.name}"),
                4: text(model.bundle_hash),
            },
        )

    def _pid(self, case: ReportedCase) -> OutgoingSegment:
        patient = case.study.patient
        return OutgoingSegment(
            "PID",
            {
                1: "1",
                3: repeated(*self._patient_identifiers(case)),
                5: extended_name(person_name(patient.name)),
                7: day(patient.birth_date),
                8: text(patient.sex),
            },
        )

    def _patient_identifiers(self, case: ReportedCase) -> Iterable[str]:
        """CX of each number."""
        patient, wanted = case.study.patient, self._mapping.patient
        if not text(patient.patient_id):
            # PID-3 may not be empty, and two nameless patients must never become one.
            number = filler_number(case.study.study_instance_uid)
            yield components(number, "", "", APPLICATION, "U")
            return
        yield self._identifier(key_of(patient), wanted.type)
        if wanted.numbers == "all" and case.order:
            for key in case.order.patients:
                if not key.may_be(key_of(patient)):
                    yield self._identifier(key, "")

    def _identifier(self, key: PatientKey, kind: str) -> str:
        authority = self._mapping.patient.authorities.get(key.issuer, key.issuer)
        return components(key.patient_id, "", "", authority, kind)

    def _obx(self, case: ReportedCase, number: int, item: Observation) -> OutgoingSegment:
        model = case.result.identity.model
        review = item.review or case.review
        value_type, value = observed_value(item, self._mapping)
        return OutgoingSegment(
            "OBX",
            {
                1: str(number),
                2: value_type,
                3: observation_code(item.term, self._mapping),
                4: item.sub_id,
                5: value,
                6: item.units,
                8: item.flag,
                11: item.status or _STATUS[case.status],
                14: local_timestamp(case.study.started_at),
                16: components(review.reviewer, review.reviewer_name) if review else "",
                17: components(f"{model.name} {model.version}", "", "99PHOI"),
                18: components(model.name, APPLICATION, model.device_uid, "ISO"),
                19: timestamp(case.result.analysed_at),
            },
        )


def _pv1(case: ReportedCase) -> OutgoingSegment:
    referrer = person_name(case.study.referring_physician)
    # Images say nothing of the visit: patient class U, unknown (table 0004).
    return OutgoingSegment(
        "PV1", {1: "1", 2: "U", 8: components("", referrer.family, referrer.given)}
    )


def _parent(case: ReportedCase) -> str:
    """EIP: the imaging order by the numbers of those who placed and who fill it."""
    if case.order is None:
        return ""
    numbers = (case.order.placer, case.order.filler)
    return "^".join(f"{text(n.value)}&{text(n.namespace)}".rstrip("&") for n in numbers).rstrip("^")


def _requester(case: ReportedCase) -> str:
    """XCN: who placed the imaging order."""
    return components(*person(case.order.requester)) if case.order else ""


def _orc(case: ReportedCase) -> OutgoingSegment:
    return OutgoingSegment(
        "ORC", {1: "RE", 3: components(*filler(case)), 8: _parent(case), 12: _requester(case)}
    )


def _obr(case: ReportedCase) -> OutgoingSegment:
    review = case.review
    priority = told_priority(case)
    return OutgoingSegment(
        "OBR",
        {
            1: "1",
            3: components(*filler(case)),
            4: coded(TRIAGE_REPORT),
            7: local_timestamp(case.study.started_at),
            16: _requester(case),
            18: text(accession_number(case)),
            22: timestamp(reported_at(case)),
            24: "CT",
            25: _STATUS[case.status],
            27: f"^^^^^{_PRIORITY[priority]}" if priority else "",
            29: _parent(case),
            31: components("", case.order.clinical_question) if case.order else "",
            32: f"{text(review.reviewer)}&{text(review.reviewer_name)}" if review else "",
        },
    )


def _tq1(priority: Priority) -> OutgoingSegment:
    """Only where there is a priority to tell."""
    return OutgoingSegment(
        "TQ1",
        {1: "1", 9: components(_PRIORITY[priority], PRIORITIES[priority].en, "HL70485")},
    )
