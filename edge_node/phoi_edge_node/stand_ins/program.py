"""Starts a stand-in as a process of its own, and stops it. For the demo and for tests only."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from phoi_edge_node.errors import EdgeError

START_S = 60.0
STOP_S = 10.0
_READY = "listening on 127.0.0.1:"


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def announce(port: int) -> None:
    """Say on standard output that the stand-in answers now; ``listening`` waits for this line."""
    sys.stdout.write(f"{_READY}{port}\n")
    sys.stdout.flush()


@contextmanager
def listening(
    module: str, folder: Path, port: int = 0, options: Sequence[str] = ()
) -> Iterator[int]:
    """Run ``python -m module --folder FOLDER --port PORT``; stop it at the end.

    Args:
        folder: where it keeps what it gets; made if missing. Its log lies there too.
        port: 0 takes a free one.

    Yields:
        The port it listens on, 127.0.0.1.

    Raises:
        EdgeError: it ended, or does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "stand-in.log"
    command = [sys.executable, "-m", module, "--folder", str(folder), "--port", str(port), *options]
    with log.open("ab") as stderr, process(command, stderr.fileno(), subprocess.PIPE) as started:
        yield _announced_port(started, log)


@contextmanager
def process(
    command: Sequence[str],
    stderr: int,
    stdout: int,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own; end the whole group at the end."""
    started = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        # A terminal's Ctrl-C goes to all its processes; this one is stopped here, last.
        start_new_session=True,
    )
    try:
        yield started
    finally:
        _stop(started)


def _announced_port(started: subprocess.Popen[bytes], log: Path) -> int:
    assert started.stdout is not None  # noqa: S101 - it was started with a pipe
    deadline = time.monotonic() + START_S
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([started.stdout], [], [], left_s)[0]:
            break
        line = started.stdout.readline().decode()
        if line.startswith(_READY):
            return int(line.removeprefix(_READY))
        if not line:
            raise EdgeError(f"the stand-in ended at its start: {log} says why")
    raise EdgeError(f"the stand-in does not answer after {START_S:.0f} s: {log} says why")


def _stop(started: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        started.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait(STOP_S)
    if started.stdout:
        started.stdout.close()
