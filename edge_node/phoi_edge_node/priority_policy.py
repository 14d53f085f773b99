"""The site's own policy: which priority is told outward of a result. Pure.

An AI knows its finding and cannot know a study's place on the worklist; the site does. Its policy
is a list of named rules, the first that fits counts, and where none fits the suggestion is told as
it is. Whatever a rule says, the priority that a doctor ordered is never lowered, unless the rule
says so in plain words. See docs/how-to/map-priorities.md.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, time
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from phoi_edge_node.errors import SettingsError
from phoi_edge_node.result import Completeness, Outcome, Priority, ToldPriority, TriageResult
from phoi_edge_node.triage import NOTHING_KNOWN

URGENCY = (Priority.ROUTINE, Priority.URGENT, Priority.STAT)
"""From the lowest."""

_CATEGORIES = ("2", "3", "4A", "4B")  # of provisional Lung-RADS, from the least
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Ordered(StrEnum):
    """What the order asks for."""

    ROUTINE = "routine"
    URGENT = "urgent"
    STAT = "stat"
    UNKNOWN = "unknown"  # there is no order, or it does not say


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class When(_Part):
    """What a rule asks for: everything that it names; of each, one of what it lists.

    Attributes:
        suggested: priorities as the result suggests them.
        outcome: outcomes.
        lung_rads: provisional categories by size of the most important nodule.
        completeness: how it is known that the study was whole.
        ordered: the order's own priority.
        hours: local time of the result, "HH:MM-HH:MM", the end not included; may go over midnight.
        days: days of the week, local.
    """

    suggested: frozenset[Priority] | None = None
    outcome: frozenset[Outcome] | None = None
    lung_rads: frozenset[Literal["2", "3", "4A", "4B"]] | None = None
    completeness: frozenset[Completeness] | None = None
    ordered: frozenset[Ordered] | None = None
    hours: str | None = Field(
        default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
    )
    days: (
        frozenset[
            Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
        ]
        | None
    ) = None

    @field_validator("*")
    @classmethod
    def _something_is_listed(cls, value: object) -> object:
        if value == frozenset():
            raise ValueError("an empty list fits nothing: leave it out")
        return value

    def fits(self, result: TriageResult, ordered: Priority | None, local: datetime) -> bool:
        """Does a result fit?"""
        asked = (
            (self.suggested, result.suggested_priority),
            (self.outcome, result.outcome),
            (self.lung_rads, _worst_category(result)),
            (self.completeness, result.completeness),
            (self.ordered, Ordered(ordered or "unknown")),
            (self.days, _DAYS[local.weekday()]),
        )
        return all(wanted is None or value in wanted for wanted, value in asked) and (
            self.hours is None or _within(self.hours, local.time())
        )


class Rule(_Part):
    """One rule.

    Attributes:
        name: shown on the study's page.
        tell: what is told; "suggested" as it is, "nothing" no priority at all.
        may_lower_order: it may tell less than the order asks for.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    when: When = When()
    tell: Literal["routine", "urgent", "stat", "suggested", "nothing"]
    may_lower_order: bool = False

    def priority(self, result: TriageResult) -> Priority | None:
        """What it makes of a result that fits."""
        if self.tell == "suggested":
            return _suggestion(result)
        return None if self.tell == "nothing" else Priority(self.tell)


class PriorityPolicy(_Part):
    """All rules of a site, in their order.

    Attributes:
        time_zone: IANA name, for ``hours`` and ``days``; "": this machine's.
    """

    time_zone: str = ""
    rules: tuple[Rule, ...] = ()

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            if name:
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError("no such time zone, for example Asia/Ho_Chi_Minh") from None
        return name

    @model_validator(mode="after")
    def _each_rule_may_fit(self) -> Self:
        names = Counter(rule.name for rule in self.rules)
        if twice := [name for name, number in names.items() if number > 1]:
            raise ValueError(f"rules of the same name: {', '.join(twice)}")
        for rule in self.rules[:-1]:
            if rule.when == When():
                raise ValueError(f"rule {rule.name} fits everything: no rule after it is asked")
        return self

    def told(self, result: TriageResult, ordered: Priority | None) -> ToldPriority:
        """What is told outward of a result that no person has read yet.

        Args:
            ordered: the priority of the order behind the study; None where none is known.
        """
        local = self._local(result.analysed_at)
        rule = next((r for r in self.rules if r.when.fits(result, ordered, local)), None)
        if rule is None:
            return _at_least(ToldPriority(_suggestion(result)), ordered)
        told = ToldPriority(rule.priority(result), rule.name)
        if rule.may_lower_order or rule.tell == "nothing":
            return told
        return _at_least(told, ordered)

    def applied(self, result: TriageResult, ordered: Priority | None) -> TriageResult:
        """The result with what is told of it."""
        return replace(result, told_priority=self.told(result, ordered))

    def _local(self, at: datetime) -> datetime:
        return at.astimezone(ZoneInfo(self.time_zone) if self.time_zone else None)


