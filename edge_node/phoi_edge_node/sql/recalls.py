"""Recalls: which results, what became of each, and the notices that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.ports import ReportStatus
from phoi_edge_node.recalled import (
    Again,
    Notice,
    Recall,
    RecallAction,
    RecallCriteria,
    RecalledResult,
    RecallItem,
    RecallRequest,
    Switch,
    action_for,
)
from phoi_edge_node.result import Completeness, Outcome, Patient
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.analyses import PAUSES, patient_of, priority_of, queue_analysis
from phoi_edge_node.sql.deliveries import enqueue
from phoi_edge_node.sql.engine import Database, due, hold, insert_or_replace
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import (
    ANALYSIS,
    DELIVERY,
    REVIEW,
    AnalysisEvent,
    AnalysisState,
    DeliveryEvent,
    DeliveryState,
    ReviewEvent,
    ReviewState,
    StudyState,
    after,
    ignores,
)

_RECALLS, _ITEMS = tables.recalls, tables.recall_items
_ANALYSES, _REVIEWS, _FIGURES = tables.analyses, tables.reviews, tables.figures
_STUDIES, _INSTANCES = tables.studies, tables.instances
_DOCUMENTS, _DELIVERIES = tables.documents, tables.deliveries

_WITHDRAWABLE = (
    AnalysisState.SUCCEEDED,
    AnalysisState.NOT_ANALYSABLE,
    AnalysisState.FAILED,
    AnalysisState.SUPERSEDED,
)
# Of PostgreSQL: the transaction was ended so that another could go on; it holds many rows.
_TRY_AGAIN = frozenset({"40P01", "40001"})
_TRIES = 5
_GOES_OUT = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.DELIVERED)


@dataclass(frozen=True)
class _Found:
    """A result that fits, and what becomes of it."""

    row: sa.Row[Any]
    action: RecallAction


class Recalls(Database):
    """The part of the store that recalling uses."""

    def recallable(
        self, criteria: RecallCriteria, *, signed_too: bool = False, redo: bool = False
    ) -> Sequence[RecalledResult]:
        """The results that fit, oldest first, and what a recall would do to each."""
        with self._read() as connection:
            found = _find(connection, criteria, signed_too=signed_too, redo=redo)
            sent = _sent(connection, criteria)
        return [_result(one, sent.get(one.row.id, {})) for one in found]

    def unknown_senders(self) -> int:
        """How many studies cannot be found by who sent them: their images were removed."""
        query = sa.select(sa.func.count()).where(_STUDIES.c.state == StudyState.EXPIRED)
        with self._read() as connection:
            return connection.execute(query).scalar_one()

    def ask_recall(self, request: RecallRequest) -> int:
        """Withdraw the results that fit, in one transaction; the number of the recall."""
        for _ in range(_TRIES - 1):
            try:
                return self._ask_recall(request)
            except sa.exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", "") not in _TRY_AGAIN:
                    raise
        return self._ask_recall(request)

    def _ask_recall(self, request: RecallRequest) -> int:
        now = self._clock.now()
        with self._write() as connection:
            hold(connection, [PAUSES])
            number = _insert_recall(connection, request, now)
            self._audit_recall(connection, request, number)
            if request.pause and request.criteria.pauses:
                self._pause(connection, request.criteria.pauses, request.asked_by, now)
            _lock(connection, request.criteria)
            redo, signed_too = bool(request.replacement), request.signed_too
            found = _find(connection, request.criteria, signed_too=signed_too, redo=redo)
            meant = [one for one in found if one.action is not RecallAction.NOTHING]
            _insert_items(connection, number, meant, request, now)
            _withdraw(connection, number, now, signed_too=request.signed_too)
            _restart(connection, meant, now)
        return number

    def _audit_recall(self, connection: sa.Connection, request: RecallRequest, number: int) -> None:
        also = f", signed too: {request.signed_too}, by {request.replacement or 'nothing'} instead"
        detail = f"{number}: {request.criteria}{also}: {request.reason}"
        self._audit(connection, request.asked_by, "recall", None, detail)

    def _pause(self, connection: sa.Connection, target: str, username: str, now: datetime) -> None:
        values = {"target": target, "username": username, "at": now}
        insert_or_replace(connection, tables.pauses, values)
        self._audit(connection, username, "pause", None, target)

    def recalls(self, limit: int = 30) -> Sequence[Recall]:
        """Newest first."""
        query = sa.select(_RECALLS).order_by(_RECALLS.c.id.desc()).limit(limit)
        with self._read() as connection:
            return [_recall(connection, row) for row in connection.execute(query).all()]

    def withdrawals(self, number: int) -> Mapping[str, Mapping[DeliveryState, int]]:
        """How many documents of a recall's notices are in which state, by destination."""
        of_recall = sa.select(_ITEMS.c.analysis_id).where(_ITEMS.c.recall_id == number)
        query = (
            sa.select(_DELIVERIES.c.destination, _DELIVERIES.c.state, sa.func.count())
            .join(_DOCUMENTS)
            .where(_DOCUMENTS.c.status == ReportStatus.WITHDRAWN)
            .where(_DOCUMENTS.c.analysis_id.in_(of_recall))
            .group_by(_DELIVERIES.c.destination, _DELIVERIES.c.state)
        )
        found: dict[str, dict[DeliveryState, int]] = {}
        with self._read() as connection:
            for destination, state, count in connection.execute(query):
                found.setdefault(destination, {})[DeliveryState(state)] = count
        return found

    def recalls_waiting(self) -> tuple[int, int, int]:
        """Notices to be written, studies to be analysed again, and models of new studies to set."""
        count = sa.select(sa.func.count()).select_from(_ITEMS)
        notices = count.where(_ITEMS.c.notice == Notice.WAITING)
        again = count.where(_ITEMS.c.again == Again.WAITING)
        switch = sa.select(sa.func.count()).where(_RECALLS.c.switch == Switch.WAITING)
        with self._read() as connection:
            return (
                connection.execute(notices).scalar_one(),
                connection.execute(again).scalar_one(),
                connection.execute(switch).scalar_one(),
            )

    def next_switch(self) -> Recall | None:
        """The oldest recall that is to change the model of new studies, and is due."""
        query = (
            sa.select(_RECALLS)
            .where(_RECALLS.c.switch == Switch.WAITING)
            .where(due(_RECALLS.c.due_at, self._clock.now()))
            .order_by(_RECALLS.c.id)
            .limit(1)
        )
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else _recall(connection, row)

    def switched(self, number: int) -> None:
        """New studies do not get the model any more that a recall stopped."""
        self._update_recall(number, switch=Switch.DONE, trouble="")

    def put_off_switch(self, number: int, trouble: str, due_at: datetime) -> None:
        """Something stands in the way of that: try again later."""
        self._update_recall(number, trouble=trouble, due_at=due_at)

    def _update_recall(self, number: int, **values: object) -> None:
        with self._write() as connection:
            connection.execute(_RECALLS.update().where(_RECALLS.c.id == number).values(values))

    def next_notice(self) -> RecallItem | None:
        """The oldest withdrawn result whose notice is to be written, and is due."""
        return self._next(_ITEMS.c.notice == Notice.WAITING)

    def next_again(self) -> RecallItem | None:
        """The oldest result whose study is to be analysed again, and is due."""
        return self._next(_ITEMS.c.again == Again.WAITING)

    def _next(self, waits: sa.ColumnElement[bool]) -> RecallItem | None:
        recall = (_RECALLS.c.criteria, _RECALLS.c.replacement, _RECALLS.c.asked_at)
        query = (
            sa.select(_ITEMS, *recall)
            .join(_RECALLS)
            .where(waits, due(_ITEMS.c.due_at, self._clock.now()))
            .order_by(_ITEMS.c.due_at, _ITEMS.c.id)
            .limit(1)
        )
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _item(row)

    def put_off(self, item_id: int, trouble: str, due_at: datetime) -> None:
        """Something stands in the way: try again later."""
        with self._write() as connection:
            _update_item(connection, item_id, trouble=trouble, due_at=due_at)

    def tell_withdrawal(
        self,
        item: RecallItem,
        outgoing: Sequence[Outgoing],
        patient: Patient,
        *,
        whole: bool = True,
    ) -> Collection[str] | None:
        """Queue the notice that a result is withdrawn, for whoever was told of it."""
        now = self._clock.now()
        uid = item.study_instance_uid
        lock = sa.select(_STUDIES.c.state).where(_STUDIES.c.study_instance_uid == uid)
        with self._write() as connection:
            # Whoever ends a later revision holds the study too: its documents come after these.
            connection.execute(lock.with_for_update())
            if patient_of(connection, uid) != patient:
                return None
            if _locked_item(connection, item.id).notice != Notice.WAITING:
                return ()
            told = told_destinations(connection, item)
            to_tell = {name for name, stands in told.items() if stands}
            before = _noticed(connection, item)
            notices = [n for one in outgoing if (n := _only_to(one, to_tell, before)).destinations]
            status, revision = ReportStatus.WITHDRAWN, item.revision
            enqueue(connection, item.analysis_id, uid, revision, status, notices, now)
            reached = {d for one in outgoing for d in one.destinations}
            reached |= {destination for _, destination in before}
            waiting = to_tell - reached if whole else to_tell
            if waiting:
                return waiting
            this = sa.select(_ANALYSES.c.id).where(_ANALYSES.c.id == item.analysis_id)
            _supersede(connection, this, DeliveryState.DEAD, now)
            notice = Notice.OVERTAKEN if told else Notice.NOBODY_TOLD
            notice = Notice.QUEUED if notices or before else notice
            _update_item(connection, item.id, notice=notice, trouble="")
        return ()

    def analyse_again(self, item_id: int, model: ModelIdentity) -> Again:
        """Queue the next revision of a study, pinned to a model, if it still is what is needed."""
        study = sa.select(_STUDIES.c.state).join_from(
            _STUDIES, _ITEMS, _ITEMS.c.study_instance_uid == _STUDIES.c.study_instance_uid
        )
        lock = study.where(_ITEMS.c.id == item_id).with_for_update(of=_STUDIES)
        with self._write() as connection:
            state = StudyState(connection.execute(lock).scalar_one())
            row = _locked_item(connection, item_id)
            if row.again != Again.WAITING:
                return Again(row.again)
            again = self._queue_again(connection, row, state, model)
            if again is not Again.WAITING:
                _update_item(connection, item_id, again=again, trouble="")
        return again

    def _queue_again(
        self,
        connection: sa.Connection,
        item: sa.Row[Any],
        state: StudyState,
        model: ModelIdentity,
    ) -> Again:
        uid = item.study_instance_uid
        of_study = sa.select(_ANALYSES).where(_ANALYSES.c.study_instance_uid == uid)
        latest = connection.execute(of_study.order_by(_ANALYSES.c.revision.desc()).limit(1)).one()
        if latest.revision > item.revision and latest.state != AnalysisState.WITHDRAWN:
            return Again.OVERTAKEN
        if state is StudyState.EXPIRED:
            return Again.NO_IMAGES
        if state is not StudyState.COMPLETE:
            return Again.WAITING  # images come just now
        completeness = None if latest.completeness is None else Completeness(latest.completeness)
        now, priority = self._clock.now(), priority_of(latest.priority)
        queue_analysis(connection, uid, priority, completeness, now, model)
        return Again.QUEUED

    def confirm_recalled(self, study_instance_uid: str, username: str) -> bool:
        """A person says that the signed report stands, recall or not; False if none asks."""
        asked = sa.and_(
            _ITEMS.c.study_instance_uid == study_instance_uid,
            _ITEMS.c.action == RecallAction.LEAVE_SIGNED,
            _ITEMS.c.confirmed_at.is_(None),
        )
        confirmed = {"confirmed_by": username, "confirmed_at": self._clock.now()}
        with self._write() as connection:
            if not connection.execute(_ITEMS.update().where(asked).values(confirmed)).rowcount:
                return False
            self._audit(connection, username, "confirm_recalled", study_instance_uid)
        return True


