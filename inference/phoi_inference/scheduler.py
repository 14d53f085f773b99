"""Who runs next, who waits, who is told to come back later.

A request belongs to everybody who asks for its id: the first submission computes it, later ones
join it, and once finished it is replayed from memory. When all who listen have left, it is
cancelled. The scheduler knows nothing of volumes, models or gRPC.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Generic, TypeVar

from phoi_models.errors import Cancelled, NotAnalysable

from phoi_inference.errors import QueueFull, RequestConflict, Stopping

Result = TypeVar("Result")
OnProgress = Callable[[str, float], None]
IsCancelled = Callable[[], bool]
Work = Callable[[OnProgress, IsCancelled], Result]


class Level(IntEnum):
    """How urgent. One level is worth ``SchedulerSettings.aging_s`` of waiting."""

    ROUTINE = 0
    URGENT = 1
    STAT = 2


@dataclass(frozen=True)
class SchedulerSettings:
    """How much runs and waits.

    Attributes:
        capacity: analyses that may wait; one more is refused.
        parallel: analyses that run at once.
        remembered: finished analyses kept for replay.
        aging_s: a request passes every request of the next level that arrives this much later,
            so that none waits for ever.
    """

    capacity: int = 16
    parallel: int = 1
    remembered: int = 64
    aging_s: float = 600.0


@dataclass(frozen=True)
class Queued:
    """Still waiting; ``ahead`` analyses run or wait before this one."""

    ahead: int


@dataclass(frozen=True)
class Progress:
    """Running; ``fraction`` (0 to 1) of the whole is done."""

    step: str
    fraction: float


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """Done."""

    result: Result


@dataclass(eq=False)
class _Job(Generic[Result]):
    """One analysis. All fields but the first three are guarded by the scheduler's lock."""

    request_id: str
    input_key: object
    work: Work[Result]
    due: float  # the smallest runs first
    listeners: int = 0
    running: bool = False
    progress: Progress | None = None
    result: Result | None = None
    error: BaseException | None = None
    done: bool = False
    abandoned: threading.Event = field(default_factory=threading.Event)


