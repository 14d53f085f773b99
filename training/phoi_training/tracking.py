"""MLflow without a server: everything in one folder."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from phoi_training import registry, report, train


def local_store(folder: Path) -> str:
    """Make or find the MLflow store of a folder.

    Left to itself MLflow keeps the artefacts of a SQLite store in the current folder, so the
    experiments are made here, with ``folder/artifacts``.

    Args:
        folder: exists; gets ``mlflow.sqlite`` and ``artifacts``.

    Returns:
        Its tracking URI.
    """
    folder = folder.resolve()
    uri = f"sqlite:///{folder / 'mlflow.sqlite'}"
    client = MlflowClient(uri, uri)
    for name in (train.EXPERIMENT, report.EXPERIMENT, registry.ADOPTED):
        if client.get_experiment_by_name(name) is None:
            client.create_experiment(name, artifact_location=str(folder / "artifacts"))
    return uri
