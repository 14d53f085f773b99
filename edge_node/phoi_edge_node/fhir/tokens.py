"""How Phoi shows a FHIR server who it is: a token out of a file, or by OAuth 2.0.

Sources: RFC 6749, 2.3.1 and 4.4 (client credentials); RFC 6750 (bearer tokens); RFC 7523, 2.2 (an
assertion in place of a secret); SMART App Launch 2.2, Backend Services and Asymmetric
Authentication. No error says anything of a secret, a key or a token.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from phoi_edge_node.fhir.capability import objects
from phoi_edge_node.fhir.elements import Json
from phoi_edge_node.fhir.http import Answer, Http, NoAnswer
from phoi_edge_node.ports import Clock, UidSource
from phoi_edge_node.settings import FhirOAuth2Settings

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
ASSERTION_LIVES = timedelta(minutes=4)  # SMART: no more than five
# A token is renewed so long before it ends, or at half of a short life.
RENEW_BEFORE_S = 60.0
# SMART demands expires_in and recommends no more than 300 s; RFC 6749 does not demand it.
LIFE_IF_UNTOLD_S = 120.0
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1
_LEAST_RSA_BITS = 2048
# RFC 6749, 5.2.
_REFUSALS = {
    "invalid_client": "it does not accept client_id together with the secret or the key: compare "
    "both, key_id, and the clock, with what is registered there",
    "unauthorized_client": "this client may not use client credentials: its owner must allow them",
    "unsupported_grant_type": "it offers no client credentials: check token_url",
    "invalid_scope": "it does not grant what fhir.oauth2.scope asks for",
    "invalid_grant": "it does not accept the assertion: check the clock and token_url",
    "invalid_request": "it does not understand the request: check token_url",
}


class NoToken(Exception):
    """None can be shown now. The text says why and what to do."""


class TokenSource(Protocol):
    """Where tokens come from."""

    def token(self, refused: str = "") -> str:
        """One to show now; "" where none is needed.

        Args:
            refused: a token that the server has just refused; it is not given again if another
                can be had.

        Raises:
            NoToken: there is none.
        """
        ...


class NoTokens:
    """A server that needs none."""

    def token(self, refused: str = "") -> str:  # noqa: ARG002 - there is none to refuse
        """No token."""
        return ""


class TokenFile:
    """A token in a file, read for each request: it is renewed behind our back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self, refused: str = "") -> str:  # noqa: ARG002 - the file is all there is
        """What stands in the file."""
        told = _read(self._path, "fhir.bearer_token_file")
        if not _BEARER_TOKEN.fullmatch(told):
            raise NoToken("the file fhir.bearer_token_file holds no token that can be read")
        return told


@dataclass(frozen=True)
class _Held:
    token: str = field(repr=False)  # no traceback may show it
    renew_at: float  # monotonic, s


