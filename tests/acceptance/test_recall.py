"""A model version turns out bad: what it told is taken back wherever it went, and told anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hl7
import httpx
import pytest
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.sample import default_cache
from phoi_edge_node.settings import read_settings
from phoi_edge_node.stand_ins.fhir import fhir_server
from phoi_edge_node.stand_ins.program import free_port, listening
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock
from pydicom import Dataset, dcmread
from support.chests import plain_chest
from support.dcmtk import storescu
from support.dicom_phantom import SeriesOptions, write_series
from support.inference import QUICK, install, new_home
from support.outside import SR, Page, wait_for
from support.pacs_site import Edge, running_edge
from support.validators import dciodvfy_errors

KOS = "1.2.840.10008.5.1.4.1.1.88.59"
REJECTED_FOR_SAFETY = "113037"  # PS3.16, CID 7011
BAD, GOOD = "test-blobs@2.0.0", "test-blobs@1.9.0"
SCANS = ("one", "two", "signed")
UNSIGNED = SCANS[:2]
PASSWORD = "một mật khẩu dài"
CHEST = plain_chest([((60.0, 10.0, 20.0), 20.0)], (5.0, 3.0, 3.0))


@dataclass(frozen=True)
class Site:
    """An edge node between two archives, an MLLP receiver and a FHIR server.

    Attributes:
        studies: Study Instance UID by scan.
    """

    folder: Path
    edge: Edge
    fhir: str
    studies: dict[str, str]

    def archived(self, archive: str, scan: str) -> list[Dataset]:
        """In the order in which they came."""
        files = sorted((self.folder / archive).glob("*.dcm"), key=lambda f: f.stat().st_mtime_ns)
        found = [dcmread(file, defer_size=1024) for file in files]
        return [d for d in found if d.StudyInstanceUID == self.studies[scan]]

    def reports(self, scan: str) -> list[Dataset]:
        return [d for d in self.archived("pacs", scan) if d.SOPClassUID == SR]

    def rejections(self, scan: str, archive: str = "pacs") -> list[Dataset]:
        return [d for d in self.archived(archive, scan) if _title(d) == REJECTED_FOR_SAFETY]

    def messages(self, scan: str) -> list[hl7.Message]:
        """In the order in which they came."""
        files = sorted((self.folder / "mllp").glob("*.hl7"), key=lambda f: f.stat().st_mtime_ns)
        texts = [file.read_bytes().decode() for file in files]
        return [hl7.parse(text) for text in texts if self.studies[scan] in text]

    def resources(self, kind: str, scan: str) -> list[dict[str, Any]]:
        """Those of a study, by the reference to its ImagingStudy, or its name."""
        found = self._fhir(kind)
        (study,) = (s for s in self._fhir("ImagingStudy") if self.studies[scan] in str(s))
        return [r for r in found if f"ImagingStudy/{study['id']}" in str(r)]

    def _fhir(self, kind: str) -> list[dict[str, Any]]:
        answer = httpx.get(
            f"{self.fhir}/{kind}", params={"_count": "200"}, trust_env=False, timeout=60
        )
        return [entry["resource"] for entry in answer.raise_for_status().json().get("entry", [])]

    def statuses(self, kind: str, scan: str) -> set[str]:
        return {r["status"] for r in self.resources(kind, scan)}

    def phoi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("phoi")), *arguments],
            env={**os.environ, "PHOI_EDGE_SETTINGS": str(self.edge.settings_file)},
            capture_output=True,
            text=True,
            check=False,
        )


def _title(dataset: Dataset) -> str:
    if dataset.SOPClassUID != KOS:
        return ""
    return str(dataset.ConceptNameCodeSequence[0].CodeValue)


def _settings(ports: dict[str, int], fhir: str) -> str:
    archives = "".join(
        f"""
[[archives]]
name = "{name}"
ae_title = "{name.upper()}"
host = "127.0.0.1"
port = {ports[name]}
"""
        for name in ("pacs", "spare")
    )
    return f"""
