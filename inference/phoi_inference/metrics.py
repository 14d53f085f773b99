"""What Prometheus is told. Labels name models, steps and outcomes, never a study or a patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import start_http_server

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """The counters of one worker."""

    def __init__(
        self, waiting: Callable[[], int], running: Callable[[], int], loaded: Callable[[], int]
    ) -> None:
        """Register all metrics.

        Args:
            waiting: analyses that wait, asked at each scrape.
            running: analyses that run.
            loaded: models that are loaded.
        """
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "phoi_worker_requests",
            "Analyze calls by the gRPC status they ended with.",
            ["status"],
            registry=self.registry,
        )
        self._analyses = Counter(
            "phoi_worker_analyses",
            "Analyses that were computed to the end.",
            ["model", "version"],
            registry=self.registry,
        )
        self._findings = Counter(
            "phoi_worker_findings",
            "Findings of these analyses.",
            ["model", "version"],
            registry=self.registry,
        )
        self._steps = Histogram(
            "phoi_worker_step_seconds",
            "Time of each step of an analysis.",
            ["step"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._evicted = Counter(
            "phoi_worker_models_evicted",
            "Models that were put away to make room for others: if often, raise --models.",
            registry=self.registry,
        )
        for name, text, function in (
            ("phoi_worker_waiting", "Analyses that wait.", waiting),
            ("phoi_worker_running", "Analyses that run.", running),
            ("phoi_worker_models_loaded", "Models that are loaded.", loaded),
        ):
            Gauge(name, text, registry=self.registry).set_function(function)

    def request_ended(self, status: str) -> None:
        """Count an Analyze call."""
        self._requests.labels(status).inc()

    def model_evicted(self) -> None:
        """Count a model that was put away."""
        self._evicted.inc()

    def analysed(
        self, model: str, version: str, findings: int, timing_s: Mapping[str, float]
    ) -> None:
        """Count an analysis that was computed."""
        self._analyses.labels(model, version).inc()
        self._findings.labels(model, version).inc(findings)
        for step, seconds in timing_s.items():
            self._steps.labels(step).observe(seconds)

    def serve(self, port: int) -> Callable[[], None]:
        """Answer scrapes on 127.0.0.1; returns what stops that.

        Raises:
            OSError: the port is taken.
        """
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
