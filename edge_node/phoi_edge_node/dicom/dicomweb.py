"""DICOMweb client: an archive as an ``ImageSource``, asked by QIDO-RS (PS3.18 10.6), images by
WADO-RS (PS3.18 10.4).

What a server says is never passed on in words: an answer may quote the patient. Images are fetched
one by one: memory holds one, and a fetch that breaks off has brought those before it.
"""

from __future__ import annotations

import itertools
import json
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import structlog

from phoi_edge_node.dicom.multipart import DICOM_FILE, Malformed, Part, Parts, boundary_of
from phoi_edge_node.dicom.part10 import open_file, require_ct_image
from phoi_edge_node.dicom.storage_scp import SOP_CLASSES
from phoi_edge_node.dicom.taking import DATA_SET_DOES_NOT_MATCH, InstanceTaker, NotTaken
from phoi_edge_node.dicom.uids import is_uid
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import ArchivedImages, ArchivedSeries, ArchivedStudy
from phoi_edge_node.settings import ArchiveSettings

MAXIMUM_ANSWER = 64 * 1024 * 1024

_ACCEPT_JSON = "application/dicom+json"
_ACCEPT_IMAGE = f'multipart/related; type="{DICOM_FILE}"; transfer-syntax=*'
_A_PAGE = 1000
_MOST_PAGES = 100
_PATIENCE = 10  # an image may take so many times the time-out, if it goes on coming
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_SOP_CLASS, _MODALITY, _MODALITIES = "00080016", "00080060", "00080061"
_STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _BODY_PART = "00081030", "0008103E", "00180015"
_SERIES_COUNT = "00201209"
_LONGEST_COUNT = 9  # digits

_Json = Mapping[str, Any]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """One image that is asked for."""

    study_instance_uid: str
    sop_instance_uid: str


