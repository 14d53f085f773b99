"""STOW-RS, the Store transaction of DICOMweb (PS3.18 10.5): CT images over HTTP.

A request is read part by part, and each instance is durable and indexed before the next is read.
Memory holds one instance of each request, and only so many requests are served at once. Whoever
sends shows a bearer token. Nothing of a patient is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path

import structlog
from pydicom import Dataset
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from phoi_edge_node.dicom.headers import InstanceHeader
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

DICOM_FILE = "application/dicom"
DICOM_JSON = "application/dicom+json"
MAXIMUM_REQUESTS = 8  # at once; each holds an instance in memory
STALL_TIMEOUT_S = 30.0

_PROCESSING_FAILURE = 0x0110
_LONGEST_BOUNDARY = 200

_log = structlog.get_logger(__name__)


class _Malformed(Exception):
    """The body is not what its Content-Type says."""


class _TooLong(Exception):
    """The request is longer than the settings allow."""


@dataclass(frozen=True)
class _Answer:
    """What became of one part of the request.

    Attributes:
        sop_class_uid, sop_instance_uid: "" where the part could not be read.
        reason: a status of C-STORE or a failure reason of PS3.18 10.5.3.
    """

    sop_class_uid: str
    sop_instance_uid: str
    reason: int

    @property
    def item(self) -> Dataset:
        """As an item of a sequence of the response."""
        item = Dataset()
        if self.sop_instance_uid:
            item.ReferencedSOPClassUID = self.sop_class_uid
            item.ReferencedSOPInstanceUID = self.sop_instance_uid
        if self.reason == SUCCESS:
            item.RetrieveURL = ""
        else:
            item.FailureReason = self.reason
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
            return refusal
        association = f"stow-{self._clock.now():%Y%m%dT%H%M%S}-{next(self._count)}"
        self._served += 1
        try:
            answers = await self._receive(request, association)
        except _TooLong:
            return _say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "stow.maximum_request_mb is exceeded")
        except (_Malformed, ClientDisconnect):
            return _say(HTTPStatus.BAD_REQUEST, "the body is no multipart of DICOM files")
        except TimeoutError:
            return _say(HTTPStatus.REQUEST_TIMEOUT, "nothing came for too long")
        finally:
            self._served -= 1
            self._taker.released(association)
        return _response(answers)

    def _refusal(self, request: Request) -> Response | None:
        """Why a request is not even read, if so."""
        if not self._authorised(request):
            challenge = {"WWW-Authenticate": "Bearer"}
            return _say(HTTPStatus.UNAUTHORIZED, "show the bearer token", challenge)
        if not _boundary(request) or request.headers.get("Content-Encoding", "identity") != (
            "identity"
        ):
            wanted = f'send multipart/related; type="{DICOM_FILE}"'
            return _say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, wanted)
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._maximum_request:
            return _say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "stow.maximum_request_mb is exceeded")
        if self._served >= MAXIMUM_REQUESTS:
            return _say(HTTPStatus.SERVICE_UNAVAILABLE, "busy", {"Retry-After": "10"})
        return None

    def _authorised(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        matches = hmac.compare_digest(token.strip().encode(), self._token)
        return scheme.lower() == "bearer" and matches

    async def _receive(self, request: Request, association: str) -> Sequence[_Answer]:
        parts = _Parts(_boundary(request), self._largest_instance)
        study = str(request.path_params.get("study", ""))
        answers: list[_Answer] = []
        received = 0
        async for chunk in _chunks(request):
            received += len(chunk)
            if received > self._maximum_request:
                raise _TooLong
            for part in parts.feed(chunk):
                answers.append(await run_in_threadpool(self._take, part, study, association))  # noqa: PERF401 - one after another
        if not parts.ended or not answers:
            raise _Malformed
        return answers

    def _take(self, part: _Part, study: str, association: str) -> _Answer:
        """Take one instance; never raises for what a part is."""
        names = ("", "")
        try:
            incoming, header = _open(part)
            names = (incoming.sop_class_uid, incoming.sop_instance_uid)
            _require_wanted(part, incoming, header, study)
            self._taker.take(incoming, association)
        except NotTaken as refusal:
            _log.warning("refused", reason=f"0x{refusal.status:04X}", why=str(refusal))
            return _Answer(*names, refusal.status)
        except Exception as error:
            # As over C-STORE: not success, and no traceback, whose variables are the patient's.
            _log.error("not_stored", error=type(error).__name__)
            return _Answer(*names, _PROCESSING_FAILURE)
        return _Answer(*names, SUCCESS)


@dataclass
class _Part:
    """One part of the body, as far as it came.

    Attributes:
        truncated: what goes beyond the largest instance is not kept.
    """

    content: bytearray
    content_type: str = ""
    truncated: bool = False


class _Parts:
    """Splits a multipart body that comes in pieces (RFC 2046 5.1)."""

    def __init__(self, boundary: str, largest: int) -> None:
        self._largest = largest
        self._name, self._value = bytearray(), bytearray()
        self._part = _Part(bytearray())
        self._finished: list[_Part] = []
        self.ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": _appending(lambda: self._name),
                "on_header_value": _appending(lambda: self._value),
                "on_header_end": self._header,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._end_of_all,
            },
        )

    def feed(self, chunk: bytes) -> Sequence[_Part]:
        """The parts that ended in this piece.

        Raises:
            _Malformed: it is no multipart body.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _Malformed from None
        finished, self._finished = self._finished, []
        return finished

    def _begin(self) -> None:
        self._part = _Part(bytearray())

    def _header(self) -> None:
        if self._name.lower() == b"content-type":
            self._part.content_type = _media_type(self._value.decode("latin-1"))[0]
        self._name.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        room = self._largest - len(self._part.content)
        if end - start > room:
            self._part.truncated = True
            end = start + room
        self._part.content += data[start:end]

    def _end(self) -> None:
        self._finished.append(self._part)

    def _end_of_all(self) -> None:
        self.ended = True


