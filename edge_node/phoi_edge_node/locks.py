"""One holder at a time, across processes; the kernel lets go when the holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from phoi_models.files import make_folder

from phoi_edge_node.errors import EdgeError

_PATIENCE_S = 1.0
_LOOK_S = 0.02


@contextmanager
def only_holder(file: Path, busy: str, unusable: str) -> Iterator[None]:
    """Hold a lock file; its folder is made where it is absent.

    Args:
        busy: what to say where another process holds it.
        unusable: what to say where the folder cannot be used; the reason is added.

    Raises:
        EdgeError: with one of the two.
    """
    try:
        make_folder(file.parent)
        lock = file.open("w")
    except OSError as error:
        raise EdgeError(f"{unusable}: {error.strerror}") from None
    with lock:
        if not _held_soon(lock):
            raise EdgeError(busy)
        yield


def _held_soon(lock: IO[str]) -> bool:
    """Whoever asks whether it is held holds it for a moment himself."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        else:
            return True
