"""File meta information (PS3.10 7.1), written as it has to be for each of thousands of instances.

pydicom writes the same bytes, which a test compares, at ten times the cost.
"""

from __future__ import annotations

import struct

import pydicom
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

_PREAMBLE = b"\0" * 128 + b"DICM"
_IMPLEMENTATION = f"PYDICOM {pydicom.__version__}"
_GROUP_LENGTH = struct.Struct("<HH2sHL")
_ELEMENT = struct.Struct("<HH2sH")
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
    elements = b"".join(
        (
            _VERSION,
            _identity(sop_class_uid, sop_instance_uid, transfer_syntax_uid),
            _element(0x0012, b"UI", PYDICOM_IMPLEMENTATION_UID, b"\0"),
            _element(0x0013, b"SH", _IMPLEMENTATION, b" "),
            _element(0x0017, b"AE", sending_ae_title, b" "),
            _element(0x0018, b"AE", receiving_ae_title, b" "),
        )
    )
    length = _GROUP_LENGTH.pack(0x0002, 0x0000, b"UL", 4, len(elements))
    return _PREAMBLE + length + elements


def is_file_meta_of(
    content: bytes, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
) -> bool:
    """Is this what ``encode_file_meta`` made for this instance, whoever sent it?

    Args:
        content: everything before the data set.
    """
    begin = len(_PREAMBLE) + _GROUP_LENGTH.size
    known = _VERSION + _identity(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
    if not content.startswith(known, begin):
        return False
    at = begin + len(known)
    while at + _ELEMENT.size <= len(content):
        group, _, vr, length = _ELEMENT.unpack_from(content, at)
        if group != 0x0002 or vr not in {b"UI", b"SH", b"AE"}:
            return False
        at += _ELEMENT.size + length
    return at == len(content)


def _identity(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    return (
        _element(0x0002, b"UI", sop_class_uid, b"\0")
        + _element(0x0003, b"UI", sop_instance_uid, b"\0")
        + _element(0x0010, b"UI", transfer_syntax_uid, b"\0")
    )


def _element(number: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return _ELEMENT.pack(0x0002, number, vr, len(value)) + value
