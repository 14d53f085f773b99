"""What happens to machines: disks fill, databases lock, clocks jump, the power goes."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from kill.campaign import Campaign, campaign
from kill.invariants import losses
from kill.job import Study, main_job
from kill.site import Deaths, Site
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.system import SystemClock

SEED = 20261123
DISK_MB = 64
DAYS_S = 3 * 86400.0
LONGER_THAN_A_WRITER_WAITS_S = 40.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with campaign(tmp_path_factory.mktemp("adversity")) as running:
        yield running


@contextmanager
def small_disk(folder: Path, access: str = "rw") -> Iterator[Path]:
    """A file system of its own that is soon full. Needs the right to mount one."""
    folder.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", f"{access},size={DISK_MB}m,mode=1777", "tmpfs", folder)
    try:
        yield folder
    finally:
        as_root("umount", "-l", folder)


def as_root(*command: object) -> None:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    words = [*sudo, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"needs root, or sudo without a password: {words}: {done.stderr}"


@contextmanager
def meanwhile(do: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do something in a thread until the context ends; what it raises is raised."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do(stop)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert raised == []


def all_the_way(site: Site, study: Study) -> list[str]:
    try:
        main_job(site, study)
    finally:
        site.end()
    return losses(site, study)


def fill(folder: Path) -> None:
    """Take every byte that is left."""
    with (folder / "filler").open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


def test_the_disk_is_full_again_and_again_during_the_whole_job(
    runs: Campaign, tmp_path: Path
) -> None:
    filled = 0
    with small_disk(tmp_path / "disk") as disk:
        site, study = runs.begin(Deaths(), data=disk / "data")
        site.may_end = True  # it cannot start on a full disk

        def fill_and_free(stop: threading.Event) -> None:
            nonlocal filled
            while not stop.wait(1.0):
                fill(disk)
                filled += 1
                stop.wait(1.0)
                (disk / "filler").unlink()

        with meanwhile(fill_and_free):
            lost = all_the_way(site, study)
    assert lost == []
    assert filled >= 3


def test_the_database_is_locked_for_longer_than_a_writer_waits(runs: Campaign) -> None:
    site, study = runs.begin(Deaths())
    locked = threading.Event()

    def lock(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            if site.rows("SELECT 1 FROM instances LIMIT 1"):
                break
        with closing(sqlite3.connect(site.database, isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(LONGER_THAN_A_WRITER_WAITS_S)

    with meanwhile(lock):
        lost = all_the_way(site, study)
    assert locked.is_set()
    assert lost == []


@pytest.mark.parametrize("first", [DAYS_S, -DAYS_S], ids=["forth and back", "back and forth"])
def test_the_clock_is_set_three_days_wrong_and_right_again(runs: Campaign, first: float) -> None:
    site, study = runs.begin(Deaths())

    def set_clock(stop: threading.Event) -> None:
        wrong_by = [first, 0.0, -first, 0.0]
        while not stop.wait(0.7):
            temporary = site.clock.with_suffix(".new")
            temporary.write_text(str(wrong_by[0]))
            temporary.replace(site.clock)
            wrong_by.append(wrong_by.pop(0))

    with meanwhile(set_clock):
        assert all_the_way(site, study) == []


def test_the_worker_is_away_when_the_study_is_complete(runs: Campaign) -> None:
    site, study = runs.begin(Deaths())
    site.worker_wanted = False
    tried_in_vain = "SELECT 1 FROM analyses WHERE state = 'queued' AND error != ''"

    def bring_it_back(stop: threading.Event) -> None:
        while not stop.wait(0.1) and not site.rows(tried_in_vain):
            pass
        site.worker_wanted = True

    with meanwhile(bring_it_back):
        assert all_the_way(site, study) == []


# --- the database alone ------------------------------------------------------------------------

WRITER = """
import sys
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.system import SystemClock

store = SqlStore(open_engine(sys.argv[1]), SystemClock())
for number in range(1, 100_000):
    store.put_fact(f"{number:06}", "x" * 50_000)
    print(number, flush=True)
"""


def facts(database: Path) -> list[int]:
    """The numbers of the facts that are there, by the engine of the edge; the file is sound."""
    engine = open_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        keys = connection.scalars(sa.select(tables.facts.c.key)).all()
    engine.dispose()
    return sorted(int(key) for key in keys if key.isdigit())


def test_no_commit_is_lost_by_a_kill_while_sqlite_writes_and_checkpoints(tmp_path: Path) -> None:
    database = tmp_path / "phoi.sqlite"
    rng = random.Random(SEED)
    told = 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite:///{database}"], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randint(100, 250)):  # a checkpoint comes every 77 or so
                told = max(told, int(writer.stdout.readline()))
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split())])
        there = facts(database)
        assert there == list(range(1, len(there) + 1))
        assert len(there) >= told


def test_a_torn_write_ahead_log_leaves_a_prefix_of_the_commits(tmp_path: Path) -> None:
    """Power loss in the middle of the log: its tail is missing, or is garbage."""
    database = tmp_path / "phoi.sqlite"
    engine = open_engine(f"sqlite:///{database}")
    store = SqlStore(engine, SystemClock())
    for number in range(1, 41):
        store.put_fact(f"{number:06}", "x" * 9_000)
    log = database.with_name("phoi.sqlite-wal").read_bytes()
    content = database.read_bytes()
    rng = random.Random(SEED)
    lengths = set()
    for number in range(25):
        torn = tmp_path / f"torn-{number}.sqlite"
        torn.write_bytes(content)
        whole = rng.randrange(len(log))
        garbage = rng.randbytes(rng.choice((0, 100, 5_000)))
        torn.with_name(f"{torn.name}-wal").write_bytes(log[:whole] + garbage)
        there = facts(torn)
        assert there == list(range(1, len(there) + 1))
        lengths.add(len(there))
    engine.dispose()
    assert len(lengths) > 5


def not_a_database(path: Path) -> None:
    path.write_bytes(b"These are notes, no database.\n" * 100)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.mkdir, "unable to open database file"), (not_a_database, "file is not a database")],
)
def test_a_database_that_cannot_be_used_is_said_in_one_line(
    tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    harm(tmp_path / "phoi.sqlite")
    with pytest.raises(EdgeError, match=f"^cannot use the database: {reason}$"):
        open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")


def test_a_data_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ro") as disk:
        settings = EdgeSettings(data=disk / "data")
        with pytest.raises(EdgeError, match=r"cannot use the data folder .*Read-only file system"):
            open_storage(settings, SystemClock())
