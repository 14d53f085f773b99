"""From instances that arrive to a study that is complete.

DICOM has no end of a study. When every association that brought some of it has ended and nothing
more came for a quiet time, it is counted, where an archive can be asked (``counting.py``), or else
taken as complete. After a limit it is complete however it is, so that no study waits for ever.
Time is measured by a clock that nobody can set; only across a restart by the wall clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from phoi_edge_node.ports import Clock, Intake, ReceivedInstance
from phoi_edge_node.result import Completeness, Priority
from phoi_edge_node.settings import CompletenessSettings
from phoi_edge_node.store import StudyStore
from phoi_edge_node.study import StudyState

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Reception:
    """One study that is being received or counted. Times are monotonic, s.

    Attributes:
        since: its first instance, or the first after it had been complete.
        last_seen: its latest instance.
        counting: it was quiet; archives are asked.
    """

    since: float
    last_seen: float
    counting: bool = False


@contextmanager
def going_on(study_instance_uid: str) -> Iterator[None]:
    """Whatever is wrong with one study, the others do not wait for it; it is tried again."""
    try:
        yield
    except Exception as error:  # no traceback, whose variables may be the patient's
        name = type(error).__name__
        log.error("study not completed", study_instance_uid=study_instance_uid, error=name)  # noqa: TRY400


class StudyIntake:
    """Implements ``ports.Receiver``. Safe to call from many threads.

    Args:
        quiet_time_s: without a new instance, before a study is counted.
        on_complete: called when an analysis was queued.
        completeness: for how long a study may be waited for.
        counted: archives are asked; a quiet study is left to whoever calls ``counting``.
    """

    def __init__(
        self,
        store: StudyStore,
        clock: Clock,
        quiet_time_s: float,
        on_complete: Callable[[], None] = lambda: None,
        completeness: CompletenessSettings | None = None,
        *,
        counted: bool = False,
    ) -> None:
        self._store = store
        self._clock = clock
        self._quiet_time_s = quiet_time_s
        self._on_complete = on_complete
        self._completeness = completeness or CompletenessSettings()
        self._counted = counted
        self._lock = threading.Lock()
        self._open: dict[str, set[str]] = {}
        self._receptions = {uid: self._taken_up(uid) for uid in store.receiving_studies()}

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        """Index an instance that is durable on disk."""
        uid = instance.study_instance_uid
        with self._lock:
            self._open.setdefault(association, set()).add(uid)
        outcome = self._store.add_instance(instance)
        if outcome is Intake.STORED:
            self.reopened(uid)
        elif outcome is not Intake.DUPLICATE:
            log.warning("instance quarantined", why=outcome.value, study_instance_uid=uid)
        return outcome

    def reopened(self, study_instance_uid: str) -> None:
        """The store has a study as being received: by a new instance, or since one was lost."""
        now = self._clock.monotonic()
        with self._lock:
            known = self._receptions.get(study_instance_uid)
            since = known.since if known else now
            self._receptions[study_instance_uid] = Reception(since, now)

    def look_again(self, study_instance_uid: str) -> None:
        """If the store has a study as waiting, take it up, unless it is under way here anyway."""
        study = self._store.study(study_instance_uid)
        if study is None or study.state not in {StudyState.RECEIVING, StudyState.COUNTING}:
            return
        reception = self._taken_up(study_instance_uid)
        with self._lock:
            self._receptions.setdefault(study_instance_uid, reception)

    def association_released(self, association: str) -> None:
        """An association ended, by release, abort or loss."""
        with self._lock:
            self._open.pop(association, None)

    def complete_quiet_studies(self) -> int:
        """Queue an analysis of every quiet study, or have it counted; how many there were."""
        quiet, overdue = self._quiet_and_overdue()
        for uid, reception in quiet.items():
            with going_on(uid):
                if self._counted:
                    self._count(uid, reception)
                else:
                    self._complete(uid, reception, None)
        for uid, reception in overdue.items():
            with going_on(uid):
                log.warning("study never quiet", study_instance_uid=uid)
                self._store.quiet_study(uid)
                self._complete(uid, reception, Completeness.UNCONFIRMED)
        return len(quiet) + len(overdue)

    def counting(self) -> Mapping[str, Reception]:
        """The studies of which archives are to be asked now, by Study Instance UID.

        Not those of which an association brings something just now, if only what is known.
        """
        with self._lock:
            busy = self._busy()
            return {uid: r for uid, r in self._receptions.items() if r.counting and uid not in busy}

    def complete_counted(
        self, study_instance_uid: str, reception: Reception, how: Completeness
    ) -> None:
        """Queue an analysis of a study that was counted, unless more of it came meanwhile.

        Args:
            reception: as ``counting`` gave it when it was decided.
            how: it is known to be whole.
        """
        if self.counting().get(study_instance_uid) == reception:
            self._complete(study_instance_uid, reception, how)

    def _busy(self) -> set[str]:
        """Studies of which an open association has brought something."""
        return set().union(*self._open.values())

    def _quiet_and_overdue(self) -> tuple[Mapping[str, Reception], Mapping[str, Reception]]:
        """Of those that are not being counted: the quiet ones, and those that never will be."""
        now = self._clock.monotonic()
        quiet, overdue = {}, {}
        with self._lock:
            busy = self._busy()
            for uid, reception in self._receptions.items():
                if uid not in busy and reception.counting:
                    continue
                if uid not in busy and now - reception.last_seen >= self._quiet_time_s:
                    quiet[uid] = reception
                elif now - reception.since >= self._completeness.limit_s:
                    overdue[uid] = reception
        return quiet, overdue

    def _taken_up(self, uid: str) -> Reception:
        """A study that was being received when the process ended starts its quiet time anew.

        How long it has waited only the wall clock tells, which may have been set since. Whatever
        it says, there is time left to ask archives twice, and no more than the whole limit.
        """
        now = self._clock.monotonic()
        study = self._store.study(uid)
        waited_s = (self._clock.now() - study.receiving_since).total_seconds() if study else 0.0
        settings = self._completeness
        longest = settings.limit_s - self._quiet_time_s - 3 * settings.ask_every_s
        return Reception(since=now - max(0.0, min(waited_s, longest)), last_seen=now)

    def _count(self, uid: str, reception: Reception) -> None:
        self._store.quiet_study(uid)
        with self._lock:
            if self._receptions.get(uid) == reception:
                self._receptions[uid] = replace(reception, counting=True)

    def _complete(self, uid: str, reception: Reception, how: Completeness | None) -> None:
        analysis_id = self._store.complete_study(uid, Priority.ROUTINE, how)
        with self._lock:
            if self._receptions.get(uid) == reception:
                del self._receptions[uid]
        if analysis_id is not None:
            log.info(
                "study complete",
                study_instance_uid=uid,
                analysis_id=analysis_id,
                completeness=how or Completeness.BY_GEOMETRY,
            )
            self._on_complete()
