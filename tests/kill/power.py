"""What a power cut leaves of the files that a process wrote: only what was synced to the disk.

The kernel keeps what a killed process wrote, so SIGKILL alone cannot tell whether anything was
synced. This keeps account of what was not, and takes it away: names that their folder was not
synced for, and the content of files that were not synced. It is the worst that POSIX allows; a
kernel may do better. SQLite's own files are not touched: it syncs them itself, below Python.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Disk:
    """Follows the calls of ``os`` by which files become durable.

    Args:
        lost: folder, not there yet, that gets the names that a power cut takes away.
        calls: the calls themselves, by name, as they are before anything wraps them.
    """

    def __init__(self, lost: Path, calls: Mapping[str, Callable[..., Any]]) -> None:
        self._lost = lost
        self._calls = calls
        self._lock = threading.Lock()
        self._synced: set[tuple[int, int]] = set()
        self._renamed: dict[Path, Path] = {}
        self._given_name: list[Path] = []
        self._linked: dict[Path, None] = {}
        self._made: dict[Path, None] = {}

    def did(self, call: str, arguments: tuple[Any, ...]) -> None:
        """A call has returned."""
        with self._lock:
            if call in {"fsync", "fdatasync"}:
                self._sync(arguments[0])
            elif call in {"rename", "replace"}:
                source, target = (Path(os.fsdecode(path)) for path in arguments[:2])
                self._renamed[target] = source
                self._given_name.append(target)
            elif call == "link":
                self._linked[Path(os.fsdecode(arguments[1]))] = None
            elif call == "mkdir":
                self._made[Path(os.fsdecode(arguments[0]))] = None

    def cut_power(self) -> None:
        """Take away what is not durable. The process must end right after."""
        with self._lock:
            self._calls["mkdir"](self._lost)
            for target in self._given_name:
                if target.is_file():
                    self._empty_unless_synced(target)
            for target, source in reversed(self._renamed.items()):
                if target.exists():
                    self._calls["rename"](target, source)
            for number, name in enumerate([*self._linked, *reversed(self._made)]):
                if name.exists():
                    self._calls["rename"](name, self._lost / str(number))

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._synced.add((status.st_dev, status.st_ino))
        if stat.S_ISDIR(status.st_mode):
            folder = Path(f"/proc/self/fd/{descriptor}").readlink()
            self._renamed = {t: s for t, s in self._renamed.items() if t.parent != folder}
            self._linked = {name: None for name in self._linked if name.parent != folder}
            self._made = {name: None for name in self._made if name.parent != folder}

    def _empty_unless_synced(self, path: Path) -> None:
        status = path.stat()
        if (status.st_dev, status.st_ino) not in self._synced:
            os.truncate(path, 0)
