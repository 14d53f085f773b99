"""Picks a few elements out of an encoded data set that a stranger made (PS3.5 7).

Nothing is allocated by a claimed length, nothing recurses, and what is not asked for is passed
over where it lies: a general parser builds every nested item only for it to be thrown away, so
that some megabytes of a crafted header cost it a gigabyte and half a minute. The elements that
identify an instance stand before its pixels, so reading ends there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from phoi_edge_node.errors import EdgeError

_LONGEST_INFLATED = 4 * 1024 * 1024  # of a deflated data set as much is looked at
_MOST_ELEMENTS = 200_000  # that are stepped over one by one: about a tenth of a second
_DEEPEST = 32

_UNDEFINED = 0xFFFFFFFF
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"  # (0002,0000), the first element of a file
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# Explicit VRs with a length of 16 bits; all others, also of the future, have 32 (PS3.5 7.1.2).
_SHORT = frozenset(
    vr.encode()
    for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # noqa: SIM905
)


class BadHeader(EdgeError):
    """An instance whose header cannot be used. The sender's fault."""


class _Forms(NamedTuple):
    """How elements begin in one byte order: what the scanner reads thousands of times."""

    short: struct.Struct  # group, element, VR, length of 16 bits
    long: struct.Struct  # length of 32 bits


_FORMS = {
    order: _Forms(struct.Struct(f"{order}HH2sH"), struct.Struct(f"{order}L")) for order in "<>"
}


class _Element(NamedTuple):
    """Where an element stands. ``length`` may be undefined; its value is then a sequence."""

    tag: int
    value: int
    length: int
    implicit_inside: bool


@dataclass
class _Scanner:
    """Steps through one encoding.

    Raises:
        BadHeader: a length leads out of the data set, or there is too much to step over.
    """

    data: memoryview
    implicit: bool
    forms: _Forms
    steps: int = 0

    def element(self, at: int, *, implicit: bool) -> _Element:
        """The header of the element that begins at ``at``."""
        self.steps += 1
        if self.steps > _MOST_ELEMENTS:
            raise BadHeader("the header has too many elements")
        try:
            group, number, vr, length = self.forms.short.unpack_from(self.data, at)
            tag = group << 16 | number
            if implicit or group == 0xFFFE or not vr.isalpha():
                # Some senders switch to implicit VR in the middle, which a VR of no letters shows.
                (length,) = self.forms.long.unpack_from(self.data, at + 4)
                return _Element(tag, at + 8, length, implicit or group != 0xFFFE)
            if vr in _SHORT:
                return _Element(tag, at + 8, length, implicit_inside=False)
            (length,) = self.forms.long.unpack_from(self.data, at + 8)
        except struct.error:
            raise BadHeader("the header ends in the middle of an element") from None
        # A UN of undefined length is an implicit VR sequence whatever is around (PS3.5 6.2.2).
        return _Element(tag, at + 12, length, implicit_inside=vr == b"UN")

    def end(self, element: _Element) -> int:
        """Where the next element of the same level begins."""
        if element.length == _UNDEFINED:
            return self._end_of_sequence(element)
        end = element.value + element.length
        if end > len(self.data):
            raise BadHeader("an element of the header is longer than the data set")
        return end

    def _end_of_sequence(self, element: _Element) -> int:
        """Past the delimiters of all that is open; a stack instead of recursion."""
        at = element.value
        levels = [(_SEQUENCE_END, element.implicit_inside)]
        while levels:
            delimiter, implicit = levels[-1]
            inner = self.element(at, implicit=implicit)
            at = inner.value
            if inner.tag == delimiter:
                levels.pop()
            elif delimiter == _SEQUENCE_END and inner.tag != _ITEM:
                raise BadHeader("a sequence of the header holds something else than items")
            elif inner.length == _UNDEFINED:
                of_item = inner.tag == _ITEM
                inside = implicit if of_item else inner.implicit_inside
                levels.append((_ITEM_END if of_item else _SEQUENCE_END, inside))
                if len(levels) > _DEEPEST:
                    raise BadHeader("the header is nested too deeply")
            else:
                at = self.end(inner)
        return at


def scan(
    data_set: bytes | memoryview, transfer_syntax_uid: str, wanted: Collection[int]
) -> dict[int, bytes]:
    """The raw values of top-level elements; those that are absent or of undefined length are left
    out.

    Args:
        data_set: encoded, without file meta information; it may end after the wanted elements.
        wanted: tags, as (group << 16 | element).

    Raises:
        BadHeader: it is damaged before the last wanted element, names one twice, or would cost too
            much to step through.
    """
    scanner = _scanner(data_set, transfer_syntax_uid)
    return _collect(scanner, frozenset(wanted), max(wanted))[0]


def scan_file_meta(
    content: bytes | memoryview, wanted: Collection[int]
) -> tuple[dict[int, bytes], int]:
    """Of the file meta information (PS3.10 7.1), and where the data set begins after it.

    Raises:
        BadHeader: this is no DICOM file, or its file meta information is damaged.
    """
    if bytes(content[128:132]) != b"DICM":
        raise BadHeader("this is no DICOM file")
    meta = memoryview(content)[132:]
    if bytes(meta[:8]) == _GROUP_LENGTH:
        end = 12 + int.from_bytes(meta[8:12], "little")
        if end > len(meta):
            raise BadHeader("the file ends within its file meta information")
        meta = meta[:end]
    scanner = _Scanner(meta, implicit=False, forms=_FORMS["<"])
    values, end = _collect(scanner, frozenset(wanted), 0x0002FFFF)
    return values, 132 + end


def _collect(scanner: _Scanner, wanted: frozenset[int], last: int) -> tuple[dict[int, bytes], int]:
    found: dict[int, bytes] = {}
    at, data, implicit = 0, scanner.data, scanner.implicit
    beyond = len(data) - 8
    while at <= beyond:
        element = scanner.element(at, implicit=implicit)
        tag, value, length, _ = element
        if tag > last:
            break
        at = scanner.end(element)
        if tag in wanted:
            if tag in found:
                raise BadHeader("an element that identifies the instance stands there twice")
            if length != _UNDEFINED:
                found[tag] = bytes(data[value:at])
    return found, at


def _scanner(data_set: bytes | memoryview, transfer_syntax_uid: str) -> _Scanner:
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return _Scanner(memoryview(_inflated(data_set)), implicit=False, forms=_FORMS["<"])
    order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    if transfer_syntax_uid in {ImplicitVRLittleEndian, ExplicitVRLittleEndian}:
        # Mislabelled ones are common, and the first element tells.
        implicit = not bytes(data_set[4:6]).isalpha()
    return _Scanner(memoryview(data_set), implicit, _FORMS[order])


def _inflated(data_set: bytes | memoryview) -> bytes:
    """The beginning of a deflated data set, however much it would grow to (PS3.5 A.5)."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, _LONGEST_INFLATED)
    except zlib.error:
        raise BadHeader("the data set cannot be inflated") from None
