"""The site's policy of priorities: the first rule that fits, and never less than was ordered."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.priority_policy import (
    AS_SUGGESTED,
    URGENCY,
    PriorityPolicy,
    Rule,
    preview,
    preview_lines,
    read_policy,
)
from phoi_edge_node.reported import stated_priority, told_priority
from phoi_edge_node.result import (
    Completeness,
    Outcome,
    Priority,
    ToldPriority,
    TriageResult,
)
from support.cases import case, nodule, result

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "map-priorities.md"
STAT, URGENT, ROUTINE = Priority.STAT, Priority.URGENT, Priority.ROUTINE
"""Monday 23 November 2026, 10:00 in Viet Nam."""
MONDAY = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def of(outcome: Outcome = Outcome.POSITIVE, at: datetime = MONDAY) -> TriageResult:
    return replace(result(outcome), analysed_at=at)


def policy(**rule: object) -> PriorityPolicy:
    made = Rule.model_validate({"name": "r", "tell": "stat"} | rule)
    return PriorityPolicy(time_zone="Asia/Ho_Chi_Minh", rules=(made,))


@pytest.mark.parametrize(
    ("outcome", "priority"),
    [
        (Outcome.POSITIVE, URGENT),
        (Outcome.NEGATIVE, ROUTINE),
        (Outcome.LIMITED, ROUTINE),
        (Outcome.NOT_ANALYSABLE, None),
        (Outcome.FAILED, None),
    ],
)
def test_without_rules_the_suggestion_is_told(outcome: Outcome, priority: Priority | None) -> None:
    assert AS_SUGGESTED.told(of(outcome), None) == ToldPriority(priority)


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({}, True),
        ({"suggested": ["urgent"]}, True),
        ({"suggested": ["routine", "stat"]}, False),
        ({"outcome": ["positive"]}, True),
        ({"outcome": ["failed"]}, False),
        ({"lung_rads": ["4A", "4B"]}, True),
        ({"lung_rads": ["2"]}, False),
        ({"completeness": ["unconfirmed"]}, False),
        ({"ordered": ["unknown"]}, True),
        ({"ordered": ["stat"]}, False),
        ({"hours": "08:00-18:00"}, True),
        ({"hours": "10:00-10:01"}, True),
        ({"hours": "18:00-10:00"}, False),
        ({"hours": "22:00-10:01"}, True),
        ({"days": ["monday"]}, True),
        ({"days": ["sunday", "tuesday"]}, False),
        ({"days": ["monday"], "outcome": ["negative"]}, False),
    ],
)
def test_a_rule_fits_where_everything_that_it_names_fits(
    when: dict[str, object], *, fits: bool
) -> None:
    told = policy(when=when).told(of(), None)
    assert told == (ToldPriority(STAT, "r") if fits else ToldPriority(URGENT))


def test_the_first_rule_that_fits_counts() -> None:
    rules = (
        Rule(name="never", when={"outcome": ["failed"]}, tell="stat"),  # type: ignore[arg-type]
        Rule(name="first", when={"outcome": ["positive"]}, tell="routine"),  # type: ignore[arg-type]
        Rule(name="second", tell="stat"),
    )
    assert PriorityPolicy(rules=rules).told(of(), None) == ToldPriority(ROUTINE, "first")


@given(
    tell=st.sampled_from(["routine", "urgent", "stat", "suggested"]),
    ordered=st.sampled_from(URGENCY),
    outcome=st.sampled_from(Outcome),
)
def test_an_order_is_never_lowered(tell: str, ordered: Priority, outcome: Outcome) -> None:
    for one in (policy(tell=tell), AS_SUGGESTED):
        told = one.told(of(outcome), ordered)
        if told.priority is None:
            assert outcome in {Outcome.NOT_ANALYSABLE, Outcome.FAILED}
        else:
            assert URGENCY.index(told.priority) >= URGENCY.index(ordered)


def test_an_order_is_lowered_where_the_policy_says_so_plainly() -> None:
    told = policy(tell="routine", may_lower_order=True).told(of(), STAT)
    assert told == ToldPriority(ROUTINE, "r")


def test_what_only_the_order_asked_for_is_told_on_and_not_stated_as_suggested() -> None:
    told = AS_SUGGESTED.applied(of(Outcome.NEGATIVE), STAT)
    assert told.told_priority == ToldPriority(STAT, "", as_ordered=True)
    reported = replace(case(), result=told, review=None)
    assert told_priority(reported) is STAT
    assert stated_priority(reported) is None


def test_a_rule_may_tell_of_what_could_not_be_analysed() -> None:
    reported = replace(case(), result=policy(tell="urgent").applied(of(Outcome.FAILED), None))
    assert told_priority(reported) is URGENT
    nothing = replace(case(), result=policy(tell="nothing").applied(of(), STAT))
    assert told_priority(nothing) is None


def test_it_is_stored_with_the_result_and_older_results_have_none() -> None:
    told = policy().applied(of(), None)
    assert from_json(to_json(told), TriageResult).told_priority == ToldPriority(STAT, "r")
    older = re.sub(r', "told_priority": \{[^}]*\}', "", to_json(told))
    assert from_json(older, TriageResult).told_priority is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rules = 3", "rules: Input should be a valid tuple"),
        ('[[rules]]\nname = "a"', "rules.0.tell: Field required"),
        ('[[rules]]\nname = "A b"\ntell = "stat"', "rules.0.name: String should match"),
        ('[[rules]]\nname = "a"\ntell = "asap"', "rules.0.tell: Input should be"),
        ('[[rules]]\nname = "a"\ntell = "stat"\nwhen = { size = 3 }', "rules.0.when.size: Extra"),
        (
            '[[rules]]\nname = "a"\ntell = "stat"\nwhen = { days = [] }',
            "an empty list fits nothing",
        ),
        ('[[rules]]\nname = "a"\ntell = "stat"\nwhen = { hours = "24:00-01:00" }', "should match"),
        ('[[rules]]\nname = "a"\ntell = "stat"\n' * 2, "rule a fits everything|of the same name"),
        ('[[rules]]\nname="a"\ntell="stat"\n[[rules]]\nname="b"\ntell="stat"', "a fits everything"),
        ('time_zone = "Mars/Base"', "no such time zone"),
        ("rules = [", "not valid TOML"),
        ("a = " + 3000 * "[" + 3000 * "]", "nested too deeply"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_plainly(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "priorities.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        read_policy(file)


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_policy(tmp_path / "nowhere.toml")
    assert read_policy(None) == AS_SUGGESTED


def test_a_dry_run_counts_and_names_what_would_change() -> None:
    results = [(of(), None), (of(Outcome.NEGATIVE), None), (of(Outcome.NEGATIVE), STAT)]
    lines = preview_lines(preview(policy(when={"outcome": ["positive"]}), results))
    uid = of().identity.study_instance_uid
    assert lines == (
        "3 results looked at; nothing was changed",
        "told        before   after",
        "stat             0       2",
        "urgent           1       0",
        "routine          2       1",
        "nothing          0       0",
        "1 by rule r",
        "1 by suggestion",
        "1 by suggestion, raised to the order's",
        "2 would be told otherwise",
        f"{uid}: urgent -> stat (rule r)",
        f"{uid}: routine -> stat (suggestion, raised to the order's)",
    )


# --- the policies of the guide -------------------------------------------------------------------


def of_the_guide(number: int, folder: Path) -> PriorityPolicy:
    blocks = [b for b in re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.S) if "rules" in b]
    (folder / "priorities.toml").write_text(blocks[number])
    return read_policy(folder / "priorities.toml")


def test_the_guide_around_the_clock(tmp_path: Path) -> None:
    guide = of_the_guide(0, tmp_path)
    assert guide.told(of(Outcome.FAILED), None) == ToldPriority(URGENT, "doubtful-at-once")
    unconfirmed = replace(of(Outcome.LIMITED), completeness=Completeness.UNCONFIRMED)
    assert guide.told(unconfirmed, None) == ToldPriority(URGENT, "incomplete-study")
    assert guide.told(unconfirmed, STAT) == ToldPriority(STAT, "incomplete-study", as_ordered=True)
    assert guide.told(of(Outcome.NEGATIVE), None) == ToldPriority(ROUTINE)


def test_the_guide_by_day(tmp_path: Path) -> None:
    guide = of_the_guide(1, tmp_path)
    night = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)  # 20:00 in Viet Nam
    sunday = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
    assert guide.told(of(), None) == ToldPriority(URGENT)
    assert guide.told(of(at=night), None) == ToldPriority(ROUTINE, "night")
    assert guide.told(of(at=sunday), None) == ToldPriority(ROUTINE, "sunday")
    assert guide.told(of(at=sunday), URGENT).priority is URGENT
    large = replace(of(at=night), nodules=(nodule(1, diameter_mm=18.0),))
    assert guide.told(large, None) == ToldPriority(URGENT), "nobody tells it anew in the morning"
    assert guide.told(of(Outcome.FAILED, at=night), None) == ToldPriority(None)
    assert guide.told(of(Outcome.NEGATIVE), ROUTINE) == ToldPriority(None, "screening-list")
