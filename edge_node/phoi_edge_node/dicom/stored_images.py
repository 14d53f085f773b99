"""Are the stored files still what was received?"""

from __future__ import annotations

import hashlib

from phoi_edge_node.damage import Damage
from phoi_edge_node.dicom.headers import data_set_offset
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.ports import ReceivedInstance

_PIECE = 1 << 20
_HEAD = 144  # preamble, prefix, and the element that tells how long the file meta information is


class StoredFiles:
    """Implements ``damage.StoredImages``."""

    def __init__(self, files: InstanceFiles) -> None:
        self._files = files

    def damage(self, instance: ReceivedInstance) -> Damage | None:
        """What is wrong with the file of an instance; reads all of it.

        Raises:
            OSError: the disk cannot be read now; nothing is known.
        """
        digest = hashlib.sha256()
        try:
            with (self._files.root / instance.path).open("rb") as file:
                file.seek(data_set_offset(file.read(_HEAD)))
                while piece := file.read(_PIECE):
                    digest.update(piece)
        except FileNotFoundError:
            return Damage.MISSING
        return None if digest.hexdigest() == instance.sha256 else Damage.CHANGED

    def set_aside(self, instance: ReceivedInstance) -> None:
        """Move the file, if there is one, to quarantine."""
        if (self._files.root / instance.path).exists():
            self._files.quarantine(instance.path)
