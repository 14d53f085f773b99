"""A folder into which people copy CDs: what is a CT image comes in as if it had been sent.

What lies directly in the folder, a file or a whole copied CD, is taken once nothing of it has
changed for a while, as one association. A file is removed from the folder once it is durable and
indexed; until then it stays, so that a crash at any moment loses nothing, and what was taken twice
is one instance. What is not taken is set aside with the reason. Links are not followed.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
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

_State = tuple[int, int, int]  # inode, size, time of change

log = structlog.get_logger(__name__)


class _Later(Exception):
    """The files stay where they are, and are tried again; the text says why."""


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
        for name in names:
            if name != NOT_TAKEN:
                yield name, _state(self._folder / name)

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
        try:
            for path in state:
                if self._stopping():
                    return
                self._take(Path(path), association)
            _remove_empty(top)
        except _Later as why:
            log.warning("files stay in the watched folder", why=str(why))
        finally:
            self._taker.released(association)

    def _take(self, path: Path, association: str) -> None:
        """Take one file and remove it, or set it aside.

        Raises:
            _Later: it can be neither now.
        """
        try:
            self._taker.take(self._open(path), association)
            path.unlink()
        except NotTaken as refusal:
            if refusal.status == OUT_OF_RESOURCES:
                raise _Later(str(refusal)) from None
            self._set_aside(path, str(refusal))
        except FileNotFoundError:
            pass  # somebody took it away
        except OSError as error:
            raise _Later(f"a file cannot be read or removed: {error.strerror}") from None
        except Exception as error:
            raise _Later(type(error).__name__) from None  # its text may hold the patient

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
        """Move a file to ``not-taken``, with the reason beside it."""
        target = _free(self._not_taken / path.relative_to(self._folder))
        log.warning("not taken from the watched folder", why=why)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f"{target.name}.reason.txt").write_text(f"{why}\n", encoding="utf-8")
            path.rename(target)
        except OSError as error:
            raise _Later(f"a file cannot be set aside: {error.strerror}") from None


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
