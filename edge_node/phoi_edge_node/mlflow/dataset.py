"""A feedback data set as the artefact of a run. A person sends one, never the edge by itself."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from phoi_models.feedback import INDEX, FeedbackDataset

from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.runs import find_or_create_run

EXPERIMENT = "phoi-feedback"


def upload_dataset(rest: MlflowRest, folder: Path, now: datetime) -> str:
    """Send the data set in ``folder``; training fetches it from the run whose id is returned.

    The run is found by the data set's digest: the same one again goes to the same run. Its index
    goes last, so that without one the artefact is not yet a data set.

    Raises:
        BadDataset: the folder holds none.
        MlflowUnreachable, MlflowRefused: see ``MlflowRest``.
    """
    dataset = FeedbackDataset.open(folder)
    index = dataset.index
    run = find_or_create_run(
        rest,
        EXPERIMENT,
        {"phoi.dataset_digest": index.digest, "phoi.site": index.site},
        f"feedback {index.digest[:12]}",
        round(now.timestamp() * 1000),
    )
    for case in index.cases:
        rest.upload(run.artifact_uri, f"dataset/{case.file}", folder / case.file)
    rest.upload(run.artifact_uri, f"dataset/{INDEX}", folder / INDEX)
    summary = {
        "dataset.crops": len(index.cases),
        "dataset.patients": len({case.patient for case in index.cases}),
        "dataset.nodules": sum(label.is_nodule for case in index.cases for label in case.labels),
    }
    at = round(now.timestamp() * 1000)
    metrics = [{"key": k, "value": v, "timestamp": at, "step": 0} for k, v in summary.items()]
    rest.post("runs/log-batch", {"run_id": run.run_id, "metrics": metrics})
    rest.post("runs/update", {"run_id": run.run_id, "status": "FINISHED", "end_time": at})
    return run.run_id
