"""Does a lane send, or only ask now and then whether its destination is back? Pure.

A circuit breaker (M. Nygard, Release It!, 2007): after some contacts in a row without an answer no
document is tried any more, so that none of them piles up tries and nobody is hammered. The
destination alone is asked whether it is there: the window doubles from one probe to the next up to
a longest one, and the moment within it is drawn at random over the whole of it ("full jitter":
M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), so that the nodes of many
hospitals do not come back all at once. Once it answers, one document is tried; when that has its
answer too, the others follow, one after the other; when not, another is tried soon, for it may be
the document.

The moments are of the clock that nobody can set: one that jumps neither hurries nor stops a lane.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

_LARGEST_EXPONENT = 30


class CircuitState(StrEnum):
    """What a lane does now."""

    CLOSED = "closed"  # it sends
    OPEN = "open"  # the destination is away: it is only asked whether it is there
    HALF_OPEN = "half_open"  # it answers again: one document is tried


class Contact(StrEnum):
    """What came of talking to a destination."""

    SILENT = "silent"  # no answer, neither to a probe nor about a document
    ANSWERED_PROBE = "answered_probe"
    ANSWERED_DOCUMENT = "answered_document"  # took it, refused it or failed on it: it is there
    NOTHING_TO_SEND = "nothing_to_send"


@dataclass(frozen=True)
class ProbePolicy:
    """How often a destination is asked whether it is there.

    Attributes:
        first_s: window of the first probe of one that is away.
        longest_s: the window grows no further.
        swallowing_s: nor beyond this, while it answers probes and nothing about documents: perhaps
            it is these documents, and others go.
        idle_s: after so long without any contact one that answers is asked too.
    """

    first_s: float
    longest_s: float
    idle_s: float
    swallowing_s: float = 5.0

    def wait_s(self, probes: int, random_share: float, *, answered: bool = False) -> float:
        """Seconds until the next probe after so many in vain; the share is drawn from [0, 1).

        Args:
            answered: the last one was not in vain: what followed it was.
        """
        window = self.first_s * 2.0 ** min(probes, _LARGEST_EXPONENT)
        return random_share * min(self.swallowing_s if answered else self.longest_s, window)


@dataclass(frozen=True)
class Circuit:
    """One lane's circuit breaker.

    Attributes:
        since: when it came into this state, UTC.
        failures: contacts in a row without an answer; one answered probe does not end the row.
        probe_at: when to ask next, monotonic seconds; only while open.
    """

    since: datetime
    state: CircuitState = CircuitState.CLOSED
    failures: int = 0
    probe_at: float = 0.0

    def after(self, contact: Contact, now: datetime) -> Circuit:
        """What follows, except for silence: see ``after_silence``."""
        match self.state, contact:
            case CircuitState.OPEN, Contact.ANSWERED_PROBE:
                return replace(self, state=CircuitState.HALF_OPEN, since=now)
            case CircuitState.CLOSED, Contact.ANSWERED_PROBE | Contact.ANSWERED_DOCUMENT:
                return replace(self, failures=0)
            case _, Contact.ANSWERED_DOCUMENT:
                return Circuit(now)
            case CircuitState.HALF_OPEN, Contact.NOTHING_TO_SEND:
                return Circuit(now)
            case _:
                return self

    def after_silence(
        self,
        now: datetime,
        monotonic: float,
        opens_after: int,
        policy: ProbePolicy,
        random_share: float,
    ) -> Circuit:
        """No answer: the row grows, and may open the circuit or put off the next probe."""
        failures = self.failures + 1
        if self.state is CircuitState.CLOSED and failures < opens_after:
            return replace(self, failures=failures)
        answered = self.state is CircuitState.HALF_OPEN
        probes = max(0, failures - opens_after)
        wait_s = policy.wait_s(probes, random_share, answered=answered)
        since = self.since if self.state is CircuitState.OPEN else now
        return Circuit(since, CircuitState.OPEN, failures, monotonic + wait_s)
