"""One lean association in this thread, over a stream that is a list of bytes: for fuzzing."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from phoi_edge_node.dicom.acceptor import Limits, MemoryBudget, Patience
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.lean_negotiation import Accepted
from phoi_edge_node.dicom.lean_receiver import LeanAssociation
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.settings import DicomSettings
from phoi_edge_node.system import SystemClock
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from support.dicom_edge import RememberingReceiver
from support.dicom_wire import CT_CONTEXT, ECHO_CONTEXT, VERIFICATION

ACCEPTED = Accepted(
    calling_ae_title="CT1",
    called_ae_title="PHOI",
    contexts={
        ECHO_CONTEXT: (VERIFICATION, ImplicitVRLittleEndian),
        CT_CONTEXT: (CTImageStorage, ExplicitVRLittleEndian),
    },
    answer=b"",
)
LARGEST = 100_000  # bytes of a data set


class Stream:
    """A socket whose peer has sent all it will, in these pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.sent = b""
        self.closed = False
        self.largest_read = 0

    def recv_into(self, view: memoryview) -> int:
        self.largest_read = max(self.largest_read, len(view))
        if not self._pieces:
            return 0
        piece = self._pieces[0][: len(view)]
        view[: len(piece)] = piece
        self._pieces[0] = self._pieces[0][len(piece) :]
        if not self._pieces[0]:
            del self._pieces[0]
        return len(piece)

    def sendall(self, content: bytes) -> None:
        self.sent += content

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def setsockopt(self, *_: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class UnsyncedFiles(InstanceFiles):
    """Without waiting for a disk, which thousands of examples would be slow by."""

    def sync_file(self, descriptor: int) -> None:
        pass

    def sync_folders(self, folders: Sequence[Path]) -> Sequence[None]:
        return [None] * len(folders)


class LeanPeer:
    """What a peer of the lean receiver can do, and what it leaves there."""

    def __init__(self, folder: Path) -> None:
        settings = DicomSettings(minimum_free_disk_mb=0)
        self.files = UnsyncedFiles(folder)
        self.receiver = RememberingReceiver()
        self._taker = InstanceTaker(settings, self.files, self.receiver, SystemClock())
        self._limits = Limits(LARGEST, MemoryBudget(LARGEST), Patience())

    def say(self, pieces: Sequence[bytes]) -> Stream:
        """A whole association; it has ended when this returns."""
        stream = Stream(pieces)
        LeanAssociation(
            cast("Any", stream), ACCEPTED, self._taker, self._limits, "association"
        ).run()
        return stream

    def check(self, stream: Stream) -> None:
        """What holds whatever was said."""
        assert stream.closed
        assert list(self.files.incoming.iterdir()) == []
        assert stream.largest_read <= 256 * 1024
        stored = {uid for uid, status in answers(stream.sent) if status == 0 and uid}
        assert stored == {i.sop_instance_uid for i in self.receiver.instances}
        assert len(list(self.files.paths())) >= len(stored)


def answers(sent: bytes) -> list[tuple[str, int]]:
    """SOP Instance UID, or "" of a C-ECHO, and status of every response; other PDUs are passed."""
    found = []
    while sent:
        pdu_type, length = struct.unpack_from(">BxL", sent)
        body, sent = sent[6 : 6 + length], sent[6 + length :]
        assert len(body) == length
        if pdu_type == 0x04:
            found.append(_answer(body[6:]))
    return found


def _answer(command_set: bytes) -> tuple[str, int]:
    uid, status = "", -1
    while command_set:
        group, number, length = struct.unpack_from("<HHL", command_set)
        value, command_set = command_set[8 : 8 + length], command_set[8 + length :]
        assert group == 0
        if number == 0x0900:
            status = int.from_bytes(value, "little")
        if number == 0x1000:
            uid = value.decode().rstrip("\0")
    return uid, status
