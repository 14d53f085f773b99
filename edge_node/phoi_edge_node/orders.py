"""Imaging orders and the identity of patients, as the hospital's systems tell them. Pure.

An order says what the images do not: who asks, what for, and how urgently. A study without one is
analysed all the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Protocol

from phoi_edge_node.result import Patient, Priority, StudyHeader

# When something was told by a source that does not say when, as a worklist: before all else.
UNDATED = datetime(1, 1, 2, tzinfo=UTC)

_URGENCY = (Priority.STAT, Priority.URGENT, Priority.ROUTINE)


@dataclass(frozen=True)
class PatientKey:
    """A patient's number and who gave it; the issuer is "" where nobody said."""

    patient_id: str
    issuer: str = ""

    def may_be(self, other: PatientKey) -> bool:
        """The same number, and no two different issuers. An empty number is nobody's."""
        same_issuer = self.issuer == other.issuer or not self.issuer or not other.issuer
        return bool(self.patient_id) and self.patient_id == other.patient_id and same_issuer


def key_of(patient: Patient) -> PatientKey:
    """Who is on the images."""
    return PatientKey(patient.patient_id, patient.issuer)


@dataclass(frozen=True)
class OrderNumber:
    """The number of an order in the system that gave it (HL7 v2 EI)."""

    value: str = ""
    namespace: str = ""

    def may_be(self, other: OrderNumber) -> bool:
        """The same number, and no two different systems that gave it."""
        named = self.namespace and other.namespace
        return self.value == other.value and (not named or self.namespace == other.namespace)


@dataclass(frozen=True)
class ImagingOrder:
    """One order for one study. Never logged.

    Attributes:
        placer: the number given by the system that ordered.
        filler: the number given by the radiology system.
        accession_number, study_instance_uid: "" where it does not say.
        patients: every number of the patient, the hospital's own first.
        requester: who asks, as a DICOM PN string.
        procedure_code, procedure: what was ordered; "" where it does not say.
        priority: None where it does not say.
    """

    placer: OrderNumber = OrderNumber()
    filler: OrderNumber = OrderNumber()
    accession_number: str = ""
    study_instance_uid: str = ""
    patients: tuple[PatientKey, ...] = ()
    requester: str = ""
    clinical_question: str = ""
    procedure_code: str = ""
    procedure: str = ""
    priority: Priority | None = None

    @property
    def numbers(self) -> frozenset[str]:
        """All that may stand on the images as Accession Number: sites differ in which they use."""
        named = (self.accession_number, self.filler.value, self.placer.value)
        return frozenset(number for number in named if number)

    def concerns(self, other: ImagingOrder) -> bool:
        """Both tell of the same order: by its number, else by the accession number."""
        if not self.same_patient(other.patients):
            return False
        for mine, its in ((self.placer, other.placer), (self.filler, other.filler)):
            if mine.value and its.value:
                return mine.may_be(its)
        return bool(self.accession_number) and self.accession_number == other.accession_number

    def same_patient(self, others: Sequence[PatientKey]) -> bool:
        """Any number in common; nothing is known against it where one side names none."""
        if not self.patients or not others:
            return True
        return any(mine.may_be(its) for mine in self.patients for its in others)

    def is_for(self, study: StudyHeader, also_known_as: Sequence[PatientKey] = ()) -> bool:
        """It is the order behind these images, and of the patient on them.

        One that names no patient is for nobody; images that name none are found by UID alone.

        Args:
            also_known_as: the patient's numbers before they were merged.
        """
        by_uid = self.study_instance_uid == study.study_instance_uid
        if not study.patient.patient_id:
            return by_uid and bool(self.patients)
        known_as = [key_of(study.patient), *also_known_as]
        by_number = study.accession_number in self.numbers
        return (by_uid or by_number) and bool(self.patients) and self.same_patient(known_as)


