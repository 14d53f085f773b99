"""Is a study whole? What is known of it in, what to do next out. Pure: no clock, no network.

DICOM has no end of a study, so the archive is asked how many images each series has. Only series
that we received anything of count: a PACS may route some and keep others. A count holds when it was
given twice, some time apart, since an archive that is still being filled gives a rising one.

An archive that holds fewer images than came here (it gets them later, or keeps back localizers)
lacks nothing of ours, but is no measure either: such a study is judged by its geometry, at once,
rather than held back for a count that may never rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from phoi_edge_node.ports import ArchivedImages
from phoi_edge_node.result import Completeness
from phoi_edge_node.settings import CompletenessSettings

# Fetches that bring nothing, before the archive is left in peace. What brings something may go on.
FRUITLESS_FETCHES = 3


class Standing(StrEnum):
    """How a series here compares with the same in an archive."""

    WHOLE = "whole"
    ARCHIVE_BEHIND = "archive_behind"  # it holds fewer than came here
    MISSING = "missing"
    RENAMED = "renamed"  # it holds more, all under other UIDs: to fetch them would double them
    NOT_LISTED = "not_listed"  # it counts more, but does not list what we lack


@dataclass(frozen=True)
class SeriesAnswer:
    """What an archive says of one series.

    Attributes:
        held: how many images of it the archive holds.
        missing: SOP Instance UIDs of those that are not here.
    """

    held: int
    standing: Standing
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Answer:
    """What all archives together say of one study at one time.

    Attributes:
        series: by Series Instance UID, those that we received anything of.
        by_all: no archive was silent.
    """

    series: Mapping[str, SeriesAnswer]
    by_all: bool = True


@dataclass(frozen=True)
class Knowledge:
    """All that is known of one study while it is counted.

    Attributes:
        waited_s: since receiving began.
        asked_ago_s: since the archives were last asked, whatever came of it; None: never.
        answers: at most the latest two, latest last, all about the same received images.
        can_fetch: some archive may be asked for images.
        fetches: how often it was, since the latest image came.
    """

    waited_s: float
    asked_ago_s: float | None = None
    answers: tuple[Answer, ...] = ()
    can_fetch: bool = False
    fetches: int = 0


@dataclass(frozen=True)
class Ask:
    """Ask the archives now."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do for so long."""

    seconds: float


@dataclass(frozen=True)
class Fetch:
    """Ask for these images, SOP Instance UIDs by Series Instance UID."""

    missing: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Complete:
    """Analyse it. ``how``: BY_GEOMETRY where only its images can tell, once they are read."""

    how: Completeness


Action = Ask | Wait | Fetch | Complete


def compare(received: frozenset[str], held: int, listed: ArchivedImages | None) -> SeriesAnswer:
    """A series here and in an archive.

    Args:
        received: SOP Instance UIDs of the images that are here; none of a series whose images were
            removed by retention.
        held: how many the archive counts.
        listed: asked for only where the archive counts more than are here. Many archives cut a
            long answer, or know no images one by one: only a list of as many as were counted tells
            that what is more is of a kind that we do not take.
    """
    if held < len(received):
        return SeriesAnswer(held, Standing.ARCHIVE_BEHIND)
    if held == len(received) or listed is None:
        return SeriesAnswer(held, Standing.WHOLE)
    missing = listed.sop_instance_uids - received
    if received and missing and missing == listed.sop_instance_uids:
        return SeriesAnswer(held, Standing.RENAMED)
    if missing:
        return SeriesAnswer(held, Standing.MISSING, missing)
    return SeriesAnswer(held, Standing.WHOLE if listed.in_all >= held else Standing.NOT_LISTED)


def together(answers: Sequence[Mapping[str, SeriesAnswer]], silent: int) -> Answer | None:
    """What several archives say together: of each series, the one that holds most of it.

    Args:
        silent: archives that gave no answer.

    Returns:
        None where no archive answered.
    """
    if not answers:
        return None
    series: dict[str, SeriesAnswer] = {}
    for answer in answers:
        for uid, said in answer.items():
            if uid not in series or _telling(said) > _telling(series[uid]):
                series[uid] = said
    return Answer(series, by_all=silent == 0)


def _telling(said: SeriesAnswer) -> tuple[int, bool, bool]:
    """Grows with what an answer tells: how much there is, that it is here, what is not."""
    return said.held, said.standing is Standing.WHOLE, said.standing is Standing.MISSING


def decide(known: Knowledge, settings: CompletenessSettings) -> Action:
    """What to do next with a study that is being counted."""
    agreed = _agreed(known.answers)
    if agreed is not None and (settled := _settled(agreed)) is not None:
        return settled
    if known.waited_s >= settings.limit_s:
        return Complete(Completeness.UNCONFIRMED)
    may_fetch = known.can_fetch and settings.fetch_missing and known.fetches < FRUITLESS_FETCHES
    if may_fetch and agreed is not None and (missing := _missing(agreed)):
        return Fetch(missing)
    if known.asked_ago_s is None or known.asked_ago_s >= settings.ask_every_s:
        return Ask()
    next_question = settings.ask_every_s - known.asked_ago_s
    return Wait(min(next_question, settings.limit_s - known.waited_s))


def _agreed(answers: tuple[Answer, ...]) -> Answer | None:
    """The answer that was given twice."""
    return answers[-1] if len(answers) > 1 and answers[-1] == answers[-2] else None


def _missing(answer: Answer) -> Mapping[str, frozenset[str]]:
    return {uid: said.missing for uid, said in answer.series.items() if said.missing}


def _settled(answer: Answer) -> Complete | None:
    standings = {said.standing for said in answer.series.values()}
    if standings <= {Standing.WHOLE}:
        return Complete(Completeness.CONFIRMED)
    if answer.by_all and standings <= {Standing.WHOLE, Standing.ARCHIVE_BEHIND}:
        return Complete(Completeness.BY_GEOMETRY)
    return None
