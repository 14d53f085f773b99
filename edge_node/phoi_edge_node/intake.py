"""From instances that arrive to a study that is complete.

DICOM has no end of a study. A study counts as complete when every association that brought some of
it has ended and nothing more came for a quiet time, measured by a clock that nobody can set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from phoi_edge_node.ports import Clock, Intake, ReceivedInstance
from phoi_edge_node.result import Priority
from phoi_edge_node.store import StudyStore

log = structlog.get_logger(__name__)


class StudyIntake:
    """Implements ``ports.Receiver``. Safe to call from many threads."""

    def __init__(
        self,
        store: StudyStore,
        clock: Clock,
        quiet_time_s: float,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._quiet_time_s = quiet_time_s
        self._on_complete = on_complete
        self._lock = threading.Lock()
        self._open: dict[str, set[str]] = {}
        # A study that was being received when the process died starts its quiet time anew.
        now = clock.monotonic()
        self._last_seen = dict.fromkeys(store.receiving_studies(), now)

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        """Index an instance that is durable on disk."""
        uid = instance.study_instance_uid
        with self._lock:
            self._open.setdefault(association, set()).add(uid)
        outcome = self._store.add_instance(instance)
        if outcome is Intake.STORED:
            with self._lock:
                self._last_seen[uid] = self._clock.monotonic()
        elif outcome is not Intake.DUPLICATE:
            log.warning("instance quarantined", why=outcome.value, study_instance_uid=uid)
        return outcome

    def association_released(self, association: str) -> None:
        """An association ended, by release, abort or loss."""
        with self._lock:
            self._open.pop(association, None)

    def complete_quiet_studies(self) -> int:
        """Queue an analysis of every study that is complete; how many there were."""
        with self._lock:
            now = self._clock.monotonic()
            busy = set().union(*self._open.values())
            quiet = [
                uid
                for uid, seen in self._last_seen.items()
                if uid not in busy and now - seen >= self._quiet_time_s
            ]
        for uid in quiet:
            self._complete(uid)
        return len(quiet)

    def _complete(self, uid: str) -> None:
        analysis_id = self._store.complete_study(uid, Priority.ROUTINE)
        with self._lock:
            if self._clock.monotonic() - self._last_seen[uid] >= self._quiet_time_s:
                del self._last_seen[uid]
        if analysis_id is not None:
            log.info("study complete", study_instance_uid=uid, analysis_id=analysis_id)
            self._on_complete()
