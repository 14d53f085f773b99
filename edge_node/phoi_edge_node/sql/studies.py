"""Studies and their instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from phoi_edge_node.codec import from_json
from phoi_edge_node.orders import more_urgent
from phoi_edge_node.ports import ReceivedInstance
from phoi_edge_node.recalled import RecallAction
from phoi_edge_node.result import Completeness, Priority, StudyHeader
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.analyses import queue_analysis
from phoi_edge_node.sql.damages import is_known
from phoi_edge_node.sql.expired import has_late_images, lacks_expired
from phoi_edge_node.sql.indexing import Indexing
from phoi_edge_node.sql.orders import order_behind
from phoi_edge_node.store import StoredStudy
from phoi_edge_node.study import (
    STUDY,
    AnalysisState,
    ReviewState,
    StudyEvent,
    StudyState,
    after,
    ignores,
)

_COLUMNS = [column.name for column in tables.instances.columns]


class Studies(Indexing):
    """The part of the store that receiving uses."""

    def studies(self, limit: int = 500) -> Sequence[StoredStudy]:
        """Those that wait for something first, then the most recently received."""
        table = tables.studies
        latest = sa.select(table.c.study_instance_uid).order_by(table.c.last_received_at.desc())
        with self._read() as connection:
            waiting = set(_waiting(connection, limit))
            uids = waiting | set(connection.scalars(latest.limit(limit)))
            query = _study_query().where(table.c.study_instance_uid.in_(uids))
            found = [_study(row) for row in connection.execute(query)]
        found.sort(key=lambda study: study.last_received_at, reverse=True)
        found.sort(key=lambda study: study.header.study_instance_uid not in waiting)
        return found[:limit]

    def study(self, study_instance_uid: str) -> StoredStudy | None:
        """One study."""
        query = _study_query().where(tables.studies.c.study_instance_uid == study_instance_uid)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _study(row)

    def receiving_studies(self) -> Sequence[str]:
        """UIDs of studies that wait for completeness."""
        table = tables.studies
        waiting = table.c.state.in_((StudyState.RECEIVING, StudyState.COUNTING))
        query = sa.select(table.c.study_instance_uid).where(waiting)
        with self._read() as connection:
            return connection.scalars(query).all()

    def instances(self, study_instance_uid: str) -> Sequence[ReceivedInstance]:
        """All instances of a study."""
        table = tables.instances
        with self._read() as connection:
            header = _header(connection, study_instance_uid)
            rows = connection.execute(
                sa.select(table)
                .where(table.c.study_instance_uid == study_instance_uid)
                .order_by(table.c.sop_instance_uid)
            ).all()
        return [_instance(row, header) for row in rows] if header else []

    def quiet_study(self, study_instance_uid: str) -> bool:
        """Nothing more comes: the study is to be counted; False if it is not being received."""
        with self._write() as connection:
            state = _locked_state(connection, study_instance_uid)
            if state is None or ignores(STUDY, state, StudyEvent.QUIET):
                return False
            self._move_study(connection, study_instance_uid, state, StudyEvent.QUIET)
        return True

    def complete_study(
        self, study_instance_uid: str, priority: Priority, completeness: Completeness | None = None
    ) -> str | None:
        """All instances are here: queue the next revision and supersede the unsigned ones."""
        unsure = completeness is Completeness.UNCONFIRMED
        event = StudyEvent.LIMIT if unsure else StudyEvent.COUNTED
        with self._write() as connection:
            state = _locked_state(connection, study_instance_uid)
            if state is StudyState.RECEIVING and completeness is None:  # nobody counts here
                state = self._move_study(connection, study_instance_uid, state, StudyEvent.QUIET)
            if state is None or ignores(STUDY, state, event):
                return None
            self._move_study(connection, study_instance_uid, state, event)
            if lacks_expired(connection, study_instance_uid):
                return None
            if is_known(connection, study_instance_uid):
                return None
            header = _header(connection, study_instance_uid)
            order = order_behind(connection, header) if header else None
            asked = more_urgent(priority, order.priority if order else None)
            return queue_analysis(
                connection, study_instance_uid, asked, completeness, self._clock.now()
            )

    def _move_study(
        self,
        connection: sa.Connection,
        study_instance_uid: str,
        state: StudyState,
        event: StudyEvent,
    ) -> StudyState:
        table = tables.studies
        state = after(STUDY, state, event)
        connection.execute(
            table.update()
            .where(table.c.study_instance_uid == study_instance_uid)
            .values(state=state, state_since=self._clock.now())
        )
        return state


def _waiting(connection: sa.Connection, limit: int) -> Iterator[str]:
    """The latest that are received, analysed, or open for review: each from an index, bounded."""
    studies, analyses, reviews = tables.studies, tables.analyses, tables.reviews
    received = (StudyState.RECEIVING, StudyState.COUNTING)
    unfinished = (AnalysisState.QUEUED, AnalysisState.RUNNING)
    uid = analyses.c.study_instance_uid
    open_reviews = sa.select(uid).join(reviews, reviews.c.analysis_id == analyses.c.id)
    for query, state, states in (
        (sa.select(studies.c.study_instance_uid), studies.c.state, received),
        (sa.select(uid), analyses.c.state, unfinished),
        (open_reviews, reviews.c.state, (ReviewState.OPEN,)),
        (open_reviews.where(_left_to_people()), reviews.c.state, (ReviewState.SIGNED,)),
    ):
        since = state.table.c.state_since
        yield from connection.scalars(
            query.where(state.in_(states)).order_by(since.desc()).limit(limit)
        )


def _locked_state(connection: sa.Connection, study_instance_uid: str) -> StudyState | None:
    table = tables.studies
    query = sa.select(table.c.state).where(table.c.study_instance_uid == study_instance_uid)
    state = connection.scalar(query.with_for_update())
    return None if state is None else StudyState(state)


def _header(connection: sa.Connection, study_instance_uid: str) -> StudyHeader | None:
    table = tables.studies
    text = connection.scalar(
        sa.select(table.c.header).where(table.c.study_instance_uid == study_instance_uid)
    )
    return None if text is None else from_json(text, StudyHeader)


def _study_query() -> sa.Select[Any]:
    count = (
        sa.select(sa.func.count())
        .where(tables.instances.c.study_instance_uid == tables.studies.c.study_instance_uid)
        .scalar_subquery()
    )
    changed = changed_after_signing().label("changed_after_signing")
    late = has_late_images(tables.studies.c.study_instance_uid).label("late_images")
    recalled = _signed(_left_to_people()).label("recalled")
    return sa.select(tables.studies, count.label("instance_count"), changed, late, recalled)


def _left_to_people() -> sa.ColumnElement[bool]:
    """An analysis was recalled, and its signature left to people, none of whom has looked yet."""
    items = tables.recall_items
    return sa.exists().where(
        items.c.analysis_id == tables.analyses.c.id,
        items.c.action == RecallAction.LEAVE_SIGNED,
        items.c.confirmed_at.is_(None),
    )


def changed_after_signing() -> sa.ColumnElement[bool]:
    """A study has a signature, and is being received again or has a revision behind it.

    One that a person has acknowledged, for there was nothing to sign, counts no more. What was told
    of a patient whose data changed since counts, signed or not, until something replaces it: a
    study whose images were removed has no revision that could.
    """
    studies, later, seen = tables.studies, tables.analyses.alias(), tables.reviews.alias()
    open_again = studies.c.state.in_((StudyState.RECEIVING, StudyState.COUNTING))
    behind_it = sa.exists().where(
        later.c.study_instance_uid == tables.analyses.c.study_instance_uid,
        later.c.revision > tables.analyses.c.revision,
        later.c.state != AnalysisState.SUPERSEDED,
        sa.not_(
            sa.exists().where(
                seen.c.analysis_id == later.c.id, seen.c.state == ReviewState.ACKNOWLEDGED
            )
        ),
    )
    return sa.or_(_signed(sa.or_(open_again, behind_it)), _outdated())


def _outdated() -> sa.ColumnElement[bool]:
    """What stands for a study was written before the patient's data changed."""
    documents, reviews = tables.documents, tables.reviews
    return sa.exists().where(
        documents.c.study_instance_uid == tables.studies.c.study_instance_uid,
        documents.c.outdated,
        reviews.c.analysis_id == documents.c.analysis_id,
        reviews.c.state != ReviewState.SUPERSEDED,
    )


def _signed(*where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """A study has an analysis that a person signed, of which this is true."""
    analyses, reviews = tables.analyses, tables.reviews
    return sa.exists().where(
        analyses.c.study_instance_uid == tables.studies.c.study_instance_uid,
        reviews.c.analysis_id == analyses.c.id,
        reviews.c.state == ReviewState.SIGNED,
        *where,
    )


def _study(row: sa.Row[Any]) -> StoredStudy:
    return StoredStudy(
        header=from_json(row.header, StudyHeader),
        state=StudyState(row.state),
        state_since=row.state_since,
        receiving_since=row.receiving_since,
        first_received_at=row.first_received_at,
        last_received_at=row.last_received_at,
        instance_count=row.instance_count,
        changed_after_signing=row.changed_after_signing,
        late_images=row.late_images,
        recalled=row.recalled,
    )


def _instance(row: sa.Row[Any], header: StudyHeader) -> ReceivedInstance:
    values = {name: getattr(row, name) for name in _COLUMNS if name != "study_instance_uid"}
    return ReceivedInstance(study=header, **values)
