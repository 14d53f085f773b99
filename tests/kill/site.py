"""One edge node and its worker: whatever dies is started again, with the next death planned."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from phoi_edge_node.codec import to_json
from phoi_edge_node.stand_ins.program import free_port
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity

from kill.emr import Outside
from kill.launcher import Launcher, Started
from kill.steps import KillPoint, death_in

PATIENCE_S = 90.0
WORKER = "worker during "
AT_RANDOM = "edge at a random time"
# There is none yet; or its shared memory finds no room on a full disk.
_CANNOT_BE_READ_NOW = ("no such table", "unable to open", "disk I/O error")
_LOOK_EVERY_S = 0.02
_T = TypeVar("_T")


@dataclass
class Deaths:
    """How an edge is to die, and how it did.

    Attributes:
        points: where its lives end, whichever they reach first; each kills once.
        after_s: seconds from the start of a life to a SIGKILL from outside, one for each life.
        of_worker: how often the worker is killed, each time in another step of an analysis.
        worker_died_in: those steps.
        died: what came of it, in order.
    """

    points: list[KillPoint] = field(default_factory=list)
    after_s: list[float] = field(default_factory=list)
    of_worker: int = 0
    worker_died_in: set[str] = field(default_factory=set)
    died: list[str] = field(default_factory=list)


class Site:
    """A folder of its own, and the processes that live and die on it.

    Args:
        home: keys and models.
        models: the current model changes to the next of them at each death of the edge.
        receiver: ``dicom.receiver`` of the settings.
        data: its data folder, where that lies elsewhere.

    Attributes:
        losses: what was found wrong while it ran.
        worker_wanted: start the worker where it does not run.
        may_end: the edge may end by itself, and is started again as by a service manager.
        clock: file with the seconds by which the wall clock of the edge is wrong; need not exist.
    """

    def __init__(
        self,
        folder: Path,
        launcher: Launcher,
        home: Home,
        around: Outside,
        models: Sequence[ModelIdentity],
        deaths: Deaths,
        receiver: str = "pynetdicom",
        data: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.data = data or folder / "data"
        self.clock = folder / "clock"
        self.home = home
        self.around = around
        self.deaths = deaths
        self.journals: list[Path] = []
        self.losses: list[str] = []
        self.dicom_port, self.web_port = free_port(), free_port()
        self.settings_file = folder / "edge.toml"
        self.settings_file.write_text(self._settings(receiver), encoding="utf-8")
        self._launcher = launcher
        self._models = [to_json(model) for model in models]
        self._pinned: dict[str, str] = {}
        self.worker_wanted = True
        self.may_end = False
        self._worker: Started | None = None
        self._edge: Started | None = None

    @property
    def page(self) -> str:
        """URL of the worklist."""
        return f"http://127.0.0.1:{self.web_port}/"

    @property
    def instances(self) -> Path:
        """Root of the received instances."""
        return self.data / "instances"

    @property
    def database(self) -> Path:
        """SQLite's file."""
        return self.data / "phoi.sqlite"

    @property
    def volumes(self) -> Path:
        """Where the edge leaves voxels for the worker."""
        return self.folder / "volumes"

    # --- looking -----------------------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the database says; nothing while it cannot be read."""
        try:
            with closing(
                sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=PATIENCE_S)
            ) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if any(passing in str(error) for passing in _CANNOT_BE_READ_NOW):
                return []
            raise

    def wait_for(self, what: str, look: Callable[[], _T | None]) -> _T:
        """The first thing that ``look`` returns that is not None or False; keeps all alive."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.up()
            seen = look()
            if seen is not None and seen is not False:
                return seen
            time.sleep(_LOOK_EVERY_S)
        raise AssertionError(f"after {PATIENCE_S:.0f} s still no {what}: see {self.folder}")

    # --- living and dying --------------------------------------------------------------------

    def up(self) -> None:
        """Return once worker and edge run; whatever died is started again."""
        if self.worker_wanted and (self._worker is None or not self._worker.running):
            self._start_worker()
        while self._edge is None or not self._edge.running:
            if self._edge is not None:
                self._died(self._edge)
            self._start_edge()
        if self.deaths.of_worker:
            self._kill_worker_in_a_new_step(self._worker)

    def end(self) -> None:
        """Kill both, whatever they do."""
        for process in (self._edge, self._worker):
            if process is not None:
                process.kill()
        self._edge = self._worker = None
        self._look_at_pins()

    def _start_worker(self) -> None:
        listen = f"unix:{self.folder / 'worker.sock'}"
        self._worker = self._launcher.start(
            ["worker", "--threads", "1", "--listen", listen, "--volumes", str(self.volumes)],
            home=self.home.root,
            log=self.folder / "worker.log",
        )

    def _start_edge(self) -> None:
        self.journals.append(self.folder / f"life-{len(self.journals) + 1}.steps")
        edge = self._launcher.start(
            ["edge", "run", "--settings", str(self.settings_file)],
            home=self.home.root,
            log=self.folder / "edge.log",
            journal=self.journals[-1],
            clock=self.clock,
            kills=self.deaths.points,
        )
        self._edge = edge
        if self.deaths.after_s:
            after_s = self.deaths.after_s.pop(0)
            threading.Timer(after_s, edge.send_kill, [AT_RANDOM]).start()
        deadline = time.monotonic() + PATIENCE_S
        while edge.running and not self._answers():
            assert time.monotonic() < deadline, f"the edge does not answer: see {self.folder}"
            time.sleep(_LOOK_EVERY_S)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.web_port)):
                return False
        try:
            httpx.get(f"{self.page}healthz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return True

    def _died(self, edge: Started) -> None:
        point = death_in(self.journals[-1])
        if point is not None:
            self.deaths.points.remove(point)
        died = point.place if point else edge.killed
        assert died or self.may_end, f"the edge ended by itself: see {self.folder / 'edge.log'}"
        self.deaths.died.append(died or "by itself")
        self._look_at_pins()
        self._change_model()

    def _kill_worker_in_a_new_step(self, worker: Started | None) -> None:
        for (step,) in self.rows("SELECT step FROM analyses WHERE state = 'running'"):
            if step and step not in self.deaths.worker_died_in and worker is not None:
                worker.kill()
                self.deaths.of_worker -= 1
                self.deaths.worker_died_in.add(step)
                self.deaths.died.append(f"{WORKER}{step}")

    # --- the current model -------------------------------------------------------------------

    def _look_at_pins(self) -> None:
        """An analysis keeps its first model, and that was the current one in the life it began."""
        pins = self.rows("SELECT id, model FROM analyses WHERE model IS NOT NULL")
        for analysis, model in pins:
            if analysis not in self._pinned and [(model,)] != self._current_model():
                self.losses.append("an analysis began with a model that was not the current one")
            if self._pinned.setdefault(analysis, model) != model:
                self.losses.append("an analysis was pinned to another model later")

    def _current_model(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT value FROM facts WHERE key = 'current_model'")

    def _change_model(self) -> None:
        """As if a new champion had come in between: only new analyses may run it."""
        for (current,) in self._current_model():
            following = self._models[(self._models.index(current) + 1) % len(self._models)]
            with closing(sqlite3.connect(self.database)) as database:
                database.execute(
                    "UPDATE facts SET value = ? WHERE key = 'current_model'", [following]
                )
                database.commit()

    def _settings(self, receiver: str) -> str:
        text = json.dumps  # TOML's basic strings are JSON's
        return f"""\
data = {text(str(self.data))}
retry_delays_s = [0.1, 0.2, 0.5]

[site]
name = "killed"
mode = "pacs+emr"

[dicom]
port = {self.dicom_port}
quiet_time_s = 0.5
minimum_free_disk_mb = 1
receiver = "{receiver}"

[retention]
free_disk_target_mb = 0

[completeness]
ask_every_s = 0.2
limit_s = 2

[[archives]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {self.around.archive_port}

[hl7]
host = "127.0.0.1"
port = {self.around.mllp_port}

[fhir]
base_url = {text(self.around.fhir)}

[inference]
workers = [{text(f"unix:{self.folder / 'worker.sock'}")}]
volumes = {text(str(self.volumes))}
model = "test-blobs"
maximum_attempts = 100

[web]
port = {self.web_port}
"""
