"""Asks workers, one after another, until one gives a result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Self

import grpc
import structlog
from phoi_models.errors import NotAnalysable
from phoi_models.findings import VolumeAnalysis
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume
from phoi_protos import transport
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb
from phoi_protos.phoi.inference.v1 import inference_pb2_grpc as pb_grpc
from phoi_protos.transport import TlsFiles

from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable, SettingsError
from phoi_edge_node.grpc import converters
from phoi_edge_node.grpc.sources import SourceServer
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_edge_node.ports import AnalysisRequest

_LIST_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 300.0
_POLL_S = 0.2

# The worker understood, and said no. All other codes may pass.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

OnProgress = Callable[[str, float], None]
IsCancelled = Callable[[], bool]

log = structlog.get_logger()


class GrpcInference:
    """The edge's ``InferenceService`` over gRPC. Thread-safe."""

    def __init__(
        self,
        workers: Sequence[str],
        folder: VolumeFolder,
        *,
        source: SourceServer | None = None,
        source_address: str = "",
        tls: TlsFiles | None = None,
    ) -> None:
        """Connects to a worker when it is first asked.

        Args:
            workers: gRPC addresses. Those on this host read voxels from ``folder``, the others
                pull them from ``source``.
            folder: shared with the workers on this host.
            source: serves the workers on other hosts.
            source_address: ``host:port`` at which they reach it.
            tls: for workers on other hosts.

        Raises:
            SettingsError: an address cannot be used, or needs what is not configured.
        """
        try:
            self._workers = [_Worker(address, tls) for address in workers]
        except transport.TransportError as error:
            raise SettingsError(f"inference.workers: {error}") from None
        if not all(worker.local for worker in self._workers) and not (source and source_address):
            raise SettingsError("inference.source_address: workers on other hosts need it")
        self._folder = folder
        self._source = source
        self._source_address = source_address

    def close(self) -> None:
        """Close all connections; what runs is cancelled."""
        for worker in self._workers:
            worker.channel.close()

    def models(self) -> Sequence[ModelIdentity]:
        """The models of all workers that answer; see the port."""
        offered: dict[str, ModelIdentity] = {}
        answered, trouble = False, _no_worker()
        for worker in self._workers:
            try:
                response = worker.stub.ListModels(pb.ListModelsRequest(), timeout=_LIST_TIMEOUT_S)
            except grpc.RpcError as error:
                trouble = _unavailable(worker, error)
                continue
            answered = True
            for model in response.models:
                identity = converters.model_identity(model.model)
                offered.setdefault(identity.bundle_hash, identity)
        if not answered:
            raise trouble
        return tuple(offered.values())

    def load(self, model: ModelIdentity) -> None:
        """Make a model ready at every worker; see the port."""
        for worker in self._workers:
            try:
                self._load_at(worker, model)
            except grpc.RpcError as error:
                if error.code() in _REFUSALS:
                    raise _failed(worker, error) from None
                raise _unavailable(worker, error) from None

    def analyze(
        self, request: AnalysisRequest, on_progress: OnProgress, cancelled: IsCancelled
    ) -> VolumeAnalysis:
        """Run one model on one volume at the first worker that can; see the port."""
        unavailable: InferenceUnavailable | None = None
        failed: InferenceFailed | None = None
        with _Offer(request.volume, self._folder, self._source, self._source_address) as offer:
            for worker in sorted(self._workers, key=lambda w: (w.busy, w.failed_at)):
                until = time.monotonic() + request.deadline_s
                try:
                    with worker.counted():
                        return self._analyze_at(
                            worker, request, offer, until, on_progress, cancelled
                        )
                except InferenceUnavailable as error:
                    worker.failed_at = time.monotonic()
                    log.warning("worker gave no result", worker=worker.address, reason=str(error))
                    unavailable = _sooner(unavailable, error)
                except InferenceFailed as error:
                    log.warning("worker refuses", worker=worker.address, reason=str(error))
                    failed = error
                if cancelled():
                    raise InferenceUnavailable("the analysis was cancelled")
        # Where one worker refuses and another may come back, the other still counts.
        raise unavailable or failed or _no_worker()

    def _analyze_at(
        self,
        worker: _Worker,
        request: AnalysisRequest,
        offer: _Offer,
        until: float,
        on_progress: OnProgress,
        cancelled: IsCancelled,
    ) -> VolumeAnalysis:
        message = converters.analyze_request(request, offer.digest, offer.location(worker))

        def ask() -> VolumeAnalysis:
            left_s = max(0.0, until - time.monotonic())
            call = worker.stub.Analyze(message, timeout=left_s)
            with _cancelled_with(call, cancelled):
                return _result(worker, call, request, on_progress)

        try:
            try:
                return ask()
            except grpc.RpcError as error:
                if worker.local or error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                # A worker elsewhere may be new and hold no model yet.
                self._load_at(worker, request.model)
                return ask()
        except grpc.RpcError as error:
            raise _meaning(worker, error) from None

    def _load_at(self, worker: _Worker, model: ModelIdentity) -> None:
        source = "" if worker.local else self._source_address
        message = pb.LoadModelRequest(model=converters.model_reference(model), source=source)
        worker.stub.LoadModel(message, timeout=_LOAD_TIMEOUT_S)