# --- which ---------------------------------------------------------------------------------------


def _fitting(criteria: RecallCriteria) -> Iterable[sa.ColumnElement[bool]]:
    """Of analyses alone, so that their rows can be locked."""
    if criteria.model_name:
        yield _ANALYSES.c.model_name == criteria.model_name
    if criteria.model_version:
        yield _ANALYSES.c.model_version == criteria.model_version
    if criteria.since:
        yield sa.or_(_ANALYSES.c.finished_at.is_(None), _ANALYSES.c.finished_at >= criteria.since)
    if criteria.until:
        yield _ANALYSES.c.finished_at < criteria.until
    if criteria.outcome:
        of_it = _FIGURES.c.analysis_id == _ANALYSES.c.id
        outcome = sa.exists().where(of_it, _FIGURES.c.outcome == criteria.outcome)
        yield outcome.correlate(_ANALYSES)
    if criteria.calling_ae_title:
        yield sa.exists().where(
            _INSTANCES.c.study_instance_uid == _ANALYSES.c.study_instance_uid,
            _INSTANCES.c.calling_ae_title == criteria.calling_ae_title,
        )
    # What waits and has no model yet is nobody's result.
    yield _ANALYSES.c.model_name.is_not(None) | _ANALYSES.c.finished_at.is_not(None)


