"""When a lane sends, when it only asks, and that many nodes do not come back all at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.circuit import Circuit, CircuitState, Contact, ProbePolicy
from phoi_edge_node.policies import (
    IN_THE_HOSPITAL,
    OF_MANY_HOSPITALS,
    OF_THE_COUNTRY,
    LanePolicy,
    lane_policy,
)
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.settings import DeliverySettings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR_S = 3600.0
OPENS_AFTER = 3


def silence(circuit: Circuit, monotonic: float = 0.0, share: float = 0.5) -> Circuit:
    return circuit.after_silence(NOW, monotonic, OPENS_AFTER, IN_THE_HOSPITAL, share)


def opened() -> Circuit:
    circuit = Circuit(NOW)
    for _ in range(OPENS_AFTER):
        circuit = silence(circuit)
    return circuit


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    twice = silence(silence(Circuit(NOW)))
    assert twice.state is CircuitState.CLOSED
    assert silence(twice).state is CircuitState.OPEN
    between = twice.after(Contact.ANSWERED_DOCUMENT, NOW)
    assert silence(between).state is CircuitState.CLOSED, "not in a row"


def test_a_document_closes_it_and_a_probe_alone_does_not() -> None:
    answers = opened().after(Contact.ANSWERED_PROBE, NOW)
    assert answers.state is CircuitState.HALF_OPEN
    assert answers.after(Contact.ANSWERED_PROBE, NOW) == answers
    assert answers.after(Contact.ANSWERED_DOCUMENT, NOW) == Circuit(NOW)
    assert answers.after(Contact.NOTHING_TO_SEND, NOW) == Circuit(NOW)


def test_a_document_in_vain_opens_it_again_with_a_window_that_stays_short() -> None:
    share, circuit, waits = 0.5, opened(), []
    for _ in range(8):
        circuit = silence(circuit.after(Contact.ANSWERED_PROBE, NOW), 0.0, share)
        assert circuit.state is CircuitState.OPEN
        waits.append(circuit.probe_at)
    assert waits == [1, 2, *[2.5] * 6], "perhaps it is these documents, and others go"
    for _ in range(2):
        circuit = silence(circuit, 0.0, share)
    assert circuit.probe_at == 30, "once it answers no probe either, the window goes on growing"


def test_each_state_says_since_when() -> None:
    later = datetime(2026, 3, 2, tzinfo=UTC)
    circuit = opened()
    assert circuit.after_silence(later, 0.0, OPENS_AFTER, IN_THE_HOSPITAL, 0.5).since == NOW
    assert circuit.after(Contact.ANSWERED_PROBE, later).since == later


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_wait_is_anywhere_in_the_window_and_never_beyond_the_longest(
    probes: int, share: float
) -> None:
    for policy in (IN_THE_HOSPITAL, OF_MANY_HOSPITALS, OF_THE_COUNTRY):
        assert 0 <= policy.wait_s(probes, share) <= policy.longest_s


@pytest.mark.parametrize(
    ("kinds", "probes"),
    [
        ({DocumentKind.STRUCTURED_REPORT, DocumentKind.SEGMENTATION}, IN_THE_HOSPITAL),
        ({DocumentKind.HL7_ORU}, IN_THE_HOSPITAL),
        ({DocumentKind.FHIR_BUNDLE}, OF_MANY_HOSPITALS),
        ({DocumentKind.USAGE}, OF_THE_COUNTRY),
    ],
)
def test_who_is_shared_by_many_is_asked_less_often(
    kinds: set[DocumentKind], probes: ProbePolicy
) -> None:
    settings = DeliverySettings(maximum_errors=4, circuit_opens_after=5)
    assert lane_policy(settings, kinds) == LanePolicy(4, 5, probes)


# --- the herd --------------------------------------------------------------------------------


def probes_of(policy: ProbePolicy, seed: int, away_s: float, until_s: float) -> list[float]:
    """When one node asks a destination that went away at 0 and is back at ``away_s``."""
    draw: Callable[[], float] = random.Random(seed).random
    circuit, now, asked = Circuit(NOW), 0.0, []
    while now < until_s:
        asked.append(now)
        if now >= away_s:
            break
        circuit = circuit.after_silence(NOW, now, OPENS_AFTER, policy, draw())
        now = circuit.probe_at if circuit.state is CircuitState.OPEN else now
    return asked


@pytest.mark.parametrize(
    ("policy", "away_s", "most_in_a_second", "most_in_a_minute"),
    [
        (OF_MANY_HOSPITALS, 72 * HOUR_S, 10, 120),
        (OF_THE_COUNTRY, 72 * HOUR_S, 6, 50),
        (OF_THE_COUNTRY, HOUR_S, 6, 50),
    ],
)
def test_two_hundred_nodes_do_not_come_back_all_at_once(
    policy: ProbePolicy, away_s: float, most_in_a_second: int, most_in_a_minute: int
) -> None:
    """All were cut at the same moment, and the internet comes back for all of them at once."""
    nodes = [probes_of(policy, seed, away_s, away_s + 2 * HOUR_S) for seed in range(200)]
    back = [asked[-1] - away_s for asked in nodes]
    assert all(0 <= late <= policy.longest_s for late in back), "everybody has noticed by then"
    assert max(Counter(int(s) for s in back).values()) <= most_in_a_second
    assert max(Counter(int(s // 60) for s in back).values()) <= most_in_a_minute
    at_the_server = Counter(int(s) for asked in nodes for s in asked if HOUR_S / 2 < s < away_s)
    assert max(at_the_server.values()) <= most_in_a_second, "nor while it is away"
    expected = away_s / (policy.longest_s / 2)
    assert max(len(asked) for asked in nodes) < 1.3 * expected + 40
