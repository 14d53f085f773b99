"""The values that a mapping can put into a field, by the names that it calls them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phoi_edge_node.hl7v2.fields import day, local_timestamp, timestamp
from phoi_edge_node.orders import OrderNumber
from phoi_edge_node.person_name import person_name
from phoi_edge_node.ports import ReportedCase
from phoi_edge_node.reported import accession_number, filler_number, outcome_term, reported_at

APPLICATION = "PHOI"

# The components of a field, plain; none: the value is not known.
Components = tuple[str, ...]


@dataclass(frozen=True)
class KnownValue:
    """One value.

    Attributes:
        of: gives it for a case at a site of this name.
        meaning: what it is, for documentation.
        segments: where it may stand: nothing of a person in a header, which interface engines log,
            and nothing in PID that every patient shares.
        is_number: it is another one for each patient, order or report.
        is_name: it is an XCN that fills a field; its first component, a number, is never known.
    """

    of: Callable[[ReportedCase, str], Components]
    meaning: str
    segments: frozenset[str]
    is_number: bool = False
    is_name: bool = False


_NOT_OF_PATIENT = frozenset({"MSH", "PV1", "ORC", "OBR", "OBX"})
_OF_PATIENT = frozenset({"PID", "PV1"})
_OF_STUDY = frozenset({"PV1", "ORC", "OBR", "OBX"})


def person(name: str) -> Components:
    """XCN of a DICOM PN value, without a number."""
    parts = person_name(name)
    return _unless_empty("", parts.family, parts.given, parts.middle, parts.suffix, parts.prefix)


def filler(case: ReportedCase) -> Components:
    """EI: Phoi's own number of its report."""
    return (filler_number(case.study.study_instance_uid), APPLICATION)


def _unless_empty(*parts: str) -> Components:
    return parts if any(parts) else ()


def _number(number: OrderNumber) -> Components:
    return _unless_empty(number.value, number.namespace) if number.value else ()


def _patient(
    of: Callable[[ReportedCase], str], meaning: str, *, is_number: bool = False
) -> KnownValue:
    return KnownValue(lambda case, _: _unless_empty(of(case)), meaning, _OF_PATIENT, is_number)


def _study(
    of: Callable[[ReportedCase], Components],
    meaning: str,
    *,
    is_number: bool = False,
    is_name: bool = False,
) -> KnownValue:
    return KnownValue(lambda case, _: of(case), meaning, _OF_STUDY, is_number, is_name)


def _text(
    of: Callable[[ReportedCase], str], meaning: str, *, is_number: bool = False
) -> KnownValue:
    return _study(lambda case: _unless_empty(of(case)), meaning, is_number=is_number)


def _system(of: Callable[[ReportedCase, str], str], meaning: str) -> KnownValue:
    return KnownValue(lambda case, site: _unless_empty(of(case, site)), meaning, _NOT_OF_PATIENT)


KNOWN_VALUES: Mapping[str, KnownValue] = {
    "patient.id": _patient(
        lambda c: c.study.patient.patient_id, "Patient ID of the images", is_number=True
    ),
    "patient.issuer": _patient(lambda c: c.study.patient.issuer, "its Issuer of Patient ID"),
    "patient.name": _patient(
        lambda c: person_name(c.study.patient.name).text, "name as it is written in Viet Nam"
    ),
    "patient.birth_date": _patient(lambda c: day(c.study.patient.birth_date), "date of birth"),
    "patient.sex": _patient(lambda c: c.study.patient.sex, "sex"),
    "study.instance_uid": _text(
        lambda c: c.study.study_instance_uid, "Study Instance UID", is_number=True
    ),
    "study.accession_number": _text(
        accession_number, "accession number of the images, else of the order", is_number=True
    ),
    "study.id": _text(lambda c: c.study.study_id, "Study ID"),
    "study.description": _text(lambda c: c.study.description, "Study Description"),
    "study.started_at": _text(
        lambda c: local_timestamp(c.study.started_at), "Study Date and Time, without a zone"
    ),
    "study.referring_physician": _study(
        lambda c: person(c.study.referring_physician),
        "Referring Physician's Name, as XCN",
        is_name=True,
    ),
    "order.placer": _study(
        lambda c: _number(c.order.placer) if c.order else (),
        "placer's number and its namespace",
        is_number=True,
    ),
    "order.filler": _study(
        lambda c: _number(c.order.filler) if c.order else (),
        "filler's number and its namespace",
        is_number=True,
    ),
    "order.requester": _study(
        lambda c: person(c.order.requester) if c.order else (), "who asked, as XCN", is_name=True
    ),
    "order.procedure": _study(
        lambda c: _unless_empty(c.order.procedure_code, c.order.procedure) if c.order else (),
        "code and text of what was ordered",
    ),
    "order.clinical_question": _text(
        lambda c: c.order.clinical_question if c.order else "", "clinical question"
    ),
    "report.number": _study(filler, "Phoi's number of the report, and PHOI", is_number=True),
    "report.time": _text(lambda c: timestamp(reported_at(c)), "of the analysis, of signing"),
    "result.outcome": _study(
        lambda c: (outcome_term(c).code, outcome_term(c).en, outcome_term(c).scheme.designator),
        "code, text and system of the outcome",
    ),
    "reviewer.id": _text(lambda c: c.review.reviewer if c.review else "", "who signed"),
    "reviewer.name": _text(lambda c: c.review.reviewer_name if c.review else "", "the same's name"),
    "model.name": _system(lambda c, _: c.result.identity.model.name, "name of the model"),
    "model.version": _system(lambda c, _: c.result.identity.model.version, "its version"),
    "model.device_uid": _system(lambda c, _: c.result.identity.model.device_uid, "its Device UID"),
    "site.name": _system(lambda _, site: site, "site.name of the settings"),
}
