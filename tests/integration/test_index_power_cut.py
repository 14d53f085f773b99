"""A power cut takes out of the index what was not synced: the next start finds all of it again.

The cut is the worst that SQLite's log allows: it ends where the last synced commit ended.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from phoi_edge_node.dicom.file_meta import encode_file_meta
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.recovery import recover_files
from phoi_edge_node.dicom.retired_files import RetiredFiles
from phoi_edge_node.ports import Intake
from phoi_edge_node.result import Priority
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.study import AnalysisEvent, StudyState
from phoi_edge_node.system import SystemClock
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from support import values
from support.ct_data_set import data_set

FULL, NORMAL = 2, 1  # PRAGMA synchronous


class WatchedStore(SqlStore):
    """Knows how much of the log was synced."""

    log: Path
    synced_bytes = 0
    unsynced_commits = 0

    @contextmanager
    def _write(self, *, synced: bool = True) -> Iterator[sa.Connection]:
        with super()._write(synced=synced) as connection:
            level = connection.exec_driver_sql("PRAGMA synchronous").scalar()
            assert level == (FULL if synced else NORMAL)
            yield connection
        if synced:
            self.synced_bytes = self.log.stat().st_size
        else:
            self.unsynced_commits += 1


@dataclass
class Edge:
    """A store and files, and what was promised to senders."""

    folder: Path
    store: WatchedStore
    files: InstanceFiles
    promised: dict[str, str]

    def receive(self, uid: str, study: str) -> Intake:
        """As the receivers do it: durable, indexed, then success."""
        content = data_set(uid, study=study)
        meta = encode_file_meta(
            sop_class_uid=CTImageStorage,
            sop_instance_uid=uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            sending_ae_title="CT1",
            receiving_ae_title="PHOI",
        )
        path = self.files.store(study, uid, meta, content).path
        instance = instance_from_file(self.files.root, path)
        outcome = self.store.add_instance(replace(instance, received_at=values.AT))
        self.promised[uid] = study
        return outcome

    def complete(self, study: str) -> None:
        """Analysed, and nothing to be delivered."""
        if self.store.complete_study(study, Priority.ROUTINE) is None:
            return
        claimed = self.store.claim_analysis()
        assert claimed is not None
        result = values.result(study, claimed.revision)
        self.store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, [])

    def expire(self, study: str) -> None:
        """Its images go, on purpose."""
        if self.store.expire_study(study):
            self.images().retire(study)
            self.promised = {uid: of for uid, of in self.promised.items() if of != study}

    def lose(self, study: str) -> None:
        """A file is gone, and that was seen."""
        instances = self.store.instances(study)
        if instances:
            lost = instances[0]
            (self.files.root / lost.path).unlink(missing_ok=True)
            self.store.lose_instances(study, {lost.sop_instance_uid: "missing"})
            self.promised.pop(lost.sop_instance_uid, None)

    def remove(self, study: str) -> None:
        """A file is gone, and nobody saw it yet."""
        instances = self.store.instances(study)
        if instances:
            (self.files.root / instances[0].path).unlink(missing_ok=True)
            self.promised.pop(instances[0].sop_instance_uid, None)

    def images(self) -> RetiredFiles:
        return RetiredFiles(self.files, self.store.indexed, SystemClock())


@contextmanager
def running(folder: Path) -> Iterator[Edge]:
    engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
    try:
        store = WatchedStore(engine, SystemClock())
        store.log = folder / "phoi.sqlite-wal"
        store.synced_bytes = store.log.stat().st_size if store.log.exists() else 0
        yield Edge(folder, store, InstanceFiles(folder / "instances"), {})
    finally:
        engine.dispose()


@contextmanager
def after_a_power_cut(edge: Edge, folder: Path) -> Iterator[Edge]:
    """What is left of it, started again and recovered."""
    shutil.copytree(edge.folder, folder, ignore=shutil.ignore_patterns("*-shm", "*-wal"))
    log = (edge.folder / "phoi.sqlite-wal").read_bytes()
    (folder / "phoi.sqlite-wal").write_bytes(log[: edge.store.synced_bytes])
    with running(folder) as again:
        again.promised = edge.promised
        recover_files(again.files, again.store, again.images().retire)
        yield again


def require_kept(edge: Edge, studies: set[str]) -> None:
    """All that success was answered for is indexed and on disk."""
    indexed = {
        instance.sop_instance_uid: study
        for study in studies
        for instance in edge.store.instances(study)
        if (edge.files.root / instance.path).exists()
    }
    assert edge.promised.items() <= indexed.items()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    (tmp_path / "before").mkdir()
    with running(tmp_path / "before") as edge:
        yield edge


def test_what_only_adds_to_a_study_is_not_synced_and_is_found_again(
    edge: Edge, tmp_path: Path
) -> None:
    for number in range(1, 6):
        assert edge.receive(f"1.2.{number}", "1.2") is Intake.STORED
    assert edge.store.unsynced_commits == 4
    log = (edge.folder / "phoi.sqlite-wal").stat().st_size
    assert log > edge.store.synced_bytes  # there is something to lose

    with after_a_power_cut(edge, tmp_path / "after") as again:
        require_kept(again, {"1.2"})
        assert again.store.receiving_studies() == ["1.2"]


def test_the_cut_does_take_instances_out_of_the_index(edge: Edge, tmp_path: Path) -> None:
    """Or the other tests here would show nothing."""
    for number in range(1, 6):
        edge.receive(f"1.2.{number}", "1.2")
    shutil.rmtree(edge.files.root / "studies")

    with after_a_power_cut(edge, tmp_path / "after") as again:
        assert len(again.store.instances("1.2")) == 1


@pytest.mark.parametrize("reopened", ["complete", "expired"])
def test_what_reopens_a_study_is_synced(edge: Edge, tmp_path: Path, reopened: str) -> None:
    edge.receive("1.2.1", "1.2")
    edge.complete("1.2")
    if reopened == "expired":
        edge.expire("1.2")
    edge.receive("1.2.2", "1.2")
    assert edge.store.unsynced_commits == 0

    with after_a_power_cut(edge, tmp_path / "after") as again:
        require_kept(again, {"1.2"})
        study = again.store.study("1.2")
        assert study is not None
        assert study.state is StudyState.RECEIVING


def test_a_file_that_is_missing_does_not_hide_one_that_is_not_indexed(
    edge: Edge, tmp_path: Path
) -> None:
    """As many files as the index has instances, but not the same."""
    edge.receive("1.2.1", "1.2")
    edge.remove("1.2")
    edge.receive("1.2.2", "1.2")

    with after_a_power_cut(edge, tmp_path / "after") as again:
        require_kept(again, {"1.2"})


def test_what_completes_a_study_makes_its_instances_durable(edge: Edge, tmp_path: Path) -> None:
    for number in range(1, 6):
        edge.receive(f"1.2.{number}", "1.2")
    edge.complete("1.2")
    shutil.rmtree(edge.files.root / "studies")  # recovery has nothing to find them by

    with after_a_power_cut(edge, tmp_path / "after") as again:
        assert len(again.store.instances("1.2")) == 5


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_before_the_cut(edge: Edge, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    studies = [f"1.2.{number}" for number in range(3)]
    sent = 0
    for step in range(60):
        study = dice.choice(studies)
        steps = ["new", "again", "complete", "expire", "lose", "remove"]
        match dice.choices(steps, (9, 2, 2, 1, 1, 1))[0]:
            case "new":
                sent += 1
                edge.receive(f"{study}.{sent}", study)
            case "again" if edge.promised:
                uid, of = dice.choice(list(edge.promised.items()))
                assert edge.receive(uid, of) is Intake.DUPLICATE
            case "complete":
                edge.complete(study)
            case "expire":
                edge.expire(study)
            case "lose":
                edge.lose(study)
            case "remove":
                edge.remove(study)
        if step % 6 == 5:
            with after_a_power_cut(edge, tmp_path / f"after-{step}") as again:
                require_kept(again, set(studies))
