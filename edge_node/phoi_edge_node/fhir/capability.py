"""What a FHIR server says of itself, against what Phoi needs. Pure.

Source: FHIR R4, CapabilityStatement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from phoi_edge_node.fhir.elements import Json

# What ``resources.entries`` writes, by how.
CREATED = ("Device", "ImagingStudy", "Patient", "Provenance")
UPDATED = ("DiagnosticReport", "Observation", "Task")
# R4 and R4B: the resources that Phoi writes are the same in both.
_R4 = re.compile(r"4\.[03](\.[0-9]{1,3})?")


@dataclass(frozen=True)
class Capability:
    """What was read.

    Attributes:
        version: of FHIR.
        transactions: it takes transactions.
        unsaid: what Phoi needs and the statement does not name, one clause each.
    """

    version: str
    transactions: bool
    unsaid: tuple[str, ...]

    @property
    def speaks_r4(self) -> bool:
        """Is it R4, or R4B?"""
        return _R4.fullmatch(self.version) is not None


def read(statement: Json) -> Capability | None:
    """What a CapabilityStatement says; None where it is none."""
    if statement.get("resourceType") != "CapabilityStatement":
        return None
    rest = next((r for r in objects(statement.get("rest")) if r.get("mode") == "server"), {})
    interactions = {i.get("code") for i in objects(rest.get("interaction"))}
    return Capability(
        version=str(statement.get("fhirVersion", "")),
        transactions="transaction" in interactions,
        unsaid=tuple(_unsaid(statement, rest)),
    )


def objects(value: object) -> list[Json]:
    """The JSON objects of a list; none where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _unsaid(statement: Json, rest: Json) -> Iterator[str]:
    formats = statement.get("format")
    if not isinstance(formats, list) or not any("json" in str(form) for form in formats):
        yield "the format json"
    told = {str(r.get("type")): r for r in objects(rest.get("resource"))}
    needed = sorted([*CREATED, *UPDATED])
    if absent := [name for name in needed if name not in told]:
        yield f"the resources {', '.join(absent)}"
    for names, condition, words in (
        (CREATED, "conditionalCreate", "conditional create of"),
        (UPDATED, "conditionalUpdate", "conditional update of"),
    ):
        if lacking := [n for n in names if n in told and told[n].get(condition) is not True]:
            yield f"{words} {', '.join(lacking)}"
