"""Sessions, CSRF tokens, the brake on guessing passwords, and response headers."""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
from collections import defaultdict
from datetime import datetime, timedelta
from hashlib import sha256

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phoi_edge_node.ports import Clock

SESSION_COOKIE = "phoi_session"
ANONYMOUS_COOKIE = "phoi_visitor"


class Signer:
    """Signs short texts with HMAC-SHA-256; each purpose has its own key."""

    def __init__(self, secret_key: bytes, purpose: str) -> None:
        if len(secret_key) < 32:
            raise ValueError("the web's secret key has at least 32 bytes")
        self._key = hmac.digest(secret_key, purpose.encode(), "sha256")

    def signature(self, text: str) -> str:
        """URL-safe signature."""
        digest = hmac.digest(self._key, text.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def valid(self, text: str, signature: str) -> bool:
        """Is it ours? Takes the same time for every wrong one."""
        return hmac.compare_digest(self.signature(text).encode(), signature.encode())


class Sessions:
    """Signed session tokens that the server lets expire.

    A token carries the username and when it was issued, so that every node of a site that shares
    the secret key accepts it, also after a restart. Signing out is remembered by this process.
    """

    def __init__(self, secret_key: bytes, clock: Clock, lifetime: timedelta) -> None:
        self._signer = Signer(secret_key, "session")
        self._clock = clock
        self._lifetime = lifetime
        self._lock = threading.Lock()
        self._ended: dict[str, datetime] = {}

    def issue(self, username: str) -> str:
        """A new token."""
        issued = int(self._clock.now().timestamp())
        payload = f"{issued}|{secrets.token_urlsafe(16)}|{username}"
        encoded = base64.urlsafe_b64encode(payload.encode()).rstrip(b"=").decode()
        return f"{encoded}.{self._signer.signature(encoded)}"

    def username(self, token: str) -> str | None:
        """Whose token it is; None if it is not ours, has expired or was ended."""
        encoded, _, signature = token.partition(".")
        if not self._signer.valid(encoded, signature):
            return None
        payload = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        issued, _, username = payload.split("|", 2)
        age = self._clock.now().timestamp() - int(issued)
        with self._lock:
            ended = _fingerprint(token) in self._ended
        # A session from the future (a clock set back) is as little worth as an old one.
        if ended or not -60 <= age <= self._lifetime.total_seconds():
            return None
        return username

    def end(self, token: str) -> None:
        """Sign out: the token is worth nothing from now on."""
        now = self._clock.now()
        with self._lock:
            self._ended = {k: t for k, t in self._ended.items() if now - t <= self._lifetime}
            self._ended[_fingerprint(token)] = now


class SignInBrake:
    """Slows the guessing of passwords: after some failures nobody is let in for a while.

    Failures count for one user from one address, and for the address as a whole; never for a
    user alone, or anyone could lock a radiologist out.
    """

    PER_USER = 5
    PER_ADDRESS = 30
    WINDOW_S = 300.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def open(self, address: str, username: str) -> bool:
        """May this user try from this address now?"""
        with self._lock:
            self._forget_old()
            return (
                len(self._failures.get((address, username), ())) < self.PER_USER
                and len(self._failures.get((address,), ())) < self.PER_ADDRESS
            )

    def failed(self, address: str, username: str) -> None:
        """A wrong password."""
        with self._lock:
            for key in ((address, username), (address,)):
                self._failures[key].append(self._clock.monotonic())

    def succeeded(self, address: str, username: str) -> None:
        """The right password."""
        with self._lock:
            self._failures.pop((address, username), None)

    def _forget_old(self) -> None:
        oldest = self._clock.monotonic() - self.WINDOW_S
        kept = {key: [t for t in times if t > oldest] for key, times in self._failures.items()}
        self._failures = defaultdict(list, {key: times for key, times in kept.items() if times})


_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class SecurityHeaders:
    """ASGI middleware: the same protecting headers on every response."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        if tls:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add the headers to its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                # Reading rooms share computers: pages and pictures stay in no cache on disk.
                static = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "no-cache" if static else "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def csrf_token(signer: Signer, seed: str) -> str:
    """The token that proves that a form came from a page of ours, bound to a cookie's value."""
    return signer.signature(seed)


def _fingerprint(token: str) -> str:
    return sha256(token.encode()).hexdigest()