def _lock(connection: sa.Connection, criteria: RecallCriteria) -> None:
    """Whoever ends or signs one of them just now is waited for, and then looked at.

    First their studies: whoever completes, ends or signs one of them holds it too.
    """
    meant = sa.select(_ANALYSES.c.study_instance_uid).where(*_fitting(criteria))
    uid = _STUDIES.c.study_instance_uid
    studies = sa.select(uid).where(uid.in_(meant)).order_by(uid)
    connection.execute(studies.with_for_update())
    chosen = sa.select(_ANALYSES.c.id).where(*_fitting(criteria)).order_by(_ANALYSES.c.id)
    connection.execute(chosen.with_for_update(key_share=True))
    of_them = _REVIEWS.c.analysis_id.in_(sa.select(_ANALYSES.c.id).where(*_fitting(criteria)))
    reviews = sa.select(_REVIEWS.c.analysis_id).where(of_them).order_by(_REVIEWS.c.analysis_id)
    connection.execute(reviews.with_for_update())


def _find(
    connection: sa.Connection, criteria: RecallCriteria, *, signed_too: bool, redo: bool
) -> list[_Found]:
    later, reviews = _ANALYSES.alias("later"), _REVIEWS
    replaced = sa.exists().where(
        later.c.study_instance_uid == _ANALYSES.c.study_instance_uid,
        later.c.revision > _ANALYSES.c.revision,
        later.c.finished_at.is_not(None),
    )
    stands = sa.exists().where(
        _DOCUMENTS.c.analysis_id == _ANALYSES.c.id,
        _DELIVERIES.c.document_id == _DOCUMENTS.c.id,
        _may_have_arrived(),
        ~_followed(_ANALYSES.c.id),
    )
    columns = (
        "id", "study_instance_uid", "revision", "state", "model_name", "model_version",
        "finished_at",
    )  # fmt: skip
    query: sa.Select[Any] = (
        sa.select(
            *(_ANALYSES.c[name] for name in columns),
            reviews.c.state.label("review"),
            _FIGURES.c.outcome,
            _STUDIES.c.state.label("study"),
            replaced.label("replaced"),
            stands.label("stands"),
        )
        .join(_STUDIES, _STUDIES.c.study_instance_uid == _ANALYSES.c.study_instance_uid)
        .outerjoin(reviews, reviews.c.analysis_id == _ANALYSES.c.id)
        .outerjoin(_FIGURES, _FIGURES.c.analysis_id == _ANALYSES.c.id)
        .where(*_fitting(criteria))
        .order_by(_ANALYSES.c.finished_at, _ANALYSES.c.created_at)
    )
    return [
        _Found(
            row,
            action_for(
                AnalysisState(row.state),
                None if row.review is None else ReviewState(row.review),
                replaced=row.replaced,
                stands=row.stands,
                signed_too=signed_too,
                redo=redo,
            ),
        )
        for row in connection.execute(query)
    ]


