"""One holder at a time, across processes; the kernel lets go when the holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phoi_models.files import make_folder

from phoi_edge_node.errors import EdgeError


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeError(busy) from None
        yield
