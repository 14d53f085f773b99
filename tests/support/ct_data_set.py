"""The shortest data set that is taken as a CT image, byte by byte: explicit VR little endian."""

from __future__ import annotations

import struct

from pydicom.uid import CTImageStorage


def data_set(sop_instance_uid: str, *, study: str = "1.2", pixels: int = 64) -> bytes:
    """An instance of the one series of a study.

    Args:
        pixels: bytes of them, an even number.
    """
    return (
        _ui(0x0008, 0x0016, CTImageStorage)
        + _ui(0x0008, 0x0018, sop_instance_uid)
        + _ui(0x0020, 0x000D, study)
        + _ui(0x0020, 0x000E, f"{study}.1")
        + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, pixels)
        + bytes(pixels)
    )


def _ui(group: int, number: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<HH2sH", group, number, b"UI", len(value)) + value
