"""The gRPC services of a worker: inference, health, reflection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NoReturn

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from phoi_models.bundle_store import BundleStore, UnknownModel
from phoi_models.errors import BadBundle, Cancelled, NotAnalysable, UntrustedBundle
from phoi_protos import transport
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb
from phoi_protos.phoi.inference.v1 import inference_pb2_grpc as pb_grpc

from phoi_inference import converters, errors
from phoi_inference.engine import Engine
from phoi_inference.metrics import Metrics
from phoi_inference.scheduler import (
    Finished,
    IsCancelled,
    OnProgress,
    Progress,
    Queued,
    Scheduler,
    Ticket,
)
from phoi_inference.settings import WorkerSettings
from phoi_inference.sources import Sources
from phoi_inference.volumes import VolumeReader

SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name

STATUS: Mapping[type[BaseException], grpc.StatusCode] = MappingProxyType(
    {
        NotAnalysable: grpc.StatusCode.FAILED_PRECONDITION,
        errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
        errors.RequestConflict: grpc.StatusCode.INVALID_ARGUMENT,
        BadBundle: grpc.StatusCode.INVALID_ARGUMENT,
        UnknownModel: grpc.StatusCode.NOT_FOUND,
        errors.UnknownVolume: grpc.StatusCode.NOT_FOUND,
        errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
        UntrustedBundle: grpc.StatusCode.PERMISSION_DENIED,
        errors.VolumeDamaged: grpc.StatusCode.DATA_LOSS,
        errors.SourceUnavailable: grpc.StatusCode.UNAVAILABLE,
        errors.Stopping: grpc.StatusCode.UNAVAILABLE,
        Cancelled: grpc.StatusCode.CANCELLED,
    }
)

# Calls that wait hold a thread each; these are for what answers at once (health, listing, joining).
_SPARE_THREADS = 32

_log = structlog.get_logger()


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Answers ``phoi.inference.v1.InferenceService``."""

    def __init__(
        self,
        settings: WorkerSettings,
        engine: Engine,
        scheduler: Scheduler[pb.Analysis],
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._metrics = metrics
        self._allowed_sources = settings.sources
        self._sources = Sources(settings.tls)
        self._volumes = VolumeReader(settings.volumes, settings.sources, self._sources.volume)

    def Analyze(  # noqa: N802
        self, request: pb.AnalyzeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AnalyzeEvent]:
        """Compute, join or replay an analysis."""
        status = grpc.StatusCode.OK
        try:
            yield from self._events(converters.request(request), context)
        except GeneratorExit:
            status = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            status = _status(error)
            _abort(context, error, request.request_id)
        finally:
            self._metrics.request_ended(status.name)

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        """What the store holds and what of it is loaded."""
        del request, context
        return pb.ListModelsResponse(models=[converters.model(m) for m in self._engine.models()])

    def LoadModel(  # noqa: N802
        self, request: pb.LoadModelRequest, context: grpc.ServicerContext
    ) -> pb.LoadModelResponse:
        """Verify a model and make it ready, pulling it first if need be."""
        try:
            identity = converters.model_identity(request.model)
            try:
                state = self._engine.load(identity)
            except UnknownModel:
                if not request.source:
                    raise
                if request.source not in self._allowed_sources:
                    raise errors.NotAllowed("this worker may not pull from there") from None
                chunks = self._sources.bundle(request.source, identity.bundle_hash)
                state = self._engine.install(chunks, identity)
        except Exception as error:
            _abort(context, error, request_id="")
        return pb.LoadModelResponse(model=converters.model(state))

    def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, context: grpc.ServicerContext
    ) -> pb.UnloadModelResponse:
        """Free a model's memory."""
        try:
            self._engine.unload(converters.model_identity(request.model))
        except errors.BadRequest as error:
            _abort(context, error, request_id="")
        return pb.UnloadModelResponse()

    def _events(
        self, request: converters.Request, context: grpc.ServicerContext
    ) -> Iterator[pb.AnalyzeEvent]:
        ticket = self._scheduler.submit(
            request.request_id,
            request.input_key,
            request.level,
            lambda on_progress, cancelled: self._compute(request, on_progress, cancelled),
        )
        # Called when the client cancels, dies, or its deadline passes.
        if not context.add_callback(ticket.leave):
            ticket.leave()
        return _messages(ticket)

    def _compute(
        self, request: converters.Request, on_progress: OnProgress, cancelled: IsCancelled
    ) -> pb.Analysis:
        started = time.monotonic()
        on_progress("volume", 0.0)
        volume = self._volumes.read(request.location, request.geometry, request.digest, cancelled)
        read_s = time.monotonic() - started
        result = self._engine.analyze(request.model, volume, request.region, on_progress, cancelled)
        timing_s = {"read": read_s, **result.timing_s}
        model = request.model
        self._metrics.analysed(model.name, model.version, len(result.findings), timing_s)
        _log.info(
            "analysis finished",
            request_id=request.request_id,
            model=model.name,
            version=model.version,
            findings=len(result.findings),
            seconds=round(time.monotonic() - started, 3),
        )
        message = converters.analysis(result, model)
        message.timing_s.update(timing_s)
        return message


