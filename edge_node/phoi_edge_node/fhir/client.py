"""FHIR R4 client: posts transactions, reads the CapabilityStatement.

What a server says is never passed on in words: an OperationOutcome may quote the patient.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection
from typing import Any

import structlog

from phoi_edge_node.fhir import capability
from phoi_edge_node.fhir.http import Answer, Http, NoAnswer
from phoi_edge_node.fhir.tokens import (
    ClientCredentials,
    NoToken,
    NoTokens,
    TokenFile,
    TokenSource,
)
from phoi_edge_node.ports import (
    Clock,
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    SendOutcome,
    UidSource,
    Unreachable,
)
from phoi_edge_node.settings import FhirSettings
from phoi_edge_node.system import RandomUids, SystemClock

log = structlog.get_logger(__name__)

FHIR_JSON = "application/fhir+json"
# Not the document's fault: a token that ran out, a busy server, one that starts.
PASSING = frozenset({401, 408, 423, 425, 429})
# What a proxy answers where the server behind it is away; only a FHIR server means the document.
PROXY_UNLESS_FHIR = frozenset({404, 405, 410, 500, 501})
# Perhaps the document's: a person may mend it, or it passes.
ERRING = frozenset({403, 409, 500})
ASKING_FOR_PATIENCE = frozenset({429, 503})
LONGEST_WAIT_S = 3600.0
_ISSUE_CODE = re.compile(r"[a-z][a-z-]{1,30}")


class FhirDestination:
    """An EMR with a FHIR R4 server."""

    def __init__(
        self,
        settings: FhirSettings,
        clock: Clock | None = None,
        uids: UidSource | None = None,
    ) -> None:
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")
        self._clock = clock or SystemClock()
        self._http = Http(settings, self._clock.monotonic)
        self._tokens = self._token_source(uids or RandomUids())
        self._lock = threading.Lock()  # it is asked whether it is there while documents are sent
        self._ask_again_at = 0.0
        self._told: tuple[str, ...] | None = None

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
        answer = self._ask("POST", self._base_url, document.content)
        return answer if isinstance(answer, Unreachable) else _judge(answer)

    def check(self) -> SendOutcome:
        """Read the CapabilityStatement: is this an R4 server that takes what Phoi sends?

        Shows the token as well, so that credentials that are not accepted are found here.
        """
        answer = self._ask("GET", f"{self._base_url}/metadata")
        if isinstance(answer, Unreachable):
            return answer
        if not answer.good:
            return _judge(answer)
        found = capability.read(answer.body)
        if found is None:
            return Unreachable(f"HTTP {answer.status}, not a FHIR server: check fhir.base_url")
        if not found.speaks_r4:
            return Refused("the server does not speak FHIR R4")
        if not found.transactions:
            return Refused("the server does not say that it takes transactions: ask its owner")
        return Delivered(self._told_once(found))

    def _told_once(self, found: capability.Capability) -> str:
        """What was found, in words; written to the log when it is new."""
        words = f"FHIR {found.version}"
        if found.unsaid:
            words += f"; the server does not name {'; '.join(found.unsaid)}"
        with self._lock:
            new, self._told = found.unsaid != self._told, found.unsaid
        if new:
            level = logging.WARNING if found.unsaid else logging.INFO
            log.log(level, "a FHIR server's capabilities", destination=self.name, found=words)
        return words

    def _ask(self, method: str, url: str, content: bytes = b"") -> Answer | Unreachable:
        """One exchange; another with a new token where the first one's was refused."""
        with self._lock:
            wait_s = self._ask_again_at - self._clock.monotonic()
        if wait_s > 0:
            why = f"the server asked to be left alone for {wait_s:.0f} s more"
            return Unreachable(why, nothing_taken=True)
        try:
            token = self._tokens.token()
            answer = self._http.exchange(method, url, _headers(token, content), content)
            if answer.status == 401 and (renewed := self._tokens.token(refused=token)) != token:
                answer = self._http.exchange(method, url, _headers(renewed, content), content)
        except NoToken as error:
            return Unreachable(str(error), nothing_taken=True)
        except NoAnswer as error:
            return Unreachable(str(error), nothing_taken=error.nothing_sent)
        if answer.status in ASKING_FOR_PATIENCE:
            with self._lock:
                asked_s = min(answer.wait_s(self._clock.now()), LONGEST_WAIT_S)
                self._ask_again_at = self._clock.monotonic() + asked_s
        return answer

    def _token_source(self, uids: UidSource) -> TokenSource:
        settings = self._settings
        if settings.oauth2:
            return ClientCredentials(settings.oauth2, self._base_url, self._http, self._clock, uids)
        return TokenFile(settings.bearer_token_file) if settings.bearer_token_file else NoTokens()


def _headers(token: str, content: bytes) -> dict[str, str]:
    headers = {"Accept": FHIR_JSON, "Accept-Encoding": "identity"}
    if content:
        # The answer need not repeat the patient (R4, RESTful API, "Managing Return Content").
        headers |= {"Content-Type": FHIR_JSON, "Prefer": "return=minimal"}
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


def _judge(answer: Answer) -> SendOutcome:
    """What an answer to a transaction means."""
    status, body = answer.status, answer.body
    if answer.good:
        if (body.get("resourceType"), body.get("type")) == ("Bundle", "transaction-response"):
            return _stored(status, body)
        # A log-in page or a captive portal answers 200 as well: nothing was stored.
        return Unreachable(f"HTTP {status}, not a transaction response: check fhir.base_url")
    codes = _issue_codes(body)
    reason = f"HTTP {status}" + (f" ({', '.join(codes)})" if codes else "")
    if status in PROXY_UNLESS_FHIR and body.get("resourceType") != "OperationOutcome":
        return Unreachable(f"{reason}, not from a FHIR server: is fhir.base_url right?")
    if status in ERRING:
        return Erred(reason)
    if status == 401:
        why = f"{reason}: the server does not accept Phoi's credentials"
        return Unreachable(why, nothing_taken=True)
    if status == 501 or (400 <= status < 500 and status not in PASSING):
        return Refused(reason)
    return Unreachable(reason)


def _stored(status: int, response: dict[str, Any]) -> SendOutcome:
    """A transaction is all or nothing; a server that ran it as a batch says so entry by entry."""
    told = [
        str(answer["status"])
        for entry in capability.objects(response.get("entry"))
        for answer in capability.objects([entry.get("response")])
        if "status" in answer
    ]
    failed = [words for words in told if not words.startswith(("2", "304"))]
    if failed:
        return Erred(f"HTTP {status}, but {len(failed)} of {len(told)} resources were not stored")
    return Delivered(f"HTTP {status}")


def _issue_codes(body: dict[str, Any]) -> tuple[str, ...]:
    """The codes of an OperationOutcome, as far as they are codes."""
    found = (issue.get("code") for issue in capability.objects(body.get("issue")))
    codes = (c for c in found if isinstance(c, str) and _ISSUE_CODE.fullmatch(c))
    return tuple(dict.fromkeys(codes))[:5]
