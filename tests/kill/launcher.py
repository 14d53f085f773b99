"""Starts commands of Phoi as processes of their own, with their steps watched.

``python -m kill.launcher`` imports everything once and then forks for each request, one JSON
object a line on standard input; it answers with the process id. Importing takes longer than all
else that a start does, and a thousand kills need two thousand starts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from kill.steps import KillPoint, watch, wrap_all

_TESTS = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1


class Launcher:
    """The driver's end: asks for processes."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kill.launcher"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=_TESTS,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def start(
        self,
        arguments: Sequence[str],
        *,
        home: Path,
        log: Path,
        journal: Path | None = None,
        kills: Collection[KillPoint] = (),
        clock: Path | None = None,
    ) -> Started:
        """Run ``phoi`` with these arguments.

        Args:
            home: PHOI_HOME.
            log: gets what it writes.
            journal: gets a line for each step, and one for the death.
            kills: the process ends at whichever it reaches first.
            clock: file with the seconds by which its wall clock is wrong, while there is one.
        """
        request = {
            "arguments": list(arguments),
            "home": str(home),
            "log": str(log),
            "journal": str(journal or ""),
            "clock": str(clock or ""),
            "kills": [kill.to_json() for kill in kills],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the launcher ended"
        return Started(int(answer))


class Started:
    """A process that the launcher started; not our child, so it is watched by a pidfd.

    Attributes:
        killed: why somebody outside killed it; "" where nobody did.
    """

    def __init__(self, pid: int) -> None:
        self.killed = ""
        self._pidfd = -1
        with suppress(ProcessLookupError):  # it may have ended at once
            self._pidfd = os.pidfd_open(pid)

    @property
    def running(self) -> bool:
        """Not ended yet."""
        return self._pidfd >= 0 and not self.wait(0)

    def kill(self, why: str = "from outside") -> None:
        """SIGKILL, and wait for the end."""
        self.send_kill(why)
        assert self.wait(30), "a killed process does not end"

    def send_kill(self, why: str) -> None:
        """SIGKILL, if it has not ended; from any thread."""
        with suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.killed = why

    def wait(self, seconds: float) -> bool:
        """Has it ended within so many seconds?"""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
        os.close(self._pidfd)
        self._pidfd = -1
        return True


def main() -> None:
    """Serve requests until standard input ends."""
    wrap_all()
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    gc.collect()
    gc.freeze()  # memory that the children share stays shared
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _import_all() -> None:
    """What the commands import when they are run."""
    import phoi_edge_node.cli.edge
    import phoi_inference.cli

    del phoi_edge_node, phoi_inference


def _run(request: dict[str, Any]) -> NoReturn:
    from phoi_models.command_line import main as phoi

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing outlives the launcher
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ["PHOI_HOME"] = request["home"]
    sys.argv = ["phoi", *request["arguments"]]
    if request["journal"]:
        watch(Path(request["journal"]), [KillPoint.from_json(kill) for kill in request["kills"]])
    if request["clock"]:
        _shift_clock(Path(request["clock"]))
    status = 1
    try:
        phoi()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    # What was imported before the fork may wait at its exit for threads that only the parent has.
    os._exit(status)


def _shift_clock(seconds: Path) -> None:
    """Set the wall clock of this process as that of a machine is set, while it runs."""
    from phoi_edge_node.system import SystemClock

    right: Callable[[SystemClock], datetime] = SystemClock.now

    def now(self: SystemClock) -> datetime:
        wrong_by = float(seconds.read_text()) if seconds.exists() else 0.0
        return right(self) + timedelta(seconds=wrong_by)

    SystemClock.now = now  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
