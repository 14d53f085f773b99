"""The four small lives of a study, each as one table of transitions. Pure: no clock, no disk.

A *Study* is its instances and whether they are all there. An *Analysis* is one run of one pinned
model over one series. A *Delivery* carries one document to one destination. A *Review* is one
person's judgement of one analysis. What a page shows is derived from these four.

A pair (state, event) that is missing from its table is a bug and raises ``IllegalTransition``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from phoi_edge_node.errors import IllegalTransition


class StudyState(StrEnum):
    """Are all instances of the study here?"""

    RECEIVING = "receiving"
    COUNTING = "counting"  # nothing more comes; is it whole?
    COMPLETE = "complete"
    EXPIRED = "expired"  # its images were removed by the retention policy; its results stay


class StudyEvent(StrEnum):
    """What happens to a study."""

    INSTANCE_STORED = "instance_stored"
    INSTANCE_LOST = "instance_lost"  # found damaged on disk: to be asked for again
    QUIET = "quiet"
    COUNTED = "counted"
    LIMIT = "limit"  # it is analysed as it is
    EXPIRE = "expire"


class AnalysisState(StrEnum):
    """Where one run of one model over one study stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    NOT_ANALYSABLE = "not_analysable"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class AnalysisEvent(StrEnum):
    """What happens to an analysis."""

    START = "start"
    FINISH = "finish"
    REFUSE = "refuse"
    RETRY = "retry"
    GIVE_UP = "give_up"
    SUPERSEDE = "supersede"


class DeliveryState(StrEnum):
    """Where one document stands on its way to one destination."""

    PENDING = "pending"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"
    SUPERSEDED = "superseded"


class DeliveryEvent(StrEnum):
    """What happens to a delivery."""

    SEND = "send"
    CONFIRM = "confirm"
    RETRY = "retry"
    REFUSE = "refuse"
    RESEND = "resend"
    SUPERSEDE = "supersede"


class ReviewState(StrEnum):
    """Has a person decided?"""

    OPEN = "open"
    SIGNED = "signed"
    SUPERSEDED = "superseded"


class ReviewEvent(StrEnum):
    """What happens to a review."""

    DECIDE = "decide"
    UNDO = "undo"
    SIGN = "sign"
    SUPERSEDE = "supersede"


STUDY: Mapping[StudyState, Mapping[StudyEvent, StudyState]] = {
    StudyState.RECEIVING: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.QUIET: StudyState.COUNTING,
    },
    StudyState.COUNTING: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.COUNTED: StudyState.COMPLETE,
        StudyEvent.LIMIT: StudyState.COMPLETE,
    },
    # A late instance opens the study again; its next completion makes the next revision.
    StudyState.COMPLETE: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.EXPIRE: StudyState.EXPIRED,
    },
    StudyState.EXPIRED: {StudyEvent.INSTANCE_STORED: StudyState.RECEIVING},
}

ANALYSIS: Mapping[AnalysisState, Mapping[AnalysisEvent, AnalysisState]] = {
    AnalysisState.QUEUED: {
        AnalysisEvent.START: AnalysisState.RUNNING,
        AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED,
    },
    AnalysisState.RUNNING: {
        AnalysisEvent.FINISH: AnalysisState.SUCCEEDED,
        AnalysisEvent.REFUSE: AnalysisState.NOT_ANALYSABLE,
        AnalysisEvent.RETRY: AnalysisState.QUEUED,
        AnalysisEvent.GIVE_UP: AnalysisState.FAILED,
        AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED,
    },
    AnalysisState.SUCCEEDED: {AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED},
    AnalysisState.NOT_ANALYSABLE: {AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED},
    AnalysisState.FAILED: {AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED},
    AnalysisState.SUPERSEDED: {},
}

DELIVERY: Mapping[DeliveryState, Mapping[DeliveryEvent, DeliveryState]] = {
    DeliveryState.PENDING: {
        DeliveryEvent.SEND: DeliveryState.SENDING,
        DeliveryEvent.SUPERSEDE: DeliveryState.SUPERSEDED,
    },
    DeliveryState.SENDING: {
        DeliveryEvent.CONFIRM: DeliveryState.DELIVERED,
        DeliveryEvent.RETRY: DeliveryState.PENDING,
        DeliveryEvent.REFUSE: DeliveryState.DEAD,
    },
    DeliveryState.DELIVERED: {DeliveryEvent.RESEND: DeliveryState.PENDING},
    DeliveryState.DEAD: {
        DeliveryEvent.RESEND: DeliveryState.PENDING,
        DeliveryEvent.SUPERSEDE: DeliveryState.SUPERSEDED,
    },
    DeliveryState.SUPERSEDED: {},
}

REVIEW: Mapping[ReviewState, Mapping[ReviewEvent, ReviewState]] = {
    ReviewState.OPEN: {
        ReviewEvent.DECIDE: ReviewState.OPEN,
        ReviewEvent.UNDO: ReviewState.OPEN,
        ReviewEvent.SIGN: ReviewState.SIGNED,
        ReviewEvent.SUPERSEDE: ReviewState.SUPERSEDED,
    },
    # What a person has signed, only a person replaces: by signing a later revision.
    ReviewState.SIGNED: {ReviewEvent.SUPERSEDE: ReviewState.SUPERSEDED},
    ReviewState.SUPERSEDED: {},
}

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


def after(table: Mapping[State, Mapping[Event, State]], state: State, event: Event) -> State:
    """The state that follows.

    Raises:
        IllegalTransition: the table has no such row.
    """
    try:
        return table[state][event]
    except KeyError:
        raise IllegalTransition(
            f"{type(state).__name__} {state.value} knows no {event.value}"
        ) from None
