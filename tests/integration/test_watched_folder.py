"""CDs that people copy into a folder: written by DCMTK, taken once, whatever comes between."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.dicom.watched_folder import NOT_TAKEN, WatchedFolder
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Intake, ReceivedInstance
from phoi_edge_node.settings import DicomSettings, WatchedFolderSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.testing import FakeClock
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom import dcmread
from pydicom.uid import UID, MRImageStorage
from support.dcmtk import run
from support.dicom_phantom import SeriesOptions, write_series

SETTLED_S = 5.0
SLICES = 4


@dataclass
class Index:
    """The real index, and what it was told of associations."""

    store: SqlStore
    associations: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    failing: Exception | None = None

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        if self.failing:
            raise self.failing
        self.associations.add(association)
        return self.store.add_instance(instance)

    def association_released(self, association: str) -> None:
        self.released.append(association)


@dataclass
class Site:
    folder: Path
    clock: FakeClock
    index: Index
    files: InstanceFiles
    watch: Callable[..., WatchedFolder]
    watched: WatchedFolder

    def settle(self) -> None:
        """Let it look, wait, and look again."""
        self.watched.look()
        self.clock.advance(SETTLED_S)
        self.watched.look()

    def left(self) -> list[str]:
        """Everything but what was set aside."""
        paths = (p.relative_to(self.folder) for p in self.folder.rglob("*"))
        return sorted(str(p) for p in paths if p.parts[0] != NOT_TAKEN)

    def set_aside(self) -> dict[str, str]:
        """The reason of each file that was not taken."""
        root = self.folder / NOT_TAKEN
        found = {}
        for path in sorted(p for p in root.rglob("*") if p.is_file() or p.is_symlink()):
            if not path.name.endswith(".reason.txt"):
                reason = path.with_name(f"{path.name}.reason.txt").read_text()
                found[str(path.relative_to(root))] = reason.strip()
        return found

    def received(self) -> int:
        return sum(len(self.index.store.instances(s)) for s in self.index.store.receiving_studies())

    def on_disk(self) -> int:
        return len(list((self.files.root / "studies").rglob("*.dcm")))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    clock = FakeClock()
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    index = Index(SqlStore(engine, clock))
    files = InstanceFiles(tmp_path / "instances")
    folder = tmp_path / "cds"

    def watch(
        minimum_free_disk_mb: int = 0, stopping: Callable[[], bool] = lambda: False
    ) -> WatchedFolder:
        dicom = DicomSettings(minimum_free_disk_mb=minimum_free_disk_mb, largest_instance_mb=1)
        taker = InstanceTaker(dicom, files, index, clock)
        settings = WatchedFolderSettings(folder=folder, settled_s=SETTLED_S)
        return WatchedFolder(settings, dicom, taker, clock, stopping)

    yield Site(folder, clock, index, files, watch, watch())
    engine.dispose()


@pytest.fixture(scope="module")
def cd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CD with a DICOMDIR by DCMTK, CT in subfolders, an MR image, and a viewer for Windows."""
    root = tmp_path_factory.mktemp("cd")
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    hu = np.zeros((SLICES, 16, 16), np.int16)
    volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (0, 0, 0), axes))
    for n, path in enumerate(write_series(root / "made", volume, SeriesOptions())):
        image = root / "DICOM" / f"ST{n % 2}" / f"IM{n}"
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, image)
    shutil.rmtree(root / "made")
    done = run("dcmmkdir", "+D", root / "DICOMDIR", "+id", root, "+r", "DICOM")
    assert done.returncode == 0, done.stderr
    other = dcmread(root / "DICOM" / "ST0" / "IM0")
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = MRImageStorage
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    other.save_as(root / "DICOM" / "MR1")
    (root / "AUTORUN.INF").write_text("[autorun]")
    return root


def test_a_whole_cd_is_taken_as_one_association(site: Site, cd: Path) -> None:
    shutil.copytree(cd, site.folder / "Nguyen Van A")
    site.settle()
    assert site.received() == site.on_disk() == SLICES
    assert site.index.released == list(site.index.associations)
    assert len(site.index.released) == 1
    assert site.left() == []
    assert site.set_aside() == {
        "Nguyen Van A/AUTORUN.INF": "it is not a DICOM file",
        "Nguyen Van A/DICOM/MR1": "it is not a CT image",
        "Nguyen Van A/DICOMDIR": "it is an index; its images are taken one by one",
    }


def test_loose_files_are_taken_too_and_the_same_cd_twice_is_one(site: Site, cd: Path) -> None:
    for _ in range(2):
        for image in sorted((cd / "DICOM").rglob("IM*")):
            shutil.copy(image, site.folder)
        site.settle()
        assert site.received() == SLICES
        assert site.left() == []
    assert site.set_aside() == {}


def test_nothing_is_taken_while_the_copy_still_goes_on(site: Site, cd: Path) -> None:
    images = sorted((cd / "DICOM").rglob("IM*"))
    target = site.folder / "CD"
    target.mkdir()
    for image in images:
        content = image.read_bytes()
        for part in (content[:700], content):
            (target / image.name).write_bytes(part)
            site.watched.look()
            site.clock.advance(SETTLED_S - 1)
            site.watched.look()
            assert site.received() == 0
    site.clock.advance(1)
    site.watched.look()
    assert site.received() == SLICES


