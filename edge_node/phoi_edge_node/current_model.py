"""Which model the next analysis will be pinned to."""

from __future__ import annotations

import threading

from phoi_models.identity import ModelIdentity

from phoi_edge_node.codec import from_json, to_json
from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.ports import InferenceService
from phoi_edge_node.store import StudyStore

_FACT = "current_model"


class CurrentModel:
    """The site's model. Set once from what inference offers, later by following the champion."""

    def __init__(self, store: StudyStore, inference: InferenceService, name: str) -> None:
        self._store = store
        self._inference = inference
        self._name = name
        self._lock = threading.Lock()

    def get(self) -> ModelIdentity:
        """The model for new analyses.

        Raises:
            InferenceUnavailable: none was ever chosen, and inference offers none of that name.
        """
        with self._lock:
            known = self._store.fact(_FACT)
            if known is not None:
                model = from_json(known, ModelIdentity)
                if model.name == self._name:  # else the settings name another one since
                    return model
            offered = [m for m in self._inference.models() if m.name == self._name]
            if not offered:
                raise InferenceUnavailable(
                    f"no worker offers a model named {self._name}: see `phoi models list`"
                )
            model = max(offered, key=lambda m: _version_key(m.version))
            self._store.put_fact(_FACT, to_json(model))
            return model

    def set(self, model: ModelIdentity) -> None:
        """Analyses that begin from now on use this one."""
        with self._lock:
            self._store.put_fact(_FACT, to_json(model))


def _version_key(version: str) -> tuple[tuple[int, str], ...]:
    # 1.10.0 comes after 1.9.0.
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in version.split("."))
