"""Storage commitment with Orthanc, both ways, and with peers that ask badly or are not known."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phoi_edge_node.commitment import CommitmentClerk, CommitmentState
from phoi_edge_node.courier import Courier
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.storage_commitment import (
    PUSH_MODEL,
    WELL_KNOWN_INSTANCE,
    ArchiveCommitment,
    CommitmentService,
    data_set_hash,
)
from phoi_edge_node.dicom.storage_scp import StorageScp
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.policies import RetryPolicy
from phoi_edge_node.ports import Document, DocumentKind
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import ArchiveSettings, DicomSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent
from phoi_edge_node.system import RandomUids, SystemClock
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE, evt
from support import values
from support.dcmtk import storescu
from support.dicom_peers import report_file
from support.dicom_phantom import write_series
from support.orthanc import Orthanc, orthanc

STUDY = "1.2.3"
KINDS = (DocumentKind.SEGMENTATION, DocumentKind.STRUCTURED_REPORT)


@dataclass
class Node:
    """As much of an edge node as commitment needs."""

    store: SqlStore
    files: InstanceFiles
    clerk: CommitmentClerk
    service: CommitmentService
    courier: Courier
    port: int

    def deliver(self, *identities: str) -> None:
        """A segmentation and a report of one study, to the archive."""
        self.store.add_instance(values.instance(1, STUDY))
        assert self.store.complete_study(STUDY, Priority.ROUTINE) is not None
        claimed = self.store.claim_analysis()
        assert claimed is not None
        self.store.pin_model(claimed.id, values.MODEL)
        outgoing = [
            Outgoing(Document(kind, uid, report_file(uid)), ("orthanc",))
            for kind, uid in zip(KINDS, identities, strict=True)
        ]
        result = values.result(STUDY, claimed.revision)
        assert self.store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, outgoing)
        self.send()

    def send(self) -> None:
        while self.courier.send_next():
            pass

    def count(self, state: CommitmentState) -> int:
        return self.store.commitment_counts().get(("orthanc", state), 0)

    def report(self) -> None:
        """Answer what was asked, as soon as it was."""
        wait_until(lambda: self.clerk.report_next(self.service.report))


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def node(folder: Path, archive: ArchiveSettings, port: int) -> Iterator[Node]:
    clock, uids = SystemClock(), RandomUids()
    engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
    store, files = SqlStore(engine, clock), InstanceFiles(folder / "instances")
    clerk = CommitmentClerk(
        store,
        [ArchiveCommitment(archive, "PHOI")],
        lambda path: data_set_hash(files.root / path),
        clock,
        uids,
        lambda _: timedelta(milliseconds=50),
    )
    service = CommitmentService(clerk, {archive.ae_title: Peer.of(archive)}, "PHOI")
    dicom = DicomSettings(port=port, minimum_free_disk_mb=0)
    taker = InstanceTaker(dicom, files, StudyIntake(store, clock, 1.0), clock)
    scp = StorageScp(dicom, taker, clock, commitment=service)
    courier = Courier(store, DicomArchive(archive, "PHOI"), clock, RetryPolicy((0.05,)))
    scp.start()
    try:
        yield Node(store, files, clerk, service, courier, port)
    finally:
        scp.stop()
        engine.dispose()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, int]]:
    """Orthanc, and the port at which it knows PHOI."""
    port = free_port()
    phoi = {"phoi": {"AET": "PHOI", "Host": "127.0.0.1", "Port": port}}
    with orthanc(tmp_path_factory.mktemp("orthanc"), DicomModalities=phoi) as running:
        yield running, port


@pytest.fixture
def phoi(tmp_path: Path, archive: tuple[Orthanc, int]) -> Iterator[Node]:
    running, port = archive
    settings = ArchiveSettings(
        name="orthanc",
        ae_title="ORTHANC",
        host="127.0.0.1",
        port=running.dicom_port,
        commitment=True,
    )
    with node(tmp_path, settings, port) as made:
        yield made


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    hu = np.zeros((3, 16, 16), np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (0, 0, 0), axes))
    return list(write_series(tmp_path_factory.mktemp("ct"), volume))


def test_orthanc_commits_to_what_was_sent_to_it(phoi: Node) -> None:
    phoi.deliver("2.25.101", "2.25.102")
    assert phoi.clerk.ask_next()
    wait_until(lambda: phoi.count(CommitmentState.COMMITTED) == 2)
    assert not phoi.clerk.ask_next()


def test_what_orthanc_has_lost_is_sent_again_and_then_committed(
    phoi: Node, archive: tuple[Orthanc, int]
) -> None:
    phoi.deliver("2.25.201", "2.25.202")
    found = archive[0].http.post("/tools/lookup", content="2.25.201").json()
    archive[0].http.delete(found[0]["Path"]).raise_for_status()

    assert phoi.clerk.ask_next()
    wait_until(lambda: phoi.count(CommitmentState.FAILED) == 1)
    phoi.clerk.send_failed_again()
    phoi.send()

    assert archive[0].http.post("/tools/lookup", content="2.25.201").json()
    assert phoi.clerk.ask_next()
    wait_until(lambda: phoi.count(CommitmentState.COMMITTED) == 2)


def ask_by_orthanc(archive: Orthanc, body: dict[str, Any]) -> str:
    answer = archive.http.post("/modalities/phoi/storage-commitment", json=body)
    identity: str = answer.raise_for_status().json()["ID"]
    return identity


def said_to(archive: Orthanc, transaction: str) -> dict[str, Any]:
    """What Orthanc was told, once it was."""
    told: list[dict[str, Any]] = []

    def is_told() -> bool:
        told[:] = [archive.http.get(f"/storage-commitment/{transaction}").json()]
        return bool(told[0]["Status"] != "Pending")

    wait_until(is_told)
    return told[0]


def test_we_vouch_for_what_orthanc_sent_and_only_while_it_is_sound(
    phoi: Node, archive: tuple[Orthanc, int], slices: list[Path]
) -> None:
    running, _ = archive
    for path in slices:
        running.upload(path)
    uids = [str(dcmread(path).SOPInstanceUID) for path in slices]
    ids = [running.http.post("/tools/lookup", content=uid).json()[0]["ID"] for uid in uids]
    sent = running.http.post("/modalities/phoi/store", json={"Resources": ids})
    sent.raise_for_status()

    first = ask_by_orthanc(running, {"Resources": ids})
    phoi.report()
    assert said_to(running, first)["Status"] == "Success"

    damaged = {i.sop_instance_uid: i.path for i in _all(phoi)}[uids[1]]
    content = bytearray((phoi.files.root / damaged).read_bytes())
    content[-1] ^= 1
    (phoi.files.root / damaged).write_bytes(content)
    second = ask_by_orthanc(
        running, {"DicomInstances": [[CTImageStorage, uid] for uid in (*uids, "1.2.999")]}
    )
    phoi.report()
    told = said_to(running, second)
    assert told["Status"] == "Failure"
    assert {s["SOPInstanceUID"] for s in told["Success"]} == {uids[0], uids[2]}
    assert {f["SOPInstanceUID"]: f["FailureReason"] for f in told["Failures"]} == {
        uids[1]: 0x0110,
        "1.2.999": 0x0112,
    }


def _all(phoi: Node) -> list[Any]:
    return [
        instance
        for study in phoi.store.studies()
        for instance in phoi.store.instances(study.header.study_instance_uid)
    ]


@contextmanager
def asking(port: int, on_report: Callable[[evt.Event], tuple[int, None]]) -> Iterator[Any]:
    """A modality that no setting names."""
    entity = AE(ae_title="CT9")
    entity.add_requested_context(PUSH_MODEL)
    link: Any = entity.associate(
        "127.0.0.1", port, ae_title="PHOI", evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)]
    )
    assert link.is_established
    try:
        yield link
    finally:
        link.release()


def request(*uids: str) -> Dataset:
    dataset = Dataset()
    dataset.TransactionUID = generate_uid()
    dataset.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
        dataset.ReferencedSOPSequence.append(item)
    return dataset


def test_a_peer_of_no_known_address_hears_on_its_own_association(
    phoi: Node, slices: list[Path]
) -> None:
    assert storescu(phoi.port, *slices).returncode == 0
    told: queue.Queue[tuple[int | None, Dataset]] = queue.Queue()

    def hear(event: evt.Event) -> tuple[int, None]:
        told.put((event.event_type, event.event_information))
        return 0x0000, None

    asked = request(*(str(dcmread(path).SOPInstanceUID) for path in slices))
    with asking(phoi.port, hear) as link:
        status, _ = link.send_n_action(asked, 1, PUSH_MODEL, WELL_KNOWN_INSTANCE)
        assert status.Status == 0x0000
        phoi.report()
        event_type, information = told.get(timeout=30)
    assert event_type == 1
    assert information.TransactionUID == asked.TransactionUID
    assert len(information.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in information


@pytest.mark.parametrize(
    ("action", "instance", "uids", "status"),
    [
        (2, WELL_KNOWN_INSTANCE, ("1.2.3",), 0x0123),
        (1, "1.2.3", ("1.2.3",), 0x0112),
        (1, WELL_KNOWN_INSTANCE, (), 0x0115),
        (1, WELL_KNOWN_INSTANCE, ("1.2.3", ""), 0x0115),
        (1, WELL_KNOWN_INSTANCE, ("1.2",) * 10_001, 0x0213),
    ],
)
def test_a_bad_request_is_answered_so_and_owes_nothing(
    phoi: Node, action: int, instance: str, uids: tuple[str, ...], status: int
) -> None:
    with asking(phoi.port, lambda _: (0, None)) as link:
        answer, _ = link.send_n_action(request(*uids), action, PUSH_MODEL, instance)
    assert answer.Status == status
    assert phoi.store.next_owed_report() is None
