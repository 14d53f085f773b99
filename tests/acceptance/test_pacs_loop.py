"""A real PACS loop: Orthanc routes CT to Phoi and gets the results back, and nothing goes round."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from phoi_edge_node.stand_ins.program import free_port
from pydicom import Dataset
from support.chests import plain_chest
from support.dcmtk import storescu
from support.dicom_phantom import SeriesOptions, write_series
from support.inference import QUICK, install, new_home
from support.outside import wait_for
from support.pacs_site import ROUTING, Edge, Pacs, running_edge

CHEST = plain_chest([((60.0, 10.0, 20.0), 20.0)], (5.0, 3.0, 3.0))
IMAGES = CHEST.geometry.shape[0]
RESULTS = {"SR": 1, "SEG": 1, "OT": 1, "KO": 1}
# How long nothing may happen before nothing more will: Orthanc calls a series stable after 1 s,
# Phoi a study after 1 s.
REST_S = 3.5
# PS3.3 C.7.1.1, C.7.2.1: what names the patient and the study.
OF_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
EVERYTHING = """
function OnStableStudy(studyId, tags, metadata)
  RestApiPost('/modalities/phoi/store', DumpJson({Resources = {studyId}, Synchronous = false}))
end
"""


@dataclass(frozen=True)
class Loop:
    """A hospital with two archives, of which the first routes.

    Attributes:
        folder: for phantoms.
    """

    folder: Path
    pacs: Pacs
    second: Pacs
    edge: Edge

    def scan(self, seed: str) -> str:
        """A modality stores a CT in the PACS; its Study Instance UID."""
        options = SeriesOptions(seed=seed, patient_id=f"BN-{seed}", accession_number=f"ACC-{seed}")
        paths = write_series(self.folder / seed, CHEST, options)
        hurry = {"TCP_NODELAY": "1"}
        sent = storescu(self.pacs.dicom_port, *paths, called="ORTHANC", environment=hurry)
        assert sent.returncode == 0, sent.stderr
        return options.study_instance_uid

    def wait_for_results(self, pacs: Pacs, study: str) -> list[Dataset]:
        def all_there() -> bool:
            found = pacs.modalities(study)
            return all(found[modality] for modality in RESULTS)

        wait_for(f"results in {pacs.ae_title}", all_there)
        return pacs.datasets(study)

    def wait_for_rest(self) -> None:
        """Until nothing has happened for a while, anywhere."""

        def activity() -> tuple[object, ...]:
            return (
                self.pacs.last_change(),
                self.second.last_change(),
                [(job["ID"], job["State"]) for job in self.pacs.jobs()],
                self.edge.states(),
            )

        seen, since = activity(), time.monotonic()

        def is_over() -> bool:
            nonlocal seen, since
            now = activity()
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > REST_S

        wait_for("end of the traffic", is_over)

    def analyses(self) -> float:
        return self.edge.metric("phoi_analyses", state="succeeded")

    def dead_letters(self) -> float:
        return sum(
            self.edge.metric("phoi_deliveries", to=lane, state="dead") for lane in ("pacs", "other")
        )


def settings(pacs: Pacs, second: Pacs, port: int) -> str:
    return f"""
site = {{ name = "loop", mode = "pacs" }}
dicom = {{ port = {port}, quiet_time_s = 1, minimum_free_disk_mb = 10 }}
completeness = {{ ask_every_s = 0.3 }}
inference.model = "test-blobs"

[[archives]]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs.dicom_port}
query = true
retrieve = "c-get"
commitment = true

