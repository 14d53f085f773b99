"""No study can outwait the watchdog: whatever is at no end is acted upon, or told."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from phoi_edge_node.errors import IllegalTransition
from phoi_edge_node.loops import Loop
from phoi_edge_node.policies import ENDS, LIVES, Act, Life, limits
from phoi_edge_node.ports import Delivered, DocumentKind, Refused, Unreachable
from phoi_edge_node.result import Completeness, Outcome, Priority, SignedReview
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Delivery, Outgoing, StoredAnalysis
from phoi_edge_node.study import AnalysisEvent, AnalysisState, DeliveryState, StudyState
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.watchdog import Watchdog
from support import values

SETTINGS = EdgeSettings(data=Path("unused"))
LIMITS = limits(SETTINGS)
LONGEST = max(limit.longest for limit in LIMITS)


class Edge:
    """A store and its watchdog, whose nudges are kept."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(url)
        self.store = SqlStore(self.engine, self.clock)
        self.nudged: list[str] = []
        self.watchdog = Watchdog(self.store, self.clock, LIMITS, self.nudged.append)

    def alerts(self) -> dict[tuple[Life, str], int]:
        self.watchdog.look()
        return {(a.limit.life, a.limit.state.value): a.number for a in self.watchdog.alerts}

    def queue(self, uid: str = "1.2.3") -> str:
        number = len(self.store.instances(uid)) + 1
        self.store.add_instance(replace(values.instance(number, uid), received_at=self.clock.now()))
        analysis_id = self.store.complete_study(uid, Priority.ROUTINE)
        assert analysis_id is not None
        return analysis_id

    def finish(self, analysis: StoredAnalysis, outcome: Outcome = Outcome.POSITIVE) -> bool:
        event = {
            Outcome.NOT_ANALYSABLE: AnalysisEvent.REFUSE,
            Outcome.FAILED: AnalysisEvent.GIVE_UP,
        }.get(outcome, AnalysisEvent.FINISH)
        uid = analysis.study_instance_uid
        result = replace(values.result(uid, analysis.revision), outcome=outcome)
        document = values.document(f"{analysis.id}-{analysis.attempts}", DocumentKind.HL7_ORU)
        return self.store.finish_analysis(
            analysis.id, event, result, [Outgoing(document, ("emr", "pacs"))]
        )


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    yield edge
    edge.engine.dispose()


def test_every_state_is_an_end_or_has_one_limit() -> None:
    limited = [limit.state for limit in LIMITS]
    every = {state for states in LIVES.values() for state in states}
    # As values: states of two lives may share a name, and ``superseded`` is an end in each.
    assert len(limited) == len(set(limited))
    assert {s.value for s in limited} | {s.value for s in ENDS} == {s.value for s in every}
    for life, states in LIVES.items():
        for state in states:
            has_limit = any(x.life is life and x.state is state for x in LIMITS)
            assert has_limit == (state not in ENDS), f"{life} {state}"


def test_an_analysis_that_nobody_ends_is_tried_again_and_its_late_end_counts(edge: Edge) -> None:
    edge.queue()
    lost = edge.store.claim_analysis()
    assert lost is not None
    edge.clock.advance(SETTINGS.inference.deadline_s)
    assert edge.alerts() == {}
    edge.clock.advance(601)
    assert edge.alerts() == {(Life.ANALYSIS, "running"): 1}
    (analysis,) = edge.store.analyses("1.2.3")
    assert (analysis.state, analysis.attempts) == (AnalysisState.QUEUED, 1)
    again = edge.store.claim_analysis()
    assert again is not None
    assert edge.finish(lost)
    assert not edge.finish(again), "one try ends it"
    assert len(edge.store.deliveries()) == 2


def test_a_delivery_without_an_answer_is_sent_again_and_a_late_answer_counts(edge: Edge) -> None:
    edge.queue()
    analysis = edge.store.claim_analysis()
    assert analysis is not None
    edge.finish(analysis)
    claimed = edge.store.claim_delivery("pacs")
    assert claimed is not None
    edge.clock.advance(601)
    assert edge.alerts()[Life.DELIVERY, "sending"] == 1
    states = {d.destination: d.state for d in edge.store.deliveries()}
    assert states == {"pacs": DeliveryState.PENDING, "emr": DeliveryState.PENDING}
    late = edge.store.settle_delivery(claimed[0].id, Delivered(), edge.clock.now())
    assert late is DeliveryState.DELIVERED
    assert edge.store.claim_delivery("pacs") is None


def test_what_is_tried_again_and_again_waits_since_the_first_time(edge: Edge) -> None:
    edge.queue()
    for _ in range(4):
        analysis = edge.store.claim_analysis()
        assert analysis is not None
        now = edge.clock.now()
        edge.store.retry_analysis(analysis.id, "no worker", now, reached_worker=False)
        assert edge.alerts() == {}
        edge.clock.advance(SETTINGS.watchdog.queued_hours * 3600 / 4)
    assert edge.alerts() == {(Life.ANALYSIS, "queued"): 1}
    (alert,) = edge.watchdog.alerts
    assert alert.oldest[0].study_instance_uid == "1.2.3"
    assert alert.limit.act is Act.TELL


