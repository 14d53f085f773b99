"""The power cut of the kill tests: it takes what was not synced, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from kill.power import Disk


class Writer:
    """Does what a program does, while a disk follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        calls: dict[str, Callable[..., None]] = {"rename": os.rename, "mkdir": os.mkdir}
        self.disk = Disk(folder.with_name("lost"), calls)

    def write(self, name: str, *, sync: bool) -> None:
        with (self.folder / name).open("wb") as file:
            file.write(b"content")
            file.flush()
            if sync:
                self._sync(file.fileno())

    def rename(self, name: str, to: str) -> None:
        os.rename(self.folder / name, self.folder / to)  # noqa: PTH104 - the call that is followed
        self.disk.did("rename", (self.folder / name, str(self.folder / to)))

    def link(self, name: str, to: str) -> None:
        os.link(self.folder / name, self.folder / to)
        self.disk.did("link", (self.folder / name, self.folder / to))

    def make(self, name: str) -> None:
        (self.folder / name).mkdir()
        self.disk.did("mkdir", (self.folder / name, 0o777))

    def sync_folder(self, name: str = ".") -> None:
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        self._sync(descriptor)
        os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        self.disk.did("fsync", (descriptor,))


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    (tmp_path / "data").mkdir()
    return Writer(tmp_path / "data")


def left(writer: Writer) -> dict[str, bytes]:
    writer.disk.cut_power()
    files = (path for path in writer.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(writer.folder)): path.read_bytes() for path in files}


def test_what_was_synced_and_named_durably_stays(writer: Writer) -> None:
    writer.write("temporary", sync=True)
    writer.rename("temporary", "final")
    writer.sync_folder()
    assert left(writer) == {"final": b"content"}


def test_a_name_that_the_folder_was_not_synced_for_goes(writer: Writer) -> None:
    writer.write("temporary", sync=True)
    writer.sync_folder()
    writer.rename("temporary", "final")
    assert left(writer) == {"temporary": b"content"}


def test_content_that_was_not_synced_goes(writer: Writer) -> None:
    writer.write("temporary", sync=False)
    writer.rename("temporary", "final")
    writer.sync_folder()
    assert left(writer) == {"final": b""}


def test_a_second_name_that_was_not_made_durable_goes(writer: Writer) -> None:
    writer.write("temporary", sync=True)
    writer.link("temporary", "final")
    assert left(writer) == {"temporary": b"content"}


@pytest.mark.parametrize(("synced", "kept"), [(".", {"studies/one": b"content"}), ("studies", {})])
def test_a_folder_goes_unless_the_one_above_was_synced(
    writer: Writer, synced: str, kept: dict[str, bytes]
) -> None:
    writer.make("studies")
    writer.write("studies/one", sync=True)
    writer.sync_folder(synced)
    assert left(writer) == kept
