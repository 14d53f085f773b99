"""``StudyStore`` on SQLAlchemy: the same code on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

from phoi_edge_node.sql import tables
from phoi_edge_node.sql.analyses import Analyses, believable_turn
from phoi_edge_node.sql.commitments import Commitments
from phoi_edge_node.sql.damages import Damages
from phoi_edge_node.sql.deliveries import Deliveries, drop_if_replaced, move_delivery
from phoi_edge_node.sql.keeping import Keeping
from phoi_edge_node.sql.orders import Orders
from phoi_edge_node.sql.people import People
from phoi_edge_node.sql.recalls import Recalls
from phoi_edge_node.sql.reconciliations import Reconciliations
from phoi_edge_node.sql.reviews import Reviews
from phoi_edge_node.sql.statistics import Statistics
from phoi_edge_node.sql.studies import Studies
from phoi_edge_node.study import (
    ANALYSIS,
    AnalysisEvent,
    AnalysisState,
    DeliveryEvent,
    DeliveryState,
    after,
)


class SqlStore(
    Studies,
    Analyses,
    Orders,
    Deliveries,
    Reviews,
    Statistics,
    Reconciliations,
    Recalls,
    Keeping,
    Commitments,
    People,
    Damages,
):
    """The edge's memory in one database."""

    def requeue_interrupted(self) -> int:
        """At start: what was running or being sent when the process died goes back in the queue."""
        analyses, deliveries = tables.analyses, tables.deliveries
        now = self._clock.now()
        with self._write() as connection:
            running = connection.execute(
                analyses.update()
                .where(analyses.c.state == AnalysisState.RUNNING)
                .values(
                    state=after(ANALYSIS, AnalysisState.RUNNING, AnalysisEvent.RETRY),
                    state_since=now,
                    # A study on which the node itself dies must not do that for ever.
                    attempts=analyses.c.attempts + 1,
                    error="the edge node ended in the middle of it",
                    due_at=now,
                    turn_at=believable_turn(now),
                )
            ).rowcount
            sending = connection.scalars(
                sa.select(deliveries.c.id).where(deliveries.c.state == DeliveryState.SENDING)
            ).all()
            for delivery_id in sending:
                state = move_delivery(connection, delivery_id, DeliveryEvent.RETRY, now, due_at=now)
                drop_if_replaced(connection, delivery_id, state, now)
        return running + len(sending)
