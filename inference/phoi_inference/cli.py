"""``phoi worker``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer
from phoi_models.home import find_home
from phoi_models.logs import LogFile, configure_logs
from phoi_models.service_manager import serve_until, stop_signal
from phoi_models.sessions import FormChoice, Provider, SessionSettings
from phoi_protos.transport import TlsFiles

from phoi_inference.engine import MODELS_KEPT
from phoi_inference.errors import SettingsError
from phoi_inference.scheduler import SchedulerSettings
from phoi_inference.server import Worker
from phoi_inference.settings import WorkerSettings

# With the end of what is abandoned, this stays within the usual 10 s before a SIGKILL.
_GRACE_S = 5.0
_LISTEN = "127.0.0.1:50051"
_MAX_BATCH = 64
_log = structlog.get_logger()


def command(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PHOI_WORKER_LISTEN",
            help="unix:/path or host:port; repeat for more. Off this host it needs the three --tls "
            f"options. Default: {_LISTEN}.",
        ),
    ] = None,
    volumes: Annotated[
        Path | None,
        typer.Option(
            envvar="PHOI_WORKER_VOLUMES",
            help="Folder in which edges on this host leave voxels. Default: PHOI_HOME/volumes.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PHOI_WORKER_SOURCES",
            help="host:port of an edge elsewhere that may be pulled from. Repeat for more.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(envvar="PHOI_WORKER_STORE", help="Models. Default: PHOI_HOME/models."),
    ] = None,
    provider: Annotated[
        Provider,
        typer.Option(
            envvar="PHOI_WORKER_PROVIDER", help="auto takes the fastest that works on this machine."
        ),
    ] = Provider.AUTO,
    form: Annotated[
        FormChoice,
        typer.Option(
            envvar="PHOI_WORKER_FORM",
            help="In which numbers networks compute. auto takes 8-bit integers where the model has"
            " them and this CPU has instructions for them.",
        ),
    ] = FormChoice.AUTO,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of one analysis; 0: one per core.")
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(
            min=0,
            max=_MAX_BATCH,
            envvar="PHOI_WORKER_BATCH",
            help="Patches that a network is given at once; 0: one on a CPU, on a GPU as many as"
            " hold 7 million voxels.",
        ),
    ] = 0,
    parallel: Annotated[int, typer.Option(min=1, help="Analyses that run at once.")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Analyses that may wait.")] = 16,
    models: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="PHOI_WORKER_MODELS",
            help="Models that stay loaded; what was used longest ago goes first, never one in use.",
        ),
    ] = MODELS_KEPT,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar="PHOI_WORKER_METRICS_PORT",
            help="Prometheus on 127.0.0.1; 0: none.",
        ),
    ] = 0,
    tls_certificate: Annotated[Path | None, typer.Option(help="This worker's, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Authority of the edges' certificates, PEM.")
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(
            envvar="PHOI_WORKER_LOG_FILE",
            help="JSON lines go there: files of 50 MB, the last ten are kept. Default: stderr.",
        ),
    ] = None,
) -> None:
    """Run models for edge nodes, over gRPC.

    Start it beside an edge node on the same machine and leave everything as it is; run `phoi models
    init` once before. For an edge on another machine, give --listen, --source and the --tls
    options. It stops within 10 seconds of Ctrl-C or SIGTERM: what waits is sent elsewhere, what
    runs may end. Logs are JSON lines without patient data.
    """
    home = find_home()
    configure_logs(file=LogFile(log_file) if log_file else None)
    _log.info("worker starts", phoi=version("phoi"), python=platform.python_version())
    stop = stop_signal()
    worker = Worker(
        WorkerSettings(
            listen=tuple(listen or (_LISTEN,)),
            store=store or home.models,
            trust=home.trust,
            volumes=volumes or home.volumes,
            sources=frozenset(source or ()),
            tls=_tls(tls_certificate, tls_key, tls_ca),
            models=models,
            metrics_port=metrics_port,
            sessions=SessionSettings(provider, threads, form, batch),
            scheduler=SchedulerSettings(capacity=queue, parallel=parallel),
        )
    )
    serve_until(stop)
    worker.stop(_GRACE_S)


def _tls(certificate: Path | None, key: Path | None, authority: Path | None) -> TlsFiles | None:
    if certificate and key and authority:
        return TlsFiles(certificate, key, authority)
    if certificate or key or authority:
        raise SettingsError("give all three of --tls-certificate, --tls-key and --tls-ca, or none")
    return None
