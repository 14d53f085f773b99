"""When a study counts as whole: the decision, over every course of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.completeness import (
    FRUITLESS_FETCHES,
    Action,
    Answer,
    Ask,
    Complete,
    Fetch,
    Knowledge,
    SeriesAnswer,
    Standing,
    Wait,
    compare,
    decide,
    together,
)
from phoi_edge_node.ports import ArchivedImages
from phoi_edge_node.result import Completeness
from phoi_edge_node.settings import CompletenessSettings

SETTINGS = CompletenessSettings(ask_every_s=10, limit_s=1800)
WHOLE = Answer({"1.1": SeriesAnswer(3, Standing.WHOLE)})
LACKING = Answer({"1.1": SeriesAnswer(4, Standing.MISSING, frozenset({"1.1.4"}))})
BEHIND = Answer({"1.1": SeriesAnswer(2, Standing.ARCHIVE_BEHIND)})
RENAMED = Answer({"1.1": SeriesAnswer(4, Standing.RENAMED)})
ANSWERS = (WHOLE, LACKING, BEHIND, RENAMED, replace(WHOLE, by_all=False))

answers = st.lists(st.sampled_from(ANSWERS), max_size=2).map(tuple)
knowledge = st.builds(
    Knowledge,
    waited_s=st.floats(0, 4000),
    asked_ago_s=st.none() | st.floats(0, 100),
    answers=answers,
    can_fetch=st.booleans(),
    fetches=st.integers(0, 5),
)


def after(
    *said: Answer, waited_s: float = 60, asked_ago_s: float = 1, fetch: bool = True
) -> Action:
    known = Knowledge(waited_s, asked_ago_s, said[-2:], can_fetch=fetch)
    return decide(known, SETTINGS)


def test_it_asks_at_once_and_then_at_intervals() -> None:
    assert decide(Knowledge(waited_s=30), SETTINGS) == Ask()
    assert after(WHOLE, asked_ago_s=4) == Wait(6)
    assert after(WHOLE, asked_ago_s=10) == Ask()


def test_the_same_count_twice_confirms() -> None:
    assert after(WHOLE, WHOLE) == Complete(Completeness.CONFIRMED)


def test_a_growing_count_does_not() -> None:
    grown = Answer({"1.1": SeriesAnswer(4, Standing.WHOLE)})
    assert after(WHOLE, grown) == Wait(9)


def test_what_is_missing_is_fetched_where_that_is_possible() -> None:
    assert after(LACKING, LACKING) == Fetch({"1.1": frozenset({"1.1.4"})})
    assert after(LACKING, LACKING, fetch=False) == Wait(9)
    told_not_to = SETTINGS.model_copy(update={"fetch_missing": False})
    known = Knowledge(60, 1, (LACKING, LACKING), can_fetch=True)
    assert decide(known, told_not_to) == Wait(9)


def test_an_archive_is_not_asked_for_ever_for_what_does_not_come() -> None:
    known = Knowledge(60, 1, (LACKING, LACKING), can_fetch=True, fetches=FRUITLESS_FETCHES)
    assert decide(known, SETTINGS) == Wait(9)


def test_images_under_other_uids_are_never_fetched() -> None:
    assert after(RENAMED, RENAMED) == Wait(9)


def test_an_archive_that_holds_fewer_leaves_it_to_geometry() -> None:
    assert after(BEHIND, BEHIND) == Complete(Completeness.BY_GEOMETRY)


def test_but_not_while_another_archive_is_silent() -> None:
    half = replace(BEHIND, by_all=False)
    assert after(half, half) == Wait(9)


def test_at_the_limit_it_is_analysed_as_it_is() -> None:
    for said in ((), (LACKING, LACKING), (RENAMED,)):
        assert after(*said, waited_s=1800) == Complete(Completeness.UNCONFIRMED)
    assert after(WHOLE, WHOLE, waited_s=1800) == Complete(Completeness.CONFIRMED)


@given(knowledge)
def test_only_two_equal_answers_that_lack_nothing_confirm(known: Knowledge) -> None:
    whole = len(known.answers) == 2 and known.answers[0] == known.answers[1]
    whole = whole and known.answers[0].series == WHOLE.series
    assert (decide(known, SETTINGS) == Complete(Completeness.CONFIRMED)) is whole


@given(knowledge)
def test_nothing_is_cut_before_the_limit_and_nothing_waits_beyond_it(known: Knowledge) -> None:
    action = decide(known, SETTINGS)
    assert isinstance(action, Complete) or known.waited_s < SETTINGS.limit_s
    if action == Complete(Completeness.UNCONFIRMED):
        assert known.waited_s >= SETTINGS.limit_s
    if isinstance(action, Wait):
        assert 0 < action.seconds <= min(SETTINGS.ask_every_s, SETTINGS.limit_s - known.waited_s)


@given(course=st.lists(st.none() | st.sampled_from(ANSWERS), max_size=300), can_fetch=st.booleans())
def test_every_course_of_answers_ends_by_the_limit(
    *, course: Sequence[Answer | None], can_fetch: bool
) -> None:
    said = iter(course)
    known = Knowledge(waited_s=30, can_fetch=can_fetch)
    for _ in range(2000):
        action = decide(known, SETTINGS)
        if isinstance(action, Complete):
            break
        passed = 0.0
        if isinstance(action, Ask):
            answer = next(said, None)
            kept = (*known.answers, answer)[-2:] if answer else ()
            known = replace(known, answers=kept, asked_ago_s=0.0)
            passed = 0.5
        elif isinstance(action, Fetch):
            known = replace(known, answers=(), fetches=known.fetches + 1)
            passed = 5.0
        else:
            passed = action.seconds
        asked_ago_s = None if known.asked_ago_s is None else known.asked_ago_s + passed
        known = replace(known, waited_s=known.waited_s + passed, asked_ago_s=asked_ago_s)
    assert isinstance(action, Complete)
    assert known.waited_s <= SETTINGS.limit_s + 5


HERE = frozenset({"1", "2", "3"})


@pytest.mark.parametrize(
    ("held", "listed", "expected"),
    [
        (3, None, SeriesAnswer(3, Standing.WHOLE)),
        (2, None, SeriesAnswer(2, Standing.ARCHIVE_BEHIND)),
        (0, None, SeriesAnswer(0, Standing.ARCHIVE_BEHIND)),
        (5, {"1", "2", "3", "4", "5"}, SeriesAnswer(5, Standing.MISSING, frozenset("45"))),
        # The fourth is a screen save, of a kind that we do not take.
        (4, {"1", "2", "3", "no image"}, SeriesAnswer(4, Standing.WHOLE)),
        # The archive cut its list, or knows no images one by one.
        (4, {"1", "2", "3"}, SeriesAnswer(4, Standing.NOT_LISTED)),
        (4, {"1", "no image"}, SeriesAnswer(4, Standing.NOT_LISTED)),
        (4, set(), SeriesAnswer(4, Standing.NOT_LISTED)),
        (5, {"1", "2", "4"}, SeriesAnswer(5, Standing.MISSING, frozenset("4"))),
        (4, {"a", "b", "c", "d"}, SeriesAnswer(4, Standing.RENAMED)),
    ],
)
def test_a_series_here_and_there(
    held: int, listed: set[str] | None, expected: SeriesAnswer
) -> None:
    archived = (
        None if listed is None else ArchivedImages(frozenset(listed - {"no image"}), len(listed))
    )
    assert compare(HERE, held, archived) == expected


def test_what_an_archive_does_not_list_is_never_confirmed() -> None:
    cut = Answer({"1.1": compare(HERE, 300, ArchivedImages(HERE, 3))})
    assert after(cut, cut) == Wait(9)
    assert after(cut, cut, waited_s=1800) == Complete(Completeness.UNCONFIRMED)


def test_of_several_archives_the_fullest_tells() -> None:
    lacking, whole = LACKING.series, WHOLE.series
    assert together([whole, lacking], silent=0) == LACKING
    assert together([lacking, whole], silent=1) == replace(LACKING, by_all=False)
    assert together([], silent=2) is None


def test_of_archives_that_hold_as_much_the_one_that_tells_more() -> None:
    whole, missing, cut = (
        {"1.1": SeriesAnswer(4, standing, frozenset(lacks))}
        for standing, lacks in (
            (Standing.WHOLE, ""),
            (Standing.MISSING, "4"),
            (Standing.NOT_LISTED, ""),
        )
    )
    for answers in ([cut, missing, whole], [whole, missing, cut]):
        assert together(answers, silent=0) == Answer(whole)
    assert together([cut, missing], silent=0) == Answer(missing)