def test_links_are_set_aside_and_never_followed(site: Site, cd: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(cd / "DICOM", secret)
    (site.folder / "CD").mkdir()
    (site.folder / "CD" / "folder").symlink_to(secret)
    (site.folder / "CD" / "file").symlink_to(secret / "ST0" / "IM0")
    (site.folder / "top").symlink_to(secret)
    os.mkfifo(site.folder / "CD" / "pipe")
    site.settle()
    assert site.received() == 0
    assert len(list(secret.rglob("IM*"))) == SLICES
    assert set(site.set_aside()) >= {"CD/folder", "CD/file", "top"}
    assert set(site.set_aside().values()) == {"it is not a file; links are not followed"}
    assert site.left() == []


def test_other_content_under_a_known_uid_is_set_aside(site: Site, cd: Path) -> None:
    image = next((cd / "DICOM").rglob("IM0"))
    shutil.copy(image, site.folder / "first")
    site.settle()
    changed = dcmread(image)
    changed.KVP = "99"
    for _ in range(2):
        changed.save_as(site.folder / "second")
        site.settle()
    assert set(site.set_aside()) == {"second", "second.2"}
    assert site.received() == 1


class _Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("moment", ["before it is indexed", "before it is removed"])
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(
    site: Site, cd: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Every process takes one file and dies in the middle of the second."""
    shutil.copytree(cd, site.folder / "CD")
    calls = 0

    def die_at_the_second_call() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise _Killed

    received, unlink = Index.instance_received, Path.unlink

    def dying_received(index: Index, instance: ReceivedInstance, association: str) -> Intake:
        die_at_the_second_call()
        return received(index, instance, association)

    def dying_unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.is_relative_to(site.folder):
            die_at_the_second_call()
        unlink(path, missing_ok=missing_ok)

    if moment == "before it is indexed":
        monkeypatch.setattr(Index, "instance_received", dying_received)
    else:
        monkeypatch.setattr(Path, "unlink", dying_unlink)
    deaths = 0
    for _ in range(SLICES + 1):
        calls = 0
        site.files.sweep()
        site.watched = site.watch()
        try:
            site.settle()
        except _Killed:
            deaths += 1
    assert deaths >= 2
    assert site.left() == []
    assert site.received() == site.on_disk() == SLICES
    assert len(site.set_aside()) == 3


def test_while_the_disk_is_full_or_the_index_broken_everything_stays(site: Site, cd: Path) -> None:
    shutil.copytree(cd / "DICOM" / "ST0", site.folder / "CD")
    before = site.left()
    site.watched = site.watch(minimum_free_disk_mb=10**9)
    site.settle()
    assert site.left() == before
    site.watched = site.watch()
    site.index.failing = OSError("no patient here")
    site.settle()
    assert site.left() == before
    site.index.failing = None
    site.settle()
    assert site.left() == []
    assert site.set_aside() == {}
    assert site.received() == len(before) - 1


def test_one_file_that_cannot_be_read_or_removed_stops_no_other(
    site: Site, cd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CD that was copied with its read-only folders, by another user than Phoi's."""
    unlink, rename, open_ = Path.unlink, Path.rename, os.open

    def refuse(path: Path | str) -> None:
        if Path(path).is_relative_to(site.folder / "CD" / "ST0"):
            raise PermissionError(errno.EACCES, "Permission denied")

    def unlink_unless(path: Path, *, missing_ok: bool = False) -> None:
        refuse(path)
        unlink(path, missing_ok=missing_ok)

    def rename_unless(path: Path, target: Path) -> Path:
        refuse(path)
        return rename(path, target)

    def open_unless(path: str, *rest: Any, **more: Any) -> int:
        if Path(path).name == "AAA":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(path, *rest, **more)

    shutil.copytree(cd / "DICOM", site.folder / "CD")
    (site.folder / "CD" / "AAA").write_text("of another user")
    (site.folder / "CD" / "ST0" / "viewer").write_text("nothing to take")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_unless)
        patch.setattr(Path, "rename", rename_unless)
        patch.setattr(os, "open", open_unless)
        site.settle()
        assert site.received() == SLICES
        again = set(site.left())
        (site.folder / "CD" / "AAA").unlink()
        site.settle()
        assert len(site.index.released) == 1  # what is left was dealt with
    assert "CD/AAA" in again
    assert {"CD/ST0/IM0", "CD/ST0/viewer"} <= set(site.left())
    assert not list((site.folder / NOT_TAKEN).rglob("viewer*"))


def test_a_name_of_any_length_is_set_aside(site: Site, cd: Path) -> None:
    shutil.copytree(cd / "DICOM", site.folder / "CD")
    for letter in "xy":
        (site.folder / "CD" / ("\u0110" * 120 + letter * 10)).write_text("250 bytes")
    site.settle()
    assert site.received() == SLICES
    assert site.left() == []
    assert len(site.set_aside()) == 3


def test_it_stops_between_two_files_and_goes_on_after_the_next_start(site: Site, cd: Path) -> None:
    shutil.copytree(cd / "DICOM", site.folder / "CD")
    site.watched = site.watch(stopping=lambda: site.received() >= 2)
    site.settle()
    assert site.received() == 2
    site.watched = site.watch()
    site.settle()
    assert site.received() == SLICES


def test_a_folder_that_cannot_be_used_is_said(site: Site) -> None:
    (site.folder / "file").write_text("")
    settings = WatchedFolderSettings(folder=site.folder / "file")
    taker = InstanceTaker(DicomSettings(), site.files, site.index, site.clock)
    with pytest.raises(EdgeError, match=r"watched_folder\.folder"):
        WatchedFolder(settings, DicomSettings(), taker, site.clock)
