"""The whole node: red while its disk is too full; who asks for commitment is answered by itself."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from phoi_edge_node import bootstrap
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.damage import ImageCare
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.storage_commitment import PUSH_MODEL, WELL_KNOWN_INSTANCE
from phoi_edge_node.links import Links
from phoi_edge_node.retention import Retention
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.testing import FakeInference
from phoi_edge_node.watchdog import Watchdog
from phoi_models.geometry import Geometry
from phoi_models.home import Home
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from support import values
from support.dcmtk import storescu
from support.dicom_phantom import write_series
from support.outside import wait_for


@contextmanager
def running(folder: Path, **dicom: object) -> Iterator[EdgeNode]:
    settings = EdgeSettings.model_validate(
        {"data": folder / "data", "dicom": {"port": 0, **dicom}, "web": {"port": 0}}
    )
    nothing = values.volume_analysis()
    node = EdgeNode(settings, Home(folder / "home"), FakeInference(values.MODEL, nothing))
    node.start()
    try:
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    hu = np.zeros((3, 16, 16), np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (0, 0, 0), axes))
    return list(write_series(tmp_path_factory.mktemp("ct"), volume))


def test_a_disk_that_is_too_full_turns_health_red_and_recovers_by_itself(
    tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [999_000_000]
    monkeypatch.setattr(InstanceFiles, "free_bytes", lambda _: free[0])
    with running(tmp_path, minimum_free_disk_mb=1000) as node:
        page = f"http://127.0.0.1:{node.web_port}"
        assert "OutOfResources" in storescu(node.scp.port, *slices).stderr
        answer = httpx.get(f"{page}/readyz", timeout=60)
        assert answer.status_code == 503
        assert "images are refused: 999 MB of disk are free, 1000 are needed" in answer.text
        assert "phoi_images_refused 1.0" in httpx.get(f"{page}/metrics/", timeout=60).text

        free[0] = 2_000_000_000

        assert httpx.get(f"{page}/readyz", timeout=60).status_code == 200
        assert "OutOfResources" not in storescu(node.scp.port, *slices).stderr
        assert "phoi_images_refused 0.0" in httpx.get(f"{page}/metrics/", timeout=60).text


def test_a_node_answers_who_asks_for_commitment(tmp_path: Path, slices: list[Path]) -> None:
    told: queue.Queue[Dataset] = queue.Queue()

    def hear(event: evt.Event) -> tuple[int, None]:
        told.put(event.event_information)
        return 0x0000, None

    request = Dataset()
    request.TransactionUID = "2.25.55"
    request.ReferencedSOPSequence = []
    for path in slices:
        header, item = dcmread(path), Dataset()
        item.ReferencedSOPClassUID = header.SOPClassUID
        item.ReferencedSOPInstanceUID = header.SOPInstanceUID
        request.ReferencedSOPSequence.append(item)
    entity = AE(ae_title="CT9")
    entity.add_requested_context(PUSH_MODEL)
    with running(tmp_path, minimum_free_disk_mb=0) as node:
        assert storescu(node.scp.port, *slices).returncode == 0
        link: Any = entity.associate(
            "127.0.0.1",
            node.scp.port,
            ae_title="PHOI",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, hear)],
        )
        status, _ = link.send_n_action(request, 1, PUSH_MODEL, WELL_KNOWN_INSTANCE)
        assert status.Status == 0x0000
        assert len(told.get(timeout=30).ReferencedSOPSequence) == 3
        link.release()


def test_what_was_queued_wakes_only_who_has_work_from_it(
    tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[str] = Counter()

    def count(name: str) -> Callable[[object], bool]:
        def look(_: object) -> bool:
            looks[name] += 1
            return False

        return look

    by_the_clock = (
        (Links, "check_inference", "LINK_CHECK_S"),
        (Watchdog, "look", "WATCHDOG_S"),
        (ImageCare, "verify_next", "VERIFY_S"),
        (Retention, "run", "RETENTION_S"),
    )
    for part, step, idle in by_the_clock:
        monkeypatch.setattr(part, step, count(idle))
        monkeypatch.setattr(bootstrap, idle, 3600.0)
    with running(tmp_path, minimum_free_disk_mb=0, quiet_time_s=0.1) as node:
        assert storescu(node.scp.port, *slices).returncode == 0
        uid = str(dcmread(slices[0]).StudyInstanceUID)
        store = node.storage.store
        wait_for("result", lambda: any(a.finished_at for a in store.analyses(uid)))
    assert looks == {idle: 1 for _, _, idle in by_the_clock}
