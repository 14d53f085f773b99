"""Tells a file from another that took its place."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """What a file was at one time.

    The path alone does not tell, though it holds the digest of the content: an image that was
    damaged on the disk and came again lies where the damaged one lay.
    """

    path: Path
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def version_of(path: Path) -> FileVersion | None:
    """None where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileVersion(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
