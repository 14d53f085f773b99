"""What takes C-STORE beside Phoi's own receiver, each as a process that starts with nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from phoi_edge_node.stand_ins.program import free_port

_NODELAY = {"TCP_NODELAY": "1"}  # DCMTK's own switch for Nagle's algorithm; Orthanc contains DCMTK


@dataclass(frozen=True)
class Receiver:
    """A process that listens.

    Attributes:
        folder: where it stores.
    """

    pid: int
    port: int
    folder: Path

    def cpu_s(self) -> float:
        """User and system time of it and of its children, also of those that nobody waited for."""
        process = psutil.Process(self.pid)
        return _cpu_s(process, with_ended=True) + sum(
            _cpu_s(child, with_ended=False) for child in process.children()
        )

    def peak_memory_mb(self) -> float:
        """Of the process itself, not of its children."""
        status = Path(f"/proc/{self.pid}/status").read_text("utf-8").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def _cpu_s(process: psutil.Process, *, with_ended: bool) -> float:
    times = process.cpu_times()
    ended = times.children_user + times.children_system if with_ended else 0.0
    return float(times.user + times.system + ended)


@contextmanager
def start(kind: str, folder: Path) -> Iterator[Receiver]:
    """A receiver by its name in ``COMMANDS``, with an empty folder, ended afterwards."""
    folder.mkdir()
    port = free_port()
    command, environment = _command(kind, folder, port)
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            _wait_until_listening(port, process)
            yield Receiver(process.pid, port, folder)
        finally:
            process.terminate()
            process.wait(30)


def _command(kind: str, folder: Path, port: int) -> tuple[list[str], Mapping[str, str]]:
    python = [sys.executable, "-m"]
    phoi = [*python, "benchmarks.phoi_receiver", str(folder), str(port)]
    raw = [*python, "benchmarks.raw_copy", str(folder), str(port)]
    storescp = ["/usr/bin/storescp", "-aet", "PHOI", "-od", str(folder)]
    tuned = ["--fork", "+B", "-pdu", "131072"]
    orthanc = ["/usr/sbin/Orthanc"]
    commands: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "lean": ([*phoi, "lean", "durable"], {}),
        "lean, not durable": ([*phoi, "lean", "not-durable"], {}),
        "pynetdicom": ([*phoi, "pynetdicom", "durable"], {}),
        "storescp": ([*storescp, str(port)], {}),
        "storescp tuned": ([*storescp, *tuned, str(port)], _NODELAY),
        "Orthanc": ([*orthanc, _orthanc_settings(folder, port)], {}),
        "Orthanc tuned": ([*orthanc, _orthanc_settings(folder, port, **_ORTHANC)], _NODELAY),
        "raw copy": ([*raw, "not-durable"], {}),
        "raw copy, durable": ([*raw, "durable"], {}),
    }
    return commands[kind]


_ORTHANC = {"MaximumPduLength": 131072, "StoreMD5ForAttachments": False}


def _orthanc_settings(folder: Path, port: int, **tuning: object) -> str:
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpServerEnabled": False,
        "DicomPort": port,
        "DicomAet": "PHOI",
        "StorageCompression": False,
        **tuning,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no receiver came up: {process.args!r}")
