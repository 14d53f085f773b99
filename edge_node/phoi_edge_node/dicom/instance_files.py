"""Received instances on disk: durable before they are named, never overwritten.

A file's path is made of hashes, since a UID comes from a peer and is not to be trusted as a path.
It holds a hash of the content too: other bytes under the same SOP Instance UID lie beside the
first ones until the receiver has judged them.

``incoming/`` holds what is being written, ``studies/`` what is whole, ``quarantine/`` what no one
may read.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from phoi_models.files import make_folder, sync_folder

from phoi_edge_node.dicom.coming_and_going import ComingAndGoing
from phoi_edge_node.group_commit import GroupCommit

_MOST_KNOWN = 10_000  # folders that are known to be durable; each takes some hundred bytes


@dataclass(frozen=True)
class StoredFile:
    """A file that survives a crash.

    Attributes:
        path: relative to the root of the store.
        sha256: hex, of the encoded data set, without the file meta information.
        size: bytes of the whole file.
    """

    path: str
    sha256: str
    size: int


class IncomingFile:
    """One instance on its way to disk, under a temporary name. Of one thread.

    A context manager: what was not kept when it ends is removed.
    """

    def __init__(self, files: InstanceFiles, file_meta: bytes) -> None:
        """Begin with preamble, prefix and file meta information.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        self._files = files
        self._descriptor, self._temporary = files.new_file()
        self._closed = self._kept = False
        self._digest = hashlib.sha256()
        self._offset = len(file_meta)
        self.size = 0
        """Bytes of the data set so far."""
        try:
            self._write(memoryview(file_meta))
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, fragment: bytes | memoryview) -> None:
        """The next bytes of the data set, as received.

        Raises:
            OSError: they could not be written.
        """
        view = memoryview(fragment)
        self._write(view)
        self._digest.update(view)
        self.size += len(view)

    def data_set(self) -> memoryview:
        """All of it so far; read from the disk's cache, not held in memory."""
        if not self.size:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))[self._offset :]

    def keep(self, study_instance_uid: str, sop_instance_uid: str) -> StoredFile:
        """Give it its name; once this returns it survives a crash of the machine.

        Raises:
            OSError: it could not be made durable. It may be discarded.
        """
        sha256 = self._digest.hexdigest()
        folder, instance = study_folder(study_instance_uid), _name(sop_instance_uid)
        path = f"{folder}/{instance}-{sha256[:16]}.dcm"
        self._files.sync_file(self._descriptor)
        self._close()
        self._files.give_name(self._temporary, path)
        self._kept = True
        return StoredFile(path, sha256, self._offset + self.size)

    def discard(self) -> None:
        """Remove it, unless it was kept. Idempotent."""
        self._close()
        if not self._kept:
            Path(self._temporary).unlink(missing_ok=True)

    def _write(self, view: memoryview) -> None:
        while view:  # a nearly full disk takes less than it is given
            view = view[os.write(self._descriptor, view) :]

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)


