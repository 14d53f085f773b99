"""How long one C-STORE takes, asked by a sender that does as little as can be.

It sends whole requests, encoded beforehand, over one association, each after the response to the
one before. PDUs are as long as the receiver takes them.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

_CONTEXT_ID = 1
_LONGEST_PDU = 131072


def measure(port: int, files: Sequence[Path]) -> list[float]:
    """Seconds from the first byte of each request to the end of its response."""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(_association_request())
        longest = _accepted(_read_pdu(stream))
        taken = []
        for number, file in enumerate(files):
            request = _request(file, number % 65535 + 1, longest)
            began = time.perf_counter()
            stream.sendall(request)
            response = _read_pdu(stream)
            taken.append(time.perf_counter() - began)
            _require_success(response)
        stream.sendall(bytes((0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0)))
        _read_pdu(stream)
    return taken


def _association_request() -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "BENCH", "PHOI"
    context = build_context(CTImageStorage, ExplicitVRLittleEndian)
    context.context_id = _CONTEXT_ID
    request.presentation_context_definition_list = [context]
    longest = MaximumLengthNotification()
    longest.maximum_length_received = _LONGEST_PDU
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.826.0.1.3680043.8.498.1"
    request.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return bytes(pdu.encode())


def _accepted(answer: bytes) -> int:
    pdu = A_ASSOCIATE_AC()
    pdu.decode(answer)
    primitive = pdu.to_primitive()
    if primitive.presentation_context_definition_results_list[0].result != 0:
        raise ConnectionError("the receiver takes no CT images")
    return min(primitive.maximum_length_received or _LONGEST_PDU, _LONGEST_PDU)


def _request(file: Path, message_id: int, longest: int) -> bytes:
    content = file.read_bytes()
    uid = str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID).encode()
    data_set = memoryview(content)[144 + int.from_bytes(content[140:144], "little") :]
    command = _command(message_id, uid)
    parts = [_p_data(3, command)]
    step = longest - 6
    for at in range(0, len(data_set), step):
        is_last = at + step >= len(data_set)
        parts.append(_p_data(2 if is_last else 0, bytes(data_set[at : at + step])))
    return b"".join(parts)


def _command(message_id: int, uid: bytes) -> bytes:
    elements = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in (
            (0x0002, CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)),
            (0x0100, struct.pack("<H", 1)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 0)),
            (0x1000, uid + b"\0" * (len(uid) % 2)),
        )
    )
    return struct.pack("<HHLL", 0, 0, 4, len(elements)) + elements


def _p_data(control: int, fragment: bytes) -> bytes:
    length = 2 + len(fragment)
    return struct.pack(">BxLLBB", 4, 4 + length, length, _CONTEXT_ID, control) + fragment


def _read_pdu(stream: socket.socket) -> bytes:
    header = stream.recv(6, socket.MSG_WAITALL)
    if len(header) < 6:
        raise ConnectionError("the receiver closed the connection")
    return header + stream.recv(int.from_bytes(header[2:], "big"), socket.MSG_WAITALL)


def _require_success(response: bytes) -> None:
    # The status is the only element 0900 of the command set, implicit VR little endian.
    at = response.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    if response[at : at + 2] != b"\0\0":
        raise ConnectionError("the receiver did not take an image")
