"""Storage commitment (PS3.4 J), both ways: who takes over the duty to keep an instance.

A peer asks us about images that it sent: they are looked at on disk, and a report follows, durable
and tried again until it arrives. We ask an archive about results that we sent: what it does not
hold is sent again, the same bytes under the same identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

import structlog

from phoi_edge_node.errors import IllegalTransition
from phoi_edge_node.ports import (
    Clock,
    Delivered,
    Document,
    Erred,
    Refused,
    SendOutcome,
    UidSource,
    Unreachable,
)

# Why an instance is not committed (PS3.3 C.14.1.1).
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
CLASS_CONFLICT = 0x0119

MOST_REFERENCES = 10_000  # in one request; a request beyond it is refused
MOST_OWED = 10_000  # requests whose report has not gone out yet
ANSWER_WITHIN = timedelta(hours=1)  # then an archive is asked again
GIVE_UP_AFTER = 50  # tries to report; the peer may ask again
REFUSALS = 10  # in a row, of an archive that is asked: then it is left alone
_OUR_NAME = "storage-commitment"

log = structlog.get_logger(__name__)


class CommitmentState(StrEnum):
    """Of one document that an archive was asked about."""

    ASKED = "asked"
    COMMITTED = "committed"
    FAILED = "failed"  # it is to be sent again
    SENT_AGAIN = "sent_again"
    UNANSWERED = "unanswered"  # it was asked about again


@dataclass(frozen=True)
class Reference:
    """One instance that a request is about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentRequest:
    """A peer asks us.

    Attributes:
        ae_title: of the peer.
        attempts: reports that did not arrive.
    """

    transaction_uid: str
    ae_title: str
    references: tuple[Reference, ...]
    attempts: int = 0


@dataclass(frozen=True)
class CommitmentReport:
    """The answer to a request.

    Attributes:
        failed: with the failure reason of each.
    """

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]


@dataclass(frozen=True)
class KeptInstance:
    """Where an instance lies, as the index knows it."""

    sop_class_uid: str
    path: str
    sha256: str


@dataclass(frozen=True)
class SentDocument:
    """A delivered document that an archive is to be asked about.

    Attributes:
        attempts: times it was sent; an answer is about the last one.
    """

    delivery_id: int
    attempts: int
    document: Document


class CommitmentLedger(Protocol):
    """The part of the store that commitment uses. Every method is one transaction."""

    # asked of us
    def owe_report(self, request: CommitmentRequest) -> bool:
        """Keep a request until its report has arrived; False if too many are kept already."""
        ...

    def next_owed_report(self) -> CommitmentRequest | None:
        """The request that is due and waits longest."""
        ...

    def settle_report(self, request: CommitmentRequest, retry_after: timedelta | None) -> None:
        """The report arrived or was given up (None), or is to be tried again."""
        ...

    def kept_instances(self, sop_instance_uids: Collection[str]) -> Mapping[str, KeptInstance]:
        """Those that are in the index, by SOP Instance UID."""
        ...

    # asked by us
    def uncommitted(self, archive: str) -> Sequence[SentDocument]:
        """Of one study whose documents have all been delivered: those to ask about."""
        ...

    def commitment_asked(
        self, archive: str, transaction_uid: str, documents: Sequence[SentDocument]
    ) -> None:
        """Before the archive is asked: its answer may be faster than its acknowledgement."""
        ...

    def commitment_not_asked(self, transaction_uid: str) -> None:
        """It could not be asked: ask another time."""
        ...

    def commitment_answered(self, archive: str, report: CommitmentReport) -> bool:
        """Record an archive's report; False if it was never asked that."""
        ...

    def failed_commitments(self) -> Sequence[int]:
        """Deliveries that are to be sent again."""
        ...

    def commitment_sent_again(self, delivery_id: int) -> None:
        """It is on its way again, or cannot be sent again."""
        ...

    def commitment_counts(self) -> Mapping[tuple[str, CommitmentState], int]:
        """Documents by archive and state."""
        ...

    # deliveries
    def resend(self, delivery_id: int, username: str) -> None:
        """As ``StudyStore.resend``."""
        ...