site = {{ name = "recall", mode = "pacs+emr" }}
dicom = {{ port = {ports["dicom"]}, quiet_time_s = 1, minimum_free_disk_mb = 10 }}
inference.model = "test-blobs"
hl7 = {{ host = "127.0.0.1", port = {ports["mllp"]} }}
fhir = {{ base_url = {json.dumps(fhir)} }}
{archives}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("recall")
    home = new_home(folder / "home")
    for number, model in enumerate((BAD, GOOD)):
        version = model.partition("@")[2]
        install(home, folder / f"bundle-{number}", version=version, **QUICK)
    ports = {"dicom": free_port()}
    fhir_port = free_port()
    with ExitStack() as stack:
        stand_ins = "phoi_edge_node.stand_ins"
        for name, module in (("pacs", "archive"), ("spare", "archive"), ("mllp", "mllp")):
            listener = listening(f"{stand_ins}.{module}", folder / name, 0)
            ports[name] = stack.enter_context(listener)
        stack.enter_context(fhir_server(default_cache(), folder / "fhir", fhir_port))
        fhir = f"http://127.0.0.1:{fhir_port}/fhir"
        text = _settings(ports, fhir)
        running = running_edge(folder / "edge", home, ports["dicom"], text)
        edge = stack.enter_context(running)
        _prepare(edge)
        uids = {name: SeriesOptions(seed=name).study_instance_uid for name in (*SCANS, "later")}
        yield Site(folder, edge, fhir, uids)


def _prepare(edge: Edge) -> None:
    """An account; and a lane that an operator has stopped, so that it never has anything."""
    storage = open_storage(read_settings(edge.settings_file), SystemClock())
    person = Account("bs.an", "Bs. An", Role.ADMIN)
    storage.store.put_account(StoredAccount(person, hash_password(PASSWORD)))
    storage.store.pause("destination:spare", "bs.an")
    storage.engine.dispose()


def scan(site: Site, name: str) -> None:
    paths = write_series(site.folder / name, CHEST, SeriesOptions(seed=name))
    sent = storescu(site.edge.dicom_port, *paths, environment={"TCP_NODELAY": "1"})
    assert sent.returncode == 0, sent.stderr


def codes(dataset: Dataset) -> list[str]:
    """Of the root's coded content."""
    found = []
    for item in dataset.ContentSequence:
        for part in (item, *item.get("ContentSequence", [])):
            if part.ValueType == "CODE":
                found.append(str(part.ConceptCodeSequence[0].CodeValue))
    return found


def predecessors(report: Dataset) -> set[str]:
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def rejected(note: Dataset) -> set[str]:
    items = (item for item in note.ContentSequence if "ReferencedSOPSequence" in item)
    return {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in items}


def wait_until_told(site: Site, name: str, reports: int, status: str, fhir: str) -> None:
    """Until everything of one revision, or one notice, has arrived everywhere it goes."""

    def arrived() -> bool:
        messages = site.messages(name)
        return (
            len(site.reports(name)) == len(messages) == reports
            and str(messages[-1].segment("OBR")[25]) == status
            and site.statuses("DiagnosticReport", name) == {fhir}
        )

    wait_for(f"{fhir} result of {name}", arrived)


@pytest.fixture(scope="module")
def results(site: Site) -> Site:
    """Results of the bad version, everywhere but in the lane that is stopped; one is signed."""
    for name in SCANS:
        scan(site, name)
    for name in SCANS:
        wait_until_told(site, name, 1, "P", "preliminary")
    uid = site.studies["signed"]
    with Page(site.edge, "bs.an", PASSWORD) as page:
        (mark,) = page.tracking_uids(uid)
        page.decide(uid, mark, "accepted")
        page.sign(uid, judgements_seen=1)
    wait_for("signed report", lambda: "final" in site.statuses("DiagnosticReport", "signed"))
    return site


def test_a_dry_run_lists_and_changes_nothing(results: Site) -> None:
    listed = results.phoi("recall", "--model", BAD, "--with-model", "test-blobs@9.9.9")
    assert listed.returncode == 0, listed.stderr
    assert "no worker has test-blobs@9.9.9" in listed.stdout
    assert "3 results of model test-blobs@2.0.0" in listed.stdout
    assert "2 to be withdrawn everywhere they went" in listed.stdout
    assert "1 signed by a person" in listed.stdout
    assert all(results.studies[name] in listed.stdout for name in SCANS)
    assert "nothing was changed" in listed.stdout


