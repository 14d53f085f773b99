"""FHIR R4 client: posts transactions, reads the CapabilityStatement.

What a server says is never passed on in words: an OperationOutcome may quote the patient.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.settings import FhirSettings

FHIR_JSON = "application/fhir+json"
MAXIMUM_ANSWER = 16 * 1024 * 1024
# Not the document's fault: a token that ran out, a conflict of versions, a busy server.
PASSING = frozenset({401, 408, 409, 429})
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1
_ISSUE_CODE = re.compile(r"[a-z][a-z-]{1,30}")


class _AnswerTooLong(Exception):
    """The server sends more than any answer to Phoi can be."""


class _NoToken(Exception):
    """The file of the bearer token holds none that could be sent."""


@dataclass(frozen=True)
class _Answer:
    status: int
    body: dict[str, Any]  # {} where it was no JSON object


class FhirDestination:
    """An EMR with a FHIR R4 server."""

    def __init__(
        self, settings: FhirSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic

    @property
    def name(self) -> str:
        """The lane's name."""
        return self._settings.name

    @property
    def accepts(self) -> Collection[DocumentKind]:
        """FHIR Bundles only."""
        return frozenset({DocumentKind.FHIR_BUNDLE})

    def send(self, document: Document) -> SendOutcome:
        """Post one transaction and wait for its response."""
        answer = self._request("POST", self._settings.base_url.rstrip("/"), document.content)
        return answer if isinstance(answer, Unreachable) else _judge(answer)

    def check(self) -> SendOutcome:
        """Read the CapabilityStatement: is this an R4 server?"""
        answer = self._request("GET", f"{self._settings.base_url.rstrip('/')}/metadata")
        if isinstance(answer, Unreachable):
            return answer
        if answer.body.get("resourceType") != "CapabilityStatement":
            return Unreachable(f"HTTP {answer.status}, not a FHIR server: check fhir.base_url")
        version = str(answer.body.get("fhirVersion", ""))
        if not version.startswith("4."):
            return Refused("the server does not speak FHIR R4")
        return Delivered("FHIR R4")

    def _request(self, method: str, url: str, content: bytes = b"") -> _Answer | Unreachable:
        try:
            with (
                self._client() as client,
                client.stream(method, url, content=content, headers=self._headers()) as response,
            ):
                return _Answer(response.status_code, _json_object(self._body(response)))
        except (httpx.TimeoutException, TimeoutError):
            return Unreachable(f"no answer within {self._settings.timeout_s:g} s")
        except httpx.HTTPError as error:
            return Unreachable(f"no connection: {type(error).__name__}")
        except _AnswerTooLong:
            return Unreachable(f"the answer exceeds {MAXIMUM_ANSWER} bytes")
        except _NoToken:
            return Unreachable("the file fhir.bearer_token_file holds no token that can be read")

    def _client(self) -> httpx.Client:
        # Not by way of a proxy that happens to stand in the environment; the system's own list of
        # authorities, which is where a hospital adds its own.
        return httpx.Client(
            timeout=self._settings.timeout_s,
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": FHIR_JSON, "Accept-Encoding": "identity", "Content-Type": FHIR_JSON}
        if self._settings.bearer_token_file:
            headers["Authorization"] = f"Bearer {_token(self._settings.bearer_token_file)}"
        return headers

    def _body(self, response: httpx.Response) -> bytes:
        """The body, within the time and length that are granted to the whole of it."""
        deadline = self._monotonic() + self._settings.timeout_s
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAXIMUM_ANSWER:
                raise _AnswerTooLong
            if self._monotonic() > deadline:
                raise TimeoutError
        return bytes(body)


def _token(path: Path) -> str:
    """The token, read for each request: tokens are renewed behind our back."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise _NoToken from None
    if not _BEARER_TOKEN.fullmatch(token):
        raise _NoToken
    return token


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _judge(answer: _Answer) -> SendOutcome:
    """What an answer to a transaction means."""
    status, body = answer.status, answer.body
    if 200 <= status < 300:
        if (body.get("resourceType"), body.get("type")) == ("Bundle", "transaction-response"):
            return Delivered(f"HTTP {status}")
        # A log-in page or a captive portal answers 200 as well: nothing was stored.
        return Unreachable(f"HTTP {status}, not a transaction response: check fhir.base_url")
    codes = _issue_codes(body)
    reason = f"HTTP {status}" + (f" ({', '.join(codes)})" if codes else "")
    if 400 <= status < 500 and status not in PASSING:
        return Refused(reason)
    return Unreachable(reason)


def _issue_codes(body: dict[str, Any]) -> tuple[str, ...]:
    """The codes of an OperationOutcome, as far as they are codes."""
    issues = body.get("issue")
    found = (
        [i.get("code") for i in issues if isinstance(i, dict)] if isinstance(issues, list) else []
    )
    codes = (c for c in found if isinstance(c, str) and _ISSUE_CODE.fullmatch(c))
    return tuple(dict.fromkeys(codes))[:5]
