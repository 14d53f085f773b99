"""A node is backed up while it writes, and put back: on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from phoi_edge_node.backup import backups, verify
from phoi_edge_node.bootstrap import Storage, only_node, open_storage
from phoi_edge_node.cli.backup import backup, restore
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Delivered, ReceivedInstance
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import read_settings
from phoi_edge_node.sql.dump import dump_database
from phoi_edge_node.sql.tables import metadata
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, DeliveryState, StudyState
from phoi_edge_node.system import SystemClock
from phoi_models.files import write_atomically
from support import values
from support.commands import phoi
from support.postgres import postgres


@dataclass
class Node:
    """Settings, data and database of one edge node that does not run."""

    folder: Path
    database_url: str

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.settings_file.write_text(
            f'data = "{self.folder / "data"}"\ndatabase_url = "{self.database_url}"\n'
        )

    @property
    def settings_file(self) -> Path:
        return self.folder / "edge.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def open(self) -> Storage:
        return open_storage(read_settings(self.settings_file), SystemClock())

    def receive(self, storage: Storage, uid: str, number: int) -> ReceivedInstance:
        instance = values.instance(number, uid)
        content = b"%d" % number
        stored = storage.files.store(uid, instance.sop_instance_uid, b"meta", content)
        instance = replace(instance, path=stored.path, sha256=stored.sha256)
        storage.store.add_instance(instance)
        return instance

    def analyse(self, storage: Storage, uid: str) -> None:
        store = storage.store
        store.complete_study(uid, Priority.ROUTINE)
        claimed = store.claim_analysis()
        assert claimed is not None
        outgoing = [Outgoing(values.document(f"{uid}-sr"), ("pacs",))]
        result = values.result(uid, claimed.revision)
        store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, outgoing)

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything in the database, by table."""
        storage = self.open()
        with storage.engine.begin() as connection:
            found = {
                name: [tuple(row) for row in connection.execute(sa.select(table))]
                for name, table in metadata.tables.items()
            }
        storage.engine.dispose()
        return {name: sorted(rows, key=repr) for name, rows in found.items()}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def nodes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Node, Node]:
    """One node to back up, and an empty one to restore to."""
    monkeypatch.setenv("PHOI_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "trust.json").write_text("{}")
    if request.param == "sqlite":
        return Node(tmp_path / "one", ""), Node(tmp_path / "two", "")
    url = request.getfixturevalue("postgres_url")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in ("one", "two"):
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    one, two = (str(url).replace("/postgres?", f"/{name}?") for name in ("one", "two"))
    return Node(tmp_path / "one", one), Node(tmp_path / "two", two)


def _back_up(node: Node, destination: Path, *options: str) -> Path:
    result = phoi(backup, destination, "-s", node.settings_file, *options)
    assert "verified" in result.output
    return backups(destination)[-1]


def test_a_backup_taken_during_writes_is_one_moment_of_the_node(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    storage = one.open()
    one.receive(storage, "1.1", 1)
    one.analyse(storage, "1.1")
    stop = threading.Event()
    written = []

    def write() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            written.append(one.receive(storage, f"1.2.{number}", 1).study_instance_uid)
            one.analyse(storage, written[-1])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 3:
            stop.wait(0.01)
        before = len(written)
        folder = _back_up(one, tmp_path / "backups", "--with-images")
    finally:
        stop.set()
        writer.join()
        storage.engine.dispose()
    phoi(restore, folder, "-s", two.settings_file)
    source, restored = one.rows(), two.rows()
    assert before <= len(restored["studies"]) <= len(source["studies"])
    for name in ("instances", "documents"):
        assert set(restored[name]) <= set(source[name])
    # Of each study all or nothing, as its transactions were.
    restored_studies = {row[0] for row in restored["studies"]}
    assert {row[1] for row in restored["instances"]} == restored_studies
    images = (two.data / "instances" / "studies").rglob("*.dcm")
    assert len(list(images)) >= len(restored["instances"])


def test_everything_comes_back_and_what_is_under_way_goes_on(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    storage = one.open()
    one.receive(storage, "1.1", 1)
    one.analyse(storage, "1.1")
    storage.store.record_audit("an", "view_study", "1.1", "")
    storage.engine.dispose()
    (one.data / "session.key").write_bytes(b"k" * 32)
    folder = _back_up(one, tmp_path / "backups", "--with-images")
    assert folder.stat().st_mode & 0o777 == 0o700
    phoi(restore, folder, "-s", two.settings_file)
    assert two.rows() == one.rows()
    assert (two.data / "session.key").read_bytes() == b"k" * 32
    again = two.open()
    claimed = again.store.claim_delivery("pacs")
    assert claimed is not None
    assert claimed[1].identity == "1.1-sr"
    again.store.record_audit("an", "after", None, "")
    with pytest.raises(sa.exc.DatabaseError, match="append-only"), again.engine.begin() as link:
        link.execute(sa.text("DELETE FROM audit"))
    again.engine.dispose()


def test_images_that_are_not_on_the_disk_are_recognised(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    storage = one.open()
    for uid in ("1.1", "1.2", "1.3"):
        one.receive(storage, uid, 1)
    one.analyse(storage, "1.1")
    delivery = storage.store.claim_delivery("pacs")
    assert delivery is not None
    storage.store.settle_delivery(delivery[0].id, Delivered(), SystemClock().now())
    one.analyse(storage, "1.2")
    storage.engine.dispose()
    folder = _back_up(one, tmp_path / "backups")
    result = phoi(restore, folder, "-s", two.settings_file)
    assert "1 studies keep their results" in result.output
    assert "2 studies lack images" in result.output
    again = two.open()
    states = {s.header.study_instance_uid: s.state for s in again.store.studies()}
    assert states == {
        "1.1": StudyState.EXPIRED,
        "1.2": StudyState.RECEIVING,
        "1.3": StudyState.RECEIVING,
    }
    assert again.store.instance_counts() == {}
    assert [d.state for d in again.store.deliveries("1.2")] == [DeliveryState.PENDING]
    again.engine.dispose()


def test_one_lost_image_does_not_take_its_whole_study_away(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    storage = one.open()
    first, _ = one.receive(storage, "1.1", 1), one.receive(storage, "1.1", 2)
    one.analyse(storage, "1.1")
    delivery = storage.store.claim_delivery("pacs")
    assert delivery is not None
    storage.store.settle_delivery(delivery[0].id, Delivered(), SystemClock().now())
    storage.engine.dispose()
    (one.data / "instances" / first.path).unlink()
    folder = _back_up(one, tmp_path / "backups", "--with-images")
    result = phoi(restore, folder, "-s", two.settings_file)
    assert "1 studies lack images" in result.output
    again = two.open()
    assert again.store.instance_counts() == {"1.1": 1}
    assert [d.sop_instance_uid for d in again.store.damages("1.1")] == [first.sop_instance_uid]
    again.engine.dispose()


def test_nothing_is_sent_after_a_restore_before_somebody_resumes_it(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    one.open().engine.dispose()
    folder = _back_up(one, tmp_path / "backups")
    archive = 'name = "pacs"\nae_title = "A"\nhost = "127.0.0.1"\nport = 104\n'
    with two.settings_file.open("a") as settings:
        settings.write(f'[site]\nmode = "pacs"\n[[archives]]\n{archive}')
    assert "resume them on the page: pacs" in phoi(restore, folder, "-s", two.settings_file).output
    again = two.open()
    assert [pause.target for pause in again.store.pauses()] == ["destination:pacs"]
    again.engine.dispose()


def test_a_backup_is_durable_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "one", "")
    storage = node.open()
    node.receive(storage, "1.1", 1)
    storage.engine.dispose()
    synced: set[int] = set()
    before_manifest: set[int] = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def write(path: Path, content: bytes, mode: int = 0o644) -> None:
        if path.name == "manifest.json":
            before_manifest.update(synced)
        write_atomically(path, content, mode)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr("phoi_edge_node.backup.write_atomically", write)
    folder = _back_up(node, tmp_path / "backups", "--with-images")
    found = {path.stat().st_ino for path in folder.rglob("*") if path.name != "manifest.json"}
    assert found | {folder.stat().st_ino} <= before_manifest


def test_what_is_there_is_never_overwritten_without_force_and_set_aside_with_it(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    storage = one.open()
    one.receive(storage, "1.1", 1)
    storage.engine.dispose()
    folder = _back_up(one, tmp_path / "backups")
    other = two.open()
    two.receive(other, "9.9", 1)
    other.engine.dispose()
    with pytest.raises(EdgeError, match="--force"):
        phoi(restore, folder, "-s", two.settings_file)
    with only_node(two.data), pytest.raises(EdgeError, match="stop it first"):
        phoi(restore, folder, "-s", two.settings_file, "--force")
    assert {row[0] for row in two.rows()["studies"]} == {"9.9"}
    phoi(restore, folder, "-s", two.settings_file, "--force")
    assert {row[0] for row in two.rows()["studies"]} == {"1.1"}
    if two.database_url:
        engine = sa.create_engine(two.database_url)
        aside = [s for s in sa.inspect(engine).get_schema_names() if "before-restore" in s]
        with engine.begin() as connection:
            kept = connection.scalar(sa.text(f'SELECT count(*) FROM "{aside[0]}".studies'))
        engine.dispose()
        assert kept == 1
        _back_up(two, tmp_path / "backups")  # without what was set aside
    else:
        assert list(two.data.glob("phoi.sqlite.before-restore-*"))


def test_a_restore_that_fails_leaves_the_database_as_it_was(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = nodes
    one.open().engine.dispose()
    folder = _back_up(one, tmp_path / "backups")
    other = two.open()
    two.receive(other, "9.9", 1)
    other.engine.dispose()
    with monkeypatch.context() as patch:
        if two.database_url:
            real = shutil.which("pg_restore")
            _program(
                tmp_path, patch, "pg_restore", f'[ "$1" = --file=/dev/null ] && exec {real} "$@"'
            )
        else:
            rename = Path.rename

            def fail(path: Path, target: Path) -> Path:
                if path.name.endswith(".new"):
                    raise EdgeError("the disk is gone")
                return rename(path, target)

            patch.setattr(Path, "rename", fail)
        with pytest.raises(EdgeError):
            phoi(restore, folder, "-s", two.settings_file, "--force")
    assert {row[0] for row in two.rows()["studies"]} == {"9.9"}
    phoi(restore, folder, "-s", two.settings_file, "--force")
    assert two.rows()["studies"] == []


def _program(folder: Path, patch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """One of PostgreSQL's programs that does something else, and fails."""
    (folder / "bin").mkdir()
    program = folder / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_postgresql_is_reached_as_the_url_says_and_the_password_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    _program(tmp_path, monkeypatch, "pg_dump", f'echo "$PGPASSWORD $@" > {told}')
    url = (
        "postgresql+psycopg://phoi:s%40crt@db.test:5433/phoi?sslmode=verify-full&sslrootcert=ca.pem"
    )
    with pytest.raises(EdgeError, match="pg_dump failed"):
        dump_database(url, tmp_path)
    password, database, *arguments = told.read_text().split()
    assert password == "s@crt"
    expected = "postgresql://phoi@db.test:5433/phoi?sslmode=verify-full&sslrootcert=ca.pem"
    assert database == f"--dbname={expected}"
    assert not any("crt" in argument for argument in arguments)


def test_a_damaged_backup_is_refused_by_name_and_old_ones_go(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, two = nodes
    one.open().engine.dispose()
    destination = tmp_path / "backups"
    node = _back_up(one, destination).name.rsplit("-", 1)[0]
    for name in (f"{node}-20200101T000000Z", f"{node}-20200102T000000Z"):
        (destination / name).mkdir()
        (destination / name / "manifest.json").write_text("{}")
    (destination / "phoi-something-else").mkdir()
    for crashed in (f".{node}-20200104T000000Z.partial", f"{node}-20200105T000000Z"):
        (destination / crashed / "data").mkdir(parents=True)
    two.open().engine.dispose()
    other = _back_up(two, destination)
    first, newest = _back_up(one, destination, "--keep", "2"), _back_up(one, destination)
    newest = _back_up(one, destination, "--keep", "2")
    assert other in backups(destination), "another node's"
    assert not first.exists()
    assert len(backups(destination)) == 3
    assert {path.name for path in destination.iterdir()} == {
        *(path.name for path in backups(destination)),
        "phoi-something-else",
    }
    manifest = json.loads((newest / "manifest.json").read_text())
    (dump,) = [f["path"] for f in manifest["files"] if f["path"].startswith("database.")]
    with (newest / dump).open("r+b") as file:
        file.seek(200)
        file.write(b"rubbish")
    with pytest.raises(EdgeError, match=f"{dump} is damaged"):
        phoi(restore, newest, "-s", two.settings_file)
    (newest / dump).unlink()
    with pytest.raises(EdgeError, match=f"{dump} is missing"):
        verify(newest)
    with pytest.raises(EdgeError, match="no complete backup"):
        phoi(restore, tmp_path, "-s", two.settings_file)
