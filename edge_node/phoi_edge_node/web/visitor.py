"""Who asks, in which language, and with which rights: the dependencies of every route."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jinja2
from fastapi import Depends, Form, Request
from fastapi.responses import HTMLResponse

from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.desk import WAITING, Desk
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import SiteSettings, WebSettings
from phoi_edge_node.web import present
from phoi_edge_node.web.security import (
    ANONYMOUS_COOKIE,
    SESSION_COOKIE,
    Sessions,
    Signer,
    SignInBrake,
    csrf_token,
)
from phoi_edge_node.web.texts import LANGUAGES, Language, say

LANGUAGE_COOKIE = "phoi_language"
_CONCURRENT_SIGN_INS = 2  # each takes argon2's 64 MiB


class NotSignedIn(Exception):
    """The page needs a person; the handler leads to the sign-in form."""


class Forbidden(Exception):
    """The person may not do this, or the form is not from a page of ours.

    Attributes:
        text: key of the text that says so.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, eq=False)
class Web:
    """What all routes share; ``app.state.web``."""

    desk: Desk
    settings: WebSettings
    site: SiteSettings
    clock: Clock
    sessions: Sessions
    brake: SignInBrake
    csrf: Signer
    templates: jinja2.Environment
    sign_ins: threading.Semaphore

    @property
    def tls(self) -> bool:
        """Served over TLS."""
        return self.settings.tls_certificate is not None


def web_of(
    desk: Desk,
    settings: WebSettings,
    site: SiteSettings,
    clock: Clock,
    sessions: Sessions,
    secret_key: bytes,
) -> Web:
    """Wire what the routes share."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("phoi_edge_node.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        clock_time=present.clock_time,
        day=present.day,
        header_time=present.header_time,
        local_time=present.local_time,
        number=present.number,
        percent=present.percent,
        person_name=present.full_name,
    )
    return Web(
        desk=desk,
        settings=settings,
        site=site,
        clock=clock,
        sessions=sessions,
        brake=SignInBrake(clock),
        csrf=Signer(secret_key, "csrf"),
        templates=templates,
        sign_ins=threading.BoundedSemaphore(_CONCURRENT_SIGN_INS),
    )


@dataclass(frozen=True, eq=False)
class Visitor:
    """Whoever sent the request.

    Attributes:
        account: None for somebody who has not signed in.
        seed: the cookie that CSRF tokens are bound to, "" if there is none.
        path: of the request, without its query.
    """

    web: Web
    account: Account | None
    language: Language
    seed: str
    path: str

    def text(self, key: str, **values: object) -> str:
        """A text in the visitor's language."""
        return say(self.language, key, **values)

    def page(self, template: str, status: int = 200, **context: object) -> HTMLResponse:
        """A rendered template."""
        now = self.web.clock.now()

        def since(moment: object) -> str:
            seconds = (now - moment).total_seconds()  # type: ignore[operator]
            return present.duration(seconds, self.language)

        html = self.web.templates.get_template(template).render(
            t=self.text,
            t_in=say,
            language=self.language,
            account=self.account,
            csrf=csrf_token(self.web.csrf, self.seed),
            path=self.path,
            site=self.web.site,
            since=since,
            working_phases=[phase.value for phase in WAITING],
            duration=partial(present.duration, language=self.language),
            patient_age=present.patient_age_years,
            paused=[s for s in self.web.desk.switches() if s.paused] if self.account else [],
            **context,
        )
        return HTMLResponse(html, status)


@dataclass(frozen=True, eq=False)
class Member(Visitor):
    """A visitor who has signed in."""

    account: Account


def anyone(request: Request) -> Visitor:
    """The visitor, signed in or not."""
    web: Web = request.app.state.web
    token = request.cookies.get(SESSION_COOKIE, "")
    username = web.sessions.username(token) if token else None
    account = web.desk.account(username) if username else None
    chosen = request.cookies.get(LANGUAGE_COOKIE, web.site.language)
    language = next((known for known in LANGUAGES if known == chosen), web.site.language)
    seed = token or request.cookies.get(ANONYMOUS_COOKIE, "")
    return Visitor(web, account, language, seed, request.url.path)


Anyone = Annotated[Visitor, Depends(anyone)]


def signed_in(visitor: Anyone) -> Member:
    """The visitor, who has signed in.

    Raises:
        NotSignedIn: nobody has, or the session is over.
    """
    if visitor.account is None:
        raise NotSignedIn
    return Member(visitor.web, visitor.account, visitor.language, visitor.seed, visitor.path)


SignedIn = Annotated[Member, Depends(signed_in)]


def from_our_form(visitor: Anyone, csrf: Annotated[str, Form()] = "") -> Visitor:
    """The visitor, whose form came from a page of ours. Every POST depends on this.

    Raises:
        Forbidden: the form carries no token, or that of another session.
    """
    if not (
        visitor.seed and secrets.compare_digest(csrf_token(visitor.web.csrf, visitor.seed), csrf)
    ):
        raise Forbidden("error.stale_form")
    return visitor


Posting = Annotated[Visitor, Depends(from_our_form)]


def posting_signed_in(visitor: Posting) -> Member:
    """Somebody who has signed in and sends a form of ours.

    Raises:
        NotSignedIn: nobody has signed in.
        Forbidden: the form is not ours.
    """
    return signed_in(visitor)


PostingMember = Annotated[Member, Depends(posting_signed_in)]


def administrator(member: SignedIn) -> Member:
    """A signed-in administrator.

    Raises:
        NotSignedIn: nobody has signed in.
        Forbidden: the account is no administrator's.
    """
    if member.account.role is not Role.ADMIN:
        raise Forbidden("error.forbidden")
    return member


Administrator = Annotated[Member, Depends(administrator)]


def posting_administrator(member: PostingMember) -> Member:
    """A signed-in administrator who sends a form of ours.

    Raises:
        NotSignedIn: nobody has signed in.
        Forbidden: the account is no administrator's, or the form is not ours.
    """
    return administrator(member)


PostingAdministrator = Annotated[Member, Depends(posting_administrator)]
