"""Prometheus metrics: states with their age. Labels are states and lanes, never a study."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from phoi_edge_node.desk import LinkState
from phoi_edge_node.links import Links
from phoi_edge_node.ports import Clock
from phoi_edge_node.store import StudyStore


class EdgeCollector:
    """Counts anew at every scrape: what is shown is what is stored."""

    def __init__(self, store: StudyStore, links: Links, clock: Clock) -> None:
        self._store = store
        self._links = links
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        counts = self._store.counts()
        studies = GaugeMetricFamily("phoi_studies", "Studies by state.", labels=["state"])
        for study_state, number in counts.studies.items():
            studies.add_metric([study_state.value], number)
        yield studies
        analyses = GaugeMetricFamily("phoi_analyses", "Analyses by state.", labels=["state"])
        for state, number in Tally(record.state for record in counts.analyses).items():
            analyses.add_metric([state.value], number)
        yield analyses
        deliveries = GaugeMetricFamily(
            "phoi_deliveries", "Deliveries by destination and state.", labels=["to", "state"]
        )
        for (destination, delivery_state), number in counts.deliveries.items():
            deliveries.add_metric([destination, delivery_state.value], number)
        yield deliveries
        now = self._clock.now()
        waiting = GaugeMetricFamily(
            "phoi_oldest_waiting_seconds", "Age of what waits longest, by link.", labels=["link"]
        )
        up = GaugeMetricFamily("phoi_link_up", "1 if the link answered last time.", labels=["link"])
        for link in self._links.views(counts):
            up.add_metric([link.name], float(link.state is LinkState.UP))
            since = link.oldest_waiting_at
            waiting.add_metric([link.name], (now - since).total_seconds() if since else 0.0)
        yield waiting
        yield up