def _sent(
    connection: sa.Connection, criteria: RecallCriteria
) -> Mapping[str, Mapping[str, Mapping[DeliveryState, int]]]:
    """How many documents of each result are in which state, by analysis and destination."""
    chosen = sa.select(_ANALYSES.c.id).where(*_fitting(criteria))
    query = (
        sa.select(
            _DOCUMENTS.c.analysis_id,
            _DELIVERIES.c.destination,
            _DELIVERIES.c.state,
            sa.func.count(),
        )
        .join(_DELIVERIES, _DELIVERIES.c.document_id == _DOCUMENTS.c.id)
        .where(_DOCUMENTS.c.analysis_id.in_(chosen))
        .group_by(_DOCUMENTS.c.analysis_id, _DELIVERIES.c.destination, _DELIVERIES.c.state)
    )
    found: dict[str, dict[str, dict[DeliveryState, int]]] = {}
    for analysis_id, destination, state, count in connection.execute(query):
        by_destination = found.setdefault(analysis_id, {})
        by_destination.setdefault(destination, {})[DeliveryState(state)] = count
    return found


def _result(found: _Found, sent: Mapping[str, Mapping[DeliveryState, int]]) -> RecalledResult:
    row = found.row
    return RecalledResult(
        analysis_id=row.id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        model=f"{row.model_name}@{row.model_version}" if row.model_name else "",
        finished_at=row.finished_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        analysis=AnalysisState(row.state),
        review=None if row.review is None else ReviewState(row.review),
        action=found.action,
        images_here=row.study != StudyState.EXPIRED,
        deliveries=sent,
    )


