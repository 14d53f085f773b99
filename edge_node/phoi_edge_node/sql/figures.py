"""What is counted of each analysis, written when it happens: counting then reads no results.

A row appears when a model is pinned to an analysis, is completed when the analysis ends, and again
when a person signs. What was counted stays counted, whatever supersedes it later.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import sqlalchemy as sa
from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import to_json
from phoi_edge_node.result import SignedReview, TriageResult, Verdict
from phoi_edge_node.sql import tables


def count_pinned(connection: sa.Connection, analysis_id: str, model: ModelIdentity) -> None:
    """An analysis has its model."""
    _write(connection, analysis_id, {"model": to_json(model)})


def count_ended(
    connection: sa.Connection, analysis_id: str, result: TriageResult, now: datetime
) -> None:
    """An analysis came to its end. Time runs from the last instance that it is about."""
    analyses, studies = tables.analyses, tables.studies
    row = connection.execute(
        sa.select(analyses.c.model, analyses.c.created_at, studies.c.last_received_at)
        .join(studies)
        .where(analyses.c.id == analysis_id)
    ).one()
    received_at = min(row.last_received_at, row.created_at)  # a later one is of the next revision
    values = {
        "model": row.model,
        "outcome": result.outcome,
        "ended_at": now,
        "receive_to_result_s": _seconds(received_at, now),
    }
    _write(connection, analysis_id, values)


def count_signed(connection: sa.Connection, analysis_id: str, signed: SignedReview) -> None:
    """A person signed."""
    table = tables.figures
    here = table.c.analysis_id == analysis_id
    ended_at: datetime = connection.execute(sa.select(table.c.ended_at).where(here)).scalar_one()
    verdicts = Counter(d.verdict for d in signed.dispositions)
    values = {
        "signed_at": signed.signed_at,
        "result_to_review_s": _seconds(ended_at, signed.signed_at),
        **{verdict.value: verdicts[verdict] for verdict in Verdict},
    }
    _write(connection, analysis_id, values)


def _seconds(since: datetime, until: datetime) -> float:
    """A clock that was set back gives zero."""
    return max(0.0, (until - since).total_seconds())


def _write(connection: sa.Connection, analysis_id: str, values: dict[str, object]) -> None:
    table = tables.figures
    here = table.c.analysis_id == analysis_id
    if not connection.execute(table.update().where(here).values(values)).rowcount:
        connection.execute(table.insert().values(analysis_id=analysis_id, **values))
