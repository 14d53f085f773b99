"""One whole node with every way in: an order, images by STOW-RS and by a CD, a merge afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import hl7
import httpx
import pytest
from hl7.client import MLLPClient
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import (
    ArchiveSettings,
    DicomSettings,
    EdgeSettings,
    OrdersSettings,
    SiteMode,
    SiteSettings,
    StowSettings,
    WatchedFolderSettings,
    WebSettings,
)
from phoi_edge_node.study import AnalysisState
from phoi_edge_node.testing import FakeInference
from phoi_models.home import Home
from pydicom import Dataset, dcmread
from support import values
from support.chests import plain_chest
from support.dcmtk import StoreScp, storescp
from support.dicom_phantom import SeriesOptions, write_series
from support.outside import wait_for

TOKEN = "a-long-random-token-of-this-test"
OPTIONS = SeriesOptions(
    patient_name="Bùi^Kẻ Lạ",
    header=(("AccessionNumber", "PLANTED-ACC"), ("IssuerOfPatientID", "BV")),
)
PLANTED = ("Bùi", "Kẻ Lạ", "PLANTED", "Hỏi kín", "BN-GONE", "BN-STAYS")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """A chest, coarse in its slices."""
    volume = plain_chest(spacing_mm=(2.5, 10.0, 10.0))
    return write_series(tmp_path_factory.mktemp("series"), volume, OPTIONS)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[StoreScp]:
    with storescp(tmp_path / "archive") as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, archive: StoreScp) -> Iterator[EdgeNode]:
    (tmp_path / "token").write_text(TOKEN)
    settings = EdgeSettings(
        data=tmp_path / "data",
        site=SiteSettings(name="test", mode=SiteMode.PACS),
        dicom=DicomSettings(port=0, quiet_time_s=0.5, minimum_free_disk_mb=0),
        archives=(ArchiveSettings(ae_title="ARCHIVE", host="127.0.0.1", port=archive.peer.port),),
        orders=OrdersSettings(port=0),
        stow=StowSettings(bearer_token_file=tmp_path / "token"),
        watched_folder=WatchedFolderSettings(folder=tmp_path / "cds", settled_s=0.2),
        web=WebSettings(port=0),
    )
    inference = FakeInference(values.MODEL, values.volume_analysis())
    node = EdgeNode(settings, Home(tmp_path / "home"), inference)
    node.start()
    try:
        yield node
    finally:
        node.stop()


def _say(node: EdgeNode, kind: str, *segments: str) -> None:
    assert node.ways_in.orders
    header = (
        f"MSH|^~\\&|HIS|BV|PHOI|BV|20260302094500+0700||{kind}|{kind}|P|2.5.1||||||UNICODE UTF-8"
    )
    with MLLPClient("127.0.0.1", node.ways_in.orders.port) as client:
        client.socket.settimeout(30)
        answer = client.send_message("\r".join([header, *segments, ""]))
    assert str(hl7.parse(answer[1:-2]).segment("MSA")[1]) == "AA"


def _stow(node: EdgeNode, files: tuple[Path, ...]) -> None:
    parts = [
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + f.read_bytes() + b"\r\n" for f in files
    ]
    answer = httpx.post(
        f"http://127.0.0.1:{node.web_port}/dicom-web/studies/{OPTIONS.study_instance_uid}",
        content=b"".join([*parts, b"--b--\r\n"]),
        headers={
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=b',
        },
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == httpx.codes.OK, answer.text


def _reports(archive: StoreScp) -> list[Dataset]:
    files = [dcmread(path) for path in sorted(archive.folder.iterdir())]
    return [dataset for dataset in files if dataset.Modality == "SR"]


def test_an_order_images_and_a_merge(
    node: EdgeNode,
    archive: StoreScp,
    series: tuple[Path, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uid, store = OPTIONS.study_instance_uid, node.storage.store
    patient = str(dcmread(series[0]).PatientID)
    pid = f"PID|1||{patient}^^^BV^MR||Bùi^Kẻ Lạ"
    _say(
        node,
        "ORM^O01",
        pid,
        "ORC|NW|P77^HIS",
        "OBR|1|P77^HIS|||||||||||Hỏi kín|||||PLANTED-ACC" + 9 * "|" + "^^^^^S",
    )
    half = len(series) // 2
    cd = tmp_path / "cds" / "CD"
    cd.mkdir()
    for path in series[:half]:
        shutil.copy(path, cd)
    _stow(node, series[half:])
    analysis = wait_for(
        "result of the whole study",
        lambda: next(
            (
                a
                for a in store.analyses(uid)
                if a.state is AnalysisState.SUCCEEDED and len(store.instances(uid)) == len(series)
            ),
            None,
        ),
        60,
    )
    assert analysis.priority is Priority.STAT
    wait_for("the folder to be taken away", lambda: not cd.exists(), 60)
    order = node.desk.study(uid).order
    assert order
    assert (order.clinical_question, order.placer.value) == ("Hỏi kín", "P77")
    wait_for("report", lambda: _reports(archive), 60)

    _say(node, "ADT^A40", pid.replace(patient, "BN-STAYS"), f"MRG|{patient}^^^BV^MR")
    wait_for("report anew", lambda: len({r.PatientID for r in _reports(archive)}) == 2, 60)
    first, anew = (
        next(r for r in _reports(archive) if r.PatientID == known_as)
        for known_as in (patient, "BN-STAYS")
    )
    assert anew.StudyInstanceUID == first.StudyInstanceUID
    replaced = {
        document.ReferencedSOPInstanceUID
        for study in anew.PredecessorDocumentsSequence
        for replaced_series in study.ReferencedSeriesSequence
        for document in replaced_series.ReferencedSOPSequence
    }
    assert first.SOPInstanceUID in replaced
    assert node.desk.study(uid).order == order
    logged = capfd.readouterr()
    assert [name for name in PLANTED if name in logged.out + logged.err] == []
