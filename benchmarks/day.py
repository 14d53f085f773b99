"""A simulated day at a busy hospital: how long does each priority wait for a worker?

1,500 chest CTs, two workers, one of which is lost for two hours of the morning peak. Phoi's own
queue (the real store on SQLite, on a clock of the simulation's own) beside plain first-come and
plain priority, all with the same studies.

Service times have the shape of what was measured: seconds of the main job for a CT of 133 slices
(``results.json``), in proportion to a number of slices drawn from 60 to 600. All are then scaled by
one factor, so that the two workers would be busy for 85 % of the day. Waiting is from the study's
completeness to the start of its analysis.
"""

from __future__ import annotations

import heapq
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

import sqlalchemy as sa
from phoi_edge_node.ports import ReceivedInstance
from phoi_edge_node.result import Patient, Priority, StudyHeader
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.testing import FakeClock

from benchmarks.results import RESULTS, Result

STUDIES = 1500
WORKERS = 2
LOAD = 0.85
OUTAGE_S = (9 * 3600.0, 11 * 3600.0)  # the second worker is lost
SHARES = {Priority.STAT: 0.04, Priority.URGENT: 0.15}
# Studies an hour at each hour of the day, in proportion: morning and afternoon peaks, and a night
# in which another house sends what it took during the day.
HOURS = (
    8,
    6,
    60,
    5,
    5,
    10,
    30,
    80,
    140,
    150,
    120,
    80,
    50,
    70,
    110,
    100,
    80,
    50,
    40,
    30,
    25,
    20,
    15,
    10,
)
_RANK = {Priority.STAT: 0, Priority.URGENT: 1, Priority.ROUTINE: 2}
_START = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SimulatedStudy:
    """One study. Times in seconds of the day."""

    number: int
    priority: Priority
    complete_at: float
    service_s: float


class Queue(Protocol):
    """The order in which studies are analysed."""

    def put(self, study: SimulatedStudy) -> None:
        """It is complete now."""
        ...

    def take(self, now: float) -> int | None:
        """The number of the study whose turn it is."""
        ...


class SortedQueue:
    """Plain rules to compare with."""

    def __init__(self, key: Callable[[SimulatedStudy], tuple[float, ...]]) -> None:
        self._key = key
        self._heap: list[tuple[tuple[float, ...], int]] = []

    def put(self, study: SimulatedStudy) -> None:
        """Keep it."""
        heapq.heappush(self._heap, (self._key(study), study.number))

    def take(self, now: float) -> int | None:
        """The smallest key."""
        del now
        return heapq.heappop(self._heap)[1] if self._heap else None


class StoreQueue:
    """Phoi's own queue: the store of an edge node."""

    def __init__(self, folder: Path) -> None:
        self._clock = FakeClock(_START)
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.engine.dispose()
        # Nothing of a simulation need survive a crash.
        sa.event.listen(self.engine, "connect", _without_syncing)
        self._store = SqlStore(self.engine, self._clock)

    def put(self, study: SimulatedStudy) -> None:
        """Receive and complete it."""
        self._set(study.complete_at)
        instance = _instance(study.number, self._clock.now())
        self._store.add_instance(instance)
        self._store.complete_study(instance.study_instance_uid, study.priority)

    def take(self, now: float) -> int | None:
        """Claim the next analysis."""
        self._set(now)
        claimed = self._store.claim_analysis()
        return None if claimed is None else int(claimed.study_instance_uid.rsplit(".", 1)[1])

    def _set(self, now: float) -> None:
        self._clock.set_wall_clock(_START + timedelta(seconds=now))


def make_day(seed: int, main_job_s: float) -> Sequence[SimulatedStudy]:
    """All studies of a day, in order.

    Args:
        main_job_s: measured, for a CT of 133 slices.
    """
    draw = random.Random(seed)
    hours = draw.choices(range(24), HOURS, k=STUDIES)
    times = sorted((hour + draw.random()) * 3600 for hour in hours)
    services = [main_job_s * draw.uniform(60, 600) / 133 for _ in times]
    factor = LOAD * WORKERS * 86400 / sum(services)
    priorities = [_priority(draw.random()) for _ in times]
    return [
        SimulatedStudy(number, priorities[number], at, services[number] * factor)
        for number, at in enumerate(times)
    ]