[[archives]]
name = "other"
ae_title = "OTHER"
host = "127.0.0.1"
port = {second.dicom_port}
"""


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("loop")
    home = new_home(folder / "home")
    install(home, folder / "bundle", **QUICK)
    port = free_port()
    pacs = Pacs(folder / "orthanc", port)
    second = Pacs(folder / "second", port, "OTHER")
    try:
        pacs.start(ROUTING)
        second.start()
        sections = settings(pacs, second, port)
        with running_edge(folder / "edge", home, port, sections) as edge:
            yield Loop(folder, pacs, second, edge)
    finally:
        pacs.stop()
        second.stop()


@pytest.fixture(scope="module")
def study(loop: Loop) -> str:
    """A CT that went round once, after which there was rest."""
    uid = loop.scan("first")
    loop.wait_for_results(loop.pacs, uid)
    loop.wait_for_rest()
    return uid


def test_a_routed_ct_brings_each_result_once_and_nothing_goes_round(loop: Loop, study: str) -> None:
    assert loop.pacs.modalities(study) == {"CT": IMAGES, **RESULTS}
    assert loop.analyses() == 1
    (job,) = loop.pacs.jobs()
    assert (job["Type"], job["State"]) == ("DicomModalityStore", "Success")
    assert job["Content"]["InstancesCount"] == IMAGES
    assert loop.dead_letters() == 0


def test_results_lie_in_the_patients_own_study(loop: Loop, study: str) -> None:
    assert len(loop.pacs.orthanc.resources("patients")) == 1
    assert len(loop.pacs.orthanc.resources("studies")) == 1
    told = {
        tuple(str(dataset.get(keyword, "")) for keyword in OF_PATIENT_AND_STUDY)
        for dataset in loop.pacs.datasets(study)
    }
    assert len(told) == 1
    assert "Nguyễn^Thị Ánh Tuyết" in told.pop()


def test_the_second_archive_has_the_same_objects(loop: Loop, study: str) -> None:
    there = {d.SOPInstanceUID for d in loop.second.datasets(study)}
    here = {d.SOPInstanceUID for d in loop.pacs.datasets(study) if d.Modality != "CT"}
    assert there == here


def test_the_pacs_commits_to_what_it_got(loop: Loop, study: str) -> None:
    def committed() -> bool:
        found = loop.edge.metric("phoi_commitments", to="pacs", state="committed")
        return found == sum(RESULTS.values())

    wait_for("storage commitment", committed)


def test_a_pacs_that_restarts_gets_everything_once_and_the_other_did_not_wait(
    loop: Loop, study: str
) -> None:
    before = loop.analyses()
    with loop.edge.worker_held_up():
        uid = loop.scan("restarted")
        wait_for("analysis", lambda: loop.edge.metric("phoi_analyses", state="running") == 1)
        loop.pacs.stop()
    loop.wait_for_results(loop.second, uid)
    wait_for("failed try", lambda: loop.edge.metric("phoi_link_up", link="pacs") == 0)
    loop.pacs.start(ROUTING)
    loop.wait_for_results(loop.pacs, uid)
    loop.wait_for_rest()
    assert loop.pacs.modalities(uid) == {"CT": IMAGES, **RESULTS}
    assert loop.pacs.modalities(study) == {"CT": IMAGES, **RESULTS}
    assert loop.second.modalities(uid) == RESULTS
    assert loop.analyses() == before + 1
    assert loop.dead_letters() == 0


def test_a_ct_that_the_pacs_did_not_route_is_fetched_by_comparing(loop: Loop, study: str) -> None:
    loop.pacs.stop()
    loop.pacs.start()  # without its script
    before = loop.analyses()
    uid = loop.scan("unrouted")
    named = loop.edge.phoi("reconcile", "--from", "2026-03-15", "--to", "2026-03-15")
    assert f"{uid}: not_received ({IMAGES}): fetched" in named.splitlines()
    loop.wait_for_results(loop.pacs, uid)
    loop.wait_for_rest()
    assert loop.pacs.modalities(uid) == {"CT": IMAGES, **RESULTS}
    assert loop.analyses() == before + 1


def test_a_pacs_that_routes_everything_makes_no_second_revision_and_the_traffic_ends(
    loop: Loop, study: str, tmp_path: Path
) -> None:
    naive = tmp_path / "everything.lua"
    naive.write_text(EVERYTHING)
    loop.pacs.stop()
    loop.pacs.start(naive)
    before, jobs = loop.analyses(), {job["ID"] for job in loop.pacs.jobs()}
    uid = loop.scan("naive")
    loop.wait_for_results(loop.pacs, uid)
    loop.wait_for_rest()
    assert loop.pacs.modalities(uid) == {"CT": IMAGES, **RESULTS}
    assert loop.analyses() == before + 1
    assert loop.dead_letters() == 0
    new = Counter(job["State"] for job in loop.pacs.jobs() if job["ID"] not in jobs)
    assert set(new) == {"Success", "Failure"}, "the CT was taken; with results it was refused"
    assert sum(new.values()) <= 2 + sum(RESULTS.values())