class _Worker:
    """One address, and how many analyses this edge has there."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self.address = address
        self.local = transport.is_local(address)
        self.channel = transport.open_channel(address, tls)
        self.stub = pb_grpc.InferenceServiceStub(self.channel)
        self.busy = 0
        self.failed_at = 0.0  # one that failed a moment ago is asked last
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count as busy for the duration of the context."""
        with self._lock:
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1


class _Offer:
    """The voxels of one analysis, put where the worker that is asked can read them."""

    def __init__(
        self,
        volume: Volume,
        folder: VolumeFolder,
        source: SourceServer | None,
        source_address: str,
    ) -> None:
        self._volume = volume
        self._folder = folder
        self._source = source
        self._source_address = source_address
        self._lent = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lent.close()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the volume."""
        return self._volume.digest()

    def location(self, worker: _Worker) -> pb.VolumeHandle | pb.VolumeReference:
        """Where ``worker`` finds the voxels."""
        return self._handle if worker.local else self._reference

    @cached_property
    def _handle(self) -> pb.VolumeHandle:
        return pb.VolumeHandle(name=self._lent.enter_context(self._folder.lend(self._volume)))

    @cached_property
    def _reference(self) -> pb.VolumeReference:
        if self._source is None:
            raise InferenceFailed("no source for workers on other hosts is configured")
        token = self._lent.enter_context(self._source.lend(self._volume))
        return pb.VolumeReference(address=self._source_address, token=token)


@contextmanager
def _cancelled_with(call: grpc.Call, cancelled: IsCancelled) -> Iterator[None]:
    """Cancel ``call`` as soon as ``cancelled`` says so, and at the end of the context."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            if cancelled():
                call.cancel()
                return

    thread = threading.Thread(target=watch, name="cancellation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        call.cancel()


def _result(
    worker: _Worker,
    events: Iterator[pb.AnalyzeEvent],
    request: AnalysisRequest,
    on_progress: OnProgress,
) -> VolumeAnalysis:
    """The result at the end of the stream. Progress is told; waiting is not, it costs nobody."""
    for event in events:
        match event.WhichOneof("event"):
            case "progress":
                on_progress(event.progress.step, event.progress.fraction)
            case "result":
                # Nothing follows but the end, which tells the worker that the result arrived.
                with suppress(grpc.RpcError):
                    next(events, None)
                if event.result.model.bundle_hash != request.model.bundle_hash:
                    raise InferenceFailed(f"{worker.address} ran another model")
                try:
                    return converters.analysis(event.result, request.volume.geometry.shape)
                except ValueError as error:
                    raise InferenceFailed(f"{worker.address}: {error}") from None
    raise InferenceUnavailable(f"{worker.address} ended without a result")


def _meaning(
    worker: _Worker, error: grpc.RpcError
) -> NotAnalysable | InferenceUnavailable | InferenceFailed:
    """What a status of Analyze means here."""
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        with suppress(KeyError, ValueError):
            trailer = _trailers(error)[transport.NOT_ANALYSABLE]
            return converters.not_analysable(trailer)
    if error.code() in _REFUSALS:
        return _failed(worker, error)
    return _unavailable(worker, error)


def _unavailable(worker: _Worker, error: grpc.RpcError) -> InferenceUnavailable:
    retry_after_s = None
    with suppress(KeyError, ValueError):
        retry_after_s = int(_trailers(error)[transport.RETRY_AFTER_MS]) / 1000
    return InferenceUnavailable(_sentence(worker, error), retry_after_s)


def _failed(worker: _Worker, error: grpc.RpcError) -> InferenceFailed:
    return InferenceFailed(_sentence(worker, error))


def _sentence(worker: _Worker, error: grpc.RpcError) -> str:
    return f"worker {worker.address}: {error.code().name}: {error.details()}"


def _trailers(error: grpc.RpcError) -> dict[str, bytes]:
    return {
        item.key: item.value if isinstance(item.value, bytes) else item.value.encode()
        for item in error.trailing_metadata() or ()
    }


def _sooner(one: InferenceUnavailable | None, other: InferenceUnavailable) -> InferenceUnavailable:
    """The trouble that may pass sooner: no hint comes from a worker that is not there at all."""
    if one is None or one.retry_after_s is None:
        return other
    if other.retry_after_s is None:
        return one
    return min(one, other, key=lambda error: error.retry_after_s or 0.0)


def _no_worker() -> InferenceUnavailable:
    return InferenceUnavailable("no worker is configured: see inference.workers")