def simulate(studies: Sequence[SimulatedStudy], queue: Queue) -> Mapping[Priority, list[float]]:
    """Seconds that each study waited, by priority."""
    waits: dict[Priority, list[float]] = {priority: [] for priority in Priority}
    free_at = [0.0] * WORKERS
    arriving = list(reversed(studies))
    waiting = 0
    while arriving or waiting:
        worker = min(range(WORKERS), key=lambda w: _available(w, free_at[w]))
        now = _available(worker, free_at[worker])
        if not waiting:
            now = max(now, arriving[-1].complete_at)
        while arriving and arriving[-1].complete_at <= now:
            queue.put(arriving.pop())
            waiting += 1
        if _available(worker, now) > now:
            free_at[worker] = now  # lost meanwhile: another one may be there
            continue
        number = queue.take(now)
        if number is None:
            raise AssertionError("something waits")
        waiting -= 1
        study = studies[number]
        waits[study.priority].append(now - study.complete_at)
        free_at[worker] = now + study.service_s
    return waits


def policies(folder: Path) -> Mapping[str, Queue]:
    """Phoi's queue, and two plain ones."""
    return {
        "first come": SortedQueue(lambda study: (study.complete_at,)),
        "plain priority": SortedQueue(lambda s: (_RANK[s.priority], s.complete_at)),
        "phoi": StoreQueue(folder),
    }


def measured_main_job_s() -> float:
    """From the latest results."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    section = content.get("main_job", content)
    named = {result["name"]: result["value"] for result in section["results"]}
    return float(named["main_job.complete_to_sr"])


def measure(runs: int) -> Sequence[Result]:
    """Waiting times by policy and priority over several days, in minutes."""
    days = [make_day(seed, measured_main_job_s()) for seed in range(runs)]
    results = []
    for policy in ("first come", "plain priority", "phoi"):
        waits = [_simulate(policy, day) for day in days]
        for priority in Priority:
            for name, figure in (("median", median), ("p95", p95), ("max", max)):
                minutes = [figure(day[priority]) / 60 for day in waits]
                label = f"day.{policy.replace(' ', '_')}.{priority}.{name}"
                results.append(Result.of(label, minutes, "min"))
    return results


def circumstances() -> Mapping[str, Any]:
    """What the simulated day is."""
    return {
        "studies": STUDIES,
        "workers": WORKERS,
        "load": LOAD,
        "outage_of_one_worker": "09:00 to 11:00",
        "stat_and_urgent": [SHARES[Priority.STAT], SHARES[Priority.URGENT]],
    }


def p95(values: Sequence[float]) -> float:
    """The value that 95 % do not exceed."""
    return quantiles(values, n=20, method="inclusive")[-1]


def _simulate(policy: str, day: Sequence[SimulatedStudy]) -> Mapping[Priority, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        queue = policies(Path(folder))[policy]
        waits = simulate(day, queue)
        if isinstance(queue, StoreQueue):
            queue.engine.dispose()
        return waits


def _available(worker: int, at: float) -> float:
    """When a worker that would be free at ``at`` can begin."""
    begins, ends = OUTAGE_S
    return ends if worker == WORKERS - 1 and begins <= at < ends else at


def _priority(share: float) -> Priority:
    if share < SHARES[Priority.STAT]:
        return Priority.STAT
    if share < SHARES[Priority.STAT] + SHARES[Priority.URGENT]:
        return Priority.URGENT
    return Priority.ROUTINE


def _instance(number: int, at: datetime) -> ReceivedInstance:
    uid = f"1.2.{number}"
    patient = Patient(str(number), "", "", None, "")
    return ReceivedInstance(
        sop_instance_uid=f"{uid}.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_instance_uid=f"{uid}.9",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"{number}.dcm",
        sha256="0" * 64,
        size=0,
        modality="CT",
        calling_ae_title="PACS",
        received_at=at,
        study=StudyHeader(uid, patient, "", "", "", "", None),
    )


def _without_syncing(connection: Any, record: object) -> None:
    del record
    connection.execute("PRAGMA synchronous=OFF")
