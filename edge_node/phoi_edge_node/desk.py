"""What a person at the review page sees and may do: one service and its read models.

The web adapter talks to nothing else. Whoever implements :class:`Desk` writes every change to the
append-only audit in the transaction that makes it; the page itself logs only who signed in and
who looked at what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from phoi_models.geometry import Triple
from phoi_models.size_class import SizeClass
from phoi_models.volume import Volume

from phoi_edge_node.accounts import Account
from phoi_edge_node.circuit import CircuitState
from phoi_edge_node.orders import ImagingOrder
from phoi_edge_node.policies import Act, Life
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.recalled import RecallBook
from phoi_edge_node.reconciled import Reconciliation
from phoi_edge_node.result import (
    Correction,
    Disposition,
    Nodule,
    Outcome,
    Patient,
    Priority,
    StudyHeader,
    TriageResult,
    Verdict,
)
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState, StudyState

# --- studies ---------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where a study stands, derived from the states of its four lives."""

    RECEIVING = "receiving"
    COUNTING = "counting"  # nothing more comes; is it whole?
    QUEUED = "queued"
    ANALYSING = "analysing"
    READY = "ready"  # analysed, not signed
    SIGNED = "signed"
    NOT_ANALYSABLE = "not_analysable"
    FAILED = "failed"
    ACKNOWLEDGED = "acknowledged"  # not analysable or failed, and somebody has seen that
    WITHDRAWN = "withdrawn"  # recalled: there is no result until it is analysed again


WAITING = frozenset({Phase.RECEIVING, Phase.COUNTING, Phase.QUEUED, Phase.ANALYSING})
DONE = frozenset({Phase.SIGNED, Phase.ACKNOWLEDGED})


def phase_of(
    study: StudyState, analysis: AnalysisState | None, review: ReviewState | None
) -> Phase:
    """Where a study stands. The analysis and the review are those of its latest revision."""
    if study is StudyState.COUNTING:
        return Phase.COUNTING
    if study is StudyState.RECEIVING or analysis is None:
        return Phase.RECEIVING
    if review is ReviewState.SIGNED:
        return Phase.SIGNED
    if review is ReviewState.ACKNOWLEDGED:
        return Phase.ACKNOWLEDGED
    return {
        AnalysisState.QUEUED: Phase.QUEUED,
        AnalysisState.RUNNING: Phase.ANALYSING,
        AnalysisState.SUCCEEDED: Phase.READY,
        AnalysisState.NOT_ANALYSABLE: Phase.NOT_ANALYSABLE,
        AnalysisState.FAILED: Phase.FAILED,
        AnalysisState.SUPERSEDED: Phase.RECEIVING,
        AnalysisState.WITHDRAWN: Phase.WITHDRAWN,
    }[analysis]


@dataclass(frozen=True)
class WorklistRow:
    """One study on the worklist.

    Attributes:
        started_at: Study Date and Time as the modality wrote them, no time zone; None if absent.
        received_at: UTC, of the first instance: what the age on the page counts from.
        progress: fraction of the running analysis, 0 to 1; None unless ``ANALYSING``.
        outcome, priority: None while there is no result.
        ordered: the priority that the order asks for, of a study that waits or could not be judged;
            None where nobody asks for one, or the result speaks for itself.
        worst: size class of the most important nodule; None without one.
        max_diameter_mm: largest mean diameter, mm; None without a nodule.
        delivery_problems: deliveries of this study that are dead or late.
        revision: of the result shown; 0 while there is none.
        phase_since: UTC; None where it is not known.
        ahead: how many analyses have their turn before this one's; None unless ``QUEUED``.
        retry_at: UTC, of the next try; None unless one is put off.
        trouble: why the last try came to nothing; "" where it did not.
        images_removed: the images were removed by the retention policy.
        unconfirmed: it is not known whether all images of the study came.
        changed_after_signing: new images, or other data of the patient, came after somebody had
            signed, and nobody has signed again.
        late_images: new images came after the others had been removed here: the result is not about
            them, until the whole study is here again.
        recalled: what somebody signed rests on a result that was recalled, and nobody has looked.
    """

    study_instance_uid: str
    patient: Patient
    accession_number: str
    description: str
    started_at: datetime | None
    received_at: datetime
    phase: Phase
    progress: float | None
    outcome: Outcome | None
    priority: Priority | None
    nodule_count: int
    worst: SizeClass | None
    max_diameter_mm: float | None
    delivery_problems: int
    revision: int
    phase_since: datetime | None = None
    ahead: int | None = None
    retry_at: datetime | None = None
    trouble: str = ""
    images_removed: bool = False
    unconfirmed: bool = False
    changed_after_signing: bool = False
    late_images: bool = False
    recalled: bool = False
    ordered: Priority | None = None


