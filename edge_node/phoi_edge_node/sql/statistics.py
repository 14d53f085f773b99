"""Counting, for KPIs, metrics and usage reports."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json
from phoi_edge_node.result import Disposition, SignedReview
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database
from phoi_edge_node.store import AnalysisRecord, Counts
from phoi_edge_node.study import AnalysisState, DeliveryState, StudyState


class Statistics(Database):
    """The part of the store that counting uses."""

    def counts(self) -> Counts:
        """Everything that was ever counted."""
        studies, deliveries = tables.studies, tables.deliveries
        lanes = sa.select(
            deliveries.c.destination,
            deliveries.c.state,
            sa.func.count().label("n"),
            sa.func.min(deliveries.c.created_at).label("oldest"),
            sa.func.sum(deliveries.c.failed_tries).label("failed_tries"),
        ).group_by(deliveries.c.destination, deliveries.c.state)
        by_state = sa.select(studies.c.state, sa.func.count().label("n")).group_by(studies.c.state)
        with self._read() as connection:
            rows = connection.execute(lanes).all()
            failed: dict[str, int] = {}
            for row in rows:
                failed[row.destination] = failed.get(row.destination, 0) + row.failed_tries
            return Counts(
                studies={StudyState(r.state): r.n for r in connection.execute(by_state)},
                analyses=tuple(_record(r) for r in connection.execute(_analysis_query())),
                deliveries={(r.destination, DeliveryState(r.state)): r.n for r in rows},
                oldest_pending={
                    r.destination: r.oldest for r in rows if r.state == DeliveryState.PENDING
                },
                failed_tries=failed,
                since=connection.scalar(sa.select(sa.func.min(studies.c.first_received_at))),
            )


def _analysis_query() -> sa.Select[Any]:
    analyses, reviews = tables.analyses, tables.reviews
    return (
        sa.select(
            analyses.c.model,
            analyses.c.state,
            analyses.c.started_at,
            analyses.c.finished_at,
            tables.studies.c.last_received_at,
            reviews.c.signed,
            reviews.c.signed_at,
        )
        .join(tables.studies)
        .outerjoin(reviews, reviews.c.analysis_id == analyses.c.id)
    )


def _record(row: sa.Row[Any]) -> AnalysisRecord:
    dispositions: tuple[Disposition, ...] = ()
    if row.signed is not None:
        dispositions = from_json(row.signed, SignedReview).dispositions
    return AnalysisRecord(
        model=None if row.model is None else from_json(row.model, ModelIdentity),
        state=AnalysisState(row.state),
        last_received_at=row.last_received_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        signed_at=row.signed_at,
        verdicts=tuple(d.verdict for d in dispositions),
    )
