"""Messages that come in: bytes to segments, and what stands in their fields as plain values.

python-hl7 parses; what it raises, logs or returns never leaves this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import hl7
import hl7.util

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.orders import OrderNumber, PatientKey
from phoi_edge_node.terms import plain_text

# It would quote what it cannot unescape.
hl7.util.logger.disabled = True

_LONGEST_NUMBER = 250

NULL = '""'  # chapter 2.5.3: the value is to be deleted

# HL7 table 0211 (MSH-18) to Python's names.
_CHARACTER_SETS = {
    "": "ascii",
    "ASCII": "ascii",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
    "GB 18030-2000": "gb18030",
    "BIG-5": "big5",
    "KS X 1001": "euc_kr",
    "CNS 11643-1992": "big5",
    "ISO IR87": "iso2022_jp",
} | {f"8859/{n}": f"iso8859-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)}
# Single-byte ones, which any text fits: UTF-8 that is labelled so is still read as what it is.
_DOUBTED = frozenset({"ascii", *(f"iso8859-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15))})
_TIME = re.compile(
    r"(?P<day>\d{8})(?P<clock>\d{2}(\d{2}(\d{2})?)?)?(\.\d+)?(?P<sign>[+-])?(?P<zone>\d{4})?"
)


class BadMessage(EdgeError):
    """A message is not taken. The text holds nothing of it.

    Attributes:
        code: MSA-1: ``AE`` for its content, ``AR`` for its kind.
        error: ERR-3, of HL7 table 0357.
    """

    def __init__(self, code: str, error: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.error = error


class Segment:
    """One segment; fields, repetitions and components are counted from 1."""

    def __init__(self, parsed: Any) -> None:
        self._parsed = parsed
        self.name = str(parsed[0])

    def raw(self, field: int, component: int = 1, repetition: int = 1, sub: int = 1) -> str:
        """A value with its escape sequences resolved; "" where there is none."""
        try:
            value = self._parsed.extract_field(1, field, repetition, component, sub)
        except (IndexError, KeyError):
            return ""
        return str(value).strip()

    def value(self, field: int, component: int = 1, repetition: int = 1, sub: int = 1) -> str:
        """As ``raw``, on one line, and "" for a value that is to be deleted."""
        value = self.raw(field, component, repetition, sub)
        return "" if value == NULL else plain_text(value)

    def repetitions(self, field: int) -> range:
        """How often a field stands here, as numbers for the other methods."""
        try:
            return range(1, len(self._parsed(field)) + 1)
        except (IndexError, KeyError):
            return range(0)

    def number(self, field: int, repetition: int = 1) -> OrderNumber:
        """EI: entity identifier, then namespace or universal ID."""
        namespace = self.value(field, 2, repetition) or self.value(field, 3, repetition)
        return OrderNumber(_number(self.value(field, 1, repetition)), _number(namespace))

    def patient(self, field: int, repetition: int = 1) -> PatientKey:
        """CX: identifier and assigning authority, by its namespace or its universal ID."""
        issuer = self.value(field, 4, repetition) or self.value(field, 4, repetition, 2)
        return PatientKey(_number(self.value(field, 1, repetition)), _number(issuer))

    def person(self, field: int, first: int, repetition: int = 1) -> str:
        """XPN (``first`` = 1) or XCN (2) as a DICOM PN string: family, given, middle, prefix,
        suffix."""
        family, given, middle, suffix, prefix = (
            self.value(field, first + offset, repetition).replace("^", " ") for offset in range(5)
        )
        return "^".join((family, given, middle, prefix, suffix)).rstrip("^")


@dataclass(frozen=True)
class IncomingMessage:
    """A parsed message.

    Attributes:
        segments: in order, the header first.
    """

    segments: tuple[Segment, ...]

    @property
    def header(self) -> Segment:
        """MSH."""
        return self.segments[0]

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.header.raw(10)

    @property
    def kind(self) -> tuple[str, str]:
        """MSH-9: message code and trigger event, as ("ORM", "O01")."""
        return self.header.value(9), self.header.value(9, 2)

    def all(self, *names: str) -> Iterator[Segment]:
        """The segments of these names, in order."""
        return (segment for segment in self.segments if segment.name in names)

    def first(self, name: str) -> Segment | None:
        """The first segment of a name."""
        return next(self.all(name), None)


def parse(content: bytes) -> IncomingMessage:
    """Read a message in the character set that MSH-18 names.

    Raises:
        BadMessage: it is no HL7 v2 message, or not in the character set that it names.
    """
    try:
        parsed = hl7.parse(_segment_ends(_decode(content)))
        segments = tuple(Segment(segment) for segment in parsed)
    except (UnicodeError, LookupError):
        raise BadMessage("AE", 102, "the text is not in the character set of MSH-18") from None
    except BadMessage:
        raise
    except Exception as error:  # the library raises whatever a wrong index or type makes it raise
        raise BadMessage("AR", 100, f"no HL7 v2 message ({type(error).__name__})") from None
    message = IncomingMessage(segments)
    if not message.control_id:
        raise BadMessage("AR", 101, "MSH-10 is empty")
    return message


def moment(value: str) -> datetime | None:
    """TS or DTM in UTC; without an offset, in this machine's zone; None where it is none."""
    found = _TIME.fullmatch(value)
    if not found:
        return None
    try:
        at = datetime.strptime(  # noqa: DTZ007 - the zone follows
            found["day"] + (found["clock"] or "").ljust(6, "0"), "%Y%m%d%H%M%S"
        )
        if found["zone"]:
            offset = timedelta(hours=int(found["zone"][:2]), minutes=int(found["zone"][2:]))
            at = at.replace(tzinfo=timezone(-offset if found["sign"] == "-" else offset))
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def day(value: str) -> date | None:
    """The day of a DT, TS or DTM; None where it is none."""
    try:
        return datetime.strptime(value[:8], "%Y%m%d").date()  # noqa: DTZ007 - no zone
    except ValueError:
        return None


def first_said(*values: str) -> str:
    """The first that is not empty."""
    return next((value for value in values if value), "")


def unique(values: Sequence[str]) -> list[str]:
    """Without the empty ones and repeats, in order."""
    return list(dict.fromkeys(value for value in values if value))


def _number(value: str) -> str:
    if len(value) > _LONGEST_NUMBER:
        raise BadMessage("AE", 102, f"a number is longer than {_LONGEST_NUMBER} characters")
    return value


def _decode(content: bytes) -> str:
    header = re.split(rb"[\r\n]", content.strip(), maxsplit=1)[0].decode("latin-1")
    separator = header[3:4]
    if not header.startswith("MSH") or not separator:
        raise BadMessage("AR", 100, "no HL7 v2 message")
    fields = header.split(separator)
    named = fields[17].split("~")[0].strip().upper() if len(fields) > 17 else ""
    if named not in _CHARACTER_SETS:
        raise BadMessage("AE", 103, "MSH-18 names a character set that is not known")
    character_set = _CHARACTER_SETS[named]
    if character_set in _DOUBTED:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return content.decode("latin-1" if character_set == "ascii" else character_set)


def _segment_ends(text: str) -> str:
    """Segments end with CR; some senders write LF or both."""
    return "\r".join(line for line in re.split(r"[\r\n]+", text.strip()) if line) + "\r"