class DicomwebSource:
    """One archive of the settings, asked over DICOMweb. Safe to use from several threads.

    Args:
        taker: takes what is fetched; None: it is only asked what it holds.
        largest_instance: bytes; a longer image is not fetched.
    """

    def __init__(
        self,
        settings: ArchiveSettings,
        taker: InstanceTaker | None = None,
        largest_instance: int = 2_000_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._base = settings.dicomweb.rstrip("/")
        self._taker = taker
        self._largest_instance = largest_instance
        self._monotonic = monotonic
        self._fetches = itertools.count(1)

    @property
    def name(self) -> str:
        """As in the settings."""
        return self._settings.name

    @property
    def can_fetch(self) -> bool:
        """The settings say how."""
        return self._taker is not None and self._settings.retrieve == "wado-rs"

    def studies(self, first: date, last: date) -> Sequence[ArchivedStudy]:
        """Studies with CT series whose Study Date lies between two days, both included."""
        query = {
            "StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}",
            "ModalitiesInStudy": "CT",
            "includefield": f"{_MODALITIES},{_STUDY_DESCRIPTION}",
        }
        found = []
        for item in self._search("/studies", query, _STUDY):
            modalities = frozenset(str(value) for value in _values(item, _MODALITIES))
            if not modalities or "CT" in modalities:  # not every server matches by it
                description = _text(item, _STUDY_DESCRIPTION)
                found.append(ArchivedStudy(_text(item, _STUDY), modalities, description))
        return found

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """The series of a study; empty where the archive does not know it."""
        query = {"includefield": ",".join((_SERIES_COUNT, _SERIES_DESCRIPTION, _BODY_PART))}
        path = f"/studies/{study_instance_uid}/series"
        return [
            ArchivedSeries(
                _text(item, _SERIES),
                _text(item, _MODALITY),
                _count(item),
                _text(item, _SERIES_DESCRIPTION),
                _text(item, _BODY_PART),
            )
            for item in self._search(path, query, _SERIES, study_instance_uid)
            if _text(item, _STUDY) in {"", study_instance_uid}
        ]

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> ArchivedImages:
        """The images of a series."""
        path = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        listed = {
            _text(item, _INSTANCE): _text(item, _SOP_CLASS)
            for item in self._search(path, {}, _INSTANCE, study_instance_uid)
            if _text(item, _SERIES) in {"", series_instance_uid}
        }
        images = {uid for uid, kind in listed.items() if not kind or kind in SOP_CLASSES}
        return ArchivedImages(frozenset(images), len(listed))

    def documents(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of all that is no CT image in a study: reports, segmentations, ..."""
        others = (s for s in self.series(study_instance_uid) if s.modality != "CT")
        return {
            _text(item, _INSTANCE)
            for series in others
            for item in self._search(
                f"/studies/{study_instance_uid}/series/{series.series_instance_uid}/instances",
                {},
                _INSTANCE,
                study_instance_uid,
            )
        }

    def fetch(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Collection[str]
    ) -> int:
        """Fetch images, one by one; once this returns they are durable and indexed."""
        if self._taker is None:
            raise SourceUnavailable(f"{self.name} is only asked what it holds")
        wanted = sorted(
            sop_instance_uids
            or self.instances(study_instance_uid, series_instance_uid).sop_instance_uids
        )
        association = f"wado-rs {self.name} {next(self._fetches)}"
        series = f"/studies/{study_instance_uid}/series/{series_instance_uid}"
        try:
            with self._client() as client:
                sent = sum(
                    self._fetch(client, _Wanted(study_instance_uid, uid), series, association)
                    for uid in wanted
                )
        finally:
            self._taker.released(association)
        if sent < len(wanted):
            raise SourceUnavailable(f"{sent} of {len(wanted)} images came from {self.name}")
        return sent

    # --- searching ---------------------------------------------------------------------------

    def _search(
        self, path: str, query: Mapping[str, str], unique: str, study_instance_uid: str = ""
    ) -> Sequence[_Json]:
        """All matches with a usable UID, each once.

        A server may give fewer at once than were asked for (PS3.18 8.3.4.4), or not know paging at
        all: so pages are asked for until one brings nothing new.

        Args:
            unique: tag of the UID that names a match.
            study_instance_uid: below which it is searched.
        """
        found: dict[str, _Json] = {}
        with self._client() as client:
            for _ in range(_MOST_PAGES):
                paging = {"limit": str(_A_PAGE), "offset": str(len(found))}
                page = self._page(client, path, {**query, **paging}, study_instance_uid)
                new = {uid: i for i in page if is_uid(uid := _text(i, unique)) and uid not in found}
                if not new:
                    return list(found.values())
                found |= new
        raise SourceUnavailable(f"{self.name} gives more than {_MOST_PAGES} pages of answers")

    def _page(
        self, client: httpx.Client, path: str, query: Mapping[str, str], study_instance_uid: str
    ) -> Sequence[_Json]:
        with self._get(client, path, _ACCEPT_JSON, query) as response:
            if response.status_code == HTTPStatus.NO_CONTENT:
                return ()
            if response.status_code == HTTPStatus.NOT_FOUND and study_instance_uid:
                self._require_search(client)
                return ()  # it knows no such study
            self._require_success(response)
            return self._json(self._body(response, MAXIMUM_ANSWER))

    def _require_search(self, client: httpx.Client) -> None:
        """There is a QIDO-RS service: "not found" was said of the study, not of the address."""
        with self._get(client, "/studies", _ACCEPT_JSON, {"limit": "1"}) as response:
            self._require_success(response)

    def _json(self, body: bytes) -> Sequence[_Json]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
            raise SourceUnavailable(f"{self.name} gives no DICOM JSON: check dicomweb")
        return answer

    # --- fetching ----------------------------------------------------------------------------

    def _fetch(self, client: httpx.Client, wanted: _Wanted, series: str, association: str) -> int:
        """Fetch and take one image; 0 where the archive does not give it, or it is not taken."""
        path = f"{series}/instances/{wanted.sop_instance_uid}"
        with self._get(client, path, _ACCEPT_IMAGE, {}) as response:
            if response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
                return 0
            self._require_success(response)
            content = self._only_part(response)
        log = _log.bind(sop_instance_uid=wanted.sop_instance_uid, archive=self.name)
        try:
            self._take(content, wanted, association)
        except NotTaken as refusal:
            log.warning("refused", status=f"0x{refusal.status:04X}", why=str(refusal))
            return 0
        return 1

    def _take(self, content: bytes, wanted: _Wanted, association: str) -> None:
        incoming, header = open_file(content)
        got = _Wanted(header.study.study_instance_uid, header.sop_instance_uid)
        if got != wanted or self._taker is None:
            raise NotTaken(DATA_SET_DOES_NOT_MATCH, "it is not the image that was asked for")
        require_ct_image(incoming)
        self._taker.take(incoming, association)

    def _only_part(self, response: httpx.Response) -> bytes:
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        if not boundary:
            raise SourceUnavailable(f"{self.name} sends no multipart of DICOM files")
        parts = Parts(boundary, self._largest_instance)
        found: list[Part] = []
        try:
            for chunk in self._chunks(response, self._largest_instance + 65536):
                found += parts.feed(chunk)
        except Malformed:
            found = []
        if len(found) != 1 or found[0].truncated:
            raise SourceUnavailable(f"{self.name} sends something else than the image")
        return bytes(found[0].content)

    # --- HTTP --------------------------------------------------------------------------------

    def _client(self) -> httpx.Client:
        # Not by way of a proxy that happens to stand in the environment; the system's own list of
        # authorities, which is where a hospital adds its own.
        return httpx.Client(
            timeout=self._settings.timeout_s,
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    @contextmanager
    def _get(
        self, client: httpx.Client, path: str, accept: str, query: Mapping[str, str]
    ) -> Iterator[httpx.Response]:
        headers = {"Accept": accept, "Accept-Encoding": "identity", **self._authorization()}
        try:
            with client.stream(
                "GET", f"{self._base}{path}", params=query, headers=headers
            ) as response:
                yield response
        except (httpx.TimeoutException, TimeoutError):
            raise SourceUnavailable(
                f"{self.name} gave no answer within {self._settings.timeout_s:g} s"
            ) from None
        except httpx.HTTPError as error:
            raise SourceUnavailable(
                f"no connection to {self.name}: {type(error).__name__}"
            ) from None

    def _authorization(self) -> Mapping[str, str]:
        """The token, read for each request: tokens are renewed behind our back."""
        path: Path | None = self._settings.bearer_token_file
        if path is None:
            return {}
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        if not _BEARER_TOKEN.fullmatch(token):
            raise SourceUnavailable(
                f"the bearer_token_file of {self.name} holds no token that can be read"
            )
        return {"Authorization": f"Bearer {token}"}

    def _require_success(self, response: httpx.Response) -> None:
        if response.status_code != HTTPStatus.OK:
            raise SourceUnavailable(f"{self.name} answered with HTTP {response.status_code}")

    def _body(self, response: httpx.Response, most: int) -> bytes:
        return b"".join(self._chunks(response, most))

    def _chunks(self, response: httpx.Response, most: int) -> Iterator[bytes]:
        """The body, within the time and length that are granted to the whole of it."""
        deadline = self._monotonic() + _PATIENCE * self._settings.timeout_s
        length = 0
        for chunk in response.iter_bytes():
            length += len(chunk)
            if length > most:
                raise SourceUnavailable(f"{self.name} sends more than {most} bytes at once")
            if self._monotonic() > deadline:
                raise SourceUnavailable(f"{self.name} sends too slowly")
            yield chunk


def _values(item: _Json, tag: str) -> Sequence[object]:
    """The values of an attribute of the DICOM JSON Model (PS3.18 F.2)."""
    attribute = item.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return values if isinstance(values, list) else ()


def _text(item: _Json, tag: str) -> str:
    """Its first value, or ""."""
    first = next(iter(_values(item, tag)), "")
    return str(first) if isinstance(first, (str, int)) else ""


def _count(item: _Json) -> int | None:
    """Number of Series Related Instances (0020,1209), where the archive gives a usable one."""
    value = _text(item, _SERIES_COUNT)
    usable = value.isascii() and value.isdigit() and len(value) <= _LONGEST_COUNT
    return int(value) if usable else None
