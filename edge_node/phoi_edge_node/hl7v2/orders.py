"""Orders and patients from HL7 v2: ORM^O01 (2.3.1, 4.2), OMI^O23 (2.5.1, 4.4.7), ADT (3.3).

Senders differ in where they put a value. Each is looked for where the standard and the IHE
Radiology profiles (Scheduled Workflow, RAD-2 to RAD-4, RAD-12, RAD-13) have it, the more specific
place first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from phoi_edge_node.hl7v2.incoming import (
    BadMessage,
    IncomingMessage,
    Segment,
    day,
    first_said,
    moment,
    unique,
)
from phoi_edge_node.orders import (
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    OrderNumber,
    PatientKey,
    PatientMerge,
    PatientUpdate,
    ToldOrder,
)
from phoi_edge_node.result import Priority

ORDERS = frozenset({("ORM", "O01"), ("OMI", "O23")})
# What names the numbers that stay in PID-3 and those that are gone in MRG-1: merges of persons and
# patients, and changes of a number; all but A40 and A47 are kept for earlier versions.
_MERGES = frozenset({"A18", "A30", "A34", "A36", "A39", "A40", "A46", "A47"})
# They change who is whom, or whose something is, in ways that are not followed: links, and moves
# of numbers, accounts and visits from one patient to another.
_REFUSED = frozenset({"A24", "A37", "A43", "A44", "A45"})
_UPDATES = frozenset({"A08", "A31"})

# Order control codes, HL7 table 0119.
_PLACING = frozenset({"", "NW", "XO", "XX", "RO", "RP", "SN"})
_CANCELLING = frozenset({"CA", "CR", "OC", "DC", "DR", "OD"})
_UPDATING = frozenset({"SC", "SR", "OK", "NA", "XR"})
_CANCELLED_STATUS = frozenset({"CA", "DC", "RP"})  # ORC-5, table 0038

# Priorities, HL7 tables 0485 and 0027; T with a number is "timing critical".
_PRIORITIES = {
    "S": Priority.STAT,
    "STAT": Priority.STAT,
    "EMERGENCY": Priority.STAT,
    "A": Priority.URGENT,
    "ASAP": Priority.URGENT,
    "URGENT": Priority.URGENT,
    "T": Priority.URGENT,
    "R": Priority.ROUTINE,
    "ROUTINE": Priority.ROUTINE,
    "P": Priority.ROUTINE,
    "C": Priority.ROUTINE,
}
_OWN_NUMBERS = ("MR", "PI")  # table 0203: medical record number, patient internal identifier
_SEXES = frozenset({"M", "F", "O"})


@dataclass
class _Group:
    """The segments of one order.

    Attributes:
        common: its ORC, or that of the OBR before it: what is done, and who asks for it.
    """

    common: Segment | None = None
    segments: list[Segment] = field(default_factory=list)

    def said_by_orc(self, number: int) -> str:
        """A value of the ORC that holds for every OBR behind it."""
        return self.common.value(number).upper() if self.common else ""

    def all(self, name: str) -> Iterator[Segment]:
        return (segment for segment in self.segments if segment.name == name)

    def value(self, name: str, number: int, component: int = 1) -> str:
        """The first that a segment of this name has."""
        return first_said(*(s.value(number, component) for s in self.all(name)))

    def number(self, *places: tuple[str, int]) -> OrderNumber:
        """The first order number at these places."""
        for name, number in places:
            for segment in self.all(name):
                if segment.value(number):
                    return segment.number(number)
        return OrderNumber()

    def person(self, *places: tuple[str, int]) -> str:
        """The first person at these places."""
        return first_said(*(s.person(n, 2) for name, n in places for s in self.all(name)))


def read_message(
    message: IncomingMessage, content: bytes, received_at: datetime, processing_id: str = "P"
) -> HospitalMessage:
    """What a message tells; nothing, for kinds of ADT that change neither name nor number.

    Args:
        content: its bytes: what is sent again is the same.
        received_at: UTC.
        processing_id: MSH-11 that is taken. The field is required (2.14.9.11): who leaves it empty
            does not say that it is no test.

    Raises:
        BadMessage: its kind is none of ours, or something is missing or unknown.
    """
    if message.header.value(11) != processing_id:
        raise BadMessage("AR", 202, f"only messages with MSH-11 {processing_id} are taken")
    kind = message.kind
    sent_at = moment(message.header.value(7)) or received_at
    told = HospitalMessage(sha256(content).hexdigest(), min(sent_at, received_at))
    if kind in ORDERS:
        return HospitalMessage(told.identity, told.sent_at, orders=_orders(message))
    if kind[0] != "ADT":
        raise BadMessage("AR", 200, "only ORM^O01, OMI^O23 and ADT are taken")
    if kind[1] in _REFUSED:
        raise BadMessage("AR", 201, "this change of a patient's identity is not taken: send A40")
    if kind[1] in _MERGES:
        return HospitalMessage(
            told.identity, told.sent_at, merges=_merges(message), updates=_updates(message)
        )
    if kind[1] in _UPDATES:
        return HospitalMessage(told.identity, told.sent_at, updates=_updates(message))
    return told


# --- orders ----------------------------------------------------------------------------------


def _orders(message: IncomingMessage) -> tuple[ToldOrder, ...]:
    patients = _patients(message.first("PID"))
    # IHE has one ZDS at the end of an ORM^O01, for all of its orders.
    study = first_said(*(segment.value(1) for segment in message.all("ZDS")))
    groups = _groups(message)
    if not groups:
        raise BadMessage("AE", 100, "there is no ORC and no OBR")
    return tuple(_order(group, patients, study) for group in groups)


def _groups(message: IncomingMessage) -> Sequence[_Group]:
    """An order begins with its ORC, or with an OBR that follows another OBR, and has its ORC."""
    groups: list[_Group] = []
    for segment in message.segments:
        again = segment.name == "OBR" and groups and any(groups[-1].all("OBR"))
        if segment.name == "ORC":
            groups.append(_Group(common=segment))
        elif again or (segment.name == "OBR" and not groups):
            groups.append(_Group(common=groups[-1].common if groups else None))
        if groups:
            groups[-1].segments.append(segment)
    return groups


def _order(group: _Group, patients: tuple[PatientKey, ...], study: str) -> ToldOrder:
    order = ImagingOrder(
        placer=group.number(("ORC", 2), ("OBR", 2)),
        filler=group.number(("ORC", 3), ("OBR", 3)),
        accession_number=first_said(group.value("IPC", 1), group.value("OBR", 18)),
        study_instance_uid=first_said(group.value("IPC", 3), study),
        patients=patients,
        requester=first_said(
            group.common.person(12, 2) if group.common else "", group.person(("OBR", 16))
        ),
        clinical_question=_question(group),
        procedure_code=first_said(group.value("OBR", 4), group.value("OBR", 4, 4)),
        procedure=first_said(group.value("OBR", 4, 2), group.value("OBR", 4, 5)),
        priority=_priority(group),
    )
    if not order.numbers and not order.study_instance_uid:
        raise BadMessage("AE", 101, "an order has no number: ORC-2, ORC-3, OBR-18 or IPC-1")
    action = _action(group)
    if action is OrderAction.PLACE and not patients:
        raise BadMessage("AE", 101, "PID-3 is empty: whose order is it?")
    return ToldOrder(action, order)


def _action(group: _Group) -> OrderAction:
    control = group.said_by_orc(1)
    if control in _CANCELLING:
        return OrderAction.CANCEL
    if control in _UPDATING:
        cancelled = group.said_by_orc(5) in _CANCELLED_STATUS
        return OrderAction.CANCEL if cancelled else OrderAction.UPDATE
    if control in _PLACING:
        return OrderAction.PLACE
    raise BadMessage("AE", 103, "ORC-1 is an order control code that is not known")


def _question(group: _Group) -> str:
    """Reason for study (OBR-31, repeated) and relevant clinical information (OBR-13)."""
    reasons = [
        first_said(segment.value(31, 2, n), segment.value(31, 1, n), segment.value(31, 5, n))
        for segment in group.all("OBR")
        for n in segment.repetitions(31)
    ]
    return "; ".join(unique([*reasons, group.value("OBR", 13)]))


def _priority(group: _Group) -> Priority | None:
    """TQ1-9, then the sixth component of ORC-7 and OBR-27, then OBR-5."""
    said = first_said(
        group.value("TQ1", 9),
        group.value("ORC", 7, 6),
        group.value("OBR", 27, 6),
        group.value("OBR", 5),
    ).upper()
    if said[:1] == "T" and said[-1:].isdigit():
        return Priority.URGENT
    return _PRIORITIES.get(said)


# --- patients --------------------------------------------------------------------------------


def _patients(pid: Segment | None) -> tuple[PatientKey, ...]:
    """Every number in PID-3, the hospital's own first; of PID-2 where that is empty."""
    if pid is None:
        return ()
    found = [(pid.patient(3, n), pid.value(3, 5, n)) for n in pid.repetitions(3)]
    found.sort(key=lambda pair: pair[1] not in _OWN_NUMBERS)
    keys = [key for key, _ in found if key.patient_id]
    return tuple(dict.fromkeys(keys or [key for key in [pid.patient(2)] if key.patient_id]))


