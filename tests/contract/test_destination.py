"""What every ``Destination`` promises, the fake as well as the real ones.

A new destination adds one function to ``LANES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.hl7v2.mllp import MllpDestination
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.tracker import MlflowTracker
from phoi_edge_node.ports import (
    Delivered,
    Destination,
    Document,
    DocumentKind,
    Erred,
    Refused,
    Unreachable,
)
from phoi_edge_node.settings import (
    ArchiveSettings,
    FhirSettings,
    Hl7Settings,
    MlflowSettings,
    SiteSettings,
)
from phoi_edge_node.stand_ins.mlflow import mlflow_server
from phoi_edge_node.stand_ins.program import free_port, listening
from phoi_edge_node.testing import FakeDestination
from phoi_edge_node.usage import UsageReport, to_document
from support.cases import PATIENT, PHOI_VERSION, CountingUids, case
from support.dcmtk import storescp
from support.dicom_peers import answering_scp, report_file
from support.emr import running_fhir_server
from support.fhir_peers import fhir_peer
from support.mllp_peers import acknowledging, mllp_peer
from support.values import MODEL

SITE = SiteSettings(name="bvdk")
OUTCOME = json.dumps(
    {
        "resourceType": "OperationOutcome",
        "issue": [
            {
                "severity": "error",
                "code": "business-rule",
                "diagnostics": "patient Nguyễn Thị Ánh Tuyết, BN-000123, is unknown",
            }
        ],
    }
).encode()
SECRETS = ("Nguy", "Tuy", PATIENT.patient_id, "19680229", "1968-02-29")


@dataclass(frozen=True)
class Lane:
    """One kind of destination in three conditions.

    Attributes:
        up: its peer takes ``document``.
        down: nobody listens.
        refusing: its peer understands ``document`` and says no; its words name the patient.
        kept: how many documents the peer of ``up`` has.
        erring: its peer fails on ``document``; None where a peer of this kind never says so.
    """

    up: Destination
    down: Destination
    refusing: Destination
    document: Document
    kept: Callable[[], int]
    erring: Destination | None = None


@contextmanager
def fake_lane(folder: Path) -> Iterator[Lane]:
    up = FakeDestination()
    down = FakeDestination(answers=[Unreachable("down")] * 3)
    refusing = FakeDestination(answers=[Refused("no")] * 3)
    erring = FakeDestination(answers=[Erred("not now")] * 3)
    document = Document(DocumentKind.STRUCTURED_REPORT, "2.25.1", b"content")
    yield Lane(up, down, refusing, document, lambda: len(up.received), erring)


@contextmanager
def mllp_lane(folder: Path) -> Iterator[Lane]:
    def at(port: int) -> MllpDestination:
        return MllpDestination(Hl7Settings(host="127.0.0.1", port=port, timeout_s=5))

    settings = Hl7Settings(host="127.0.0.1", port=1)
    (document,) = OruEncoder(settings, SITE, CountingUids(), PHOI_VERSION).encode(case())
    refusal = acknowledging("AR|{id}|patient Nguyễn Thị Ánh Tuyết is unknown")
    failure = acknowledging("AE|{id}|patient Nguyễn Thị Ánh Tuyết is locked")
    with (
        listening("phoi_edge_node.stand_ins.mllp", folder) as port,
        mllp_peer(refusal) as refusing,
        mllp_peer(failure) as erring,
    ):
        yield Lane(
            at(port),
            at(free_port()),
            at(refusing),
            document,
            kept=lambda: len(list(folder.glob("*.hl7"))),
            erring=at(erring),
        )


def reports_on(base_url: str) -> int:
    total = httpx.get(f"{base_url}/DiagnosticReport", params={"_summary": "count"}).json()["total"]
    assert isinstance(total, int)
    return total


@contextmanager
def fhir_lane(folder: Path) -> Iterator[Lane]:
    def at(base_url: str) -> FhirDestination:
        return FhirDestination(FhirSettings(base_url=base_url, timeout_s=10))

    settings = FhirSettings(base_url="http://127.0.0.1:9/fhir")
    (document,) = FhirEncoder(settings, SITE, CountingUids(), PHOI_VERSION).encode(case())
    with (
        running_fhir_server(folder) as base_url,
        fhir_peer(422, OUTCOME) as refusing,
        fhir_peer(500, OUTCOME) as erring,
    ):
        yield Lane(
            at(base_url),
            at(f"http://127.0.0.1:{free_port()}/fhir"),
            at(refusing.base_url),
            document,
            kept=lambda: reports_on(base_url),
            erring=at(erring.base_url),
        )


@contextmanager
def dicom_lane(folder: Path) -> Iterator[Lane]:
    def at(port: int, ae_title: str = "ARCHIVE") -> DicomArchive:
        settings = ArchiveSettings(ae_title=ae_title, host="127.0.0.1", port=port, timeout_s=5)
        return DicomArchive(settings, "PHOI")

    with (
        storescp(folder / "kept") as archive,
        answering_scp(0xA900) as refusing,
        answering_scp(0x0110) as erring,
    ):
        yield Lane(
            at(archive.peer.port),
            at(free_port()),
            at(refusing),
            Document(DocumentKind.STRUCTURED_REPORT, "2.25.7", report_file("2.25.7")),
            kept=lambda: len(list(archive.folder.iterdir())),
            erring=at(erring),
        )


def batches_in(rest: MlflowRest) -> int:
    runs = rest.post("runs/search", {"experiment_ids": ["1"]})["runs"]
    key = {"run_id": runs[0]["info"]["run_id"], "metric_key": "studies.received"}
    return len(rest.get("metrics/get-history", key)["metrics"])


@contextmanager
def mlflow_lane(folder: Path) -> Iterator[Lane]:
    report = UsageReport(SITE.name, MODEL, datetime(2026, 3, 1, tzinfo=UTC), received=3)
    refusal = httpx.MockTransport(lambda _: httpx.Response(400, content=OUTCOME))
    nobody = MlflowSettings(tracking_uri=f"http://127.0.0.1:{free_port()}")
    with (
        mlflow_server(folder, free_port()) as server,
        MlflowRest(MlflowSettings(tracking_uri=server.url)) as up,
        MlflowRest(nobody) as down,
        MlflowRest(nobody, refusal) as refusing,
    ):
        yield Lane(
            MlflowTracker(up),
            MlflowTracker(down),
            MlflowTracker(refusing),
            to_document(report, 1, "usage-1"),
            kept=lambda: batches_in(up),
        )


LANES: dict[str, Callable[[Path], AbstractContextManager[Lane]]] = {
    "fake": fake_lane,
    "dicom": dicom_lane,
    "mllp": mllp_lane,
    "fhir": fhir_lane,
    "mlflow": mlflow_lane,
}


@pytest.fixture(scope="module", params=LANES)
def lane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    with LANES[request.param](tmp_path_factory.mktemp("lane")) as made:
        yield made


def test_has_a_name_and_says_what_it_takes(lane: Lane) -> None:
    assert lane.up.name
    assert lane.document.kind in lane.up.accepts


def test_is_there(lane: Lane) -> None:
    assert isinstance(lane.up.check(), Delivered)


def test_the_same_bytes_twice_are_delivered_twice_and_kept_once(lane: Lane) -> None:
    for _ in range(2):
        assert isinstance(lane.up.send(lane.document), Delivered)
    assert lane.kept() == 1


def test_nobody_there_is_unreachable_and_never_raises(lane: Lane) -> None:
    assert isinstance(lane.down.send(lane.document), Unreachable)


def test_a_refusal_is_for_good_and_says_why(lane: Lane) -> None:
    outcome = lane.refusing.send(lane.document)
    assert isinstance(outcome, Refused)
    assert outcome.reason


def test_a_failure_on_the_document_is_neither_for_good_nor_silence(lane: Lane) -> None:
    if lane.erring is None:
        assert isinstance(lane.up, MlflowTracker), "whose counters the next report replaces"
        return
    outcome = lane.erring.send(lane.document)
    assert isinstance(outcome, Erred)
    assert outcome.reason


def test_no_outcome_names_the_patient(lane: Lane) -> None:
    ends = (lane.up, lane.down, lane.refusing, *([lane.erring] if lane.erring else []))
    outcomes = [lane.up.check(), *(end.send(lane.document) for end in ends)]
    for outcome in outcomes:
        assert not any(secret in str(outcome) for secret in SECRETS)
