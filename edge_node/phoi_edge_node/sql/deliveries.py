"""The outbox: documents and their deliveries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from phoi_edge_node.errors import IllegalTransition
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    ReportStatus,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database, due, for_update
from phoi_edge_node.store import Delivery, Outgoing
from phoi_edge_node.study import (
    DELIVERY,
    AnalysisState,
    DeliveryEvent,
    DeliveryState,
    after,
    ignores,
)

_UNFINISHED = (DeliveryState.PENDING, DeliveryState.SENDING)
# An archive that cannot take a SEG gets the SR that refers to it all the same, and soon.
_HOLDS_UP_FOR_ERRORS = 3
_BATCH = 100  # others want to write too
_NOT_ARRIVED = (DeliveryState.PENDING, DeliveryState.DEAD)


class Deliveries(Database):
    """The part of the store that delivering uses."""

    def claim_delivery(self, destination: str) -> tuple[Delivery, Document] | None:
        """Start sending a due document of a lane, in order within each study.

        The oldest with which nothing ever went wrong while the destination was there; else the one
        with which least did. So an outage changes no order, and no number of documents that never
        get an answer holds up those that would.
        """
        table = tables.deliveries
        earlier = table.alias("earlier")
        now = self._clock.now()
        waits = sa.exists().where(
            earlier.c.destination == table.c.destination,
            earlier.c.study_instance_uid == table.c.study_instance_uid,
            earlier.c.state.in_(_UNFINISHED),
            earlier.c.id < table.c.id,
            sa.or_(earlier.c.errors < _HOLDS_UP_FOR_ERRORS, _of_one_kind(earlier, table)),
        )
        query = (
            sa.select(table.c.id)
            .where(table.c.destination == destination, table.c.state == DeliveryState.PENDING)
            .where(due(table.c.due_at, now), ~waits)
            .limit(1)
        )
        wrong = table.c.failed_tries - table.c.not_taken + table.c.errors
        fresh = query.where(wrong == 0).order_by(table.c.id)
        tried = query.where(wrong > 0).order_by(wrong, table.c.id)
        with self._write() as connection:
            delivery_id = connection.scalar(for_update(fresh))
            if delivery_id is None:
                delivery_id = connection.scalar(for_update(tried))
            if delivery_id is None:
                return None
            connection.execute(
                table.update()
                .where(table.c.id == delivery_id)
                .values(
                    state=after(DELIVERY, DeliveryState.PENDING, DeliveryEvent.SEND),
                    attempts=table.c.attempts + 1,
                    updated_at=now,
                )
            )
            row = connection.execute(
                _delivery_query(tables.documents.c.content).where(table.c.id == delivery_id)
            ).one()
        return _delivery(row), _document(row)

    def settle_delivery(
        self,
        delivery_id: int,
        outcome: SendOutcome,
        retry_at: datetime,
        maximum_errors: int | None = None,
    ) -> DeliveryState:
        """Record what the destination answered."""
        table = tables.deliveries
        with self._write() as connection:
            errors = connection.execute(
                sa.select(table.c.errors).where(table.c.id == delivery_id)
            ).scalar_one() + isinstance(outcome, Erred)
            event, error = _judged(outcome, errors, maximum_errors)
            state = self._move(
                connection,
                delivery_id,
                event,
                last_error=error,
                errors=errors,
                due_at=retry_at,
                failed_tries=table.c.failed_tries + int(bool(error)),
                not_taken=table.c.not_taken + int(_surely_not_taken(outcome)),
            )
            if state in _NOT_ARRIVED:
                state = drop_if_replaced(connection, delivery_id, state, self._clock.now())
            return state

    def hurry(self, destination: str) -> int:
        """What waits for a destination that is back is due now."""
        table = tables.deliveries
        now = self._clock.now()
        late = (
            table.update()
            .where(table.c.destination == destination, table.c.state == DeliveryState.PENDING)
            .where(table.c.due_at > now, table.c.errors == 0)
            .values(due_at=now)
        )
        with self._write() as connection:
            return connection.execute(late).rowcount

    def resend(self, delivery_id: int, username: str) -> None:
        """Send a delivered or dead document again, with the same identity."""
        with self._write() as connection:
            row = connection.execute(
                _delivery_query().where(tables.deliveries.c.id == delivery_id)
            ).one_or_none()
            if row is None:
                raise KeyError(delivery_id)
            self._resend(connection, row, username)

    def resend_dead(self, destination: str, username: str) -> int:
        """Send the dead letters of a destination again."""
        resent, last = 0, 0
        while batch := self._resend_batch(destination, username, last):
            resent += sum(batch.values())
            last = max(batch)
        return resent

    def _resend_batch(self, destination: str, username: str, last: int) -> Mapping[int, bool]:
        """The next few after that id, in one short transaction: which could be sent again?"""
        table = tables.deliveries
        dead = (
            _delivery_query()
            .where(table.c.destination == destination, table.c.state == DeliveryState.DEAD)
            .where(table.c.id > last)
            .order_by(table.c.id)
            .limit(_BATCH)
        )
        done: dict[int, bool] = {}
        with self._write() as connection:
            rows = connection.execute(dead).all()
            _hold_results(connection, {row.document_id for row in rows})
            for row in rows:
                done[row.id] = False
                with suppress(IllegalTransition):
                    self._resend(connection, row, username)
                    done[row.id] = True
        return done

    def _resend(self, connection: sa.Connection, row: sa.Row[Any], username: str) -> None:
        _require_latest(connection, row)
        now = self._clock.now()
        self._move(connection, row.id, DeliveryEvent.RESEND, due_at=now, queued_at=now, errors=0)
        self._audit(connection, username, "resend", row.study_instance_uid, row.destination)

    def deliveries(
        self,
        study_instance_uid: str | None = None,
        states: Collection[DeliveryState] = tuple(DeliveryState),
    ) -> Sequence[Delivery]:
        """Of one study, or of all, in these states, oldest first."""
        table = tables.deliveries
        query = _delivery_query().where(table.c.state.in_(list(states))).order_by(table.c.id)
        if study_instance_uid is not None:
            query = query.where(table.c.study_instance_uid == study_instance_uid)
        with self._read() as connection:
            return [_delivery(row) for row in connection.execute(query)]

    def dead_letters(self, destination: str, limit: int) -> Sequence[Delivery]:
        """What a destination refused, or was given up: the latest of it, latest first."""
        table = tables.deliveries
        query = (
            _delivery_query()
            .where(table.c.destination == destination, table.c.state == DeliveryState.DEAD)
            .order_by(table.c.updated_at.desc(), table.c.id.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return [_delivery(row) for row in connection.execute(query)]

    def delivery_problems(
        self, study_uids: Collection[str], late_after_tries: int
    ) -> Mapping[str, int]:
        """How many deliveries of each of these studies are dead, or late; none: left out."""
        table = tables.deliveries
        late = sa.and_(table.c.state == DeliveryState.PENDING, table.c.attempts >= late_after_tries)
        query = (
            sa.select(table.c.study_instance_uid, sa.func.count())
            .where(table.c.study_instance_uid.in_(list(study_uids)))
            .where(sa.or_(table.c.state == DeliveryState.DEAD, late))
            .group_by(table.c.study_instance_uid)
        )
        with self._read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def document(self, delivery_id: int) -> Document:
        """The bytes of a delivery."""
        query = _delivery_query(tables.documents.c.content).where(
            tables.deliveries.c.id == delivery_id
        )
        with self._read() as connection:
            return _document(connection.execute(query).one())

    def enqueue_usage(self, documents: Sequence[Document], destination: str) -> None:
        """Queue cumulative usage reports; they supersede those not yet sent."""
        table = tables.deliveries
        now = self._clock.now()
        pending = sa.select(table.c.id).where(
            table.c.destination == destination,
            table.c.study_instance_uid.is_(None),
            table.c.state == DeliveryState.PENDING,
        )
        with self._write() as connection:
            for delivery_id in connection.scalars(pending).all():
                self._move(connection, delivery_id, DeliveryEvent.SUPERSEDE)
            enqueue(
                connection,
                None,
                None,
                0,
                ReportStatus.FINAL,
                [Outgoing(document, (destination,)) for document in documents],
                now,
            )

    def _move(
        self, connection: sa.Connection, delivery_id: int, event: DeliveryEvent, **values: object
    ) -> DeliveryState:
        return move_delivery(connection, delivery_id, event, self._clock.now(), **values)


def _of_one_kind(one: sa.FromClause, other: sa.FromClause) -> sa.ColumnElement[bool]:
    """Do two deliveries carry the same kind of document? Then the later one replaces the other."""
    mine, its = tables.documents.alias("mine"), tables.documents.alias("its")
    same = sa.select(mine.c.id).where(
        mine.c.id == one.c.document_id, its.c.id == other.c.document_id, mine.c.kind == its.c.kind
    )
    return same.correlate(one, other).exists()


def _judged(
    outcome: SendOutcome, errors: int, maximum_errors: int | None
) -> tuple[DeliveryEvent, str]:
    """What follows from an answer, and what an operator reads of it."""
    match outcome:
        case Delivered():
            return DeliveryEvent.CONFIRM, ""
        case Refused(reason):
            return DeliveryEvent.REFUSE, reason
        case Erred(reason) if maximum_errors is not None and errors >= maximum_errors:
            return DeliveryEvent.GIVE_UP, f"{reason}, {errors} times"
        case Erred(reason) | Unreachable(reason):
            return DeliveryEvent.RETRY, reason


def _surely_not_taken(outcome: SendOutcome) -> bool:
    match outcome:
        case Delivered():
            return False
        case Refused():
            return True
        case Erred() | Unreachable():
            return outcome.nothing_taken


def move_delivery(
    connection: sa.Connection,
    delivery_id: int,
    event: DeliveryEvent,
    now: datetime,
    **values: object,
) -> DeliveryState:
    """Take a delivery along its table of states; the state it is in then."""
    table = tables.deliveries
    here = table.c.id == delivery_id
    present: str = connection.execute(
        sa.select(table.c.state).where(here).with_for_update()
    ).scalar_one()
    state = DeliveryState(present)
    if ignores(DELIVERY, state, event):
        return state
    state = after(DELIVERY, state, event)
    connection.execute(table.update().where(here).values(state=state, updated_at=now, **values))
    return state


def enqueue(
    connection: sa.Connection,
    analysis_id: str | None,
    study_instance_uid: str | None,
    revision: int,
    status: ReportStatus,
    outgoing: Sequence[Outgoing],
    now: datetime,
) -> None:
    """Freeze documents and queue their deliveries, in order."""
    for item in outgoing:
        document_id = connection.scalar(
            tables.documents.insert()
            .values(
                analysis_id=analysis_id,
                study_instance_uid=study_instance_uid,
                revision=revision,
                kind=item.document.kind,
                identity=item.document.identity,
                status=status,
                outdated=False,
                content=item.document.content,
                created_at=now,
            )
            .returning(tables.documents.c.id)
        )
        for destination in item.destinations:
            connection.execute(
                tables.deliveries.insert().values(
                    document_id=document_id,
                    study_instance_uid=study_instance_uid,
                    destination=destination,
                    state=DeliveryState.PENDING,
                    attempts=0,
                    failed_tries=0,
                    errors=0,
                    not_taken=0,
                    due_at=now,
                    last_error="",
                    created_at=now,
                    queued_at=now,
                    updated_at=now,
                )
            )


def supersede_deliveries(connection: sa.Connection, analysis_id: str, now: datetime) -> None:
    """What has not arrived of a superseded analysis need not arrive any more."""
    query = (
        sa.select(tables.deliveries.c.id)
        .join(tables.documents)
        .where(tables.documents.c.analysis_id == analysis_id)
    )
    for delivery_id in connection.scalars(query).all():
        move_delivery(connection, delivery_id, DeliveryEvent.SUPERSEDE, now)


def outdate_documents(connection: sa.Connection, study_instance_uid: str, now: datetime) -> None:
    """The patient's data changed: no document that says what they were goes out, signed or not.

    But for the notice that a result is withdrawn: it takes back what was told of that patient.
    """
    deliveries, documents = tables.deliveries, tables.documents
    connection.execute(
        documents.update()
        .where(documents.c.study_instance_uid == study_instance_uid)
        .where(documents.c.status != ReportStatus.WITHDRAWN)
        .values(outdated=True)
    )
    waiting = (
        sa.select(deliveries.c.id)
        .join(documents)
        .where(
            deliveries.c.study_instance_uid == study_instance_uid,
            deliveries.c.state.in_(_NOT_ARRIVED),
            documents.c.outdated,
        )
    )
    for delivery_id in connection.scalars(waiting).all():
        move_delivery(connection, delivery_id, DeliveryEvent.SUPERSEDE, now)


def drop_if_replaced(
    connection: sa.Connection, delivery_id: int, state: DeliveryState, now: datetime
) -> DeliveryState:
    """It was being sent when its document was replaced, which therefore left it alone."""
    if _is_replaced(connection, delivery_id):
        return move_delivery(connection, delivery_id, DeliveryEvent.SUPERSEDE, now)
    return state


def drop_dead_letters(
    connection: sa.Connection, study_instance_uid: str, now: datetime, *, keep: str | None = None
) -> None:
    """Refused documents of a study are pointless once a person has closed what replaces them.

    But a notice that a result is withdrawn: where it was refused, that result stands till something
    later goes there.

    Args:
        keep: the analysis whose documents nothing replaces: they may still be sent again.
    """
    table, documents = tables.deliveries, tables.documents
    query = (
        sa.select(table.c.id)
        .join(documents)
        .where(
            table.c.study_instance_uid == study_instance_uid, table.c.state == DeliveryState.DEAD
        )
    )
    if keep is not None:
        query = query.where(documents.c.analysis_id != keep)
    later = table.alias("later")
    follows = sa.exists().where(
        later.c.study_instance_uid == study_instance_uid,
        later.c.destination == table.c.destination,
        later.c.id > table.c.id,
        later.c.state.in_((*_UNFINISHED, DeliveryState.DELIVERED)),
    )
    query = query.where(sa.or_(documents.c.status != ReportStatus.WITHDRAWN, follows))
    for delivery_id in connection.scalars(query).all():
        move_delivery(connection, delivery_id, DeliveryEvent.SUPERSEDE, now)


def _is_replaced(connection: sa.Connection, delivery_id: int) -> bool:
    """Has a later revision taken the place of what it tells, or is the patient's data not right?"""
    analyses, documents, deliveries = tables.analyses, tables.documents, tables.deliveries
    query = (
        sa.select(analyses.c.state, documents.c.outdated, documents.c.status)
        .select_from(deliveries.join(documents).join(analyses))
        .where(deliveries.c.id == delivery_id)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return False
    superseded = row.state == AnalysisState.SUPERSEDED
    return bool(row.outdated) or superseded or _is_withdrawn(row.state, row.status)


def _is_withdrawn(analysis: str, document: str) -> bool:
    """Its result was recalled, and it is not the notice that says so."""
    return analysis == AnalysisState.WITHDRAWN and document != ReportStatus.WITHDRAWN


def _require_latest(connection: sa.Connection, row: sa.Row[Any]) -> None:
    """Nothing goes out again that is not right any more, or would overwrite a later document."""
    if row.outdated:
        raise IllegalTransition("the patient's data changed after it was written")
    if _of_withdrawn(connection, row):
        raise IllegalTransition("its result was recalled")
    table = tables.deliveries
    later = (
        _delivery_query()
        .where(table.c.study_instance_uid == row.study_instance_uid)
        .where(table.c.destination == row.destination, table.c.id > row.id)
        .where(tables.documents.c.kind == row.kind, table.c.state != DeliveryState.SUPERSEDED)
        # A notice about an earlier result came after it; it may follow that once that arrived.
        .where(
            sa.or_(
                tables.documents.c.revision >= row.revision,
                table.c.state.in_(_UNFINISHED),
            )
        )
    )
    if connection.execute(later.limit(1)).first() is not None:
        raise IllegalTransition("a later document of this kind exists")


def _hold_results(connection: sa.Connection, document_ids: Collection[int]) -> None:
    """No recall withdraws the results that these tell until the transaction ends.

    In the order in which a recall takes them, so that the two never wait for each other.
    """
    analyses, documents = tables.analyses, tables.documents
    told = sa.select(documents.c.analysis_id).where(documents.c.id.in_(document_ids))
    query = sa.select(analyses.c.id).where(analyses.c.id.in_(told)).order_by(analyses.c.id)
    connection.execute(query.with_for_update(read=True))


def _of_withdrawn(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    analyses, documents = tables.analyses, tables.documents
    query = (
        sa.select(analyses.c.state, documents.c.status)
        .join_from(documents, analyses)
        .where(documents.c.id == row.document_id)
        .with_for_update(read=True, of=analyses)  # a recall of this moment counts
    )
    of_analysis = connection.execute(query).one_or_none()  # none: usage figures
    return of_analysis is not None and _is_withdrawn(of_analysis.state, of_analysis.status)


def _delivery_query(*extra: sa.Column[Any]) -> sa.Select[Any]:
    documents = tables.documents
    return sa.select(
        tables.deliveries,
        documents.c.kind,
        documents.c.identity,
        documents.c.status,
        documents.c.revision,
        documents.c.outdated,
        *extra,
    ).join(documents)


def _delivery(row: sa.Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        kind=DocumentKind(row.kind),
        identity=row.identity,
        status=ReportStatus(row.status),
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        due_at=row.due_at,
        last_error=row.last_error,
        created_at=row.created_at,
        updated_at=row.updated_at,
        errors=row.errors,
        not_taken=row.not_taken,
    )


def _document(row: sa.Row[Any]) -> Document:
    return Document(DocumentKind(row.kind), row.identity, row.content)
