"""A FHIR R4 server not written here (sekmet-fhir), as the EMR. For the demo and for tests only.

Its dependencies are no business of Phoi's own environment, so it lives in a virtual environment
of its own, made once and kept in the cache.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.stand_ins.program import process

REQUIREMENT = "sekmet-fhir==0.1.1"
START_S = 90.0
INSTALL_S = 600.0


@contextmanager
def fhir_server(cache: Path, folder: Path, port: int) -> Iterator[str]:
    """Run the server on 127.0.0.1 with its data in ``folder``; stop it at the end.

    Args:
        cache: where its virtual environment is kept.
        folder: database, settings and log; made if missing.
        port: a free one.

    Yields:
        The FHIR base URL.

    Raises:
        EdgeError: it cannot be installed, it ended, or it does not answer.
    """
    python = environment(cache, "sekmet-fhir-0.1.1", [REQUIREMENT])
    folder.mkdir(parents=True, exist_ok=True)
    base_url = f"http://127.0.0.1:{port}/fhir"
    settings = folder / "settings.json"  # JSON is YAML
    settings.write_text(json.dumps(_settings(folder, base_url, port)), encoding="utf-8")
    log = folder / "fhir.log"
    command = [str(python), "-m", "sekmet.cli", "serve", "--config", str(settings)]
    with (
        log.open("ab") as output,
        process(command, output.fileno(), output.fileno(), cwd=folder) as started,
    ):
        _wait_until_it_answers(base_url, started, log)
        yield base_url


def environment(cache: Path, name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of a virtual environment that holds these packages; made on first use.

    Args:
        cache: folder of all such environments.
        name: of this one; another list of packages needs another name.

    Raises:
        EdgeError: the packages cannot be installed; the text says what pip said last.
    """
    folder = cache / "environments" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes may want it at once
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run(["-m", "venv", "--without-pip", str(folder)], name)
            _run(["-m", "pip", "--python", str(python), "install", "-q", *requirements], name)
            ready.touch()
    return python


def _run(arguments: Sequence[str], name: str) -> None:
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise EdgeError(f"{name}: installing took more than {INSTALL_S:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgeError(f"{name} cannot be installed; is there a network and disk space? {last}")


def _settings(folder: Path, base_url: str, port: int) -> dict[str, object]:
    return {
        "base_url": base_url,
        "host": "127.0.0.1",
        "port": port,
        "data_dir": str(folder / "data"),
        "own_private_key_path": str(folder / "keys" / "private.pem"),
        # It would answer Tasks by itself, as a laboratory or a pharmacy does.
        "simulator": {"enabled": False},
    }


def _wait_until_it_answers(base_url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if started.poll() is not None:
            raise EdgeError(f"the FHIR server ended at its start: {log} says why")
        try:
            if httpx.get(f"{base_url}/metadata", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise EdgeError(f"the FHIR server does not answer after {START_S:.0f} s: {log} says why")