def test_a_refused_document_is_told_at_once(edge: Edge) -> None:
    edge.queue()
    analysis = edge.store.claim_analysis()
    assert analysis is not None
    edge.finish(analysis)
    claimed = edge.store.claim_delivery("pacs")
    assert claimed is not None
    edge.store.settle_delivery(claimed[0].id, Refused("no"), edge.clock.now())
    assert edge.alerts() == {(Life.DELIVERY, "dead"): 1}


def test_what_it_cannot_act_upon_does_not_keep_it_from_the_rest(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in ("1.1", "1.2"):
        edge.queue(uid)
        edge.store.claim_analysis()
    edge.clock.advance(LONGEST.total_seconds())
    first, _ = edge.store.overdue(Life.ANALYSIS, AnalysisState.RUNNING, edge.clock.now(), 2)[1]
    retry = edge.store.retry_analysis

    def stumble(analysis_id: str, *args: Any, **kwargs: Any) -> None:
        if analysis_id == first.id:
            raise IllegalTransition("not from here")
        retry(analysis_id, *args, **kwargs)

    monkeypatch.setattr(edge.store, "retry_analysis", stumble)
    edge.watchdog.look()
    states = Counter(edge.store.analyses(uid)[0].state for uid in ("1.1", "1.2"))
    assert states == {AnalysisState.RUNNING: 1, AnalysisState.QUEUED: 1}


def test_what_was_refused_just_before_it_is_taken_to_be_lost_stays_refused(edge: Edge) -> None:
    edge.queue()
    analysis = edge.store.claim_analysis()
    assert analysis is not None
    edge.finish(analysis)
    claimed = edge.store.claim_delivery("pacs")
    assert claimed is not None
    for outcome in (Refused("no"), Unreachable("taken to be lost")):
        state = edge.store.settle_delivery(claimed[0].id, outcome, edge.clock.now())
        assert state is DeliveryState.DEAD


def test_a_clock_set_back_hides_nothing(edge: Edge) -> None:
    edge.queue()
    edge.store.claim_analysis()
    edge.clock.set_wall_clock(edge.clock.now() - timedelta(days=3))
    assert edge.alerts() == {(Life.ANALYSIS, "running"): 1}


def test_a_study_that_nobody_counts_is_nudged(edge: Edge) -> None:
    edge.store.add_instance(replace(values.instance(1), received_at=edge.clock.now()))
    edge.store.quiet_study("1.2.3")
    edge.clock.advance(SETTINGS.completeness.limit_s)
    assert edge.alerts() == {}
    edge.clock.advance(700)
    assert edge.alerts() == {(Life.STUDY, "counting"): 1}
    assert edge.nudged == ["1.2.3"]


def test_more_than_are_named_are_counted(edge: Edge) -> None:
    for number in range(120):
        edge.queue(f"1.{number}")
    edge.clock.advance(SETTINGS.watchdog.queued_hours * 3600)
    assert edge.alerts() == {(Life.ANALYSIS, "queued"): 120}
    assert len(edge.watchdog.alerts[0].oldest) == 100


def _wait_until(condition: Callable[[], object]) -> None:
    waiter = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiter.wait(0.01)
    raise AssertionError("it did not happen")


def test_a_thread_that_hangs_or_died_is_told() -> None:
    clock, free, entered = FakeClock(), threading.Event(), threading.Event()

    def hang() -> bool:
        entered.set()
        free.wait()
        return False

    loop = Loop("slow", hang, 60, longest_step_s=10, monotonic=clock.monotonic)
    assert loop.trouble() == "", "not started yet"
    loop.start()
    entered.wait()
    clock.advance(10)
    assert loop.trouble() == ""
    clock.advance(1)
    assert "slow has been busy" in loop.trouble()
    free.set()
    _wait_until(lambda: not loop.trouble())
    loop.ask_to_stop()
    loop.join(10)
    assert loop.trouble() == "", "it was asked to stop"


def test_a_long_step_of_many_parts_does_not_hang() -> None:
    clock, free, entered = FakeClock(), threading.Event(), threading.Event()

    def fetch_all_night() -> None:
        clock.advance(10)
        loop.goes_on()
        clock.advance(10)
        entered.set()
        free.wait()

    loop = Loop("night", fetch_all_night, 60, longest_step_s=10, monotonic=clock.monotonic)
    loop.start()
    entered.wait()
    assert loop.trouble() == ""
    clock.advance(1)
    assert "night has been busy" in loop.trouble()
    free.set()
    loop.ask_to_stop()
    loop.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_told() -> None:
    def die() -> bool:
        raise SystemExit

    loop = Loop("dead", die, 60)
    loop.start()
    loop.join(10)
    assert "dead has died" in loop.trouble()


class Adversity(RuleBasedStateMachine):
    """Whatever happens, in whatever order, nothing waits beyond its limit in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = Edge("sqlite://")
        self.tries: list[StoredAnalysis] = []
        self.sendings: list[Delivery] = []
        self.instances = 0

    @rule(study=st.integers(0, 2))
    def an_image_comes(self, study: int) -> None:
        self.instances += 1
        instance = values.instance(self.instances, f"1.{study}")
        self.edge.store.add_instance(replace(instance, received_at=self.edge.clock.now()))

    @rule(study=st.integers(0, 2), how=st.sampled_from([None, *Completeness]))
    def a_study_is_complete(self, study: int, how: Completeness | None) -> None:
        if how is Completeness.CONFIRMED:
            self.edge.store.quiet_study(f"1.{study}")
        self.edge.store.complete_study(f"1.{study}", Priority.ROUTINE, how)

    @rule()
    def an_analysis_starts(self) -> None:
        analysis = self.edge.store.claim_analysis()
        self.tries += [analysis] if analysis else []

    @rule(data=st.data(), how=st.sampled_from([*Outcome, "retry", "vanish"]))
    def a_try_ends(self, data: st.DataObject, how: Outcome | str) -> None:
        if not self.tries:
            return
        analysis = self.tries.pop(data.draw(st.integers(0, len(self.tries) - 1)))
        if how == "retry":
            now = self.edge.clock.now()
            self.edge.store.retry_analysis(analysis.id, "x", now, reached_worker=True)
        elif isinstance(how, Outcome):
            self.edge.finish(analysis, how)

    @rule(lane=st.sampled_from(["emr", "pacs"]))
    def a_document_leaves(self, lane: str) -> None:
        if not any(d.destination == lane for d in self.sendings):  # one courier for each lane
            claimed = self.edge.store.claim_delivery(lane)
            self.sendings += [claimed[0]] if claimed else []

    @rule(answer=st.sampled_from([Delivered(), Refused("no"), Unreachable("later"), None]))
    def an_answer_comes(self, answer: Any) -> None:
        if self.sendings:
            delivery = self.sendings.pop()
            if answer is not None:
                self.edge.store.settle_delivery(delivery.id, answer, self.edge.clock.now())

    @rule()
    def the_node_dies_and_starts_again(self) -> None:
        self.tries, self.sendings = [], []
        self.edge.store.requeue_interrupted()

    @rule(hours=st.integers(0, 12))
    def time_passes(self, hours: int) -> None:
        self.edge.clock.advance(3600.0 * hours)

    @rule(days=st.integers(-3, 3))
    def somebody_sets_the_clock(self, days: int) -> None:
        self.edge.clock.set_wall_clock(self.edge.clock.now() + timedelta(days=days))

    @rule()
    def the_watchdog_looks(self) -> None:
        self.edge.watchdog.look()

    def teardown(self) -> None:
        self._nothing_is_silent()
        self._in_a_kind_world_all_ends_well()
        self.edge.engine.dispose()
        super().teardown()

    def _nothing_is_silent(self) -> None:
        self.edge.clock.advance(LONGEST.total_seconds() + 4 * 86400)  # and no clock is ahead
        in_states = self.edge.store.counts().of_lives()
        open_ones = {
            (life, state.value): in_states[life.value, state.value].number
            for life, states in LIVES.items()
            for state in states
            if state not in ENDS and (life.value, state.value) in in_states
        }
        assert self.edge.alerts() == open_ones
        left = self.edge.store.counts()
        assert AnalysisState.RUNNING not in left.analyses
        assert not any(state is DeliveryState.SENDING for _, state in left.deliveries)

    def _in_a_kind_world_all_ends_well(self) -> None:
        store, clock = self.edge.store, self.edge.clock
        for uid in store.receiving_studies():
            assert uid in self.edge.nudged
            store.complete_study(uid, Priority.ROUTINE, Completeness.UNCONFIRMED)
        while analysis := store.claim_analysis():
            self.edge.finish(analysis)
        for delivery in store.deliveries(states=[DeliveryState.DEAD]):
            with contextlib.suppress(IllegalTransition):  # a later document of its kind exists
                store.resend(delivery.id, "an")
        while claimed := (store.claim_delivery("pacs") or store.claim_delivery("emr")):
            store.settle_delivery(claimed[0].id, Delivered(), clock.now())
        self._somebody_reviews()
        counts = store.counts()
        assert set(counts.studies) <= {StudyState.COMPLETE}
        assert not self.edge.alerts()

    def _somebody_reviews(self) -> None:
        store = self.edge.store
        _, reviews = store.overdue(Life.REVIEW, LIMITS[-1].state, self.edge.clock.now(), limit=1000)
        for review in reviews:
            (analysis,) = [
                a for a in store.analyses(review.study_instance_uid or "") if a.id == review.id
            ]
            if analysis.state is AnalysisState.SUCCEEDED:
                signed = SignedReview("an", "Bs. An", self.edge.clock.now(), ())
                store.sign(review.id, signed, [])
            else:
                store.acknowledge(review.id, "an")


def test_nothing_waits_in_silence_whatever_happens() -> None:
    run_state_machine_as_test(
        Adversity,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