def _merges(message: IncomingMessage) -> tuple[PatientMerge, ...]:
    """Each MRG names the numbers that are gone; the PID before it, those that stay."""
    merges: list[PatientMerge] = []
    surviving: tuple[PatientKey, ...] = ()
    for segment in message.all("PID", "MRG"):
        if segment.name == "PID":
            surviving = _patients(segment)
            continue
        gone = [segment.patient(1, n) for n in segment.repetitions(1)]
        merges += [
            PatientMerge(key, _counterpart(key, surviving))
            for key in gone
            if key.patient_id and surviving and key not in surviving
        ]
    if not merges:
        raise BadMessage("AE", 101, "a merge needs PID-3 and MRG-1")
    return tuple(merges)


def _counterpart(gone: PatientKey, surviving: Sequence[PatientKey]) -> PatientKey:
    """The number that the same authority gave, else the hospital's own."""
    return next((key for key in surviving if key.issuer == gone.issuer), surviving[0])


def _updates(message: IncomingMessage) -> tuple[PatientUpdate, ...]:
    updates = [
        PatientUpdate(
            patients=_patients(pid),
            name=_legal_name(pid),
            birth_date=day(pid.value(7)),
            sex=sex if (sex := pid.value(8).upper()) in _SEXES else "",
        )
        for pid in message.all("PID")
    ]
    if not any(update.patients for update in updates):
        raise BadMessage("AE", 101, "PID-3 is empty: who is it?")
    return tuple(update for update in updates if update.patients)


def _legal_name(pid: Segment) -> str:
    """PID-5 of type L, else the first."""
    names = [(pid.value(5, 7, n), pid.person(5, 1, n)) for n in pid.repetitions(5)]
    legal = [name for kind, name in names if kind == "L"]
    return first_said(*legal, *(name for _, name in names))
