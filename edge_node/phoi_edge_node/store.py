"""The port of the edge's memory: what is stored, and the few ways in which it changes.

Every method that changes something is one transaction. A state change and the outbox rows that
follow from it are the same transaction. States move only along the tables of ``study.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Protocol

from phoi_models.identity import ModelIdentity

from phoi_edge_node.accounts import Account
from phoi_edge_node.commitment import CommitmentLedger
from phoi_edge_node.desk import AuditEntry, Judgement
from phoi_edge_node.orders import OrderStore
from phoi_edge_node.policies import Life
from phoi_edge_node.ports import (
    Document,
    DocumentKind,
    Intake,
    ReceivedInstance,
    ReportStatus,
    SendOutcome,
)
from phoi_edge_node.recalled import RecallItem, RecallStore
from phoi_edge_node.reconciled import Reconciliation, ReconciliationReport
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Patient,
    Priority,
    SignedReview,
    StudyHeader,
    TriageResult,
    Verdict,
)
from phoi_edge_node.study import (
    AnalysisEvent,
    AnalysisState,
    DeliveryState,
    ReviewState,
    StudyState,
)
from phoi_edge_node.usage import Durations, Marks


@dataclass(frozen=True)
class StoredStudy:
    """A study and its instances' state. Times are UTC.

    Attributes:
        state_since: when it came into this state.
        receiving_since: when its first instance came, or the first after it had been complete.
        last_received_at: when its latest instance came, or up to a second before.
        changed_after_signing: new images, or other data of the patient, came after a person had
            signed, and nobody has signed again.
        late_images: new images came after retention had removed the others, and those did not come
            back: the result stands, and is not about the new ones.
        recalled: the result that a person signed was recalled, and nobody has looked again.
    """

    header: StudyHeader
    state: StudyState
    state_since: datetime
    receiving_since: datetime
    first_received_at: datetime
    last_received_at: datetime
    instance_count: int
    changed_after_signing: bool = False
    late_images: bool = False
    recalled: bool = False


@dataclass(frozen=True)
class StoredAnalysis:
    """One analysis. Times are UTC.

    Attributes:
        id: also the request id at the worker.
        state_since: when it came into this state.
        completeness: of the study when it was queued; None where that was not asked.
        model: None until the analysis begins; then pinned.
        attempts: tries that reached a worker.
        claims: times it was started; tells one try from another.
        error: the last passing or final error, for an operator, without patient data.
        result: None until it ended.
    """

    id: str
    study_instance_uid: str
    revision: int
    state: AnalysisState
    state_since: datetime
    completeness: Completeness | None
    priority: Priority
    model: ModelIdentity | None
    attempts: int
    claims: int
    due_at: datetime
    step: str
    fraction: float
    error: str
    result: TriageResult | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class SettledStudy:
    """A study whose images nothing needs any more.

    Attributes:
        settled_at: when its last image came, result ended or document arrived, UTC.
        signed: a person has signed its result.
    """

    study_instance_uid: str
    settled_at: datetime
    signed: bool


@dataclass(frozen=True)
class StoredReview:
    """Where the review of one analysis stands.

    Attributes:
        history: every judgement ever made, oldest first, undone ones too.
        current: the standing disposition by Tracking UID.
        signed: None until signed.
        acknowledged_by: username; "" unless acknowledged.
        state_since: when it came into this state, UTC; None while there is no result.
    """

    state: ReviewState
    current: Mapping[str, Disposition]
    history: tuple[Judgement, ...]
    signed: SignedReview | None
    acknowledged_by: str = ""
    state_since: datetime | None = None


@dataclass(frozen=True)
class Delivery:
    """One document on its way to one destination.

    Attributes:
        errors: how often the destination failed on it since it was queued, or sent again.
        not_taken: after how many of its tries the destination surely had nothing of it.
    """

    id: int
    study_instance_uid: str | None
    revision: int
    kind: DocumentKind
    identity: str
    status: ReportStatus
    destination: str
    state: DeliveryState
    attempts: int
    due_at: datetime
    last_error: str
    created_at: datetime
    updated_at: datetime
    errors: int = 0
    not_taken: int = 0

    @property
    def may_have_arrived(self) -> bool:
        """Does the destination have it, or perhaps: was a try not surely in vain?"""
        return self.attempts > self.not_taken


@dataclass(frozen=True)
class Outgoing:
    """A document and the destinations it goes to."""

    document: Document
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class StoredAccount:
    """A named person. ``password_hash`` is argon2id, never logged."""

    account: Account
    password_hash: str


@dataclass(frozen=True)
class Pause:
    """Something an operator stopped. ``target`` is that of ``desk.Switch``."""

    target: str
    username: str
    at: datetime


@dataclass(frozen=True)
class InState:
    """How many are in one state.

    Attributes:
        since: when the one that has been in it longest came into it, UTC.
    """

    number: int
    since: datetime


@dataclass(frozen=True)
class Counts:
    """How many of everything are in which state; states of nothing are left out. Times are UTC.

    Attributes:
        deliveries: by destination and state.
        oldest_queued: when the oldest analysis that waits was first queued.
        oldest_undelivered: when the oldest delivery that waits was queued, by destination.
        since: when the first study came; None before.
        damages: images that were ever found damaged on disk.
        changed_after_signing: studies that wait to be signed again.
    """

    studies: Mapping[StudyState, InState]
    analyses: Mapping[AnalysisState, InState]
    deliveries: Mapping[tuple[str, DeliveryState], InState]
    reviews: Mapping[ReviewState, InState]
    oldest_queued: datetime | None
    oldest_undelivered: Mapping[str, datetime]
    since: datetime | None
    damages: int = 0
    changed_after_signing: int = 0

    def of_lives(self) -> Mapping[tuple[str, str], InState]:
        """By life (study, analysis, delivery, review) and state; all destinations together."""
        found = {("study", state.value): counted for state, counted in self.studies.items()}
        found |= {("analysis", state.value): counted for state, counted in self.analyses.items()}
        for (_, state), counted in self.deliveries.items():
            known = found.get(("delivery", state.value), InState(0, counted.since))
            found["delivery", state.value] = InState(
                known.number + counted.number, min(known.since, counted.since)
            )
        found |= {("review", state.value): counted for state, counted in self.reviews.items()}
        return found


@dataclass(frozen=True)
class DamagedInstance:
    """An image that was lost from the disk.

    Attributes:
        kind: what was wrong: "missing", "changed".
        found_at: UTC.
        back: it was received again.
    """

    sop_instance_uid: str
    kind: str
    found_at: datetime
    back: bool


@dataclass(frozen=True)
class Overdue:
    """Something that has been in one state for too long.

    Attributes:
        id: Study Instance UID, analysis id or delivery id; of a review, that of its analysis.
        study_instance_uid: None where no study is concerned.
        since: UTC. A study: since it began to be received. A queued analysis: since it was first
            queued. A pending delivery: since it was queued or sent again. Else since it came into
            its state.
    """

    life: Life
    id: str
    study_instance_uid: str | None
    since: datetime


@dataclass(frozen=True)
class ModelUse:
    """What one model version did here since its first day. Superseded analyses count too.

    Attributes:
        received: analyses pinned to it.
        analysed, refused, failed: of those that ended, by outcome.
        reviewed: of those analysed, the signed ones.
        receive_to_result: from the last instance to the result.
        result_to_review: from the result to the signature.
        marks: verdicts in the signed reviews.
        withdrawn: of all, those whose result was recalled.
    """

    model: ModelIdentity
    received: int
    analysed: int
    refused: int
    failed: int
    reviewed: int
    receive_to_result: Durations
    result_to_review: Durations
    marks: Marks
    withdrawn: int = 0


@dataclass(frozen=True)
class Use:
    """What was ever done here, and how long it takes of late.

    Attributes:
        failed_tries: of deliveries, by destination, where there were any.
        receive_to_result_s, result_to_review_s: medians of the latest thousand; None without one.
        last_signed_at: UTC; None where nobody ever signed.
    """

    models: tuple[ModelUse, ...]
    failed_tries: Mapping[str, int]
    receive_to_result_s: float | None
    result_to_review_s: float | None
    last_signed_at: datetime | None = None


class StudyStore(OrderStore, CommitmentLedger, RecallStore, Protocol):
    """The edge's memory. What a person changes is audited in the same transaction."""

    # studies
    def add_instance(self, instance: ReceivedInstance) -> Intake:
        """Index an instance; a new one (re)opens its study.

        What several threads add at once goes into one transaction.
        """
        ...

    def add_instances(self, instances: Sequence[ReceivedInstance]) -> Sequence[Intake]:
        """Index several in one transaction: all of them or, when it raises, none."""
        ...

    def studies(self, limit: int = 500) -> Sequence[StoredStudy]:
        """Those that nobody signed first, then the most recently received."""
        ...

    def study(self, study_instance_uid: str) -> StoredStudy | None:
        """One study."""
        ...

    def receiving_studies(self) -> Sequence[str]:
        """UIDs of studies that wait for completeness."""
        ...

    def instances(self, study_instance_uid: str) -> Sequence[ReceivedInstance]:
        """All instances of a study."""
        ...

    def instance_counts(self) -> Mapping[str, int]:
        """How many instances of each study are indexed, by Study Instance UID; none: left out."""
        ...

    def indexed(self, paths: Collection[str]) -> Collection[str]:
        """Which of these paths are of indexed instances."""
        ...

    def settled_studies(self) -> Sequence[SettledStudy]:
        """Those that are complete, whose revisions have ended, and whose documents arrived."""
        ...

    def expire_study(self, study_instance_uid: str) -> bool:
        """Forget the images of a study; False, and nothing happens, if it is not settled."""
        ...

    def expired_images(self, study_instance_uid: str) -> Mapping[str, frozenset[str]]:
        """SOP Instance UIDs of expired images that are not all here again, by series."""
        ...

    def lose_instances(self, study_instance_uid: str, damaged: Mapping[str, str]) -> None:
        """Forget images that are not on the disk any more, so that they are asked for again.

        Args:
            damaged: what is wrong, a word, by SOP Instance UID.
        """
        ...

    def damages(self, study_instance_uid: str) -> Sequence[DamagedInstance]:
        """Images of a study that were lost, oldest first."""
        ...

    def next_complete_study(self, after_uid: str) -> str | None:
        """The UID of the next complete study in the order of UIDs; None after the last."""
        ...

    def quiet_study(self, study_instance_uid: str) -> bool:
        """Nothing more comes: the study is to be counted; False if it is not being received."""
        ...

    def complete_study(
        self, study_instance_uid: str, priority: Priority, completeness: Completeness | None = None
    ) -> str | None:
        """All instances are here: queue the next revision and supersede the unsigned ones.

        Args:
            priority: that of the study's order counts where it is more urgent.

        Returns:
            The id of the new analysis; None when the study was complete already, or only lost
            images from the disk, or got the same ones back, or does not have all those again that
            had expired: then its result stands.
        """
        ...

    # analyses
    def claim_analysis(
        self, excluded_models: Collection[str] = (), *, unpinned: bool = True
    ) -> StoredAnalysis | None:
        """Start the queued analysis that is due and whose turn is first (``scheduling.py``).

        Args:
            excluded_models: "NAME" or "NAME@VERSION": analyses pinned to one of them stay queued.
            unpinned: False: those without a model stay queued too.
        """
        ...

    def pin_model(self, analysis_id: str, model: ModelIdentity) -> bool:
        """Fix the model of a running analysis, if none is pinned yet; False if it is paused."""
        ...

    def report_progress(self, analysis_id: str, step: str, fraction: float) -> None:
        """For people who watch; 0 to 1."""
        ...

    def retry_analysis(
        self,
        analysis_id: str,
        error: str,
        due_at: datetime,
        *,
        reached_worker: bool,
        claim: int | None = None,
    ) -> None:
        """Queue a running analysis again.

        Args:
            claim: the try that says so (``StoredAnalysis.claims``): nothing is done where another
                runs by now; None: whichever runs.
        """
        ...

    def finish_analysis(
        self,
        analysis_id: str,
        event: AnalysisEvent,
        result: TriageResult,
        outgoing: Sequence[Outgoing],
        error: str = "",
        claim: int | None = None,
        patient: Patient | None = None,
    ) -> bool:
        """End a running analysis, with its documents.

        Args:
            claim: the try that says so: where another runs by now, what it found counts, and that
                it gave up does not; None: whichever runs.
            patient: whom the documents name: where the study's patient is another by now, the
                analysis is queued again; None: nobody.

        Returns:
            False if it was superseded or ended by another try meanwhile, or another is to decide:
            then nothing is stored.
        """
        ...

    def analyses(self, study_instance_uid: str) -> Sequence[StoredAnalysis]:
        """All revisions, oldest first."""
        ...

    def queued_analyses(self) -> Sequence[str]:
        """Ids of those that wait, in the order of their turns."""
        ...

    def latest_analyses(self, study_uids: Collection[str]) -> Mapping[str, StoredAnalysis]:
        """The latest revision of each study that has one."""
        ...

    def requeue_interrupted(self) -> int:
        """At start: what was running or being sent when the process died goes back in the queue."""
        ...

    def tell_withdrawal(
        self,
        item: RecallItem,
        outgoing: Sequence[Outgoing],
        patient: Patient,
        *,
        whole: bool = True,
    ) -> Collection[str] | None:
        """Queue the notice that a result is withdrawn, for whoever was told of it.

        What is queued of it already is not queued twice.

        Args:
            outgoing: with all destinations of this site: only those that got, or may have got,
                something of the study, and nothing later that follows it, are sent it.
            patient: whom the notice names.
            whole: nothing is missing in ``outgoing``. Otherwise the notice waits for the rest.

        Returns:
            The destinations that the notice still waits for, since nothing, or not all of it, goes
            there. None, and nothing happens, where the study's patient is another by now.
        """
        ...

    def identities(self, study_instance_uid: str) -> Mapping[DocumentKind, tuple[str, ...]]:
        """Identities of all documents of a study, by kind, latest last."""
        ...

    # deliveries
    def claim_delivery(self, destination: str) -> tuple[Delivery, Document] | None:
        """Start sending the oldest due document of a lane, in order within each study.

        What the destination failed on several times holds up only what would replace it.
        """
        ...

    def settle_delivery(
        self,
        delivery_id: int,
        outcome: SendOutcome,
        retry_at: datetime,
        maximum_errors: int | None = None,
    ) -> DeliveryState:
        """Record what the destination answered.

        Args:
            maximum_errors: when it has failed on the document so often, the document is a dead
                letter; None: never.
        """
        ...

    def hurry(self, destination: str) -> int:
        """What waits for a destination that is back is due now; how many that concerns.

        Not what the destination failed on: that waits its time.
        """
        ...

    def resend(self, delivery_id: int, username: str) -> None:
        """Send a delivered or dead document again, with the same identity.

        Raises:
            IllegalTransition: it is on its way, superseded, or a later one of its kind exists,
                which it would overwrite.
            KeyError: there is no such delivery.
        """
        ...

    def resend_dead(self, destination: str, username: str) -> int:
        """Send the dead letters of a destination again, each once; how many that are.

        Those that a later document has replaced stay. Many are several transactions.
        """
        ...

    def deliveries(
        self,
        study_instance_uid: str | None = None,
        states: Collection[DeliveryState] = tuple(DeliveryState),
    ) -> Sequence[Delivery]:
        """Of one study, or of all, in these states, oldest first."""
        ...

    def dead_letters(self, destination: str, limit: int) -> Sequence[Delivery]:
        """What a destination refused, or was given up: the latest of it, latest first."""
        ...

    def delivery_problems(
        self, study_uids: Collection[str], late_after_tries: int
    ) -> Mapping[str, int]:
        """How many deliveries of each of these studies are dead, or late; none: left out."""
        ...

    def document(self, delivery_id: int) -> Document:
        """The bytes of a delivery."""
        ...

    def enqueue_usage(self, documents: Sequence[Document], destination: str) -> None:
        """Queue cumulative usage reports; they supersede those not yet sent."""
        ...

    # review
    def review(self, analysis_id: str) -> StoredReview:
        """The review of an analysis; an open, empty one while there is no result."""
        ...

    def reviews(self, analysis_ids: Collection[str]) -> Mapping[str, StoredReview]:
        """The reviews of several analyses."""
        ...

    def decide(
        self,
        analysis_id: str,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: str,
        reason: str,
        correction: Correction,
    ) -> None:
        """Add a disposition.

        Raises:
            IllegalTransition: the review is signed or superseded.
        """
        ...

    def undo(self, analysis_id: str, reviewer: str) -> Disposition | None:
        """Withdraw the latest standing disposition; None if there is none."""
        ...

    def sign(
        self,
        analysis_id: str,
        signed: SignedReview,
        outgoing: Sequence[Outgoing],
        patient: Patient | None = None,
    ) -> None:
        """Close the review and queue its documents; supersedes signed reviews of earlier revisions.

        Args:
            patient: whom the documents name; None: nobody.

        Raises:
            IllegalTransition: it is signed already, or superseded.
            ReviewConflict: ``signed`` is not what stands now, or the study's patient is another.
        """
        ...

    def acknowledge(self, analysis_id: str, username: str) -> None:
        """Close the review of a result that has nothing to sign: somebody has seen it.

        Raises:
            TransitionRefused: it is signed, or superseded.
        """
        ...

    # people
    def account(self, username: str) -> StoredAccount | None:
        """One account."""
        ...

    def put_account(self, stored: StoredAccount) -> None:
        """Add or replace an account."""
        ...

    def record_audit(
        self, username: str, action: str, study_instance_uid: str | None, detail: str
    ) -> None:
        """Append to the audit trail."""
        ...

    def audit(self, limit: int = 500) -> Sequence[AuditEntry]:
        """Newest first."""
        ...

    def report_problem(self, username: str, text: str) -> int:
        """Keep a person's report; its number."""
        ...

    def counts(self) -> Counts:
        """How many of everything are in which state: quick also after years."""
        ...

    def overdue(
        self, life: Life, state: StrEnum, before: datetime, limit: int
    ) -> tuple[int, Sequence[Overdue]]:
        """How many are in a state since before then, and the first of them, oldest first.

        What is there since a moment far in the future was stamped by a clock that was wrong, and
        counts too.
        """
        ...

    def use(self) -> Use:
        """What was ever analysed and signed, for KPIs and usage reports."""
        ...

    # reconciliation
    def ask_reconciliation(self, first: date, last: date, asked_by: str) -> int:
        """Ask for a comparison with the archives; its number."""
        ...

    def next_reconciliation(self) -> Reconciliation | None:
        """What was asked for longest ago and has not ended."""
        ...

    def end_reconciliation(self, number: int, report: ReconciliationReport) -> None:
        """Keep what one found."""
        ...

    def reconciliations(self, limit: int = 30) -> Sequence[Reconciliation]:
        """Those asked for, newest first."""
        ...

    # switches and counters
    def pauses(self) -> Sequence[Pause]:
        """What is stopped now."""
        ...

    def pause(self, target: str, username: str) -> None:
        """Stop a model, a destination or everything."""
        ...

    def resume(self, target: str, username: str) -> None:
        """Let it run again."""
        ...

    def fact(self, key: str) -> str | None:
        """A small named text (current model, sequence numbers)."""
        ...

    def put_fact(self, key: str, value: str) -> None:
        """Set one."""
        ...

    def next_number(self, key: str) -> int:
        """Count up a named sequence: 1, 2, 3, ..."""
        ...