class CommitmentPeer(Protocol):
    """An archive that can be asked."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def ae_title(self) -> str:
        """As in the settings."""
        ...

    def ask(self, transaction_uid: str, documents: Sequence[Document]) -> SendOutcome:
        """N-ACTION; the report comes later, on another association."""
        ...


@dataclass(frozen=True)
class _Silence:
    """An archive that could not be asked.

    Attributes:
        refusals: in a row, of the association or of the request.
        until: monotonic; it is not asked before.
    """

    tries: int = 0
    refusals: int = 0
    until: float = 0.0


Report = Callable[[str, CommitmentReport], SendOutcome]
"""Sends a report to the peer of an AE title (N-EVENT-REPORT)."""

HashOf = Callable[[str], str | None]
"""SHA-256, hex, of the data set that lies at a path; None where it cannot be read."""


class CommitmentClerk:
    """Does what is due. Safe to use from several threads.

    Args:
        retry_after: how long to wait after so many tries to report.
    """

    def __init__(
        self,
        ledger: CommitmentLedger,
        peers: Sequence[CommitmentPeer],
        hash_of: HashOf,
        clock: Clock,
        uids: UidSource,
        retry_after: Callable[[int], timedelta],
    ) -> None:
        self._ledger = ledger
        self._peers = peers
        self._hash_of = hash_of
        self._clock = clock
        self._uids = uids
        self._retry_after = retry_after
        self._silent: dict[str, _Silence] = {}

    # asked of us

    def requested(self, request: CommitmentRequest) -> bool:
        """Take a request on, durably; False if there are too many."""
        return self._ledger.owe_report(request)

    def report_next(self, report: Report) -> bool:
        """Look at the instances of the next request and report; False if none is due."""
        request = self._ledger.next_owed_report()
        if request is None:
            return False
        outcome = report(request.ae_title, self._verify(request))
        delivered = isinstance(outcome, Delivered)
        attempts = request.attempts + 1
        ended = delivered or attempts >= GIVE_UP_AFTER
        delay = None if ended else self._retry_after(attempts)
        self._ledger.settle_report(replace(request, attempts=attempts), delay)
        log.info(
            "commitment reported" if delivered else "commitment not reported",
            transaction_uid=request.transaction_uid,
            ae_title=request.ae_title,
            attempts=attempts,
            why="" if isinstance(outcome, Delivered) else outcome.reason,
        )
        return True

    def _verify(self, request: CommitmentRequest) -> CommitmentReport:
        kept = self._ledger.kept_instances([r.sop_instance_uid for r in request.references])
        judged = [(r, self._failure(r, kept.get(r.sop_instance_uid))) for r in request.references]
        return CommitmentReport(
            request.transaction_uid,
            committed=tuple(reference for reference, reason in judged if reason is None),
            failed=tuple((reference, reason) for reference, reason in judged if reason is not None),
        )

    def _failure(self, reference: Reference, kept: KeptInstance | None) -> int | None:
        """Why we cannot vouch for an instance; None if we can: it was read just now."""
        if kept is None:
            return NO_SUCH_INSTANCE
        if kept.sop_class_uid != reference.sop_class_uid:
            return CLASS_CONFLICT
        if self._hash_of(kept.path) != kept.sha256:
            log.error("a kept instance is damaged", sop_instance_uid=reference.sop_instance_uid)
            return PROCESSING_FAILURE
        return None

    # asked by us

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The archives that refuse to be asked, and are left alone until Phoi starts again."""
        known = list(self._silent.items())  # a copy: another thread may be asking
        return tuple(name for name, silence in known if silence.refusals >= REFUSALS)

    def ask_next(self) -> bool:
        """Ask each archive about one study; True if there may be more."""
        now = self._clock.monotonic()
        asked = [self._ask(peer) for peer in self._peers if self._may_ask(peer, now)]
        return True in asked

    def _may_ask(self, peer: CommitmentPeer, now: float) -> bool:
        silence = self._silent.get(peer.name, _Silence())
        return silence.refusals < REFUSALS and silence.until <= now

    def _ask(self, peer: CommitmentPeer) -> bool:
        documents = self._ledger.uncommitted(peer.name)
        if not documents:
            return False
        transaction_uid = self._uids.dicom_uid()
        self._ledger.commitment_asked(peer.name, transaction_uid, documents)
        outcome = peer.ask(transaction_uid, [sent.document for sent in documents])
        if isinstance(outcome, Delivered):
            self._silent.pop(peer.name, None)
            return True
        self._ledger.commitment_not_asked(transaction_uid)
        self._put_off(peer, outcome)
        return False

    def _put_off(self, peer: CommitmentPeer, outcome: Refused | Erred | Unreachable) -> None:
        """Ask later, and ever later; not at all where it refuses for good."""
        silence = self._silent.get(peer.name, _Silence())
        tries = silence.tries + 1
        refusals = silence.refusals + 1 if isinstance(outcome, Refused) else 0
        until = self._clock.monotonic() + self._retry_after(tries).total_seconds()
        self._silent[peer.name] = _Silence(tries, refusals, until)
        given_up = refusals >= REFUSALS
        log.log(
            40 if given_up else 30,
            "commitment is asked for no more" if given_up else "commitment not asked",
            archive=peer.name,
            why=outcome.reason,
        )

    def reported(self, ae_title: str, report: CommitmentReport) -> bool:
        """An archive answers; False if it was never asked that."""
        known = any(
            self._ledger.commitment_answered(peer.name, report)
            for peer in self._peers
            if peer.ae_title == ae_title
        )
        log.log(
            20 if known and not report.failed else 30,
            "commitment answered" if known else "commitment of nothing we asked",
            ae_title=ae_title,
            transaction_uid=report.transaction_uid,
            committed=len(report.committed),
            failed=len(report.failed),
        )
        return known

    def send_failed_again(self) -> bool:
        """What an archive does not hold goes out once more, with the same identity."""
        for delivery_id in self._ledger.failed_commitments():
            try:
                self._ledger.resend(delivery_id, _OUR_NAME)
            except IllegalTransition as refusal:  # a later document has taken its place
                log.info("not sent again", delivery=delivery_id, why=str(refusal))
            self._ledger.commitment_sent_again(delivery_id)
        return False
