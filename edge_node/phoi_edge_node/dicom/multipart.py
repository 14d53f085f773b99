"""DICOM files in a multipart body (PS3.18 8.7.3, RFC 2046 5.1), read as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

DICOM_FILE = "application/dicom"

_LONGEST_BOUNDARY = 200


class Malformed(Exception):
    """The body is not what its Content-Type says."""


@dataclass
class Part:
    """One part of the body, as far as it came.

    Attributes:
        truncated: what goes beyond the largest instance is not kept.
    """

    content: bytearray
    content_type: str = ""
    truncated: bool = False


class Parts:
    """Splits a multipart body that comes in pieces (RFC 2046 5.1)."""

    def __init__(self, boundary: str, largest: int) -> None:
        """Of each part at most ``largest`` bytes are kept."""
        self._largest = largest
        self._name, self._value = bytearray(), bytearray()
        self._part = Part(bytearray())
        self._finished: list[Part] = []
        self.ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": _appending(lambda: self._name),
                "on_header_value": _appending(lambda: self._value),
                "on_header_end": self._header,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._end_of_all,
            },
        )

    def feed(self, chunk: bytes) -> Sequence[Part]:
        """The parts that ended in this piece.

        Raises:
            Malformed: it is no multipart body.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Malformed from None
        finished, self._finished = self._finished, []
        return finished

    def _begin(self) -> None:
        self._part = Part(bytearray())

    def _header(self) -> None:
        if self._name.lower() == b"content-type":
            self._part.content_type = _media_type(self._value.decode("latin-1"))[0]
        self._name.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        room = self._largest - len(self._part.content)
        if end - start > room:
            self._part.truncated = True
            end = start + room
        self._part.content += data[start:end]

    def _end(self) -> None:
        self._finished.append(self._part)

    def _end_of_all(self) -> None:
        self.ended = True


def boundary_of(content_type: str) -> str:
    """Of a multipart body of DICOM files, from its Content-Type; "" where it is none."""
    media_type, parameters = _media_type(content_type)
    if media_type != "multipart/related" or parameters.get("type", DICOM_FILE) != DICOM_FILE:
        return ""
    boundary = parameters.get("boundary", "")
    # RFC 2046 5.1.1 allows 70 characters; Orthanc sends 73.
    return boundary if len(boundary) <= _LONGEST_BOUNDARY and boundary.isascii() else ""


def _media_type(value: str) -> tuple[str, dict[str, str]]:
    """Type and parameters of a Content-Type header, the type in small letters."""
    message = Message()
    message["Content-Type"] = value
    parameters = {str(k).lower(): str(v) for k, v in message.get_params(failobj=[])[1:]}
    return message.get_content_type(), parameters


def _appending(target: Callable[[], bytearray]) -> Callable[[bytes, int, int], None]:
    def append(data: bytes, start: int, end: int) -> None:
        target().extend(data[start:end])

    return append
