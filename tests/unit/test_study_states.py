"""Every pair of state and event is decided, and the tables are the only way to move."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import pytest
from phoi_edge_node.errors import IllegalTransition, TransitionRefused
from phoi_edge_node.study import (
    ANALYSIS,
    DELIVERY,
    REVIEW,
    STUDY,
    AnalysisEvent,
    AnalysisState,
    DeliveryEvent,
    DeliveryState,
    Ignored,
    Impossible,
    Refused,
    ReviewEvent,
    ReviewState,
    StudyEvent,
    StudyState,
    after,
    ignores,
)

# The whole of each table, written a second time: the state that follows, or how nothing does.
DECIDED = {
    ("study", "receiving", "instance_stored"): "receiving",
    ("study", "receiving", "instance_lost"): "receiving",
    ("study", "receiving", "quiet"): "counting",
    ("study", "receiving", "counted"): "ignored",
    ("study", "receiving", "limit"): "complete",
    ("study", "receiving", "expire"): "ignored",
    ("study", "counting", "instance_stored"): "receiving",
    ("study", "counting", "instance_lost"): "receiving",
    ("study", "counting", "quiet"): "ignored",
    ("study", "counting", "counted"): "complete",
    ("study", "counting", "limit"): "complete",
    ("study", "counting", "expire"): "ignored",
    ("study", "complete", "instance_stored"): "receiving",
    ("study", "complete", "instance_lost"): "receiving",
    ("study", "complete", "quiet"): "ignored",
    ("study", "complete", "counted"): "ignored",
    ("study", "complete", "limit"): "ignored",
    ("study", "complete", "expire"): "expired",
    ("study", "expired", "instance_stored"): "receiving",
    ("study", "expired", "instance_lost"): "ignored",
    ("study", "expired", "quiet"): "ignored",
    ("study", "expired", "counted"): "ignored",
    ("study", "expired", "limit"): "ignored",
    ("study", "expired", "expire"): "ignored",
    ("analysis", "queued", "start"): "running",
    ("analysis", "queued", "finish"): "succeeded",
    ("analysis", "queued", "refuse"): "not_analysable",
    ("analysis", "queued", "retry"): "ignored",
    ("analysis", "queued", "give_up"): "ignored",
    ("analysis", "queued", "supersede"): "superseded",
    ("analysis", "queued", "withdraw"): "impossible",
    ("analysis", "running", "start"): "impossible",
    ("analysis", "running", "finish"): "succeeded",
    ("analysis", "running", "refuse"): "not_analysable",
    ("analysis", "running", "retry"): "queued",
    ("analysis", "running", "give_up"): "failed",
    ("analysis", "running", "supersede"): "superseded",
    ("analysis", "running", "withdraw"): "impossible",
    ("analysis", "succeeded", "start"): "impossible",
    ("analysis", "succeeded", "finish"): "ignored",
    ("analysis", "succeeded", "refuse"): "ignored",
    ("analysis", "succeeded", "retry"): "ignored",
    ("analysis", "succeeded", "give_up"): "ignored",
    ("analysis", "succeeded", "supersede"): "superseded",
    ("analysis", "succeeded", "withdraw"): "withdrawn",
    ("analysis", "not_analysable", "start"): "impossible",
    ("analysis", "not_analysable", "finish"): "ignored",
    ("analysis", "not_analysable", "refuse"): "ignored",
    ("analysis", "not_analysable", "retry"): "ignored",
    ("analysis", "not_analysable", "give_up"): "ignored",
    ("analysis", "not_analysable", "supersede"): "superseded",
    ("analysis", "not_analysable", "withdraw"): "withdrawn",
    ("analysis", "failed", "start"): "impossible",
    ("analysis", "failed", "finish"): "ignored",
    ("analysis", "failed", "refuse"): "ignored",
    ("analysis", "failed", "retry"): "ignored",
    ("analysis", "failed", "give_up"): "ignored",
    ("analysis", "failed", "supersede"): "superseded",
    ("analysis", "failed", "withdraw"): "withdrawn",
    ("analysis", "superseded", "start"): "impossible",
    ("analysis", "superseded", "finish"): "ignored",
    ("analysis", "superseded", "refuse"): "ignored",
    ("analysis", "superseded", "retry"): "ignored",
    ("analysis", "superseded", "give_up"): "ignored",
    ("analysis", "superseded", "supersede"): "ignored",
    ("analysis", "superseded", "withdraw"): "withdrawn",
    ("analysis", "withdrawn", "start"): "impossible",
    ("analysis", "withdrawn", "finish"): "ignored",
    ("analysis", "withdrawn", "refuse"): "ignored",
    ("analysis", "withdrawn", "retry"): "ignored",
    ("analysis", "withdrawn", "give_up"): "ignored",
    ("analysis", "withdrawn", "supersede"): "ignored",
    ("analysis", "withdrawn", "withdraw"): "ignored",
    ("delivery", "pending", "send"): "sending",
    ("delivery", "pending", "confirm"): "delivered",
    ("delivery", "pending", "retry"): "ignored",
    ("delivery", "pending", "give_up"): "ignored",
    ("delivery", "pending", "refuse"): "dead",
    ("delivery", "pending", "resend"): "refused",
    ("delivery", "pending", "supersede"): "superseded",
    ("delivery", "sending", "send"): "impossible",
    ("delivery", "sending", "confirm"): "delivered",
    ("delivery", "sending", "retry"): "pending",
    ("delivery", "sending", "give_up"): "dead",
    ("delivery", "sending", "refuse"): "dead",
    ("delivery", "sending", "resend"): "refused",
    ("delivery", "sending", "supersede"): "ignored",
    ("delivery", "delivered", "send"): "impossible",
    ("delivery", "delivered", "confirm"): "ignored",
    ("delivery", "delivered", "retry"): "ignored",
    ("delivery", "delivered", "give_up"): "ignored",
    ("delivery", "delivered", "refuse"): "ignored",
    ("delivery", "delivered", "resend"): "pending",
    ("delivery", "delivered", "supersede"): "ignored",
    ("delivery", "dead", "send"): "impossible",
    ("delivery", "dead", "confirm"): "impossible",
    ("delivery", "dead", "retry"): "ignored",
    ("delivery", "dead", "give_up"): "impossible",
    ("delivery", "dead", "refuse"): "impossible",
    ("delivery", "dead", "resend"): "pending",
    ("delivery", "dead", "supersede"): "superseded",
    ("delivery", "superseded", "send"): "impossible",
    ("delivery", "superseded", "confirm"): "ignored",
    ("delivery", "superseded", "retry"): "ignored",
    ("delivery", "superseded", "give_up"): "ignored",
    ("delivery", "superseded", "refuse"): "ignored",
    ("delivery", "superseded", "resend"): "refused",
    ("delivery", "superseded", "supersede"): "ignored",
    ("review", "open", "decide"): "open",
    ("review", "open", "undo"): "open",
    ("review", "open", "sign"): "signed",
    ("review", "open", "acknowledge"): "acknowledged",
    ("review", "open", "supersede"): "superseded",
    ("review", "open", "replace"): "superseded",
    ("review", "open", "withdraw"): "withdrawn",
    ("review", "open", "revoke"): "withdrawn",
    ("review", "signed", "decide"): "refused",
    ("review", "signed", "undo"): "refused",
    ("review", "signed", "sign"): "refused",
    ("review", "signed", "acknowledge"): "refused",
    ("review", "signed", "supersede"): "ignored",
    ("review", "signed", "replace"): "superseded",
    ("review", "signed", "withdraw"): "ignored",
    ("review", "signed", "revoke"): "withdrawn",
    ("review", "acknowledged", "decide"): "refused",
    ("review", "acknowledged", "undo"): "refused",
    ("review", "acknowledged", "sign"): "refused",
    ("review", "acknowledged", "acknowledge"): "ignored",
    ("review", "acknowledged", "supersede"): "superseded",
    ("review", "acknowledged", "replace"): "superseded",
    ("review", "acknowledged", "withdraw"): "withdrawn",
    ("review", "acknowledged", "revoke"): "withdrawn",
    ("review", "superseded", "decide"): "refused",
    ("review", "superseded", "undo"): "refused",
    ("review", "superseded", "sign"): "refused",
    ("review", "superseded", "acknowledge"): "refused",
    ("review", "superseded", "supersede"): "ignored",
    ("review", "superseded", "replace"): "ignored",
    ("review", "superseded", "withdraw"): "ignored",
    ("review", "superseded", "revoke"): "ignored",
    ("review", "withdrawn", "decide"): "refused",
    ("review", "withdrawn", "undo"): "refused",
    ("review", "withdrawn", "sign"): "refused",
    ("review", "withdrawn", "acknowledge"): "refused",
    ("review", "withdrawn", "supersede"): "ignored",
    ("review", "withdrawn", "replace"): "ignored",
    ("review", "withdrawn", "withdraw"): "ignored",
    ("review", "withdrawn", "revoke"): "ignored",
}

LIVES: dict[str, tuple[Any, type[StrEnum], type[StrEnum]]] = {
    "study": (STUDY, StudyState, StudyEvent),
    "analysis": (ANALYSIS, AnalysisState, AnalysisEvent),
    "delivery": (DELIVERY, DeliveryState, DeliveryEvent),
    "review": (REVIEW, ReviewState, ReviewEvent),
}
PAIRS = [
    (life, state, event)
    for life, (_, states, events) in LIVES.items()
    for state in states
    for event in events
]


def test_the_list_holds_every_pair_once() -> None:
    assert set(DECIDED) == {(life, state.value, event.value) for life, state, event in PAIRS}


@pytest.mark.parametrize(("life", "state", "event"), PAIRS)
def test_every_pair_is_decided(life: str, state: StrEnum, event: StrEnum) -> None:
    table = LIVES[life][0]
    expected = DECIDED[life, state.value, event.value]
    match expected:
        case "ignored":
            assert ignores(table, state, event)
            with pytest.raises(IllegalTransition, match=re.escape(table[state][event].because)):
                after(table, state, event)
        case "refused":
            with pytest.raises(TransitionRefused, match=re.escape(table[state][event].because)):
                after(table, state, event)
        case "impossible":
            assert not ignores(table, state, event)
            with pytest.raises(IllegalTransition) as raised:
                after(table, state, event)
            assert not isinstance(raised.value, TransitionRefused)
        case _:
            assert not ignores(table, state, event)
            assert after(table, state, event).value == expected


@pytest.mark.parametrize("life", LIVES)
def test_whatever_nothing_follows_from_says_why(life: str) -> None:
    decisions = [d for row in LIVES[life][0].values() for d in row.values()]
    reasons = [d.because for d in decisions if isinstance(d, Ignored | Refused | Impossible)]
    assert reasons
    assert all(len(reason.split()) >= 3 and not reason.endswith(".") for reason in reasons)


@pytest.mark.parametrize("life", LIVES)
def test_every_state_can_be_reached_from_the_first(life: str) -> None:
    table, states, _ = LIVES[life]
    reached = {next(iter(table))}
    for _ in states:
        reached |= {d for state in reached for d in table[state].values() if isinstance(d, states)}
    assert reached == set(states)
