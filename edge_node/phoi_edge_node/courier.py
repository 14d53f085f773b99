"""Carries one lane's documents to its destination: at least once, same bytes, in order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from phoi_edge_node.circuit import Circuit, CircuitState, Contact
from phoi_edge_node.policies import LanePolicy, RetryPolicy
from phoi_edge_node.ports import (
    Clock,
    Delivered,
    Destination,
    Document,
    Erred,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.store import Delivery, StudyStore
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
    """One lane of the outbox: the only one that talks to its destination.

    A destination that does not answer holds up nobody else's documents: each lane has a courier,
    and a thread, of its own. Nor does a document that its destination fails on: it waits its own
    time, while those of other studies go.

    Args:
        random_share: draws from [0, 1): for jitter.
    """

    def __init__(
        self,
        store: StudyStore,
        destination: Destination,
        clock: Clock,
        retry: RetryPolicy,
        lane: LanePolicy = LanePolicy(),  # noqa: B008 - frozen
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._destination = destination
        self._clock = clock
        self._retry = retry
        self._lane = lane
        self._random_share = random_share
        self._lock = threading.Lock()
        self._last: LinkReport | None = None
        self._circuit = Circuit(clock.now())
        self._answered = 0  # documents about which there was an answer
        self._silent_at: dict[int, int] = {}  # by delivery id: how many, when it was last silent

    @property
    def destination(self) -> Destination:
        """Where this lane goes."""
        return self._destination

    @property
    def last(self) -> LinkReport | None:
        """The last contact; None before the first."""
        with self._lock:
            return self._last

    @property
    def circuit(self) -> Circuit:
        """Does this lane send?"""
        with self._lock:
            return self._circuit

    @property
    def next_probe_at(self) -> datetime | None:
        """When the destination is asked next whether it is back, UTC; None while it is there."""
        circuit = self.circuit
        if circuit.state is not CircuitState.OPEN:
            return None
        left_s = max(0.0, circuit.probe_at - self._clock.monotonic())
        return self._clock.now() + timedelta(seconds=left_s)

    def step(self) -> bool:
        """Send the next document; where nothing is due, ask now and then for the destination.

        Returns:
            Is there perhaps more to do at once?
        """
        if self.send_next():
            return True
        if self.circuit.state is not CircuitState.OPEN and self._silent_for_long():
            self.check()
        return False

    def check(self) -> None:
        """Ask the destination whether it is there."""
        self._note(self._ask(), Contact.ANSWERED_PROBE)

    def send_next(self) -> bool:
        """Send the next due document, if the destination is not known to be away.

        Returns:
            False if nothing is due, the lane is paused, or the destination is away.
        """
        if self.circuit.state is CircuitState.OPEN and not self._answers_again():
            return False
        name = self._destination.name
        paused = {pause.target for pause in self._store.pauses()}
        if paused & {"everything", f"destination:{name}"}:
            return False
        claimed = self._store.claim_delivery(name)
        if claimed is None:
            self._become(self.circuit.after(Contact.NOTHING_TO_SEND, self._clock.now()))
            return False
        delivery, document = claimed
        outcome = self._judged(delivery, self._send(document))
        self._settle(delivery, document, outcome)
        self._note(outcome, Contact.ANSWERED_DOCUMENT)
        return True

    def _answers_again(self) -> bool:
        """Ask, if it is time to."""
        if self._clock.monotonic() < self.circuit.probe_at:
            return False
        self.check()
        return self.circuit.state is not CircuitState.OPEN

    def _silent_for_long(self) -> bool:
        last = self.last
        if last is None:
            return True
        silent = self._clock.now() - last.at
        # A wall clock that was set back must not end the asking.
        return not timedelta() <= silent < timedelta(seconds=self._lane.probes.idle_s)

    def _settle(self, delivery: Delivery, document: Document, outcome: SendOutcome) -> None:
        delay = self._retry.delay(delivery.attempts, self._random_share())
        retry_at = self._clock.now() + delay
        state = insist(
            lambda: self._store.settle_delivery(
                delivery.id, outcome, retry_at, self._lane.maximum_errors
            )
        )
        log.log(
            20 if state is DeliveryState.DELIVERED else 30,
            "delivery tried",
            destination=self._destination.name,
            kind=document.kind.value,
            identity=document.identity,
            state=state.value,
            attempts=delivery.attempts,
            error="" if isinstance(outcome, Delivered) else outcome.reason,
        )

    def _ask(self) -> SendOutcome:
        try:
            return self._destination.check()
        except Exception as error:  # a bug in an adapter must not stop the lane
            return self._raised(error)

    def _send(self, document: Document) -> SendOutcome:
        try:
            return self._destination.send(document)
        except Exception as error:  # nor may it lose a document
            return self._raised(error)

    def _judged(self, delivery: Delivery, outcome: SendOutcome) -> SendOutcome:
        """Silence about one document only is an error of that document, and bounded.

        Only: since it was last silent about it, it has answered about another, and it answers a
        probe right now. A destination that is away, or that takes nothing of anybody, does not.
        """
        if not isinstance(outcome, Unreachable):
            self._answered += 1
            self._silent_at.pop(delivery.id, None)
            return outcome
        before = self._silent_at.get(delivery.id, self._answered)
        self._silent_at[delivery.id] = self._answered
        if before == self._answered or isinstance(self._ask(), Unreachable):
            return outcome
        return Erred(f"{outcome.reason}, while it answers about others", outcome.nothing_taken)

    def _raised(self, error: Exception) -> Unreachable:
        log.exception("a destination raised", destination=self._destination.name)
        return Unreachable(f"internal error: {type(error).__name__}")

    def _note(self, outcome: SendOutcome, answered: Contact) -> None:
        now = self._clock.now()
        with self._lock:
            self._last = LinkReport(outcome, now)
        before = self.circuit
        if isinstance(outcome, Unreachable):
            circuit = before.after_silence(
                now,
                self._clock.monotonic(),
                self._lane.circuit_opens_after,
                self._lane.probes,
                self._random_share(),
            )
        else:
            circuit = before.after(answered, now)
        self._become(circuit, "" if isinstance(outcome, Delivered) else outcome.reason)
        if before.state is CircuitState.HALF_OPEN and circuit.state is CircuitState.CLOSED:
            self._hurry()

    def _become(self, circuit: Circuit, reason: str = "") -> None:
        with self._lock:
            before, self._circuit = self._circuit, circuit
        if before.state is not circuit.state:
            log.log(
                30 if circuit.state is CircuitState.OPEN else 20,
                "circuit changed",
                destination=self._destination.name,
                state=circuit.state.value,
                was=before.state.value,
                lasted_s=round((circuit.since - before.since).total_seconds()),
                contacts_in_vain=max(before.failures, circuit.failures),
                error=reason,
            )

    def _hurry(self) -> None:
        """It takes documents again: what it could not be reached for waits no longer."""
        name = self._destination.name
        hurried = insist(lambda: self._store.hurry(name))
        log.info("deliveries hurried", destination=name, number=hurried)
