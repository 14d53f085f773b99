"""SIGTERM while an edge node receives, analyses and delivers, all at once."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from phoi_edge_node.dicom.storage_scu import Peer, StorableFile, association, store
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Delivered, Document, DocumentKind
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.system import SystemClock
from phoi_edge_node.usage import FORMAT
from support.chests import plain_chest
from support.dicom_phantom import SeriesOptions, write_series
from support.fhir_peers import fhir_peer
from support.inference import SLOW, install, new_home, running_worker
from support.outside import wait_for

# How long it takes depends on what else this machine does: test_failures measures the promised ten
# seconds on a node that rests. Here it must only end by itself.
STOP_S = 120
_MODEL = dict.fromkeys(("name", "version", "bundle_hash", "device_uid", "operating_point"), "x")
USAGE = {"format": FORMAT, "site": "test", "model": _MODEL, "counted_at_ms": 1, "sequence": 1}


@contextmanager
def edge_process(settings: Path, home: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    phoi = str(Path(sys.executable).with_name("phoi"))
    command = [phoi, "edge", "run", "--settings", str(settings)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**os.environ, "PHOI_HOME": str(home)}, stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def queue_a_usage_report(data: Path) -> None:
    """Something to deliver from the first moment."""
    engine = open_engine(f"sqlite:///{data / 'phoi.sqlite'}")
    document = Document(DocumentKind.USAGE, "1", json.dumps({**USAGE, "metrics": {}}).encode())
    SqlStore(engine, SystemClock()).enqueue_usage([document], "mlflow")
    engine.dispose()


class Sender:
    """Sends the same images again and again, on one association, until it is cut off."""

    def __init__(self, peer: Peer, files: tuple[Path, ...]) -> None:
        self._peer = peer
        self._files = [StorableFile.open(path) for path in files]
        self.stored = 0
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        contexts = {(f.sop_class_uid, f.transfer_syntax_uid) for f in self._files}
        files = itertools.cycle(self._files)
        try:
            with association(self._peer, "CT2", contexts) as link:
                while isinstance(store(link, next(files)), Delivered):
                    self.stored += 1
        except EdgeError:
            pass

    def join(self) -> None:
        self._thread.join()


def metric(page: str, name: str) -> float:
    lines = httpx.get(f"{page}/metrics/", trust_env=False, timeout=60).text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)


def answers(page: str) -> bool:
    try:
        return httpx.get(f"{page}/healthz", trust_env=False, timeout=60).is_success
    except httpx.TransportError:
        return False


def test_it_ends_well_with_its_hands_full(tmp_path: Path) -> None:
    home, data = new_home(tmp_path / "home"), tmp_path / "data"
    install(home, tmp_path / "bundle", **{**SLOW, "name": "phoi-lung-nodule"})
    volume = plain_chest(spacing_mm=(2.5, 6.0, 6.0))
    first = write_series(tmp_path / "first", volume, SeriesOptions())
    second = write_series(tmp_path / "second", volume, SeriesOptions())
    data.mkdir(mode=0o700)
    queue_a_usage_report(data)
    dicom, web = free_port(), free_port()
    page, phoi = f"http://127.0.0.1:{web}", Peer("PHOI", "127.0.0.1", dicom, timeout_s=10)
    with (
        running_worker(home) as worker,
        fhir_peer(200, b"{}" * 500, drip_s=1.0) as mlflow,
        ExitStack() as stack,
    ):
        (tmp_path / "edge.toml").write_text(
            f'data = "{data}"\n'
            f"[dicom]\nport = {dicom}\nquiet_time_s = 0.5\nminimum_free_disk_mb = 1\n"
            f'[inference]\nworkers = ["{worker.addresses[0]}"]\n[web]\nport = {web}\n'
            f'[mlflow]\ntracking_uri = "{mlflow.base_url}"\n'
        )
        edge = stack.enter_context(
            edge_process(tmp_path / "edge.toml", home.root, tmp_path / "edge.log")
        )
        wait_for("page", lambda: answers(page))
        contexts = {(f.sop_class_uid, f.transfer_syntax_uid) for f in map(StorableFile.open, first)}
        with association(phoi, "CT1", contexts) as link:
            assert all(isinstance(store(link, StorableFile.open(f)), Delivered) for f in first)
        wait_for(
            "delivery", lambda: metric(page, 'phoi_deliveries{state="sending",to="mlflow"}') == 1
        )
        wait_for("analysis", lambda: metric(page, 'phoi_analyses{state="running"}') == 1)
        sender = Sender(phoi, second)  # last: it leaves little of the CPU to the others
        wait_for("images", lambda: sender.stored > 0)
        edge.send_signal(signal.SIGTERM)
        status = edge.wait(STOP_S)
        sender.join()
    log = (tmp_path / "edge.log").read_text()
    assert status == 0, log[-2000:]
    assert "edge node stopped" in log
