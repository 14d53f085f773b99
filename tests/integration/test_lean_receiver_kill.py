"""Kill the lean receiver at random moments while two senders send: what it answered success for is
on disk, whole, and in the index after the next start.

Ten kills; ``PHOI_KILLS=1000`` for a thousand.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from phoi_edge_node.dicom.headers import data_set_offset
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.recovery import recover_files
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.system import SystemClock
from support.ct_data_set import data_set
from support.dcmtk import run
from support.dicom_wire import CT_CONTEXT, DATA, LAST, p_data, raw_association, read_pdu, store_rq

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PHOI_KILLS", "10"))
SENDERS = 2


@contextmanager
def receiver(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The receiver and the index, in a process of their own."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.phoi_receiver", str(folder), str(port)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*command, "lean", "durable"], cwd=ROOT, stdout=log, stderr=log)
        try:
            _wait_until_it_answers(port, process)
            yield process, port
        finally:
            process.kill()
            process.wait()


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while run("echoscu", "-aec", "PHOI", "127.0.0.1", port).returncode != 0:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def send_until_it_dies(port: int, sender: str, first: Event) -> dict[str, str]:
    """SHA-256 by SOP Instance UID of every instance that was answered success."""
    answered: dict[str, str] = {}
    try:
        with raw_association(port) as peer:
            for number in range(100_000):
                uid = f"{sender}.{number}"
                content = data_set(uid, study=f"{sender[:-2]}.{number // 20}", pixels=150_000)
                message = store_rq(uid) + b"".join(
                    p_data(CT_CONTEXT, DATA, content[at : at + 60_000])
                    for at in range(0, len(content), 60_000)
                )
                peer.sendall(message + p_data(CT_CONTEXT, DATA | LAST, b""))
                if not (answer := read_pdu(peer)):
                    break
                assert b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00" in answer  # status 0x0000
                answered[uid] = hashlib.sha256(content).hexdigest()
                first.set()
    except (OSError, AssertionError):
        if not answered:
            first.set()
            raise
    return answered


def recover(folder: Path, prefix: str) -> dict[str, str]:
    """What a start does first; then SHA-256, as the index has it, by SOP Instance UID.

    Those whose UID begins with ``prefix`` are read again from disk.
    """
    files = InstanceFiles(folder / "instances")
    engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
    try:
        store = SqlStore(engine, SystemClock())
        recover_files(files, store, lambda _: None)
        indexed = [i for uid in store.receiving_studies() for i in store.instances(uid)]
    finally:
        engine.dispose()
    assert list(files.incoming.iterdir()) == []
    assert sorted(i.path for i in indexed) == sorted(files.paths())
    for instance in indexed:
        if not instance.sop_instance_uid.startswith(prefix):
            continue
        content = (files.root / instance.path).read_bytes()
        assert len(content) == instance.size
        digest = hashlib.sha256(content[data_set_offset(content) :]).hexdigest()
        assert digest == instance.sha256
    return {instance.sop_instance_uid: instance.sha256 for instance in indexed}


def test_nothing_that_was_answered_success_is_lost(tmp_path: Path) -> None:
    moments = random.Random(2026)
    promised: dict[str, str] = {}
    for kill in range(KILLS):
        first = Event()
        with receiver(tmp_path) as (process, port), ThreadPoolExecutor(SENDERS) as pool:
            sending = [
                pool.submit(send_until_it_dies, port, f"1.2.{kill}.{n}", first)
                for n in range(SENDERS)
            ]
            assert first.wait(60)
            time.sleep(moments.uniform(0, 0.3))  # the moment is what is drawn, not waited for
            process.kill()
            for sender in sending:
                promised |= sender.result()
        kept = recover(tmp_path, f"1.2.{kill}.")
        assert promised.items() <= kept.items(), f"lost at kill {kill}"
    assert len(promised) >= KILLS


def test_sigterm_ends_it_within_ten_seconds_and_loses_nothing(tmp_path: Path) -> None:
    first = Event()
    with receiver(tmp_path) as (process, port), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_until_it_dies, port, "1.2.0.0", first)
        assert first.wait(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        promised = sending.result()
    files = InstanceFiles(tmp_path / "instances")
    assert list(files.incoming.iterdir()) == []
    assert promised.items() <= recover(tmp_path, "1.2.").items()
