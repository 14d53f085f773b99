"""STOW-RS: Orthanc and plain HTTP send; only CT images of the right study, under a token, stay."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from phoi_edge_node.dicom import stow
from phoi_edge_node.dicom.acceptor import MemoryBudget
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.stow import StowService
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.ports import Intake, ReceivedInstance
from phoi_edge_node.settings import DicomSettings, StowSettings
from phoi_edge_node.system import SystemClock
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread
from pydicom.uid import JPEGBaseline8Bit, MRImageStorage
from starlette.applications import Starlette
from starlette.routing import Mount
from structlog.testing import capture_logs
from support.dicom_phantom import SeriesOptions, write_series
from support.orthanc import DICOM_WEB, orthanc
from support.outside import wait_for
from support.web_server import serving

TOKEN = "a-long-random-token-of-this-test"
PIXELS = 32
BOUNDARY = "phoi-boundary"


@dataclass
class Index:
    """Stands for the study's intake: remembers, and judges as an index does."""

    received: dict[str, ReceivedInstance] = field(default_factory=dict)
    associations: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        self.associations.add(association)
        known = self.received.setdefault(instance.sop_instance_uid, instance)
        if known is instance:
            return Intake.STORED
        return Intake.DUPLICATE if known.sha256 == instance.sha256 else Intake.CONFLICT

    def association_released(self, association: str) -> None:
        self.released.append(association)


@dataclass
class Site:
    port: int
    index: Index
    files: InstanceFiles

    def post(
        self,
        body: bytes,
        path: str = "/studies",
        token: str = TOKEN,
        content_type: str = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}',
    ) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/dicom-web{path}",
            content=body,
            headers={
                b"Authorization": f"Bearer {token}".rstrip().encode(),
                b"Content-Type": content_type.encode(),
            },
            trust_env=False,
            timeout=60,
        )

    def on_disk(self) -> list[Path]:
        return sorted((self.files.root / "studies").rglob("*.dcm"))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
def site(tmp_path: Path, token_file: Path) -> Iterator[Site]:
    files, index = InstanceFiles(tmp_path / "instances"), Index()
    dicom = DicomSettings(minimum_free_disk_mb=0, largest_instance_mb=1)
    taker = InstanceTaker(dicom, files, index, SystemClock())
    settings = StowSettings(bearer_token_file=token_file, maximum_request_mb=3)
    service = StowService(settings, dicom, taker, SystemClock())
    app = Starlette(routes=[Mount("/dicom-web", service.application())])
    with serving(app) as port:
        yield Site(port, index, files)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    hu = np.zeros((4, PIXELS, PIXELS), np.int16)
    volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (0, 0, 0), axes))
    return write_series(tmp_path_factory.mktemp("series"), volume, SeriesOptions())


def _body(*files: bytes, content_type: str = "application/dicom") -> bytes:
    parts = [
        f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode() + file + b"\r\n"
        for file in files
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def _changed(path: Path, **values: object) -> bytes:
    """The file with other values, in the file meta information too where they stand there."""
    dataset = dcmread(path)
    for keyword, value in values.items():
        target: Dataset = dataset.file_meta if keyword == "TransferSyntaxUID" else dataset
        setattr(target, keyword, value)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        del dataset.PixelData  # nothing looks so far
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    target_file = path.parent / "changed.bin"
    dataset.save_as(target_file, enforce_file_format=True)
    content = target_file.read_bytes()
    target_file.unlink()
    return content


def _stored(answer: httpx.Response) -> set[str]:
    items = answer.json().get("00081199", {}).get("Value", [])
    return {item["00081155"]["Value"][0] for item in items}


def _failed(answer: httpx.Response) -> dict[str, int]:
    items = answer.json().get("00081198", {}).get("Value", [])
    return {item["00081155"]["Value"][0]: item["00081197"]["Value"][0] for item in items}


def test_orthanc_sends_a_study_and_is_told_that_all_is_stored(
    site: Site, series: tuple[Path, ...], tmp_path: Path
) -> None:
    servers = {
        "phoi": {
            "Url": f"http://127.0.0.1:{site.port}/dicom-web",
            "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"},
        }
    }
    with orthanc(
        tmp_path / "orthanc", plugins=(DICOM_WEB,), DicomWeb={"Enable": True, "Servers": servers}
    ) as pacs:
        for path in series:
            pacs.upload(path)
        sent = pacs.http.post(
            "/dicom-web/servers/phoi/stow",
            json={"Resources": pacs.resources("studies"), "Synchronous": True},
        )
        assert sent.is_success, sent.text
    assert set(site.index.received) == {dcmread(path).SOPInstanceUID for path in series}
    assert len(site.on_disk()) == len(series)
    assert set(site.index.released) == site.index.associations
    for file in site.on_disk():
        assert dcmread(file).pixel_array.shape == (PIXELS, PIXELS)


