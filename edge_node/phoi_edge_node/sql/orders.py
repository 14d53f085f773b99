"""Orders, and what is known of who is whom: ``orders.OrderStore`` on SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.orders import (
    UNDATED,
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    PatientKey,
    PatientMerge,
    PatientUpdate,
    ToldOrder,
)
from phoi_edge_node.result import Patient, Priority, StudyHeader
from phoi_edge_node.scheduling import turn_at
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.analyses import RANK, queue_analysis
from phoi_edge_node.sql.deliveries import outdate_documents
from phoi_edge_node.sql.engine import Database, hold
from phoi_edge_node.sql.expired import lacks_expired
from phoi_edge_node.sql.patients import (
    all_numbers,
    current_key,
    image_key,
    is_certain,
    lookup,
    numbers_before,
    patient_lock,
    renamed,
)
from phoi_edge_node.study import AnalysisState, StudyState

BY_MESSAGE = "hl7v2"  # who changed a patient, in the audit
_REMEMBERED = timedelta(days=30)  # no sender tries a message for longer
_TOLD = frozenset({AnalysisState.SUCCEEDED, AnalysisState.NOT_ANALYSABLE, AnalysisState.FAILED})


class Orders(Database):
    """The part of the store that orders and patients use."""

    def take_message(self, message: HospitalMessage) -> bool:
        """Remember what a message tells, in one transaction; what is older than known is left."""
        with self._write() as connection:
            if not self._is_new(connection, message.identity):
                return False
            hold(connection, _concerned(message))
            for told in message.orders:
                _take_order(connection, told, message.sent_at)
            for merge in message.merges:
                self._merge(connection, merge, message.sent_at)
            for update in message.updates:
                self._update(connection, update, message.sent_at)
        return True

    def order_of(self, study_instance_uid: str) -> ImagingOrder | None:
        """The order behind a study; cancelled ones are none."""
        table = tables.studies
        query = sa.select(table.c.header).where(table.c.study_instance_uid == study_instance_uid)
        with self._read() as connection:
            header = connection.scalar(query)
            if header is None:
                return None
            return order_behind(connection, from_json(header, StudyHeader))

    def _is_new(self, connection: sa.Connection, identity: str) -> bool:
        table = tables.hospital_messages
        now = self._clock.now()
        connection.execute(table.delete().where(table.c.taken_at < now - _REMEMBERED))
        if connection.scalar(sa.select(table.c.identity).where(table.c.identity == identity)):
            return False
        connection.execute(table.insert().values(identity=identity, taken_at=now))
        return True

    # --- patients ----------------------------------------------------------------------------

    def _merge(self, connection: sa.Connection, merge: PatientMerge, told_at: datetime) -> None:
        table = tables.patient_merges
        gone, surviving = merge.gone, merge.surviving
        here = (table.c.patient_id == gone.patient_id) & (table.c.issuer == gone.issuer)
        back = table.c.patient_id == surviving.patient_id
        back &= table.c.issuer == surviving.issuer
        known_at = connection.scalar(sa.select(sa.func.max(table.c.told_at)).where(here | back))
        if known_at is not None and known_at > told_at:
            return
        # The surviving number lives again, should it have been merged away before.
        connection.execute(table.delete().where(here | back))
        connection.execute(
            table.insert().values(
                patient_id=gone.patient_id,
                issuer=gone.issuer,
                surviving_id=surviving.patient_id,
                surviving_issuer=surviving.issuer,
                told_at=told_at,
            )
        )
        for study in _studies_of(connection, gone):
            patient = renamed(study.patient, surviving)
            self._change_patient(connection, study, patient, "patient_merged")

    def _update(self, connection: sa.Connection, update: PatientUpdate, told_at: datetime) -> None:
        for key in update.patients:
            now = current_key(connection, key)
            studies = _studies_of(connection, now)
            if studies and _is_latest_update(connection, key, told_at):
                for study in studies:
                    here = image_key(connection, study.patient)
                    if here.issuer != now.issuer and not update.agrees_with(study.patient):
                        continue  # the same number, perhaps of somebody else
                    patient = update.over(study.patient)
                    self._change_patient(connection, study, patient, "patient_corrected")

    def _change_patient(
        self, connection: sa.Connection, study: StudyHeader, patient: Patient, action: str
    ) -> None:
        """Put the right identity on a study, and queue what tells it to everybody."""
        if patient == study.patient:
            return
        uid, table = study.study_instance_uid, tables.studies
        connection.execute(
            table.update()
            .where(table.c.study_instance_uid == uid)
            .values(
                header=to_json(replace(study, patient=patient)),
                patient_id=lookup(patient.patient_id),
            )
        )
        self._audit(connection, BY_MESSAGE, action, uid)
        now = self._clock.now()
        outdate_documents(connection, uid, now)
        _tell_anew(connection, uid, now)


def _concerned(message: HospitalMessage) -> Iterator[str]:
    """What another message, or images that come now, may be about at the same moment."""
    for told in message.orders:
        order = told.order
        yield from (f"order {number}" for number in order.numbers)
        yield f"order {order.study_instance_uid}"
    for merge in message.merges:
        yield from (patient_lock(key.patient_id) for key in (merge.gone, merge.surviving))
    for update in message.updates:
        yield from (patient_lock(key.patient_id) for key in update.patients)


def order_behind(connection: sa.Connection, study: StudyHeader) -> ImagingOrder | None:
    """The order of a study: by Study Instance UID, else by number, the latest told first."""
    table, uid = tables.orders, study.study_instance_uid
    number = lookup(study.accession_number)
    found = table.c.study_instance_uid == uid
    if number:
        found |= table.c.accession_number == number
        found |= (table.c.filler == number) | (table.c.placer == number)
    query = sa.select(table.c.content).where(found, table.c.cancelled.is_(False))
    rows = connection.scalars(query.order_by(table.c.told_at.desc())).all()
    if not rows:
        return None
    here = image_key(connection, study.patient)
    study = replace(study, patient=replace(study.patient, issuer=here.issuer))
    also_known_as = numbers_before(connection, here)
    orders = [from_json(row, ImagingOrder) for row in rows]
    mine = [order for order in orders if order.is_for(study, also_known_as)]
    return min(mine, key=lambda o: _distance(o, study), default=None)


def _distance(order: ImagingOrder, study: StudyHeader) -> tuple[bool, bool]:
    by_uid = order.study_instance_uid == study.study_instance_uid
    return (not by_uid, order.accession_number != study.accession_number)


def _take_order(connection: sa.Connection, told: ToldOrder, told_at: datetime) -> None:
    table = tables.orders
    row = _known_order(connection, told.order)
    if row is not None and row.told_at > told_at:
        if told_at != UNDATED:
            return
        # The other way round: what is known is told over this.
        known = from_json(row.content, ImagingOrder)
        filled = ToldOrder(OrderAction.UPDATE, known).over(told.order)
        told, told_at = ToldOrder(OrderAction.UPDATE, filled), row.told_at
    if row is None and told.action is OrderAction.UPDATE and not told.order.patients:
        return  # nobody's
    order = told.order if row is None else told.over(from_json(row.content, ImagingOrder))
    cancelled = told.action is OrderAction.CANCEL
    if told.action is OrderAction.UPDATE and row is not None:
        cancelled = row.cancelled
    values = {
        "placer": lookup(order.placer.value),
        "filler": lookup(order.filler.value),
        "accession_number": lookup(order.accession_number),
        "study_instance_uid": lookup(order.study_instance_uid),
        "cancelled": cancelled,
        "told_at": told_at,
        "content": to_json(order),
    }
    if row is None:
        connection.execute(table.insert().values(values))
    else:
        connection.execute(table.update().where(table.c.id == row.id).values(values))
    if not cancelled:
        _raise_priority(connection, order)


def _known_order(connection: sa.Connection, order: ImagingOrder) -> sa.Row[Any] | None:
    table = tables.orders
    numbers = (
        (table.c.placer, order.placer.value),
        (table.c.filler, order.filler.value),
        (table.c.accession_number, order.accession_number),
    )
    shared = [column == lookup(value) for column, value in numbers if value]
    if not shared:
        shared = [table.c.study_instance_uid == lookup(order.study_instance_uid)]
    query = sa.select(table).where(sa.or_(*shared)).order_by(table.c.told_at.desc())
    rows = connection.execute(query).all()
    known_as = replace(order, patients=all_numbers(connection, order.patients))
    return next((r for r in rows if known_as.concerns(from_json(r.content, ImagingOrder))), None)


def _raise_priority(connection: sa.Connection, order: ImagingOrder) -> None:
    """Move up the analyses that wait for this order's study; none is ever moved down."""
    priority = order.priority or Priority.ROUTINE
    if priority is Priority.ROUTINE:
        return
    analyses, studies = tables.analyses, tables.studies
    rank = RANK[priority]
    query = (
        sa.select(analyses.c.id, analyses.c.created_at, studies.c.header)
        .join(studies, studies.c.study_instance_uid == analyses.c.study_instance_uid)
        .where(analyses.c.state == AnalysisState.QUEUED, analyses.c.priority > rank)
    )
    for row in connection.execute(query).all():
        study = from_json(row.header, StudyHeader)
        behind = order_behind(connection, study) if _may_be_for(order, study) else None
        if behind == order:
            connection.execute(
                analyses.update()
                .where(analyses.c.id == row.id)
                .values(priority=rank, turn_at=turn_at(row.created_at, priority))
            )


