"""A storage SCP as the edge node runs it, with an index that remembers what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from phoi_edge_node.dicom.acceptor import Patience
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.storage_scp import StorageScp
from phoi_edge_node.dicom.storage_scu import Peer, StorableFile, association, store
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.ports import Intake, ReceivedInstance, SendOutcome
from phoi_edge_node.settings import DicomSettings
from phoi_edge_node.system import SystemClock


@dataclass
class RememberingReceiver:
    """Keeps what it is told, and judges duplicates and conflicts as an index does."""

    received: list[tuple[ReceivedInstance, str]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    failing: Exception | None = None

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        if self.failing is not None:
            raise self.failing
        known = {i.sop_instance_uid: i.sha256 for i, _ in self.received}
        digest = known.get(instance.sop_instance_uid)
        if digest is not None:
            return Intake.DUPLICATE if digest == instance.sha256 else Intake.CONFLICT
        self.received.append((instance, association))
        return Intake.STORED

    def association_released(self, association: str) -> None:
        self.released.append(association)

    @property
    def instances(self) -> list[ReceivedInstance]:
        return [instance for instance, _ in self.received]


@dataclass
class Edge:
    """A running SCP and all that it writes to."""

    scp: StorageScp
    files: InstanceFiles
    receiver: RememberingReceiver

    @property
    def peer(self) -> Peer:
        return Peer("PHOI", "127.0.0.1", self.scp.port, timeout_s=5)

    def send(self, path: Path) -> SendOutcome:
        """One file as it is, however wrong, with our own SCU, which looks at nothing."""
        file = StorableFile.open(path)
        context = (file.sop_class_uid, file.transfer_syntax_uid)
        with association(self.peer, "CT1", {context}) as link:
            return store(link, file)

    def wait_for_release(self, count: int = 1) -> None:
        deadline = time.monotonic() + 10
        while len(self.receiver.released) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.receiver.released) == count


@contextmanager
def running_edge(
    folder: Path,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    **settings: object,
) -> Iterator[Edge]:
    """A storage SCP on a free port of 127.0.0.1, stopped at the end.

    Args:
        folder: of the instances.
        settings: of section ``dicom``.
    """
    files, receiver = InstanceFiles(folder), RememberingReceiver()
    options = DicomSettings.model_validate({"port": 0, "minimum_free_disk_mb": 0} | settings)
    taker = InstanceTaker(options, files, receiver, SystemClock())
    scp = StorageScp(options, taker, SystemClock(), patience)
    scp.start()
    try:
        yield Edge(scp, files, receiver)
    finally:
        scp.stop()  # a second time changes nothing
