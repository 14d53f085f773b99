"""Received files survive, are never overwritten, and lie under no name that a peer chose."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from phoi_edge_node.dicom import instance_files
from phoi_edge_node.dicom.instance_files import InstanceFiles

META = b"\0" * 128 + b"DICM"


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    return InstanceFiles(tmp_path / "instances")


def everything(files: InstanceFiles) -> list[Path]:
    return [path for path in files.root.rglob("*") if path.is_file()]


def test_what_is_stored_lies_there_byte_for_byte(files: InstanceFiles) -> None:
    stored = files.store("1.2", "1.2.3", META, b"pixels")
    assert (files.root / stored.path).read_bytes() == META + b"pixels"
    assert stored.sha256 == hashlib.sha256(b"pixels").hexdigest()
    assert stored.size == len(META) + 6
    assert list(files.paths()) == [stored.path]


@pytest.mark.parametrize("uid", ["../../escape", "/etc/passwd", "1.2.840.113619"])
def test_a_path_holds_no_uid(files: InstanceFiles, uid: str) -> None:
    stored = files.store(uid, uid, META, b"pixels")
    assert uid not in stored.path
    assert (files.root / stored.path).resolve().is_relative_to(files.root.resolve())


def test_the_same_again_is_one_file(files: InstanceFiles) -> None:
    assert files.store("1.2", "1.2.3", META, b"a") == files.store("1.2", "1.2.3", META, b"a")
    assert len(everything(files)) == 1


def test_other_content_under_the_same_uid_overwrites_nothing(files: InstanceFiles) -> None:
    first = files.store("1.2", "1.2.3", META, b"first")
    second = files.store("1.2", "1.2.3", META, b"second")

    files.quarantine(second.path)

    assert list(files.paths()) == [first.path]
    assert (files.root / first.path).read_bytes().endswith(b"first")
    assert [path.read_bytes()[-6:] for path in (files.root / "quarantine").iterdir()] == [b"second"]


def test_what_lies_there_is_not_replaced_by_the_same_of_another_sender(
    files: InstanceFiles,
) -> None:
    stored = files.store("1.2", "1.2.3", META, b"pixels")
    files.store("1.2", "1.2.3", META + b"another sender or transfer syntax", b"pixels")
    assert (files.root / stored.path).read_bytes() == META + b"pixels"
    assert len(everything(files)) == 1


def test_what_is_set_aside_already_is_not_missed(files: InstanceFiles) -> None:
    stored = files.store("1.2", "1.2.3", META, b"other")
    for _ in range(2):
        files.quarantine(stored.path)
    assert files.quarantined() == 1


def test_the_folders_that_are_known_do_not_grow_for_ever(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_files, "_MOST_KNOWN", 4)
    for number in range(8):
        files.store(f"1.{number}", "1.2.3", META, b"x")
    assert len(files._durable) <= 4
    assert len(list(files.paths())) == 8


def test_a_study_has_one_folder(files: InstanceFiles) -> None:
    paths = {files.store("1.2", f"1.2.{k}", META, b"x").path for k in range(5)}
    paths.add(files.store("1.3", "1.3.1", META, b"x").path)
    assert len({Path(path).parent for path in paths}) == 2


@pytest.mark.parametrize("step", ["write", "fdatasync", "rename"])
def test_a_failing_disk_leaves_nothing_behind(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if step == "rename" else os, step, fail)
    with pytest.raises(OSError, match="No space"):
        files.store("1.2", "1.2.3", META, b"pixels")
    assert everything(files) == []


def test_the_file_and_its_name_are_synced_before_success(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().parts[-2])
        fsync(descriptor)  # syncs all that fdatasync does

    def record_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "fdatasync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    stored = files.store("1.2", "1.2.3", META, b"pixels")

    folder = Path(stored.path).parent
    assert events[0] == "incoming"  # the content
    assert events[-2:] == ["rename", folder.parent.name]  # then the name, then the name's folder


def test_a_crash_leaves_only_what_is_swept(files: InstanceFiles) -> None:
    kept = files.store("1.2", "1.2.3", META, b"whole")
    (files.root / "incoming" / "tmpabc").write_bytes(b"half")

    again = InstanceFiles(files.root)

    assert again.sweep() == 1
    assert list(again.paths()) == [kept.path]


def test_oldest_first(files: InstanceFiles) -> None:
    paths = [files.store("1.2", f"1.2.{k}", META, b"x").path for k in range(4)]
    for age, path in enumerate(paths):
        os.utime(files.root / path, (1000 - age, 1000 - age))
    assert list(files.paths()) == paths[::-1]


def test_an_instance_may_come_in_pieces(files: InstanceFiles) -> None:
    with files.begin(META) as file:
        for piece in (b"pix", b"", memoryview(b"els")):
            file.write(piece)
        assert bytes(file.data_set()) == b"pixels"
        assert file.size == 6
        stored = file.keep("1.2", "1.2.3")
    assert stored == files.store("1.2", "1.2.3", META, b"pixels")
    assert len(everything(files)) == 1


def test_what_is_not_kept_is_removed(files: InstanceFiles) -> None:
    with files.begin(META) as file:
        assert bytes(file.data_set()) == b""
        file.write(b"half")
        assert len(everything(files)) == 1
    file.discard()
    assert everything(files) == []


def test_a_disk_that_takes_little_at_once_gets_all(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    stored = files.store("1.2", "1.2.3", META, b"pixels")
    assert (files.root / stored.path).read_bytes() == META + b"pixels"


def test_a_study_whose_folder_was_removed_can_come_again(files: InstanceFiles) -> None:
    stored = files.store("1.2", "1.2.3", META, b"pixels")
    shutil.rmtree((files.root / stored.path).parents[1])
    assert files.store("1.2", "1.2.3", META, b"pixels") == stored
    assert len(everything(files)) == 1


def test_many_threads_store_into_one_study(files: InstanceFiles) -> None:
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda n: files.store("1.2", f"1.2.{n}", META, b"x"), range(40)))
    assert sorted(file.path for file in stored) == sorted(files.paths())
