"""Comparisons with the archives: asked for, and what they found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.reconciled import Reconciliation, ReconciliationReport
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import Database

_TABLE = tables.reconciliations


class Reconciliations(Database):
    """The part of the store that reconciling uses."""

    def ask_reconciliation(self, first: date, last: date, asked_by: str) -> int:
        """Ask for a comparison with the archives; its number."""
        with self._write() as connection:
            number: int = connection.execute(
                _TABLE.insert()
                .values(first=first, last=last, asked_by=asked_by, asked_at=self._clock.now())
                .returning(_TABLE.c.id)
            ).scalar_one()
        return number

    def next_reconciliation(self) -> Reconciliation | None:
        """What was asked for longest ago and has not ended."""
        waiting = sa.select(_TABLE).where(_TABLE.c.ended_at.is_(None)).order_by(_TABLE.c.id)
        with self._read() as connection:
            row = connection.execute(waiting.limit(1)).one_or_none()
        return None if row is None else _reconciliation(row)

    def end_reconciliation(self, number: int, report: ReconciliationReport) -> None:
        """Keep what one found."""
        with self._write() as connection:
            connection.execute(
                _TABLE.update()
                .where(_TABLE.c.id == number)
                .values(ended_at=self._clock.now(), report=to_json(report))
            )

    def reconciliations(self, limit: int = 30) -> Sequence[Reconciliation]:
        """Those asked for, newest first."""
        query = sa.select(_TABLE).order_by(_TABLE.c.id.desc()).limit(limit)
        with self._read() as connection:
            return [_reconciliation(row) for row in connection.execute(query)]


def _reconciliation(row: sa.Row[Any]) -> Reconciliation:
    return Reconciliation(
        id=row.id,
        first=row.first,
        last=row.last,
        asked_by=row.asked_by,
        asked_at=row.asked_at,
        ended_at=row.ended_at,
        report=None if row.report is None else from_json(row.report, ReconciliationReport),
    )
