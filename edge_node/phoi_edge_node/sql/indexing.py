"""The index of instances as they arrive: the store's busiest path, so few statements, made once.

What only adds to a study that is being received is committed without a sync of its own: the file is
durable, and the next start finds it. What makes or reopens a study is synced. So an instance that a
power cut takes out of the index is always one of a study that is then still there and being
received, which is where recovery looks closely: every later change of that study's state was
synced, and would have saved the instance with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache

import sqlalchemy as sa

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.group_commit import GroupCommit
from phoi_edge_node.ports import Clock, Intake, ReceivedInstance
from phoi_edge_node.result import Patient, StudyHeader
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database, hold
from phoi_edge_node.sql.patients import lookup, merged, patient_lock
from phoi_edge_node.study import STUDY, StudyEvent, StudyState, after

_INSTANCES, _STUDIES = tables.instances, tables.studies
_COLUMNS = [column.name for column in _INSTANCES.columns]

# Building a statement costs more than running it on SQLite.
_SHA256 = sa.select(_INSTANCES.c.sha256).where(
    _INSTANCES.c.sop_instance_uid == sa.bindparam("sop_instance_uid")
)
_HERE = _STUDIES.c.study_instance_uid == sa.bindparam("uid")
_STUDY = (
    sa.select(
        _STUDIES.c.state,
        _STUDIES.c.header,
        _STUDIES.c.last_received_at,
        _SHA256.scalar_subquery().label("known"),
    )
    .where(_HERE)
    .with_for_update()
)
_NEW_INSTANCE = _INSTANCES.insert()
_NEW_STUDY = _STUDIES.insert()
_TOUCH = _STUDIES.update().where(_HERE).values(last_received_at=sa.bindparam("at"))
_REOPEN = _TOUCH.values(state=sa.bindparam("state"), state_since=sa.bindparam("at"))
_BEGIN_ANEW = _REOPEN.values(receiving_since=sa.bindparam("at"))
_TRIES = 5
_PASSING = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_TOUCH_EVERY = timedelta(seconds=1)  # of a study that a thousand images a second may come to


class _NeedsSync(Exception):
    """A study is made or reopened: this transaction must not be one that a power cut may undo."""


class Indexing(Database):
    """The part of the store that what receives writes to."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        super().__init__(engine, clock)
        self._group = GroupCommit(self.add_instances, of_all=(sa.exc.OperationalError,))

    def add_instance(self, instance: ReceivedInstance) -> Intake:
        """Index an instance; a new one (re)opens its study."""
        return self._group.add(instance)

    def add_instances(self, instances: Sequence[ReceivedInstance]) -> Sequence[Intake]:
        """Index several in one transaction: all of them or, when it raises, none."""
        try:
            return self._add_all(instances, synced=False)
        except (_NeedsSync, sa.exc.DBAPIError) as error:
            if not _may_pass(error):
                raise
        return self._add_synced(instances)

    def _add_synced(self, instances: Sequence[ReceivedInstance]) -> Sequence[Intake]:
        for _ in range(_TRIES - 1):
            try:
                return self._add_all(instances, synced=True)
            except sa.exc.DBAPIError as error:
                if not _may_pass(error):
                    raise
        return self._add_all(instances, synced=True)

    def _add_all(self, instances: Sequence[ReceivedInstance], *, synced: bool) -> Sequence[Intake]:
        """Study by study in the order of their UIDs, so that no two transactions wait in a ring."""
        numbered = sorted(enumerate(instances), key=lambda one: one[1].study_instance_uid)
        with self._write(synced=synced) as connection:
            if synced:  # studies may begin: of patients who are being merged just now, perhaps
                numbers = {instance.study.patient.patient_id for instance in instances}
                hold(connection, map(patient_lock, numbers))
            added = {n: _add(connection, instance, synced=synced) for n, instance in numbered}
        return [added[n] for n in range(len(instances))]


