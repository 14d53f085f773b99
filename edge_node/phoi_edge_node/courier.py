"""Carries one lane's documents to its destination: at least once, same bytes, in order."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from datetime import datetime

import structlog

from phoi_edge_node.policies import RetryPolicy
from phoi_edge_node.ports import Clock, Delivered, Destination, Document, SendOutcome, Unreachable
from phoi_edge_node.store import StudyStore
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.workflow import insist

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LinkReport:
    """What the last contact with a destination said.

    Attributes:
        at: UTC.
    """

    outcome: SendOutcome
    at: datetime


class Courier:
    """One lane of the outbox."""

    def __init__(
        self, store: StudyStore, destination: Destination, clock: Clock, retry: RetryPolicy
    ) -> None:
        self._store = store
        self._destination = destination
        self._clock = clock
        self._retry = retry
        self._lock = threading.Lock()
        self._last: LinkReport | None = None

    @property
    def destination(self) -> Destination:
        """Where this lane goes."""
        return self._destination

    @property
    def last(self) -> LinkReport | None:
        """The last contact; None before the first."""
        with self._lock:
            return self._last

    def check(self) -> None:
        """Ask the destination whether it is there."""
        self._note(self._destination.check())

    def send_next(self) -> bool:
        """Send the next due document; False if there is none or the lane is paused."""
        name = self._destination.name
        paused = {pause.target for pause in self._store.pauses()}
        if paused & {"everything", f"destination:{name}"}:
            return False
        claimed = self._store.claim_delivery(name)
        if claimed is None:
            return False
        delivery, document = claimed
        outcome = self._send(document)
        self._note(outcome)
        delay = self._retry.delay(delivery.attempts, random.random())  # noqa: S311 - jitter
        retry_at = self._clock.now() + delay
        state = insist(lambda: self._store.settle_delivery(delivery.id, outcome, retry_at))
        log.log(
            20 if state is DeliveryState.DELIVERED else 30,
            "delivery tried",
            destination=name,
            kind=document.kind.value,
            identity=document.identity,
            state=state.value,
            attempts=delivery.attempts,
            error="" if isinstance(outcome, Delivered) else outcome.reason,
        )
        return True

    def _send(self, document: Document) -> SendOutcome:
        try:
            return self._destination.send(document)
        except (
            Exception
        ) as error:  # a bug in an adapter must not stop the lane, nor lose a document
            log.exception("a destination raised", destination=self._destination.name)
            return Unreachable(f"internal error: {type(error).__name__}")

    def _note(self, outcome: SendOutcome) -> None:
        with self._lock:
            self._last = LinkReport(outcome, self._clock.now())