def test_one_request_is_one_association_and_a_repeat_is_success_too(
    site: Site, series: tuple[Path, ...]
) -> None:
    body = _body(*(path.read_bytes() for path in series))
    for _ in range(2):
        answer = site.post(body)
        assert answer.status_code == httpx.codes.OK
        assert answer.headers["Content-Type"] == "application/dicom+json"
        assert _stored(answer) == set(site.index.received)
    assert len(site.index.received) == len(series)
    assert len(site.index.released) == len(site.index.associations) == 2


def test_what_is_no_ct_or_of_another_study_is_refused_by_itself(
    site: Site, series: tuple[Path, ...]
) -> None:
    good = series[0].read_bytes()
    study = str(dcmread(series[0]).StudyInstanceUID)
    body = _body(
        good,
        _changed(series[1], SOPClassUID=MRImageStorage, SOPInstanceUID="1.2.1"),
        _changed(series[1], StudyInstanceUID="1.2.99", SOPInstanceUID="1.2.2"),
        _changed(series[1], TransferSyntaxUID=JPEGBaseline8Bit, SOPInstanceUID="1.2.3"),
        b"this is no DICOM file",
    )
    answer = site.post(body, f"/studies/{study}")
    assert answer.status_code == httpx.codes.ACCEPTED
    assert _stored(answer) == {dcmread(series[0]).SOPInstanceUID}
    assert _failed(answer) == {"1.2.1": 0x0122, "1.2.2": 0xA900, "1.2.3": 0xC122}
    assert [i["00081197"]["Value"] for i in answer.json()["0008119A"]["Value"]] == [[0xC000]]
    assert len(site.on_disk()) == 1


def test_other_content_under_a_known_uid_is_refused(site: Site, series: tuple[Path, ...]) -> None:
    assert site.post(_body(series[0].read_bytes())).status_code == httpx.codes.OK
    uid = str(dcmread(series[0]).SOPInstanceUID)
    answer = site.post(_body(_changed(series[0], KVP="99")))
    assert answer.status_code == httpx.codes.CONFLICT
    assert _failed(answer) == {uid: 0x0111}


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ü"])
def test_without_the_token_nothing_is_read(
    site: Site, series: tuple[Path, ...], token: str
) -> None:
    answer = site.post(_body(series[0].read_bytes()), token=token)
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert site.index.associations == set()


@pytest.mark.parametrize(
    "content_type",
    [
        "application/dicom",
        f"multipart/form-data; boundary={BOUNDARY}",
        f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}',
        'multipart/related; type="application/dicom"',
    ],
)
def test_another_media_type_is_415(site: Site, series: tuple[Path, ...], content_type: str) -> None:
    answer = site.post(_body(series[0].read_bytes()), content_type=content_type)
    assert answer.status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE


