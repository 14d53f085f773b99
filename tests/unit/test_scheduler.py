"""Who runs next, who joins, who is told to come back later."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_inference.errors import QueueFull, RequestConflict, Stopping
from phoi_inference.scheduler import (
    Finished,
    Level,
    Progress,
    Queued,
    Scheduler,
    SchedulerSettings,
    Ticket,
)
from phoi_models.errors import Cancelled, NotAnalysable, NotAnalysableReason

WAIT_S = 5.0
DEFAULT = SchedulerSettings()


class ManualTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.open = threading.Event()
        self.runs = 0
        self.saw_cancel = threading.Event()

    def __call__(
        self, on_progress: Callable[[str, float], None], cancelled: Callable[[], bool]
    ) -> str:
        self.runs += 1
        on_progress("detect", 0.5)
        self.started.set()
        while not self.open.wait(0.005):
            if cancelled():
                self.saw_cancel.set()
                raise Cancelled("as asked")
        return "result"


def recorded(order: list[str], name: str) -> Callable[..., str]:
    def work(*_: object) -> str:
        order.append(name)
        return name

    return work


def quick(result: str) -> Callable[..., str]:
    return lambda on_progress, cancelled: result


def result_of(ticket: Ticket[str]) -> str:
    *_, last = ticket.events()
    assert isinstance(last, Finished)
    return last.result


@contextmanager
def scheduler(
    settings: SchedulerSettings = DEFAULT, time: Callable[[], float] | None = None
) -> Iterator[Scheduler[str]]:
    made = Scheduler[str](settings, time or ManualTime())
    try:
        yield made
    finally:
        made.stop()


def test_events_end_with_the_result() -> None:
    gate = Gate()
    with scheduler() as s:
        ticket = s.submit("a", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        events = ticket.events()
        assert next(events) == Progress("detect", 0.5)
        gate.open.set()
        assert list(events) == [Finished("result")]


def test_a_running_request_is_joined_and_a_finished_one_replayed() -> None:
    gate = Gate()
    with scheduler() as s:
        first = s.submit("a", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        second = s.submit("a", 1, Level.ROUTINE, quick("never"))
        gate.open.set()
        assert (result_of(first), result_of(second)) == ("result", "result")
        assert result_of(s.submit("a", 1, Level.ROUTINE, quick("never"))) == "result"
    assert gate.runs == 1


@pytest.mark.parametrize("finished", [False, True])
def test_a_request_id_belongs_to_one_input(*, finished: bool) -> None:
    gate = Gate()
    with scheduler() as s:
        ticket = s.submit("a", 1, Level.ROUTINE, gate)
        if finished:
            gate.open.set()
            result_of(ticket)
        with pytest.raises(RequestConflict):
            s.submit("a", 2, Level.ROUTINE, gate)
        gate.open.set()


def test_only_so_many_results_are_remembered() -> None:
    runs: list[str] = []
    with scheduler(SchedulerSettings(remembered=2)) as s:
        for name in ("a", "b", "c", "c", "b", "a"):
            result_of(s.submit(name, 1, Level.ROUTINE, recorded(runs, name)))
    assert runs == ["a", "b", "c", "a"]


def test_what_lies_in_the_input_is_remembered_and_what_may_pass_is_not() -> None:
    refusals = iter([ValueError("passing"), NotAnalysable(NotAnalysableReason.NO_LUNGS, "no")])

    def refuse(*_: object) -> str:
        raise next(refusals)

    with scheduler() as s:
        with pytest.raises(ValueError, match="passing"):
            result_of(s.submit("a", 1, Level.ROUTINE, refuse))
        for _ in range(2):
            with pytest.raises(NotAnalysable):
                result_of(s.submit("a", 1, Level.ROUTINE, refuse))


def test_a_full_queue_says_when_to_come_back() -> None:
    gate = Gate()
    with scheduler(SchedulerSettings(capacity=2)) as s:
        s.submit("runs", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        for name in ("b", "c"):
            s.submit(name, 1, Level.ROUTINE, gate)
        with pytest.raises(QueueFull) as full:
            s.submit("d", 1, Level.STAT, gate)
        assert full.value.retry_after_s >= 1
        joined = s.submit("b", 1, Level.ROUTINE, gate)
        assert next(joined.events()) == Queued(ahead=1)
        gate.open.set()


def test_work_is_cancelled_when_the_last_listener_has_left() -> None:
    gate = Gate()
    with scheduler() as s:
        first = s.submit("a", 1, Level.ROUTINE, gate)
        second = s.submit("a", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        first.leave()
        first.leave()
        assert not gate.saw_cancel.wait(0.05)
        with pytest.raises(Cancelled):
            list(first.events())
        second.leave()
        assert gate.saw_cancel.wait(WAIT_S)


def test_an_abandoned_request_can_be_asked_for_again() -> None:
    gate, again = Gate(), Gate()
    again.open.set()
    with scheduler() as s:
        s.submit("a", 1, Level.ROUTINE, gate).leave()
        assert result_of(s.submit("a", 1, Level.ROUTINE, again)) == "result"
    assert again.runs == 1


def test_what_waits_and_is_abandoned_never_runs() -> None:
    gate, never = Gate(), Gate()
    with scheduler() as s:
        running = s.submit("a", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        s.submit("b", 1, Level.ROUTINE, never).leave()
        assert s.waiting == 0
        gate.open.set()
        result_of(running)
    assert never.runs == 0


def test_stopping_gives_up_what_waits_and_lets_end_what_runs() -> None:
    gate = Gate()
    with scheduler() as s:
        running = s.submit("a", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        waiting = s.submit("b", 1, Level.ROUTINE, gate)
        s.stop()
        with pytest.raises(Stopping):
            result_of(waiting)
        with pytest.raises(Stopping):
            s.submit("c", 1, Level.ROUTINE, gate)
        gate.open.set()
        assert result_of(running) == "result"
        s.join(WAIT_S)
        assert s.running == 0


def test_joining_with_a_higher_level_lifts_what_waits() -> None:
    gate, time = Gate(), ManualTime()
    order: list[str] = []
    with scheduler(time=time) as s:
        s.submit("running", 1, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        tickets = []
        for name in ("a", "b"):
            time.now += 1
            tickets.append(s.submit(name, 1, Level.ROUTINE, recorded(order, name)))
        tickets.append(s.submit("b", 1, Level.STAT, quick("never")))
        gate.open.set()
        for ticket in tickets:
            result_of(ticket)
    assert order == ["b", "a"]


# Whole seconds: their sums are exact, so that a rounding does not decide who is due first.
pauses = st.integers(0, 2000).map(float) | st.sampled_from([0.0, 600.0, 1200.0])
arrivals = st.lists(st.tuples(st.sampled_from(list(Level)), pauses), min_size=1, max_size=12)


def order_of(arrivals: list[tuple[Level, float]], aging_s: float = 600.0) -> list[int]:
    """The order in which requests run that arrive (after a pause each) while one thread is busy."""
    gate, time = Gate(), ManualTime()
    order: list[str] = []
    with scheduler(SchedulerSettings(capacity=99, aging_s=aging_s), time) as s:
        s.submit("busy", 0, Level.ROUTINE, gate)
        assert gate.started.wait(WAIT_S)
        tickets = []
        for number, (level, pause) in enumerate(arrivals):
            time.now += pause
            work = recorded(order, str(number))
            tickets.append(s.submit(str(number), 0, level, work))
        gate.open.set()
        for ticket in tickets:
            result_of(ticket)
    return [int(name) for name in order]


@settings(max_examples=40, deadline=None)
@given(arrivals)
def test_nobody_overtakes_an_equal_and_nobody_starves(arrivals: list[tuple[Level, float]]) -> None:
    order = order_of(arrivals)
    times = list(itertools.accumulate(pause for _, pause in arrivals))

    assert sorted(order) == list(range(len(arrivals)))
    for earlier, later in itertools.combinations(range(len(arrivals)), 2):
        higher_by = arrivals[later][0] - arrivals[earlier][0]
        overtaken = order.index(later) < order.index(earlier)
        if higher_by <= 0:
            assert not overtaken
        else:
            assert overtaken == (times[later] - times[earlier] < higher_by * 600.0)
