"""File meta information (PS3.10 7.1), written as it has to be for each of thousands of instances.

pydicom writes the same bytes, which a test compares, at ten times the cost.
"""

from __future__ import annotations

import struct

import pydicom
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

_PREAMBLE = b"\0" * 128 + b"DICM"
_IMPLEMENTATION = f"PYDICOM {pydicom.__version__}"
_VERSION = struct.pack("<HH2sHL2s", 0x0002, 0x0001, b"OB", 0, 2, b"\x00\x01")


def encode_file_meta(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    sending_ae_title: str,
    receiving_ae_title: str,
) -> bytes:
    """Preamble, prefix and file meta information. What is not ASCII becomes question marks."""
    elements = _VERSION + b"".join(
        (
            _element(0x0002, b"UI", sop_class_uid, b"\0"),
            _element(0x0003, b"UI", sop_instance_uid, b"\0"),
            _element(0x0010, b"UI", transfer_syntax_uid, b"\0"),
            _element(0x0012, b"UI", PYDICOM_IMPLEMENTATION_UID, b"\0"),
            _element(0x0013, b"SH", _IMPLEMENTATION, b" "),
            _element(0x0017, b"AE", sending_ae_title, b" "),
            _element(0x0018, b"AE", receiving_ae_title, b" "),
        )
    )
    length = struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements))
    return _PREAMBLE + length + elements


def _element(number: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value
