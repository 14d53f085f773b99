"""Is the receiver able to take images, and what did it set aside? For health, pages and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from phoi_edge_node.commitment import CommitmentState
from phoi_edge_node.desk import ReceivingView

MEGABYTE = 1_000_000


class ReceivingState:
    """Looked at anew at every question.

    Args:
        free_bytes: of the disk that images go to.
        quarantined: number of instances set aside.
        minimum_free_disk_mb: below it images are refused.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        quarantined: Callable[[], int],
        minimum_free_disk_mb: int,
    ) -> None:
        self._free_bytes = free_bytes
        self._quarantined = quarantined
        self._minimum = minimum_free_disk_mb

    @property
    def free_bytes(self) -> int:
        """Of the disk that images go to."""
        return self._free_bytes()

    @property
    def least_bytes(self) -> int:
        """With less than this free, images are refused."""
        return self._minimum * MEGABYTE

    @property
    def quarantined(self) -> int:
        """Instances set aside because others were received under their UIDs."""
        return self._quarantined()

    def view(self) -> ReceivingView:
        """All of it, for pages."""
        return ReceivingView(self.troubles(), self.quarantined)

    def troubles(self) -> tuple[str, ...]:
        """Why images are refused now; empty when they are taken."""
        free = self.free_bytes // MEGABYTE
        if free >= self._minimum:
            return ()
        return (f"images are refused: {free} MB of disk are free, {self._minimum} are needed",)


class ReceivingCollector:
    """Its Prometheus metrics."""

    def __init__(
        self,
        state: ReceivingState,
        commitments: Callable[[], Mapping[tuple[str, CommitmentState], int]],
    ) -> None:
        self._state = state
        self._commitments = commitments

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield _gauge("phoi_disk_free_bytes", "Room for images.", self._state.free_bytes)
        yield _gauge(
            "phoi_disk_least_bytes", "Below it images are refused.", self._state.least_bytes
        )
        refused = float(bool(self._state.troubles()))
        yield _gauge("phoi_images_refused", "1 while the disk is too full for images.", refused)
        yield _gauge("phoi_quarantined", "Instances set aside.", self._state.quarantined)
        commitments = GaugeMetricFamily(
            "phoi_commitments",
            "Documents by what their archive said of keeping them.",
            labels=["to", "state"],
        )
        for (archive, state), number in self._commitments().items():
            commitments.add_metric([archive, state.value], number)
        yield commitments


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
