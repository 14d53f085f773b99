"""Counting, for KPIs, metrics and usage reports: by the database, over indexes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json
from phoi_edge_node.policies import Life
from phoi_edge_node.result import Outcome, Verdict
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import LONGEST_WAIT, Database
from phoi_edge_node.sql.studies import changed_after_signing
from phoi_edge_node.store import Counts, InState, ModelUse, Overdue, Use
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState, StudyState
from phoi_edge_node.usage import BOUNDS_S, Durations, Marks

MEDIAN_OVER = 1000
_WAITING = (DeliveryState.PENDING, DeliveryState.SENDING)

_State = TypeVar("_State", AnalysisState, ReviewState, StudyState, DeliveryState)


class Statistics(Database):
    """The part of the store that counting uses."""

    def counts(self) -> Counts:
        """How many of everything are in which state, and since when."""
        studies, analyses, reviews = tables.studies, tables.analyses, tables.reviews
        queued = analyses.c.state == AnalysisState.QUEUED
        with self._read() as connection:
            return Counts(
                studies=_in_states(connection, studies.c.state_since, StudyState),
                analyses=_in_states(connection, analyses.c.state_since, AnalysisState),
                deliveries=_deliveries(connection),
                reviews=_in_states(connection, reviews.c.state_since, ReviewState),
                oldest_queued=connection.scalar(
                    sa.select(sa.func.min(analyses.c.created_at)).where(queued)
                ),
                oldest_undelivered=_oldest_undelivered(connection),
                since=connection.scalar(sa.select(sa.func.min(studies.c.first_received_at))),
                damages=connection.scalar(sa.select(sa.func.count(tables.damages.c.id))) or 0,
                changed_after_signing=_changed_after_signing(connection),
            )

    def overdue(
        self, life: Life, state: StrEnum, before: datetime, limit: int
    ) -> tuple[int, Sequence[Overdue]]:
        """How many are in a state since before then, and the first of them, oldest first."""
        columns = _waiting(life, state)
        wrong_clock = columns.since > self._clock.now() + LONGEST_WAIT
        here = (columns.state == state, sa.or_(columns.since <= before, wrong_clock))
        labels = (columns.id.label("id"), columns.study.label("study"), columns.since.label("at"))
        oldest = sa.select(*labels).where(*here)
        if columns.study.table is not columns.id.table:
            oldest = oldest.join_from(columns.id.table, columns.study.table)
        with self._read() as connection:
            number = connection.scalar(
                sa.select(sa.func.count()).select_from(columns.id.table).where(*here)
            )
            rows = connection.execute(oldest.order_by(columns.since, columns.id).limit(limit)).all()
        return number or 0, [Overdue(life, str(r.id), r.study, r.at) for r in rows]

    def use(self) -> Use:
        """What was ever analysed and signed, by model, and how long that takes of late."""
        figures = tables.figures
        with self._read() as connection:
            return Use(
                models=_models(connection),
                failed_tries=_failed_tries(connection),
                receive_to_result_s=_median(
                    connection, figures.c.receive_to_result_s, figures.c.ended_at
                ),
                result_to_review_s=_median(
                    connection, figures.c.result_to_review_s, figures.c.signed_at
                ),
                last_signed_at=connection.scalar(sa.select(sa.func.max(figures.c.signed_at))),
            )


def _changed_after_signing(connection: sa.Connection) -> int:
    """Looked for only where images or other data came: those have indexes of their own."""
    studies, analyses, documents = tables.studies, tables.analyses, tables.documents
    outdated = sa.select(documents.c.study_instance_uid).where(documents.c.outdated)
    later = sa.select(analyses.c.study_instance_uid).where(
        analyses.c.revision > sa.literal_column("1")  # written as in the partial index
    )
    query = sa.select(sa.func.count()).where(
        changed_after_signing(),
        sa.or_(
            studies.c.state.in_((StudyState.RECEIVING, StudyState.COUNTING)),
            studies.c.study_instance_uid.in_(later),
            studies.c.study_instance_uid.in_(outdated),
        ),
    )
    return connection.scalar(query.select_from(studies)) or 0


class _Waiting(NamedTuple):
    """Where the store keeps what waits, and since when."""

    id: sa.Column[Any]
    study: sa.Column[Any]
    state: sa.Column[str]
    since: sa.Column[datetime]


def _waiting(life: Life, state: StrEnum) -> _Waiting:
    """What waits for another try waits since it was queued, not since the latest try."""
    studies, analyses = tables.studies.c, tables.analyses.c
    deliveries, reviews = tables.deliveries.c, tables.reviews.c
    uid = studies.study_instance_uid
    match life:
        case Life.STUDY:
            return _Waiting(uid, uid, studies.state, studies.receiving_since)
        case Life.ANALYSIS:
            since = analyses.created_at if state == AnalysisState.QUEUED else analyses.state_since
            return _Waiting(analyses.id, analyses.study_instance_uid, analyses.state, since)
        case Life.DELIVERY:
            waits = state == DeliveryState.PENDING
            since = deliveries.queued_at if waits else deliveries.updated_at
            study = deliveries.study_instance_uid
            return _Waiting(deliveries.id, study, deliveries.state, since)
        case Life.REVIEW:
            study = analyses.study_instance_uid
            return _Waiting(reviews.analysis_id, study, reviews.state, reviews.state_since)


def _in_states(
    connection: sa.Connection,
    since: sa.Column[datetime],
    states: Iterable[_State],
    *where: sa.ColumnElement[bool],
) -> Mapping[_State, InState]:
    """Two look-ups in an index for each state are quicker than one GROUP BY over all rows."""
    state_of = since.table.c.state
    found: dict[_State, InState] = {}
    for state in states:
        here = (state_of == state, *where)
        oldest = connection.scalar(sa.select(sa.func.min(since)).where(*here))
        if oldest is not None:
            number = connection.scalar(
                sa.select(sa.func.count()).select_from(since.table).where(*here)
            )
            found[state] = InState(number or 0, oldest)
    return found


def _deliveries(connection: sa.Connection) -> Mapping[tuple[str, DeliveryState], InState]:
    table = tables.deliveries
    found: dict[tuple[str, DeliveryState], InState] = {}
    for destination in _destinations(connection):
        here = table.c.destination == destination
        by_state = _in_states(connection, table.c.updated_at, DeliveryState, here)
        found |= {(destination, state): counted for state, counted in by_state.items()}
    return found


def _destinations(connection: sa.Connection) -> Iterable[str]:
    """Every lane that ever was, one look-up in the index each."""
    column = tables.deliveries.c.destination
    name = connection.scalar(sa.select(sa.func.min(column)))
    while name is not None:
        yield name
        name = connection.scalar(sa.select(sa.func.min(column)).where(column > name))


def _oldest_undelivered(connection: sa.Connection) -> Mapping[str, datetime]:
    table = tables.deliveries
    query = (
        sa.select(table.c.destination, sa.func.min(table.c.queued_at).label("oldest"))
        .where(table.c.destination.in_(list(_destinations(connection))))
        .where(table.c.state.in_(_WAITING))
        .group_by(table.c.destination)
    )
    return {row.destination: row.oldest for row in connection.execute(query)}


def _failed_tries(connection: sa.Connection) -> Mapping[str, int]:
    table = tables.deliveries
    total = sa.func.sum(table.c.failed_tries).label("total")
    query = (
        sa.select(table.c.destination, total)
        .where(table.c.failed_tries > sa.literal_column("0"))  # written as in the partial index
        .group_by(table.c.destination)
    )
    return {row.destination: int(row.total) for row in connection.execute(query)}


def _median(
    connection: sa.Connection, seconds: sa.Column[float], at: sa.Column[datetime]
) -> float | None:
    latest = sa.select(seconds).where(at.is_not(None), seconds.is_not(None))
    values = connection.scalars(latest.order_by(at.desc()).limit(MEDIAN_OVER)).all()
    return median(values) if values else None


def _models(connection: sa.Connection) -> tuple[ModelUse, ...]:
    analyses = tables.analyses
    recalled = (
        sa.select(analyses.c.model, sa.func.count())
        .where(analyses.c.state == AnalysisState.WITHDRAWN)
        .group_by(analyses.c.model)
    )
    withdrawn = {row[0]: row[1] for row in connection.execute(recalled)}
    rows = connection.execute(_by_model()).all()
    return tuple(_model_use(row, withdrawn.get(row.model, 0)) for row in rows)


def _by_model() -> sa.Select[Any]:
    table = tables.figures
    return (
        sa.select(
            table.c.model,
            sa.func.count().label("received"),
            _count(table.c.outcome == Outcome.NOT_ANALYSABLE).label("refused"),
            _count(table.c.outcome == Outcome.FAILED).label("failed"),
            sa.func.count(table.c.ended_at).label("ended"),
            sa.func.count(table.c.signed_at).label("reviewed"),
            *_durations(table.c.receive_to_result_s, "result"),
            *_durations(table.c.result_to_review_s, "review"),
            *(
                sa.func.coalesce(sa.func.sum(table.c[verdict.value]), 0).label(verdict.value)
                for verdict in Verdict
            ),
        )
        .where(table.c.model.is_not(None))
        .group_by(table.c.model)
        .order_by(sa.func.min(table.c.ended_at))
    )


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _durations(seconds: sa.Column[float], name: str) -> Iterable[sa.ColumnElement[Any]]:
    yield sa.func.count(seconds).label(f"{name}_count")
    yield sa.func.coalesce(sa.func.sum(seconds), 0.0).label(f"{name}_total")
    yield sa.func.coalesce(sa.func.max(seconds), 0.0).label(f"{name}_longest")
    for bound in BOUNDS_S:
        yield _count(seconds <= bound).label(f"{name}_within_{bound}")


def _model_use(row: sa.Row[Any], withdrawn: int) -> ModelUse:
    values = dict(zip(row._fields, row, strict=True))
    return ModelUse(
        model=from_json(row.model, ModelIdentity),
        received=row.received,
        analysed=row.ended - row.refused - row.failed,
        refused=row.refused,
        failed=row.failed,
        reviewed=row.reviewed,
        receive_to_result=_durations_of(values, "result"),
        result_to_review=_durations_of(values, "review"),
        marks=Marks(*(int(values[verdict.value]) for verdict in Verdict)),
        withdrawn=withdrawn,
    )


def _durations_of(values: Mapping[str, Any], name: str) -> Durations:
    return Durations(
        count=values[f"{name}_count"],
        total_s=values[f"{name}_total"],
        longest_s=values[f"{name}_longest"],
        within=tuple(int(values[f"{name}_within_{bound}"]) for bound in BOUNDS_S),
    )
