"""``phoi demo`` as anybody runs it: it does all that it says, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from phoi_edge_node.sample import NAME, default_cache

STEPS = (
    "Received by C-STORE",
    "SEG in the archive",
    "SR in the archive",
    "Secondary Capture in the archive",
    "ORU^R01 at the MLLP receiver",
    "FHIR Bundle at the server",
    "Usage in MLflow",
    "Model in MLflow's registry",
)


@pytest.fixture
def cache(tmp_path: Path, planted_ct: Path) -> Path:
    """A cache without any demo in it, that shares with the real one what took a download."""
    environments = default_cache() / "environments"
    environments.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / NAME).symlink_to(planted_ct, target_is_directory=True)
    (folder / "environments").symlink_to(environments, target_is_directory=True)
    return folder


def demo(cache: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("phoi")), "demo", *map(str, options)],
        env={**os.environ, "PHOI_CACHE_DIR": str(cache), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def left_running(cache: Path) -> list[list[str]]:
    """Command lines of processes that name the cache, or inherited it from the demo."""
    found = []
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        inherited = environment.get("PHOI_CACHE_DIR") == str(cache)
        if inherited or any(str(cache) in argument for argument in command):
            found.append(command)
    return found


def test_every_step_really_happens_and_nothing_runs_afterwards(cache: Path) -> None:
    done = demo(cache, "--once", "--web-port", 0, "--mlflow-port", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    for title in ("What happened", "How long each step took", "Nodules found"):
        assert title in done.stdout
    for step in STEPS:
        (line,) = [line for line in done.stdout.splitlines() if step in line]
        assert line.split()[-2] == "yes", line
    assert "Outcome: positive" in done.stdout
    assert len(list((cache / "demo" / "archive").glob("*.dcm"))) >= 3
    assert left_running(cache) == []


def test_a_taken_port_is_said_in_one_line(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = demo(cache, "--once", "--web-port", port, "--mlflow-port", 0)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert f"port {port} is taken" in line
    assert "--web-port" in line
    assert not (cache / "demo").exists()


def test_an_empty_folder_is_said_in_one_line(cache: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = demo(cache, "--once", "--dicom", empty, "--web-port", 0, "--mlflow-port", 0)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert str(empty) in line
    assert not (cache / "demo").exists()
