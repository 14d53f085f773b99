"""An in-memory desk with a few studies in every phase, for tests of the review page."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count

import numpy as np
from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.circuit import CircuitState
from phoi_edge_node.desk import (
    AuditEntry,
    CircuitView,
    CommitmentView,
    DamagedImage,
    DeadLetters,
    DeliveryView,
    Health,
    Judgement,
    Kpis,
    LinkKind,
    LinkState,
    LinkView,
    ModelKpis,
    OverdueView,
    Phase,
    ReceivingView,
    StateView,
    StudyView,
    Switch,
    SwitchKind,
    WorklistRow,
    in_worklist_order,
)
from phoi_edge_node.errors import Conflict, ReviewConflict, UnknownStudy
from phoi_edge_node.orders import ImagingOrder
from phoi_edge_node.policies import LIVES, Act, Life
from phoi_edge_node.ports import Clock, DocumentKind
from phoi_edge_node.recalled import (
    Again,
    Notice,
    Recall,
    RecallAction,
    RecallCriteria,
    RecalledResult,
    RecallRequest,
)
from phoi_edge_node.reconciled import (
    NIGHTLY,
    Lack,
    LackingStudy,
    Mending,
    Reconciliation,
    ReconciliationReport,
)
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Nodule,
    Outcome,
    Patient,
    Priority,
    ResultIdentity,
    StudyHeader,
    TriageResult,
    Verdict,
)
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Finding, LungCoverage, NoduleMask, Side
from phoi_models.geometry import Triple
from phoi_models.identity import ModelIdentity
from phoi_models.size_class import size_class
from phoi_models.volume import Volume

PASSWORD = "correct horse"
REVIEWER = Account("bs.lan", "BS. Nguyễn Thị Lan", Role.REVIEWER)
ADMIN = Account("admin", "Quản trị viên", Role.ADMIN)
MODEL = ModelIdentity("phoi-lung-nodule", "1.0.0", "ab" * 32)


@dataclass
class FakeStudy:
    """One study of the fake desk; tests may change it."""

    header: StudyHeader
    received_at: datetime
    phase: Phase
    progress: float | None = None
    result: TriageResult | None = None
    volume: Volume | None = None
    history: list[Judgement] = field(default_factory=list)
    signed_by: str = ""
    signed_at: datetime | None = None
    deliveries: tuple[DeliveryView, ...] = ()
    damages: tuple[DamagedImage, ...] = ()
    acknowledged_by: str = ""
    acknowledged_at: datetime | None = None
    ahead: int | None = None
    retry_at: datetime | None = None
    trouble: str = ""
    images_removed_at: datetime | None = None
    order: ImagingOrder | None = None
    changed_after_signing: bool = False
    late_images: bool = False
    recalled: bool = False

    @property
    def standing(self) -> dict[str, Disposition]:
        return {j.disposition.tracking_uid: j.disposition for j in self.history if not j.undone_by}

    @property
    def row(self) -> WorklistRow:
        nodules = self.result.nodules if self.result else ()
        return WorklistRow(
            study_instance_uid=self.header.study_instance_uid,
            patient=self.header.patient,
            accession_number=self.header.accession_number,
            description=self.header.description,
            started_at=self.header.started_at,
            received_at=self.received_at,
            phase=self._phase,
            progress=self.progress,
            outcome=self.result.outcome if self.result else None,
            priority=self.result.suggested_priority if self.result else None,
            nodule_count=len(nodules),
            worst=nodules[0].size_class if nodules else None,
            max_diameter_mm=max((n.finding.mean_diameter_mm for n in nodules), default=None),
            delivery_problems=sum(d.state is DeliveryState.DEAD for d in self.deliveries),
            revision=self.result.identity.revision if self.result else 0,
            phase_since=self.received_at,
            ahead=self.ahead,
            retry_at=self.retry_at,
            trouble=self.trouble,
            unconfirmed=bool(self.result and self.result.completeness is Completeness.UNCONFIRMED),
            changed_after_signing=self.changed_after_signing,
            late_images=self.late_images,
            recalled=self.recalled,
        )

    @property
    def _phase(self) -> Phase:
        if self.signed_at:
            return Phase.SIGNED
        return Phase.ACKNOWLEDGED if self.acknowledged_by else self.phase


class FakeRecallBook:
    """Two results of one version, one of them signed; one recall that is under way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[RecallRequest] = []

    def models(self) -> tuple[str, ...]:
        return (f"{MODEL.name}@{MODEL.version}",)

    def recallable(
        self, criteria: RecallCriteria, *, signed_too: bool = False, redo: bool = False
    ) -> Sequence[RecalledResult]:
        del redo
        left = RecallAction.WITHDRAW if signed_too else RecallAction.LEAVE_SIGNED
        one = RecalledResult(
            analysis_id="a1",
            study_instance_uid="1.2.840.99.1",
            revision=1,
            model=criteria.model,
            finished_at=self._clock.now(),
            outcome=Outcome.POSITIVE,
            analysis=AnalysisState.SUCCEEDED,
            review=ReviewState.OPEN,
            action=RecallAction.WITHDRAW,
            images_here=True,
            deliveries={"pacs": {DeliveryState.DELIVERED: 3}, "emr": {DeliveryState.PENDING: 1}},
        )
        uid = "1.2.840.99.2"
        return (one, replace(one, study_instance_uid=uid, review=ReviewState.SIGNED, action=left))

    def unknown_senders(self) -> int:
        return 4

    def ask(self, request: RecallRequest) -> int:
        self.asked.append(request)
        return len(self.asked)

    def recalls(self) -> Sequence[tuple[Recall, Mapping[str, Mapping[DeliveryState, int]]]]:
        return tuple(
            (
                Recall(
                    number,
                    request.criteria,
                    request.reason,
                    request.asked_by,
                    self._clock.now(),
                    request.signed_too,
                    request.replacement,
                    {RecallAction.WITHDRAW: 1, RecallAction.LEAVE_SIGNED: 1},
                    {Notice.WAITING: 1, Notice.NONE: 1},
                    {Again.WAITING: 2},
                    trouble="no worker offers it",
                ),
                {"pacs": {DeliveryState.PENDING: 3}},
            )
            for number, request in enumerate(self.asked, start=1)
        )


