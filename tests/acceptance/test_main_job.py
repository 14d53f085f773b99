"""One real chest CT, all the way, from outside only: DICOM in; SR, SEG, HL7, FHIR, page out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.stand_ins.hospital import Hospital
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock
from pydicom import Dataset, dcmread
from support.emr import fhir_faults
from support.outside import Arrived, Page, arrived, metric, send, settle, wait_for, wait_for_result
from support.planted import secrets_in
from support.validators import dciodvfy_errors
from support.watch import Watch

LIDC_NODULE_LPS_MM = np.array([56.0, 86.0, -116.0])
LIDC_NODULE_DIAMETER_MM = 30.0


@pytest.fixture(scope="module")
def study_uid(planted_ct: Path) -> str:
    first = next(iter(sorted(planted_ct.rglob("*.dcm"))))
    return str(dcmread(first, stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def result(site: Hospital, planted_ct: Path, study_uid: str) -> Arrived:
    assert send(site, planted_ct)
    return wait_for_result(site, study_uid)


def centres(report: Dataset) -> list[np.ndarray]:
    """Mid-points of the long axes of all nodules: the only lines in patient coordinates."""
    found = []

    def walk(items: list[Dataset]) -> None:
        for item in items:
            if item.get("GraphicType") in {"POLYLINE"} and item.ValueType == "SCOORD3D":
                points = np.reshape(np.asarray(item.GraphicData, float), (-1, 3))
                found.append(points.mean(axis=0))
            walk(list(item.get("ContentSequence", [])))

    walk(list(report.ContentSequence))
    return found


def test_the_nodule_that_four_readers_marked_is_found_with_few_other_marks(
    result: Arrived,
) -> None:
    (segmentation,) = result.segmentations
    assert len(segmentation.SegmentSequence) <= 6
    distances = [float(np.linalg.norm(c - LIDC_NODULE_LPS_MM)) for c in centres(result.reports[0])]
    assert min(distances) <= LIDC_NODULE_DIAMETER_MM / 2, distances


def test_one_of_each_arrives_and_they_speak_of_the_same(result: Arrived, study_uid: str) -> None:
    assert result.counts == {"SR": 1, "SEG": 1, "SC": True, "KOS": 1, "ORU": 1, "FHIR": 1}
    report, segmentation = result.reports[0], result.segmentations[0]
    assert report.StudyInstanceUID == segmentation.StudyInstanceUID == study_uid
    assert report.VerificationFlag == "UNVERIFIED"
    device = report.ContributingEquipmentSequence[0].DeviceUID
    assert segmentation.ContributingEquipmentSequence[0].DeviceUID == device
    assert result.diagnostic_reports[0]["status"] == "preliminary"
    message = result.messages[0]
    assert "|UNICODE UTF-8" in message.split("\r")[0]
    tracking = {s.TrackingUID for s in segmentation.SegmentSequence}
    assert all(uid in message for uid in tracking)
    observed = str(result.observations)
    assert all(uid in observed for uid in tracking)


def test_what_the_archive_holds_is_conformant(
    site: Hospital, result: Arrived, study_uid: str
) -> None:
    files = [
        site.folder / "archive" / f"{d.SOPInstanceUID}.dcm"
        for d in (
            *result.reports,
            *result.segmentations,
            *result.captures,
            *result.key_objects,
        )
    ]
    assert len(files) >= 3
    assert {file.name: errors for file in files if (errors := dciodvfy_errors(file))} == {}


def test_sending_the_same_study_again_makes_no_second_revision(
    site: Hospital, result: Arrived, planted_ct: Path, study_uid: str
) -> None:
    assert send(site, planted_ct)
    settle(site)
    again = arrived(site, study_uid)
    assert again.counts == result.counts
    assert again.reports[0].SOPInstanceUID == result.reports[0].SOPInstanceUID


def test_mlflow_holds_usage_of_this_site(site: Hospital, result: Arrived) -> None:
    wait_for("usage", lambda: site.usage().get("studies.analysed", 0) >= 1)
    names = set(site.usage())
    assert {"studies.received", "marks.accepted", "receive_to_result.count"} <= names


def test_a_person_reviews_and_signs_and_the_final_result_replaces(
    site: Hospital, result: Arrived, study_uid: str
) -> None:
    password = "một mật khẩu dài"
    storage = open_storage(site.settings, SystemClock())
    person = Account("bs.an", "Bs. Trần Văn An", Role.REVIEWER)
    storage.store.put_account(StoredAccount(person, hash_password(password)))
    storage.engine.dispose()
    with Page(site, "bs.an", password) as page:
        assert study_uid in page.get("/")
        first, *others = page.tracking_uids(study_uid)
        page.decide(study_uid, first, "accepted")
        for other in others:
            page.decide(study_uid, other, "rejected")
        page.sign(study_uid, judgements_seen=1 + len(others))
    final = wait_for("final report", lambda: _final(site, study_uid))
    (verified,) = [r for r in final.reports if r.VerificationFlag == "VERIFIED"]
    observer = verified.VerifyingObserverSequence[0]
    assert "An" in str(observer.VerifyingObserverName)
    predecessor = verified.PredecessorDocumentsSequence[0]
    named = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == result.reports[0].SOPInstanceUID
    assert first in str(verified)
    assert all(other not in str(verified) for other in others)
    assert final.diagnostic_reports[0]["status"] == "final"
    assert len(final.diagnostic_reports) == 1, "the same report, updated"
    statuses = [_obr_25(message) for message in final.messages]
    assert sorted(statuses) == ["F", "P"]
    assert metric(site, "phoi_deliveries", to="pacs", state="dead") == 0


def test_the_bundles_that_went_out_are_valid_for_others(
    site: Hospital, result: Arrived, study_uid: str
) -> None:
    storage = open_storage(site.settings, SystemClock())
    with storage.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT study_instance_uid, revision, status, content FROM documents"
            " WHERE kind = 'fhir'"
        )
        bundles = {"-".join(map(str, name)): bytes(content) for *name, content in rows}
    storage.engine.dispose()
    assert f"{study_uid}-1-preliminary" in bundles
    assert fhir_faults(bundles) == []


def _obr_25(message: str) -> str:
    segment = next(s for s in message.split("\r") if s.startswith("OBR|"))
    return segment.split("|")[25]


def _final(site: Hospital, study_uid: str) -> Arrived | None:
    found = arrived(site, study_uid)
    signed = [r for r in found.reports if r.VerificationFlag == "VERIFIED"]
    told = [r for r in found.diagnostic_reports if r["status"] == "final"]
    return found if signed and told and len(found.messages) == 2 else None


def test_the_doctor_finds_nothing_bad(site: Hospital) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("phoi")),
            "doctor",
            "--settings",
            str(site.settings_file),
        ],
        env={**os.environ, "PHOI_HOME": str(site.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LỖI" not in done.stdout


def test_the_patient_reaches_archive_and_emr_and_nobody_else(
    site: Hospital, result: Arrived, watch: Watch
) -> None:
    wait_for("usage", lambda: site.usage().get("studies.analysed", 0) >= 1)
    metric(site, "phoi_studies", state="complete")
    told = (str(result.reports[0]), result.messages[0], str(site.fhir_resources("Patient")))
    assert [text for text in told if not secrets_in(text) >= {"name", "patient id"}] == []
    logs = {file.name: file.read_text() for file in site.folder.rglob("*.log")}
    assert {"edge.log", "worker.log", "archive.log", "mlflow.log"} <= set(logs)
    assert "delivery tried" in logs["edge.log"]
    watch.look_at_files(site.folder)
    assert watch.told() == ""
    assert {"page", "mlflow", "log", "operator", "path"} <= set(watch.bytes_seen)
