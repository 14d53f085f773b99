"""One lane: what it tries when, and that neither a document nor a destination holds up others."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from phoi_edge_node.circuit import CircuitState, ProbePolicy
from phoi_edge_node.courier import Courier
from phoi_edge_node.loops import Loop
from phoi_edge_node.policies import LanePolicy, RetryPolicy
from phoi_edge_node.ports import (
    Delivered,
    Document,
    Erred,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.result import Priority
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, DeliveryState
from phoi_edge_node.system import SystemClock
from phoi_edge_node.testing import FakeClock, FakeDestination
from structlog.testing import capture_logs
from support import values

PROBES = ProbePolicy(first_s=2.0, longest_s=60.0, idle_s=15.0)
LANE = LanePolicy(maximum_errors=3, circuit_opens_after=3, probes=PROBES)
RETRY = RetryPolicy((10.0, 600.0), jitter=0.0)


class Site:
    """A store with studies whose documents wait, and couriers."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.pacs = FakeDestination("pacs")
        self.courier = self.to(self.pacs)

    def to(self, destination: FakeDestination) -> Courier:
        return Courier(self.store, destination, self.clock, RETRY, LANE, lambda: 0.5)

    def queue(self, *names: str, lanes: tuple[str, ...] = ("pacs",)) -> None:
        """One study for each name, with one document of that name."""
        for name in names:
            uid = f"1.2.{len(self.store.studies()) + 1}"
            self.store.add_instance(replace(values.instance(1, uid), received_at=self.clock.now()))
            analysis_id = self.store.complete_study(uid, Priority.ROUTINE)
            assert analysis_id
            assert self.store.claim_analysis()
            outgoing = [Outgoing(values.document(name), lanes)]
            result = values.result(uid)
            assert self.store.finish_analysis(analysis_id, AnalysisEvent.FINISH, result, outgoing)

    def send_all(self) -> int:
        count = 0
        while self.courier.send_next():
            count += 1
        return count

    def circuit(self) -> CircuitState:
        return self.courier.circuit.state


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.engine.dispose()


def test_a_destination_that_is_away_is_asked_and_no_document_is_tried(site: Site) -> None:
    site.queue(*"abcdef")
    site.pacs.away = True
    assert site.send_all() == 3
    assert site.circuit() is CircuitState.OPEN
    for _ in range(300):
        site.clock.advance(2)
        assert not site.courier.send_next()
    assert site.pacs.attempts == ["a", "b", "c"]
    assert 15 <= site.pacs.checks <= 30, "windows of 2, 4, 8, ... 60 s, half of each"
    assert sum(d.attempts for d in site.store.deliveries()) == 3


def test_once_it_is_back_what_waited_goes_at_once(site: Site) -> None:
    site.queue("a")
    site.pacs.away = True
    for _ in range(4):  # its own next try is ten minutes away by now
        site.courier.send_next()
        site.clock.advance(60)
    site.queue("b", "c")
    site.send_all()
    site.pacs.away = False
    site.clock.advance(31)
    assert site.send_all() == 3
    assert list(site.pacs.received) == ["b", "a", "c"], (
        "the one that was due, then the oldest first"
    )
    assert site.circuit() is CircuitState.CLOSED


def test_changes_are_logged_once_and_tries_are_not(site: Site) -> None:
    site.queue(*"abcd")
    site.pacs.away = True
    with capture_logs() as logs:
        site.send_all()
        for _ in range(60):
            site.clock.advance(5)
            site.courier.step()
        site.pacs.away = False
        site.clock.advance(60)
        site.send_all()
    changes = [(e["was"], e["state"]) for e in logs if e["event"] == "circuit changed"]
    assert changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    opened, _, closed = (e for e in logs if e["event"] == "circuit changed")
    assert opened["contacts_in_vain"] == 3
    assert closed["contacts_in_vain"] == site.pacs.checks + 3 - 1, "all but the last probe"
    assert len([e for e in logs if e["event"] == "delivery tried"]) == 3 + 4


def test_a_quiet_lane_asks_now_and_then_and_knows_when_its_destination_leaves(site: Site) -> None:
    for _ in range(60):
        site.courier.step()
        site.clock.advance(1)
    assert site.pacs.checks == 4
    site.pacs.away = True
    for _ in range(60):
        site.courier.step()
        site.clock.advance(1)
    assert site.circuit() is CircuitState.OPEN
    assert site.courier.next_probe_at
    site.pacs.away = False
    for _ in range(60):
        site.courier.step()
        site.clock.advance(1)
    assert site.circuit() is CircuitState.CLOSED
    assert site.courier.next_probe_at is None


def test_a_wall_clock_that_jumps_neither_stops_nor_hurries_the_asking(site: Site) -> None:
    site.queue(*"abc")
    site.pacs.away = True
    site.send_all()
    site.clock.set_wall_clock(site.clock.now().replace(year=1999))
    assert not site.courier.send_next()
    assert site.pacs.checks == 0
    site.clock.advance(60)
    site.courier.send_next()
    assert site.pacs.checks == 1


def test_a_document_on_which_it_always_fails_holds_up_no_other_study(site: Site) -> None:
    class Picky(FakeDestination):
        def send(self, document: Document) -> SendOutcome:
            taken = super().send(document)
            return Erred("answered AE") if document.identity == "bad" else taken

    site.pacs = Picky("pacs")
    site.courier = site.to(site.pacs)
    site.queue("bad", "b", "c")
    assert site.send_all() == 3
    assert set(site.pacs.received) >= {"b", "c"}
    for _ in range(4):
        site.clock.advance(601)
        site.send_all()
    assert site.pacs.attempts.count("bad") == 3
    (dead,) = site.store.deliveries(states=(DeliveryState.DEAD,))
    assert (dead.identity, dead.last_error) == ("bad", "answered AE, 3 times")
    assert site.circuit() is CircuitState.CLOSED, "it answered each time"


