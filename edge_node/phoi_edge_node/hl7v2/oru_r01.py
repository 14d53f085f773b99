"""ORU^R01, HL7 v2.5.1 (chapter 7.3.1): the result of a triage as an unsolicited observation.

One order of Phoi's own (filler number and service code), so that no receiver takes it for the
answer to the imaging order: the accession number stands in OBR-18, and the imaging order's own
numbers name it as the parent (ORC-8, OBR-29), not as the order that is answered. OBX-4
groups the observations of one nodule. What was told before and no longer stands is told again
with OBX-11 ``D``. An outcome that is neither positive nor negative is flagged abnormal, and its
nodule count has OBX-11 ``X`` (cannot be obtained) in place of a number: a receiver that looks at
numbers or flags alone cannot take it for a negative one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from phoi_models.findings import Finding
from phoi_models.size_class import SizeClass

from phoi_edge_node.hl7v2.fields import (
    SEGMENT_END,
    coded,
    coded_bilingual,
    components,
    day,
    extended_name,
    header,
    local_timestamp,
    repeated,
    segment,
    text,
    timestamp,
)
from phoi_edge_node.person_name import person_name
from phoi_edge_node.ports import Document, DocumentKind, ReportedCase, ReportStatus, UidSource
from phoi_edge_node.reported import (
    ReportedNodule,
    accession_number,
    filler_number,
    impression,
    reported_at,
    reported_nodules,
    reported_outcome,
    suggests_priority,
    told_earlier,
)
from phoi_edge_node.result import Completeness, Outcome, Priority
from phoi_edge_node.settings import Hl7Settings, SiteSettings
from phoi_edge_node.terms import (
    ATTENUATION_CLASS,
    ATTENUATIONS,
    CENTER,
    CERTAINTY,
    COMPLETENESS,
    COMPLETENESSES,
    FINDING_SITE,
    FLEISCHNER,
    IMPRESSION,
    LATERALITY,
    LONG_AXIS,
    LUNG_RADS,
    MANUFACTURER,
    MEAN_DIAMETER,
    NODULE_COUNT,
    OUTCOME_OF_TRIAGE,
    OUTCOMES,
    PRIORITIES,
    REVIEW_VERDICT,
    SHORT_AXIS,
    SIDES,
    SIZE_CLASS_BASIS,
    SOLID_DIAMETER,
    STUDY_INSTANCE_UID,
    SUGGESTED_PRIORITY,
    TRACKING_IDENTIFIER,
    TRACKING_UID,
    TRIAGE_REPORT,
    VERDICTS,
    VOLUME,
    Term,
    lung_rads_category,
)

APPLICATION = "PHOI"
MM = components("mm", "millimeter", "UCUM")
MM3 = components("mm3", "cubic millimeter", "UCUM")
PERCENT = components("%", "percent", "UCUM")

_STATUS = {
    ReportStatus.PRELIMINARY: "P",
    ReportStatus.FINAL: "F",
    ReportStatus.CORRECTED: "C",
}
_DELETED = "D"
_NOT_OBTAINABLE = "X"
_PRIORITY = {Priority.ROUTINE: "R", Priority.URGENT: "A", Priority.STAT: "S"}  # TQ1-9, table 0485
_COUNTED = frozenset({Outcome.POSITIVE, Outcome.NEGATIVE})


@dataclass(frozen=True)
class Observation:
    """One OBX before it is numbered.

    Attributes:
        value_type: OBX-2.
        value: OBX-5, encoded.
        sub_id: OBX-4: the number of the nodule that it belongs to.
        units, flag: OBX-6 and OBX-8.
        status: OBX-11 where it differs from that of the report.
    """

    value_type: str
    term: Term
    value: str
    sub_id: str = ""
    units: str = ""
    flag: str = ""
    status: str = ""


class OruEncoder:
    """Encodes a case as one ORU^R01 message, UTF-8, segments ended by CR."""

    def __init__(
        self, settings: Hl7Settings, site: SiteSettings, uids: UidSource, phoi_version: str
    ) -> None:
        self._settings = settings
        self._site = site
        self._uids = uids
        self._phoi_version = phoi_version

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        """One message; its identity is MSH-10."""
        control_id = self._uids.message_id()
        segments = [
            self._msh(case, control_id),
            self._sft(case),
            _pid(case),
            _pv1(case),
            _orc(case),
            _obr(case),
            *([_tq1(case)] if suggests_priority(case) else []),
            *(_obx(case, n, item) for n, item in enumerate(observations(case), start=1)),
        ]
        content = "".join(line + SEGMENT_END for line in segments).encode()
        return (Document(DocumentKind.HL7_ORU, control_id, content),)

    def _msh(self, case: ReportedCase, control_id: str) -> str:
        return header(
            {
                3: APPLICATION,
                4: text(self._site.name),
                5: text(self._settings.receiving_application),
                6: text(self._settings.receiving_facility),
                7: timestamp(reported_at(case)),
                9: components("ORU", "R01", "ORU_R01"),
                10: text(control_id),
                11: "P",
                12: "2.5.1",
                17: "VNM",
                18: "UNICODE UTF-8",
            }
        )

    def _sft(self, case: ReportedCase) -> str:
        model = case.result.identity.model
        return segment(
            "SFT",
            {
                1: text(MANUFACTURER),
                2: text(f"{self._phoi_version}, model {model.version}"),
                3: text(f"Phoi, model {model.name}"),
                4: text(model.bundle_hash),
            },
        )


def _pid(case: ReportedCase) -> str:
    patient = case.study.patient
    return segment(
        "PID",
        {
            1: "1",
            3: _patient_identifier(case),
            5: extended_name(person_name(patient.name)),
            7: day(patient.birth_date),
            8: text(patient.sex),
        },
    )


def _patient_identifier(case: ReportedCase) -> str:
    patient = case.study.patient
    if text(patient.patient_id):
        return components(patient.patient_id, "", "", patient.issuer, "MR")
    # PID-3 may not be empty, and two nameless patients must never become one.
    return components(filler_number(case.study.study_instance_uid), "", "", APPLICATION, "U")


def _pv1(case: ReportedCase) -> str:
    referrer = person_name(case.study.referring_physician)
    # Images say nothing of the visit: patient class U, unknown (table 0004).
    return segment("PV1", {1: "1", 2: "U", 8: components("", referrer.family, referrer.given)})


def _filler(case: ReportedCase) -> str:
    return components(filler_number(case.study.study_instance_uid), APPLICATION)


def _parent(case: ReportedCase) -> str:
    """EIP: the imaging order by the numbers of those who placed and who fill it."""
    if case.order is None:
        return ""
    numbers = (case.order.placer, case.order.filler)
    return "^".join(f"{text(n.value)}&{text(n.namespace)}".rstrip("&") for n in numbers).rstrip("^")


def _requester(case: ReportedCase) -> str:
    """XCN: who placed the imaging order."""
    name = person_name(case.order.requester if case.order else "")
    return components("", name.family, name.given, name.middle, name.suffix, name.prefix)


def _orc(case: ReportedCase) -> str:
    order = {8: _parent(case), 12: _requester(case)}
    return segment("ORC", {1: "RE", 3: _filler(case)} | order)


def _obr(case: ReportedCase) -> str:
    review = case.review
    priority = _PRIORITY[case.result.suggested_priority] if suggests_priority(case) else ""
    return segment(
        "OBR",
        {
            1: "1",
            3: _filler(case),
            4: coded(TRIAGE_REPORT),
            7: local_timestamp(case.study.started_at),
            16: _requester(case),
            18: text(accession_number(case)),
            22: timestamp(reported_at(case)),
            24: "CT",
            25: _STATUS[case.status],
            27: f"^^^^^{priority}" if priority else "",
            29: _parent(case),
            31: components("", case.order.clinical_question) if case.order else "",
            32: f"{text(review.reviewer)}&{text(review.reviewer_name)}" if review else "",
        },
    )


def _tq1(case: ReportedCase) -> str:
    """Only where there is a priority to suggest."""
    priority = case.result.suggested_priority
    return segment(
        "TQ1",
        {1: "1", 9: components(_PRIORITY[priority], PRIORITIES[priority].en, "HL70485")},
    )


def _obx(case: ReportedCase, number: int, item: Observation) -> str:
    model = case.result.identity.model
    review = case.review
    return segment(
        "OBX",
        {
            1: str(number),
            2: item.value_type,
            3: coded(item.term),
            4: item.sub_id,
            5: item.value,
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


def observations(case: ReportedCase) -> Iterator[Observation]:
    """All that is observed: of the study, then of each nodule, then what no longer stands."""
    yield from _of_study(case)
    told = set()
    for item in chain.from_iterable(map(_of_nodule, reported_nodules(case))):
        told.add((item.sub_id, item.term))
        yield item
    for item in chain.from_iterable(map(_of_nodule, told_earlier(case))):
        if (item.sub_id, item.term) not in told:
            told.add((item.sub_id, item.term))
            yield replace(item, value="", flag="", status=_DELETED)


def _of_study(case: ReportedCase) -> Iterator[Observation]:
    outcome = reported_outcome(case)
    nodules = reported_nodules(case)
    yield Observation("ST", STUDY_INSTANCE_UID, text(case.study.study_instance_uid))
    yield Observation(
        "CWE", OUTCOME_OF_TRIAGE, coded_bilingual(OUTCOMES[outcome]), flag=_flag(outcome, nodules)
    )
    if outcome in _COUNTED:
        yield Observation("NM", NODULE_COUNT, str(len(nodules)))
    else:
        yield Observation("NM", NODULE_COUNT, "", flag="A", status=_NOT_OBTAINABLE)
    completeness = case.result.completeness
    if completeness:
        flag = "A" if completeness is Completeness.UNCONFIRMED else ""
        value = coded_bilingual(COMPLETENESSES[completeness])
        yield Observation("CWE", COMPLETENESS, value, flag=flag)
    if suggests_priority(case):
        priority = PRIORITIES[case.result.suggested_priority]
        yield Observation("CWE", SUGGESTED_PRIORITY, coded_bilingual(priority))
    lines = impression(case)
    vietnamese_then_english = [vi for _, vi in lines] + [en for en, _ in lines]
    yield Observation("TX", IMPRESSION, repeated(*map(text, vietnamese_then_english)))


def _flag(outcome: Outcome, nodules: Sequence[ReportedNodule]) -> str:
    if outcome is Outcome.NEGATIVE:
        return "N"
    return "AA" if any(nodule.urgent for nodule in nodules) else "A"


def _of_nodule(reported: ReportedNodule) -> Iterator[Observation]:
    flag = "AA" if reported.urgent else "A"
    for item in (
        Observation("ST", TRACKING_IDENTIFIER, text(reported.tracking_id), flag=flag),
        Observation("ST", TRACKING_UID, text(reported.tracking_uid)),
        *_place(reported),
        *_measured(reported),
        *_judged(reported),
    ):
        yield replace(item, sub_id=str(reported.number))


def _place(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.site:
        yield Observation("CWE", FINDING_SITE, coded_bilingual(reported.site))
    if reported.nodule:
        side = SIDES[reported.nodule.finding.side]
        yield Observation("CWE", LATERALITY, coded_bilingual(side))
    if reported.center_lps_mm:
        center = " ".join(f"{mm:.1f}" for mm in reported.center_lps_mm)
        yield Observation("ST", CENTER, center)


def _measured(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.mean_diameter_mm is not None:
        yield Observation("NM", MEAN_DIAMETER, f"{reported.mean_diameter_mm:.1f}", units=MM)
    if reported.nodule is None:
        return
    finding = reported.nodule.finding
    percent = f"{100 * finding.probability:.1f}"
    attenuation = ATTENUATIONS[finding.attenuation]
    yield Observation("NM", CERTAINTY, percent, units=PERCENT)
    yield Observation("CWE", ATTENUATION_CLASS, coded_bilingual(attenuation))
    if reported.measured_by_model:
        yield from _measured_by_model(finding)
    if reported.size_class:
        yield from _classed(reported.size_class)


def _measured_by_model(finding: Finding) -> Iterator[Observation]:
    yield Observation("NM", LONG_AXIS, f"{finding.long_axis_mm:.1f}", units=MM)
    yield Observation("NM", SHORT_AXIS, f"{finding.short_axis_mm:.1f}", units=MM)
    yield Observation("NM", VOLUME, f"{finding.volume_mm3:.0f}", units=MM3)
    if finding.solid_diameter_mm is not None:
        yield Observation("NM", SOLID_DIAMETER, f"{finding.solid_diameter_mm:.1f}", units=MM)


def _classed(grade: SizeClass) -> Iterator[Observation]:
    yield Observation("CWE", LUNG_RADS, coded_bilingual(lung_rads_category(grade.lung_rads)))
    if grade.fleischner:
        yield Observation("ST", FLEISCHNER, text(grade.fleischner))
    yield Observation("ST", SIZE_CLASS_BASIS, text(grade.basis))


def _judged(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.verdict:
        yield Observation("CWE", REVIEW_VERDICT, coded_bilingual(VERDICTS[reported.verdict]))