_URGENCY = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}


def in_worklist_order(rows: Iterable[WorklistRow]) -> tuple[WorklistRow, ...]:
    """Open studies by priority, then age, oldest first; closed ones below, latest first.

    A study without a result counts as what was ordered, at least as routine: what Phoi cannot judge
    must not sink. One that changed after it was signed, or whose model was recalled since, stands
    above all: what was sent of it may no longer be true.
    """
    rows = tuple(rows)
    todo = [row for row in rows if row.phase not in DONE or row.recalled]
    done = [row for row in rows if row.phase in DONE and not row.recalled]
    todo.sort(
        key=lambda r: (
            not (r.changed_after_signing or r.recalled),
            min(_URGENCY[p or Priority.ROUTINE] for p in (r.priority, r.ordered)),
            r.received_at,
        )
    )
    done.sort(key=lambda r: r.received_at, reverse=True)
    return (*todo, *done)


@dataclass(frozen=True)
class DeliveryView:
    """One document on its way to one destination.

    Attributes:
        delivery_id: for ``Desk.resend``.
        destination: the lane's name.
        last_error: "" where the last try went well.
        identity: SOP Instance UID, MSH-10, or FHIR identifier value.
        updated_at: UTC.
    """

    delivery_id: int
    study_instance_uid: str
    kind: DocumentKind
    destination: str
    state: DeliveryState
    attempts: int
    last_error: str
    identity: str
    updated_at: datetime


@dataclass(frozen=True)
class DeadLetters:
    """What was given up or refused on its way to one destination.

    Attributes:
        destination: the lane's name; the lane itself may be gone from the settings.
        number: of all of them.
        latest: the latest of them, latest first.
    """

    destination: str
    number: int
    latest: tuple[DeliveryView, ...]


@dataclass(frozen=True)
class Judgement:
    """One line of the history of a review: nothing is ever taken out of it.

    Attributes:
        undone_by: username of who took it back, "" while it stands.
    """

    disposition: Disposition
    undone_by: str = ""


@dataclass(frozen=True)
class DamagedImage:
    """An image that was found damaged on disk, or gone, and was asked for again.

    Attributes:
        found_at: UTC.
        back: it was received again.
    """

    sop_instance_uid: str
    found_at: datetime
    back: bool