class Worker:
    """A running worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the newest models and start to serve.

        Raises:
            SettingsError: an address or port is taken, or a certificate cannot be read.
        """
        store = BundleStore(settings.store)
        self._scheduler: Scheduler[pb.Analysis] = Scheduler(settings.scheduler)
        engine = Engine(
            store,
            settings.trust,
            settings.sessions,
            settings.models,
            on_evicted=lambda: metrics.model_evicted(),
        )
        metrics = Metrics(
            lambda: self._scheduler.waiting,
            lambda: self._scheduler.running,
            lambda: engine.loaded,
        )
        self._stop_metrics = _serve_metrics(metrics, settings.metrics_port)
        engine.load_newest()
        threads = settings.scheduler.capacity + settings.scheduler.parallel + _SPARE_THREADS
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=transport.SERVER_OPTIONS,
            maximum_concurrent_rpcs=threads,
        )
        servicer = InferenceServicer(settings, engine, self._scheduler, metrics)
        pb_grpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.addresses = _listen(self._server, settings)
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info("worker ready", addresses=self.addresses)

    def stop(self, grace_s: float) -> None:
        """Take nothing more, give what runs ``grace_s`` seconds, then abandon it."""
        self._health.enter_graceful_shutdown()
        self._scheduler.stop()
        self._server.stop(grace_s).wait()
        self._scheduler.join(timeout_s=1.0)
        self._stop_metrics()
        _log.info("worker stopped")


def _messages(ticket: Ticket[pb.Analysis]) -> Iterator[pb.AnalyzeEvent]:
    for event in ticket.events():
        match event:
            case Queued(ahead):
                yield pb.AnalyzeEvent(queued=pb.Queued(ahead=ahead))
            case Progress(step, fraction):
                yield pb.AnalyzeEvent(progress=pb.Progress(step=step, fraction=fraction))
            case Finished(result):
                yield pb.AnalyzeEvent(result=result)


def _status(error: BaseException) -> grpc.StatusCode:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return grpc.StatusCode.INTERNAL


def _abort(context: grpc.ServicerContext, error: Exception, request_id: str) -> NoReturn:
    """End the call with the status of ``error``. Only errors that we raise on purpose are told."""
    status = _status(error)
    detail = str(error)
    if status is grpc.StatusCode.INTERNAL:
        _log.error("analysis failed", request_id=request_id, exc_info=error)
        detail = f"{type(error).__name__}: see the worker's log"
    if isinstance(error, errors.QueueFull):
        retry_after = str(round(error.retry_after_s * 1000))
        context.set_trailing_metadata(((transport.RETRY_AFTER_MS, retry_after),))
    if isinstance(error, NotAnalysable):
        message = pb.NotAnalysable(reason=error.reason.value, detail=error.detail)
        context.set_trailing_metadata(((transport.NOT_ANALYSABLE, message.SerializeToString()),))
    context.abort(status, detail)


def _listen(server: grpc.Server, settings: WorkerSettings) -> list[str]:
    try:
        return [transport.listen(server, address, settings.tls) for address in settings.listen]
    except transport.TransportError as error:
        raise errors.SettingsError(f"{error}; choose another --listen") from None


def _serve_metrics(metrics: Metrics, port: int) -> Callable[[], None]:
    if not port:
        return lambda: None
    try:
        return metrics.serve(port)
    except OSError:
        raise errors.SettingsError(f"port {port} is taken: choose another --metrics-port") from None
