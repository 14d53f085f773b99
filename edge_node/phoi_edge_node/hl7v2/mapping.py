"""A site's mapping of ORU^R01: what its file may say, read and checked.

It changes a message that is built as this page of the documentation says it is
(docs/how-to/fit-hl7-to-your-hospital.md); it is no language of templates. Without a file, nothing
is changed.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from phoi_edge_node.errors import SettingsError
from phoi_edge_node.hl7v2.known_values import KNOWN_VALUES
from phoi_edge_node.hl7v2.observations import ALL_OBSERVED
from phoi_edge_node.hl7v2.places import (
    OPTIONAL_SEGMENTS,
    SEGMENTS_OF_2_5,
    Hl7Version,
    Place,
    holds_number,
    require_changeable,
    require_constant,
    require_optional,
)
from phoi_edge_node.settings import Hl7Settings
from phoi_edge_node.terms import COMPLETENESS, IMPRESSION, OUTCOME_OF_TRIAGE, Term, plain_text

# Without them a result could be taken for another one, or for a physician's.
_NEVER_LEFT_OUT = frozenset(term.code for term in (OUTCOME_OF_TRIAGE, COMPLETENESS, IMPRESSION))
_CODES = frozenset(term.code for term in ALL_OBSERVED)


def _one_line(value: str) -> str:
    if not value or value != plain_text(value):
        raise ValueError("must be one line of text; to leave a field out, name it in leave_out")
    return value


def _plain(value: str) -> str:
    if value != plain_text(value):
        raise ValueError("must be one line of text")
    return value


def _observation(code: str) -> str:
    if code not in _CODES:
        raise ValueError(f"{code!r} is none of Phoi's observations: {', '.join(sorted(_CODES))}")
    return code


def _not_needed(code: str) -> str:
    if code in _NEVER_LEFT_OUT:
        raise ValueError(f"{code!r} cannot be left out: it keeps the result from being misread")
    return code


def _known(path: str) -> str:
    if path not in KNOWN_VALUES:
        raise ValueError(f"{path!r} is no known value: {', '.join(KNOWN_VALUES)}")
    return path


Plain = Annotated[str, AfterValidator(_one_line)]
PlainOrEmpty = Annotated[str, AfterValidator(_plain)]
ObservationCode = Annotated[str, AfterValidator(_observation)]
KnownPath = Annotated[str, AfterValidator(_known)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PatientMapping(_Section):
    """PID-3.

    Attributes:
        numbers: those of the images only, or also those that the imaging order named.
        authorities: PID-3.4 for each issuer of a number, "" for one that names none; others stay.
        type: PID-3.5 of the number on the images.
    """

    numbers: Literal["images", "all"] = "images"
    authorities: Mapping[str, Plain] = Field(default_factory=dict)
    type: Plain = "MR"


class ObservationsMapping(_Section):
    """OBX.

    Attributes:
        send: all; only those of the study as a whole; or one text, the impression.
        lines: the impression as repetitions of OBX-5 (TX), as one formatted text (FT, ``\\.br\\``),
            or, where it is all that is sent, each line as an OBX of its own.
        leave_out: by their codes.
        codes: OBX-3 in place of Phoi's own: code, text, coding system.
    """

    send: Literal["all", "summary", "text"] = "all"
    lines: Literal["repetitions", "breaks", "observations"] = "repetitions"
    leave_out: frozenset[Annotated[ObservationCode, AfterValidator(_not_needed)]] = frozenset()
    codes: Mapping[ObservationCode, tuple[Plain, Plain, Plain]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> ObservationsMapping:
        if self.lines == "observations" and self.send != "text":
            raise ValueError('lines = "observations" needs send = "text"')
        told = Counter(self._identity(term) for term in ALL_OBSERVED)
        for (code, system), times in told.items():
            if times > 1:
                raise ValueError(f"codes: two observations would have code {code} of {system}")
        return self

    def _identity(self, term: Term) -> tuple[str, str]:
        code, _, system = self.codes.get(term.code, (term.code, "", term.scheme.designator))
        return code, system


class FlagMapping(_Section):
    """OBX-8 in place of A and AA (table 0078): never empty, never normal."""

    A: Literal["A", "AA", "H", "HH"] = "A"
    AA: Literal["A", "AA", "H", "HH"] = "AA"


class MessageMapping(_Section):
    """What a hospital wants otherwise.

    Attributes:
        version: MSH-12; 2.3.1 leaves out what that version does not have.
        language: of texts; codes have the same meaning in either.
        preliminary: tell results before a person has signed them.
        leave_out: whole segments, and fields.
        constants: for each field a text or its components, for each component a text.
        values: for each field or component, one of ``KNOWN_VALUES``. Where it is not known, the
            field stays as it was.
    """

    version: Hl7Version = Hl7Version.V2_5_1
    language: Literal["vi", "en", "both"] = "both"
    preliminary: bool = True
    leave_out: frozenset[str] = frozenset()
    constants: Mapping[str, Plain | tuple[PlainOrEmpty, ...]] = Field(default_factory=dict)
    values: Mapping[str, KnownPath] = Field(default_factory=dict)
    patient: PatientMapping = PatientMapping()
    observations: ObservationsMapping = ObservationsMapping()
    flags: FlagMapping = FlagMapping()

    @model_validator(mode="after")
    def _changes_can_be_made(self) -> MessageMapping:
        for place in self.left_out:
            require_optional(place)
        for place, values in self.constant_places.items():
            require_constant(place, values)
        for place, path in self.value_places.items():
            _require_value(place, path)
        self._require_one_change()
        return self

    def _require_one_change(self) -> None:
        changed = [*self.constant_places, *self.value_places]
        for place, times in Counter(changed).items():
            if times > 1:
                raise ValueError(f"{place} is in constants and in values")
            if place.segment in self.leave_out or place.whole in self.leave_out:
                raise ValueError(f"{place} is in leave_out, and changed as well")

    @cached_property
    def segments_left_out(self) -> frozenset[str]:
        """Names of segments."""
        not_there = SEGMENTS_OF_2_5 if self.version is Hl7Version.V2_3_1 else frozenset()
        return (self.leave_out & OPTIONAL_SEGMENTS) | not_there

    @cached_property
    def left_out(self) -> tuple[Place, ...]:
        """Fields."""
        return tuple(
            Place.parse(written, self.version)
            for written in sorted(self.leave_out - OPTIONAL_SEGMENTS)
        )

    @cached_property
    def constant_places(self) -> Mapping[Place, tuple[str, ...]]:
        """Components by place; of a component, one."""
        return {
            Place.parse(written, self.version): (said,) if isinstance(said, str) else said
            for written, said in self.constants.items()
        }

    @cached_property
    def value_places(self) -> Mapping[Place, str]:
        """Names of known values by place."""
        return {Place.parse(written, self.version): path for written, path in self.values.items()}


def _require_value(place: Place, path: str) -> None:
    require_changeable(place)
    value = KNOWN_VALUES[path]
    if place.segment not in value.segments:
        raise ValueError(f"{place}: {path} may not stand in {place.segment}")
    if holds_number(place) and not value.is_number:
        numbers = ", ".join(path for path, known in KNOWN_VALUES.items() if known.is_number)
        raise ValueError(f"{place}: {path} is no number of its own for each: {numbers}")
    if place.component and value.is_name:
        raise ValueError(f"{place}: {path} fills a whole field: write {place.whole}")


def site_mapping(settings: Hl7Settings) -> MessageMapping:
    """The mapping that the settings name; one that changes nothing where they name none.

    Raises:
        SettingsError: as ``read_mapping``.
    """
    return read_mapping(settings.mapping) if settings.mapping else MessageMapping()


def read_mapping(path: Path) -> MessageMapping:
    """Read and check a site's mapping.

    Raises:
        SettingsError: no such file, not TOML, or something that cannot be; the text says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"{path}: the mapping of [hl7] cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8") from None
    return parse_mapping(text, str(path))


def parse_mapping(text: str, name: str) -> MessageMapping:
    """As ``read_mapping``, of a text; ``name`` says whose it is.

    Raises:
        SettingsError: not TOML, or something that cannot be; the text says which.
    """
    try:
        return MessageMapping(**tomllib.loads(text))
    except RecursionError:
        raise SettingsError(f"{name}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{name}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(f"{name}: {line}" for line in _lines(error))) from None


def _lines(error: ValidationError) -> Iterable[str]:
    for told in error.errors():
        where = ".".join(str(part) for part in told["loc"])
        what = told["msg"].removeprefix("Value error, ")
        yield f"{where}: {what}" if where else what