# --- withdrawing ---------------------------------------------------------------------------------


def _insert_recall(connection: sa.Connection, request: RecallRequest, now: datetime) -> int:
    values = {
        "criteria": to_json(request.criteria),
        "reason": request.reason,
        "asked_by": request.asked_by,
        "asked_at": now,
        "signed_too": request.signed_too,
        "replacement": request.replacement,
        "switch": Switch.WAITING if request.switches else Switch.NONE,
        "due_at": now,
        "trouble": "",
    }
    number: int = connection.execute(
        _RECALLS.insert().values(values).returning(_RECALLS.c.id)
    ).scalar_one()
    return number


def _insert_items(
    connection: sa.Connection,
    number: int,
    meant: Sequence[_Found],
    request: RecallRequest,
    now: datetime,
) -> None:
    again = Again.WAITING if request.replacement else Again.NONE
    rows = [
        {
            "recall_id": number,
            "analysis_id": one.row.id,
            "study_instance_uid": one.row.study_instance_uid,
            "revision": one.row.revision,
            "action": one.action,
            "notice": Notice.WAITING if one.action is RecallAction.WITHDRAW else Notice.NONE,
            # What was under way is queued anew at once, by whichever model is current.
            "again": Again.NONE if one.action is RecallAction.RESTART else again,
            "due_at": now,
            "trouble": "",
        }
        for one in meant
    ]
    if rows:
        connection.execute(_ITEMS.insert(), rows)


