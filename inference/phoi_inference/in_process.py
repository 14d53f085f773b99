"""Inference without a server: the edge's ``InferenceService`` inside the calling process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from phoi_models.bundle_store import BundleStore, UnknownModel
from phoi_models.errors import (
    BadBundle,
    Cancelled,
    InferenceFailed,
    InferenceUnavailable,
    UntrustedBundle,
)
from phoi_models.findings import Region, VolumeAnalysis
from phoi_models.identity import ModelIdentity
from phoi_models.sessions import Provider, SessionSettings
from phoi_models.volume import Volume

from phoi_inference.engine import Engine
from phoi_inference.errors import BadRequest


class Request(Protocol):
    """What of the edge's ``AnalysisRequest`` matters without a queue."""

    @property
    def model(self) -> ModelIdentity:
        """The model, pinned."""

    @property
    def volume(self) -> Volume:
        """The input."""

    @property
    def region(self) -> Region:
        """What of it to look at."""


class InProcessInference:
    """Runs each analysis in the thread that asks for it."""

    def __init__(
        self, store: Path, trust: Path, provider: str = Provider.AUTO, threads: int = 0
    ) -> None:
        """Load nothing yet.

        Args:
            store: root of the bundle store.
            trust: file of the trust store.
            provider: a value of ``Provider``.
            threads: CPU threads; 0 means one per core.
        """
        sessions = SessionSettings(Provider(provider), threads)
        self._engine = Engine(BundleStore(store), trust, sessions)

    def models(self) -> Sequence[ModelIdentity]:
        """What the store holds, by name, newest first, each at its default operating point."""
        return [state.identity for state in self._engine.models()]

    def load(self, model: ModelIdentity) -> None:
        """Make a model ready.

        Raises:
            InferenceFailed: the store lacks it, or it must not run.
        """
        try:
            self._engine.load(model)
        except (UnknownModel, UntrustedBundle, BadBundle) as error:
            raise InferenceFailed(str(error)) from None

    def analyze(
        self,
        request: Request,
        on_progress: Callable[[str, float], None],
        cancelled: Callable[[], bool],
    ) -> VolumeAnalysis:
        """Run one model on one volume; blocks.

        Raises:
            NotAnalysable: the volume cannot be analysed.
            InferenceUnavailable: ``cancelled`` said so.
            InferenceFailed: the store lacks the model, or it must not run.
        """
        try:
            return self._engine.analyze(
                request.model, request.volume, request.region, on_progress, cancelled
            )
        except Cancelled as error:
            raise InferenceUnavailable(str(error)) from None
        except (UnknownModel, UntrustedBundle, BadBundle, BadRequest) as error:
            raise InferenceFailed(str(error)) from None
