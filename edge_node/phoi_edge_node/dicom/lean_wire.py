"""Reads the upper layer's protocol (PS3.8 9.3) from a blocking stream, without copying what it
carries, and within bounds of time and memory."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from phoi_edge_node.dicom.acceptor import MAXIMUM_PDU, Patience

P_DATA_TF, A_RELEASE_RQ, A_ABORT = 0x04, 0x05, 0x07
LARGEST_PDU = 2 * MAXIMUM_PDU  # a P-DATA-TF of some senders is a little over what was agreed

_BUFFER = 256 * 1024  # one PDU: fewer, larger reads and writes
_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_DELAYED_ACK_S = 0.03  # Linux sends a lone acknowledgement after 40 ms


class BrokenProtocol(Exception):
    """The peer sends what PS3.8 does not allow here: the association is aborted."""


@dataclass(frozen=True)
class Fragment:
    """The header of a presentation data value (PS3.8 9.3.5.1, E.2); ``length`` bytes follow."""

    length: int
    context_id: int
    of_command: bool
    is_last: bool


class Wire:
    """One connection's incoming half.

    A sender that leaves Nagle's algorithm on holds back the last part of what it writes until what
    went before is acknowledged, which the kernel delays by 40 ms: for each slice. Once such a gap
    was seen, whatever comes is acknowledged at once.
    """

    def __init__(self, stream: socket.socket, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0
        self._deadline = 0.0
        self._acknowledge_at_once = False

    def next_pdu(self) -> tuple[int, int]:
        """Wait for a PDU: its type, and how many bytes of it follow.

        Raises:
            OSError: the connection is lost, or nothing came for too long.
        """
        self._deadline = time.monotonic() + self._patience.idle
        self._need(1)
        self._deadline = time.monotonic() + self._patience.pdu
        pdu_type, length = self._unpack(_PDU)
        return pdu_type, length

    def next_fragment(self, left: int) -> Fragment:
        """The header of the next fragment of a P-DATA-TF of which ``left`` bytes are to come.

        Raises:
            BrokenProtocol: it is not within the PDU.
            OSError: the connection is lost, or the PDU takes too long.
        """
        if left < _PDV.size:
            raise BrokenProtocol("a PDU ends within the header of a fragment")
        length, context_id, control = self._unpack(_PDV)
        if not 2 <= length <= left - 4:
            raise BrokenProtocol("a fragment is longer than its PDU")
        return Fragment(length - 2, context_id, bool(control & 1), bool(control & 2))

    def pass_on(self, length: int, sink: Callable[[memoryview], object]) -> None:
        """Give the next ``length`` bytes to ``sink``, as they come; it may keep no view of them.

        Raises:
            OSError: as above.
        """
        while length:
            if self._start == self._end:
                self._fill()
            taken = min(length, self._end - self._start)
            begin, self._start = self._start, self._start + taken
            sink(self._buffer[begin : self._start])
            length -= taken

    def _unpack(self, form: struct.Struct) -> tuple[int, ...]:
        self._need(form.size)
        values = form.unpack_from(self._buffer, self._start)
        self._start += form.size
        return values

    def _need(self, size: int) -> None:
        while self._end - self._start < size:
            self._fill()

    def _fill(self) -> None:
        """Read what there is."""
        rest = self._end - self._start
        if self._start and rest <= _PDV.size:  # of a header that was cut
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start, self._end = 0, rest
        before = time.monotonic()
        if before >= self._deadline:
            raise TimeoutError("a PDU takes too long")
        self._stream.settimeout(self._deadline - before)
        read = self._stream.recv_into(self._buffer[self._end :])
        if read == 0:
            raise ConnectionResetError("the connection was closed")
        self._end += read
        if self._acknowledge_at_once or time.monotonic() - before >= _DELAYED_ACK_S:
            self._acknowledge_at_once = True
            # The kernel forgets it again and again.
            self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