@dataclass(frozen=True)
class StudyView:
    """All that the page of one study shows.

    Attributes:
        result: of the latest revision; None while there is none.
        dispositions: the ones that stand, by tracking UID: at most one for each nodule, and one
            for each nodule that a reviewer marked as missed.
        history: every judgement of this revision, oldest first, undone ones too.
        review: None while there is no result.
        signed_by: display name, "" until signed.
        acknowledged_by: username, "" unless acknowledged.
        acknowledged_at: UTC; None unless acknowledged.
        damages: images that were damaged on this node's disk, oldest first.
        passed_over: why each other series was not analysed, by Series Instance UID.
        order: behind the study; None where none is known.
        images_removed_at: when the retention policy removed its images, UTC; None while here.
    """

    row: WorklistRow
    header: StudyHeader
    result: TriageResult | None
    dispositions: Mapping[str, Disposition]
    history: tuple[Judgement, ...]
    review: ReviewState | None
    signed_by: str
    signed_at: datetime | None
    deliveries: tuple[DeliveryView, ...]
    passed_over: Mapping[str, str]
    order: ImagingOrder | None = None
    images_removed_at: datetime | None = None
    acknowledged_by: str = ""
    acknowledged_at: datetime | None = None
    damages: tuple[DamagedImage, ...] = ()

    @property
    def nodules(self) -> tuple[Nodule, ...]:
        """The model's nodules, most important first."""
        return self.result.nodules if self.result else ()

    @property
    def undecided(self) -> tuple[Nodule, ...]:
        """The nodules that nobody has judged."""
        return tuple(n for n in self.nodules if n.tracking_uid not in self.dispositions)

    @property
    def missed(self) -> tuple[Disposition, ...]:
        """The nodules that a reviewer marked and the model did not, oldest first."""
        found = (d for d in self.dispositions.values() if d.verdict is Verdict.MISSED)
        return tuple(sorted(found, key=lambda d: d.decided_at))

    @property
    def reviewable(self) -> bool:
        """A volume was analysed and nobody has signed."""
        analysed = self.result is not None and self.result.outcome in {
            Outcome.POSITIVE,
            Outcome.NEGATIVE,
            Outcome.LIMITED,
        }
        return analysed and self.review is ReviewState.OPEN

    @property
    def can_acknowledge(self) -> bool:
        """Nothing was analysed, and nobody has said that it was seen."""
        unread = self.result is not None and self.result.outcome in {
            Outcome.NOT_ANALYSABLE,
            Outcome.FAILED,
        }
        return unread and self.review is ReviewState.OPEN

    @property
    def can_sign(self) -> bool:
        """Every mark is judged and nobody has signed."""
        return self.reviewable and not self.undecided


# --- operations ------------------------------------------------------------------------------


class LinkKind(StrEnum):
    """What is at the other end."""

    DESTINATION = "destination"
    SOURCE = "source"  # an archive that is asked whether studies are whole
    WORKER = "worker"


