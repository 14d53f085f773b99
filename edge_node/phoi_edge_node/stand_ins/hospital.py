"""A whole hospital on one machine, around one real edge node. For the demo and for tests only.

The archive, the MLLP receiver, the FHIR server and MLflow stand in for what a hospital has; worker
and edge node are Phoi itself, as processes of their own, started as anybody would start them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydicom import Dataset, dcmread

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.stand_ins.fhir import fhir_server
from phoi_edge_node.stand_ins.mlflow import mlflow_server
from phoi_edge_node.stand_ins.program import free_port, listening

SITE = "demo-hospital"
START_S = 90.0
STOP_S = 15.0


def require_free(port: int, option: str) -> None:
    """Say in one line if something listens on the port.

    Raises:
        EdgeError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise EdgeError(
                f"port {port} is taken: stop what uses it, or give {option} another one"
            ) from None


@dataclass(frozen=True)
class Ports:
    """Where everything listens, 127.0.0.1."""

    web: int = field(default_factory=free_port)
    mlflow: int = field(default_factory=free_port)
    fhir: int = field(default_factory=free_port)
    dicom: int = field(default_factory=free_port)
    archive: int = field(default_factory=free_port)
    mllp: int = field(default_factory=free_port)


class Program:
    """A process that can be killed and started again.

    Args:
        command: what to run.
        log: file that gets what it writes.
        ready: does it answer?
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        ready: Callable[[], bool],
    ) -> None:
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self.log = log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise EdgeError("it does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            EdgeError: it ended, or does not answer.
        """
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None:
                raise EdgeError(f"{' '.join(self._command[:3])} ended at its start: see {self.log}")
            if time.monotonic() > deadline:
                raise EdgeError(f"{' '.join(self._command[:3])} does not answer: see {self.log}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int | None:
        """SIGTERM, as a service manager does; its exit status."""
        return self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


class Hospital:
    """The programs, and what an outsider can ask of them."""

    def __init__(
        self, folder: Path, ports: Ports, worker: Program, edge: Program, archive: Program
    ) -> None:
        self.folder = folder
        self.ports = ports
        self.worker = worker
        self.edge = edge
        self.archive = archive

    @property
    def settings_file(self) -> Path:
        """The edge's settings."""
        return self.folder / "edge.toml"

    @property
    def settings(self) -> EdgeSettings:
        """The edge's settings, read."""
        return read_settings(self.settings_file)

    @property
    def home(self) -> Path:
        """Keys and models: PHOI_HOME of worker and edge."""
        return self.folder / "home"

    @property
    def page(self) -> str:
        """URL of the worklist."""
        return f"http://127.0.0.1:{self.ports.web}/"

    @property
    def mlflow(self) -> str:
        """URL of MLflow."""
        return f"http://127.0.0.1:{self.ports.mlflow}"

    @property
    def fhir(self) -> str:
        """FHIR base URL."""
        return f"http://127.0.0.1:{self.ports.fhir}/fhir"

    def register_model(self) -> None:
        """Register the shipped model in MLflow, as a training installation does.

        Raises:
            EdgeError: it could not be registered.
        """
        arguments = ["models", "register", "--tracking-uri", self.mlflow]
        _phoi(arguments, {"PHOI_HOME": str(self.home)}, self.folder / "register.log")

    def registered(self, name: str) -> Mapping[str, str]:
        """The versions of a model that MLflow's registry holds, by hash of their bundle."""
        with httpx.Client(base_url=self.mlflow, trust_env=False) as http:
            search = {"filter": f"name = '{name}'"}
            answer = http.get("/api/2.0/mlflow/model-versions/search", params=search)
            answer.raise_for_status()
            versions = answer.json().get("model_versions", [])
        return {
            tag["value"]: version["version"]
            for version in versions
            for tag in version.get("tags", [])
            if tag["key"] == "bundle_hash"
        }

    def archived(self) -> Mapping[str, Dataset]:
        """What the archive holds, by SOP Instance UID, without bulk data."""
        files = (self.folder / "archive").glob("*.dcm")
        return {file.stem: dcmread(file, defer_size=1024) for file in files}

    def messages(self) -> tuple[str, ...]:
        """The HL7 messages that the receiver holds."""
        files = sorted((self.folder / "mllp").glob("*.hl7"), key=lambda file: file.stat().st_mtime)
        return tuple(file.read_bytes().decode() for file in files)

    def fhir_resources(self, kind: str) -> tuple[Mapping[str, Any], ...]:
        """All resources of a type that the FHIR server holds."""
        answer = httpx.get(f"{self.fhir}/{kind}", params={"_count": "200"}, trust_env=False)
        answer.raise_for_status()
        return tuple(entry["resource"] for entry in answer.json().get("entry", []))

    def usage(self) -> Mapping[str, float]:
        """The usage metrics of this site that MLflow holds; empty while there are none."""
        with httpx.Client(base_url=self.mlflow, trust_env=False) as http:
            by_name = "/api/2.0/mlflow/experiments/get-by-name"
            found = http.get(by_name, params={"experiment_name": "phoi-usage"})
            if found.status_code == httpx.codes.NOT_FOUND:
                return {}
            found.raise_for_status()
            experiment = found.json()["experiment"]["experiment_id"]
            search = {"experiment_ids": [experiment], "filter": f"tags.`phoi.site` = '{SITE}'"}
            runs = http.post("/api/2.0/mlflow/runs/search", json=search).json().get("runs", [])
        return {m["key"]: m["value"] for run in runs for m in run["data"].get("metrics", [])}


@contextmanager
def hospital(
    folder: Path,
    cache: Path,
    ports: Ports,
    say: Callable[[str], None] = lambda _: None,
    quiet_time_s: float = 2.0,
) -> Iterator[Hospital]:
    """Start everything, the slow ones side by side; stop everything at the end.

    Args:
        folder: for all data and logs; made if missing, and what is in it is used again.
        cache: for downloads that are kept.
        say: gets one plain line for each step.
        quiet_time_s: after which a study counts as complete.

    Raises:
        EdgeError: something does not start; the text says what, and which log says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    (folder / "edge.toml").write_text(_settings(folder, ports, quiet_time_s), encoding="utf-8")
    environment = {"PHOI_HOME": str(home)}
    edge = Program(
        [_PHOI, "edge", "run", "--settings", str(folder / "edge.toml")],
        environment,
        folder / "edge.log",
        lambda: _answers(f"http://127.0.0.1:{ports.web}/healthz"),
    )
    socket_path = folder / "worker.sock"
    worker = Program(
        [_PHOI, "worker", "--listen", f"unix:{socket_path}"],
        environment,
        folder / "worker.log",
        lambda: _listens(socket.AF_UNIX, str(socket_path)),
    )
    archive_folder = folder / "archive"
    archive_folder.mkdir(exist_ok=True)
    archive = Program(
        [*_ARCHIVE, "--folder", str(archive_folder), "--port", str(ports.archive)],
        {},
        folder / "archive.log",
        lambda: _listens(socket.AF_INET, ("127.0.0.1", ports.archive)),
    )
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            say("Starting the archive, the MLLP receiver, the FHIR server and MLflow")
            slow = [
                mlflow_server(folder / "mlflow", ports.mlflow),
                fhir_server(cache, folder / "fhir", ports.fhir),
                listening(_MLLP, folder / "mllp", ports.mllp),
            ]
            for started in [pool.submit(stack.enter_context, program) for program in slow]:
                started.result()
        say("Making this installation's key, signing the shipped model with it")
        _phoi(["models", "init"], environment, folder / "models.log")
        say("Starting the inference worker and the edge node")
        for program in (archive, worker, edge):
            stack.callback(program.stop)
            program.start()
        yield Hospital(folder, ports, worker, edge, archive)


_PHOI = str(Path(sys.executable).with_name("phoi"))
_ARCHIVE = (sys.executable, "-m", "phoi_edge_node.stand_ins.archive")
_MLLP = "phoi_edge_node.stand_ins.mllp"


def _phoi(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command of Phoi to its end."""
    done = subprocess.run(
        [_PHOI, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise EdgeError(f"phoi {' '.join(arguments[:2])} failed: {log} says why")


def _settings(folder: Path, ports: Ports, quiet_time_s: float) -> str:
    text = json.dumps  # TOML's basic strings are JSON's
    return f"""\
data = {text(str(folder / "data"))}
retry_delays_s = [0.5, 1, 2, 5]

[site]
name = "{SITE}"
mode = "pacs+emr"

[dicom]
port = {ports.dicom}
quiet_time_s = {quiet_time_s}
minimum_free_disk_mb = 200

[retention]
free_disk_target_mb = 0

[[archives]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {ports.archive}

[hl7]
host = "127.0.0.1"
port = {ports.mllp}

[fhir]
base_url = "http://127.0.0.1:{ports.fhir}/fhir"

[mlflow]
tracking_uri = "http://127.0.0.1:{ports.mlflow}"
report_every_s = 2
follow_champion_every_s = 2

[inference]
workers = [{text(f"unix:{folder / 'worker.sock'}")}]

[web]
port = {ports.web}
"""


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _listens(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True
