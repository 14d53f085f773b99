"""One HTTP exchange: within the time and the length that are granted to the whole of it.

What a server says is never passed on in words: an answer may quote the patient.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from phoi_edge_node.errors import SettingsError
from phoi_edge_node.fhir.deadline import Deadline, DeadlineTransport
from phoi_edge_node.settings import FhirSettings
from phoi_edge_node.tls import RenewedContext

_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL)
MAXIMUM_ANSWER = 16 * 1024 * 1024


class NoAnswer(Exception):
    """None that could be used. The text says why, without patient data.

    Attributes:
        nothing_sent: no connection came about.
    """

    def __init__(self, why: str, *, nothing_sent: bool = False) -> None:
        super().__init__(why)
        self.nothing_sent = nothing_sent


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        body: {} where it was no JSON object.
        retry_after: the header of that name, or "".
    """

    status: int
    body: dict[str, Any]
    retry_after: str = ""

    @property
    def good(self) -> bool:
        """Is it a success?"""
        return 200 <= self.status < 300

    def wait_s(self, now: datetime) -> float:
        """How long the server asks to be left alone, s (RFC 9110, 10.2.3); 0 where it does not."""
        if self.retry_after.isascii() and self.retry_after.isdigit():
            return float(self.retry_after[:9])
        try:
            return max(0.0, (parsedate_to_datetime(self.retry_after) - now).total_seconds())
        except (ValueError, TypeError):  # no date, or one without a zone
            return 0.0


class Http:
    """HTTP as the settings of the FHIR server ask for it."""

    def __init__(self, settings: FhirSettings, monotonic: Callable[[], float]) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._tls = RenewedContext(settings, "fhir")

    def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b""
    ) -> Answer:
        """Send one request and wait for its answer. No redirect is followed.

        Raises:
            NoAnswer: none came in time, or it was too long.
        """
        try:
            with (
                self._client(url) as client,
                client.stream(method, url, content=content, headers=headers) as response,
            ):
                wait = response.headers.get("Retry-After", "")
                return Answer(response.status_code, _json_object(_body(response)), wait)
        except (httpx.TimeoutException, TimeoutError) as error:
            why = f"no answer within {self._settings.timeout_s:g} s"
            raise NoAnswer(why, nothing_sent=isinstance(error, _NOT_CONNECTED)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            unsent = isinstance(error, _NOT_CONNECTED)
            raise NoAnswer(_connection(error), nothing_sent=unsent) from None

    def _client(self, url: str) -> httpx.Client:
        """For one exchange, which begins now."""
        tls = self._context() if httpx.URL(url).scheme == "https" else None
        deadline = Deadline(self._settings.timeout_s, self._monotonic)
        # Not by way of a proxy that happens to stand in the environment.
        return httpx.Client(transport=DeadlineTransport(deadline, tls), trust_env=False)

    def _context(self) -> ssl.SSLContext:
        try:
            return self._tls.get()
        except SettingsError as error:
            raise NoAnswer(str(error), nothing_sent=True) from None


def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAXIMUM_ANSWER:
            raise NoAnswer(f"the answer exceeds {MAXIMUM_ANSWER} bytes")
    return bytes(body)


def _connection(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its TLS certificate is not trusted: set fhir.tls_ca to its authority's PEM file"
    return f"no connection: {type(error).__name__}"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
