"""Voxels for workers on this host: files in a folder that both ends are configured with."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from phoi_models.volume import Volume

from phoi_edge_node.errors import InferenceUnavailable

_SUFFIX = ".hu"


class VolumeFolder:
    """Lends volumes out as files of little-endian int16 HU, C order (z, y, x).

    Every file is locked by the process that lends it for as long as it does, so what a crash left
    behind can be told from what is in use, also by another edge node on the same folder.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        """Make the folder, and remove what crashed edge nodes left in it.

        Args:
            root: the folder; its own, nothing else lies in it.
            budget_bytes: of all volumes lent out at once.
        """
        self._root = root
        self._budget = budget_bytes
        self._used = 0
        self._lock = threading.Lock()
        root.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path in root.glob(f"*{_SUFFIX}"):
            _remove_unless_locked(path)

    @contextmanager
    def lend(self, volume: Volume) -> Iterator[str]:
        """The name of a file with the volume's voxels, for the duration of the context.

        Raises:
            InferenceUnavailable: the budget or the disk is full.
        """
        size = volume.hu.nbytes
        with self._within_budget(size):
            name = f"{secrets.token_hex(16)}{_SUFFIX}"
            path = self._root / name
            try:
                descriptor = _write(path, volume, size)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise InferenceUnavailable(
                    f"voxels cannot be written to {self._root}: {error.strerror}"
                ) from None
            try:
                yield name
            finally:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    @contextmanager
    def _within_budget(self, size: int) -> Iterator[None]:
        with self._lock:
            if self._used + size > self._budget:
                raise InferenceUnavailable("too many volumes are being analysed at once")
            self._used += size
        try:
            yield
        finally:
            with self._lock:
                self._used -= size


def _write(path: Path, volume: Volume, size: int) -> int:
    """Write a locked file that workers see complete or not at all; returns its open descriptor."""
    partial = path.with_name(f".{path.name}")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A full disk is noticed here, and not while a worker reads what was mapped.
        os.posix_fallocate(descriptor, 0, size)
        voxels = np.ascontiguousarray(volume.hu, dtype="<i2")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(voxels.data)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _remove_unless_locked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
