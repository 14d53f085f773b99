"""HL7 v2 encoding rules (2.5.1, chapter 2.5 to 2.7): from values to fields and segments.

A *field* here is a string that is already encoded: only the functions of this module make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from phoi_edge_node.person_name import PersonName
from phoi_edge_node.terms import Term, plain_text

SEGMENT_END = "\r"
ENCODING_CHARACTERS = r"^~\&"
_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}


@dataclass(frozen=True)
class OutgoingSegment:
    """A segment before it is written.

    Attributes:
        fields: by position, counted from 1; those of MSH from 3 on.
    """

    name: str
    fields: Mapping[int, str]

    def encoded(self) -> str:
        """The segment, without its end."""
        return header(self.fields) if self.name == "MSH" else segment(self.name, self.fields)


def text(value: str) -> str:
    """A value with the delimiters escaped and control characters replaced."""
    return "".join(_ESCAPES.get(c, c) for c in plain_text(value))


def components(*values: str) -> str:
    """A composite of plain values, escaped; components at the end that are empty are left out."""
    return "^".join(text(value) for value in values).rstrip("^")


def repeated(*fields: str) -> str:
    """A field that repeats."""
    return "~".join(fields)


def coded(term: Term) -> str:
    """CE: code, text, name of coding system."""
    return components(term.code, term.en, term.scheme.designator)


def extended_name(name: PersonName) -> str:
    """XPN: family, given, middle, suffix, prefix, (degree), L for legal name, U for unknown."""
    parts = (name.family, name.given, name.middle, name.suffix, name.prefix)
    return components(*parts, "", "L" if any(parts) else "U")


def timestamp(at: datetime) -> str:
    """TS in UTC with its offset, to the second."""
    return at.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")


def local_timestamp(at: datetime | None) -> str:
    """TS of a time whose zone nobody wrote down."""
    return at.strftime("%Y%m%d%H%M%S") if at else ""


def day(value: date | None) -> str:
    """DT."""
    return value.strftime("%Y%m%d") if value else ""


def segment(name: str, fields: Mapping[int, str]) -> str:
    """One segment, without its end; ``fields`` by position, counted from 1."""
    last = max((n for n, value in fields.items() if value), default=0)
    return "|".join([name, *(fields.get(n, "") for n in range(1, last + 1))])


def header(fields: Mapping[int, str]) -> str:
    """MSH, whose first field is the separator itself; ``fields`` from MSH-3 on."""
    return segment("MSH", {1: ENCODING_CHARACTERS} | {n - 1: v for n, v in fields.items()})