class FakeDesk:
    """Implements ``phoi_edge_node.desk.Desk`` in memory."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.studies: dict[str, FakeStudy] = {}
        self.entries: list[AuditEntry] = []
        self.paused: dict[str, Switch] = {}
        self.recall_book = FakeRecallBook(clock)
        self.reports: list[str] = []
        self.resent: list[int] = []
        self.not_ready: tuple[str, ...] = ()
        self.champion_refused = ""
        self.commitment_refused: tuple[str, ...] = ()
        self.receiving = ReceivingView()
        self.commitments: tuple[CommitmentView, ...] = ()
        self._missed = count(1)
        self._lock = threading.Lock()

    def worklist(self, limit: int) -> tuple[WorklistRow, ...]:
        return in_worklist_order(study.row for study in self.studies.values())[:limit]

    def study(self, study_instance_uid: str) -> StudyView:
        study = self._find(study_instance_uid)
        review = ReviewState.SIGNED if study.signed_at else ReviewState.OPEN
        review = ReviewState.ACKNOWLEDGED if study.acknowledged_by else review
        return StudyView(
            row=study.row,
            header=study.header,
            result=study.result,
            dispositions=study.standing,
            history=tuple(study.history),
            review=review if study.result else None,
            signed_by=study.signed_by,
            signed_at=study.signed_at,
            deliveries=study.deliveries,
            passed_over={"1.2.3.4.5": "scout: 2 slices"},
            order=study.order,
            damages=study.damages,
            acknowledged_by=study.acknowledged_by,
            acknowledged_at=study.acknowledged_at,
            images_removed_at=study.images_removed_at,
        )

    def volume(self, study_instance_uid: str, revision: int) -> Volume:
        study = self._find(study_instance_uid)
        if study.volume is None or study.row.revision != revision:
            raise ReviewConflict(Conflict.NO_IMAGES)
        return study.volume

    def decide(
        self,
        study_instance_uid: str,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: Account,
        reason: str,
        correction: Correction,
    ) -> None:
        study = self._open(study_instance_uid)
        known = {n.tracking_uid for n in self.study(study_instance_uid).nodules}
        if tracking_uid not in known | set(study.standing):
            raise ReviewConflict(Conflict.NO_SUCH_NODULE)
        self._judge(study, tracking_uid, verdict, reviewer, reason, correction)

    def mark_missed(
        self,
        study_instance_uid: str,
        revision: int,
        center_lps_mm: Triple,
        mean_diameter_mm: float | None,
        reviewer: Account,
        reason: str,
    ) -> str:
        study = self._open(study_instance_uid)
        if study.row.revision != revision:
            raise ReviewConflict(Conflict.NEWER_RESULT)
        tracking_uid = f"2.25.88{next(self._missed)}"
        correction = Correction(center_lps_mm, mean_diameter_mm)
        self._judge(study, tracking_uid, Verdict.MISSED, reviewer, reason, correction)
        return tracking_uid

    def undo(self, study_instance_uid: str, reviewer: Account) -> str:
        study = self._open(study_instance_uid)
        for at, judgement in reversed(list(enumerate(study.history))):
            if not judgement.undone_by:
                study.history[at] = replace(judgement, undone_by=reviewer.username)
                return judgement.disposition.tracking_uid
        raise ReviewConflict(Conflict.NOTHING_TO_UNDO)

    def sign(
        self, study_instance_uid: str, revision: int, judgements_seen: int, reviewer: Account
    ) -> None:
        with self._lock:
            study = self._open(study_instance_uid)
            if (study.row.revision, len(study.history)) != (revision, judgements_seen):
                raise ReviewConflict(Conflict.CHANGED)
            if not self.study(study_instance_uid).can_sign:
                raise ReviewConflict(Conflict.UNDECIDED)
            study.signed_by, study.signed_at = reviewer.display_name, self.clock.now()

    def acknowledge(self, study_instance_uid: str, revision: int, reviewer: Account) -> None:
        study = self._find(study_instance_uid)
        view = self.study(study_instance_uid)
        if study.row.revision != revision or study.result is None:
            raise ReviewConflict(Conflict.CHANGED)
        if not view.can_acknowledge and not study.acknowledged_by:
            raise ReviewConflict(Conflict.TO_BE_SIGNED)
        study.acknowledged_by = study.acknowledged_by or reviewer.username
        study.acknowledged_at = study.acknowledged_at or self.clock.now()

    def health(self) -> Health:
        now = self.clock.now()
        late = OverdueView(Life.ANALYSIS, "queued", "1.2.7", now - timedelta(hours=5), Act.TELL)
        states = tuple(
            StateView(life, state.value, 3, now - timedelta(hours=5), int(state.value == "queued"))
            for life, states in LIVES.items()
            for state in states
        )
        return Health(
            states,
            (late,),
            self.not_ready,
            self.champion_refused,
            self.receiving,
            self.commitments,
            self.commitment_refused,
        )

    def resend(self, delivery_id: int, reviewer: Account) -> None:
        del reviewer
        self.resent.append(delivery_id)

    def resend_dead(self, destination: str, reviewer: Account) -> int:
        del reviewer
        dead = [lane for lane in self.dead_letters(500) if lane.destination == destination]
        if not dead:
            raise ReviewConflict(Conflict.NOT_RESENT)
        self.resent += [d.delivery_id for d in dead[0].latest]
        return dead[0].number

    def dead_letters(self, limit: int) -> tuple[DeadLetters, ...]:
        lanes: dict[str, list[DeliveryView]] = {}
        for delivery in (d for study in self.studies.values() for d in study.deliveries):
            if delivery.state is DeliveryState.DEAD:
                lanes.setdefault(delivery.destination, []).append(delivery)
        return tuple(
            DeadLetters(name, len(dead), tuple(dead[:limit]))
            for name, dead in sorted(lanes.items())
        )

    def links(self) -> tuple[LinkView, ...]:
        now = self.clock.now()
        return (
            _link(LinkKind.WORKER, "127.0.0.1:50051", LinkState.UP, "phoi-lung-nodule 1.0.0", now),
            _link(LinkKind.DESTINATION, "pacs", LinkState.UP, "C-ECHO 0000H", now),
            replace(
                _link(LinkKind.DESTINATION, "emr-hl7", LinkState.DOWN, "connection refused", now),
                waiting=3,
                oldest_waiting_at=now - timedelta(minutes=42),
                circuit=CircuitView(
                    CircuitState.OPEN,
                    now - timedelta(minutes=40),
                    now + timedelta(seconds=20),
                ),
            ),
            replace(
                _link(LinkKind.DESTINATION, "emr-fhir", LinkState.UNKNOWN, "", now),
                checked_at=None,
                dead=1,
            ),
        )

    def reconciliations(self) -> tuple[Reconciliation, ...]:
        lacking = LackingStudy("1.2.840.99.5", Lack.IMAGES_MISSING, Mending.FETCHED, 12)
        report = ReconciliationReport(31, 4, (lacking,))
        now, day = self.clock.now(), self.clock.now().date()
        whole = ReconciliationReport(29, 3, ())
        return (
            Reconciliation(2, day, day, NIGHTLY, now, now, report),
            Reconciliation(1, day, day, NIGHTLY, now, now, whole),
        )

    @property
    def recalls(self) -> FakeRecallBook:
        return self.recall_book

    def confirm_recalled(self, study_instance_uid: str, reviewer: Account) -> None:
        del reviewer
        study = self._find(study_instance_uid)
        if not study.recalled:
            raise ReviewConflict(Conflict.CHANGED)
        study.recalled = False

    def switches(self) -> tuple[Switch, ...]:
        known = (
            Switch(SwitchKind.EVERYTHING),
            Switch(SwitchKind.MODEL, MODEL.name),
            *(Switch(SwitchKind.DESTINATION, n) for n in ("pacs", "emr-hl7", "emr-fhir")),
        )
        return tuple(self.paused.get(switch.target, switch) for switch in known)

    def pause(self, target: str, reviewer: Account) -> None:
        switch = self._switch(target)
        self.paused[target] = replace(
            switch, paused_by=reviewer.username, paused_at=self.clock.now()
        )

    def resume(self, target: str, reviewer: Account) -> None:
        del reviewer
        self._switch(target)
        self.paused.pop(target, None)

    def kpis(self) -> Kpis:
        since = self.clock.now() - timedelta(days=30)
        models = (ModelKpis(MODEL.name, MODEL.version, 120, 84, 9, 61, 4),)
        return Kpis(since, 412, 396, 11, 5, 120, 48.0, 5400.0, models)

    def log_access(
        self, username: str, action: str, study_instance_uid: str | None, detail: str
    ) -> None:
        entry = AuditEntry(self.clock.now(), username, action, study_instance_uid, detail)
        self.entries.append(entry)

    def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        return tuple(reversed(self.entries[-limit:]))

    def authenticate(self, username: str, password: str) -> Account | None:
        return self.account(username) if password == PASSWORD else None

    def account(self, username: str) -> Account | None:
        return {a.username: a for a in (REVIEWER, ADMIN)}.get(username)

    def report_problem(self, text: str, reviewer: Account) -> str:
        del reviewer
        self.reports.append(text)
        return f"P{len(self.reports):04d}"

    def unready(self) -> tuple[str, ...]:
        return self.not_ready

    def _find(self, study_instance_uid: str) -> FakeStudy:
        if study_instance_uid not in self.studies:
            raise UnknownStudy("nobody sent it")
        return self.studies[study_instance_uid]

    def _open(self, study_instance_uid: str) -> FakeStudy:
        study = self._find(study_instance_uid)
        if not self.study(study_instance_uid).reviewable:
            raise ReviewConflict(Conflict.CLOSED)
        return study

    def _judge(
        self,
        study: FakeStudy,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: Account,
        reason: str,
        correction: Correction,
    ) -> None:
        said = Disposition(
            tracking_uid, verdict, reviewer.username, self.clock.now(), reason, correction
        )
        study.history.append(Judgement(said))

    def _switch(self, target: str) -> Switch:
        for switch in self.switches():
            if switch.target == target:
                return switch
        raise ReviewConflict(Conflict.NO_SWITCH)


def ball(volume: Volume, center_lps_mm: Triple, diameter_mm: float, probability: float) -> Finding:
    """A finding whose mask is a ball."""
    geometry = volume.geometry
    middle = geometry.lps_to_index(center_lps_mm)
    reach = np.ceil(diameter_mm / 2 / np.array(geometry.spacing_mm)).astype(int) + 1
    low = np.clip(np.round(middle).astype(int) - reach, 0, None)
    high = np.minimum(np.round(middle).astype(int) + reach + 1, geometry.shape)
    grid = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1
    )
    distance = np.linalg.norm(geometry.index_to_lps(grid) - np.array(center_lps_mm), axis=-1)
    x, y, z = center_lps_mm
    half = diameter_mm / 2
    return Finding(
        center_lps_mm=center_lps_mm,
        probability=probability,
        long_axis_mm=diameter_mm + 1.2,
        short_axis_mm=diameter_mm - 1.2,
        mean_diameter_mm=diameter_mm,
        volume_mm3=0.5236 * diameter_mm**3,
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=31.0,
        side=Side.LEFT if x > 0 else Side.RIGHT,
        lobe=None,
        long_axis_lps_mm=((x - half, y, z), (x + half, y, z)),
        short_axis_lps_mm=((x, y - half, z), (x, y + half, z)),
        mask=NoduleMask((int(low[0]), int(low[1]), int(low[2])), distance <= half),
    )


def result(
    study_uid: str,
    outcome: Outcome,
    findings: Sequence[Finding] = (),
    priority: Priority = Priority.ROUTINE,
    *,
    at: datetime,
) -> TriageResult:
    """The result of one study."""
    analysed = outcome in {Outcome.POSITIVE, Outcome.NEGATIVE, Outcome.LIMITED}
    nodules = tuple(
        Nodule(i + 1, f"2.25.77{study_uid[-1]}{i}", f, size_class(f))
        for i, f in enumerate(findings)
    )
    digest = "cd" * 32 if analysed else ""
    return TriageResult(
        identity=ResultIdentity(study_uid, f"{study_uid}.9", digest, MODEL, 1),
        outcome=outcome,
        nodules=nodules,
        suggested_priority=priority,
        coverage=(
            LungCoverage(apex=True, base=outcome is not Outcome.LIMITED, volume_ml=4200.0)
            if analysed
            else None
        ),
        reason=(
            NotAnalysableReason.SLICES_TOO_THICK if outcome is Outcome.NOT_ANALYSABLE else None
        ),
        detail={
            Outcome.NOT_ANALYSABLE: "the thinnest axial series has slices of 8 mm",
            Outcome.LIMITED: "the base of the lungs is cut off",
            Outcome.FAILED: "the worker gave up after 5 attempts",
        }.get(outcome, ""),
        series_reason="thinnest axial series: 133 slices of 2.5 mm",
        analysed_at=at,
        timing_s={"read": 1.9, "detect": 8.4, "measure": 0.6},
    )


def sample_desk(clock: Clock, volume: Volume, nodules: Sequence[tuple[Triple, float]]) -> FakeDesk:
    """A desk with studies in every phase; ``1.2.1`` has the volume and the nodules."""
    desk = FakeDesk(clock)
    now = clock.now()
    found = [ball(volume, c, d, 0.97 - 0.2 * i) for i, (c, d) in enumerate(nodules)]
    # number, name, phase, outcome, priority, minutes since it came
    plan = (
        (1, "Nguyễn^Tuyết^Thị Ánh", Phase.READY, Outcome.POSITIVE, Priority.STAT, 35),
        (2, "Trần^Minh^Đức", Phase.READY, Outcome.NEGATIVE, Priority.ROUTINE, 61),
        (3, "Lê^Phúc^Hoàng", Phase.READY, Outcome.LIMITED, Priority.ROUTINE, 240),
        (4, "Phạm^Quỳnh^Ngọc", Phase.NOT_ANALYSABLE, Outcome.NOT_ANALYSABLE, None, 90),
        (5, "Vũ^Sơn^Văn", Phase.FAILED, Outcome.FAILED, None, 130),
        (6, "Đặng^Dương^Thùy", Phase.ANALYSING, None, None, 3),
        (7, "Bùi^Huy^Quang", Phase.QUEUED, None, None, 2),
        (8, "Đỗ^Linh^Mỹ", Phase.RECEIVING, None, None, 0),
        (9, "Hồ^Trường^Xuân", Phase.SIGNED, Outcome.POSITIVE, Priority.URGENT, 1500),
    )
    for number, name, phase, outcome, priority, minutes in plan:
        uid = f"1.2.{number}"
        received = now - timedelta(minutes=minutes)
        study = FakeStudy(header(uid, name, number, received), received, phase)
        study.progress = 0.42 if phase is Phase.ANALYSING else None
        if outcome is not None:
            marks = found if outcome is Outcome.POSITIVE else ()
            study.result = result(
                uid,
                outcome,
                marks,
                priority or Priority.ROUTINE,
                at=received + timedelta(seconds=40),
            )
            study.volume = volume if study.result.identity.input_digest else None
            study.deliveries = _deliveries(uid, received, dead=number == 3)
        if phase is Phase.SIGNED:
            for mark in desk_nodules(study):
                said = Disposition(mark.tracking_uid, Verdict.ACCEPTED, REVIEWER.username, now)
                study.history.append(Judgement(said))
            study.signed_by, study.signed_at = REVIEWER.display_name, now - timedelta(hours=20)
        desk.studies[uid] = study
    return desk


def desk_nodules(study: FakeStudy) -> tuple[Nodule, ...]:
    """The nodules of a study, none without a result."""
    return study.result.nodules if study.result else ()


def header(uid: str, name: str, number: int, received: datetime) -> StudyHeader:
    """What the images of a study say."""
    sex = "MF"[number % 2]
    patient = Patient(f"BN-{4200 + number}", "BVDK", name, date(1950 + 3 * number, 5, 4), sex)
    return StudyHeader(
        study_instance_uid=uid,
        patient=patient,
        accession_number=f"CT2026-{170 + number}",
        study_id=str(number),
        description="CT ngực không cản quang",
        referring_physician="Trần^Văn An",
        started_at=received.astimezone(UTC).replace(tzinfo=None) - timedelta(minutes=6),
    )


def _deliveries(uid: str, at: datetime, *, dead: bool) -> tuple[DeliveryView, ...]:
    plan = (
        (DocumentKind.SEGMENTATION, "pacs"),
        (DocumentKind.STRUCTURED_REPORT, "pacs"),
        (DocumentKind.HL7_ORU, "emr-hl7"),
        (DocumentKind.FHIR_BUNDLE, "emr-fhir"),
    )
    last = len(plan) - 1
    return tuple(
        DeliveryView(
            delivery_id=int(uid[-1]) * 10 + i,
            study_instance_uid=uid,
            kind=kind,
            destination=destination,
            state=DeliveryState.DEAD if dead and i == last else DeliveryState.DELIVERED,
            attempts=5 if dead and i == last else 1,
            last_error="HTTP 422: invalid code" if dead and i == last else "",
            identity=f"2.25.9{i}",
            updated_at=at + timedelta(minutes=1),
        )
        for i, (kind, destination) in enumerate(plan)
    )


def _link(kind: LinkKind, name: str, state: LinkState, detail: str, now: datetime) -> LinkView:
    return LinkView(kind, name, state, detail, now - timedelta(seconds=12), 0, None, 0)
