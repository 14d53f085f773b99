"""How long anything may wait and how often it is tried: data, in one place. Pure.

Whatever is not at an end has a limit for its state. Beyond it the watchdog acts where an act is
safe, and else tells a person. So nothing waits in silence.

What is tried again, and what is for good:

- No worker answers, or a worker has no place: tried again for ever; nobody is to blame.
- A worker, or this node, broke while it had the study: at most ``maximum_attempts`` tries.
- A study that cannot be analysed, and a model that refuses it: for good, at once.
- A destination does not answer, or asks to try later: tried again for ever.
- A destination refuses the document: for good; a person may send it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from phoi_edge_node.settings import EdgeSettings
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