def _open(part: _Part) -> tuple[IncomingInstance, InstanceHeader]:
    if part.content_type != DICOM_FILE:
        raise NotTaken(_PROCESSING_FAILURE, "a part is not application/dicom")
    return open_file(bytes(part.content))


def _require_wanted(
    part: _Part, incoming: IncomingInstance, header: InstanceHeader, study: str
) -> None:
    if part.truncated:
        raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
    if study and header.study.study_instance_uid != study:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "it is not of the study of the URL")
    require_ct_image(incoming)


def _appending(target: Callable[[], bytearray]) -> Callable[[bytes, int, int], None]:
    def append(data: bytes, start: int, end: int) -> None:
        target().extend(data[start:end])

    return append


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; a sender that stalls would keep its study from being complete.

    Raises:
        TimeoutError: nothing came for too long.
    """
    stream = aiter(request.stream())
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), STALL_TIMEOUT_S)
        except StopAsyncIteration:
            return


def _boundary(request: Request) -> str:
    """Of a multipart body of DICOM files; "" where it is none."""
    media_type, parameters = _media_type(request.headers.get("Content-Type", ""))
    if media_type != "multipart/related" or parameters.get("type", DICOM_FILE) != DICOM_FILE:
        return ""
    boundary = parameters.get("boundary", "")
    # RFC 2046 5.1.1 allows 70 characters; Orthanc sends 73.
    return boundary if len(boundary) <= _LONGEST_BOUNDARY and boundary.isascii() else ""


def _media_type(value: str) -> tuple[str, dict[str, str]]:
    """Type and parameters of a Content-Type header, the type in small letters."""
    message = Message()
    message["Content-Type"] = value
    parameters = {str(k).lower(): str(v) for k, v in message.get_params(failobj=[])[1:]}
    return message.get_content_type(), parameters


def _response(answers: Sequence[_Answer]) -> Response:
    """Store Instances Response (PS3.18 10.5.3)."""
    stored = [a.item for a in answers if a.reason == SUCCESS]
    failed = [a.item for a in answers if a.reason != SUCCESS and a.sop_instance_uid]
    other = [a.item for a in answers if a.reason != SUCCESS and not a.sop_instance_uid]
    body = Dataset()
    body.RetrieveURL = ""  # Phoi gives no images back
    if stored:
        body.ReferencedSOPSequence = stored
    if failed:
        body.FailedSOPSequence = failed
    if other:
        body.OtherFailuresSequence = other
    status = HTTPStatus.OK
    if failed or other:
        status = HTTPStatus.ACCEPTED if stored else HTTPStatus.CONFLICT
    return JSONResponse(body.to_json_dict(), status, media_type=DICOM_JSON)


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
