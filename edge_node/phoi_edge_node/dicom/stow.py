"""STOW-RS, the Store transaction of DICOMweb (PS3.18 10.5): CT images over HTTP.

A request is read part by part, and each instance is durable and indexed before the next is read.
Only so many requests are served at once, and what they hold in memory is bounded together. Whoever
sends shows a bearer token. Nothing of a patient is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from phoi_edge_node.dicom.acceptor import SLOWEST_BYTES_PER_S, MemoryBudget
from phoi_edge_node.dicom.headers import InstanceHeader
from phoi_edge_node.dicom.multipart import DICOM_FILE, Malformed, Part, Parts, boundary_of
from phoi_edge_node.dicom.part10 import open_file, require_ct_image
from phoi_edge_node.dicom.taking import (
    DATA_SET_DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SUCCESS,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
)
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import DicomSettings, StowSettings

DICOM_JSON = "application/dicom+json"
MAXIMUM_REQUESTS = 8  # at once
MOST_PARTS = 20_000  # of one request: more than any study has images
STALL_TIMEOUT_S = 30.0
_SLOW_START_S = 60.0  # what a request may take beside its bytes at the pace of C-STORE
_BUDGET = 512 * 1024 * 1024  # bytes of parts that come in at once, beside the one that is first
_LONGEST_LENGTH = 15  # digits

PROCESSING_FAILURE = 0x0110

_Json = dict[str, Any]

_log = structlog.get_logger(__name__)


class _TooLong(Exception):
    """The request is longer than the settings allow, or has too many parts."""


class _Busy(Exception):
    """There is no memory for what comes."""


@dataclass(frozen=True)
class _Answer:
    """What became of one part of the request.

    Attributes:
        sop_class_uid, sop_instance_uid: "" where the part could not be read.
        reason: a status of C-STORE or a failure reason of PS3.18 10.5.3.
        why: in words, for the log.
    """

    sop_class_uid: str
    sop_instance_uid: str
    reason: int
    why: str = ""

    @property
    def item(self) -> _Json:
        """As an item of a sequence of the response, in the DICOM JSON Model (PS3.18 F.2)."""
        item: _Json = {}
        if self.sop_instance_uid:
            item["00081150"] = {"vr": "UI", "Value": [self.sop_class_uid]}
            item["00081155"] = {"vr": "UI", "Value": [self.sop_instance_uid]}
        if self.reason == SUCCESS:
            item["00081190"] = {"vr": "UR"}
        else:
            item["00081197"] = {"vr": "US", "Value": [self.reason]}
        return item


class StowService:
    """Serves ``POST /studies`` and ``POST /studies/{study}``."""

    def __init__(
        self, settings: StowSettings, dicom: DicomSettings, taker: InstanceTaker, clock: Clock
    ) -> None:
        """The token is read here, once.

        Raises:
            SettingsError: the token's file cannot be read or holds none.
        """
        self._token = _read_token(settings.bearer_token_file)
        self._maximum_request = settings.maximum_request_mb * 1_000_000
        self._largest_instance = dicom.largest_instance_mb * 1_000_000
        self._taker = taker
        self._clock = clock
        self._count = itertools.count(1)
        self._served = 0
        self._budget = MemoryBudget(_BUDGET)

    def application(self) -> Starlette:
        """The ASGI application, to be mounted at ``/dicom-web``."""
        return Starlette(
            routes=[
                Route("/studies", self._store, methods=["POST"]),
                Route("/studies/{study}", self._store, methods=["POST"]),
            ]
        )

    async def _store(self, request: Request) -> Response:
        """One Store transaction."""
        refusal = self._refusal(request)
        if refusal is not None:
            peer = request.client.host if request.client else ""
            _log.warning("request refused", status=refusal.status_code, peer=peer)
            return refusal
        association = f"stow-{self._clock.now():%Y%m%dT%H%M%S}-{next(self._count)}"
        self._served += 1
        try:
            answers = await self._receive(request, association)
        except _TooLong:
            return _say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "it is too long: send fewer instances")
        except _Busy:
            return _say(HTTPStatus.SERVICE_UNAVAILABLE, "busy", {"Retry-After": "10"})
        except (Malformed, ClientDisconnect):
            return _say(HTTPStatus.BAD_REQUEST, "the body is no multipart of DICOM files")
        except TimeoutError:
            return _say(HTTPStatus.REQUEST_TIMEOUT, "nothing came for too long, or too little")
        finally:
            self._served -= 1
            self._budget.give_back(association)
            self._taker.released(association)
        return _response(answers)

    def _refusal(self, request: Request) -> Response | None:
        """Why a request is not even read, if so."""
        if not self._authorised(request):
            challenge = {"WWW-Authenticate": "Bearer"}
            return _say(HTTPStatus.UNAUTHORIZED, "show the bearer token", challenge)
        encoding = request.headers.get("Content-Encoding", "identity")
        if not _boundary(request) or encoding != "identity":
            wanted = f'send multipart/related; type="{DICOM_FILE}"'
            return _say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, wanted)
        length = request.headers.get("Content-Length", "")
        too_long = len(length) > _LONGEST_LENGTH
        if length.isdecimal() and (too_long or int(length) > self._maximum_request):
            return _say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "stow.maximum_request_mb is exceeded")
        if self._served >= MAXIMUM_REQUESTS:
            return _say(HTTPStatus.SERVICE_UNAVAILABLE, "busy", {"Retry-After": "10"})
        return None

    def _authorised(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        matches = hmac.compare_digest(token.strip().encode(), self._token)
        return scheme.lower() == "bearer" and matches

    async def _receive(self, request: Request, association: str) -> Sequence[_Answer]:
        parts = Parts(_boundary(request), self._largest_instance)
        study = str(request.path_params.get("study", ""))
        answers: list[_Answer] = []
        received = 0
        try:
            async for chunk in _chunks(request, self._clock.monotonic):
                received += len(chunk)
                if received > self._maximum_request:
                    raise _TooLong
                await self._hold(association, len(chunk))
                for part in parts.feed(chunk):
                    if len(answers) == MOST_PARTS:
                        raise _TooLong
                    answers.append(await run_in_threadpool(self._take, part, study, association))
                    self._budget.give_back(association)
        finally:
            _tell(answers)
        if not parts.ended or not answers:
            raise Malformed
        return answers

    async def _hold(self, association: str, size: int) -> None:
        """Room for what came; where there is none yet, the sender waits, which TCP tells it."""
        if not self._budget.take(association, size, 0) and not await run_in_threadpool(
            self._budget.take, association, size, STALL_TIMEOUT_S
        ):
            raise _Busy

    def _take(self, part: Part, study: str, association: str) -> _Answer:
        """Take one instance; never raises for what a part is."""
        names = ("", "")
        try:
            incoming, header = _open(part)
            names = (incoming.sop_class_uid, incoming.sop_instance_uid)
            _require_wanted(part, incoming, header, study)
            self._taker.take(incoming, association)
        except NotTaken as refusal:
            return _Answer(*names, refusal.status, str(refusal))
        except Exception as error:
            # As over C-STORE: not success, and no traceback, whose variables are the patient's.
            return _Answer(*names, PROCESSING_FAILURE, type(error).__name__)
        return _Answer(*names, SUCCESS)


def _open(part: Part) -> tuple[IncomingInstance, InstanceHeader]:
    if part.content_type != DICOM_FILE:
        raise NotTaken(PROCESSING_FAILURE, "a part is not application/dicom")
    content = bytes(part.content)
    part.content.clear()  # it may be large: one copy less
    return open_file(content)


def _require_wanted(
    part: Part, incoming: IncomingInstance, header: InstanceHeader, study: str
) -> None:
    if part.truncated:
        raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
    if study and header.study.study_instance_uid != study:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "it is not of the study of the URL")
    require_ct_image(incoming)


async def _chunks(request: Request, monotonic: Callable[[], float]) -> AsyncIterator[bytes]:
    """The body as it comes; a sender that stalls would keep its study from being complete.

    Raises:
        TimeoutError: nothing came for too long, or all in all too little: not our own time counts.
    """
    stream = aiter(request.stream())
    waited_s, received = 0.0, 0
    while True:
        since = monotonic()
        try:
            chunk = await asyncio.wait_for(anext(stream), STALL_TIMEOUT_S)
        except StopAsyncIteration:
            return
        waited_s += monotonic() - since
        received += len(chunk)
        if waited_s > _SLOW_START_S + received / SLOWEST_BYTES_PER_S:
            raise TimeoutError
        yield chunk


def _tell(answers: Sequence[_Answer]) -> None:
    """Log what was not taken: a line for each reason, however many parts there were."""
    for (reason, why), number in Counter((a.reason, a.why) for a in answers).items():
        if reason != SUCCESS:
            _log.warning("refused", reason=f"0x{reason:04X}", why=why, number=number)


def _boundary(request: Request) -> str:
    return boundary_of(request.headers.get("Content-Type", ""))


def _response(answers: Sequence[_Answer]) -> Response:
    """Store Instances Response (PS3.18 10.5.3)."""
    stored = [a.item for a in answers if a.reason == SUCCESS]
    failed = [a.item for a in answers if a.reason != SUCCESS and a.sop_instance_uid]
    other = [a.item for a in answers if a.reason != SUCCESS and not a.sop_instance_uid]
    body: _Json = {"00081190": {"vr": "UR"}}  # Retrieve URL, empty: Phoi gives no images back
    sequences = (("00081199", stored), ("00081198", failed), ("0008119A", other))
    body |= {tag: {"vr": "SQ", "Value": items} for tag, items in sequences if items}
    status = HTTPStatus.OK
    if failed or other:
        status = HTTPStatus.ACCEPTED if stored else HTTPStatus.CONFLICT
    return JSONResponse(body, status, media_type=DICOM_JSON)


def _say(status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, headers)


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"stow.bearer_token_file: {path} cannot be read") from None
    if not token:
        raise SettingsError(f"stow.bearer_token_file: {path} is empty: write a long random token")
    return token.encode()
