"""An edge node and its worker as processes, and Orthanc as the PACS that routes CT to it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pydicom
from phoi_edge_node.stand_ins.hospital import Hospital, Program
from phoi_edge_node.stand_ins.program import free_port
from phoi_models.home import Home
from pydicom import Dataset

from support.inference import WorkerProcess, running_worker
from support.orthanc import Orthanc, orthanc
from support.outside import metric

ROUTING = Path(__file__).parents[2] / "deploy" / "orthanc" / "route-ct-to-phoi.lua"
"""The very script that hospitals are given."""


PHOI = str(Path(sys.executable).with_name("phoi"))


@dataclass
class Pacs:
    """Orthanc, which can be stopped and started again on the same ports and the same storage.

    Attributes:
        phoi_port: where it sends what its script routes.
        plugins: of Orthanc.
    """

    folder: Path
    phoi_port: int
    ae_title: str = "ORTHANC"
    plugins: tuple[Path, ...] = ()
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    _running: ExitStack = field(default_factory=ExitStack)
    _orthanc: Orthanc | None = None

    @property
    def orthanc(self) -> Orthanc:
        assert self._orthanc is not None, "it is stopped"
        return self._orthanc

    def start(self, *scripts: Path) -> None:
        """Start it with these Lua scripts."""
        sections: dict[str, Any] = {
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "LuaScripts": [str(script) for script in scripts],
            "DicomModalities": {
                "phoi": {"AET": "PHOI", "Host": "127.0.0.1", "Port": self.phoi_port}
            },
        }
        self._orthanc = self._running.enter_context(
            orthanc(self.folder, plugins=self.plugins, **sections)
        )

    def stop(self) -> None:
        self._orthanc = None
        self._running.close()

    def datasets(self, study_instance_uid: str) -> list[Dataset]:
        """What it holds of a study, read from the files that it gives out, without bulk data."""
        (study,) = self.orthanc.http.post("/tools/lookup", content=study_instance_uid).json()
        instances = self.orthanc.http.get(f"/studies/{study['ID']}/instances").json()
        files = (self.orthanc.http.get(f"/instances/{i['ID']}/file").content for i in instances)
        return [pydicom.dcmread(io.BytesIO(file), defer_size=1024) for file in files]

    def file(self, sop_instance_uid: str) -> Dataset:
        """One instance, with all that is in it."""
        (found,) = self.orthanc.http.post("/tools/lookup", content=sop_instance_uid).json()
        content = self.orthanc.http.get(f"/instances/{found['ID']}/file").content
        return pydicom.dcmread(io.BytesIO(content))

    def modalities(self, study_instance_uid: str) -> Counter[str]:
        """How many instances of each modality it holds of a study; empty where it has none."""
        if not self.orthanc.http.post("/tools/lookup", content=study_instance_uid).json():
            return Counter()
        return Counter(str(d.Modality) for d in self.datasets(study_instance_uid))

    def last_change(self) -> int:
        """Grows with everything that comes in and with every series that becomes stable."""
        answer = self.orthanc.http.get("/changes", params={"last": ""}).raise_for_status()
        return int(answer.json()["Last"])

    def jobs(self) -> list[dict[str, Any]]:
        """What it was to send, and how that went."""
        found: list[dict[str, Any]] = self.orthanc.http.get("/jobs", params={"expand": ""}).json()
        return found


@dataclass(frozen=True)
class Edge:
    """``phoi edge run`` and its worker."""

    folder: Path
    home: Home
    dicom_port: int
    web_port: int
    program: Program
    worker: WorkerProcess

    @property
    def settings_file(self) -> Path:
        return self.folder / "edge.toml"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.web_port}/"

    def metric(self, name: str, **labels: str) -> float:
        return metric(cast("Hospital", self), name, **labels)

    def phoi(self, *arguments: str) -> str:
        """What a command of Phoi says of this node."""
        command = [PHOI, *arguments, "--settings", str(self.settings_file)]
        environment = {**os.environ, "PHOI_HOME": str(self.home.root)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout

    def states(self) -> list[str]:
        """How many studies, analyses and deliveries are in each state: a line for each."""
        lines = httpx.get(f"{self.page}metrics/", trust_env=False, timeout=60).text.splitlines()
        lives = ("phoi_studies{", "phoi_analyses{", "phoi_deliveries{")
        return [line for line in lines if line.startswith(lives)]

    @contextmanager
    def worker_held_up(self) -> Iterator[None]:
        """The worker stands still, and an analysis with it."""
        self.worker.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.worker.process.send_signal(signal.SIGCONT)


@contextmanager
def running_edge(
    folder: Path, home: Home, dicom_port: int, sections: str, *worker_options: object
) -> Iterator[Edge]:
    """An edge node with a worker, until the context ends.

    Args:
        home: with a key and a model.
        sections: of the settings, beside those made here, as TOML.
    """
    folder.mkdir(parents=True, exist_ok=True)
    web_port = free_port()
    with running_worker(home, *worker_options) as worker:
        settings = folder / "edge.toml"
        settings.write_text(
            f"data = {json.dumps(str(folder / 'data'))}\n"
            "retry_delays_s = [0.2, 0.5, 1]\n"
            f"inference.workers = {json.dumps(worker.addresses)}\n"
            f"web = {{ port = {web_port} }}\n"
            f"{sections}",
            encoding="utf-8",
        )
        program = Program(
            [PHOI, "edge", "run", "-s", str(settings)],
            {"PHOI_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
            folder / "edge.log",
            lambda: _answers(f"http://127.0.0.1:{web_port}/healthz"),
        )
        program.start()
        try:
            yield Edge(folder, home, dicom_port, web_port, program, worker)
        finally:
            program.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False
