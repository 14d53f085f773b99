"""Usage reports against MLflow's own server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.tracker import MlflowTracker
from phoi_edge_node.ports import Delivered, Document, DocumentKind, Refused, Unreachable
from phoi_edge_node.settings import MlflowSettings
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.usage import UsageReport, to_document
from phoi_models.identity import ModelIdentity


@pytest.fixture
def rest(mlflow_settings: MlflowSettings) -> Iterator[MlflowRest]:
    with MlflowRest(mlflow_settings) as rest:
        yield rest


def document(site: str, sequence: int, received: int, version: str = "1.0.0") -> Document:
    model = ModelIdentity("phoi-lung-nodule", version, f"{version.encode().hex():0>64}")
    at = datetime(2026, 3, 1, 12, sequence, tzinfo=UTC)
    report = UsageReport(site, model, at, received=received, link_errors={"pacs": 2})
    return to_document(report, sequence, f"{site}-{version}-{sequence}")


def send(tracker: MlflowTracker, document: Document) -> str:
    """Send it; the id of the run that it went to."""
    outcome = tracker.send(document)
    assert isinstance(outcome, Delivered), outcome
    return outcome.receipt.removeprefix("run ")


def history(
    rest: MlflowRest, run_id: str, key: str = "studies.received"
) -> list[tuple[int, float]]:
    answer = rest.get("metrics/get-history", {"run_id": run_id, "metric_key": key})
    return [(metric["step"], metric["value"]) for metric in answer["metrics"]]


def test_a_report_sent_twice_counts_once(rest: MlflowRest) -> None:
    tracker = MlflowTracker(rest)
    first, second = document("site-twice", 1, 3), document("site-twice", 2, 8)
    run_id = send(tracker, first)
    assert send(tracker, first) == run_id
    assert send(tracker, second) == run_id
    assert send(tracker, first) == run_id  # a reply was lost and the report comes late
    assert sorted(history(rest, run_id)) == [(1, 3.0), (2, 8.0)]
    latest = rest.get("runs/get", {"run_id": run_id})["run"]["data"]["metrics"]
    assert {m["key"]: m["value"] for m in latest}["studies.received"] == 8.0


def test_each_site_and_model_version_has_its_own_run(rest: MlflowRest) -> None:
    tracker = MlflowTracker(rest)
    runs = {
        send(tracker, document("site-b", 1, 1, "1.0.0")),
        send(tracker, document("site-b", 2, 1, "1.1.0")),
        send(tracker, document("site-c", 1, 1, "1.0.0")),
    }
    assert len(runs) == 3
    assert send(MlflowTracker(rest), document("site-b", 3, 2, "1.0.0")) in runs


def test_after_an_outage_the_frozen_bytes_drain(
    tmp_path: Path, mlflow_settings: MlflowSettings
) -> None:
    nobody = MlflowSettings(tracking_uri=f"http://127.0.0.1:{free_port()}")
    waiting = [document("site-outage", n, n) for n in (1, 2, 3)]
    with MlflowRest(nobody) as rest:
        tracker = MlflowTracker(rest)
        assert all(isinstance(tracker.send(d), Unreachable) for d in waiting)
        assert isinstance(tracker.check(), Unreachable)
    with MlflowRest(mlflow_settings) as rest:
        tracker = MlflowTracker(rest)
        assert isinstance(tracker.check(), Delivered)
        (run_id,) = {send(tracker, d) for d in waiting}
        assert sorted(history(rest, run_id)) == [(1, 1.0), (2, 2.0), (3, 3.0)]
        assert history(rest, run_id, "link_errors.pacs")[0][1] == 2.0


def test_one_report_is_one_batch_of_known_words_only(mlflow_settings: MlflowSettings) -> None:
    requests: list[tuple[str, Any]] = []

    class Recorder(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            requests.append((request.url.path, request.read()))
            return super().handle_request(request)

    with MlflowRest(mlflow_settings, Recorder()) as rest:
        send(MlflowTracker(rest), document("site-words", 1, 3))
    batches = [json.loads(body) for path, body in requests if path.endswith("log-batch")]
    assert len(batches) == 1
    assert set(batches[0]) == {"run_id", "metrics"}
    for metric in batches[0]["metrics"]:
        assert set(metric) == {"key", "value", "timestamp", "step"}
        assert metric["key"].split(".")[0] in {
            "studies",
            "marks",
            "link_errors",
            "receive_to_result",
            "result_to_review",
        }


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>login</html>", Unreachable),
        (200, b"[]", Unreachable),
        (200, b"{}", Unreachable),
        (302, b"", Unreachable),
        (401, b"Nguyen Van A", Unreachable),
        (429, b"", Unreachable),
        (503, b"", Unreachable),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Nguyen Van A"}', Refused),
        (400, b'{"error_code": "Nguyen Van A"}', Refused),
        (405, b"Nguyen Van A", Refused),
    ],
)
def test_an_answer_is_told_by_its_code_never_by_its_text(
    status: int, body: bytes, expected: type
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    settings = MlflowSettings(tracking_uri="http://mlflow.example")
    with MlflowRest(settings, transport) as rest:
        outcome = MlflowTracker(rest).send(document("site-d", 1, 1))
    assert isinstance(outcome, expected)
    assert "Nguyen" not in str(outcome)


def test_another_kind_of_document_is_refused(rest: MlflowRest) -> None:
    other = Document(DocumentKind.FHIR_BUNDLE, "1", b'{"resourceType": "Bundle"}')
    assert isinstance(MlflowTracker(rest).send(other), Refused)


def test_the_token_goes_along_and_a_missing_one_is_named(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={})

    token = tmp_path / "token"
    settings = MlflowSettings(tracking_uri="http://mlflow.example", token_file=token)
    with MlflowRest(settings, httpx.MockTransport(answer)) as rest:
        missing = MlflowTracker(rest).check()
        token.write_text("secret\n")
        assert isinstance(MlflowTracker(rest).check(), Delivered)
    assert isinstance(missing, Unreachable)
    assert "token_file" in missing.reason
    assert seen == ["Bearer secret"]
