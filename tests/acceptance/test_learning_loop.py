"""The whole circle: review, feedback, training, registration, promotion, and the next study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.cli.send import find_files, send
from phoi_edge_node.desk import Phase
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.result import Correction, Verdict
from phoi_edge_node.settings import (
    ArchiveSettings,
    DicomSettings,
    EdgeSettings,
    MlflowSettings,
    SiteMode,
    SiteSettings,
    WebSettings,
)
from phoi_edge_node.stand_ins.program import listening
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.study import DeliveryState
from phoi_inference.in_process import InProcessInference
from phoi_models.bundle import Bundle, sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.feedback import FeedbackDataset
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from phoi_models.shipped import SHIPPED as SHIPPED_MODELS
from phoi_models.signing import TrustStore, create_signing_key
from support.bundles import write_bundle
from support.chests import LEFT_LUNG_LPS_MM, plain_chest
from support.dicom_phantom import SeriesOptions, write_series

MODEL = "phoi-lung-nodule"
SHIPPED = SHIPPED_MODELS / MODEL
READER = Account("bs.lan", "Bác sĩ Lan", Role.REVIEWER)
SITE = "hospital-a"
DOCTOR_SAYS_MM = 21.0


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


class Hospital:
    """An edge node with its own keys, and an archive that takes its reports."""

    def __init__(self, folder: Path, archive: Path, archive_port: int, mlflow: MlflowSettings):
        self.home = Home(folder / "home")
        self.archive = archive
        self.mlflow = mlflow.model_copy(update={"report_every_s": 1.0})
        self.key = create_signing_key(self.home.signing_key)
        TrustStore.of([self.key.public_key()]).save(self.home.trust)
        self.settings = EdgeSettings(
            data=folder / "data",
            site=SiteSettings(name=SITE, mode=SiteMode.PACS),
            dicom=DicomSettings(port=0, quiet_time_s=0.5, minimum_free_disk_mb=0),
            archives=(ArchiveSettings(ae_title="ARCHIVE", host="127.0.0.1", port=archive_port),),
            mlflow=self.mlflow,
            web=WebSettings(port=0),
        )

    def toml(self) -> str:
        """What of the settings a command beside the node needs."""
        return (
            f'data = "{self.settings.data}"\n'
            f'[site]\nname = "{SITE}"\n'
            f'[mlflow]\ntracking_uri = "{self.mlflow.tracking_uri}"\n'
        )

    def install(self, folder: Path) -> Bundle:
        sign_bundle(folder, self.key)
        return BundleStore(self.home.models).install(folder, TrustStore.load(self.home.trust))

    @contextmanager
    def running(self) -> Iterator[EdgeNode]:
        inference = InProcessInference(self.home.models, self.home.trust, threads=1)
        node = EdgeNode(self.settings, self.home, inference)
        node.storage.store.put_account(StoredAccount(READER, "no password is needed here"))
        node.start()
        try:
            yield node
        finally:
            node.stop()

    def scan(self, node: EdgeNode, folder: Path, study: int) -> str:
        """Scan a patient with one nodule on the left and send it; the study's UID, once ready."""
        options = SeriesOptions(study=study, patient_name="NGUYỄN^VĂN BÍ MẬT")
        write_series(folder, plain_chest([(LEFT_LUNG_LPS_MM, 20.0)]), options)
        assert not send(find_files(folder), Peer("PHOI", "127.0.0.1", node.scp.port), "CT")
        uid = options.study_instance_uid
        wait_for(lambda: uid in {row.study_instance_uid for row in node.desk.worklist(10)})
        wait_for(lambda: node.desk.study(uid).row.phase is Phase.READY)
        return uid

    def report(self, node: EdgeNode, uid: str) -> pydicom.Dataset:
        """The latest SR of a study as the archive holds it."""

        def sent() -> list[str]:
            return [
                d.identity
                for d in node.storage.store.deliveries(uid)
                if d.kind is DocumentKind.STRUCTURED_REPORT and d.state is DeliveryState.DELIVERED
            ]

        wait_for(lambda: bool(sent()))
        return pydicom.dcmread(self.archive / f"{sent()[-1]}.dcm", force=True)


@pytest.fixture
def hospital(tmp_path: Path, mlflow_settings: MlflowSettings) -> Iterator[Hospital]:
    archive = tmp_path / "archive"
    with listening("phoi_edge_node.stand_ins.archive", archive) as port:
        yield Hospital(tmp_path, archive, port, mlflow_settings)


