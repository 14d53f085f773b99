"""Images that rot on the disk of a whole node are named, set aside and fetched again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.study import AnalysisState
from phoi_edge_node.testing import FakeInference
from phoi_models.geometry import Geometry
from phoi_models.home import Home
from phoi_models.volume import Volume
from pydicom import dcmread
from support import values
from support.dcmtk import storescu
from support.dicom_phantom import SeriesOptions, write_series
from support.orthanc import Orthanc, orthanc
from support.outside import wait_for

SLICES = 40
OPTIONS = SeriesOptions(seed="damaged")


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "orthanc") as running:
        yield running


@pytest.fixture
def node(pacs: Orthanc, tmp_path: Path) -> Iterator[EdgeNode]:
    archive = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.dicom_port}
    settings = EdgeSettings.model_validate(
        {
            "data": tmp_path / "data",
            "dicom": {"port": 0, "quiet_time_s": 1, "minimum_free_disk_mb": 10},
            "completeness": {"ask_every_s": 0.3, "limit_s": 60},
            "web": {"port": 0},
            "archives": [{**archive, "query": True, "retrieve": "c-get"}],
        }
    )
    found = values.volume_analysis(values.finding((20.0, 20.0, 60.0)))
    node = EdgeNode(settings, Home(tmp_path / "home"), FakeInference(values.MODEL, found))
    node.start()
    try:
        yield node
    finally:
        node.stop()


def ct(folder: Path) -> list[Path]:
    geometry = Geometry(
        shape=(SLICES, 32, 32),
        spacing_mm=(3.0, 2.0, 2.0),
        origin_lps_mm=(0.0, 0.0, 0.0),
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    volume = Volume(np.zeros(geometry.shape, np.int16), geometry)
    return list(write_series(folder, volume, OPTIONS))


def harm_three(root: Path) -> set[str]:
    """One file is gone, one is cut short, one has other pixels; their SOP Instance UIDs."""
    gone, short, changed, *_ = sorted((root / "studies").rglob("*.dcm"))
    uids = {str(dcmread(path).SOPInstanceUID) for path in (gone, short, changed)}
    gone.unlink()
    os.truncate(short, 900)
    with changed.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    return uids


def test_what_rots_before_the_analysis_is_fetched_again_from_the_archive(
    pacs: Orthanc, node: EdgeNode, tmp_path: Path
) -> None:
    store, uid = node.storage.store, OPTIONS.study_instance_uid
    paths = ct(tmp_path / "ct")
    for path in paths:
        pacs.upload(path)
    store.pause("everything", "test")
    assert storescu(node.scp.port, *paths).returncode == 0
    wait_for("queued analysis", lambda: store.analyses(uid) or None)
    harmed = harm_three(node.storage.files.root)
    store.resume("everything", "test")

    def succeeded() -> bool:
        return [a.state for a in store.analyses(uid)][-1] is AnalysisState.SUCCEEDED

    wait_for("result", succeeded)
    assert {damage.sop_instance_uid for damage in store.damages(uid)} == harmed
    instances = {i.sop_instance_uid: node.storage.files.root / i.path for i in store.instances(uid)}
    sent = {str(dataset.SOPInstanceUID): dataset for dataset in map(dcmread, paths)}
    assert {uid: dcmread(path).PixelData for uid, path in instances.items()} == {
        uid: dataset.PixelData for uid, dataset in sent.items()
    }
