"""A simulated day: emergencies hardly wait, and nobody starves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

import pytest
from phoi_edge_node.result import Priority
from phoi_edge_node.scheduling import PATIENCE

from benchmarks.day import (
    STUDIES,
    SimulatedStudy,
    SortedQueue,
    StoreQueue,
    make_day,
    p95,
    policies,
    simulate,
)

Waits = Mapping[Priority, list[float]]


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Waits]]:
    day = make_day(seed=1, main_job_s=7.0)
    queues = policies(tmp_path_factory.mktemp("day"))
    yield {name: simulate(day, queue) for name, queue in queues.items()}
    for queue in queues.values():
        if isinstance(queue, StoreQueue):
            queue.engine.dispose()


def test_every_study_has_its_turn(waits: Mapping[str, Waits]) -> None:
    for by_priority in waits.values():
        assert sum(map(len, by_priority.values())) == STUDIES


def test_emergencies_wait_for_one_analysis_and_not_for_the_queue(
    waits: Mapping[str, Waits],
) -> None:
    phoi, first_come = waits["phoi"], waits["first come"]
    assert p95(phoi[Priority.STAT]) < p95(phoi[Priority.ROUTINE]) / 10
    assert p95(phoi[Priority.STAT]) < p95(first_come[Priority.STAT]) / 10
    assert median(phoi[Priority.URGENT]) < median(first_come[Priority.URGENT])


def test_nobody_waits_longer_than_first_come_would_make_them_plus_the_patience_asked_of_them(
    waits: Mapping[str, Waits],
) -> None:
    longest_first_come = max(max(by) for by in waits["first come"].values())
    for priority, by_priority in waits["phoi"].items():
        assert max(by_priority) <= longest_first_come + PATIENCE[priority].total_seconds()


def test_under_plain_priority_one_may_starve_and_under_ours_not(tmp_path: Path) -> None:
    """An urgent study every minute, for a day, with work for two minutes each."""
    flood = [SimulatedStudy(n, Priority.URGENT, 60.0 * n, 125.0) for n in range(1, 1000)]
    day = [SimulatedStudy(0, Priority.ROUTINE, 0.5, 125.0), *flood]
    day.insert(0, SimulatedStudy(1000, Priority.STAT, 0.0, 300.0))
    day.insert(0, SimulatedStudy(1001, Priority.STAT, 0.0, 300.0))
    numbered = sorted(day, key=lambda study: study.complete_at)
    studies = [
        SimulatedStudy(n, s.priority, s.complete_at, s.service_s) for n, s in enumerate(numbered)
    ]
    ranks = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}
    plain = simulate(studies, SortedQueue(lambda s: (ranks[s.priority], s.complete_at)))
    queue = StoreQueue(tmp_path)
    ours = simulate(studies, queue)
    queue.engine.dispose()
    (starved,), (bounded,) = plain[Priority.ROUTINE], ours[Priority.ROUTINE]
    assert starved > 60_000
    six_hours = PATIENCE[Priority.ROUTINE] - PATIENCE[Priority.URGENT]
    assert bounded < six_hours.total_seconds() + 3600