AS_SUGGESTED = PriorityPolicy()
"""Where a site has none of its own."""


def read_policy(path: Path | None) -> PriorityPolicy:
    """The policy in a TOML file; that of no rules where there is no file to be read.

    Raises:
        SettingsError: it cannot be read, or says what cannot be; the text says which.
    """
    if path is None:
        return AS_SUGGESTED
    try:
        return PriorityPolicy(**tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
            for e in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from None


@dataclass(frozen=True)
class Previewed:
    """What a policy would have told of a past result.

    Attributes:
        before: as it was told, or would have been without a policy.
    """

    study_instance_uid: str
    before: ToldPriority
    after: ToldPriority

    @property
    def changes(self) -> bool:
        """Would something else be told?"""
        return self.before.priority is not self.after.priority


def preview(
    policy: PriorityPolicy, results: Iterable[tuple[TriageResult, Priority | None]]
) -> tuple[Previewed, ...]:
    """A dry run over past results, each with its order's priority."""
    return tuple(
        Previewed(
            result.identity.study_instance_uid,
            result.told_priority or AS_SUGGESTED.told(result, None),
            policy.told(result, ordered),
        )
        for result, ordered in results
    )


def preview_lines(previewed: tuple[Previewed, ...]) -> tuple[str, ...]:
    """A dry run in words: how many of each before and after, by which rule, and what changes."""
    before = Counter(_word(p.before.priority) for p in previewed)
    after = Counter(_word(p.after.priority) for p in previewed)
    words = [*(priority.value for priority in reversed(URGENCY)), _word(None)]
    rules = Counter(why(p.after) for p in previewed)
    changing = [p for p in previewed if p.changes]
    return (
        f"{len(previewed)} results looked at; nothing was changed",
        f"{'told':<10}{'before':>8}{'after':>8}",
        *(f"{word:<10}{before[word]:>8}{after[word]:>8}" for word in words),
        *(f"{number} by {reason}" for reason, number in rules.most_common()),
        f"{len(changing)} would be told otherwise",
        *(
            f"{p.study_instance_uid}: {_word(p.before.priority)} -> {_word(p.after.priority)} "
            f"({why(p.after)})"
            for p in changing
        ),
    )


def why(told: ToldPriority) -> str:
    """Why this priority is told, one English clause."""
    reason = f"rule {told.rule}" if told.rule else "suggestion"
    return f"{reason}, raised to the order's" if told.as_ordered else reason


def _word(priority: Priority | None) -> str:
    return priority.value if priority else "nothing"


def _suggestion(result: TriageResult) -> Priority | None:
    return None if result.outcome in NOTHING_KNOWN else result.suggested_priority


def _at_least(told: ToldPriority, ordered: Priority | None) -> ToldPriority:
    """Never less than was ordered. Nothing told leaves the order's priority as it is."""
    if ordered is None or told.priority is None:
        return told
    if URGENCY.index(told.priority) >= URGENCY.index(ordered):
        return told
    return replace(told, priority=ordered, as_ordered=True)


def _worst_category(result: TriageResult) -> str:
    """The highest provisional category of its nodules; "" where there is none."""
    found = [nodule.size_class.lung_rads for nodule in result.nodules]
    return max(found, key=_CATEGORIES.index, default="")


def _within(hours: str, at: time) -> bool:
    first, last = (time.fromisoformat(part) for part in hours.split("-"))
    return first <= at < last if first < last else at >= first or at < last
