"""No study left behind, with Orthanc as the PACS: what lacks is named, mended, and then zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.cli.reconcile import command
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.settings import read_settings
from phoi_edge_node.store import StoredAnalysis
from phoi_edge_node.study import AnalysisState, DeliveryState
from phoi_edge_node.testing import FakeInference
from phoi_models.home import Home
from support import values
from support.commands import phoi
from support.dcmtk import storescu
from support.dicom_phantom import short_study
from support.orthanc import Orthanc, orthanc
from support.outside import wait_for

SLICES = 40
DAY = ("--from", "2026-03-15", "--to", "2026-03-15")

SETTINGS = """
data = "{data}"
site = {{ name = "test", mode = "pacs", language = "en" }}
dicom = {{ port = 0, quiet_time_s = 1, minimum_free_disk_mb = 10 }}
completeness = {{ ask_every_s = 0.3, limit_s = 6, fetch_missing = false }}
web = {{ port = 0 }}
retry_delays_s = [0.2]

[[archives]]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
query = true
retrieve = "c-get"
"""


@dataclass(frozen=True)
class Site:
    """The node and its PACS."""

    node: EdgeNode
    pacs: Orthanc
    settings_file: Path

    def reconcile(self, *options: str) -> tuple[int, list[str]]:
        """Exit status and lines."""
        done = phoi(command, *DAY, "-s", self.settings_file, *options)
        # The node, which is of this process here, logs to the same place.
        logged = re.compile(r"\d{4}-\d\d-\d\d ")
        return done.exit_code, [s for s in done.output.splitlines() if not logged.match(s)]

    def analysed(self, uid: str, images: int) -> StoredAnalysis:
        """Wait until a revision with so many images has ended and arrived."""
        store = self.node.storage.store

        def look() -> StoredAnalysis | None:
            latest = store.latest_analyses([uid]).get(uid)
            if latest is None or latest.state in {AnalysisState.QUEUED, AnalysisState.RUNNING}:
                return None
            states = {d.state for d in store.deliveries(uid)}
            arrived = states <= {DeliveryState.DELIVERED, DeliveryState.SUPERSEDED}
            here = len(store.instances(uid)) == images
            return latest if here and arrived and self.report(uid) else None

        return wait_for(f"report of {uid}", look)

    def report(self, uid: str) -> str:
        """Orthanc's own identifier of the latest SR of a study, or ""."""
        store = self.node.storage.store
        identities = store.identities(uid).get(DocumentKind.STRUCTURED_REPORT, ("",))
        found = self.pacs.http.post("/tools/lookup", content=identities[-1]).json()
        return str(found[0]["ID"]) if found else ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PHOI_HOME", str(tmp_path / "home"))
    found = values.volume_analysis(values.finding((20.0, 20.0, 60.0)))
    with orthanc(tmp_path / "orthanc") as pacs:
        file = tmp_path / "edge.toml"
        file.write_text(SETTINGS.format(data=tmp_path / "data", port=pacs.dicom_port))
        node = EdgeNode(
            read_settings(file), Home(tmp_path / "home"), FakeInference(values.MODEL, found)
        )
        node.start()
        try:
            yield Site(node, pacs, file)
        finally:
            node.stop()


def test_studies_that_were_left_behind_are_named_mended_and_then_none_is_left(
    site: Site, tmp_path: Path
) -> None:
    studies = {
        name: short_study(tmp_path / name, name, SLICES)
        for name in ("never", "half", "lost", "whole")
    }
    uids = {name: uid for name, (_, uid) in studies.items()}
    for paths, _ in studies.values():
        for path in paths:
            site.pacs.upload(path)
    sent: dict[str, Callable[[list[Path]], list[Path]]] = {
        "half": lambda paths: paths[:30],
        "lost": lambda paths: paths,
        "whole": lambda paths: paths,
    }
    for name, part in sent.items():
        done = storescu(site.node.scp.port, *part(studies[name][0]))
        assert done.returncode == 0, done.stderr
    for name in ("lost", "whole"):
        site.analysed(uids[name], SLICES)
    site.analysed(uids["half"], 30)
    lost = site.report(uids["lost"])
    site.pacs.http.delete(f"/instances/{lost}").raise_for_status()

    status, lines = site.reconcile("--dry-run")
    assert status == 1
    assert lines[0].startswith("4 chest CTs compared")
    assert set(lines[1:]) == {
        f"{uids['never']}: not_received (40): none",
        f"{uids['half']}: images_missing (10): none",
        f"{uids['lost']}: not_delivered (1): none",
    }
    assert site.node.storage.store.study(uids["never"]) is None

    status, lines = site.reconcile()
    assert status == 1
    assert set(lines[1:]) == {
        f"{uids['never']}: not_received (40): fetched",
        f"{uids['half']}: images_missing (10): fetched",
        f"{uids['lost']}: not_delivered (1): resent",
    }
    for uid in uids.values():
        assert site.analysed(uid, SLICES).state is AnalysisState.SUCCEEDED
    assert site.report(uids["lost"]) == lost  # the same identity as before
    revisions = [site.node.storage.store.latest_analyses([u])[u].revision for u in uids.values()]
    assert revisions == [1, 2, 1, 1]
    assert site.reconcile() == (
        0,
        ["4 chest CTs compared, 0 CTs of other regions", "0 studies left behind"],
    )
