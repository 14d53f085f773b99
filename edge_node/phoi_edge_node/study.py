"""The four small lives of a study, each as one table of transitions. Pure: no clock, no disk.

A *Study* is its instances and whether they are all there. An *Analysis* is one run of one pinned
model over one series. A *Delivery* carries one document to one destination. A *Review* is one
person's judgement of one analysis. What a page shows is derived from these four.

Every pair (state, event) is decided in its table: the state that follows, or why nothing follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from phoi_edge_node.errors import IllegalTransition, TransitionRefused


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
    WITHDRAWN = "withdrawn"  # recalled: nobody may use it any more, and nothing need follow it


class AnalysisEvent(StrEnum):
    """What happens to an analysis."""

    START = "start"
    FINISH = "finish"
    REFUSE = "refuse"
    RETRY = "retry"
    GIVE_UP = "give_up"
    SUPERSEDE = "supersede"
    WITHDRAW = "withdraw"  # its model, or the images of that time, turned out bad


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
    GIVE_UP = "give_up"  # the destination failed on it too often
    REFUSE = "refuse"
    RESEND = "resend"
    SUPERSEDE = "supersede"


class ReviewState(StrEnum):
    """Has a person decided?"""

    OPEN = "open"
    SIGNED = "signed"
    ACKNOWLEDGED = "acknowledged"  # seen: Phoi could not read the study, there is nothing to sign
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"  # with the result that it is of


class ReviewEvent(StrEnum):
    """What happens to a review."""

    DECIDE = "decide"
    UNDO = "undo"
    SIGN = "sign"
    ACKNOWLEDGE = "acknowledge"
    SUPERSEDE = "supersede"  # a later revision was queued
    REPLACE = "replace"  # a later revision was signed
    WITHDRAW = "withdraw"  # its result was recalled
    REVOKE = "revoke"  # its result was recalled, with what people have signed of it


@dataclass(frozen=True)
class Ignored:
    """Nothing follows, and that is right: the event came late, or twice."""

    because: str


@dataclass(frozen=True)
class Refused:
    """A person asks for what this state does not allow, from a page that may be outdated."""

    because: str


@dataclass(frozen=True)
class Impossible:
    """Only a bug of ours can bring this event here."""

    because: str


State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)
Table = Mapping[State, Mapping[Event, State | Ignored | Refused | Impossible]]

STUDY: Table[StudyState, StudyEvent] = {
    StudyState.RECEIVING: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.QUIET: StudyState.COUNTING,
        StudyEvent.COUNTED: Ignored("an image came while it was counted: it is counted again"),
        # Its images never stop coming, or each count is overtaken by another image.
        StudyEvent.LIMIT: StudyState.COMPLETE,
        StudyEvent.EXPIRE: Ignored("an image came since retention looked: it is needed"),
    },
    StudyState.COUNTING: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.QUIET: Ignored("it is being counted already"),
        StudyEvent.COUNTED: StudyState.COMPLETE,
        StudyEvent.LIMIT: StudyState.COMPLETE,
        StudyEvent.EXPIRE: Ignored("images came since retention looked: they are needed"),
    },
    # A late instance opens the study again; its next completion makes the next revision.
    StudyState.COMPLETE: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: StudyState.RECEIVING,
        StudyEvent.QUIET: Ignored("it was completed by another count"),
        StudyEvent.COUNTED: Ignored("it was completed by another count"),
        StudyEvent.LIMIT: Ignored("it was completed just before its limit"),
        StudyEvent.EXPIRE: StudyState.EXPIRED,
    },
    StudyState.EXPIRED: {
        StudyEvent.INSTANCE_STORED: StudyState.RECEIVING,
        StudyEvent.INSTANCE_LOST: Ignored("its images were removed on purpose"),
        StudyEvent.QUIET: Ignored("it was complete long ago"),
        StudyEvent.COUNTED: Ignored("it was complete long ago"),
        StudyEvent.LIMIT: Ignored("it was complete long ago"),
        StudyEvent.EXPIRE: Ignored("its images are gone already"),
    },
}

_ONLY_QUEUED_STARTS = Impossible("only what is queued is claimed, under a lock")
_ENDED_BY_ANOTHER_TRY = Ignored("another try ended it first")
_TAKEN_OVER = Ignored("a later revision has taken its place: what this one found is dropped")
_NOTHING_TO_WITHDRAW = Impossible("it has told nothing: a recall queues it anew instead")
_RECALLED = Ignored("it is withdrawn already")

ANALYSIS: Table[AnalysisState, AnalysisEvent] = {
    AnalysisState.QUEUED: {
        AnalysisEvent.START: AnalysisState.RUNNING,
        # A try that the watchdog gave up on, and queued again, ends after all: it counts.
        AnalysisEvent.FINISH: AnalysisState.SUCCEEDED,
        AnalysisEvent.REFUSE: AnalysisState.NOT_ANALYSABLE,
        AnalysisEvent.RETRY: Ignored("it is queued again already"),
        AnalysisEvent.GIVE_UP: Ignored("it is queued again: that try decides"),
        AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED,
        AnalysisEvent.WITHDRAW: _NOTHING_TO_WITHDRAW,
    },
    AnalysisState.RUNNING: {
        AnalysisEvent.START: _ONLY_QUEUED_STARTS,
        AnalysisEvent.FINISH: AnalysisState.SUCCEEDED,
        AnalysisEvent.REFUSE: AnalysisState.NOT_ANALYSABLE,
        AnalysisEvent.RETRY: AnalysisState.QUEUED,
        AnalysisEvent.GIVE_UP: AnalysisState.FAILED,
        AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED,
        AnalysisEvent.WITHDRAW: _NOTHING_TO_WITHDRAW,
    },
    **{
        ended: {
            AnalysisEvent.START: _ONLY_QUEUED_STARTS,
            AnalysisEvent.FINISH: _ENDED_BY_ANOTHER_TRY,
            AnalysisEvent.REFUSE: _ENDED_BY_ANOTHER_TRY,
            AnalysisEvent.RETRY: _ENDED_BY_ANOTHER_TRY,
            AnalysisEvent.GIVE_UP: _ENDED_BY_ANOTHER_TRY,
            AnalysisEvent.SUPERSEDE: AnalysisState.SUPERSEDED,
            AnalysisEvent.WITHDRAW: AnalysisState.WITHDRAWN,
        }
        for ended in (
            AnalysisState.SUCCEEDED,
            AnalysisState.NOT_ANALYSABLE,
            AnalysisState.FAILED,
        )
    },
    AnalysisState.SUPERSEDED: {
        AnalysisEvent.START: _ONLY_QUEUED_STARTS,
        AnalysisEvent.FINISH: _TAKEN_OVER,
        AnalysisEvent.REFUSE: _TAKEN_OVER,
        AnalysisEvent.RETRY: _TAKEN_OVER,
        AnalysisEvent.GIVE_UP: _TAKEN_OVER,
        AnalysisEvent.SUPERSEDE: Ignored("it is superseded already"),
        # Only where its successor has told nothing yet: till then, what it told stands outside.
        AnalysisEvent.WITHDRAW: AnalysisState.WITHDRAWN,
    },
    AnalysisState.WITHDRAWN: {
        AnalysisEvent.START: _ONLY_QUEUED_STARTS,
        AnalysisEvent.FINISH: _RECALLED,
        AnalysisEvent.REFUSE: _RECALLED,
        AnalysisEvent.RETRY: _RECALLED,
        AnalysisEvent.GIVE_UP: _RECALLED,
        AnalysisEvent.SUPERSEDE: Ignored("that it was withdrawn must still be told everywhere"),
        AnalysisEvent.WITHDRAW: _RECALLED,
    },
}

_ONLY_PENDING_IS_SENT = Impossible("only what is pending is claimed, under a lock")
_ARRIVED_BEFORE = Ignored("an earlier answer said that it had arrived")
_NOT_SENT = Impossible("nobody sends it in this state")

DELIVERY: Table[DeliveryState, DeliveryEvent] = {
    DeliveryState.PENDING: {
        DeliveryEvent.SEND: DeliveryState.SENDING,
        # A try that the watchdog gave up on, and queued again, gets its answer after all.
        DeliveryEvent.CONFIRM: DeliveryState.DELIVERED,
        DeliveryEvent.RETRY: Ignored("it is queued again already"),
        DeliveryEvent.GIVE_UP: Ignored("it is queued again: that try decides"),
        DeliveryEvent.REFUSE: DeliveryState.DEAD,
        DeliveryEvent.RESEND: Refused("it is on its way"),
        DeliveryEvent.SUPERSEDE: DeliveryState.SUPERSEDED,
    },
    DeliveryState.SENDING: {
        DeliveryEvent.SEND: _ONLY_PENDING_IS_SENT,
        DeliveryEvent.CONFIRM: DeliveryState.DELIVERED,
        DeliveryEvent.RETRY: DeliveryState.PENDING,
        DeliveryEvent.GIVE_UP: DeliveryState.DEAD,
        DeliveryEvent.REFUSE: DeliveryState.DEAD,
        DeliveryEvent.RESEND: Refused("it is on its way"),
        DeliveryEvent.SUPERSEDE: Ignored("it may have arrived: its successor follows it"),
    },
    DeliveryState.DELIVERED: {
        DeliveryEvent.SEND: _ONLY_PENDING_IS_SENT,
        DeliveryEvent.CONFIRM: _ARRIVED_BEFORE,
        DeliveryEvent.RETRY: _ARRIVED_BEFORE,
        DeliveryEvent.GIVE_UP: _ARRIVED_BEFORE,
        DeliveryEvent.REFUSE: _ARRIVED_BEFORE,
        DeliveryEvent.RESEND: DeliveryState.PENDING,
        DeliveryEvent.SUPERSEDE: Ignored("it has arrived: its successor replaces it there"),
    },
    DeliveryState.DEAD: {
        DeliveryEvent.SEND: _ONLY_PENDING_IS_SENT,
        DeliveryEvent.CONFIRM: _NOT_SENT,
        DeliveryEvent.RETRY: Ignored("it was refused just before it was taken to be lost"),
        DeliveryEvent.GIVE_UP: _NOT_SENT,
        DeliveryEvent.REFUSE: _NOT_SENT,
        DeliveryEvent.RESEND: DeliveryState.PENDING,
        DeliveryEvent.SUPERSEDE: DeliveryState.SUPERSEDED,
    },
    DeliveryState.SUPERSEDED: {
        DeliveryEvent.SEND: _ONLY_PENDING_IS_SENT,
        # Superseded between the watchdog's queueing it again and the answer to the first try.
        DeliveryEvent.CONFIRM: Ignored("it arrived, and its successor follows it"),
        DeliveryEvent.RETRY: Ignored("its successor goes instead"),
        DeliveryEvent.GIVE_UP: Ignored("its successor goes instead"),
        DeliveryEvent.REFUSE: Ignored("its successor goes instead"),
        DeliveryEvent.RESEND: Refused("a later document has taken its place"),
        DeliveryEvent.SUPERSEDE: Ignored("it is superseded already"),
    },
}

_SIGNED = Refused("it is signed")
_SEEN = Refused("a colleague has closed it: there is nothing to judge")
_REPLACED = Refused("a later revision has taken its place")
_WITHDRAWN = Refused("its result was recalled")
_GONE = Ignored("its result was recalled before")

REVIEW: Table[ReviewState, ReviewEvent] = {
    ReviewState.OPEN: {
        ReviewEvent.DECIDE: ReviewState.OPEN,
        ReviewEvent.UNDO: ReviewState.OPEN,
        ReviewEvent.SIGN: ReviewState.SIGNED,
        ReviewEvent.ACKNOWLEDGE: ReviewState.ACKNOWLEDGED,
        ReviewEvent.SUPERSEDE: ReviewState.SUPERSEDED,
        ReviewEvent.REPLACE: ReviewState.SUPERSEDED,
        ReviewEvent.WITHDRAW: ReviewState.WITHDRAWN,
        ReviewEvent.REVOKE: ReviewState.WITHDRAWN,
    },
    ReviewState.SIGNED: {
        ReviewEvent.DECIDE: _SIGNED,
        ReviewEvent.UNDO: _SIGNED,
        ReviewEvent.SIGN: _SIGNED,
        ReviewEvent.ACKNOWLEDGE: _SIGNED,
        ReviewEvent.SUPERSEDE: Ignored("what a person has signed, only a person replaces"),
        ReviewEvent.REPLACE: ReviewState.SUPERSEDED,
        ReviewEvent.WITHDRAW: Ignored("what a person has signed goes only where that is asked for"),
        ReviewEvent.REVOKE: ReviewState.WITHDRAWN,
    },
    ReviewState.ACKNOWLEDGED: {
        ReviewEvent.DECIDE: _SEEN,
        ReviewEvent.UNDO: _SEEN,
        ReviewEvent.SIGN: _SEEN,
        ReviewEvent.ACKNOWLEDGE: Ignored("a colleague has seen it already"),
        ReviewEvent.SUPERSEDE: ReviewState.SUPERSEDED,
        ReviewEvent.REPLACE: ReviewState.SUPERSEDED,
        ReviewEvent.WITHDRAW: ReviewState.WITHDRAWN,
        ReviewEvent.REVOKE: ReviewState.WITHDRAWN,
    },
    ReviewState.SUPERSEDED: {
        ReviewEvent.DECIDE: _REPLACED,
        ReviewEvent.UNDO: _REPLACED,
        ReviewEvent.SIGN: _REPLACED,
        ReviewEvent.ACKNOWLEDGE: _REPLACED,
        ReviewEvent.SUPERSEDE: Ignored("it is superseded already"),
        ReviewEvent.REPLACE: Ignored("it is superseded already"),
        ReviewEvent.WITHDRAW: Ignored("it is superseded already"),
        ReviewEvent.REVOKE: Ignored("it is superseded already"),
    },
    ReviewState.WITHDRAWN: {
        ReviewEvent.DECIDE: _WITHDRAWN,
        ReviewEvent.UNDO: _WITHDRAWN,
        ReviewEvent.SIGN: _WITHDRAWN,
        ReviewEvent.ACKNOWLEDGE: _WITHDRAWN,
        ReviewEvent.SUPERSEDE: _GONE,
        ReviewEvent.REPLACE: _GONE,
        ReviewEvent.WITHDRAW: _GONE,
        ReviewEvent.REVOKE: _GONE,
    },
}


def after(table: Table[State, Event], state: State, event: Event) -> State:
    """The state that follows. Where an event may be ignored, ask ``ignores`` first.

    Raises:
        TransitionRefused: a person asked for what this state does not allow.
        IllegalTransition: nothing follows: a bug, or the caller did not ask ``ignores``.
    """
    decision = table[state][event]
    name = f"{type(state).__name__} {state.value}, {event.value}"
    match decision:
        case Refused(because):
            raise TransitionRefused(f"{name}: {because}")
        case Ignored(because) | Impossible(because):
            raise IllegalTransition(f"{name}: {because}")
        case _:
            return decision


def ignores(table: Table[State, Event], state: State, event: Event) -> bool:
    """Does nothing follow, rightly? Then the caller leaves everything as it is."""
    return isinstance(table[state][event], Ignored)
