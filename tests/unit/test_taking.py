"""Whatever comes, ``take`` ends in one of its two ways and leaves nothing half done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.headers import read_header
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.part10 import open_file
from phoi_edge_node.dicom.taking import (
    DUPLICATE_SOP_INSTANCE,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
    status_of,
)
from phoi_edge_node.ports import Intake, ReceivedInstance
from phoi_edge_node.settings import DicomSettings
from phoi_edge_node.testing import FakeClock
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from support.ct_data_set import data_set
from support.dicom_edge import RememberingReceiver
from support.dicom_phantom import write_series

STATUSES = {0x0111, 0xA900, 0xC000}


class Desk:
    """A taker, and the honest instance that is damaged again and again."""

    def __init__(self, folder: Path) -> None:
        axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
        hu = np.zeros((2, 8, 8), np.int16)
        volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (0, 0, 0), axes))
        self.content = write_series(folder / "ct", volume)[0].read_bytes()
        self.files = InstanceFiles(folder / "instances")
        self.receiver = RememberingReceiver()
        settings = DicomSettings(minimum_free_disk_mb=0)
        self.taker = InstanceTaker(settings, self.files, self.receiver, FakeClock())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(tmp_path_factory.mktemp("taking"))
    assert made.taker.take(open_file(made.content)[0], "a") is Intake.STORED
    yield made
    # What was answered success is there, under the identity that it says itself.
    stored = {i.path: i.sop_instance_uid for i in made.receiver.instances}
    for path in made.files.paths():
        assert read_header(made.files.root / path).sop_instance_uid == stored[path]
    assert list(made.files.incoming.iterdir()) == []


class Both(RememberingReceiver):
    """Two associations learn at the same moment that theirs is other content."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(2)

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        intake = super().instance_received(instance, association)
        if intake is Intake.CONFLICT:
            self.barrier.wait(60)
        return intake


def test_the_same_other_content_twice_at_once_is_a_conflict_twice(tmp_path: Path) -> None:
    files, receiver = InstanceFiles(tmp_path), Both()
    taker = InstanceTaker(DicomSettings(minimum_free_disk_mb=0), files, receiver, FakeClock())

    def send(pixels: int) -> int:
        content = data_set("1.2.3", pixels=pixels)
        kind = IncomingInstance(content, ExplicitVRLittleEndian, CTImageStorage, "1.2.3")
        return status_of(lambda: taker.take(kind, str(pixels)), "1.2.3")

    assert send(64) == 0
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(send, [66, 66])) == [DUPLICATE_SOP_INSTANCE] * 2
    assert files.quarantined() == len(list(files.paths())) == 1


@given(data=st.data())
def test_a_damaged_instance_is_taken_as_it_says_it_is_or_not_at_all(
    desk: Desk, data: st.DataObject
) -> None:
    content = bytearray(desk.content)
    for place in data.draw(st.lists(st.integers(132, 1200), min_size=1, max_size=4)):
        content[place % len(content)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(200, len(content)))
    intake, refusal = None, None
    try:
        incoming, header = open_file(bytes(content[:cut]))
        intake = desk.taker.take(incoming, "a")
    except NotTaken as why:
        refusal = why
    if refusal is None:
        assert intake in {Intake.STORED, Intake.DUPLICATE}
        assert header.sop_instance_uid == incoming.sop_instance_uid
    else:
        assert refusal.status in STATUSES
        assert "NGUY" not in str(refusal).upper()
    assert list(desk.files.incoming.iterdir()) == []
