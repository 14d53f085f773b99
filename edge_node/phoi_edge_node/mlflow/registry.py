"""MLflow's model registry as an edge sees it: the champion, and the files of its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phoi_edge_node.champion import Champion
from phoi_edge_node.errors import EdgeError, RegistryUnavailable
from phoi_edge_node.mlflow.rest import NOT_FOUND, MlflowRefused, MlflowRest, text_at

ALIAS = "champion"
HASH_TAG = "bundle_hash"

# MLflow says the first of a model it does not know, the second of a model without the alias.
_NO_CHAMPION = frozenset({NOT_FOUND, "INVALID_PARAMETER_VALUE"})


class MlflowRegistry:
    """The Registry port over REST."""

    def __init__(self, rest: MlflowRest) -> None:
        self._rest = rest

    def champion(self, name: str) -> Champion | None:
        """The version that carries the alias ``champion``."""
        try:
            answer = self._rest.get("registered-models/alias", {"name": name, "alias": ALIAS})
            version = text_at(answer, "model_version", "version")
            located = self._rest.get(
                "model-versions/get-download-uri", {"name": name, "version": version}
            )
            location = text_at(located, "artifact_uri")
            return Champion(name, version, _hash(answer), location)
        except MlflowRefused as refusal:
            if refusal.code in _NO_CHAMPION:
                return None
            raise RegistryUnavailable(str(refusal)) from None
        except EdgeError as error:
            raise RegistryUnavailable(str(error)) from None
        except ValueError as error:
            raise RegistryUnavailable(f"MLflow: {error}") from None

    def fetch(self, champion: Champion, name: str, target: Path, limit: int) -> None:
        """Fetch one file of the champion's bundle through MLflow's artefact proxy."""
        try:
            self._rest.download(champion.location, name, target, limit)
        except EdgeError as error:
            raise RegistryUnavailable(str(error)) from None


def _hash(answer: Mapping[str, Any]) -> str:
    """The bundle's hash among the version's tags; "" if it is not tagged."""
    for tag in answer["model_version"].get("tags", []):
        if text_at(tag, "key") == HASH_TAG:
            return text_at(tag, "value")
    return ""
