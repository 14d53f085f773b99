"""The worklist: every study, worst first, updating by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from fastapi import APIRouter
from fastapi.responses import Response

from phoi_edge_node.desk import DONE, WAITING, Phase, WorklistRow
from phoi_edge_node.web.visitor import Member, SignedIn

router = APIRouter()

LIMIT = 300


class Show(StrEnum):
    """Which part of the worklist."""

    OPEN = "open"
    REVIEW = "review"
    WORKING = "working"
    PROBLEMS = "problems"
    SIGNED = "signed"
    ALL = "all"


_PHASES: Mapping[Show, frozenset[Phase]] = {
    Show.OPEN: frozenset(Phase) - DONE,
    Show.REVIEW: frozenset({Phase.READY}),
    Show.WORKING: WAITING,
    Show.PROBLEMS: frozenset({Phase.NOT_ANALYSABLE, Phase.FAILED, Phase.WITHDRAWN}),
    Show.SIGNED: DONE,
    Show.ALL: frozenset(Phase),
}


def shown_by(show: Show, rows: Sequence[WorklistRow]) -> tuple[WorklistRow, ...]:
    """The rows of one part. A study is a problem in every phase where delivery fails,
    or new images came after somebody had signed; one whose signed result was recalled is open too.
    """
    return tuple(row for row in rows if _belongs(show, row))


def _belongs(show: Show, row: WorklistRow) -> bool:
    if row.phase in _PHASES[show]:
        return True
    return (show is Show.PROBLEMS and _is_problem(row)) or (show is Show.OPEN and row.recalled)


def _is_problem(row: WorklistRow) -> bool:
    return row.delivery_problems > 0 or row.changed_after_signing or row.late_images or row.recalled


@router.get("/")
def worklist(member: SignedIn, show: Show = Show.OPEN) -> Response:
    """The page."""
    member.web.desk.log_access(member.account.username, "view_worklist", None, show.value)
    return _render(member, "worklist.html", show)


@router.get("/worklist/rows")
def rows(member: SignedIn, show: Show = Show.OPEN) -> Response:
    """The part of the page that is fetched again every few seconds."""
    return _render(member, "_rows.html", show)


def _render(member: Member, template: str, show: Show) -> Response:
    everything = member.web.desk.worklist(LIMIT)
    return member.page(
        template,
        rows=shown_by(show, everything),
        show=show,
        counts={part: len(shown_by(part, everything)) for part in Show},
        limit=LIMIT,
        truncated=len(everything) >= LIMIT,
    )
