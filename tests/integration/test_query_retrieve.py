"""Archives that lag, lie, flood or break off: what is made of their answers, and never more."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_edge_node.dicom import dicomweb, query_retrieve
from phoi_edge_node.dicom.dicomweb import DicomwebSource
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.query_retrieve import DicomSource
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import ArchivedSeries, Intake, ReceivedInstance
from phoi_edge_node.settings import ArchiveSettings, DicomSettings
from phoi_edge_node.system import SystemClock
from pydicom import Dataset, dcmwrite
from pynetdicom import evt
from support.archives import Answers, Page, query_scp, web_archive
from support.dicom_phantom import SeriesOptions, make_series
from support.values import small_volume

OPTIONS = SeriesOptions()
STUDY, SERIES = OPTIONS.study_instance_uid, OPTIONS.series_instance_uid
IMAGES = make_series(small_volume(), OPTIONS)
UIDS = [str(image.SOPInstanceUID) for image in IMAGES]
OF_ANOTHER_STUDY = make_series(small_volume(), SeriesOptions(study=2))
PENDING, SUCCESS = 0xFF00, 0x0000
JSON = "application/dicom+json"


class Edge:
    """What takes fetched images, and what it took."""

    def __init__(self, folder: Path) -> None:
        dicom = DicomSettings(minimum_free_disk_mb=0)
        self.taken: list[str] = []
        self.released: list[str] = []
        self.taker = InstanceTaker(dicom, InstanceFiles(folder), self, SystemClock())

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        del association
        self.taken.append(instance.sop_instance_uid)
        return Intake.STORED

    def association_released(self, association: str) -> None:
        self.released.append(association)

    def source(self, port: int, **more: object) -> DicomSource:
        values = {
            "ae_title": "ARCHIVE",
            "host": "127.0.0.1",
            "port": port,
            "timeout_s": 5,
            "query": True,
        }
        return DicomSource(ArchiveSettings.model_validate(values | more), "PHOI", self.taker)

    def web_source(self, base_url: str, **more: object) -> DicomwebSource:
        values = {
            "ae_title": "ARCHIVE",
            "host": "127.0.0.1",
            "port": 1,
            "timeout_s": 5,
            "retrieve": "wado-rs",
            "dicomweb": base_url,
        }
        return DicomwebSource(ArchiveSettings.model_validate(values | more), self.taker)


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path / "instances")


def series(uid: str = SERIES, study: str = STUDY, count: object = 4) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = "SERIES"
    answer.StudyInstanceUID, answer.SeriesInstanceUID = study, uid
    answer.Modality = "CT"
    if count is not None:
        answer.NumberOfSeriesRelatedInstances = count
    return answer


def pending(*answers: Dataset, end: int = SUCCESS) -> Callable[[evt.Event], Answers]:
    def find(_: evt.Event) -> Answers:
        for answer in answers:
            yield PENDING, answer
        yield end, None

    return find


# --- C-FIND ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC001, 0xFE00])
def test_an_answer_that_ends_badly_is_no_answer(edge: Edge, status: int) -> None:
    with (
        query_scp(pending(series(), end=status)) as port,
        pytest.raises(SourceUnavailable, match=f"0x{status:04X}"),
    ):
        edge.source(port).series(STUDY)


def test_answers_about_another_study_are_passed_over(edge: Edge) -> None:
    with query_scp(pending(series(), series("1.2.9", study="1.2.8"))) as port:
        told = edge.source(port).series(STUDY)
    assert told == [ArchivedSeries(SERIES, "CT", 4)]


def test_an_archive_need_not_count(edge: Edge) -> None:
    with query_scp(pending(series(count=None))) as port:
        assert [s.instances for s in edge.source(port).series(STUDY)] == [None]


def test_what_is_no_uid_is_passed_over(edge: Edge) -> None:
    nameless = Dataset()
    nameless.StudyInstanceUID = STUDY
    with query_scp(pending(nameless, series())) as port:
        assert len(edge.source(port).series(STUDY)) == 1


def test_images_of_a_kind_that_is_never_taken_are_left_out(edge: Edge) -> None:
    def image(uid: str, kind: str | None) -> Dataset:
        answer = Dataset()
        answer.SOPInstanceUID = uid
        if kind:
            answer.SOPClassUID = kind
        return answer

    ct, screen_save = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
    answers = (image("1.1", ct), image("1.2", screen_save), image("1.3", None))
    with query_scp(pending(*answers)) as port:
        assert edge.source(port).instances(STUDY, SERIES).sop_instance_uids == {"1.1", "1.3"}


def test_studies_of_other_modalities_are_left_out_and_text_is_decoded(edge: Edge) -> None:
    def study(uid: str, modalities: object, description: str, character_set: str) -> Dataset:
        answer = Dataset()
        answer.SpecificCharacterSet = character_set
        answer.StudyInstanceUID, answer.StudyDescription = uid, description
        if modalities:
            answer.ModalitiesInStudy = modalities
        return answer

    answers = (
        study("1.1", ["CT", "SR"], "CT ngực", "ISO_IR 192"),
        study("1.2", "MR", "", "ISO_IR 192"),
        study("1.3", None, "Thorax für Müller", "ISO_IR 100"),
    )
    with query_scp(pending(*answers)) as port:
        told = edge.source(port).studies(date(2026, 3, 1), date(2026, 3, 31))
    assert [(s.study_instance_uid, s.modalities, s.description) for s in told] == [
        ("1.1", frozenset({"CT", "SR"}), "CT ngực"),
        ("1.3", frozenset(), "Thorax für Müller"),
    ]


def test_a_flood_of_answers_is_cut_off(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_retrieve, "_MOST_ANSWERS", 20)
    given: list[int] = []

    def flood(event: evt.Event) -> Answers:
        while not event.is_cancelled and len(given) < 100_000:
            given.append(1)
            yield PENDING, series()

    with query_scp(flood) as port, pytest.raises(SourceUnavailable, match="more than 20"):
        edge.source(port).series(STUDY)
    assert len(given) < 100_000, "the association was aborted"


def test_an_archive_that_never_answers_is_waited_for_no_longer_than_told(edge: Edge) -> None:
    may_end = threading.Event()

    def silent(_: evt.Event) -> Answers:
        may_end.wait(30)
        return iter(())

    try:
        with query_scp(silent) as port, pytest.raises(SourceUnavailable, match="no answer"):
            edge.source(port, timeout_s=3).series(STUDY)
    finally:
        may_end.set()


def test_an_archive_that_breaks_off_is_no_answer(edge: Edge) -> None:
    def broken(event: evt.Event) -> Answers:
        yield PENDING, series()
        event.assoc.abort()

    with query_scp(broken) as port, pytest.raises(SourceUnavailable):
        edge.source(port).series(STUDY)


def test_an_archive_that_does_not_offer_the_service(edge: Edge) -> None:
    with query_scp() as port:
        source = edge.source(port, retrieve="c-get")
        with pytest.raises(SourceUnavailable):
            source.fetch(STUDY, SERIES, UIDS)
    assert edge.released


# --- C-GET and C-MOVE --------------------------------------------------------------------------


def sending(*images: Dataset) -> Callable[[evt.Event], Iterator[object]]:
    def get(_: evt.Event) -> Iterator[object]:
        yield len(images)
        for image in images:
            yield PENDING, image

    return get


def test_images_come_by_c_get(edge: Edge) -> None:
    with query_scp(get=sending(*IMAGES)) as port:
        assert edge.source(port, retrieve="c-get").fetch(STUDY, SERIES, UIDS) == len(UIDS)
    assert sorted(edge.taken) == sorted(UIDS)
    assert len(edge.released) == 1


def test_images_that_were_not_asked_for_are_refused(edge: Edge) -> None:
    with query_scp(get=sending(*IMAGES)) as port:
        assert edge.source(port, retrieve="c-get").fetch(STUDY, SERIES, UIDS[:2]) == 2
    assert sorted(edge.taken) == sorted(UIDS[:2])


def test_images_of_another_study_are_refused_under_any_name(edge: Edge) -> None:
    foreign = OF_ANOTHER_STUDY[0]
    foreign.SOPInstanceUID = UIDS[0]
    with query_scp(get=sending(foreign)) as port, pytest.raises(SourceUnavailable, match="0xA702"):
        edge.source(port, retrieve="c-get").fetch(STUDY, SERIES, UIDS[:1])
    assert edge.taken == []


def test_a_c_get_that_breaks_off_keeps_what_came(edge: Edge) -> None:
    def broken(event: evt.Event) -> Iterator[object]:
        yield 4
        yield PENDING, IMAGES[0]
        event.assoc.abort()

    with query_scp(get=broken) as port, pytest.raises(SourceUnavailable):
        edge.source(port, retrieve="c-get").fetch(STUDY, SERIES, UIDS)
    assert edge.taken == UIDS[:1]
    assert edge.released


def test_an_archive_that_does_not_know_us_says_what_to_do(edge: Edge) -> None:
    def unknown_destination(_: evt.Event) -> Iterator[object]:
        yield None, None

    with (
        query_scp(move=unknown_destination) as port,
        pytest.raises(SourceUnavailable, match="add Phoi's AE title"),
    ):
        edge.source(port, retrieve="c-move").fetch(STUDY, SERIES, UIDS)


# --- DICOMweb ----------------------------------------------------------------------------------


def json_page(*items: Mapping[str, object]) -> Page:
    return 200, JSON, json.dumps(items).encode()


def web_series(uid: str, count: int = 4) -> Mapping[str, object]:
    return {
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [uid]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00201209": {"vr": "IS", "Value": [count]},
    }


def test_pages_are_asked_for_until_one_brings_nothing_new(edge: Edge) -> None:
    everything = [web_series(f"1.2.{n}") for n in range(7)]

    def three_at_once(_: str, query: Mapping[str, str]) -> Page:
        start = int(query["offset"])
        return json_page(*everything[start : start + 3])

    with web_archive(three_at_once) as url:
        assert len(edge.web_source(url).series(STUDY)) == 7
    with web_archive(lambda *_: json_page(*everything)) as url:  # it knows no paging
        assert len(edge.web_source(url).series(STUDY)) == 7


@pytest.mark.parametrize(
    "page",
    [
        (401, "text/plain", b"patient Nguyen"),
        (500, "text/plain", b"patient Nguyen"),
        (302, "text/plain", b""),
        (200, "text/html", b"<h1>patient Nguyen, sign in</h1>"),
        (200, JSON, b'{"not": "a list"}'),
        (200, JSON, b"[1, 2]"),
        (200, JSON, b"[" * 200_000),
    ],
)
def test_what_is_no_answer_is_said_to_be_none_and_not_quoted(edge: Edge, page: Page) -> None:
    with web_archive(lambda *_: page) as url, pytest.raises(SourceUnavailable) as told:
        edge.web_source(url).series(STUDY)
    assert "Nguyen" not in str(told.value)


def test_not_found_is_about_the_study_only_where_there_is_a_service(edge: Edge) -> None:
    def knows_no_such_study(path: str, _: Mapping[str, str]) -> Page:
        return json_page() if path == "/studies" else (404, "text/plain", b"")

    with web_archive(knows_no_such_study) as url:
        assert edge.web_source(url).series(STUDY) == []
    with (
        web_archive(lambda *_: (404, "text/plain", b"")) as url,
        pytest.raises(SourceUnavailable, match="404"),
    ):
        edge.web_source(url).series(STUDY)


def test_an_answer_that_is_too_long_is_cut_off(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "MAXIMUM_ANSWER", 1000)
    with (
        web_archive(lambda *_: (200, JSON, b" " * 100_000)) as url,
        pytest.raises(SourceUnavailable, match="1000 bytes"),
    ):
        edge.web_source(url).series(STUDY)


def test_the_token_is_read_anew_and_never_told(edge: Edge, tmp_path: Path) -> None:
    shown: list[str] = []

    def answer(_: str, query: Mapping[str, str]) -> Page:
        shown.append(query["authorization"])
        return json_page()

    token = tmp_path / "token"
    token.write_text("first\n")
    with web_archive(answer) as url:
        source = edge.web_source(url, bearer_token_file=token)
        source.series(STUDY)
        token.write_text("second")
        source.series(STUDY)
        token.write_text("bad token\nX-Header: 1")
        with pytest.raises(SourceUnavailable) as told:
            source.series(STUDY)
    assert shown == ["Bearer first", "Bearer second"]
    assert "bad token" not in str(told.value)


def part10(image: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def multipart(*files: bytes) -> Page:
    parts = [b"--B\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files]
    content_type = 'multipart/related; type="application/dicom"; boundary=B'
    return 200, content_type, b"".join(parts) + b"--B--\r\n"


def test_an_image_comes_by_wado_rs(edge: Edge) -> None:
    image = part10(IMAGES[0])
    with web_archive(lambda *_: multipart(image)) as url:
        assert edge.web_source(url).fetch(STUDY, SERIES, UIDS[:1]) == 1
    assert edge.taken == UIDS[:1]
    assert edge.released


@pytest.mark.parametrize(
    "page",
    [
        (404, "text/plain", b""),
        multipart(part10(IMAGES[1])),
        multipart(part10(OF_ANOTHER_STUDY[1])),
        multipart(b"nonsense"),
        multipart(part10(IMAGES[0])[:300]),
        multipart(),
        multipart(part10(IMAGES[0]), part10(IMAGES[1])),
        (200, 'multipart/related; type="application/dicom"; boundary=B', b"--B\r\nbroken"),
        (200, "application/dicom", part10(IMAGES[0])),
    ],
)
def test_what_is_not_the_image_that_was_asked_for_is_not_taken(edge: Edge, page: Page) -> None:
    with web_archive(lambda *_: page) as url, pytest.raises(SourceUnavailable):
        edge.web_source(url).fetch(STUDY, SERIES, UIDS[:1])
    assert edge.taken == []
    assert edge.released


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["0020000D", "0020000E", "00201209", "00080060", "vr", "Value"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=30)
@given(answer=JSON_VALUES)
def test_no_answer_in_json_is_more_than_an_answer_or_none(
    any_json: AnyJson, answer: object
) -> None:
    any_json.body = json.dumps(answer).encode()
    try:
        told = any_json.source.series(STUDY)
    except SourceUnavailable:
        return
    for series_told in told:
        assert re.fullmatch(r"[0-9.]{1,64}", series_told.series_instance_uid)
        assert series_told.instances is None or series_told.instances >= 0


class AnyJson:
    """A server that answers with the same JSON whatever it is asked."""

    source: DicomwebSource
    body = b"[]"


@pytest.fixture(scope="module")
def any_json(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyJson]:
    made = AnyJson()
    with web_archive(lambda *_: (200, JSON, made.body)) as url:
        made.source = Edge(tmp_path_factory.mktemp("edge")).web_source(url)
        yield made
