"""How long anything may wait and how often it is tried: data, in one place. Pure.

Whatever is not at an end has a limit for its state. Beyond it the watchdog acts where an act is
safe, and else tells a person. So nothing waits in silence.

What is tried again, and what is for good:

- No worker answers, or a worker has no place: tried again for ever; nobody is to blame.
- A worker, or this node, broke while it had the study: at most ``maximum_attempts`` tries.
- A study that cannot be analysed, and a model that refuses it: for good, at once.
- A destination does not answer, or asks to try later: tried again for ever; after some times in a
  row only asked whether it is there (``circuit.py``).
- A destination fails on the document, or is silent about no other: at most
  ``maximum_errors`` times; a person may send it again.
- A destination refuses the document: for good; a person may send it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from phoi_edge_node.circuit import ProbePolicy
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.settings import DeliverySettings, EdgeSettings
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState, StudyState

# Reading a study's images and writing its documents, beside inference itself.
ANALYSIS_GRACE = timedelta(minutes=10)
# A DICOM association, or an MLLP or HTTP connection, times out at each of several steps.
SENDING_GRACE = timedelta(minutes=10)
COMPLETENESS_GRACE = timedelta(minutes=10)
# An image that was damaged on disk so often is not fetched any more: the disk is to blame.
TIMES_ASKED_AGAIN = 3


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait before the next try.

    Attributes:
        delays_s: before the second, third, ... try; the last one repeats.
        jitter: share of the delay that is drawn at random, so that no herd forms.
    """

    delays_s: tuple[float, ...]
    jitter: float = 0.2

    def delay(self, tries: int, random_share: float) -> timedelta:
        """How long to wait after ``tries`` tries; ``random_share`` is drawn from [0, 1)."""
        seconds = self.delays_s[min(max(tries, 1), len(self.delays_s)) - 1]
        return timedelta(seconds=seconds * (1 + self.jitter * random_share))


# Next door: a result should wait a minute at most once the PACS is back.
IN_THE_HOSPITAL = ProbePolicy(first_s=1.0, longest_s=60.0, idle_s=15.0)
# One server for many hospitals, perhaps far away.
OF_MANY_HOSPITALS = ProbePolicy(first_s=1.0, longest_s=300.0, idle_s=60.0, swallowing_s=10.0)
# Counters, which nobody waits for, to one server for all hospitals of a country.
OF_THE_COUNTRY = ProbePolicy(first_s=1.0, longest_s=900.0, idle_s=300.0, swallowing_s=60.0)


@dataclass(frozen=True)
class LanePolicy:
    """How one lane treats its destination.

    Attributes:
        maximum_errors: how often it may fail on one document.
        circuit_opens_after: contacts in a row without an answer.
    """

    maximum_errors: int = 10
    circuit_opens_after: int = 3
    probes: ProbePolicy = IN_THE_HOSPITAL


def lane_policy(settings: DeliverySettings, accepts: Collection[DocumentKind]) -> LanePolicy:
    """The policy of the lane that takes these kinds of document."""
    probes = IN_THE_HOSPITAL
    if DocumentKind.USAGE in accepts:
        probes = OF_THE_COUNTRY
    elif DocumentKind.FHIR_BUNDLE in accepts:
        probes = OF_MANY_HOSPITALS
    return LanePolicy(settings.maximum_errors, settings.circuit_opens_after, probes)


class Life(StrEnum):
    """Which of a study's four lives."""

    STUDY = "study"
    ANALYSIS = "analysis"
    DELIVERY = "delivery"
    REVIEW = "review"


LIVES: Mapping[Life, type[StrEnum]] = {
    Life.STUDY: StudyState,
    Life.ANALYSIS: AnalysisState,
    Life.DELIVERY: DeliveryState,
    Life.REVIEW: ReviewState,
}

# Nothing more has to happen; what may happen, like a late image, begins a new stay elsewhere.
ENDS: frozenset[StrEnum] = frozenset(
    {
        StudyState.COMPLETE,
        StudyState.EXPIRED,
        AnalysisState.SUCCEEDED,
        AnalysisState.NOT_ANALYSABLE,
        AnalysisState.FAILED,
        AnalysisState.SUPERSEDED,
        AnalysisState.WITHDRAWN,
        DeliveryState.DELIVERED,
        DeliveryState.SUPERSEDED,
        ReviewState.SIGNED,
        ReviewState.ACKNOWLEDGED,
        ReviewState.SUPERSEDED,
        ReviewState.WITHDRAWN,
    }
)


class Act(StrEnum):
    """What the watchdog does about what waits too long; it tells a person in any case."""

    TELL = "tell"
    RETRY = "retry"  # queue it again: whoever had it is taken to be dead
    NUDGE = "nudge"  # have its completeness looked at again


@dataclass(frozen=True)
class Limit:
    """How long something may be in one state.

    Attributes:
        longest: counted from where ``store.Overdue.since`` begins.
    """

    life: Life
    state: StrEnum
    longest: timedelta
    act: Act


def limits(settings: EdgeSettings) -> tuple[Limit, ...]:
    """One limit for every state that is no end."""
    watchdog = settings.watchdog
    completeness = timedelta(seconds=settings.completeness.limit_s + settings.dicom.quiet_time_s)
    receiving = completeness + COMPLETENESS_GRACE
    running = timedelta(seconds=settings.inference.deadline_s) + ANALYSIS_GRACE
    sending = timedelta(seconds=_slowest_s(settings)) + SENDING_GRACE
    return (
        Limit(Life.STUDY, StudyState.RECEIVING, receiving, Act.NUDGE),
        Limit(Life.STUDY, StudyState.COUNTING, receiving, Act.NUDGE),
        Limit(
            Life.ANALYSIS, AnalysisState.QUEUED, timedelta(hours=watchdog.queued_hours), Act.TELL
        ),
        Limit(Life.ANALYSIS, AnalysisState.RUNNING, running, Act.RETRY),
        Limit(
            Life.DELIVERY,
            DeliveryState.PENDING,
            timedelta(hours=watchdog.undelivered_hours),
            Act.TELL,
        ),
        Limit(Life.DELIVERY, DeliveryState.SENDING, sending, Act.RETRY),
        Limit(Life.DELIVERY, DeliveryState.DEAD, timedelta(), Act.TELL),
        Limit(Life.REVIEW, ReviewState.OPEN, timedelta(days=watchdog.unreviewed_days), Act.TELL),
    )


def _slowest_s(settings: EdgeSettings) -> float:
    """The longest time-out of all destinations, seconds."""
    ends = [*settings.archives, settings.hl7, settings.fhir]
    return max((end.timeout_s for end in ends if end is not None), default=0.0)
