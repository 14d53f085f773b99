"""Usage reports to MLflow: one experiment, one run for each site and model version."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.mlflow.rest import MlflowRefused, MlflowRest
from phoi_edge_node.mlflow.runs import find_or_create_run
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.usage import FORMAT

EXPERIMENT = "phoi-usage"


class MlflowTracker:
    """A Destination for usage reports.

    Nothing is remembered between two sends: the run is found by its tags each time, so a server
    that was emptied, or a reply that was lost, leaves no wrong id behind.

    Args:
        rest: the server.
        name: of the lane in settings, pages and metrics.
    """

    def __init__(self, rest: MlflowRest, name: str = "mlflow") -> None:
        self._rest = rest
        self._name = name

    @property
    def name(self) -> str:
        """The lane's name."""
        return self._name

    @property
    def accepts(self) -> Collection[DocumentKind]:
        """Usage reports only."""
        return frozenset({DocumentKind.USAGE})

    def send(self, document: Document) -> SendOutcome:
        """Log one report as one batch. Sent twice, it counts once: same keys, step and time."""
        report = json.loads(document.content)
        if document.kind is not DocumentKind.USAGE or report.get("format") != FORMAT:
            return Refused("not a usage report of a format known here")
        try:
            run = find_or_create_run(
                self._rest, EXPERIMENT, _tags(report), _title(report), report["counted_at_ms"]
            )
            self._rest.post("runs/log-batch", _batch(run.run_id, report))
        except EdgeError as error:
            return _failure(error)
        return Delivered(f"run {run.run_id}")

    def check(self) -> SendOutcome:
        """Is MLflow there, and does it let us in?"""
        try:
            self._rest.health()
        except EdgeError as error:
            return _failure(error)
        return Delivered()


def _tags(report: Mapping[str, Any]) -> dict[str, str]:
    model = report["model"]
    return {
        "phoi.site": report["site"],
        "phoi.model": model["name"],
        "phoi.model_version": model["version"],
        "phoi.bundle_hash": model["bundle_hash"],
        "phoi.device_uid": model["device_uid"],
        "phoi.operating_point": model["operating_point"],
    }


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['site']} {report['model']['name']} {report['model']['version']}"


def _batch(run_id: str, report: Mapping[str, Any]) -> dict[str, Any]:
    common = {"timestamp": report["counted_at_ms"], "step": report["sequence"]}
    metrics = [{"key": k, "value": v, **common} for k, v in report["metrics"].items()]
    return {"run_id": run_id, "metrics": metrics}


def _failure(error: EdgeError) -> SendOutcome:
    return Refused(str(error)) if isinstance(error, MlflowRefused) else Unreachable(str(error))