def _may_pass(error: Exception) -> bool:
    """Does it go well when it is tried again?

    Another transaction may have brought the same study or instance a moment ago, which PostgreSQL
    says at the insertion only; looked at again, it is known. Or two waited for each other.
    """
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, (_NeedsSync, sa.exc.IntegrityError)) or state in _PASSING


def _add(connection: sa.Connection, instance: ReceivedInstance, *, synced: bool) -> Intake:
    sop, uid = {"sop_instance_uid": instance.sop_instance_uid}, instance.study_instance_uid
    study = connection.execute(_STUDY, {**sop, "uid": uid}).one_or_none()
    known = connection.scalar(_SHA256, sop) if study is None else study.known
    if known is not None:
        return Intake.DUPLICATE if known == instance.sha256 else Intake.CONFLICT
    if not synced and (study is None or study.state != StudyState.RECEIVING):
        raise _NeedsSync
    if study is None:
        connection.execute(_NEW_STUDY, _new_study(connection, instance))
    elif _is_of(connection, study.header, instance.study.patient):
        _complete_patient(connection, uid, study.header, instance.study.patient)
        state = StudyState(study.state)
        _touch(connection, state, uid, study.last_received_at, instance.received_at)
    else:
        return Intake.OTHER_PATIENT
    connection.execute(_NEW_INSTANCE, {name: getattr(instance, name) for name in _COLUMNS})
    return Intake.STORED


def _is_of(connection: sa.Connection, header: str, patient: Patient) -> bool:
    """Does the study belong to this patient, perhaps under a number that was merged?"""
    known = _patient(header)
    return _same_patient(known, patient) or _same_patient(known, merged(connection, patient))


def _complete_patient(connection: sa.Connection, uid: str, header: str, patient: Patient) -> None:
    """The first image that says whose the study is says it of the study: others must agree."""
    known = _patient(header)
    if known.patient_id and (known.issuer or not patient.issuer):
        return
    if not patient.patient_id and not patient.issuer:
        return
    other = merged(connection, patient)
    told = replace(
        known,
        patient_id=known.patient_id or other.patient_id,
        issuer=known.issuer or other.issuer,
    )
    if told != known:
        study = replace(from_json(header, StudyHeader), patient=told)
        values = {"header": to_json(study), "patient_id": lookup(told.patient_id)}
        connection.execute(_STUDIES.update().where(_HERE).values(**values), {"uid": uid})


def _touch(
    connection: sa.Connection, state: StudyState, uid: str, last: datetime, at: datetime
) -> None:
    """A study received one more instance, which may open it again."""
    following = after(STUDY, state, StudyEvent.INSTANCE_STORED)
    if following is state:
        if abs(at - last) >= _TOUCH_EVERY:
            connection.execute(_TOUCH, {"uid": uid, "at": at})
        return
    # Unless it was only being counted, it was whole once and begins anew.
    reopen = _REOPEN if state is StudyState.COUNTING else _BEGIN_ANEW
    connection.execute(reopen, {"uid": uid, "at": at, "state": following})


def _new_study(connection: sa.Connection, instance: ReceivedInstance) -> dict[str, object]:
    at = instance.received_at
    patient = merged(connection, instance.study.patient)
    return {
        "study_instance_uid": instance.study_instance_uid,
        "state": StudyState.RECEIVING,
        "state_since": at,
        "receiving_since": at,
        "header": to_json(replace(instance.study, patient=patient)),
        "patient_id": lookup(patient.patient_id),
        "first_received_at": at,
        "last_received_at": at,
    }


@lru_cache(maxsize=64)
def _patient(header: str) -> Patient:
    return from_json(header, StudyHeader).patient


def _same_patient(known: Patient, other: Patient) -> bool:
    """Compared by identifier and issuer where both name one."""
    pairs = ((known.patient_id, other.patient_id), (known.issuer, other.issuer))
    return all(one == two for one, two in pairs if one and two)
