"""Nothing waits in silence: what is beyond its limit is acted upon where that is safe, and told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from phoi_edge_node.policies import Act, Life, Limit
from phoi_edge_node.ports import Clock, Unreachable
from phoi_edge_node.store import Overdue, StudyStore

log = structlog.get_logger(__name__)

NAMED = 100  # of what is overdue by the same limit; all are counted


class Working(Protocol):
    """A thread that should be working, or what runs one."""

    def trouble(self) -> str:
        """What is wrong with it, for an operator; "" where nothing is."""
        ...


@dataclass(frozen=True)
class Alert:
    """What is beyond one limit.

    Attributes:
        number: how many there are.
        oldest: the first of them, oldest first.
    """

    limit: Limit
    number: int
    oldest: tuple[Overdue, ...]


class Watchdog:
    """Looks at what waits, and at the threads that should be working.

    Args:
        limits: how long each state may hold.
        nudge_study: has the completeness of a study looked at again, by Study Instance UID.
        loops: the threads of this node.
    """

    def __init__(
        self,
        store: StudyStore,
        clock: Clock,
        limits: Sequence[Limit],
        nudge_study: Callable[[str], None],
        loops: Callable[[], Sequence[Working]] = tuple,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._nudge_study = nudge_study
        self._loops = loops
        self._lock = threading.Lock()
        self._alerts: tuple[Alert, ...] = ()

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What the latest look found beyond its limit."""
        with self._lock:
            return self._alerts

    def numbers(self) -> Sequence[tuple[Limit, int]]:
        """How many were beyond each limit at the latest look, zeros too."""
        found = {alert.limit: alert.number for alert in self.alerts}
        return [(limit, found.get(limit, 0)) for limit in self._limits]

    def troubles(self) -> tuple[str, ...]:
        """The threads that died or hang, in words."""
        return tuple(trouble for loop in self._loops() if (trouble := loop.trouble()))

    def look(self) -> None:
        """Look once, act and tell."""
        now = self._clock.now()
        found = tuple(alert for limit in self._limits if (alert := self._look_at(limit, now)))
        with self._lock:
            told, self._alerts = self._alerts, found
        for alert in found:
            for overdue in alert.oldest:
                self._try_to_act(alert.limit, overdue, now)
        for alert in _news(told, found):
            log.warning(
                "overdue",
                life=alert.limit.life.value,
                state=alert.limit.state.value,
                number=alert.number,
                act=alert.limit.act.value,
            )
        for trouble in self.troubles():
            log.error("thread in trouble", detail=trouble)

    def _look_at(self, limit: Limit, now: datetime) -> Alert | None:
        number, oldest = self._store.overdue(limit.life, limit.state, now - limit.longest, NAMED)
        return Alert(limit, number, tuple(oldest)) if number else None

    def _try_to_act(self, limit: Limit, overdue: Overdue, now: datetime) -> None:
        try:
            self._act(limit, overdue, now)
        except Exception:  # of one; the others, and what is told of them, must not wait for it
            log.exception("the watchdog could not act", life=limit.life.value, id=overdue.id)

    def _act(self, limit: Limit, overdue: Overdue, now: datetime) -> None:
        if limit.act is Act.NUDGE:
            self._nudge_study(overdue.id)
        elif limit.act is Act.RETRY:
            error = f"{limit.state.value} for more than {limit.longest}: taken to be lost"
            if limit.life is Life.ANALYSIS:
                self._store.retry_analysis(overdue.id, error, now, reached_worker=True)
            else:
                self._store.settle_delivery(int(overdue.id), Unreachable(error), now)


def _news(told: Sequence[Alert], found: Sequence[Alert]) -> list[Alert]:
    """Alerts about something that was not among the oldest at the last look."""
    known = {(o.life, o.id) for alert in told for o in alert.oldest}
    return [alert for alert in found if any((o.life, o.id) not in known for o in alert.oldest)]
