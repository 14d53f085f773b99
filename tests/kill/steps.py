"""The durable steps of a process, found while it runs, and its death at one of them.

A step is anything after which the world is different for good: a file synced, named or removed, a
transaction committed, bytes handed to a peer. ``watch`` wraps the calls by which any code in this
process takes such steps, so that code written later is watched too. It must run before anything of
Phoi is imported.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy.engine.default import DefaultDialect

from kill.power import Disk

_KILLED = "killed "
_FILE_STEPS = (
    *("fsync", "fdatasync", "sync", "rename", "replace", "link", "symlink"),
    *("unlink", "remove", "mkdir", "rmdir"),
)
_SEND_STEPS = ("send", "sendall", "sendmsg")
# By these the others take their steps: a step is named after who asked for it.
_HELPERS = frozenset({"phoi_edge_node.sql.engine", "phoi_models.files"})


class When(StrEnum):
    """On which side of a step."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class KillPoint:
    """Where a process kills itself.

    Attributes:
        step: name of the step.
        occurrence: 1 for the first time that the process comes to it.
        power: the power is cut as well: what was not synced to the disk is gone.
    """

    step: str
    when: When
    occurrence: int = 1
    power: bool = False

    @property
    def place(self) -> str:
        """The side of the step, whichever time."""
        return f"{self.when} {self.step}"

    def to_json(self) -> list[object]:
        """For a line of JSON."""
        return [self.step, self.when, self.occurrence, self.power]

    @classmethod
    def from_json(cls, value: list[Any]) -> KillPoint:
        """The inverse."""
        step, when, occurrence, power = value
        return cls(step, When(when), occurrence, power)


def death_in(journal: Path) -> KillPoint | None:
    """Where the process of this journal killed itself; None if it did not."""
    lines = journal.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[-1].startswith(_KILLED):
        return None
    return KillPoint.from_json(json.loads(lines[-1].removeprefix(_KILLED)))


def steps_in(journal: Path) -> list[str]:
    """The steps of the process of this journal, in order."""
    lines = journal.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(_KILLED)]


class _Watch:
    """Counts the steps of this process, journals them, and kills it at the chosen one."""

    def __init__(self, journal: Path, kills: Collection[KillPoint]) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kills = {(kill.step, kill.when, kill.occurrence): kill for kill in kills}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._disk = Disk(journal.with_suffix(".lost"), _CALLS)

    def around(
        self, name: str, call: str, arguments: tuple[Any, ...], do: Callable[[], Any]
    ) -> Any:
        """Take a step."""
        with self._lock:
            self._counts[name] += 1
            occurrence = self._counts[name]
            self._die_if_told(name, When.BEFORE, occurrence)
        done = do()
        with self._lock:
            self._disk.did(call, arguments)
            self._note(name)
            self._die_if_told(name, When.AFTER, occurrence)
        return done

    def _die_if_told(self, name: str, when: When, occurrence: int) -> None:
        # Under the lock: no other thread takes a step while the power goes.
        kill = self._kills.get((name, when, occurrence))
        if kill is not None:
            self._note(f"{_KILLED}{json.dumps(kill.to_json())}")
            if kill.power:
                self._disk.cut_power()
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, line: str) -> None:
        os.write(self._journal, f"{line}\n".encode())


_CALLS: dict[str, Callable[..., Any]] = {}  # as they were before they were wrapped
_watch: _Watch | None = None


def watch(journal: Path, kills: Collection[KillPoint]) -> None:
    """From now on every step of this process is journalled; the first of ``kills`` is its end."""
    global _watch
    _watch = _Watch(journal, kills)


def wrap_all() -> None:
    """Wrap every call by which a step is taken; nothing happens before ``watch``."""
    for name in _FILE_STEPS:
        _CALLS[name] = getattr(os, name)
        setattr(os, name, _wrapped(name, _CALLS[name]))
    for name in _SEND_STEPS:
        setattr(socket.socket, name, _wrapped("send", getattr(socket.socket, name)))
    commit: Callable[..., None] = DefaultDialect.do_commit

    def do_commit(self: DefaultDialect, connection: Any) -> None:
        if connection.in_transaction and _changed(connection):
            _step("commit", (), lambda: commit(self, connection))
        else:
            commit(self, connection)

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]


def _wrapped(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def step(*arguments: Any, **named: Any) -> Any:
        return _step(kind, arguments, lambda: call(*arguments, **named))

    return step


def _step(kind: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
    if _watch is None:
        return do()
    return _watch.around(f"{kind} {_site(sys._getframe(2))}", kind, arguments, do)


_seen_changes: dict[int, int] = {}


def _changed(connection: Any) -> bool:
    """Did this SQLite connection change rows since its last commit?"""
    key, changes = id(connection.dbapi_connection), connection.total_changes
    changed: bool = changes != _seen_changes.get(key, 0)
    _seen_changes[key] = changes
    return changed


def _site(frame: FrameType | None) -> str:
    """The line of Phoi that asked for a step; of a library where no line of Phoi did."""
    helper = library = ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module in _HELPERS:
            helper = helper or f" via {_place(frame)}"
        elif module.startswith("phoi_"):
            return _place(frame) + ("" if "sql.engine" in helper else helper)
        elif not library and "site-packages" in frame.f_code.co_filename:
            library = _place(frame) + _role(frame)
        frame = frame.f_back
    return library or "elsewhere"


def _place(frame: FrameType) -> str:
    module = str(frame.f_globals["__name__"]).removeprefix("phoi_edge_node.")
    return f"{module}.{frame.f_code.co_name}:{frame.f_lineno}"


def _role(frame: FrameType) -> str:
    """pynetdicom sends both what we ask and what we answer from one place: tell them apart."""
    association = getattr(frame.f_locals.get("self"), "assoc", None)
    mode = getattr(association, "mode", "")
    return f" as {mode}" if mode else ""
