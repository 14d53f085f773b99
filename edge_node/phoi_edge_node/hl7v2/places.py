"""Fields and components of a message, and which of them a hospital may change. Pure.

Some are Phoi's own: what frames a message, who the patient is, what was found, and how far it is to
be trusted. No mapping may make a result look like another patient's, like another result, or like a
negative one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_WRITTEN = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})-(?P<field>[1-9]\d?)(\.(?P<component>[1-9]\d?))?"
)


class Hl7Version(StrEnum):
    """MSH-12, and what may stand in a message."""

    V2_3_1 = "2.3.1"
    V2_5_1 = "2.5.1"


# How many fields each segment has: chapters 2, 3, 4 and 7 of either version.
FIELDS: Mapping[Hl7Version, Mapping[str, int]] = {
    Hl7Version.V2_3_1: {"MSH": 20, "PID": 30, "PV1": 52, "ORC": 24, "OBR": 45, "OBX": 17},
    Hl7Version.V2_5_1: {"MSH": 21, "PID": 39, "PV1": 52, "ORC": 31, "OBR": 50, "OBX": 25},
}
SEGMENTS_OF_2_5 = frozenset({"SFT", "TQ1"})
OPTIONAL_SEGMENTS = frozenset({"SFT", "PV1", "ORC", "TQ1"})

_FRAME = "it is what makes this an ORU^R01 of Phoi"
_PERSON = "the patient is told as the images have it, or as [patient] says"
_RESULT = "it says what was found, and how far it is to be trusted"
_OWNED: Mapping[str, str] = {
    **dict.fromkeys(
        ("MSH-1", "MSH-2", "MSH-7", "MSH-9", "MSH-10", "PID-1", "OBR-1", "OBX-1"), _FRAME
    ),
    "MSH-12": "write version",
    "MSH-15": "Phoi waits for one acknowledgement only, that of the original mode",
    "MSH-16": "Phoi waits for one acknowledgement only, that of the original mode",
    "PID-3": _PERSON,
    "PID-5": _PERSON,
    "OBR-25": _RESULT,
    "OBX-2": _RESULT,
    "OBX-3": "write [observations.codes]",
    "OBX-4": _RESULT,
    "OBX-5": _RESULT,
    "OBX-6": _RESULT,
    "OBX-8": "write [flags]",
    "OBX-11": _RESULT,
}
_REQUIRED = frozenset({"MSH-11", "PV1-2", "ORC-1", "ORC-3", "OBR-3", "OBR-4"})
# Each report, order, patient and visit has its own.
_NUMBERS = frozenset(
    {
        *("PID-2", "PID-4", "PID-18", "PID-19", "PID-20", "PID-21", "PV1-5", "PV1-19", "PV1-50"),
        *("ORC-2", "ORC-3", "ORC-4", "ORC-8", "OBR-2", "OBR-3", "OBR-29"),
    }
)
_CONSTANTS: Mapping[str, tuple[frozenset[str], str]] = {
    "MSH-11": (frozenset({"P", "T", "D"}), "P, T or D"),
    "MSH-18": (
        frozenset({"UNICODE UTF-8", "UTF-8", "UTF8"}),
        'a name of UTF-8, in which Phoi writes: no set of 8859 has the letters of "Nguyễn"',
    ),
}


@dataclass(frozen=True, order=True)
class Place:
    """One field, or one component of its first repetition.

    Attributes:
        component: counted from 1; 0: the whole field.
    """

    segment: str
    field: int
    component: int = 0

    @classmethod
    def parse(cls, written: str, version: Hl7Version) -> Place:
        """Read "OBR-4" or "OBR-4.1".

        Raises:
            ValueError: it is none, or that version has no such field.
        """
        found = _WRITTEN.fullmatch(written)
        if found is None:
            raise ValueError(f"{written!r} is no field: write it as OBR-4, a component as OBR-4.1")
        place = cls(found["segment"], int(found["field"]), int(found["component"] or 0))
        if place.segment not in FIELDS[version]:
            known = ", ".join(FIELDS[version])
            raise ValueError(f"{written}: only fields of {known} can be changed")
        last = FIELDS[version][place.segment]
        if place.field > last:
            raise ValueError(f"{written}: {place.segment} has {last} fields in {version}")
        return place

    @property
    def whole(self) -> str:
        """The field, as a person writes it."""
        return f"{self.segment}-{self.field}"

    def __str__(self) -> str:
        return f"{self.whole}.{self.component}" if self.component else self.whole


def require_changeable(place: Place) -> None:
    """May a mapping put something else here?

    Raises:
        ValueError: no; the text says why, or where else to write it.
    """
    if place.whole in _OWNED:
        raise ValueError(f"{place}: this field cannot be changed: {_OWNED[place.whole]}")


def require_optional(place: Place) -> None:
    """May a mapping leave this out?

    Raises:
        ValueError: no; the text says why.
    """
    require_changeable(place)
    if place.component:
        raise ValueError(f"{place}: only whole fields can be left out")
    if place.whole in _REQUIRED:
        raise ValueError(f"{place}: this field cannot be left out: no receiver could do without")


def holds_number(place: Place) -> bool:
    """Is it what tells one patient, visit, order or report from another?"""
    return place.whole in _NUMBERS and place.component <= 1


def require_constant(place: Place, values: tuple[str, ...]) -> None:
    """May every message have these components, or this component, here?

    Raises:
        ValueError: no; the text says why.
    """
    require_changeable(place)
    if not any(values) or (place.component and len(values) > 1):
        raise ValueError(f"{place}: write one text, or for a whole field a list of its components")
    if place.segment == "PID":
        raise ValueError(f"{place}: a constant would say the same of every patient")
    if holds_number(place):
        raise ValueError(f"{place}: a constant would give everything the same number")
    allowed, meant = _CONSTANTS.get(place.whole, (frozenset(), ""))
    if allowed and (place.component > 1 or values[0] not in allowed or len(values) > 1):
        raise ValueError(f"{place}: must be {meant}")