class LinkState(StrEnum):
    """What the latest check or delivery said."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"  # not tried yet


@dataclass(frozen=True)
class CircuitView:
    """Whether a lane sends.

    Attributes:
        since: UTC.
        next_probe_at: when the destination is asked next whether it is back, UTC; None while there.
    """

    state: CircuitState
    since: datetime
    next_probe_at: datetime | None = None


@dataclass(frozen=True)
class LinkView:
    """A destination, a source or a worker, and what waits for it.

    Attributes:
        detail: short, without patient data: what the peer answered, or the model it runs.
        checked_at: UTC; None if never.
        waiting: deliveries, studies or analyses that wait.
        oldest_waiting_at: UTC; None if nothing waits.
        dead: deliveries that were given up or refused.
        circuit: of a destination; None elsewhere.
    """

    kind: LinkKind
    name: str
    state: LinkState
    detail: str
    checked_at: datetime | None
    waiting: int
    oldest_waiting_at: datetime | None
    dead: int
    circuit: CircuitView | None = None


@dataclass(frozen=True)
class StateView:
    """One state of one life.

    Attributes:
        state: its word.
        number: how many are in it.
        since: when the one that has been in it longest came into it, UTC; None where none is.
        overdue: how many of them have been in it for too long.
    """

    life: Life
    state: str
    number: int
    since: datetime | None
    overdue: int


@dataclass(frozen=True)
class OverdueView:
    """Something that has been in its state for too long.

    Attributes:
        study_instance_uid: "" where no study is concerned.
        since: UTC.
        act: what was done about it besides telling.
    """

    life: Life
    state: str
    study_instance_uid: str
    since: datetime
    act: Act


@dataclass(frozen=True)
class ReceivingView:
    """How receiving is doing.

    Attributes:
        troubles: why images are refused, in English.
        quarantined: instances set aside.
    """

    troubles: tuple[str, ...] = ()
    quarantined: int = 0


@dataclass(frozen=True)
class CommitmentView:
    """What one archive said of keeping the documents that were sent to it.

    Attributes:
        asked: not yet answered.
        failed: it does not hold them; each was, or will be, sent again.
    """

    archive: str
    asked: int
    committed: int
    failed: int


@dataclass(frozen=True)
class Health:
    """How everything on its way is doing.

    Attributes:
        states: every state of every life.
        overdue: the oldest of each kind.
        threads: what is wrong with this node's threads, in English.
        champion_refused: why the registry's champion is not run here, in English; "" where it is.
        commitments: of the archives that were asked.
        commitment_refused: the archives that refuse to be asked, and are left alone.
    """

    states: tuple[StateView, ...]
    overdue: tuple[OverdueView, ...]
    threads: tuple[str, ...] = ()
    champion_refused: str = ""
    receiving: ReceivingView = ReceivingView()
    commitments: tuple[CommitmentView, ...] = ()
    commitment_refused: tuple[str, ...] = ()


class SwitchKind(StrEnum):
    """What one switch stops."""

    EVERYTHING = "everything"  # no analysis starts, nothing is sent; images are still received
    MODEL = "model"
    DESTINATION = "destination"


@dataclass(frozen=True)
class Switch:
    """A switch that pauses a model, a destination or everything.

    Attributes:
        name: of the model or destination; "" for everything.
        paused_by: username; "" while it runs.
        paused_at: UTC; None while it runs.
    """

    kind: SwitchKind
    name: str = ""
    paused_by: str = ""
    paused_at: datetime | None = None

    @property
    def target(self) -> str:
        """Its key: "everything", "model:phoi-lung-nodule", "destination:pacs"."""
        return f"{self.kind.value}:{self.name}" if self.name else self.kind.value

    @property
    def paused(self) -> bool:
        """It is off."""
        return self.paused_at is not None


@dataclass(frozen=True)
class ModelKpis:
    """What reviewers said of one model version.

    Attributes:
        studies: signed studies.
    """

    model: str
    version: str
    studies: int
    accepted: int
    modified: int
    rejected: int
    missed: int


@dataclass(frozen=True)
class Kpis:
    """Use of Phoi at this site since ``since`` (UTC). Times are medians, s; None without one.

    Attributes:
        last_signed_at: UTC; None where nobody ever signed.
        nobody_signs: how many results wait for longer than a site allows, where nobody has signed
            anything for as long either; 0: somebody does.
        withdrawn: results that were recalled.
    """

    since: datetime
    received: int
    analysed: int
    not_analysable: int
    failed: int
    signed: int
    receive_to_result_s: float | None
    result_to_sign_s: float | None
    models: tuple[ModelKpis, ...]
    last_signed_at: datetime | None = None
    nobody_signs: int = 0
    withdrawn: int = 0


@dataclass(frozen=True)
class AuditEntry:
    """Who did or saw what.

    Attributes:
        at: UTC.
        action: a stable word: "sign_in", "view_study", "decide", ...
        study_instance_uid: None where no study is concerned.
        detail: short, without patient data.
    """

    at: datetime
    username: str
    action: str
    study_instance_uid: str | None
    detail: str


# --- the service -----------------------------------------------------------------------------


class Desk(Protocol):
    """The application service behind the review page. Every method may be called by any thread."""

    def worklist(self, limit: int) -> tuple[WorklistRow, ...]:
        """At most ``limit`` studies, ``in_worklist_order``."""
        ...

    def study(self, study_instance_uid: str) -> StudyView:
        """One study.

        Raises:
            UnknownStudy: nobody sent it.
        """
        ...

    def volume(self, study_instance_uid: str, revision: int) -> Volume:
        """The volume that this revision analysed. Called for every slice: must be cached.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: this revision is not the latest, has no volume, or its images are gone.
        """
        ...

    def decide(
        self,
        study_instance_uid: str,
        tracking_uid: str,
        verdict: Verdict,
        reviewer: Account,
        reason: str,
        correction: Correction,
    ) -> None:
        """Judge one nodule of the latest revision: ACCEPTED, MODIFIED or REJECTED.

        For a nodule that was marked as missed, REJECTED takes the mark away.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: already signed, or the latest revision has no such nodule.
        """
        ...

    def mark_missed(
        self,
        study_instance_uid: str,
        revision: int,
        center_lps_mm: Triple,
        mean_diameter_mm: float | None,
        reviewer: Account,
        reason: str,
    ) -> str:
        """Add a nodule that the model did not find; its new Tracking UID.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: already signed, or ``revision`` is not the latest.
        """
        ...

    def undo(self, study_instance_uid: str, reviewer: Account) -> str:
        """Take back the latest judgement that stands; the Tracking UID it was about.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: already signed, or nothing to take back.
        """
        ...

    def sign(
        self, study_instance_uid: str, revision: int, judgements_seen: int, reviewer: Account
    ) -> None:
        """Sign the review: final documents go out, and it becomes read only.

        Args:
            study_instance_uid: of the study.
            revision: the revision that the reviewer saw.
            judgements_seen: ``len(StudyView.history)`` that the reviewer saw: nobody signs what
                a colleague changed a moment ago.
            reviewer: who signs.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: already signed, a nodule is undecided, or it is no longer what the
                reviewer saw.
        """
        ...

    def acknowledge(self, study_instance_uid: str, revision: int, reviewer: Account) -> None:
        """Say that it was seen that Phoi could not read this study; nothing happens if it was.

        Raises:
            UnknownStudy: nobody sent it.
            ReviewConflict: ``revision`` is not the latest, or there is a result to sign.
        """
        ...

    def health(self) -> Health:
        """How everything on its way is doing."""
        ...

    def resend(self, delivery_id: int, reviewer: Account) -> None:
        """Queue a delivered or dead delivery again, with the same bytes.

        Raises:
            ReviewConflict: no such delivery, or its state knows no resending.
        """
        ...

    def resend_dead(self, destination: str, reviewer: Account) -> int:
        """Queue all dead letters of a destination again; how many that are.

        Raises:
            ReviewConflict: there are none that may be sent again.
        """
        ...

    def dead_letters(self, limit: int) -> tuple[DeadLetters, ...]:
        """Of each lane that has any, by name, with the latest ``limit`` of it."""
        ...

    def links(self) -> tuple[LinkView, ...]:
        """Every destination and worker, from the latest checks; does not wait for the network."""
        ...

    def reconciliations(self) -> tuple[Reconciliation, ...]:
        """The latest comparisons with the archives, latest first."""
        ...

    def switches(self) -> tuple[Switch, ...]:
        """Every switch there is: everything, each model, each destination."""
        ...

    @property
    def recalls(self) -> RecallBook:
        """What was, and can be, recalled."""
        ...

    def confirm_recalled(self, study_instance_uid: str, reviewer: Account) -> None:
        """Let the signed report of a study stand although its model was recalled.

        Raises:
            ReviewConflict: nobody asks for that.
        """
        ...

    def pause(self, target: str, reviewer: Account) -> None:
        """Turn a switch off; nothing happens if it is.

        Raises:
            ReviewConflict: there is no such switch.
        """
        ...

    def resume(self, target: str, reviewer: Account) -> None:
        """Turn a switch on; nothing happens if it is.

        Raises:
            ReviewConflict: there is no such switch.
        """
        ...

    def kpis(self) -> Kpis:
        """How Phoi is used here."""
        ...

    def log_access(
        self, username: str, action: str, study_instance_uid: str | None, detail: str
    ) -> None:
        """Append to the audit."""
        ...

    def audit(self, limit: int) -> tuple[AuditEntry, ...]:
        """The latest entries, latest first."""
        ...

    def authenticate(self, username: str, password: str) -> Account | None:
        """The account, if the password is its own. ``accounts.password_matches`` does the work."""
        ...

    def account(self, username: str) -> Account | None:
        """The account, or None where it does not exist or is closed."""
        ...

    def report_problem(self, text: str, reviewer: Account) -> str:
        """Store what a user reports; a short reference to quote."""
        ...

    def unready(self) -> tuple[str, ...]:
        """Why this node cannot serve now, without patient data; empty when it can."""
        ...
