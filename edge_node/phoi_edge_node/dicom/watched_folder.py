"""A folder into which people copy CDs: what is a CT image comes in as if it had been sent.

What lies directly in the folder, a file or a whole copied CD, is taken once nothing of it has
changed for a while, as one association. A file is removed from the folder once it is durable and
indexed; until then it stays, so that a crash at any moment loses nothing, and what was taken twice
is one instance. What is not taken is set aside with the reason. Links are not followed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from phoi_edge_node.dicom.part10 import open_file, require_ct_image
from phoi_edge_node.dicom.taking import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
)
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import DicomSettings, WatchedFolderSettings

NOT_TAKEN = "not-taken"

_LONGEST_NAME = 200  # bytes, of the 255 that a file's name may have

_State = tuple[int, int, int]  # inode, size, time of change

log = structlog.get_logger(__name__)


class _Later(Exception):
    """All files stay where they are, and are tried again; the text says why."""


class WatchedFolder:
    """Looks into the folder whenever it is told to. No path of it is ever logged.

    Args:
        stopping: asked between two files.
    """

    def __init__(
        self,
        settings: WatchedFolderSettings,
        dicom: DicomSettings,
        taker: InstanceTaker,
        clock: Clock,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the folder where it is absent.

        Raises:
            EdgeError: it cannot be made or written to.
        """
        self._folder = settings.folder
        self._settled_s = settings.settled_s
        self._largest = dicom.largest_instance_mb * 1_000_000
        self._taker = taker
        self._clock = clock
        self._stopping = stopping
        self._count = itertools.count(1)
        self._seen: dict[str, tuple[Mapping[str, _State], float]] = {}
        self._dealt_with: dict[str, _State] = {}  # by path; what could not be removed
        self._not_taken = settings.folder / NOT_TAKEN
        try:
            self._not_taken.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeError(
                f"cannot use watched_folder.folder {settings.folder}: {error.strerror}. "
                "Phoi must be allowed to write and remove files there."
            ) from None

    def look(self) -> bool:
        """Take what has settled; True if anything was."""
        settled = [name for name, state in self._states() if self._has_settled(name, state)]
        for name in settled:
            state, _ = self._seen.pop(name)  # what stays is looked at anew
            self._take_all(self._folder / name, state)
        return bool(settled)

    # --- has it settled? ---------------------------------------------------------------------

    def _states(self) -> Iterator[tuple[str, Mapping[str, _State]]]:
        """What lies directly in the folder, and the state of every file below it."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder))
        except OSError as error:  # a share that is away for a while
            log.warning("the watched folder cannot be read", why=error.strerror)
            return
        for gone in self._seen.keys() - set(names):
            del self._seen[gone]
        self._dealt_with = {p: s for p, s in self._dealt_with.items() if os.path.lexists(p)}
        for name in names:
            if name != NOT_TAKEN:
                yield name, self._left_to_do(_state(self._folder / name))

    def _left_to_do(self, state: Mapping[str, _State]) -> Mapping[str, _State]:
        """Without the files that were dealt with and could not be removed."""
        return {path: s for path, s in state.items() if self._dealt_with.get(path) != s}

    def _has_settled(self, name: str, state: Mapping[str, _State]) -> bool:
        known, since = self._seen.get(name, (None, 0.0))
        now = self._clock.monotonic()
        if state != known:
            self._seen[name] = (state, now)
            return False
        return bool(state) and now - since >= self._settled_s

    # --- taking ------------------------------------------------------------------------------

    def _take_all(self, top: Path, state: Mapping[str, _State]) -> None:
        """One file, or one copied CD, as one association."""
        association = f"folder-{self._clock.now():%Y%m%dT%H%M%S}-{next(self._count)}"
        staying: Counter[str] = Counter()
        try:
            for path, file_state in state.items():
                if self._stopping():
                    return
                why = self._take(Path(path), file_state, association)
                staying.update([why] if why else [])
            _remove_empty(top)
        except _Later as later:
            staying[str(later)] += 1
        finally:
            self._taker.released(association)
            for why, number in staying.items():
                log.warning("files stay in the watched folder", why=why, number=number)

    def _take(self, path: Path, state: _State, association: str) -> str:
        """Take one file and remove it, or set it aside; why it stays, if it does.

        Raises:
            _Later: nothing can be taken now.
        """
        try:
            self._taker.take(self._open(path), association)
        except NotTaken as refusal:
            if refusal.status == OUT_OF_RESOURCES:
                raise _Later(str(refusal)) from None
            return self._clear(path, state, partial(self._set_aside, path, str(refusal)))
        except FileNotFoundError:
            return ""  # somebody took it away
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        except Exception as error:
            return type(error).__name__  # its text may hold the patient
        return self._clear(path, state, path.unlink)

    def _clear(self, path: Path, state: _State, remove: Callable[[], object]) -> str:
        """Have what was dealt with leave the folder; where it cannot, it is dealt with only once.

        So it is with a CD whose folders came with it as read-only ones.
        """
        try:
            remove()
        except FileNotFoundError:
            return ""  # somebody took it away
        except OSError as error:
            self._dealt_with[str(path)] = state
            return f"it cannot be removed: {error.strerror}"
        return ""

    def _open(self, path: Path) -> IncomingInstance:
        """Read one file.

        Raises:
            NotTaken: it is no CT image that can be taken.
        """
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise NotTaken(CANNOT_UNDERSTAND, "it is not a file; links are not followed")
        if path.name.upper() == "DICOMDIR":
            raise NotTaken(CANNOT_UNDERSTAND, "it is an index; its images are taken one by one")
        if status.st_size > self._largest:
            raise NotTaken(CANNOT_UNDERSTAND, "larger than dicom.largest_instance_mb allows")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            incoming, _ = open_file(file.read())
        require_ct_image(incoming)
        return incoming

    def _set_aside(self, path: Path, why: str) -> None:
        """Move a file to ``not-taken``, with the reason beside it.

        Raises:
            OSError: it cannot be moved.
        """
        target = self._not_taken / path.relative_to(self._folder)
        target = _free(target.with_name(_short(target.name)))
        reason = target.with_name(f"{target.name}.reason.txt")
        log.warning("not taken from the watched folder", why=why)
        target.parent.mkdir(parents=True, exist_ok=True)
        reason.write_text(f"{why}\n", encoding="utf-8")
        try:
            path.rename(target)
        except OSError:
            reason.unlink(missing_ok=True)
            raise


def _state(top: Path) -> Mapping[str, _State]:
    """Every file at or below a path, in order."""
    found: dict[str, _State] = {}
    if top.is_dir() and not top.is_symlink():
        for folder, subfolders, files in os.walk(top):
            linked = [name for name in subfolders if (Path(folder) / name).is_symlink()]
            paths = [Path(folder) / name for name in sorted([*files, *linked])]
            found |= {str(path): state for path in paths if (state := _state_of(path))}
    elif state := _state_of(top):
        found[str(top)] = state
    return found


def _state_of(path: Path) -> _State | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _short(name: str) -> str:
    """A name that leaves room for what ``_free`` and the reason append to it."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{os.fsdecode(encoded[: _LONGEST_NAME - 17])}-{digest}"


def _free(target: Path) -> Path:
    """A name that is not taken yet: ``IMG1``, ``IMG1.2``, ``IMG1.3``, ..."""
    names = itertools.chain(
        [target], (target.with_name(f"{target.name}.{n}") for n in itertools.count(2))
    )
    return next(path for path in names if not os.path.lexists(path))


def _remove_empty(top: Path) -> None:
    """Remove the folders that are empty now; one that holds something stays."""
    if top.is_dir() and not top.is_symlink():
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
