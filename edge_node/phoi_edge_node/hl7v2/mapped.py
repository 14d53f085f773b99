"""A mapping applied: to segments that are built, and to what is observed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from phoi_edge_node.hl7v2.fields import OutgoingSegment, components, repeated, text
from phoi_edge_node.hl7v2.known_values import KNOWN_VALUES, Components
from phoi_edge_node.hl7v2.mapping import MessageMapping
from phoi_edge_node.hl7v2.observations import DELETED, Lines, Observation
from phoi_edge_node.hl7v2.places import FIELDS, Hl7Version, Place
from phoi_edge_node.ports import ReportedCase
from phoi_edge_node.terms import OUTCOME_OF_TRIAGE, Term

_LINE_BREAK = "\\.br\\"  # chapter 2.7.6; in FT only


@dataclass(frozen=True)
class Changes:
    """What a mapping changes in the segments of one case.

    Attributes:
        site: its name in the settings.
    """

    mapping: MessageMapping
    case: ReportedCase
    site: str

    def apply(self, segments: Iterable[OutgoingSegment]) -> Iterator[OutgoingSegment]:
        """The segments that are sent, as they are sent."""
        for segment in segments:
            if segment.name not in self.mapping.segments_left_out:
                yield self._changed(segment)

    def _changed(self, segment: OutgoingSegment) -> OutgoingSegment:
        last = FIELDS[self.mapping.version].get(segment.name, max(segment.fields, default=0))
        fields = {n: value for n, value in segment.fields.items() if n <= last}
        for place in self.mapping.left_out:
            if place.segment == segment.name:
                fields.pop(place.field, None)
        for place, said in sorted(self._said().items()):  # a field before its components
            if place.segment == segment.name and _is_known(place, said):
                fields[place.field] = _put(fields.get(place.field, ""), place.component, said)
        return OutgoingSegment(segment.name, fields)

    def _said(self) -> dict[Place, Components]:
        known = {
            place: KNOWN_VALUES[path].of(self.case, self.site)
            for place, path in self.mapping.value_places.items()
        }
        return {**known, **self.mapping.constant_places}


def _is_known(place: Place, said: Components) -> bool:
    """Is there anything to put there? What is not known must not blank what is."""
    return any(said[:1] if place.component else said)


def _put(field: str, component: int, said: Components) -> str:
    if not component:
        return components(*said)
    first, *others = field.split("~")
    parts = first.split("^")
    parts += [""] * (component - len(parts))
    parts[component - 1] = text(said[0])
    return repeated("^".join(parts).rstrip("^"), *others)


def chosen(
    items: Iterable[Observation], mapping: MessageMapping, lines_told: int
) -> Iterator[Observation]:
    """What of all that is observed is sent, with the flags of the mapping.

    Args:
        lines_told: how many lines an earlier impression had; those beyond are deleted.
    """
    for item in _selected(tuple(items), mapping, lines_told):
        flags = {"A": mapping.flags.A, "AA": mapping.flags.AA}
        # 2.3.1 has OBX-4 as required.
        sub_id = item.sub_id or ("0" if mapping.version is Hl7Version.V2_3_1 else "")
        yield replace(item, flag=flags.get(item.flag, item.flag), sub_id=sub_id)


def _selected(
    items: Sequence[Observation], mapping: MessageMapping, lines_told: int
) -> Iterable[Observation]:
    wanted = mapping.observations
    if wanted.send == "text":
        return _as_text(items, mapping, lines_told)
    return (
        item
        for item in items
        if item.term.code not in wanted.leave_out and not (wanted.send == "summary" and item.sub_id)
    )


def _as_text(
    items: Sequence[Observation], mapping: MessageMapping, lines_told: int
) -> Iterator[Observation]:
    """The impression, flagged as the outcome is: all that is told of it."""
    outcome = next(item for item in items if item.term == OUTCOME_OF_TRIAGE)
    told, lines = next((item, item.value) for item in items if isinstance(item.value, Lines))
    told = replace(told, flag=outcome.flag)
    if mapping.observations.lines != "observations":
        yield told
        return
    now = worded(lines, mapping)
    for number, line in enumerate(now, start=1):
        yield replace(told, value=line, sub_id=str(number))
    before = lines_told * (2 if mapping.language == "both" else 1)
    for number in range(len(now) + 1, before + 1):
        yield replace(told, value="", flag="", status=DELETED, sub_id=str(number))


def worded(lines: Lines, mapping: MessageMapping) -> tuple[str, ...]:
    """In the language of the mapping, Vietnamese first."""
    english = tuple(en for en, _ in lines.lines)
    vietnamese = tuple(vi for _, vi in lines.lines)
    return {"en": english, "vi": vietnamese, "both": vietnamese + english}[mapping.language]


def observation_code(term: Term, mapping: MessageMapping) -> str:
    """OBX-3."""
    local = mapping.observations.codes.get(term.code)
    if local:
        return components(*local)
    return components(
        term.code, term.vi if mapping.language == "vi" else term.en, term.scheme.designator
    )


def observed_value(item: Observation, mapping: MessageMapping) -> tuple[str, str]:
    """OBX-2 and OBX-5."""
    old = mapping.version is Hl7Version.V2_3_1
    match item.value:
        case Term() as term:
            return ("CE" if old else "CWE"), _coded(term, mapping)
        case Lines() as lines if mapping.observations.lines == "breaks":
            return "FT", _LINE_BREAK.join(map(text, worded(lines, mapping)))
        case Lines() as lines:
            return "TX", repeated(*map(text, worded(lines, mapping)))
        case str() as plain:
            known_type = "CE" if old and item.value_type == "CWE" else item.value_type
            return known_type, text(plain)


def _coded(term: Term, mapping: MessageMapping) -> str:
    """CWE, with the Vietnamese as original text (CWE.9); CE has it as alternate text."""
    system = term.scheme.designator
    if mapping.language != "both":
        return components(term.code, term.vi if mapping.language == "vi" else term.en, system)
    if mapping.version is Hl7Version.V2_3_1:
        return components(term.code, term.en, system, term.code, term.vi, system)
    return components(term.code, term.en, system, "", "", "", "", "", term.vi)
