"""DICOM upper layer PDUs byte by byte (PS3.8 9.3), also the wrong ones that no library sends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

VERIFICATION = "1.2.840.10008.1.1"
ECHO_CONTEXT, CT_CONTEXT = 1, 3
COMMAND, DATA, LAST = 1, 0, 2  # message control header

ABORT, ACCEPT, REJECT = b"\x07", b"\x02", b"\x03"


def pdu(pdu_type: int, body: bytes, length: int | None = None) -> bytes:
    """One PDU; ``length`` may lie."""
    return struct.pack(">BxL", pdu_type, len(body) if length is None else length) + body


def item(item_type: int, body: bytes, length: int | None = None) -> bytes:
    """One item or sub-item; ``length`` may lie."""
    return struct.pack(">BxH", item_type, len(body) if length is None else length) + body


def presentation_context(number: int, abstract_syntax: str, transfer_syntax: str) -> bytes:
    """One proposed presentation context."""
    syntaxes = item(0x30, abstract_syntax.encode()) + item(0x40, transfer_syntax.encode())
    return item(0x20, bytes((number, 0, 0, 0)) + syntaxes)


CONTEXTS = (
    presentation_context(ECHO_CONTEXT, VERIFICATION, ImplicitVRLittleEndian),
    presentation_context(CT_CONTEXT, CTImageStorage, ExplicitVRLittleEndian),
)


def associate_rq(
    contexts: tuple[bytes, ...] = CONTEXTS,
    *,
    version: int = 1,
    called: str = "PHOI",
    user: bytes = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"),
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    titles = called.ljust(16).encode() + b"CT1".ljust(16) + bytes(32)
    application = item(0x10, b"1.2.840.10008.3.1.1.1")
    body = struct.pack(">Hxx", version) + titles + application + b"".join(contexts)
    return pdu(0x01, body + item(0x50, user))


def p_data(context: int, header: int, fragment: bytes) -> bytes:
    """A P-DATA-TF of one fragment."""
    value = bytes((context, header)) + fragment
    return pdu(0x04, struct.pack(">L", len(value)) + value)


def command_set(*elements: tuple[int, bytes]) -> bytes:
    """A command set: group 0000, implicit VR little endian, with its group length."""
    body = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def echo_rq(message: int = 1) -> bytes:
    """A C-ECHO-RQ."""
    return p_data(
        ECHO_CONTEXT,
        COMMAND | LAST,
        command_set(
            (0x0002, VERIFICATION.encode() + b"\0"),
            (0x0100, struct.pack("<H", 0x0030)),
            (0x0110, struct.pack("<H", message)),
            (0x0800, struct.pack("<H", 0x0101)),
        ),
    )


def store_rq(sop_instance_uid: str = "1.2.3.4", message: int = 1) -> bytes:
    """The command of a C-STORE-RQ of a CT image; its data set is to follow."""
    uid = sop_instance_uid.encode() + b"\0" * (len(sop_instance_uid) % 2)
    sop_class = CTImageStorage.encode() + b"\0" * (len(CTImageStorage) % 2)
    return p_data(
        CT_CONTEXT,
        COMMAND | LAST,
        command_set(
            (0x0002, sop_class),
            (0x0100, struct.pack("<H", 0x0001)),
            (0x0110, struct.pack("<H", message)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 0x0001)),
            (0x1000, uid),
        ),
    )


@contextmanager
def connection(port: int, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection to 127.0.0.1, with no word said yet."""
    with socket.create_connection(
        ("127.0.0.1", port), timeout=30, source_address=(source, 0)
    ) as peer:
        yield peer


@contextmanager
def raw_association(port: int) -> Iterator[socket.socket]:
    """A connection whose association was accepted."""
    with connection(port) as peer:
        peer.sendall(associate_rq())
        assert read_pdu(peer)[:1] == ACCEPT
        yield peer


def read_pdu(peer: socket.socket) -> bytes:
    """One whole PDU, or b"" where the connection ended."""
    header = _read(peer, 6)
    if len(header) < 6:
        return b""
    return header + _read(peer, struct.unpack(">L", header[2:])[0])


def ends(peer: socket.socket) -> bool:
    """Wait until the other side ends the connection, with or without an A-ABORT."""
    with contextlib.suppress(ConnectionError):
        while answer := read_pdu(peer):
            if answer[:1] == ABORT:
                return True
    return True


def _read(peer: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        chunk = peer.recv(length - len(got))
        if not chunk:
            break
        got += chunk
    return got
