"""The service behind the review page: ``desk.Desk`` on the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from phoi_models.errors import NotAnalysable
from phoi_models.geometry import Triple
from phoi_models.volume import Volume

from phoi_edge_node.accounts import Account, password_matches
from phoi_edge_node.commitment import CommitmentState
from phoi_edge_node.desk import (
    DONE,
    AuditEntry,
    CommitmentView,
    DamagedImage,
    DeadLetters,
    DeliveryView,
    Health,
    Kpis,
    LinkView,
    OverdueView,
    Phase,
    ReceivingView,
    StateView,
    StudyView,
    Switch,
    SwitchKind,
    WorklistRow,
    in_worklist_order,
    phase_of,
)
from phoi_edge_node.errors import Conflict, IllegalTransition, ReviewConflict, UnknownStudy
from phoi_edge_node.links import Links
from phoi_edge_node.policies import LIVES, Life
from phoi_edge_node.ports import (
    Clock,
    ReceivedInstance,
    ReportedCase,
    ReportStatus,
    SeriesChoice,
    SeriesReader,
    UidSource,
)
from phoi_edge_node.recall import StoredRecallBook
from phoi_edge_node.recalled import RecallBook
from phoi_edge_node.reconciled import Reconciliation
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Outcome,
    Priority,
    SignedReview,
    TriageResult,
    Verdict,
)
from phoi_edge_node.statistics import make_kpis
from phoi_edge_node.store import (
    Delivery,
    InState,
    StoredAnalysis,
    StoredReview,
    StoredStudy,
    StudyStore,
)
from phoi_edge_node.study import AnalysisState, DeliveryState, StudyState
from phoi_edge_node.watchdog import Watchdog
from phoi_edge_node.workflow import EncodingFailed, Outbox, told_before, was_signed_before

_ANALYSED = frozenset({Outcome.POSITIVE, Outcome.NEGATIVE, Outcome.LIMITED})
_VOLUMES_KEPT = 3
_RECONCILIATIONS_SHOWN = 3
_OVERDUE_SHOWN = 20  # of each kind
LATE_AFTER_TRIES = 3


class _NotThose(Exception):
    """The voxels that were analysed cannot be had."""

    def __init__(self, conflict: Conflict) -> None:
        super().__init__(conflict.value)
        self.conflict = conflict


class ReviewDesk:
    """Implements ``desk.Desk``."""

    def __init__(
        self,
        store: StudyStore,
        reader: SeriesReader,
        outbox: Outbox,
        links: Links,
        clock: Clock,
        uids: UidSource,
        model_names: Sequence[str],
        destinations: Sequence[str],
        watchdog: Watchdog,
        champion_refused: Callable[[], str] = str,
        receiving: Callable[[], ReceivingView] = ReceivingView,
        look_after: Callable[[str], bool] = lambda _: False,
        commitment_refused: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._store = store
        self._reader = reader
        self._outbox = outbox
        self._links = links
        self._clock = clock
        self._uids = uids
        self._model_names = model_names
        self._destinations = destinations
        self._watchdog = watchdog
        self._champion_refused = champion_refused
        self._look_after = look_after
        self._commitment_refused = commitment_refused
        self._receiving = receiving
        self._volumes: OrderedDict[str, Volume] = OrderedDict()
        # Per analysis: with how many images its volume was refused, and why.
        self._refused: dict[str, tuple[int, Conflict]] = {}
        self._volume_lock = threading.Lock()

    # --- looking -----------------------------------------------------------------------------

    def worklist(self, limit: int) -> tuple[WorklistRow, ...]:
        """At most ``limit`` studies, most urgent first."""
        studies = self._store.studies(limit)
        analyses = self._store.latest_analyses([s.header.study_instance_uid for s in studies])
        reviews = self._store.reviews([a.id for a in analyses.values()])
        shown = [s.header.study_instance_uid for s in studies]
        problems = self._store.delivery_problems(shown, LATE_AFTER_TRIES)
        queue = self._queue(analyses.values())
        now = self._clock.now()
        rows = []
        for study in studies:
            analysis = analyses.get(study.header.study_instance_uid)
            review = reviews.get(analysis.id) if analysis else None
            row = _row(study, analysis, review, problems, queue, now)
            rows.append(replace(row, ordered=self._ordered(row.phase, study, analysis)))
        return in_worklist_order(rows)

    def _ordered(
        self, phase: Phase, study: StoredStudy, analysis: StoredAnalysis | None
    ) -> Priority | None:
        if phase in {Phase.RECEIVING, Phase.COUNTING}:  # a few at any time
            order = self._store.order_of(study.header.study_instance_uid)
            return order.priority if order else None
        if analysis is None or phase is Phase.READY or phase in DONE:
            return None
        return analysis.priority  # the order's, since it was queued

    def _queue(self, analyses: Iterable[StoredAnalysis]) -> Mapping[str, int]:
        """The place of each queued analysis, by id; empty where nobody asks for one."""
        if all(analysis.state is not AnalysisState.QUEUED for analysis in analyses):
            return {}
        return {id_: place for place, id_ in enumerate(self._store.queued_analyses())}

    def study(self, study_instance_uid: str) -> StudyView:
        """One study."""
        study = self._store.study(study_instance_uid)
        if study is None:
            raise UnknownStudy("no study of this UID was received")
        analysis = self._store.latest_analyses([study_instance_uid]).get(study_instance_uid)
        review = self._store.reviews([analysis.id]).get(analysis.id) if analysis else None
        deliveries = self._store.deliveries(study_instance_uid)
        result = _standing(analysis)
        signed = review.signed if review else None
        return StudyView(
            row=_row(
                study,
                analysis,
                review,
                _problems_by_study(deliveries),
                self._queue([analysis] if analysis else []),
                self._clock.now(),
            ),
            header=study.header,
            result=result,
            dispositions=review.current if review else {},
            history=review.history if review else (),
            review=review.state if review else None,
            signed_by=signed.reviewer_name if signed else "",
            signed_at=signed.signed_at if signed else None,
            deliveries=tuple(_view(delivery) for delivery in deliveries),
            passed_over=result.passed_over if result else {},
            order=self._store.order_of(study_instance_uid),
            images_removed_at=study.state_since if study.state is StudyState.EXPIRED else None,
            damages=tuple(
                DamagedImage(d.sop_instance_uid, d.found_at, d.back)
                for d in self._store.damages(study_instance_uid)
            ),
            acknowledged_by=review.acknowledged_by if review else "",
            acknowledged_at=review.state_since if review and review.acknowledged_by else None,
        )

    def volume(self, study_instance_uid: str, revision: int) -> Volume:
        """The volume that this revision analysed."""
        analysis = self._latest(study_instance_uid)
        result = analysis.result
        if analysis.revision != revision or result is None or not result.identity.input_digest:
            raise ReviewConflict(Conflict.NO_IMAGES)
        try:
            return self._kept_volume(analysis.id, result)
        except _NotThose as refusal:
            conflict = self._why(result, refusal)
            if conflict is Conflict.IMAGES_DAMAGED:
                self._forget_refusal(analysis.id)  # they are asked for again
            raise ReviewConflict(conflict) from None

    def _kept_volume(self, analysis_id: str, result: TriageResult) -> Volume:
        """Read once, also where it is refused, however many slices a viewer asks for at once.

        Raises:
            _NotThose: as ``_analysed``, at the first time.
            ReviewConflict: it was refused before, and no image has come or gone since.
        """
        with self._volume_lock:
            if analysis_id not in self._volumes:
                instances = self._store.instances(result.identity.study_instance_uid)
                known = self._refused.get(analysis_id)
                if known is not None and known[0] == len(instances):
                    raise ReviewConflict(known[1])
                try:
                    _, volume = self._analysed(instances, result)
                except _NotThose as refusal:
                    self._refused[analysis_id] = (len(instances), refusal.conflict)
                    raise
                self._volumes[analysis_id] = volume
                while len(self._volumes) > _VOLUMES_KEPT:
                    self._volumes.popitem(last=False)
            self._volumes.move_to_end(analysis_id)
            return self._volumes[analysis_id]

    def _forget_refusal(self, analysis_id: str) -> None:
        with self._volume_lock:
            self._refused.pop(analysis_id, None)

    def _analysed(
        self, instances: Sequence[ReceivedInstance], result: TriageResult
    ) -> tuple[SeriesChoice, Volume]:
        """The very series and voxels that a result is about.

        Raises:
            _NotThose: late images have changed the choice, or files are gone.
        """
        try:
            choice = self._reader.choose(instances)
            volume = self._reader.read(choice)
        except NotAnalysable:
            raise _NotThose(Conflict.IMAGES_GONE) from None
        if volume.digest() != result.identity.input_digest:
            raise _NotThose(Conflict.IMAGES_CHANGED)
        return choice, volume

    def _why(self, result: TriageResult, refusal: _NotThose) -> Conflict:
        """Why the analysed voxels cannot be had: the disk may be to blame. Reads all of them."""
        damaged = self._look_after(result.identity.study_instance_uid)
        return Conflict.IMAGES_DAMAGED if damaged else refusal.conflict

    # --- judging -----------------------------------------------------------------------------

    def decide(
        self,
        study_instance_uid: str,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: Account,
        reason: str,
        correction: Correction,
    ) -> None:
        """Judge one nodule of the latest revision."""
        analysis = self._latest(study_instance_uid)
        standing = self._store.review(analysis.id).current if analysis.result else {}
        known = {n.tracking_uid for n in analysis.result.nodules} if analysis.result else set()
        if tracking_uid not in known | set(standing):
            raise ReviewConflict(Conflict.NO_SUCH_NODULE)
        self._decide(analysis, tracking_uid, verdict, reviewer, reason, correction)

    def mark_missed(
        self,
        study_instance_uid: str,
        revision: int,
        center_lps_mm: Triple,
        mean_diameter_mm: float | None,
        reviewer: Account,
        reason: str,
    ) -> str:
        """Add a nodule that the model did not find; its new Tracking UID."""
        analysis = self._latest(study_instance_uid)
        if analysis.revision != revision:
            raise ReviewConflict(Conflict.NEWER_RESULT)
        tracking_uid = self._uids.dicom_uid()
        correction = Correction(center_lps_mm, mean_diameter_mm)
        self._decide(analysis, tracking_uid, Verdict.MISSED, reviewer, reason, correction)
        return tracking_uid

    def _decide(
        self,
        analysis: StoredAnalysis,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: Account,
        reason: str,
        correction: Correction,
    ) -> None:
        if analysis.result is None or analysis.result.outcome not in _ANALYSED:
            raise ReviewConflict(Conflict.NO_RESULT)
        try:
            self._store.decide(
                analysis.id, tracking_uid, verdict, reviewer.username, reason, correction
            )
        except IllegalTransition:
            raise ReviewConflict(Conflict.CLOSED) from None

    def undo(self, study_instance_uid: str, reviewer: Account) -> str:
        """Take back the latest judgement that stands; the Tracking UID it was about."""
        analysis = self._latest(study_instance_uid)
        try:
            undone = self._store.undo(analysis.id, reviewer.username)
        except IllegalTransition:
            raise ReviewConflict(Conflict.CLOSED) from None
        if undone is None:
            raise ReviewConflict(Conflict.NOTHING_TO_UNDO)
        return undone.tracking_uid

    def sign(
        self, study_instance_uid: str, revision: int, judgements_seen: int, reviewer: Account
    ) -> None:
        """Sign the review: final documents go out, and it becomes read only."""
        view = self.study(study_instance_uid)
        analysis = self._latest(study_instance_uid)
        if analysis.revision != revision or len(view.history) != judgements_seen:
            raise ReviewConflict(Conflict.CHANGED)
        if not view.can_sign:
            raise ReviewConflict(Conflict.UNDECIDED)
        signed = SignedReview(
            reviewer=reviewer.username,
            reviewer_name=reviewer.display_name,
            signed_at=self._clock.now(),
            dispositions=tuple(view.dispositions.values()),
        )
        try:
            outgoing = self._outbox.encode(self._signed_case(analysis, view, signed))
        except EncodingFailed:
            raise ReviewConflict(Conflict.NOT_WRITTEN) from None
        try:
            self._store.sign(analysis.id, signed, outgoing, view.header.patient)
        except IllegalTransition:
            raise ReviewConflict(Conflict.CLOSED_BY_COLLEAGUE) from None

    def _signed_case(
        self, analysis: StoredAnalysis, view: StudyView, signed: SignedReview
    ) -> ReportedCase:
        uid = analysis.study_instance_uid
        if view.result is None:
            raise AssertionError("only a result can be signed")
        instances = self._store.instances(uid)
        try:
            choice, volume = self._analysed(instances, view.result)
        except _NotThose as refusal:
            raise ReviewConflict(self._why(view.result, refusal)) from None
        corrects = was_signed_before(self._store, uid, analysis.id)
        return ReportedCase(
            study=view.header,
            result=view.result,
            status=ReportStatus.CORRECTED if corrects else ReportStatus.FINAL,
            instances=tuple(instances),
            choice=choice,
            volume=volume,
            review=signed,
            predecessors=self._store.identities(uid),
            told_before=told_before(self._store, uid, analysis.revision),
            order=view.order,
        )

    def _latest(self, study_instance_uid: str) -> StoredAnalysis:
        analysis = self._store.latest_analyses([study_instance_uid]).get(study_instance_uid)
        if analysis is None:
            if self._store.study(study_instance_uid) is None:
                raise UnknownStudy("no study of this UID was received")
            raise ReviewConflict(Conflict.STILL_RECEIVED)
        return analysis

    def acknowledge(self, study_instance_uid: str, revision: int, reviewer: Account) -> None:
        """Say that it was seen that Phoi could not read this study."""
        analysis = self._latest(study_instance_uid)
        if analysis.revision != revision or analysis.result is None:
            raise ReviewConflict(Conflict.CHANGED)
        if analysis.result.outcome in _ANALYSED:
            raise ReviewConflict(Conflict.TO_BE_SIGNED)
        try:
            self._store.acknowledge(analysis.id, reviewer.username)
        except IllegalTransition:
            raise ReviewConflict(Conflict.CLOSED) from None

    # --- operating ---------------------------------------------------------------------------

    def health(self) -> Health:
        """How everything on its way is doing."""
        counted = self._store.counts().of_lives()
        overdue = {(limit.life, limit.state.value): n for limit, n in self._watchdog.numbers()}
        return Health(
            states=tuple(
                _state_view(life, state.value, counted.get((life, state.value)), overdue)
                for life, states in LIVES.items()
                for state in states
            ),
            overdue=tuple(
                OverdueView(
                    item.life,
                    alert.limit.state.value,
                    item.study_instance_uid or "",
                    item.since,
                    alert.limit.act,
                )
                for alert in self._watchdog.alerts
                for item in alert.oldest[:_OVERDUE_SHOWN]
            ),
            threads=self._watchdog.troubles(),
            champion_refused=self._champion_refused(),
            receiving=self._receiving(),
            commitments=_commitment_views(self._store.commitment_counts()),
            commitment_refused=self._commitment_refused(),
        )

    def resend(self, delivery_id: int, reviewer: Account) -> None:
        """Queue a delivered or dead delivery again, with the same bytes."""
        try:
            self._store.resend(delivery_id, reviewer.username)
        except (KeyError, IllegalTransition):
            raise ReviewConflict(Conflict.NOT_RESENT) from None

    def resend_dead(self, destination: str, reviewer: Account) -> int:
        """Queue all dead letters of a destination again."""
        resent = self._store.resend_dead(destination, reviewer.username)
        if not resent:
            raise ReviewConflict(Conflict.NOT_RESENT)
        return resent

    def dead_letters(self, limit: int) -> tuple[DeadLetters, ...]:
        """Of each lane that has any, of a destination that is no more, too."""
        return tuple(
            DeadLetters(
                name,
                counted.number,
                tuple(_view(d) for d in self._store.dead_letters(name, limit)),
            )
            for (name, state), counted in sorted(self._store.counts().deliveries.items())
            if state is DeliveryState.DEAD and counted.number
        )

    def links(self) -> tuple[LinkView, ...]:
        """Every destination and worker, from the latest checks."""
        return self._links.views(self._store.counts())

    def reconciliations(self) -> tuple[Reconciliation, ...]:
        """The latest comparisons with the archives, latest first."""
        return tuple(self._store.reconciliations(_RECONCILIATIONS_SHOWN))

    def switches(self) -> tuple[Switch, ...]:
        """Every switch there is."""
        pauses = {pause.target: pause for pause in self._store.pauses()}
        all_of_them = (
            Switch(SwitchKind.EVERYTHING),
            *(Switch(SwitchKind.MODEL, name) for name in self._models_to_switch(pauses)),
            *(Switch(SwitchKind.DESTINATION, name) for name in self._destinations),
        )
        return tuple(
            Switch(s.kind, s.name, pauses[s.target].username, pauses[s.target].at)
            if s.target in pauses
            else s
            for s in all_of_them
        )

    def _models_to_switch(self, paused: Collection[str]) -> tuple[str, ...]:
        """The site's models, and what a recall has stopped: a version, or an earlier model."""
        prefix = f"{SwitchKind.MODEL.value}:"
        stopped = sorted(t.removeprefix(prefix) for t in paused if t.startswith(prefix))
        return tuple(dict.fromkeys([*self._model_names, *stopped]))

    @property
    def recalls(self) -> RecallBook:
        """What was, and can be, recalled."""
        return StoredRecallBook(self._store)

    def confirm_recalled(self, study_instance_uid: str, reviewer: Account) -> None:
        """Let the signed report of a study stand although its model was recalled."""
        if not self._store.confirm_recalled(study_instance_uid, reviewer.username):
            raise ReviewConflict(Conflict.CHANGED)

    def pause(self, target: str, reviewer: Account) -> None:
        """Turn a switch off."""
        if not self._switch(target).paused:
            self._store.pause(target, reviewer.username)

    def resume(self, target: str, reviewer: Account) -> None:
        """Turn a switch on."""
        if self._switch(target).paused:
            self._store.resume(target, reviewer.username)

    def _switch(self, target: str) -> Switch:
        for switch in self.switches():
            if switch.target == target:
                return switch
        raise ReviewConflict(Conflict.NO_SWITCH)

    def kpis(self) -> Kpis:
        """How Phoi is used here."""
        now = self._clock.now()
        kpis = make_kpis(self._store.counts(), self._store.use(), now)
        waiting = next((a for a in self._watchdog.alerts if a.limit.life is Life.REVIEW), None)
        signed = kpis.last_signed_at
        if waiting is None or (signed is not None and now - signed <= waiting.limit.longest):
            return kpis
        return replace(kpis, nobody_signs=waiting.number)

    def unready(self) -> tuple[str, ...]:
        """Why this node cannot serve now; empty when it can."""
        try:
            self._store.fact("ready")
        except Exception as error:  # any failure of the database is the answer
            return (f"the database does not answer: {type(error).__name__}",)
        return self._watchdog.troubles() + self._receiving().troubles

    # --- people ------------------------------------------------------------------------------

    def log_access(
        self, username: str, action: str, study_instance_uid: str | None, detail: str
    ) -> None:
        """Append to the audit."""
        self._store.record_audit(username, action, study_instance_uid, detail)

    def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The latest entries, latest first."""
        return tuple(self._store.audit(limit))

    def authenticate(self, username: str, password: str) -> Account | None:
        """The account, if the password is its own."""
        stored = self._store.account(username)
        matches = password_matches(stored.password_hash if stored else None, password)
        return stored.account if stored and matches else None

    def account(self, username: str) -> Account | None:
        """The account, or None where it does not exist."""
        stored = self._store.account(username)
        return stored.account if stored else None

    def report_problem(self, text: str, reviewer: Account) -> str:
        """Store what a user reports; a short reference to quote."""
        return f"P{self._store.report_problem(reviewer.username, text):04d}"


def _row(
    study: StoredStudy,
    analysis: StoredAnalysis | None,
    review: StoredReview | None,
    problems: Mapping[str, int],
    queue: Mapping[str, int],
    now: datetime,
) -> WorklistRow:
    header = study.header
    result = _standing(analysis)
    nodules = result.nodules if result else ()
    phase = phase_of(
        study.state, analysis.state if analysis else None, review.state if review else None
    )
    waits = analysis if analysis and phase is Phase.QUEUED else None
    return WorklistRow(
        study_instance_uid=header.study_instance_uid,
        patient=header.patient,
        accession_number=header.accession_number,
        description=header.description,
        started_at=header.started_at,
        received_at=study.first_received_at,
        phase=phase,
        progress=analysis.fraction if analysis and phase is Phase.ANALYSING else None,
        outcome=result.outcome if result else None,
        priority=_priority(result) if result else None,
        nodule_count=len(nodules),
        worst=nodules[0].size_class if nodules else None,
        max_diameter_mm=max((n.finding.mean_diameter_mm for n in nodules), default=None),
        delivery_problems=problems.get(header.study_instance_uid, 0),
        revision=analysis.revision if analysis and result else 0,
        phase_since=_phase_since(phase, study, analysis, review),
        ahead=queue.get(waits.id) if waits else None,
        retry_at=waits.due_at if waits and waits.due_at > now else None,
        trouble=waits.error if waits else "",
        images_removed=study.state is StudyState.EXPIRED,
        unconfirmed=result is not None and result.completeness is Completeness.UNCONFIRMED,
        changed_after_signing=study.changed_after_signing,
        late_images=study.late_images,
        recalled=study.recalled,
    )


def _standing(analysis: StoredAnalysis | None) -> TriageResult | None:
    """The result to show: none of it where it was recalled."""
    if analysis is None or analysis.state is AnalysisState.WITHDRAWN:
        return None
    return analysis.result


def _priority(result: TriageResult) -> Priority:
    """As the site's policy has it, where that tells one."""
    told = result.told_priority
    return told.priority if told and told.priority else result.suggested_priority