def _may_be_for(order: ImagingOrder, study: StudyHeader) -> bool:
    """Cheap, before the database is asked for each waiting study."""
    by_uid = order.study_instance_uid == study.study_instance_uid
    return by_uid or study.accession_number in order.numbers


def _studies_of(connection: sa.Connection, patient: PatientKey) -> Sequence[StudyHeader]:
    table = tables.studies
    query = sa.select(table.c.header).where(table.c.patient_id == lookup(patient.patient_id))
    query = query.order_by(table.c.study_instance_uid).with_for_update()
    headers = [from_json(row, StudyHeader) for row in connection.scalars(query)]
    named = [(header, image_key(connection, header.patient)) for header in headers]
    return [header for header, key in named if is_certain(connection, key, patient)]


def _is_latest_update(connection: sa.Connection, patient: PatientKey, told_at: datetime) -> bool:
    """Remember when a patient was last corrected; False if that was later."""
    table = tables.patient_updates
    here = (table.c.patient_id == patient.patient_id) & (table.c.issuer == patient.issuer)
    known_at = connection.scalar(sa.select(table.c.told_at).where(here))
    if known_at is not None and known_at > told_at:
        return False
    connection.execute(table.delete().where(here))
    connection.execute(
        table.insert().values(patient_id=patient.patient_id, issuer=patient.issuer, told_at=told_at)
    )
    return True


