"""The MLflow run that a work folder saw last: a run that goes on after a stop names it."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException
from phoi_models.files import write_atomically

RESUMES = "phoi.resumes"
"""Tag of a run: the identifier of the run that it goes on from."""
_NOTE = "mlflow_run_id.txt"


def resume_run(folder: Path) -> None:
    """Tag the active run with the run that worked in a folder before, and note it for the next.

    A run is never written to after its process has ended: its parameters would not be those of what
    came later. One that was killed could not say so itself, and is ended here.

    Args:
        folder: of the checkpoints of what the active run tells of; made if need be.
    """
    active = mlflow.active_run()
    if active is None:
        raise AssertionError("no MLflow run is active")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _noted(folder / _NOTE)
    if earlier is not None:
        mlflow.set_tag(RESUMES, earlier.info.run_id)
        if earlier.info.status == RunStatus.to_string(RunStatus.RUNNING):
            MlflowClient().set_terminated(
                earlier.info.run_id, RunStatus.to_string(RunStatus.KILLED)
            )
    write_atomically(folder / _NOTE, f"{active.info.run_id}\n".encode())


def _noted(note: Path) -> Run | None:
    """The run of a note; None if there is none, or another MLflow server has it."""
    if not note.is_file():
        return None
    try:
        return MlflowClient().get_run(note.read_text().strip())
    except MlflowException:
        return None