class OrderAction(StrEnum):
    """What a message does with an order."""

    PLACE = "place"  # new, or all of it told anew
    UPDATE = "update"  # only what it names is told anew
    CANCEL = "cancel"


@dataclass(frozen=True)
class ToldOrder:
    """An order and what is to be done with it."""

    action: OrderAction
    order: ImagingOrder

    def over(self, known: ImagingOrder) -> ImagingOrder:
        """What holds after it. Numbers, once known, stay: later messages often leave them out."""
        told = self.order
        kept = replace(
            told,
            placer=told.placer if told.placer.value else known.placer,
            filler=told.filler if told.filler.value else known.filler,
            accession_number=told.accession_number or known.accession_number,
            study_instance_uid=told.study_instance_uid or known.study_instance_uid,
            patients=told.patients or known.patients,
        )
        if self.action is OrderAction.PLACE:
            return kept
        return replace(
            kept,
            requester=told.requester or known.requester,
            clinical_question=told.clinical_question or known.clinical_question,
            procedure_code=told.procedure_code or known.procedure_code,
            procedure=told.procedure or known.procedure,
            priority=told.priority or known.priority,
        )


@dataclass(frozen=True)
class PatientMerge:
    """Two numbers are one patient: the first is used no more."""

    gone: PatientKey
    surviving: PatientKey


@dataclass(frozen=True)
class PatientUpdate:
    """A patient's name, birth date and sex as they are right; "" and None leave what is known."""

    patients: tuple[PatientKey, ...]
    name: str = ""
    birth_date: date | None = None
    sex: str = ""

    def agrees_with(self, known: Patient) -> bool:
        """The birth date or the name is the same: what a mere number does not tell."""
        born = self.birth_date is not None and self.birth_date == known.birth_date
        return born or bool(self.name and known.name and _same_name(known.name, self.name))

    def over(self, known: Patient) -> Patient:
        """The patient as corrected.

        A name that differs only in capitals, or in accents that the known one never had, is no
        correction: many scanners write names in plain ASCII, and the archive would not know it.
        """
        name = known.name if not self.name or _same_name(known.name, self.name) else self.name
        return replace(
            known,
            name=name,
            birth_date=self.birth_date or known.birth_date,
            sex=self.sex or known.sex,
        )


@dataclass(frozen=True)
class HospitalMessage:
    """All that one message tells; taken as a whole or not at all.

    Attributes:
        identity: the same for a message that is sent again, and for no other.
        sent_at: UTC, by the sender's clock; never later than it was received. What is UNDATED only
            fills in what is not known of an order.
    """

    identity: str
    sent_at: datetime
    orders: tuple[ToldOrder, ...] = ()
    merges: tuple[PatientMerge, ...] = ()
    updates: tuple[PatientUpdate, ...] = ()


class OrderStore(Protocol):
    """The edge's memory of orders and of who is whom."""

    def take_message(self, message: HospitalMessage) -> bool:
        """Remember what a message tells, in one transaction; what is older than known is left.

        Queued analyses of a study whose order is more urgent move up. Studies of a patient whose
        identity changed get the right one, and what was told of them is made anew as the next
        revision.

        Returns:
            False if it was taken before: then nothing changes.
        """
        ...

    def order_of(self, study_instance_uid: str) -> ImagingOrder | None:
        """The order behind a study: by Study Instance UID, else by number; never another patient's.

        Cancelled orders are none.
        """
        ...


def more_urgent(one: Priority, other: Priority | None) -> Priority:
    """The more urgent of the two."""
    return one if other is None else min(one, other, key=_URGENCY.index)


def _same_name(known: str, told: str) -> bool:
    if not known.isascii():
        return _plain(known) == _plain(told)
    return _plain(known) == _plain(_without_accents(told))


def _plain(name: str) -> str:
    """Capitals, delimiters and forms of the same letter do not count."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("^", " ").split())


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    return "".join(c for c in decomposed if not unicodedata.combining(c))
