"""Every pair of state and event is decided, and the tables are the only way to move."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pytest
from phoi_edge_node.errors import IllegalTransition
from phoi_edge_node.study import (
    ANALYSIS,
    DELIVERY,
    REVIEW,
    STUDY,
    AnalysisEvent,
    AnalysisState,
    DeliveryEvent,
    DeliveryState,
    ReviewEvent,
    ReviewState,
    StudyEvent,
    StudyState,
    after,
)

Table = Mapping[StrEnum, Mapping[StrEnum, StrEnum]]

# The whole of each table, written a second time by what it means: what is not here is illegal.
LEGAL = {
    ("receiving", "instance_stored"): "receiving",
    ("receiving", "instance_lost"): "receiving",
    ("receiving", "quiet"): "counting",
    ("counting", "instance_stored"): "receiving",
    ("counting", "instance_lost"): "receiving",
    ("counting", "counted"): "complete",
    ("counting", "limit"): "complete",
    ("complete", "instance_stored"): "receiving",
    ("complete", "instance_lost"): "receiving",
    ("complete", "expire"): "expired",
    ("expired", "instance_stored"): "receiving",
    ("queued", "start"): "running",
    ("queued", "supersede"): "superseded",
    ("running", "finish"): "succeeded",
    ("running", "refuse"): "not_analysable",
    ("running", "retry"): "queued",
    ("running", "give_up"): "failed",
    ("running", "supersede"): "superseded",
    ("succeeded", "supersede"): "superseded",
    ("not_analysable", "supersede"): "superseded",
    ("failed", "supersede"): "superseded",
    ("pending", "send"): "sending",
    ("pending", "supersede"): "superseded",
    ("sending", "confirm"): "delivered",
    ("sending", "retry"): "pending",
    ("sending", "refuse"): "dead",
    ("delivered", "resend"): "pending",
    ("dead", "resend"): "pending",
    ("dead", "supersede"): "superseded",
    ("open", "decide"): "open",
    ("open", "undo"): "open",
    ("open", "sign"): "signed",
    ("open", "supersede"): "superseded",
    ("signed", "supersede"): "superseded",
}

LIVES: list[tuple[Table, type[StrEnum], type[StrEnum]]] = [
    (STUDY, StudyState, StudyEvent),  # type: ignore[list-item]
    (ANALYSIS, AnalysisState, AnalysisEvent),  # type: ignore[list-item]
    (DELIVERY, DeliveryState, DeliveryEvent),  # type: ignore[list-item]
    (REVIEW, ReviewState, ReviewEvent),  # type: ignore[list-item]
]
PAIRS = [
    pytest.param(table, state, event, id=f"{type(state).__name__}-{state}-{event}")
    for table, states, events in LIVES
    for state in states
    for event in events
]


@pytest.mark.parametrize(("table", "state", "event"), PAIRS)
def test_every_pair_is_decided(table: Table, state: StrEnum, event: StrEnum) -> None:
    expected = LEGAL.get((state.value, event.value))
    if expected is None:
        with pytest.raises(IllegalTransition):
            after(table, state, event)
    else:
        assert after(table, state, event).value == expected


@pytest.mark.parametrize(("table", "states", "events"), LIVES)
def test_every_state_has_a_row(table: Table, states: type[StrEnum], events: type[StrEnum]) -> None:
    assert set(table) == set(states)
