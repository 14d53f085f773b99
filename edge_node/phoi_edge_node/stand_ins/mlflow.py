"""MLflow's own server on this machine, on SQLite: for the demo and for tests.

A training site runs the same server on PostgreSQL and an object store.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.stand_ins.program import process

START_S = 300.0
# Telemetry off: nothing leaves the machine. Job execution (eight processes more) serves MLflow's
# evaluation of language models.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class MlflowServer:
    """A server that answers.

    Attributes:
        url: its address, for people and programs.
        log: what it writes.
    """

    url: str
    log: Path


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[MlflowServer]:
    """Run MLflow on 127.0.0.1 with its data in ``folder``; stop it at the end.

    Args:
        folder: database, artefacts and log; made if missing. What is in it is kept and used again.
        port: a free one.

    Raises:
        EdgeError: it ended, or does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = MlflowServer(f"http://127.0.0.1:{port}", folder / "mlflow.log")
    with (
        server.log.open("ab") as log,
        process(_command(folder, port), log.fileno(), log.fileno(), _ENVIRONMENT) as started,
    ):
        _wait_until_it_answers(server, started)
        yield server


def _command(folder: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{(folder / 'mlflow.sqlite').absolute()}"),
        *("--artifacts-destination", str((folder / "artifacts").absolute())),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def _wait_until_it_answers(server: MlflowServer, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if started.poll() is not None:
            raise EdgeError(f"MLflow ended at its start: {server.log} says why")
        try:
            if httpx.get(f"{server.url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise EdgeError(f"MLflow does not answer after {START_S:.0f} s: {server.log} says why")
