"""What a check says: a code from the catalogue, and what fills its sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from phoi_edge_node.checks.catalogue import CATALOGUE, SUBJECTS, Health, Language


@dataclass(frozen=True)
class Told:
    """A finding in one language.

    Attributes:
        what: was looked at.
        seen: what was found, one clause.
        remedy: what to do, one sentence; "" where nothing.
    """

    health: Health
    what: str
    seen: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        code: stable, a key of the catalogue.
        subject: a key of the catalogue's subjects.
        name: which one of several: the lane of a destination, a setting, a model.
        values: what the catalogue's sentences ask for. Never a patient's.
    """

    code: str
    subject: str
    name: str = ""
    values: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.told(Language.EN)  # a sentence that cannot be filled is found at once

    @property
    def health(self) -> Health:
        """How bad it is."""
        return CATALOGUE[self.code].health

    def told(self, language: Language) -> Told:
        """In words."""
        entry = CATALOGUE[self.code]
        seen, remedy = (text.format_map(self.values) for text in entry.texts(language))
        what = f"{SUBJECTS[self.subject][language]} {self.name}".rstrip()
        return Told(entry.health, what, seen, remedy)


def found(code: str, subject: str, name: str = "", **values: object) -> Finding:
    """A finding, its values by keyword."""
    return Finding(code, subject, name, values)
