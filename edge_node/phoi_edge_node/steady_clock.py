"""Has the wall clock gone evenly of late? Asked before something is removed because of its age.

A machine may start with a clock that is a year ahead, and have it set right minutes later; by then
everything would have been old. While the process runs the clock that nobody can set is the measure;
across a restart only a jump of more than a day shows.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from phoi_edge_node.ports import Clock
from phoi_edge_node.store import StudyStore

log = structlog.get_logger(__name__)

_FACT = "wall_clock_even_since_and_until"
_EVENLY_FOR = timedelta(days=1)
_LONGEST_STOP = timedelta(days=1)
_TOLERANCE = timedelta(hours=1)


class SteadyClock:
    """To be asked regularly. Of one thread."""

    def __init__(self, store: StudyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._seen: tuple[datetime, float] | None = None

    def is_trusted(self) -> bool:
        """Without a jump for a day?"""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        since, until = self._told()
        if until is None or not self._is_even(now, monotonic, until):
            log.warning("the wall clock jumped, or is new: nothing is removed by age for a day")
            since = now
        self._seen = (now, monotonic)
        self._store.put_fact(_FACT, f"{since.isoformat()} {now.isoformat()}")
        return now - since >= _EVENLY_FOR

    def _told(self) -> tuple[datetime, datetime | None]:
        fact = self._store.fact(_FACT)
        if fact is None:
            return self._clock.now(), None
        since, until = map(datetime.fromisoformat, fact.split(" "))
        return since, until

    def _is_even(self, now: datetime, monotonic: float, until: datetime) -> bool:
        if self._seen is None:
            return timedelta() <= now - until <= _LONGEST_STOP
        seen, at = self._seen
        return abs(now - seen - timedelta(seconds=monotonic - at)) <= _TOLERANCE