def _state_view(
    life: Life, state: str, counted: InState | None, overdue: Mapping[tuple[Life, str], int]
) -> StateView:
    return StateView(
        life,
        state,
        counted.number if counted else 0,
        counted.since if counted else None,
        overdue.get((life, state), 0),
    )


def _phase_since(
    phase: Phase,
    study: StoredStudy,
    analysis: StoredAnalysis | None,
    review: StoredReview | None,
) -> datetime | None:
    """What is tried again waits since it was first queued."""
    if phase is Phase.RECEIVING:
        return study.receiving_since
    if phase is Phase.COUNTING:
        return study.state_since
    if phase in DONE:
        return review.state_since if review else None
    if analysis is None:
        return None
    return analysis.created_at if phase is Phase.QUEUED else analysis.state_since


def _problems_by_study(deliveries: Sequence[Delivery]) -> dict[str, int]:
    problems: dict[str, int] = {}
    for delivery in deliveries:
        late = delivery.state is DeliveryState.PENDING and delivery.attempts >= LATE_AFTER_TRIES
        uid = delivery.study_instance_uid
        if uid is not None and (late or delivery.state is DeliveryState.DEAD):
            problems[uid] = problems.get(uid, 0) + 1
    return problems


def _view(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        delivery_id=delivery.id,
        study_instance_uid=delivery.study_instance_uid or "",
        kind=delivery.kind,
        destination=delivery.destination,
        state=delivery.state,
        attempts=delivery.attempts,
        last_error=delivery.last_error,
        identity=delivery.identity,
        updated_at=delivery.updated_at,
    )


def _commitment_views(
    counts: Mapping[tuple[str, CommitmentState], int],
) -> tuple[CommitmentView, ...]:
    def number(archive: str, *states: CommitmentState) -> int:
        return sum(counts.get((archive, state), 0) for state in states)

    return tuple(
        CommitmentView(
            archive,
            asked=number(archive, CommitmentState.ASKED),
            committed=number(archive, CommitmentState.COMMITTED),
            failed=number(archive, CommitmentState.FAILED, CommitmentState.SENT_AGAIN),
        )
        for archive in sorted({archive for archive, _ in counts})
    )
