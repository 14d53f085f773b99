"""``phoi edge export-feedback``: signed reviews as a data set for training."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer
from phoi_models.feedback import FeedbackIndex

from phoi_edge_node.bootstrap import opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.feedback import Pseudonyms, reviewed_cases, write_feedback
from phoi_edge_node.mlflow.dataset import upload_dataset
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.system import SystemClock


def export_feedback(
    folder: Annotated[Path, typer.Argument(help="A new folder for the data set.")],
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    upload: Annotated[
        bool, typer.Option("--upload", help="Also send it to MLflow, as the artefact of a run.")
    ] = False,
) -> None:
    """Write every reviewed mark as a small crop of CT with its label.

    Nothing names a patient, a person, a device or a date: patients become pseudonyms under a key
    that stays in the edge's data folder (pseudonyms.key; keep it, or the same patient gets another
    pseudonym next time). The crops are still medical images: send them where your hospital allows.

    The edge may go on running. `phoi train FOLDER BUNDLE` learns from the result.
    """
    settings = read_settings(settings_file)
    if upload and settings.mlflow is None:
        raise SettingsError(f"{settings_file}: --upload needs the section [mlflow]")
    index = _export(settings, folder)
    patients = len({case.patient for case in index.cases})
    typer.echo(f"{folder}: {len(index.cases)} crops of {patients} patients")
    if upload and settings.mlflow is not None:
        with MlflowRest(settings.mlflow) as rest:
            run_id = upload_dataset(rest, folder, SystemClock().now())
        typer.echo(f"sent to {settings.mlflow.tracking_uri} as the artefact of run {run_id}")


def _export(settings: EdgeSettings, folder: Path) -> FeedbackIndex:
    with opened_storage(settings, SystemClock()) as storage:
        index = write_feedback(
            reviewed_cases(storage.store, storage.reader),
            folder,
            settings.site.name,
            Pseudonyms.load(settings.data / "pseudonyms.key"),
        )
        detail = f"{len(index.cases)} crops, digest {index.digest[:12]}"
        storage.store.record_audit(getpass.getuser(), "export_feedback", None, detail)
    return index
