"""Recalls, for administrators: which results, what becomes of them, and how far each recall is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Query
from fastapi.responses import RedirectResponse, Response

from phoi_edge_node.recalled import RecallCriteria, RecallError, RecallRequest
from phoi_edge_node.web.visitor import Administrator, Member, PostingAdministrator

router = APIRouter(prefix="/recalls")

LIMIT = 300

Model = Annotated[str, Query(pattern=r"^([A-Za-z0-9._-]{1,128}(@[A-Za-z0-9._+-]{1,64})?)?$")]
ModelField = Annotated[str, Form(pattern=r"^([A-Za-z0-9._-]{1,128}(@[A-Za-z0-9._+-]{1,64})?)?$")]


@dataclass(frozen=True)
class _Filled:
    """What was filled in, to be given back where it is refused."""

    replacement: str = ""
    reason: str = ""
    pause: bool = True


@router.get("")
def recalls(
    member: Administrator,
    model: Model = "",
    first: str = "",
    last: str = "",
    calling_ae: Annotated[str, Query(max_length=16)] = "",
    *,
    signed: bool = False,
    redo: bool = False,
) -> Response:
    """What was recalled, and the results that fit what is asked for."""
    asked = _asked(model, first, last, calling_ae)
    member.web.desk.log_access(member.account.username, "view_recalls", None, model)
    return _render(member, asked, signed=signed, redo=redo)


@router.post("")
def recall(
    member: PostingAdministrator,
    confirmed: Annotated[str, Form(max_length=300)] = "",
    reason: Annotated[str, Form(max_length=500)] = "",
    model: ModelField = "",
    first: Annotated[str, Form()] = "",
    last: Annotated[str, Form()] = "",
    calling_ae: Annotated[str, Form(max_length=16)] = "",
    replacement: Annotated[str, Form(max_length=200)] = "",
    *,
    signed: Annotated[bool, Form()] = False,
    pause: Annotated[bool, Form()] = False,
) -> Response:
    """Recall what is listed, once its name was typed."""
    asked = _asked(model, first, last, calling_ae)
    filled = _Filled(replacement.strip(), reason.strip(), pause)
    criteria = _criteria(asked)
    refused = ""
    if criteria is None or confirmed.strip() != _name(asked):
        refused = "confirm"
    elif not filled.reason:
        refused = "reason"
    else:
        try:
            request = RecallRequest(
                criteria, filled.reason, member.account.username, signed, filled.replacement, pause
            )
        except RecallError:
            refused = "replacement"
        else:
            member.web.desk.recalls.ask(request)
            return RedirectResponse("/recalls", 303)
    redo = bool(filled.replacement)
    return _render(member, asked, filled, signed=signed, redo=redo, refused=refused)


def _render(
    member: Member,
    asked: tuple[str, str, str, str],
    filled: _Filled = _Filled(),
    *,
    signed: bool,
    redo: bool,
    refused: str = "",
) -> Response:
    book = member.web.desk.recalls
    criteria = _criteria(asked)
    results = book.recallable(criteria, signed_too=signed, redo=redo) if criteria else ()
    model, first, last, calling_ae = asked
    return member.page(
        "recalls.html",
        422 if refused else 200,
        models=book.models(),
        asked={"model": model, "first": first, "last": last, "calling_ae": calling_ae},
        signed=signed,
        redo=redo,
        name=_name(asked),
        results=results[:LIMIT],
        counts=Counter(result.action.value for result in results),
        total=len(results),
        truncated=len(results) > LIMIT,
        limit=LIMIT,
        unknown=book.unknown_senders() if calling_ae else 0,
        recalls=book.recalls(),
        chosen=criteria is not None,
        refused=refused,
        filled=filled,
    )


def _asked(*parts: str) -> tuple[str, str, str, str]:
    """Model, first and last day, and sender; spaces around them mean nothing."""
    model, first, last, calling_ae = (part.strip() for part in parts)
    return model, first, last, calling_ae


def _name(asked: tuple[str, str, str, str]) -> str:
    """What an administrator types to show that this, and nothing else, is meant."""
    return " ".join(part for part in asked if part)


def _criteria(asked: tuple[str, str, str, str]) -> RecallCriteria | None:
    """None where nothing is asked for. Days are this machine's own."""
    model, first, last, calling_ae = asked
    if not any(asked):
        return None
    name, _, version = model.partition("@")
    try:
        return RecallCriteria(
            model_name=name,
            model_version=version,
            since=_midnight(first) if first else None,
            until=_midnight(last, days_later=1) if last else None,
            calling_ae_title=calling_ae,
        )
    except (RecallError, ValueError, OverflowError):
        raise HTTPException(422) from None


def _midnight(day: str, days_later: int = 0) -> datetime:
    at = date.fromisoformat(day) + timedelta(days=days_later)
    return datetime.combine(at, time()).astimezone()
