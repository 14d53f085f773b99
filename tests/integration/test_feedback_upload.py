"""A feedback data set to MLflow and back, with nothing but the known files on the way."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from mlflow.artifacts import download_artifacts
from phoi_edge_node.mlflow.dataset import upload_dataset
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.settings import MlflowSettings
from phoi_models.feedback import (
    BadDataset,
    Case,
    FeedbackDataset,
    FeedbackIndex,
    Label,
    LabelledBy,
    crop_bytes,
    write_index,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def dataset(folder: Path) -> FeedbackDataset:
    """Two crops of one patient."""
    (folder / "cases").mkdir(parents=True)
    cases = []
    for number in range(2):
        content = crop_bytes(np.full((4, 5, 6), number, np.int16))
        case = Case(
            id=f"{number:032x}",
            patient="ab" * 16,
            sha256=hashlib.sha256(content).hexdigest(),
            shape=(4, 5, 6),
            spacing_mm=(2.0, 1.0, 1.0),
            axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
            labels=(
                Label(center_zyx=(1, 2, 3), diameter_mm=6, verdict="accepted", probability=0.5),
            ),
            model=LabelledBy(name="m", version="1", bundle_hash="cd" * 32, device_uid="2.25.1"),
            reviewer_role="reviewer",
        )
        (folder / case.file).write_bytes(content)
        cases.append(case)
    write_index(folder, FeedbackIndex.of("ef" * 16, cases))
    return FeedbackDataset.open(folder)


def test_a_data_set_comes_back_as_it_was_sent(
    tmp_path: Path, mlflow_settings: MlflowSettings
) -> None:
    sent = dataset(tmp_path / "set")
    with MlflowRest(mlflow_settings) as rest:
        run_id = upload_dataset(rest, sent.folder, NOW)
        assert upload_dataset(rest, sent.folder, NOW) == run_id  # the same set, the same run
        data = rest.get("runs/get", {"run_id": run_id})["run"]["data"]
    metrics = {metric["key"]: metric["value"] for metric in data["metrics"]}
    assert metrics == {"dataset.crops": 2, "dataset.patients": 1, "dataset.nodules": 2}
    download_artifacts(
        artifact_uri=f"runs:/{run_id}/dataset",
        dst_path=str(tmp_path / "back"),
        tracking_uri=mlflow_settings.tracking_uri,
    )
    back = FeedbackDataset.open(tmp_path / "back/dataset")
    assert back.index == sent.index
    for case in back.index.cases:
        assert np.array_equal(back.crop(case).hu, sent.crop(case).hu)


def test_what_is_no_data_set_is_not_sent(tmp_path: Path) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    sent = dataset(tmp_path / "set")
    (sent.folder / "dataset.json").unlink()
    settings = MlflowSettings(tracking_uri="http://mlflow.example")
    with MlflowRest(settings, httpx.MockTransport(never)) as rest, pytest.raises(BadDataset):
        upload_dataset(rest, sent.folder, NOW)


def test_the_index_goes_last(tmp_path: Path, mlflow_settings: MlflowSettings) -> None:
    sent = dataset(tmp_path / "set")
    uploads: list[str] = []

    class Recorder(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PUT":
                uploads.append(request.url.path.rpartition("/dataset/")[2])
            return super().handle_request(request)

    with MlflowRest(mlflow_settings, Recorder()) as rest:
        upload_dataset(rest, sent.folder, NOW)
    assert uploads == [*(case.file for case in sent.index.cases), "dataset.json"]