def review(node: EdgeNode, uid: str) -> None:
    """A radiologist corrects the size of the nodule and signs."""
    view = node.desk.study(uid)
    assert view.result is not None
    assert view.result.nodules
    for nodule in view.result.nodules:
        correction = Correction(mean_diameter_mm=DOCTOR_SAYS_MM)
        node.desk.decide(uid, nodule.tracking_uid, Verdict.MODIFIED, READER, "", correction)
    revision = view.result.identity.revision
    node.desk.sign(uid, revision, len(node.desk.study(uid).history), READER)


def phoi(hospital: Hospital, *arguments: object) -> str:
    """Run the command ``phoi`` as a person would; what it says."""
    done = subprocess.run(
        [Path(sys.executable).with_name("phoi"), *map(str, arguments)],
        env={**os.environ, "PHOI_HOME": str(hospital.home.root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names_model(report: pydicom.Dataset, model: ModelIdentity) -> bool:
    """Does an SR name this model by its Device UID and version?"""
    uids = {str(element.value) for element in report.iterall() if element.VR == "UI"}
    texts = {str(element.value) for element in report.iterall() if element.VR in ("LO", "UT")}
    return model.device_uid in uids and any(model.version in text for text in texts)


def reported_studies(rest: MlflowRest, model: ModelIdentity) -> float:
    """How many studies MLflow knows of that this model received at the hospital."""
    experiment = rest.get("experiments/get-by-name", {"experiment_name": "phoi-usage"})
    query = {
        "experiment_ids": [experiment["experiment"]["experiment_id"]],
        "filter": f"tags.`phoi.site` = '{SITE}' and tags.`phoi.device_uid` = '{model.device_uid}'",
    }
    runs = rest.post("runs/search", query).get("runs", [])
    metrics = {m["key"]: m["value"] for run in runs for m in run["data"].get("metrics", [])}
    return float(metrics.get("studies.received", 0))


@pytest.mark.timeout(900)  # trains, in several processes
def test_what_a_radiologist_says_reaches_the_next_study(hospital: Hospital, tmp_path: Path) -> None:
    settings = tmp_path / "edge.toml"
    settings.write_text(hospital.toml())
    feedback, mlflow = tmp_path / "feedback", hospital.mlflow.tracking_uri
    first = hospital.install(write_bundle(tmp_path / "first", name=MODEL, version="0.1.0"))
    with hospital.running() as node, MlflowRest(hospital.mlflow) as rest:
        before = hospital.scan(node, tmp_path / "ct-1", study=1)
        assert names_model(hospital.report(node, before), first.identity())
        review(node, before)

        phoi(hospital, "edge", "export-feedback", feedback, "-s", settings)
        (label,) = FeedbackDataset.open(feedback).index.cases[0].labels
        assert (label.verdict, label.diameter_mm) == ("modified", DOCTOR_SAYS_MM)

        said = phoi(
            hospital,
            *("train", feedback, tmp_path / "second", "--version", "0.2.0", "--init", SHIPPED),
            *("--steps", 2, "--batch", 2, "--patch", 32, "--workers", 0, "--phantoms", 1),
            *("--copies", 1, "--licence", SHIPPED / "LICENSE", "--tracking-uri", mlflow),
        )
        (number,) = re.findall(r"registered as phoi-lung-nodule version (\d+)", said)
        node.follow_champion()
        assert node.model.get() == first.identity()  # registered is not yet promoted

        options = ("--phantoms", 1, "--copies", 1, "--tracking-uri", mlflow)
        said = phoi(hospital, "models", "promote", MODEL, number, *options)
        assert float(re.findall(r"CPM (\d\.\d+)", said)[0]) > 0.3  # it still is a detector
        node.follow_champion()
        second = node.model.get()
        assert second.version == "0.2.0"
        assert second.device_uid != first.identity().device_uid

        after = hospital.scan(node, tmp_path / "ct-2", study=2)
        report = hospital.report(node, after)
        assert names_model(report, second)
        assert not names_model(report, first.identity())
        # What was said before stays said by the model that said it.
        assert names_model(hospital.report(node, before), first.identity())
        wait_for(lambda: reported_studies(rest, second) == 1)
        assert reported_studies(rest, first.identity()) == 1
