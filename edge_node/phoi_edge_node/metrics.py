"""Prometheus metrics: states with their age. Labels are states and lanes, never a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from phoi_edge_node.circuit import CircuitState
from phoi_edge_node.desk import LinkState
from phoi_edge_node.links import Links
from phoi_edge_node.ports import Clock
from phoi_edge_node.store import Counts, InState, StudyStore
from phoi_edge_node.watchdog import Watchdog

_State = TypeVar("_State", bound=StrEnum)


class EdgeCollector:
    """Counts anew at every scrape: what is shown is what is stored."""

    def __init__(self, store: StudyStore, links: Links, clock: Clock, watchdog: Watchdog) -> None:
        self._store = store
        self._links = links
        self._clock = clock
        self._watchdog = watchdog

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        counts = self._store.counts()
        now = self._clock.now()
        yield _by_state("phoi_studies", "Studies by state.", counts.studies)
        yield _by_state("phoi_analyses", "Analyses by state.", counts.analyses)
        yield _by_state("phoi_reviews", "Reviews by state.", counts.reviews)
        yield _deliveries(counts)
        yield GaugeMetricFamily(
            "phoi_damaged_images",
            "Stored images that were ever found damaged or gone.",
            value=counts.damages,
        )
        yield GaugeMetricFamily(
            "phoi_changed_after_signing",
            "Studies to which new images came after they were signed.",
            value=counts.changed_after_signing,
        )
        yield self._recalls()
        yield _oldest(counts, now)
        yield from self._link_metrics(counts, now)
        yield from self._alert_metrics()
        yield from self._reconciliation_metrics(now)

    def _recalls(self) -> Metric:
        waiting = GaugeMetricFamily(
            "phoi_recall_waiting", "What recalls have yet to do.", labels=["for"]
        )
        for what, number in zip(
            ("notice", "analysis", "model"), self._store.recalls_waiting(), strict=True
        ):
            waiting.add_metric([what], number)
        return waiting

    def _link_metrics(self, counts: Counts, now: datetime) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "phoi_oldest_waiting_seconds", "Age of what waits longest, by link.", labels=["link"]
        )
        up = GaugeMetricFamily("phoi_link_up", "1 if the link answered last time.", labels=["link"])
        circuit = GaugeMetricFamily(
            "phoi_circuit",
            "1 for the state that a lane's circuit is in: closed, half_open, open.",
            labels=["link", "state"],
        )
        for link in self._links.views(counts):
            if link.circuit is not None:
                for state in CircuitState:
                    circuit.add_metric([link.name, state.value], float(state is link.circuit.state))
            up.add_metric([link.name], float(link.state is LinkState.UP))
            since = link.oldest_waiting_at
            waiting.add_metric([link.name], _seconds(since, now) if since else 0.0)
        yield waiting
        yield up
        yield circuit

    def _alert_metrics(self) -> Iterator[Metric]:
        overdue = GaugeMetricFamily(
            "phoi_overdue", "What has been in its state for too long.", labels=["life", "state"]
        )
        for limit, number in self._watchdog.numbers():
            overdue.add_metric([limit.life.value, limit.state.value], number)
        yield overdue
        yield GaugeMetricFamily(
            "phoi_threads_in_trouble",
            "Threads that died or hang.",
            value=len(self._watchdog.troubles()),
        )

    def _reconciliation_metrics(self, now: datetime) -> Iterator[Metric]:
        """Of the latest comparison with the archives that could ask all of them."""
        for asked in self._store.reconciliations():
            if asked.ended_at and asked.report and not asked.report.trouble:
                yield GaugeMetricFamily(
                    "phoi_left_behind",
                    "Studies that the latest comparison with the archives named.",
                    value=len(asked.report.lacking),
                )
                yield GaugeMetricFamily(
                    "phoi_reconciled_seconds",
                    "Age of the latest comparison with the archives.",
                    value=_seconds(asked.ended_at, now),
                )
                return


def _by_state(name: str, text: str, counted: Mapping[_State, InState]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["state"])
    for state, in_state in counted.items():
        metric.add_metric([state.value], in_state.number)
    return metric


def _deliveries(counts: Counts) -> Metric:
    metric = GaugeMetricFamily(
        "phoi_deliveries", "Deliveries by destination and state.", labels=["to", "state"]
    )
    for (destination, state), in_state in counts.deliveries.items():
        metric.add_metric([destination, state.value], in_state.number)
    return metric


def _oldest(counts: Counts, now: datetime) -> Metric:
    metric = GaugeMetricFamily(
        "phoi_state_oldest_seconds",
        "How long the one that came first into a state has been in it.",
        labels=["life", "state"],
    )
    for (life, state), in_state in counts.of_lives().items():
        metric.add_metric([life, state], _seconds(in_state.since, now))
    return metric


def _seconds(since: datetime, now: datetime) -> float:
    """A clock that was set back gives zero."""
    return max(0.0, (now - since).total_seconds())
