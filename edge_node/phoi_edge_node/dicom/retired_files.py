"""Images that nothing needs any more: set aside, and a little later removed for good.

A folder of a study moves as a whole, while no image of the study comes. Files are removed only
after a while, and those that the index knows by then, though it should know none, go back to their
place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from phoi_models.files import make_folder, sync_folder

from phoi_edge_node.dicom.instance_files import InstanceFiles, study_folder
from phoi_edge_node.ports import Clock


class RetiredFiles:
    """Implements ``retention.RemovableImages``. Of one thread, besides ``InstanceFiles``.

    Args:
        indexed: which of these paths the index knows.
    """

    def __init__(
        self,
        files: InstanceFiles,
        indexed: Callable[[Collection[str]], Collection[str]],
        clock: Clock,
    ) -> None:
        self._files = files
        self._indexed = indexed
        self._clock = clock
        self._root = files.root / "retired"
        make_folder(self._root)

    def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
        """No image of the study comes meanwhile."""
        return self._files.studies.going(study_instance_uid)

    def retire(self, study_instance_uid: str) -> None:
        """Set the images of a study aside; nothing happens where there are none."""
        source = self._files.root / study_folder(study_instance_uid)
        if not source.is_dir():
            return
        now = self._clock.now().timestamp()
        target = self._root / f"{source.parent.name}-{source.name}-{now:.6f}"
        source.rename(target)
        os.utime(target, (now, now))
        for folder in (source.parent, self._root):
            sync_folder(folder)

    def empty(self, before: datetime) -> int:
        """Remove for good what was set aside before this moment, unless it is indexed again."""
        removed = 0
        for folder in self._folders():
            if folder.stat().st_mtime < before.timestamp():
                removed += self._empty(folder)
        return removed

    def drop_quarantined(self, before: datetime) -> int:
        """Remove what was quarantined before this moment; the number of files."""
        return self._files.drop_quarantined(before)

    def room(self) -> int:
        """Bytes that are free, or will be once what was set aside is removed."""
        waiting = (file for folder in self._folders() for file in folder.iterdir())
        return self._files.free_bytes() + sum(file.stat().st_size for file in waiting)

    def _folders(self) -> Iterator[Path]:
        yield from sorted(self._root.iterdir())

    def _empty(self, folder: Path) -> int:
        prefix, name, _ = folder.name.split("-")
        files = {f"studies/{prefix}/{name}/{file.name}": file for file in folder.iterdir()}
        wanted = self._indexed(files)
        for path, file in files.items():
            if path in wanted and not (self._files.root / path).exists():
                self._files.give_name(str(file), path)
            else:
                file.unlink()
        folder.rmdir()
        sync_folder(self._root)
        return len(set(files) - set(wanted))
