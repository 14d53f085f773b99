"""The models of one worker: found in the store, verified, loaded, run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from phoi_models.bundle import Bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.detector_sessions import DetectorSessions
from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.findings import Region, VolumeAnalysis
from phoi_models.identity import ModelIdentity
from phoi_models.pipeline import analyze_volume
from phoi_models.sessions import SessionSettings
from phoi_models.signing import TrustStore
from phoi_models.volume import Volume

from phoi_inference.errors import BadRequest
from phoi_inference.shelf import Shelf

MODELS_KEPT = 2
"""Loaded at once, by default: the model in use, and the one before it or the one to come."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class ModelState:
    """One model of the store.

    Attributes:
        identity: at its default operating point.
        operating_points: names; known once it is loaded.
        provider: execution provider and form of the networks, as "CPUExecutionProvider int8"; ""
            unless loaded.
    """

    identity: ModelIdentity
    operating_points: tuple[str, ...] = ()
    provider: str = ""


@dataclass(frozen=True, eq=False)
class _Loaded:
    bundle: Bundle
    networks: DetectorSessions

    @property
    def state(self) -> ModelState:
        names = tuple(sorted(self.bundle.parameters.operating_points))
        return ModelState(self.bundle.identity(), names, self.networks.runtime)


class Engine:
    """Runs the models of a bundle store, several names and versions side by side. Thread-safe."""

    def __init__(
        self,
        store: BundleStore,
        trust: Path,
        sessions: SessionSettings,
        models: int = MODELS_KEPT,
        on_evicted: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            store: where bundles are.
            trust: the trust store's file; read anew for each analysis, so that a revocation counts
                at once.
            sessions: how networks run.
            models: how many stay loaded; what was used longest ago goes first, never one in use.
            on_evicted: told of each that went to make room.
        """
        self._store = store
        self._trust = trust
        self._sessions = sessions
        self._loading = threading.Lock()
        self._most = models
        self._on_evicted = on_evicted
        self._loaded: Shelf[_Loaded] = Shelf(models, self._evicted)

    @property
    def loaded(self) -> int:
        """How many models are loaded."""
        return len(self._loaded)

    def models(self) -> tuple[ModelState, ...]:
        """What the store holds, by name, newest first."""
        stored = (model.identity for model in self._store.models())
        return tuple(self._state(identity) for identity in stored)

    def load_newest(self) -> None:
        """Load the newest version of every name, as far as they stay; log one that fails."""
        newest = {s.identity.name: s.identity for s in reversed(self.models())}
        for identity in list(newest.values())[: self._most]:
            try:
                self.load(identity)
            except (BadBundle, UntrustedBundle) as error:
                _log.warning("model not loaded", model=identity.name, reason=str(error))

    def load(self, identity: ModelIdentity) -> ModelState:
        """Verify a bundle of the store and make it ready.

        Raises:
            UnknownModel: the store does not hold it.
            UntrustedBundle, BadBundle: it must not, or cannot, run.
        """
        return self._ready(identity).state

    def install(self, chunks: Iterable[bytes], identity: ModelIdentity) -> ModelState:
        """Take a bundle, as tar, into the store and make it ready.

        Raises:
            UntrustedBundle, BadBundle: it must not, or cannot, run, or it is another bundle.
        """
        trust = TrustStore.load(self._trust)
        self._store.install_tar(chunks, trust, pinned_hash=identity.bundle_hash)
        return self.load(identity)

    def unload(self, identity: ModelIdentity) -> None:
        """Free the model's memory once nothing runs on it."""
        with self._loading:
            self._loaded.take_away(identity.bundle_hash)

    def analyze(
        self,
        identity: ModelIdentity,
        volume: Volume,
        region: Region,
        on_progress: Callable[[str, float], None],
        cancelled: Callable[[], bool],
    ) -> VolumeAnalysis:
        """Run a model on a volume, loading it first if need be.

        Raises:
            NotAnalysable: the volume cannot be analysed.
            Cancelled: ``cancelled`` said so.
            BadRequest: the model has no such operating point.
            UnknownModel, UntrustedBundle, BadBundle: see ``load``.
        """
        with self._loaded.using(identity.bundle_hash):
            networks = self._ready(identity).networks
            if identity.operating_point not in networks.parameters.operating_points:
                raise BadRequest("the model has no such operating point")
            analysis = analyze_volume(
                volume,
                networks.parameters,
                networks.heads,
                second_look=networks.second_look,
                operating_point=identity.operating_point,
                region=region,
                batch_size=networks.batch_size,
                on_progress=lambda step, fraction: on_progress(step, fraction),
                cancelled=cancelled,
            )
        return replace(analysis, runtime=networks.runtime)

    def _state(self, identity: ModelIdentity) -> ModelState:
        loaded = self._loaded.get(identity.bundle_hash)
        return loaded.state if loaded else ModelState(identity)

    def _ready(self, identity: ModelIdentity) -> _Loaded:
        trust = TrustStore.load(self._trust)
        with self._loading:
            loaded = self._loaded.get(identity.bundle_hash)
            if loaded and trust.revoked & {loaded.bundle.key_id, loaded.bundle.bundle_hash}:
                self._loaded.take_away(identity.bundle_hash)
                raise UntrustedBundle(f"{identity.name} {identity.version} has been revoked")
            if loaded is None:
                loaded = self._load(identity, trust)
                self._loaded.put(identity.bundle_hash, loaded)
            return loaded

    def _evicted(self, bundle_hash: str, loaded: _Loaded) -> None:
        model = loaded.bundle.identity()
        _log.info(
            "model put away", model=model.name, version=model.version, bundle=bundle_hash[:12]
        )
        self._on_evicted()

    def _load(self, identity: ModelIdentity, trust: TrustStore) -> _Loaded:
        bundle = self._store.load(identity, trust)
        # Before its networks are known to load: a model too many in memory may end the worker, and
        # with it what runs. One that went in vain was used longest ago, and is loaded when asked.
        self._loaded.make_room()
        networks = DetectorSessions.start(
            bundle.parameters, bundle.onnx, bundle.second_look, self._sessions
        )
        _log.info(
            "model loaded",
            model=identity.name,
            version=identity.version,
            bundle=identity.bundle_hash[:12],
            provider=networks.heads.provider,
            form=networks.heads.form,
            batch_size=networks.batch_size,
        )
        return _Loaded(bundle, networks)
