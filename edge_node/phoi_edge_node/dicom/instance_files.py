"""Received instances on disk: durable before they are named, never overwritten.

A file's path is made of hashes, since a UID comes from a peer and is not to be trusted as a path.
It holds a hash of the content too: other bytes under the same SOP Instance UID lie beside the
first ones until the receiver has judged them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phoi_models.files import sync_folder


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


class InstanceFiles:
    """The folder of received instances. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        """Open the store; its folders are made where they are absent."""
        self.root = root
        self._incoming = root / "incoming"
        self._quarantine = root / "quarantine"
        for folder in (self._incoming, self._quarantine, root / "studies"):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(root)
        self._durable: set[Path] = set()

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
        sha256 = hashlib.sha256(data_set).hexdigest()
        study, instance = _name(study_instance_uid), _name(sop_instance_uid)
        path = f"studies/{study[:2]}/{study}/{instance}-{sha256[:16]}.dcm"
        final = self.root / path
        descriptor, temporary = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(file_meta)
                file.write(data_set)
                file.flush()
                os.fsync(file.fileno())
            self._make_folder(final.parent)
            Path(temporary).rename(final)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(final.parent)
        return StoredFile(path, sha256, len(file_meta) + len(data_set))

    def quarantine(self, path: str) -> None:
        """Set a stored file aside, so that nothing reads it and nothing is lost."""
        source = self.root / path
        source.rename(self._quarantine / source.name)
        sync_folder(self._quarantine)

    def sweep(self) -> int:
        """Remove what a crash left half-written; the number of files. Call before receiving."""
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)

    def paths(self) -> Iterator[str]:
        """Every stored file, relative to the root, oldest first: for building the index anew."""
        files = (self.root / "studies").glob("*/*/*.dcm")
        for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name)):
            yield str(file.relative_to(self.root))

    def free_bytes(self) -> int:
        """Space left on the disk."""
        return shutil.disk_usage(self.root).free

    def _make_folder(self, folder: Path) -> None:
        """Make ``folder`` and its parent, and make their names durable."""
        for needed in (folder.parent, folder):
            # Not is_dir(): another thread may have made it and not yet made it durable.
            if needed not in self._durable:
                needed.mkdir(exist_ok=True)
                sync_folder(needed.parent)
                self._durable.add(needed)


def _name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