@pytest.fixture(scope="module")
def recalled(results: Site) -> Site:
    """All of it is recalled, and the node is killed twice on the way."""
    site = results
    asked = site.phoi("recall", "--model", BAD, "--reason", "marks vessels", "--yes")
    assert asked.returncode == 0, asked.stderr
    site.edge.program.kill()
    site.edge.program.start()
    wait_for("first notice", lambda: any(site.rejections(name) for name in SCANS))
    site.edge.program.kill()
    site.edge.program.start()
    for name in UNSIGNED:
        wait_until_told(site, name, 2, "C", "entered-in-error")
    wait_for("end of the recall", lambda: site.phoi("recall", "status").returncode == 0)
    return site


@pytest.mark.parametrize("name", UNSIGNED)
def test_whoever_was_told_is_told_once_that_it_is_withdrawn(recalled: Site, name: str) -> None:
    site = recalled
    first, withdrawn = site.reports(name)
    (note,) = site.rejections(name)
    others = {str(d.SOPInstanceUID) for d in site.archived("pacs", name)}
    assert first.SOPInstanceUID in rejected(note) <= others
    assert withdrawn.SOPInstanceUID not in rejected(note)
    assert predecessors(withdrawn) == {first.SOPInstanceUID}
    assert "withdrawn" in codes(withdrawn)
    assert not {"positive", "negative"} & set(codes(withdrawn))
    for dataset in (note, withdrawn):
        path = site.folder / "pacs" / f"{dataset.SOPInstanceUID}.dcm"
        assert dciodvfy_errors(path) == []
    _, correction = site.messages(name)
    outcome = next(s for s in correction.segments("OBX") if str(s[3][0][0]) == "outcome")
    assert (str(outcome[5][0][0]), str(outcome[11])) == ("withdrawn", "C")
    assert "D" in {str(s[11]) for s in correction.segments("OBX")}
    assert site.statuses("Observation", name) == {"entered-in-error"}
    assert site.statuses("Task", name) == {"cancelled"}


def test_what_a_person_signed_stands_and_is_on_top(recalled: Site) -> None:
    site = recalled
    assert site.rejections("signed") == []
    assert site.statuses("DiagnosticReport", "signed") == {"final"}
    with Page(site.edge, "bs.an", PASSWORD) as page:
        rows = page.get("/worklist/rows")
        assert rows.index(site.studies["signed"]) < rows.index(site.studies["one"])


def test_the_version_waits_and_nothing_goes_to_who_never_had_it(recalled: Site) -> None:
    site = recalled
    scan(site, "later")
    wait_for("a queued study", lambda: site.edge.metric("phoi_analyses", state="queued") == 1)
    with Page(site.edge, "bs.an", PASSWORD) as page:
        assert "model:test-blobs@2.0.0" in page.get("/operations")
    assert site.archived("spare", "one") == []


def test_the_good_version_tells_it_anew_under_the_same_identifiers(recalled: Site) -> None:
    site = recalled
    options = ("--model", BAD, "--with-model", GOOD, "--reason", "the one before is good", "--yes")
    asked = site.phoi("recall", *options)
    assert asked.returncode == 0, asked.stderr
    for name in UNSIGNED:
        wait_until_told(site, name, 3, "P", "preliminary")
        *earlier, corrected = site.reports(name)
        assert predecessors(corrected) == {r.SOPInstanceUID for r in earlier}
        assert "positive" in codes(corrected)
        assert len(site.resources("DiagnosticReport", name)) == 1
        devices = {r.ContributingEquipmentSequence[0].DeviceUID for r in site.reports(name)}
        assert len(devices) == 2
    assert len(site.rejections("one")) == 1
    wait_for("a result of the study that waited", lambda: site.reports("later"))
    assert site.statuses("DiagnosticReport", "signed") == {"final"}, "it waits for its people"


def test_a_lane_that_comes_back_gets_what_stands(recalled: Site) -> None:
    site = recalled
    storage = open_storage(read_settings(site.edge.settings_file), SystemClock())
    storage.store.resume("destination:spare", "bs.an")
    storage.engine.dispose()
    wait_for(
        "the result in the spare archive",
        lambda: any(d.SOPClassUID == SR for d in site.archived("spare", "one")),
    )
    assert site.rejections("one", "spare") == []
    (report,) = (d for d in site.archived("spare", "one") if d.SOPClassUID == SR)
    assert "positive" in codes(report)