def test_lengths_are_bounded(site: Site, series: tuple[Path, ...]) -> None:
    assert site.post(b"x" * 3_000_001).status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    # Without a Content-Length, it is noticed on the way.
    url = f"http://127.0.0.1:{site.port}/dicom-web/studies"
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": f"multipart/related; boundary={BOUNDARY}",
    }
    endless = (b"x" * 65536 for _ in range(100))
    try:
        answer = httpx.post(url, content=endless, headers=headers, trust_env=False, timeout=60)
    except httpx.TransportError:
        pass  # it hung up before all was sent: as good
    else:
        assert answer.status_code in {400, 413}
    large = _body(series[0].read_bytes() + b"\0" * 1_000_001, series[1].read_bytes())
    answer = site.post(large)
    assert answer.status_code == httpx.codes.ACCEPTED
    assert _failed(answer) == {dcmread(series[0]).SOPInstanceUID: 0xA700}
    assert len(site.on_disk()) == 1


@pytest.mark.parametrize("body", [b"", b"no multipart", _body()])
def test_a_body_without_parts_is_400(site: Site, body: bytes) -> None:
    assert site.post(body).status_code == httpx.codes.BAD_REQUEST


def test_a_body_that_breaks_off_is_400_and_what_came_whole_is_kept(
    site: Site, series: tuple[Path, ...]
) -> None:
    body = _body(*(path.read_bytes() for path in series[:2]))
    answer = site.post(body[: -len(body) // 4])
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert set(site.index.received) == {dcmread(series[0]).SOPInstanceUID}
    assert len(site.on_disk()) == len(site.index.received)


def test_a_client_that_vanishes_or_stalls_releases_its_study(
    site: Site, series: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "STALL_TIMEOUT_S", 0.5)
    first = _body(series[0].read_bytes()).removesuffix(b"--\r\n") + b"\r\n"
    head = (
        "POST /dicom-web/studies HTTP/1.1\r\nHost: phoi\r\n"
        f"Authorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/related; boundary={BOUNDARY}\r\n"
        "Content-Length: 2000000\r\n\r\n"
    ).encode()
    for vanishes in (True, False):
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
            connection.sendall(head + first)
            wait_for("instance", lambda: site.index.received, 20)
            if not vanishes:
                assert b" 408 " in connection.recv(4096)
        wait_for("release", lambda: site.index.released, 20)
        assert site.index.associations == set(site.index.released)
        site.index.received.clear()
        site.index.associations.clear()
        site.index.released.clear()


def test_parts_are_bounded_and_told_in_a_line(
    site: Site, series: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "MOST_PARTS", 5)
    with capture_logs() as logs:
        answer = site.post(_body(*[b""] * 5, content_type="a/b"))
        assert answer.status_code == httpx.codes.CONFLICT
        assert len(answer.json()["0008119A"]["Value"]) == 5
        answer = site.post(_body(series[0].read_bytes(), *[b""] * 5))
        assert answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    assert [entry["number"] for entry in logs if entry["event"] == "refused"] == [5, 4]
    assert len(site.on_disk()) == 1


def test_who_sends_too_slowly_is_not_waited_for(
    site: Site, series: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow, "_SLOW_START_S", -3600.0)  # an hour has passed
    answer = site.post(_body(series[0].read_bytes()))
    assert answer.status_code == httpx.codes.REQUEST_TIMEOUT
    assert site.index.associations == set()


def test_without_memory_for_more_a_sender_is_told_to_come_again(
    site: Site, series: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBudget, "take", lambda *_: False)
    answer = site.post(_body(series[0].read_bytes()))
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.headers["Retry-After"] == "10"


def test_a_token_file_that_is_missing_or_empty_is_said(tmp_path: Path) -> None:
    dicom, clock = DicomSettings(), SystemClock()
    taker = InstanceTaker(dicom, InstanceFiles(tmp_path / "instances"), Index(), clock)
    (tmp_path / "empty").write_text("\n")
    for name in ("absent", "empty"):
        with pytest.raises(SettingsError, match="bearer_token_file"):
            StowService(StowSettings(bearer_token_file=tmp_path / name), dicom, taker, clock)