def _withdraw(connection: sa.Connection, number: int, now: datetime, *, signed_too: bool) -> None:
    """The results of a recall, their reviews, and what of them has not gone out; however many."""
    ids = sa.select(_ITEMS.c.analysis_id).where(
        _ITEMS.c.recall_id == number, _ITEMS.c.action == RecallAction.WITHDRAW
    )
    for analysis in _WITHDRAWABLE:
        state = after(ANALYSIS, analysis, AnalysisEvent.WITHDRAW)
        here = (_ANALYSES.c.id.in_(ids), _ANALYSES.c.state == analysis)
        values = {"state": state, "state_since": now}
        connection.execute(_ANALYSES.update().where(*here).values(values))
    event = ReviewEvent.REVOKE if signed_too else ReviewEvent.WITHDRAW
    for review in ReviewState:
        if not ignores(REVIEW, review, event):
            values = {"state": after(REVIEW, review, event), "state_since": now}
            here = (_REVIEWS.c.analysis_id.in_(ids), _REVIEWS.c.state == review)
            connection.execute(_REVIEWS.update().where(*here).values(values))
    # Dead letters stay until the notice is written: they tell who never took anything.
    _supersede(connection, ids, DeliveryState.PENDING, now)


def _supersede(
    connection: sa.Connection,
    analysis_ids: sa.Select[tuple[str]],
    state: DeliveryState,
    now: datetime,
) -> None:
    """Nothing of these analyses that is in this state goes out any more."""
    documents = sa.select(_DOCUMENTS.c.id).where(
        _DOCUMENTS.c.analysis_id.in_(analysis_ids),
        _DOCUMENTS.c.status != ReportStatus.WITHDRAWN,
    )
    here = (_DELIVERIES.c.document_id.in_(documents), _DELIVERIES.c.state == state)
    superseded = after(DELIVERY, state, DeliveryEvent.SUPERSEDE)
    values = {"state": superseded, "updated_at": now}
    connection.execute(_DELIVERIES.update().where(*here).values(values))


def _restart(connection: sa.Connection, meant: Sequence[_Found], now: datetime) -> None:
    """What was under way has told nothing: the next revision takes its place, without a model."""
    for one in meant:
        if one.action is RecallAction.RESTART:
            here = sa.select(_ANALYSES).where(_ANALYSES.c.id == one.row.id)
            row = connection.execute(here).one()
            completeness = None if row.completeness is None else Completeness(row.completeness)
            priority = priority_of(row.priority)
            queue_analysis(connection, row.study_instance_uid, priority, completeness, now)


def told_destinations(connection: sa.Connection, item: RecallItem) -> Mapping[str, bool]:
    """Who got, or may have got, something of a study that the withdrawn result stood for.

    Whom no try reached, and who refused each, has nothing. Where a person's signature stands for an
    earlier revision, only what was sent of this one is taken back.

    Returns:
        By destination: does something of it stand there still, so that it must be told?
    """
    signed = sa.exists().where(
        _ANALYSES.c.study_instance_uid == item.study_instance_uid,
        _REVIEWS.c.analysis_id == _ANALYSES.c.id,
        _REVIEWS.c.state == ReviewState.SIGNED,
    )
    of_this = _DOCUMENTS.c.analysis_id == item.analysis_id
    up_to_this = _DOCUMENTS.c.revision <= item.revision
    query = (
        sa.select(_DELIVERIES.c.destination, (~_followed(item.analysis_id)).label("stands"))
        .distinct()
        .join(_DOCUMENTS)
        .where(_DELIVERIES.c.study_instance_uid == item.study_instance_uid, _may_have_arrived())
        .where(sa.or_(of_this, sa.and_(up_to_this, ~signed)))
        .where(_DOCUMENTS.c.status != ReportStatus.WITHDRAWN)
    )
    told: dict[str, bool] = {}
    for row in connection.execute(query):
        told[row.destination] = told.get(row.destination, False) or bool(row.stands)
    return told


def _may_have_arrived() -> sa.ColumnElement[bool]:
    """Of a delivery, as ``store.Delivery.may_have_arrived``."""
    return _DELIVERIES.c.attempts > _DELIVERIES.c.not_taken


