"""No study left behind: what archives hold is compared with receipts, results and deliveries.

A study of an archive is whole here when its images came (a PACS may route only some of its series:
that is no lack), its latest revision has ended, and every document of it has arrived. What lacks
is fetched or sent again, one study at a time; the rest of its life is the everyday one. The report
names what lacked when it was compared, so the next comparison shows whether that was mended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta

import structlog

from phoi_edge_node.body_region import may_show_chest
from phoi_edge_node.completeness import Standing, compare
from phoi_edge_node.errors import IllegalTransition, SourceUnavailable
from phoi_edge_node.ports import ArchivedSeries, ArchivedStudy, Clock, DocumentKind, ImageSource
from phoi_edge_node.reconciled import (
    NIGHTLY,
    Lack,
    LackingStudy,
    Mending,
    Reconciliation,
    ReconciliationReport,
)
from phoi_edge_node.settings import ReconciliationSettings
from phoi_edge_node.store import Delivery, StoredStudy, StudyStore
from phoi_edge_node.study import AnalysisState, DeliveryState, StudyState

log = structlog.get_logger(__name__)

WHO = "reconciliation"  # in the audit
MOST_FETCHES = 200  # studies in one comparison: more would hold up what comes by itself
MOST_SILENCES = 3  # studies in a row about which an archive gives no answer: it is away
AGAIN_AFTER = timedelta(hours=1)  # where an archive could not be asked
_SINCE = "reconciliation_since"

_KEPT_BY_ARCHIVES = frozenset(
    {
        DocumentKind.SEGMENTATION,
        DocumentKind.STRUCTURED_REPORT,
        DocumentKind.SECONDARY_CAPTURE,
        DocumentKind.KEY_OBJECTS,
        DocumentKind.REJECTION_NOTE,
    }
)
_NOT_ENDED = frozenset({AnalysisState.QUEUED, AnalysisState.RUNNING})


class Reconciler:
    """Compares, and mends what can be mended.

    Args:
        sources: the archives to ask.
        stopping: no further study is begun once it says so.
    """

    def __init__(
        self,
        store: StudyStore,
        sources: Sequence[ImageSource],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._sources = tuple(sources)
        self._stopping = stopping

    def run(self, first: date, last: date, *, mend: bool = True) -> ReconciliationReport:
        """Compare all chest CTs whose Study Date lies between two days, both included.

        Args:
            mend: False only looks.
        """
        return _Comparison(self._store, self._sources, self._stopping, mend=mend).run(first, last)


class _Comparison:
    """One run of a reconciler: what it has found so far."""

    def __init__(
        self,
        store: StudyStore,
        sources: Sequence[ImageSource],
        stopping: Callable[[], bool],
        *,
        mend: bool,
    ) -> None:
        self._store = store
        self._sources = sources
        self._stopping = stopping
        self._mend = mend
        self._fetches = 0
        self._compared: dict[str, LackingStudy | None] = {}
        self._passed_over: set[str] = set()
        self._troubles: list[str] = []

    def run(self, first: date, last: date) -> ReconciliationReport:
        for source in self._sources:
            try:
                self._compare_with(source, first, last)
            except SourceUnavailable as error:
                self._troubles.append(str(error))
        if self._stopping():
            self._troubles.append("the node was stopped before the end")
        return ReconciliationReport(
            compared=len(self._compared),
            passed_over=len(self._passed_over - set(self._compared)),
            lacking=tuple(lacking for lacking in self._compared.values() if lacking is not None),
            trouble="; ".join(self._troubles),
        )

    def _compare_with(self, source: ImageSource, first: date, last: date) -> None:
        silences = 0
        for archived in source.studies(first, last):
            if self._stopping():
                return
            uid = archived.study_instance_uid
            named = self._compared.get(uid)
            if named is not None and named.lack is not Lack.NOT_COMPARED:
                continue  # another archive would only name it again
            try:
                self._compare(source, archived)
                silences = 0
            except SourceUnavailable as error:
                log.warning("not compared", study_instance_uid=uid, why=str(error))
                self._compared[uid] = LackingStudy(uid, Lack.NOT_COMPARED)
                silences += 1
                if silences == MOST_SILENCES:
                    raise

    def _compare(self, source: ImageSource, archived: ArchivedStudy) -> None:
        uid = archived.study_instance_uid
        study = self._store.study(uid)
        series = [s for s in source.series(uid) if s.modality == "CT"]
        if study is None and not _may_show_chest(archived, series):
            self._passed_over.add(uid)
            return
        lacking = self._lacking(source, uid, study, series)
        # What one archive gave no answer about stays named, if another has nothing to add.
        self._compared[uid] = lacking or self._compared.get(uid)

    def _lacking(
        self,
        source: ImageSource,
        uid: str,
        study: StoredStudy | None,
        series: Sequence[ArchivedSeries],
    ) -> LackingStudy | None:
        if study is not None and study.state in {StudyState.RECEIVING, StudyState.COUNTING}:
            return LackingStudy(uid, Lack.NOT_ANALYSED)
        missing = {} if _is_expired(study) else self._missing(source, uid, series)
        if missing:
            lack = Lack.NOT_RECEIVED if study is None else Lack.IMAGES_MISSING
            number = sum(len(images) for images in missing.values())
            return LackingStudy(uid, lack, self._fetch(source, uid, missing), number)
        if study is None:
            return None  # CT series without images: there is nothing to receive
        analysis = self._store.latest_analyses([uid]).get(uid)
        if analysis is None or analysis.state in _NOT_ENDED:
            return LackingStudy(uid, Lack.NOT_ANALYSED)
        return self._undelivered(uid) or self._vanished(source, uid)

    def _missing(
        self, source: ImageSource, uid: str, series: Sequence[ArchivedSeries]
    ) -> Mapping[str, frozenset[str]]:
        """SOP Instance UIDs that are not here, by series."""
        received = self._received(uid)
        missing = {}
        for one in series:
            here = received.get(one.series_instance_uid, frozenset())
            if received and not here and not self._wants_more(uid):
                continue  # the PACS may route only some series
            if here and one.instances is not None and one.instances <= len(here):
                continue
            listed = source.instances(uid, one.series_instance_uid)
            images = listed.sop_instance_uids
            answer = compare(here, len(images), listed)
            if answer.standing is Standing.MISSING or (images and not here):
                missing[one.series_instance_uid] = images - here
        return missing

    def _received(self, uid: str) -> Mapping[str, frozenset[str]]:
        series: dict[str, set[str]] = defaultdict(set)
        for instance in self._store.instances(uid):
            series[instance.series_instance_uid].add(instance.sop_instance_uid)
        return {series_uid: frozenset(uids) for series_uid, uids in series.items()}

    def _wants_more(self, uid: str) -> bool:
        """What came could not be analysed: another series of the archive perhaps can."""
        analysis = self._store.latest_analyses([uid]).get(uid)
        return analysis is not None and analysis.state is AnalysisState.NOT_ANALYSABLE

    def _fetch(
        self, source: ImageSource, uid: str, missing: Mapping[str, frozenset[str]]
    ) -> Mending:
        if not self._mend:
            return Mending.NONE
        if not source.can_fetch or self._fetches >= MOST_FETCHES:
            return Mending.NOT_FETCHED
        self._fetches += 1
        try:
            for series_uid, images in missing.items():
                source.fetch(uid, series_uid, images)
        except SourceUnavailable as error:
            log.warning("not fetched", study_instance_uid=uid, why=str(error), archive=source.name)
            return Mending.NOT_FETCHED
        return Mending.FETCHED

    def _undelivered(self, uid: str) -> LackingStudy | None:
        states = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.DEAD)
        undelivered = self._store.deliveries(uid, states)
        if not undelivered:
            return None
        mending = Mending.NONE
        if self._mend:
            dead = [d.id for d in undelivered if d.state is DeliveryState.DEAD]
            resent = [self._resend(delivery_id) for delivery_id in dead]
            mending = Mending.RESENT if any(resent) else Mending.NOT_RESENT
        return LackingStudy(uid, Lack.NOT_DELIVERED, mending, len(undelivered))

    def _vanished(self, source: ImageSource, uid: str) -> LackingStudy | None:
        """What this archive said it had taken, and does not hold."""
        told = standing(
            delivery
            for delivery in self._store.deliveries(uid, (DeliveryState.DELIVERED,))
            if delivery.destination == source.name and delivery.kind in _KEPT_BY_ARCHIVES
        )
        if not told:
            return None
        held = source.documents(uid)
        vanished = [delivery.id for delivery in told if delivery.identity not in held]
        if not vanished:
            return None
        mending = Mending.NONE
        if self._mend:
            resent = [self._resend(delivery_id) for delivery_id in vanished]
            mending = Mending.RESENT if any(resent) else Mending.NOT_RESENT
        return LackingStudy(uid, Lack.NOT_DELIVERED, mending, len(vanished))

    def _resend(self, delivery_id: int) -> bool:
        """Once in each comparison: whoever refused it may have been set right since."""
        try:
            self._store.resend(delivery_id, WHO)
        except IllegalTransition:
            return False  # a later document of its kind exists
        return True


def _may_show_chest(archived: ArchivedStudy, series: Sequence[ArchivedSeries]) -> bool:
    texts = [f"{one.description} {one.body_part}" for one in series]
    return may_show_chest(archived.description, texts)


def standing(deliveries: Iterable[Delivery]) -> Sequence[Delivery]:
    """Without those that later documents replaced or rejected: an archive may drop or hide them."""
    told = list(deliveries)
    rejected = [n for n, d in enumerate(told) if d.kind is DocumentKind.REJECTION_NOTE]
    told = told[rejected[-1] :] if rejected else told
    latest = {d.kind: (d.revision, d.status) for d in told}  # oldest first: the last one stays
    return [d for d in told if (d.revision, d.status) == latest[d.kind]]


def _is_expired(study: StoredStudy | None) -> bool:
    return study is not None and study.state is StudyState.EXPIRED


class ReconciliationDesk:
    """Runs what was asked for, and asks for one itself every night.

    A night that the node slept through is made up for at its next start.
    """

    def __init__(
        self,
        store: StudyStore,
        reconciler: Reconciler,
        settings: ReconciliationSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._settings = settings
        self._clock = clock

    def run_next(self) -> bool:
        """Run what was asked for longest ago; False if nothing was and it is not time yet."""
        asked = self._store.next_reconciliation()
        if asked is None and self._is_time():
            today = self._clock.now().astimezone().date()
            first = today - timedelta(days=self._settings.days)
            self._store.ask_reconciliation(first, today, NIGHTLY)
            asked = self._store.next_reconciliation()
        if asked is None:
            return False
        self._run(asked)
        return True

    def _run(self, asked: Reconciliation) -> None:
        try:
            report = self._reconciler.run(asked.first, asked.last)
        except Exception as error:  # ours or an archive's: it must not come back for ever
            log.exception("a reconciliation broke off", asked_by=asked.asked_by)
            report = ReconciliationReport(0, 0, (), trouble=type(error).__name__)
        self._store.end_reconciliation(asked.id, report)
        log.info(
            "reconciled",
            asked_by=asked.asked_by,
            compared=report.compared,
            lacking=len(report.lacking),
            trouble=report.trouble,
        )

    def _is_time(self) -> bool:
        now = self._clock.now()
        due = last_due(now.astimezone(), self._settings.at)
        last = self._last_night()
        if last is None:
            return self._since() < due
        if last.report is not None and last.report.trouble and last.ended_at is not None:
            return now - last.ended_at >= AGAIN_AFTER
        return last.asked_at < due

    def _last_night(self) -> Reconciliation | None:
        nights = [r for r in self._store.reconciliations() if r.asked_by == NIGHTLY]
        return nights[0] if nights else None

    def _since(self) -> datetime:
        """When this node began to reconcile: nights before that were not missed."""
        text = self._store.fact(_SINCE)
        if text is None:
            text = self._clock.now().isoformat()
            self._store.put_fact(_SINCE, text)
        return datetime.fromisoformat(text)


def last_due(now: datetime, at: str) -> datetime:
    """The latest moment at or before ``now``, in its time zone, at which it was ``at`` (HH:MM)."""
    today = datetime.combine(now.date(), time.fromisoformat(at), tzinfo=now.tzinfo)
    return today if today <= now else today - timedelta(days=1)


def report_lines(report: ReconciliationReport) -> Iterator[str]:
    """The report for a terminal: zero, or names."""
    yield f"{report.compared} chest CTs compared, {report.passed_over} CTs of other regions"
    for study in report.lacking:
        number = f" ({study.number})" if study.number else ""
        yield f"{study.study_instance_uid}: {study.lack}{number}: {study.mending}"
    if report.trouble:
        yield f"not all could be asked: {report.trouble}"
    if report.nothing_left_behind:
        yield "0 studies left behind"
