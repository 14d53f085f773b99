"""Asks archives whether the studies that came are whole, and for the images that did not come.

Three steps, each for a loop of its own, so that an archive that is slow or dead holds up no study
that can be decided without it: ``settle`` never touches the network, ``ask_next`` asks about one
study, ``fetch_next`` fetches for one. What to do is decided in ``completeness.py``.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from phoi_edge_node.completeness import (
    Action,
    Answer,
    Ask,
    Complete,
    Fetch,
    Knowledge,
    SeriesAnswer,
    compare,
    decide,
    together,
)
from phoi_edge_node.courier import LinkReport
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.intake import Reception, StudyIntake, going_on
from phoi_edge_node.ports import Clock, Delivered, ImageSource, SendOutcome, Unreachable
from phoi_edge_node.settings import CompletenessSettings
from phoi_edge_node.store import StudyStore

log = structlog.get_logger(__name__)

_Kind = TypeVar("_Kind", Ask, Fetch, Complete)


@dataclass(frozen=True)
class _Case:
    """What was asked about a study since its latest instance came."""

    reception: Reception
    asked_at: float | None = None
    answers: tuple[Answer, ...] = ()
    fetches: int = 0


class StudyCounter:
    """Counts the studies that ``intake`` says are quiet.

    Args:
        sources: the archives to ask.
    """

    def __init__(
        self,
        store: StudyStore,
        sources: Sequence[ImageSource],
        intake: StudyIntake,
        clock: Clock,
        settings: CompletenessSettings,
    ) -> None:
        self._store = store
        self._sources = tuple(sources)
        self._intake = intake
        self._clock = clock
        self._settings = settings
        self._can_fetch = any(source.can_fetch for source in sources)
        self._lock = threading.Lock()
        self._cases: dict[str, _Case] = {}
        self._silent_until: dict[str, float] = {}
        self._heard: dict[str, LinkReport | None] = dict.fromkeys(s.name for s in sources)

    def heard(self) -> Mapping[str, LinkReport | None]:
        """What each archive last answered, by its name; None: it was not asked yet."""
        with self._lock:
            return dict(self._heard)

    def settle(self) -> int:
        """Complete every study that is counted, or has waited long enough; how many."""
        decided = list(self._to_do(Complete))
        for uid, case, action in decided:
            with going_on(uid):
                self._intake.complete_counted(uid, case.reception, action.how)
        return len(decided)

    def ask_next(self) -> bool:
        """Ask about the study that was asked about longest ago; False if none is due."""
        due = list(self._to_do(Ask))
        if not due:
            return False
        uid, case, _ = min(due, key=lambda one: one[1].asked_at or 0.0)
        self._update(uid, replace(case, asked_at=self._clock.monotonic()))
        answer = self._ask(uid)
        answers = (*case.answers, answer)[-2:] if answer else ()
        self._update(uid, replace(case, asked_at=self._clock.monotonic(), answers=answers))
        return True

    def fetch_next(self) -> bool:
        """Ask for the images that one study lacks; False if none lacks any."""
        for uid, case, action in self._to_do(Fetch):
            # Whatever comes of it, the archives are asked twice before the next try.
            self._update(uid, replace(case, answers=(), fetches=case.fetches + 1))
            for series_uid, missing in action.missing.items():
                self._fetch(uid, series_uid, missing)
            return True
        return False

    def _to_do(self, kind: type[_Kind]) -> Iterator[tuple[str, _Case, _Kind]]:
        """The studies with which this is to be done now."""
        now = self._clock.monotonic()
        for uid, case in self._refreshed().items():
            action = self._decide(case, now)
            if isinstance(action, kind):
                yield uid, case, action

    def _refreshed(self) -> Mapping[str, _Case]:
        """The studies that are counted now. A new image makes what was asked before worthless."""
        with self._lock:
            known = self._cases
            self._cases = {
                uid: known[uid]
                if uid in known and known[uid].reception == reception
                else _Case(reception)
                for uid, reception in self._intake.counting().items()
            }
            return dict(self._cases)

    def _update(self, uid: str, case: _Case) -> None:
        with self._lock:
            known = self._cases.get(uid)
            if known is not None and known.reception == case.reception:
                self._cases[uid] = case

    def _decide(self, case: _Case, now: float) -> Action:
        known = Knowledge(
            waited_s=now - case.reception.since,
            asked_ago_s=None if case.asked_at is None else now - case.asked_at,
            answers=case.answers,
            can_fetch=self._can_fetch,
            fetches=case.fetches,
        )
        return decide(known, self._settings)

    def _ask(self, uid: str) -> Answer | None:
        received = self._received(uid)
        answers = []
        for source in self._sources:
            if self._clock.monotonic() < self._silent_until.get(source.name, 0.0):
                continue  # it was silent a moment ago: every study would wait for it anew
            try:
                answers.append(_compared(source, uid, received))
                self._hear(source, Delivered())
            except SourceUnavailable as error:
                log.warning("archive gave no answer", archive=source.name, why=str(error))
                silent_until = self._clock.monotonic() + self._settings.ask_every_s
                self._silent_until[source.name] = silent_until
                self._hear(source, Unreachable(str(error)))
        return together(answers, silent=len(self._sources) - len(answers))

    def _hear(self, source: ImageSource, outcome: SendOutcome) -> None:
        with self._lock:
            self._heard[source.name] = LinkReport(outcome, self._clock.now())

    def _received(self, uid: str) -> Mapping[str, frozenset[str]]:
        series: dict[str, set[str]] = defaultdict(set)
        for instance in self._store.instances(uid):
            series[instance.series_instance_uid].add(instance.sop_instance_uid)
        for series_uid in self._store.expired_images(uid):  # were here once: they count
            series.setdefault(series_uid, set())
        return {series_uid: frozenset(uids) for series_uid, uids in series.items()}

    def _fetch(self, uid: str, series_uid: str, missing: frozenset[str]) -> None:
        """From the first archive that sends them; it is no trouble if none does."""
        names = {"study_instance_uid": uid, "series_instance_uid": series_uid}
        for source in self._sources:
            if not source.can_fetch:
                continue
            try:
                sent = source.fetch(uid, series_uid, missing)
            except SourceUnavailable as error:
                log.warning("not fetched", archive=source.name, why=str(error), **names)
                continue
            log.info(
                "missing images fetched",
                archive=source.name,
                missing=len(missing),
                sent=sent,
                **names,
            )
            return


def _compared(
    source: ImageSource, uid: str, received: Mapping[str, frozenset[str]]
) -> Mapping[str, SeriesAnswer]:
    """What one archive says of every series that we received anything of.

    Raises:
        SourceUnavailable: no usable answer.
    """
    told = {series.series_instance_uid: series for series in source.series(uid)}
    answers = {}
    for series_uid, here in received.items():
        series = told.get(series_uid)
        held = series.instances if series else 0
        listed = None
        if held is None or held > len(here):
            listed = source.instances(uid, series_uid)
            held = len(listed.sop_instance_uids) if held is None else held
        answers[series_uid] = compare(here, held, listed)
    return answers
