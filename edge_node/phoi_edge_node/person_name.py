"""DICOM person names, taken apart (PS3.5 6.2.1). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from phoi_edge_node.terms import plain_text


@dataclass(frozen=True)
class PersonName:
    """The five components of a name, "" where there is none."""

    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""

    @property
    def text(self) -> str:
        """The name as it is written in Viet Nam: family, middle, given."""
        return " ".join(part for part in (self.family, self.middle, self.given) if part)


def person_name(value: str) -> PersonName:
    """Take a DICOM PN value apart: its first component group that is not empty.

    Never fails: what has no carets is a family name, as PS3.5 has it; parts beyond the fifth are
    dropped.
    """
    groups = [group for group in value.split("=") if group.strip("^ ")]
    parts = [plain_text(part) for part in groups[0].split("^")] if groups else []
    return PersonName(*parts[:5])
