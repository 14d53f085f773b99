"""Threads that do one thing over and over, and stop when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

LONGEST_STEP_S = 1800.0


class Loop:
    """Calls ``step`` again and again in a thread of its own.

    Args:
        name: for logs.
        step: returns True if there may be more to do at once.
        idle_s: how long to wait after a step that found nothing, or that raised.
        longest_step_s: a step, or a part of one (``goes_on``), that takes longer is taken to hang.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        idle_s: float,
        longest_step_s: float = LONGEST_STEP_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._longest_step_s = longest_step_s
        self._monotonic = monotonic
        self._busy_since: float | None = None
        self._step = step
        self._idle_s = idle_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def nudge(self) -> None:
        """There is something to do: do not wait."""
        self._wake.set()

    def goes_on(self) -> None:
        """From within a step of many parts: one of them has ended, so it does not hang."""
        self._busy_since = self._monotonic()

    def ask_to_stop(self) -> None:
        """No step begins after this."""
        self._stopping.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the step that runs."""
        self._thread.join(timeout_s)

    def trouble(self) -> str:
        """What is wrong with this thread, for an operator; "" where nothing is."""
        if self._stopping.is_set() or self._thread.ident is None:
            return ""
        if not self._thread.is_alive():
            return f"the thread {self._name} has died: restart Phoi, and report it"
        since = self._busy_since
        if since is None or (busy_s := self._monotonic() - since) <= self._longest_step_s:
            return ""
        return f"the thread {self._name} has been busy with one step for {busy_s:.0f} s"

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            if not self._do_step():
                self._wake.wait(self._idle_s)

    def _do_step(self) -> bool:
        self._busy_since = self._monotonic()
        try:
            return self._step() is True
        except (
            Exception
        ):  # a passing trouble (a locked database, a full disk) must not end the loop
            log.exception("a loop's step failed", loop=self._name)
            return False
        finally:
            self._busy_since = None
