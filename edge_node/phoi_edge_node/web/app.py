"""The web application: routes, sessions and headers, wired to one desk."""

from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phoi_edge_node.desk import Desk
from phoi_edge_node.errors import ReviewConflict, UnknownStudy
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import SiteSettings, WebSettings
from phoi_edge_node.web import operations, recalls, session, study, worklist
from phoi_edge_node.web.security import SecurityHeaders, Sessions
from phoi_edge_node.web.texts import say
from phoi_edge_node.web.visitor import Forbidden, NotSignedIn, Visitor, Web, anyone, web_of

_log = structlog.get_logger(__name__)


def create_app(
    desk: Desk, settings: WebSettings, site: SiteSettings, clock: Clock, secret_key: bytes
) -> FastAPI:
    """The review page as an ASGI application.

    Args:
        desk: the service behind it.
        settings: TLS and how long a session lasts.
        site: mode and first language.
        clock: for ages, sessions and the sign-in brake.
        secret_key: at least 32 random bytes, the same at every start of this installation: signs
            sessions and CSRF tokens.

    Raises:
        ValueError: the secret key is too short.
    """
    sessions = Sessions(secret_key, clock, timedelta(hours=settings.session_hours))
    app = FastAPI(title="Phoi", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.web = web_of(desk, settings, site, clock, sessions, secret_key)
    for routes in (session, worklist, study, operations, recalls):
        app.include_router(routes.router)
    app.add_api_route("/healthz", _alive, include_in_schema=False)
    app.add_api_route("/readyz", _ready, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_exception_handler(NotSignedIn, _lead_to_sign_in)
    for error in (Forbidden, UnknownStudy, ReviewConflict, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _explain)
    app.add_middleware(_UnexpectedErrors)
    app.add_middleware(SecurityHeaders, tls=app.state.web.tls)
    return app


def server_config(app: ASGIApp, settings: WebSettings) -> uvicorn.Config:
    """How uvicorn serves it: without an access log, and with TLS where that is set."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # who looked at what belongs in the audit, and only there
        log_config=None,  # the node's own lines, in its own file
        log_level="warning",
        ws="none",
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=5,
    )


def _alive() -> Response:
    return PlainTextResponse("ok\n")


def _ready(request: Request) -> Response:
    web: Web = request.app.state.web
    reasons = web.desk.unready()
    if reasons:
        return PlainTextResponse("\n".join(reasons) + "\n", HTTPStatus.SERVICE_UNAVAILABLE)
    return PlainTextResponse("ready\n")


def _lead_to_sign_in(request: Request, error: Exception) -> Response:
    del error
    if request.method != "GET" or _wants_json(request):
        return _answer(request, HTTPStatus.UNAUTHORIZED, "login.title")
    return RedirectResponse(f"/login?after={session.local_path(request.url.path)}", 303)


def _explain(request: Request, error: Exception) -> Response:
    """A page, or a line of JSON for a script, that says what went wrong without echoing input."""
    match error:
        case Forbidden():
            return _answer(request, HTTPStatus.FORBIDDEN, error.text)
        case UnknownStudy():
            return _answer(request, HTTPStatus.NOT_FOUND, "error.not_found")
        case ReviewConflict(conflict=conflict):
            return _answer(request, HTTPStatus.CONFLICT, f"conflict.{conflict.name.lower()}")
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return _answer(request, HTTPStatus.NOT_FOUND, "error.not_found")
        case HTTPException(status_code=status):
            return _answer(request, status, "error.invalid")
    return _answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, "error.invalid")


def _answer(request: Request, status: int, key: str, **values: object) -> Response:
    # The address may name a patient: not even the form for the language goes back to it.
    visitor: Visitor = replace(anyone(request), path="/")
    text = say(visitor.language, key, **values)
    if _wants_json(request):
        return JSONResponse({"error": text}, status)
    return visitor.page("error.html", status, text=text)


def _wants_json(request: Request) -> bool:
    return request.headers.get("X-Requested-With") == "fetch"


class _UnexpectedErrors:
    """ASGI middleware: an unexpected error is logged by type and place, never by its text.

    The text of an error of the database, for one, holds the values of the statement.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watching_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watching_send)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:]]
            _log.error("page failed", error=type(error).__name__, places=places)
            if scope["type"] == "http" and not started:
                text = " / ".join(say(language, "error.internal") for language in ("vi", "en"))
                await PlainTextResponse(text, 500)(scope, receive, send)
