"""Are the stored files still what was received?"""

from __future__ import annotations

import errno
import hashlib
from contextlib import AbstractContextManager
from typing import BinaryIO

from phoi_edge_node.damage import Damage
from phoi_edge_node.dicom.file_meta import is_file_meta_of
from phoi_edge_node.dicom.headers import data_set_offset
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.ports import ReceivedInstance

_PIECE = 1 << 20
_HEAD = 144  # preamble, prefix, and the element that tells how long the file meta information is
_LONGEST_META = 64 * 1024  # ours is some hundred bytes; a damaged length says anything


class StoredFiles:
    """Implements ``damage.StoredImages``."""

    def __init__(self, files: InstanceFiles) -> None:
        self._files = files

    def damage(self, instance: ReceivedInstance) -> Damage | None:
        """What is wrong with the file of an instance; reads all of it.

        Raises:
            OSError: nothing is known, for another reason than the disk (too many open files).
        """
        try:
            with (self._files.root / instance.path).open("rb") as file:
                return None if self._is_as_received(file, instance) else Damage.CHANGED
        except FileNotFoundError:
            return Damage.MISSING
        except OSError as error:
            if error.errno == errno.EIO:
                return Damage.UNREADABLE
            raise

    def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
        """No image of the study comes meanwhile, and nobody else takes any away."""
        return self._files.studies.going(study_instance_uid)

    def set_aside(self, instance: ReceivedInstance) -> None:
        """Move the file, if there is one, to quarantine."""
        if (self._files.root / instance.path).exists():
            self._files.quarantine(instance.path)

    def _is_as_received(self, file: BinaryIO, instance: ReceivedInstance) -> bool:
        head = file.read(_HEAD)
        offset = data_set_offset(head)
        if not _HEAD <= offset <= _LONGEST_META:
            return False
        meta = head + file.read(offset - _HEAD)
        digest = hashlib.sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
        same_bytes = file.tell() == instance.size and digest.hexdigest() == instance.sha256
        return same_bytes and is_file_meta_of(  # which tells how to read the rest
            meta,
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
        )