class InstanceFiles:
    """The folder of received instances. Safe to use from several threads.

    Attributes:
        studies: who brings images of a study, from their name to their index, and who takes some
            away.
    """

    def __init__(self, root: Path) -> None:
        """Open the store; its folders are made where they are absent."""
        self.root = root
        self.incoming = root / "incoming"
        self._quarantine = root / "quarantine"
        for folder in (self.incoming, self._quarantine, root / "studies"):
            make_folder(folder)
        self.studies = ComingAndGoing()
        # Another process may write here too, such as an import.
        self._new_name = f"{self.incoming}/{secrets.token_hex(8)}-"
        self._numbers = itertools.count()
        self._naming = threading.Lock()
        self._durable: set[Path] = set()
        self._folders = GroupCommit(self.sync_folders, of_all=(OSError,))

    def new_file(self) -> tuple[int, str]:
        """An empty file in ``incoming/`` that only this user reads: descriptor and path.

        Raises:
            OSError: it could not be made.
        """
        path = f"{self._new_name}{next(self._numbers)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path, flags, 0o600), path

    def begin(self, file_meta: bytes) -> IncomingFile:
        """Begin to write one instance.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        return IncomingFile(self, file_meta)

    def store(
        self, study_instance_uid: str, sop_instance_uid: str, file_meta: bytes, data_set: bytes
    ) -> StoredFile:
        """Write one instance; once this returns it survives a crash of the machine.

        Args:
            file_meta: preamble, prefix and file meta information.
            data_set: as received, never decoded.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        with self.begin(file_meta) as file:
            file.write(data_set)
            return file.keep(study_instance_uid, sop_instance_uid)

    def sync_file(self, descriptor: int) -> None:
        """Make the content of an open file durable."""
        os.fdatasync(descriptor)

    def sync_folders(self, folders: Sequence[Path]) -> Sequence[None]:
        """Make the names in these folders durable."""
        for folder in set(folders):
            sync_folder(folder)
        return [None] * len(folders)

    def give_name(self, temporary: str, path: str) -> None:
        """Move a durable file to ``path``, relative to the root, and make that name durable.

        What lies there already holds the same data set, and stays: the index speaks of that file,
        whose meta information may name another sender, or another transfer syntax.
        """
        final = self.root / path
        self._make_folder(final.parent)
        try:
            self._move(Path(temporary), final)
        except FileNotFoundError:  # the study's images were removed meanwhile, and their folder
            self._durable -= {final.parent, final.parent.parent}
            self._make_folder(final.parent)
            self._move(Path(temporary), final)
        # Associations often bring the same study: what several threads wait for is synced once.
        self._folders.add(final.parent)

    def quarantine(self, path: str) -> None:
        """Set a stored file aside, so that nothing reads it and nothing is lost."""
        source = self.root / path
        # Where it is gone, another association brought the same and it was set aside with that.
        with suppress(FileNotFoundError):
            source.rename(self._quarantine / source.name)
        sync_folder(self._quarantine)

    def quarantined(self) -> int:
        """Number of files that were set aside."""
        return sum(1 for _ in self._quarantine.iterdir())

    def drop_quarantined(self, before: datetime) -> int:
        """Remove what was set aside before this moment; the number of files."""
        old = [
            file for file in self._quarantine.iterdir() if file.stat().st_ctime < before.timestamp()
        ]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)

    def sweep(self) -> int:
        """Remove what a crash left half-written; the number of files. Call before receiving."""
        leftovers = list(self.incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)

    def paths(self) -> Iterator[str]:
        """Every stored file, relative to the root, oldest first: for building the index anew."""
        files = (self.root / "studies").glob("*/*/*.dcm")
        for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name)):
            yield str(file.relative_to(self.root))

    def folders(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The folder of each study, with the paths of its files."""
        for study in (self.root / "studies").glob("*/*"):
            folder = str(study.relative_to(self.root))
            yield folder, [f"{folder}/{file.name}" for file in study.iterdir()]

    def in_order_of_arrival(self, paths: Iterable[str]) -> Sequence[str]:
        """Paths of stored files, oldest file first."""
        return sorted(paths, key=lambda path: ((self.root / path).stat().st_mtime_ns, path))

    def free_bytes(self) -> int:
        """Space left on the disk."""
        return shutil.disk_usage(self.root).free

    def _move(self, temporary: Path, final: Path) -> None:
        with self._naming:
            if final.exists():
                temporary.unlink()
            else:
                temporary.rename(final)

    def _make_folder(self, folder: Path) -> None:
        """Make ``folder`` and its parent, and make their names durable."""
        for needed in (folder.parent, folder):
            # Not is_dir(): another thread may have made it and not yet made it durable.
            if needed not in self._durable:
                needed.mkdir(exist_ok=True)
                self._folders.add(needed.parent)
                if len(self._durable) >= _MOST_KNOWN:
                    self._durable.clear()
                self._durable.add(needed)


def study_folder(study_instance_uid: str) -> str:
    """Where the images of a study lie, relative to the root."""
    study = _name(study_instance_uid)
    return f"studies/{study[:2]}/{study}"


def _name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
