"""Signing in and out, and the choice of language."""

from __future__ import annotations

import math
import re
import secrets
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from phoi_edge_node.web.security import ANONYMOUS_COOKIE, SESSION_COOKIE, SignInBrake
from phoi_edge_node.web.texts import LANGUAGES
from phoi_edge_node.web.visitor import LANGUAGE_COOKIE, Anyone, Posting, Visitor

router = APIRouter()

_LOCAL_PATH = re.compile(r"(/[A-Za-z0-9._-]+)*/?")


def local_path(path: str) -> str:
    """The path if it leads to a page of ours, else the worklist's: no open redirect."""
    return path if path and _LOCAL_PATH.fullmatch(path) else "/"


@router.get("/login")
def show_sign_in(visitor: Anyone, *, after: str = "/") -> Response:
    """The sign-in form. Its CSRF token is bound to a cookie that it sets."""
    if visitor.account is not None:
        return RedirectResponse(local_path(after), 303)
    if visitor.seed:
        return visitor.page("login.html", after=local_path(after), error="")
    seed = secrets.token_urlsafe(24)
    known = Visitor(visitor.web, None, visitor.language, seed, visitor.path)
    response = known.page("login.html", after=local_path(after), error="")
    _set_cookie(response, visitor, ANONYMOUS_COOKIE, seed)
    return response


@router.post("/login")
def sign_in(
    request: Request,
    visitor: Posting,
    username: Annotated[str, Form(max_length=64)],
    password: Annotated[str, Form(max_length=256)],
    after: Annotated[str, Form()] = "/",
) -> Response:
    """Check the password and start a session."""
    web = visitor.web
    address = request.client.host if request.client else ""
    username = username.strip().lower()
    if not web.brake.open(address, username):
        minutes = math.ceil(SignInBrake.WINDOW_S / 60)
        error = visitor.text("login.too_many", minutes=minutes)
        return visitor.page("login.html", 429, after=local_path(after), error=error)
    with web.sign_ins:
        account = web.desk.authenticate(username, password)
    if account is None:
        web.brake.failed(address, username)
        # What was typed may be a password: it goes into no log.
        web.desk.log_access("", "sign_in_failed", None, f"from {address}")
        error = visitor.text("login.wrong")
        return visitor.page("login.html", 401, after=local_path(after), error=error)
    web.brake.succeeded(address, username)
    web.desk.log_access(account.username, "sign_in", None, f"from {address}")
    response = RedirectResponse(local_path(after), 303)
    _set_cookie(response, visitor, SESSION_COOKIE, web.sessions.issue(account.username))
    response.delete_cookie(ANONYMOUS_COOKIE)
    return response


@router.post("/logout")
def sign_out(visitor: Posting) -> Response:
    """End the session here and on the server."""
    visitor.web.sessions.end(visitor.seed)
    if visitor.account is not None:
        visitor.web.desk.log_access(visitor.account.username, "sign_out", None, "")
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.post("/language")
def choose_language(
    visitor: Posting, language: Annotated[str, Form()], after: Annotated[str, Form()] = "/"
) -> Response:
    """Remember the language in a cookie."""
    response = RedirectResponse(local_path(after), 303)
    if language in LANGUAGES:
        _set_cookie(response, visitor, LANGUAGE_COOKIE, language, max_age=365 * 86400)
    return response


def _set_cookie(
    response: Response, visitor: Visitor, name: str, value: str, max_age: int | None = None
) -> None:
    response.set_cookie(
        name, value, max_age=max_age, httponly=True, samesite="strict", secure=visitor.web.tls
    )
