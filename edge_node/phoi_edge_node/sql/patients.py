"""Which numbers are one patient: the merges that were told, followed both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from phoi_edge_node.codec import from_json
from phoi_edge_node.orders import PatientKey
from phoi_edge_node.result import Patient, StudyHeader
from phoi_edge_node.sql import tables

_LONGEST_CHAIN = 16  # merges of merges; a circle cannot be told, but is no reason to hang


def lookup(number: str) -> str:
    """As much of a number as is indexed: what images say may be longer than an index takes.

    Numbers of patients and orders have 64 characters at most where the rules are kept (PS3.5 6.2,
    LO). What is found by this is compared in full.
    """
    return number[:64]


def patient_lock(number: str) -> str:
    """The name under which whoever changes a patient, or adds a study of one, holds the number."""
    return f"patient {number}"


def image_key(connection: sa.Connection, patient: Patient) -> PatientKey:
    """Who is on images; where they name no issuer, the one that the site's settings name."""
    default = connection.get_execution_options().get("phoi_default_issuer", "")
    return PatientKey(patient.patient_id, patient.issuer or default)


def is_certain(connection: sa.Connection, one: PatientKey, other: PatientKey) -> bool:
    """The same number of the same issuer; where one names none, only one is known to give it."""
    if not one.may_be(other):
        return False
    if one.issuer == other.issuer:
        return True
    known = _issuers(connection, one.patient_id) | {one.issuer, other.issuer}
    return len(known - {""}) < 2


def _issuers(connection: sa.Connection, number: str) -> set[str]:
    """All that merges and images name with a number."""
    merges, studies = tables.patient_merges, tables.studies
    gone = sa.select(merges.c.issuer).where(merges.c.patient_id == number)
    stays = sa.select(merges.c.surviving_issuer).where(merges.c.surviving_id == number)
    headers = sa.select(studies.c.header).where(studies.c.patient_id == lookup(number))
    patients = [from_json(h, StudyHeader).patient for h in connection.scalars(headers)]
    named = {p.issuer for p in patients if p.patient_id == number}
    return {*connection.scalars(gone), *connection.scalars(stays), *named}


def current_key(connection: sa.Connection, patient: PatientKey) -> PatientKey:
    """The number that a patient goes by now."""
    table = tables.patient_merges
    for _ in range(_LONGEST_CHAIN):
        query = sa.select(table).where(table.c.patient_id == patient.patient_id)
        rows = connection.execute(query.order_by(table.c.told_at.desc())).all()
        keys = ((r, PatientKey(r.patient_id, r.issuer)) for r in rows)
        row = next((r for r, key in keys if is_certain(connection, key, patient)), None)
        if row is None:
            break
        patient = PatientKey(row.surviving_id, row.surviving_issuer)
    return patient


def all_numbers(
    connection: sa.Connection, patients: Sequence[PatientKey]
) -> tuple[PatientKey, ...]:
    """Every number that a patient goes by now or went by before, the given ones first."""
    found = dict.fromkeys(patients)
    for patient in patients:
        now = current_key(connection, patient)
        found |= dict.fromkeys([now, *numbers_before(connection, now)])
    return tuple(found)


def merged(connection: sa.Connection, patient: Patient) -> Patient:
    """The patient on new images under the number that stands for them now."""
    here = image_key(connection, patient)
    surviving = current_key(connection, here)
    return patient if surviving == here else renamed(patient, surviving)


def renamed(patient: Patient, surviving: PatientKey) -> Patient:
    """The patient under another number; images that name no issuer still name none."""
    issuer = surviving.issuer if patient.issuer else ""
    return replace(patient, patient_id=surviving.patient_id, issuer=issuer)


def numbers_before(connection: sa.Connection, patient: PatientKey) -> Sequence[PatientKey]:
    """The numbers that were merged into a patient's."""
    table = tables.patient_merges
    found = [patient]
    for key in found:  # grows while it is walked
        query = sa.select(table).where(table.c.surviving_id == key.patient_id)
        for row in connection.execute(query):
            gone = PatientKey(row.patient_id, row.issuer)
            surviving = PatientKey(row.surviving_id, row.surviving_issuer)
            if is_certain(connection, surviving, key) and gone not in found:
                found.append(gone)
    return found[1:]