class ClientCredentials:
    """Tokens from an authorisation server, kept until shortly before they end."""

    def __init__(
        self,
        settings: FhirOAuth2Settings,
        base_url: str,
        http: Http,
        clock: Clock,
        uids: UidSource,
    ) -> None:
        self._settings = settings
        self._base_url = base_url
        self._http = http
        self._clock = clock
        self._uids = uids
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def token(self, refused: str = "") -> str:
        """The token held, else a new one."""
        with self._lock:
            held = self._held
            if held is None or held.token == refused or self._clock.monotonic() >= held.renew_at:
                self._held = None  # also where no other can be had
                held = self._held = self._ask()
            return held.token

    def _ask(self) -> _Held:
        asked_at = self._clock.monotonic()
        try:
            url = self._settings.token_url or self._discover()
            headers, form = self._request(url)
            answer = self._http.exchange("POST", url, headers, urlencode(form).encode())
        except NoAnswer as error:
            raise NoToken(f"authorisation server: {error}") from None
        token, life_s = _granted(answer)
        return _Held(token, asked_at + max(life_s - RENEW_BEFORE_S, life_s / 2))

    def _discover(self) -> str:
        """Where tokens are got, as the FHIR server says."""
        headers = {"Accept": "application/json"}
        told = self._http.exchange(
            "GET", f"{self._base_url}/.well-known/smart-configuration", headers
        )
        url = told.body.get("token_endpoint") if told.good else None
        if not url:
            headers = {"Accept": "application/fhir+json"}
            told = self._http.exchange("GET", f"{self._base_url}/metadata", headers)
            url = _oauth_uri(told.body)
        scheme = _scheme(url)
        if not isinstance(url, str) or not scheme:
            raise NoToken(
                "the FHIR server does not say where tokens are got: set fhir.oauth2.token_url"
            )
        schemes = {"https"} if self._base_url.startswith("https:") else {"https", "http"}
        if scheme not in schemes:
            raise NoToken(
                "the FHIR server names a token endpoint without TLS: no secret goes there"
            )
        return url

    def _request(self, url: str) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form of a token request."""
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        form = {"grant_type": "client_credentials"}
        if self._settings.scope:
            form["scope"] = self._settings.scope
        if self._settings.private_key_file:
            form["client_assertion_type"] = ASSERTION_TYPE
            form["client_assertion"] = self._assertion(url, self._settings.private_key_file)
        elif self._settings.client_secret_file:
            secret = _read(self._settings.client_secret_file, "fhir.oauth2.client_secret_file")
            headers["Authorization"] = _basic(self._settings.client_id, secret)
        return headers, form

    def _assertion(self, url: str, key_file: Path) -> str:
        key = _private_key(key_file)
        now = self._clock.now()
        claims = {
            "iss": self._settings.client_id,
            "sub": self._settings.client_id,
            "aud": url,
            "iat": now,
            "exp": now + ASSERTION_LIVES,
            "jti": self._uids.dicom_uid(),
        }
        algorithm = "RS384" if isinstance(key, RSAPrivateKey) else "ES384"
        headers = {"kid": self._settings.key_id} if self._settings.key_id else None
        return jwt.encode(claims, key, algorithm, headers)


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise NoToken(f"the file {setting} cannot be read") from None


def _basic(client_id: str, secret: str) -> str:
    """HTTP Basic; both parts are form-encoded before (RFC 6749, 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _private_key(path: Path) -> RSAPrivateKey | EllipticCurvePrivateKey:
    """The two kinds that SMART asks servers to know: RS384 and ES384."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise NoToken(
            "the file fhir.oauth2.private_key_file holds no private key that can be read: PEM, "
            "without a password"
        ) from None
    if isinstance(key, RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return key
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        return key
    raise NoToken(
        "fhir.oauth2.private_key_file must be RSA of 2048 bits or more, or EC on the curve P-384"
    )


def _granted(answer: Answer) -> tuple[str, float]:
    """The token and its life, s (RFC 6749, 5.1)."""
    if not answer.good:
        code = answer.body.get("error")
        words = _REFUSALS.get(code) if isinstance(code, str) else None
        raise NoToken(
            f"the authorisation server refused ({code}): {words}"
            if words
            else f"the authorisation server answered HTTP {answer.status}: check token_url"
        )
    token, kind = answer.body.get("access_token"), answer.body.get("token_type")
    if not isinstance(token, str) or not _BEARER_TOKEN.fullmatch(token):
        raise NoToken("the authorisation server gave no token that could be sent")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise NoToken("the authorisation server gave a token that is no bearer token")
    return token, _life_s(answer.body)


def _life_s(told: Mapping[str, object]) -> float:
    life = told.get("expires_in")
    if isinstance(life, int | float) and not isinstance(life, bool) and life > 0:
        return float(life)
    return LIFE_IF_UNTOLD_S


def _scheme(url: object) -> str:
    """Of an address with a host; "" where it is none."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:  # as of "https://[bad"
        return ""
    return parts.scheme if parts.hostname else ""


def _oauth_uri(statement: Json) -> object:
    """The token endpoint in a CapabilityStatement, as servers told it before SMART 1.0."""
    return next(
        (
            uri.get("valueUri")
            for rest in objects(statement.get("rest"))
            for security in objects([rest.get("security")])
            for extension in objects(security.get("extension"))
            if extension.get("url") == OAUTH_URIS
            for uri in objects(extension.get("extension"))
            if uri.get("url") == "token"
        ),
        None,
    )
