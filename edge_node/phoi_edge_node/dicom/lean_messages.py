"""The two requests that the lean receiver answers: C-STORE and C-ECHO (PS3.7 9.3.1, 9.3.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import ImplicitVRLittleEndian

from phoi_edge_node.dicom.header_scan import BadHeader, scan
from phoi_edge_node.dicom.lean_wire import P_DATA_TF, BrokenProtocol

C_STORE_RQ, C_ECHO_RQ = 0x0001, 0x0030

_SOP_CLASS, _COMMAND, _MESSAGE_ID, _ANSWERED_ID = 0x0002, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _SOP_INSTANCE = 0x0800, 0x0900, 0x1000
_NO_DATA_SET = 0x0101
_LONGEST_UID = 64  # PS3.5 9.1
_IS_RESPONSE = 0x8000
_LAST_OF_COMMAND = 0x03  # message control header, PS3.8 E.2


@dataclass(frozen=True)
class Request:
    """One DIMSE request.

    Attributes:
        sop_class_uid, sop_instance_uid: at most 64 characters, which may be anything; or "".
    """

    context_id: int
    command: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def decode(cls, context_id: int, command_set: bytes) -> Request:
        """From a command set, implicit VR little endian (PS3.7 6.3.1).

        Raises:
            BrokenProtocol: it cannot be decoded, or lacks what every request has.
        """
        wanted = {_SOP_CLASS, _COMMAND, _MESSAGE_ID, _DATA_SET_TYPE, _SOP_INSTANCE}
        try:
            values = scan(command_set, ImplicitVRLittleEndian, wanted)
        except BadHeader as error:
            raise BrokenProtocol(f"a command set cannot be read: {error}") from None
        return cls(
            context_id,
            _number(values, _COMMAND),
            _number(values, _MESSAGE_ID),
            _number(values, _DATA_SET_TYPE) != _NO_DATA_SET,
            _text(values, _SOP_CLASS),
            _text(values, _SOP_INSTANCE),
        )

    def response(self, status: int) -> bytes:
        """The P-DATA-TF that answers it."""
        elements = b"".join(
            (
                _uid(_SOP_CLASS, self.sop_class_uid),
                _us(_COMMAND, self.command | _IS_RESPONSE),
                _us(_ANSWERED_ID, self.message_id),
                _us(_DATA_SET_TYPE, _NO_DATA_SET),
                _us(_STATUS, status),
                _uid(_SOP_INSTANCE, self.sop_instance_uid) if self.sop_instance_uid else b"",
            )
        )
        command_set = struct.pack("<HHLL", 0, 0, 4, len(elements)) + elements
        length = 2 + len(command_set)
        head = struct.pack(
            ">BxLLBB", P_DATA_TF, 4 + length, length, self.context_id, _LAST_OF_COMMAND
        )
        return head + command_set


def _number(values: dict[int, bytes], tag: int) -> int:
    value = values.get(tag, b"")
    if len(value) != 2:
        raise BrokenProtocol("a command set lacks a number that every request has")
    return int.from_bytes(value, "little")


def _text(values: dict[int, bytes], tag: int) -> str:
    text = values.get(tag, b"").decode("ascii", "replace").strip(" \0")
    if len(text) > _LONGEST_UID:
        raise BrokenProtocol("a command set names too long a UID")
    return text


def _us(tag: int, number: int) -> bytes:
    return struct.pack("<HHLH", 0, tag, 2, number)


def _uid(tag: int, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, tag, len(value)) + value
