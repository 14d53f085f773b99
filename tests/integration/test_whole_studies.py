"""A whole edge node beside Orthanc as its PACS: cut studies, fetched slices, late slices."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pydicom
import pytest
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.stand_ins.hospital import Hospital
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.testing import FakeInference
from phoi_models.home import Home
from pydicom import Dataset
from pydicom.uid import UID
from support import values
from support.dcmtk import storescu
from support.dicom_phantom import short_study
from support.orthanc import Orthanc, orthanc
from support.outside import SR, Page, metric, wait_for

SLICES = 40
PASSWORD = "correct horse battery"
READER = Account("bs.an", "BS. An", Role.REVIEWER)


@dataclass(frozen=True)
class Site:
    """The node, its PACS, and what a person uses."""

    node: EdgeNode
    pacs: Orthanc

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.node.web_port}/"

    def metric(self, name: str) -> float:
        return metric(cast("Hospital", self), name)

    def signed_in(self) -> Page:
        return Page(cast("Hospital", self), READER.username, PASSWORD)

    def send(self, *paths: Path) -> None:
        done = storescu(self.node.scp.port, *paths)
        assert done.returncode == 0, done.stderr

    def reports(self, study_uid: str) -> list[Dataset]:
        """The SRs of a study that the PACS holds, oldest first."""
        found = []
        for instance in self.pacs.resources("instances"):
            content = self.pacs.http.get(f"/instances/{instance}/file").raise_for_status().content
            dataset = pydicom.dcmread(io.BytesIO(content), defer_size=1024)
            if dataset.SOPClassUID == SR and dataset.StudyInstanceUID == study_uid:
                found.append(dataset)
        return sorted(found, key=lambda dataset: str(dataset.ContentDate + dataset.ContentTime))

    def images(self, study_uid: str) -> int:
        return len(self.node.storage.store.instances(study_uid))


@contextmanager
def running_site(folder: Path, limit_s: float) -> Iterator[Site]:
    found = values.volume_analysis(values.finding((20.0, 20.0, 60.0)))
    with orthanc(folder / "orthanc") as pacs:
        settings = EdgeSettings.model_validate(
            {
                "data": folder / "data",
                "site": {"name": "test", "mode": "pacs", "language": "en"},
                "dicom": {"port": 0, "quiet_time_s": 1, "minimum_free_disk_mb": 10},
                "completeness": {"ask_every_s": 0.5, "limit_s": limit_s},
                "web": {"port": 0},
                "archives": [
                    {
                        "ae_title": "ORTHANC",
                        "host": "127.0.0.1",
                        "port": pacs.dicom_port,
                        "query": True,
                        "retrieve": "c-get",
                    }
                ],
            }
        )
        inference = FakeInference(values.MODEL, found)
        node = EdgeNode(settings, Home(folder / "home"), inference)
        node.storage.store.put_account(StoredAccount(READER, hash_password(PASSWORD)))
        node.start()
        try:
            yield Site(node, pacs)
        finally:
            node.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path / "site", limit_s=600) as running:
        yield running


@pytest.fixture
def hurried_site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path / "site", limit_s=8) as running:
        yield running


def completeness(report: Dataset) -> str:
    """What an SR says of it."""
    (container,) = [
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Qualitative Evaluations"
    ]
    (told,) = [
        item.ConceptCodeSequence[0].CodeValue
        for item in container.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "completeness"
    ]
    return str(told)


def test_slices_that_were_not_sent_are_fetched_and_late_ones_alert_after_signing(
    site: Site, tmp_path: Path
) -> None:
    paths, uid = short_study(tmp_path / "ct", "late", SLICES)
    late, first = paths[:5], paths[5:]
    for path in first:
        site.pacs.upload(path)
    site.send(*first[::2])
    (report,) = wait_for("report", lambda: _reports(site, uid, 1))
    assert completeness(report) == "confirmed"
    assert site.images(uid) == len(first)

    with site.signed_in() as page:
        (mark,) = page.tracking_uids(uid)
        page.decide(uid, mark, "accepted")
        page.sign(uid, judgements_seen=1)
        signed = wait_for("signed report", lambda: _reports(site, uid, 2))
        assert site.metric("phoi_changed_after_signing") == 0

        for path in late:
            site.pacs.upload(path)
        site.send(*late)
        wait_for("alert", lambda: site.metric("phoi_changed_after_signing") == 1)
        wait_for("second result", lambda: "revision 2" in page.get(f"/studies/{uid}").lower())
        assert "Changed after reporting" in page.get("/?show=problems")
        assert "came AFTER REPORTING" in page.get(f"/studies/{uid}")
        untouched = site.reports(uid)
        assert [r.SOPInstanceUID for r in untouched] == [r.SOPInstanceUID for r in signed]

        (mark,) = page.tracking_uids(uid, revision=2)
        page.decide(uid, mark, "accepted")
        page.sign(uid, judgements_seen=1, revision=2)
        *_, corrected = wait_for("corrected report", lambda: _reports(site, uid, 3))
        assert corrected.VerificationFlag == "VERIFIED"
        assert site.metric("phoi_changed_after_signing") == 0
        assert "Changed after reporting" not in page.get("/")


def _reports(site: Site, uid: str, number: int) -> list[Dataset] | None:
    found = site.reports(uid)
    return found if len(found) >= number else None


def test_a_study_that_stays_cut_is_analysed_at_the_limit_and_says_so(
    hurried_site: Site, tmp_path: Path
) -> None:
    site = hurried_site
    paths, uid = short_study(tmp_path / "ct", "cut", SLICES)
    for path in paths:  # the PACS holds them under other UIDs than it sent: none can be matched
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = UID(f"{dataset.SOPInstanceUID[:50]}.77")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / "renamed.dcm")
        site.pacs.upload(tmp_path / "renamed.dcm")
    site.send(*paths[: SLICES - 2])
    (report,) = wait_for("report", lambda: _reports(site, uid, 1))
    assert completeness(report) == "unconfirmed"
    with site.signed_in() as page:
        assert "COMPLETENESS UNCONFIRMED" in page.get(f"/studies/{uid}")
        assert "Completeness unconfirmed" in page.get("/?show=all")