def _followed(analysis_id: sa.ColumnElement[str] | str) -> sa.ColumnElement[bool]:
    """Of a delivery: its destination got something after it, or will, that takes its place there.

    A document of a later revision; or a notice, which takes back all that was told before. One that
    was refused, or was itself replaced before it arrived, takes no place.

    Args:
        analysis_id: whose own notice does not count: it may be queued in part.
    """
    later, its = _DELIVERIES.alias("later"), _DOCUMENTS.alias("later_document")
    notice = its.c.status == ReportStatus.WITHDRAWN
    takes_back = sa.and_(notice, its.c.revision == _DOCUMENTS.c.revision)
    return (
        sa.exists()
        .where(
            later.c.study_instance_uid == _DELIVERIES.c.study_instance_uid,
            later.c.destination == _DELIVERIES.c.destination,
            later.c.id > _DELIVERIES.c.id,
            later.c.state.in_(_GOES_OUT),
            its.c.id == later.c.document_id,
            sa.or_(its.c.revision > _DOCUMENTS.c.revision, takes_back),
            ~sa.and_(notice, its.c.analysis_id == analysis_id),
        )
        .correlate(_DELIVERIES, _DOCUMENTS, _ANALYSES)
    )


def _noticed(connection: sa.Connection, item: RecallItem) -> Collection[tuple[str, str]]:
    """The kinds of notice that are queued already, with where: an encoder had failed on others."""
    query = (
        sa.select(_DOCUMENTS.c.kind, _DELIVERIES.c.destination)
        .join(_DELIVERIES, _DELIVERIES.c.document_id == _DOCUMENTS.c.id)
        .where(_DOCUMENTS.c.analysis_id == item.analysis_id)
        .where(_DOCUMENTS.c.status == ReportStatus.WITHDRAWN)
    )
    return {(row.kind, row.destination) for row in connection.execute(query)}


def _only_to(
    outgoing: Outgoing, to_tell: Collection[str], before: Collection[tuple[str, str]]
) -> Outgoing:
    kind = outgoing.document.kind
    names = (d for d in outgoing.destinations if d in to_tell and (kind, d) not in before)
    return Outgoing(outgoing.document, tuple(names))


# --- rows ----------------------------------------------------------------------------------------


def _locked_item(connection: sa.Connection, item_id: int) -> sa.Row[Any]:
    return connection.execute(
        sa.select(_ITEMS).where(_ITEMS.c.id == item_id).with_for_update()
    ).one()


def _update_item(connection: sa.Connection, item_id: int, **values: object) -> None:
    connection.execute(_ITEMS.update().where(_ITEMS.c.id == item_id).values(values))


def _item(row: sa.Row[Any]) -> RecallItem:
    return RecallItem(
        id=row.id,
        recall_id=row.recall_id,
        analysis_id=row.analysis_id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        criteria=from_json(row.criteria, RecallCriteria),
        replacement=row.replacement,
        at=row.asked_at,
    )


def _recall(connection: sa.Connection, row: sa.Row[Any]) -> Recall:
    columns = (_ITEMS.c.action, _ITEMS.c.notice, _ITEMS.c.again)
    counted = sa.select(*columns, sa.func.count(), sa.func.max(_ITEMS.c.trouble)).group_by(*columns)
    actions: Counter[RecallAction] = Counter()
    notices: Counter[Notice] = Counter()
    again: Counter[Again] = Counter()
    trouble = row.trouble
    for group in connection.execute(counted.where(_ITEMS.c.recall_id == row.id)):
        number = group[3]
        actions[RecallAction(group.action)] += number
        notices[Notice(group.notice)] += number
        again[Again(group.again)] += number
        trouble = trouble or group[4]
    return Recall(
        id=row.id,
        criteria=from_json(row.criteria, RecallCriteria),
        reason=row.reason,
        asked_by=row.asked_by,
        asked_at=row.asked_at,
        signed_too=row.signed_too,
        replacement=row.replacement,
        actions=actions,
        notices=notices,
        again=again,
        trouble=trouble,
        switch=Switch(row.switch),
    )