def _tell_anew(connection: sa.Connection, study_instance_uid: str, now: datetime) -> None:
    """Queue the next revision of a study that is whole, by the model of the last one.

    A result of the same voxels by the same model stands: only what tells it is made anew. What a
    person has signed waits for a person. Where nothing ended yet, what ends will be right.
    """
    studies, analyses = tables.studies, tables.analyses
    state = connection.scalar(
        sa.select(studies.c.state).where(studies.c.study_instance_uid == study_instance_uid)
    )
    latest = connection.execute(
        sa.select(analyses)
        .where(analyses.c.study_instance_uid == study_instance_uid)
        .order_by(analyses.c.revision.desc())
        .limit(1)
    ).one_or_none()
    if latest is None:
        return
    if state != StudyState.COMPLETE:
        # Its next completion is told anew, also if it has the same images then.
        here = analyses.c.id == latest.id
        connection.execute(analyses.update().where(here).values(images=None))
        return
    if lacks_expired(connection, study_instance_uid):
        return  # of the rest alone there is no result: it is shown as changed
    if AnalysisState(latest.state) not in {*_TOLD, AnalysisState.RUNNING}:
        return
    queue_analysis(
        connection,
        study_instance_uid,
        next(priority for priority, rank in RANK.items() if rank == latest.priority),
        latest.completeness,
        now,
        None if latest.model is None else from_json(latest.model, ModelIdentity),
    )
