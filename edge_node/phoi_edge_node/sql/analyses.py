"""Analyses, from queued to their result."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.ports import DocumentKind, ReportStatus
from phoi_edge_node.result import Completeness, Patient, Priority, StudyHeader, TriageResult
from phoi_edge_node.scheduling import turn_at
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.damages import images_of
from phoi_edge_node.sql.deliveries import enqueue, supersede_deliveries
from phoi_edge_node.sql.engine import Database, due, for_update, hold
from phoi_edge_node.sql.figures import count_ended, count_pinned
from phoi_edge_node.store import Outgoing, StoredAnalysis
from phoi_edge_node.study import (
    ANALYSIS,
    REVIEW,
    AnalysisEvent,
    AnalysisState,
    ReviewEvent,
    ReviewState,
    after,
    ignores,
)

RANK = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}
PAUSES = "pauses"  # whoever pins a model, or recalls one, holds this name
_PRIORITY = {rank: priority for priority, rank in RANK.items()}


class Analyses(Database):
    """The part of the store that analysing uses."""

    def claim_analysis(
        self, excluded_models: Collection[str] = (), *, unpinned: bool = True
    ) -> StoredAnalysis | None:
        """Start the queued analysis that is due and whose turn is first."""
        table = tables.analyses
        now = self._clock.now()
        query = (
            sa.select(table)
            .where(table.c.state == AnalysisState.QUEUED, due(table.c.due_at, now))
            .where(_may_run(excluded_models, unpinned=unpinned))
            .order_by(table.c.turn_at, table.c.created_at)
            .limit(1)
        )
        with self._write() as connection:
            _mend_turns(connection, now)
            row = connection.execute(for_update(query)).one_or_none()
            if row is None:
                return None
            state = after(ANALYSIS, AnalysisState(row.state), AnalysisEvent.START)
            connection.execute(
                table.update()
                .where(table.c.id == row.id)
                .values(
                    state=state,
                    state_since=now,
                    started_at=now,
                    claims=table.c.claims + 1,
                    step="",
                    fraction=0.0,
                )
            )
            row = connection.execute(sa.select(table).where(table.c.id == row.id)).one()
        return _analysis(row)

    def pin_model(self, analysis_id: str, model: ModelIdentity) -> bool:
        """Fix the model of a running analysis, if none is pinned yet; False if it is paused."""
        table = tables.analyses
        with self._write() as connection:
            if _is_paused(connection, model):
                return False
            pinned = connection.execute(
                table.update()
                .where(table.c.id == analysis_id, table.c.model.is_(None))
                .values(_pinned(model))
            ).rowcount
            if pinned:
                count_pinned(connection, analysis_id, model)
        return True

    def report_progress(self, analysis_id: str, step: str, fraction: float) -> None:
        """For people who watch; 0 to 1."""
        table = tables.analyses
        with self._write() as connection:
            connection.execute(
                table.update()
                .where(table.c.id == analysis_id, table.c.state == AnalysisState.RUNNING)
                .values(step=step, fraction=fraction)
            )

    def retry_analysis(
        self,
        analysis_id: str,
        error: str,
        due_at: datetime,
        *,
        reached_worker: bool,
        claim: int | None = None,
    ) -> None:
        """Queue a running analysis again."""
        table = tables.analyses
        now = self._clock.now()
        with self._write() as connection:
            state, stale = _state(connection, analysis_id, claim)
            if stale or ignores(ANALYSIS, state, AnalysisEvent.RETRY):
                return
            connection.execute(
                table.update()
                .where(table.c.id == analysis_id)
                .values(
                    state=after(ANALYSIS, state, AnalysisEvent.RETRY),
                    state_since=now,
                    attempts=table.c.attempts + int(reached_worker),
                    due_at=due_at,
                    turn_at=believable_turn(now),
                    error=error,
                )
            )

    def finish_analysis(
        self,
        analysis_id: str,
        event: AnalysisEvent,
        result: TriageResult,
        outgoing: Sequence[Outgoing],
        error: str = "",
        claim: int | None = None,
        patient: Patient | None = None,
    ) -> bool:
        """End a running analysis, with its documents."""
        table = tables.analyses
        now = self._clock.now()
        with self._write() as connection:
            uid = result.identity.study_instance_uid
            if patient is not None and patient_of(connection, uid) != patient:
                _queue_again(connection, analysis_id, claim, now)
                return False
            state, stale = _state(connection, analysis_id, claim)
            if stale and event is AnalysisEvent.GIVE_UP:
                return False  # the try that runs may do better
            if ignores(ANALYSIS, state, event):
                return False
            connection.execute(
                table.update()
                .where(table.c.id == analysis_id)
                .values(
                    state=after(ANALYSIS, state, event),
                    state_since=now,
                    result=to_json(result),
                    error=error,
                    finished_at=now,
                    fraction=1.0,
                )
            )
            connection.execute(
                tables.reviews.insert().values(
                    analysis_id=analysis_id, state=ReviewState.OPEN, state_since=now
                )
            )
            count_ended(connection, analysis_id, result, now)
            identity = result.identity
            enqueue(
                connection,
                analysis_id,
                identity.study_instance_uid,
                identity.revision,
                ReportStatus.PRELIMINARY,
                outgoing,
                now,
            )
        return True

    def analyses(self, study_instance_uid: str) -> Sequence[StoredAnalysis]:
        """All revisions, oldest first."""
        table = tables.analyses
        query = (
            sa.select(table)
            .where(table.c.study_instance_uid == study_instance_uid)
            .order_by(table.c.revision)
        )
        with self._read() as connection:
            return [_analysis(row) for row in connection.execute(query)]

    def queued_analyses(self) -> Sequence[str]:
        """Ids of those that wait, in the order of their turns."""
        table = tables.analyses
        queued = sa.select(table.c.id).where(table.c.state == AnalysisState.QUEUED)
        with self._read() as connection:
            return connection.scalars(queued.order_by(table.c.turn_at, table.c.created_at)).all()

    def latest_analyses(self, study_uids: Collection[str]) -> Mapping[str, StoredAnalysis]:
        """The latest revision of each study that has one."""
        table = tables.analyses
        query = (
            sa.select(table)
            .where(table.c.study_instance_uid.in_(list(study_uids)))
            .order_by(table.c.revision)
        )
        with self._read() as connection:
            rows = connection.execute(query).all()
        return {row.study_instance_uid: _analysis(row) for row in rows}

    def identities(self, study_instance_uid: str) -> Mapping[DocumentKind, tuple[str, ...]]:
        """Identities of all documents of a study, by kind, latest last."""
        table = tables.documents
        query = (
            sa.select(table.c.kind, table.c.identity)
            .where(table.c.study_instance_uid == study_instance_uid)
            .order_by(table.c.id)
        )
        found: dict[DocumentKind, tuple[str, ...]] = {}
        with self._read() as connection:
            for row in connection.execute(query):
                kind = DocumentKind(row.kind)
                found[kind] = (*found.get(kind, ()), row.identity)
        return found


def priority_of(rank: int) -> Priority:
    """As it is stored."""
    return _PRIORITY[rank]


def _may_run(excluded_models: Collection[str], *, unpinned: bool) -> sa.ColumnElement[bool]:
    """By their pinned model, named as "NAME" or "NAME@VERSION"."""
    table, excluded = tables.analyses, list(excluded_models)
    version = table.c.model_name + "@" + table.c.model_version
    runs = sa.and_(table.c.model_name.not_in(excluded), version.not_in(excluded))
    return sa.or_(table.c.model_name.is_(None), runs) if unpinned else runs


def _is_paused(connection: sa.Connection, model: ModelIdentity) -> bool:
    """Asked in the transaction that pins: a recall that pauses it finds what was pinned before."""
    hold(connection, [PAUSES])
    targets = connection.scalars(sa.select(tables.pauses.c.target))
    return model.is_any_of([t.removeprefix("model:") for t in targets if t.startswith("model:")])


def queue_analysis(
    connection: sa.Connection,
    study_instance_uid: str,
    priority: Priority,
    completeness: Completeness | None,
    now: datetime,
    model: ModelIdentity | None = None,
) -> str:
    """Queue the next revision of a study; supersede what no person has signed.

    Args:
        model: pinned from the start where a result is only to be told anew.
    """
    table = tables.analyses
    rows = connection.execute(
        sa.select(table.c.id, table.c.revision, table.c.state)
        .where(table.c.study_instance_uid == study_instance_uid)
        .order_by(table.c.revision)
        # Not the full lock: whoever signs holds the review and refers to the analysis by key.
        .with_for_update(key_share=True)
    ).all()
    for row in rows:
        _supersede_unless_signed(connection, row.id, AnalysisState(row.state), now)
    analysis_id = uuid.uuid4().hex
    connection.execute(
        table.insert().values(
            id=analysis_id,
            study_instance_uid=study_instance_uid,
            revision=rows[-1].revision + 1 if rows else 1,
            state=AnalysisState.QUEUED,
            state_since=now,
            completeness=completeness,
            images=images_of(connection, study_instance_uid),
            priority=RANK[priority],
            attempts=0,
            claims=0,
            due_at=now,
            step="",
            fraction=0.0,
            error="",
            created_at=now,
            turn_at=turn_at(now, priority),
            **_pinned(model),
        )
    )
    return analysis_id


def _pinned(model: ModelIdentity | None) -> dict[str, str]:
    if model is None:
        return {}
    return {
        "model": to_json(model),
        "model_name": model.name,
        "model_version": model.version,
    }


def _supersede_unless_signed(
    connection: sa.Connection, analysis_id: str, state: AnalysisState, now: datetime
) -> None:
    reviews, analyses = tables.reviews, tables.analyses
    review = connection.scalar(
        sa.select(reviews.c.state).where(reviews.c.analysis_id == analysis_id).with_for_update()
    )
    if ignores(ANALYSIS, state, AnalysisEvent.SUPERSEDE):
        return
    if review is not None:
        if ignores(REVIEW, ReviewState(review), ReviewEvent.SUPERSEDE):
            return
        connection.execute(
            reviews.update()
            .where(reviews.c.analysis_id == analysis_id)
            .values(
                state=after(REVIEW, ReviewState(review), ReviewEvent.SUPERSEDE), state_since=now
            )
        )
    connection.execute(
        analyses.update()
        .where(analyses.c.id == analysis_id)
        .values(state=after(ANALYSIS, state, AnalysisEvent.SUPERSEDE), state_since=now)
    )
    supersede_deliveries(connection, analysis_id, now)


def patient_of(connection: sa.Connection, study_instance_uid: str) -> Patient:
    """Whose study it is, until the transaction ends: no message changes it meanwhile."""
    table = tables.studies
    query = sa.select(table.c.header).where(table.c.study_instance_uid == study_instance_uid)
    header = connection.execute(query.with_for_update(read=True)).scalar_one()
    return from_json(header, StudyHeader).patient


def _queue_again(
    connection: sa.Connection, analysis_id: str, claim: int | None, now: datetime
) -> None:
    """What it wrote is of a patient whose data changed while it ran; nothing went wrong."""
    table = tables.analyses
    state, stale = _state(connection, analysis_id, claim)
    if stale or ignores(ANALYSIS, state, AnalysisEvent.RETRY):
        return
    queued = after(ANALYSIS, state, AnalysisEvent.RETRY)
    connection.execute(
        table.update()
        .where(table.c.id == analysis_id)
        .values(state=queued, state_since=now, due_at=now, turn_at=believable_turn(now))
    )


def _state(
    connection: sa.Connection, analysis_id: str, claim: int | None
) -> tuple[AnalysisState, bool]:
    """The state of an analysis, and whether another try than this one has begun since."""
    table = tables.analyses
    row = connection.execute(
        sa.select(table.c.state, table.c.claims)
        .where(table.c.id == analysis_id)
        .with_for_update(key_share=True)
    ).one()
    return AnalysisState(row.state), claim not in {None, row.claims}


def _mend_turns(connection: sa.Connection, now: datetime) -> None:
    """What was queued by a clock that stood ahead counts as queued now: it was not later."""
    table = tables.analyses
    connection.execute(
        table.update()
        # Found by the index of states: no more than were queued in what is now the future.
        .where(table.c.state == AnalysisState.QUEUED, table.c.state_since > now)
        .where(table.c.turn_at > believable_turn(now))
        .values(turn_at=believable_turn(now))
    )


def believable_turn(now: datetime) -> sa.ColumnElement[datetime]:
    """The turn of an analysis, but none later than if it were queued now."""
    table = tables.analyses
    latest = sa.case(
        {
            rank: sa.literal(turn_at(now, priority), tables.UtcDateTime())
            for rank, priority in _PRIORITY.items()
        },
        value=table.c.priority,
    )
    return sa.case((table.c.turn_at > latest, latest), else_=table.c.turn_at)


def _analysis(row: sa.Row[Any]) -> StoredAnalysis:
    return StoredAnalysis(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        state=AnalysisState(row.state),
        state_since=row.state_since,
        completeness=None if row.completeness is None else Completeness(row.completeness),
        priority=_PRIORITY[row.priority],
        model=None if row.model is None else from_json(row.model, ModelIdentity),
        attempts=row.attempts,
        claims=row.claims,
        due_at=row.due_at,
        step=row.step,
        fraction=row.fraction,
        error=row.error,
        result=None if row.result is None else from_json(row.result, TriageResult),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