def test_a_document_on_which_it_always_falls_silent_holds_up_no_other_study(site: Site) -> None:
    class Hanging(FakeDestination):
        def send(self, document: Document) -> SendOutcome:
            if document.identity == "bad":
                return Unreachable("no answer within 30 s")
            return super().send(document)

    site.pacs = Hanging("pacs")
    site.courier = site.to(site.pacs)
    site.queue("bad")
    for _ in range(200):
        site.courier.step()
        site.clock.advance(9)
    tries = next(d.attempts for d in site.store.deliveries())
    assert tries <= 8, "it waits its own time though the destination is there"
    site.queue("b", "c")
    for _ in range(62):
        site.courier.step()
        site.clock.advance(1)
    assert list(site.pacs.received) == ["b", "c"]


def test_a_lane_that_is_paused_asks_and_sends_nothing(site: Site) -> None:
    site.queue("a")
    site.store.pause("destination:pacs", "op")
    site.courier.step()
    assert (site.pacs.checks, site.pacs.attempts) == (1, [])


@pytest.mark.parametrize("answer", [Delivered(), Refused("no"), Erred("not now")])
def test_any_answer_about_a_document_closes_the_circuit(site: Site, answer: SendOutcome) -> None:
    site.queue(*"abc")
    site.pacs.away = True
    site.send_all()
    site.pacs.away = False
    site.pacs.answers = [answer]
    site.clock.advance(10)
    assert site.courier.send_next()
    assert site.circuit() is CircuitState.CLOSED


def test_a_destination_that_hangs_holds_up_no_other_lane(site: Site) -> None:
    """With threads, as in a node: the EMR has everything before the PACS has answered at all."""
    released = threading.Event()

    class Stuck(FakeDestination):
        def send(self, document: Document) -> SendOutcome:
            assert released.wait(60)
            return super().send(document)

    emr, stuck = FakeDestination("emr"), Stuck("pacs")
    site.queue(*"abcdef", lanes=("pacs", "emr"))
    store = SqlStore(site.engine, SystemClock())
    couriers = [Courier(store, d, SystemClock(), RETRY, LANE) for d in (stuck, emr)]
    everything = threading.Event()

    def step_of(courier: Courier) -> bool:
        more = courier.step()
        if len(emr.received) == 6:
            everything.set()
        return more

    loops = [Loop(c.destination.name, lambda c=c: step_of(c), 0.05) for c in couriers]  # type: ignore[misc]
    for loop in loops:
        loop.start()
    try:
        assert everything.wait(60)
        assert stuck.received == {}
    finally:
        released.set()
        for loop in loops:
            loop.ask_to_stop()
            loop.join(60)
    assert list(emr.received) == list("abcdef")


class Hanging(FakeDestination):
    """Falls silent on each document whose name begins with "bad"."""

    def send(self, document: Document) -> SendOutcome:
        if document.identity.startswith("bad"):
            self.attempts.append(document.identity)
            return Unreachable("it closed the connection")
        return super().send(document)


def _of_a_node(site: Site) -> Courier:
    """With the delays of a node, not those of the other tests."""
    site.pacs = Hanging("pacs")
    retry = RetryPolicy((1, 5, 30, 120, 600, 3600))
    draw = random.Random(1).random
    return Courier(site.store, site.pacs, site.clock, retry, LanePolicy(), draw)


def _run(site: Site, courier: Courier, seconds: int, pace: int = 1) -> None:
    end = site.clock.now() + timedelta(seconds=seconds)
    while site.clock.now() < end:
        if not courier.step():
            site.clock.advance(pace)


def test_sixty_documents_that_never_get_an_answer_hold_up_nobody_for_long(site: Site) -> None:
    courier = _of_a_node(site)
    site.queue(*(f"bad{n}" for n in range(60)), *(f"good{n}" for n in range(20)))
    _run(site, courier, 600)
    assert len(site.pacs.received) == 20
    for hour in range(3):
        site.queue(f"later{hour}")
        _run(site, courier, 60)
        assert f"later{hour}" in site.pacs.received, "a minute, though sixty others are due"
        _run(site, courier, 3540, pace=60)


def test_silence_about_one_document_only_comes_to_an_end(site: Site) -> None:
    courier = _of_a_node(site)
    site.queue("bad")
    for hour in range(16):
        site.queue(f"good{hour}")
        _run(site, courier, 3700, pace=60)
    (dead,) = site.store.deliveries(states=(DeliveryState.DEAD,))
    assert dead.identity == "bad"
    assert dead.last_error == "it closed the connection, while it answers about others, 10 times"


def test_silence_about_all_documents_ends_none_though_probes_are_answered(site: Site) -> None:
    """A load balancer that takes connections for a receiver that is away."""
    courier = _of_a_node(site)
    site.queue(*(f"bad{n}" for n in range(5)))
    _run(site, courier, 24 * 3600, pace=60)
    assert {(d.state, d.errors) for d in site.store.deliveries()} == {(DeliveryState.PENDING, 0)}
    assert len(site.pacs.attempts) < 5 * 35, "each waits its own time"