class Scheduler(Generic[Result]):
    """Runs work on its own threads, most urgent first."""

    def __init__(
        self, settings: SchedulerSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._waiting: list[_Job[Result]] = []
        self._current: dict[str, _Job[Result]] = {}
        self._finished: OrderedDict[str, _Job[Result]] = OrderedDict()
        self._running = 0
        self._typical_s = 10.0
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"analysis-{i}", daemon=True)
            for i in range(settings.parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Analyses that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Analyses that run."""
        return self._running

    def submit(
        self, request_id: str, input_key: object, level: Level, work: Work[Result]
    ) -> Ticket[Result]:
        """Ask for an analysis; ``events`` of the ticket tell what becomes of it.

        Args:
            request_id: the same for every try of the same analysis.
            input_key: two submissions of one id must ask for equal input.
            level: how urgent; joining with a higher level lifts what waits.
            work: computes the result; not used when the id is known.

        Raises:
            RequestConflict: the id is known with another ``input_key``.
            QueueFull: no place is left.
            Stopping: nothing is taken any more.
        """
        due = self._monotonic() - level * self._settings.aging_s
        with self._changed:
            job = self._current.get(request_id) or self._finished.get(request_id)
            if job is None:
                job = self._enqueue(_Job(request_id, input_key, work, due))
            elif job.input_key != input_key:
                raise RequestConflict("this request id was used for other input")
            job.due = min(job.due, due)
            job.listeners += 1
            return Ticket(self, job)

    def stop(self) -> None:
        """Take nothing more and give up what waits. What runs goes on until it is abandoned."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                self._conclude(job, error=Stopping("the worker is stopping"))
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """After ``stop``, wait for what runs."""
        until = self._monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - self._monotonic()))

    def _enqueue(self, job: _Job[Result]) -> _Job[Result]:
        if self._stopping:
            raise Stopping("the worker is stopping")
        # What runs holds no place, but work that a free thread is about to take does not wait.
        free = self._settings.parallel - self._running
        if len(self._waiting) >= self._settings.capacity + free:
            rounds = (len(self._waiting) + self._running) / self._settings.parallel
            raise QueueFull(max(1.0, rounds * self._typical_s / 2))
        self._waiting.append(job)
        self._current[job.request_id] = job
        self._changed.notify_all()
        return job

    def _serve(self) -> None:
        while (job := self._take()) is not None:
            started = self._monotonic()
            try:
                result = job.work(partial(self._report, job), job.abandoned.is_set)
            except BaseException as error:  # the listeners' to handle
                self._release(job, error=error)
            else:
                self._release(job, result=result, took_s=self._monotonic() - started)

    def _take(self) -> _Job[Result] | None:
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if not self._waiting:
                return None
            job = min(self._waiting, key=lambda job: job.due)
            self._waiting.remove(job)
            job.running = True
            self._running += 1
            self._changed.notify_all()
            return job

    def _report(self, job: _Job[Result], step: str, fraction: float) -> None:
        with self._changed:
            job.progress = Progress(step, fraction)
            self._changed.notify_all()

    def _release(
        self,
        job: _Job[Result],
        *,
        result: Result | None = None,
        error: BaseException | None = None,
        took_s: float | None = None,
    ) -> None:
        with self._changed:
            self._running -= 1
            if took_s is not None:
                self._typical_s += 0.3 * (took_s - self._typical_s)
            self._conclude(job, result=result, error=error)
            self._changed.notify_all()

    def _conclude(
        self, job: _Job[Result], *, result: Result | None = None, error: BaseException | None = None
    ) -> None:
        job.done, job.result, job.error = True, result, error
        if self._current.get(job.request_id) is not job:
            return  # abandoned: the id may be in use again
        del self._current[job.request_id]
        # What lies in the input stays true; every other failure may pass and is computed again.
        if error is None or isinstance(error, NotAnalysable):
            self._finished[job.request_id] = job
            while len(self._finished) > self._settings.remembered:
                self._finished.popitem(last=False)

    def _leave(self, job: _Job[Result]) -> None:
        with self._changed:
            job.listeners -= 1
            if job.listeners > 0 or job.done:
                return
            job.abandoned.set()
            del self._current[job.request_id]
            if not job.running:
                self._waiting.remove(job)
                self._conclude(job, error=Cancelled("nobody waits for this analysis"))
            self._changed.notify_all()

    def _next_event(
        self, job: _Job[Result], last: Queued | Progress | None, left: threading.Event
    ) -> Queued | Progress | Finished[Result]:
        with self._changed:
            while True:
                if job.error is not None:
                    raise job.error
                if job.done:
                    return Finished(job.result)  # type: ignore[arg-type]
                if left.is_set():
                    raise Cancelled("the listener has left")
                now = job.progress if job.running else Queued(self._ahead_of(job))
                if now is not None and now != last:
                    return now
                self._changed.wait()

    def _ahead_of(self, job: _Job[Result]) -> int:
        return self._running + sum(other.due < job.due for other in self._waiting)


class Ticket(Generic[Result]):
    """One listener's share in an analysis."""

    def __init__(self, scheduler: Scheduler[Result], job: _Job[Result]) -> None:
        self._scheduler = scheduler
        self._job = job
        self._left = threading.Event()
        self._lock = threading.Lock()

    def events(self) -> Iterator[Queued | Progress | Finished[Result]]:
        """What becomes of the analysis, as it changes; ends with ``Finished``.

        A slow listener misses events in between, never the last one.

        Raises:
            Cancelled: this listener has left.
            BaseException: what the work raised.
        """
        event: Queued | Progress | Finished[Result] | None = None
        while not isinstance(event, Finished):
            event = self._scheduler._next_event(self._job, event, self._left)  # noqa: SLF001
            yield event

    def leave(self) -> None:
        """Listen no more. Safe to call twice, and from another thread."""
        with self._lock:
            if self._left.is_set():
                return
            self._left.set()
        self._scheduler._leave(self._job)  # noqa: SLF001
