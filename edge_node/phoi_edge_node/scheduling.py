"""Whose turn it is: what is urgent overtakes, and nobody starves. Pure.

Each analysis gets one moment when it is queued, its turn: then, plus the patience that its priority
asks of it. The earliest turn goes first. So an emergency overtakes whatever was queued within the
last day, also after hours without a worker; an urgent study overtakes routine ones of the last six
hours, so that a flood of urgent ones ends their waiting; and nothing at all is ever overtaken by
what came more than thirty hours after it. The moment does not move while an analysis waits, so a
thousand that wait cost one look into an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from phoi_edge_node.result import Priority

PATIENCE: Mapping[Priority, timedelta] = {
    Priority.STAT: timedelta(),
    Priority.URGENT: timedelta(hours=24),
    Priority.ROUTINE: timedelta(hours=30),
}


def turn_at(queued_at: datetime, priority: Priority) -> datetime:
    """When it is an analysis's turn, at the latest among those queued after it."""
    return queued_at + PATIENCE[priority]
