"""Days without a PACS, days without the internet: everything arrives, once, in order.

The clock is a test's, the sockets, the adapters and the database are real. What is measured stands
in docs/explanation/outages.md.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pynetdicom.association
import pytest
from phoi_edge_node.circuit import CircuitState
from phoi_edge_node.study import DeliveryState
from support.cut_off import FHIR, HL7, MLFLOW, PACS, Node, Outage, running_node

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    # pynetdicom sleeps 0.1 s after each connection that is refused, and there are thousands.
    hurried = SimpleNamespace(**vars(time) | {"sleep": lambda s: time.sleep(min(s, 0.001))})
    monkeypatch.setattr(pynetdicom.association, "time", hurried)
    with running_node(tmp_path, random.Random(5).random) as node:
        yield node


def everything_arrived_once(node: Node, outage: Outage) -> None:
    sys.stdout.write(f"\n{Outage.HEADER}\n{outage}\n")
    assert {d.state for d in node.store.deliveries()} <= {
        DeliveryState.DELIVERED,
        DeliveryState.SUPERSEDED,
    }
    assert (outage.duplicates, outage.disorders) == (0, 0)
    assert outage.other_lanes == timedelta(), "they sent in the moment in which it was queued"


def test_a_day_without_the_pacs(node: Node) -> None:
    node.run_until(node.clock.now() + HOUR, between_visits=30 * MINUTE)
    cut_at = node.clock.now()
    node.cut(PACS)
    node.run_until(cut_at + 11 * HOUR, between_visits=20 * MINUTE)
    assert node.couriers[PACS].circuit.state is CircuitState.OPEN
    assert node.store.claim_delivery(PACS), "it was on its way when the process died"
    node.restart()
    node.run_until(cut_at + 24 * HOUR, between_visits=20 * MINUTE)
    back_at = node.clock.now()
    tries = [d.attempts for d in node.store.deliveries(states=(DeliveryState.PENDING,))]
    node.back()
    node.drain(longest=5 * MINUTE)
    outage = node.outage(PACS, cut_at, back_at)
    everything_arrived_once(node, outage)
    assert set(node.peers[PACS].identities) == set(node.queued(PACS))
    assert outage.documents == 2 * (2 + 11 * 3 + 13 * 3)
    assert outage.attempts < 24 * 60 * 2.5, "a contact every half minute, on average"
    assert sorted(tries)[-1] <= 8, "documents pile up no tries"
    assert sum(t > 0 for t in tries) <= 6, "and hardly any of them was tried at all"
    assert outage.drained <= MINUTE + timedelta(seconds=2), "at once, not at their own due times"


def test_three_days_without_the_internet(node: Node) -> None:
    node.run_until(node.clock.now() + 2 * HOUR, between_visits=HOUR)
    cut_at = node.clock.now()
    node.cut(FHIR, MLFLOW)
    node.run_until(cut_at + 72 * HOUR, between_visits=HOUR)
    back_at = node.clock.now()
    node.back()
    node.drain(longest=20 * MINUTE)
    fhir, mlflow = (node.outage(lane, cut_at, back_at) for lane in (FHIR, MLFLOW))
    for outage in (fhir, mlflow):
        everything_arrived_once(node, outage)
    assert set(node.peers[FHIR].identities) == set(node.queued(FHIR))
    assert node.peers[MLFLOW].identities == ["1", "2", "74"], "counters are sums: only the last"
    assert fhir.attempts < 72 * 3600 / 150 * 1.3
    assert mlflow.attempts < 72 * 3600 / 450 * 1.3
    assert fhir.drained <= 5 * MINUTE + timedelta(seconds=2)
    assert mlflow.drained <= 15 * MINUTE + timedelta(seconds=2)
    arrived = [d for d in node.store.deliveries() if d.destination in (PACS, HL7)]
    assert {(d.state, d.attempts) for d in arrived} == {(DeliveryState.DELIVERED, 1)}
