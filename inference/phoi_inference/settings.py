"""What a worker is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from phoi_models.sessions import SessionSettings
from phoi_protos.transport import TlsFiles, TransportError, require_tls_off_host

from phoi_inference.engine import MODELS_KEPT
from phoi_inference.errors import SettingsError
from phoi_inference.scheduler import SchedulerSettings


@dataclass(frozen=True)
class WorkerSettings:
    """One worker.

    Attributes:
        listen: ``unix:/path`` or ``host:port`` each; off this host only with ``tls``.
        store: root of the bundle store.
        trust: file of the trust store.
        volumes: folder shared with edges on this host; None: none.
        sources: ``host:port`` of the edges that may be pulled from.
        tls: for the service and for pulling.
        models: how many stay loaded.
        metrics_port: where Prometheus scrapes on 127.0.0.1; 0: nowhere.

    Raises:
        SettingsError: they contradict one another.
    """

    listen: tuple[str, ...]
    store: Path
    trust: Path
    volumes: Path | None = None
    sources: frozenset[str] = frozenset()
    tls: TlsFiles | None = None
    models: int = MODELS_KEPT
    metrics_port: int = 0
    sessions: SessionSettings = field(default_factory=SessionSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)

    def __post_init__(self) -> None:
        try:
            for address in (*self.listen, *self.sources):
                require_tls_off_host(address, self.tls)
        except TransportError as error:
            raise SettingsError(f"{error}; see `phoi worker --help`") from None
