"""Experiments by name and runs by tags: found again without remembering an id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phoi_edge_node.mlflow.rest import EXISTS, NOT_FOUND, MlflowRefused, MlflowRest, text_at


@dataclass(frozen=True)
class Run:
    """One run of an experiment, and the folder of its artefacts."""

    run_id: str
    artifact_uri: str


def find_or_create_run(
    rest: MlflowRest, experiment: str, tags: Mapping[str, str], title: str, started_at_ms: int
) -> Run:
    """The run of ``experiment`` that carries all ``tags``, made if there is none.

    Should two senders make one each, both use the older one from then on.
    """
    experiment_id = _experiment_id(rest, experiment)
    query = {
        "experiment_ids": [experiment_id],
        "filter": " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()),
        "max_results": 1,
        "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
    }
    if found := rest.post("runs/search", query).get("runs"):
        return _run(found[0])
    new = {
        "experiment_id": experiment_id,
        "run_name": title,
        "start_time": started_at_ms,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    return _run(rest.post("runs/create", new).get("run"))


def _run(found: Any) -> Run:
    return Run(text_at(found, "info", "run_id"), text_at(found, "info", "artifact_uri"))


def _experiment_id(rest: MlflowRest, name: str) -> str:
    """The id of an experiment, made if missing."""
    try:
        return _experiment_by_name(rest, name)
    except MlflowRefused as refusal:
        if refusal.code != NOT_FOUND:
            raise
    try:
        return text_at(rest.post("experiments/create", {"name": name}), "experiment_id")
    except MlflowRefused as refusal:
        if refusal.code != EXISTS:  # another sender was faster
            raise
    return _experiment_by_name(rest, name)


def _experiment_by_name(rest: MlflowRest, name: str) -> str:
    found = rest.get("experiments/get-by-name", {"experiment_name": name})
    return text_at(found, "experiment", "experiment_id")
