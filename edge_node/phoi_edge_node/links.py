"""What is at the other end of each link, told without waiting.

Inference is asked now and then; a destination by its own courier, the only one that talks to it.
Archives that are asked whether studies are whole are not asked besides: what they last answered is
as old as the last study that came.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from phoi_models.identity import ModelIdentity

from phoi_edge_node.courier import Courier, LinkReport
from phoi_edge_node.desk import CircuitView, LinkKind, LinkState, LinkView
from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.ports import Clock, Delivered, Erred, InferenceService, Refused, Unreachable
from phoi_edge_node.store import Counts, InState
from phoi_edge_node.study import AnalysisState, DeliveryState, StudyState

WORKER = "inference"


class Links:
    """Every destination, every archive that is asked, and inference.

    Args:
        heard: what each archive last answered, by its name; None: it was not asked yet.
    """

    def __init__(
        self,
        couriers: Sequence[Courier],
        inference: InferenceService,
        clock: Clock,
        heard: Callable[[], Mapping[str, LinkReport | None]] = dict,
    ) -> None:
        self._couriers = couriers
        self._inference = inference
        self._clock = clock
        self._heard = heard
        self._lock = threading.Lock()
        self._worker: LinkReport | None = None
        self._models: tuple[ModelIdentity, ...] = ()

    @property
    def models(self) -> tuple[ModelIdentity, ...]:
        """The models that inference offered when it was last asked."""
        with self._lock:
            return self._models

    def check_inference(self) -> None:
        """Ask which models there are. Waits for the network."""
        try:
            models = tuple(self._inference.models())
            detail = ", ".join(f"{m.name} {m.version}" for m in models)
            outcome = Delivered(detail) if models else Unreachable("no model is loaded")
        except InferenceUnavailable as error:
            models, outcome = (), Unreachable(str(error))
        with self._lock:
            self._models = models or self._models
            self._worker = LinkReport(outcome, self._clock.now())

    def views(self, counts: Counts) -> tuple[LinkView, ...]:
        """What was last heard of each link, and what waits for it."""
        with self._lock:
            worker = self._worker
        return (
            self._worker_view(worker, counts),
            *(_courier_view(courier, counts) for courier in self._couriers),
            *(_source_view(name, report, counts) for name, report in self._heard().items()),
        )

    def _worker_view(self, report: LinkReport | None, counts: Counts) -> LinkView:
        return LinkView(
            kind=LinkKind.WORKER,
            name=WORKER,
            state=_state(report),
            detail=_detail(report),
            checked_at=report.at if report else None,
            waiting=_number(counts.analyses.get(AnalysisState.QUEUED)),
            oldest_waiting_at=counts.oldest_queued,
            dead=_number(counts.analyses.get(AnalysisState.FAILED)),
        )


def _courier_view(courier: Courier, counts: Counts) -> LinkView:
    name = courier.destination.name
    report, circuit = courier.last, courier.circuit
    return LinkView(
        kind=LinkKind.DESTINATION,
        name=name,
        state=_state(report),
        detail=_detail(report),
        checked_at=report.at if report else None,
        waiting=_number(counts.deliveries.get((name, DeliveryState.PENDING)))
        + _number(counts.deliveries.get((name, DeliveryState.SENDING))),
        oldest_waiting_at=counts.oldest_undelivered.get(name),
        dead=_number(counts.deliveries.get((name, DeliveryState.DEAD))),
        circuit=CircuitView(circuit.state, circuit.since, courier.next_probe_at),
    )


def _source_view(name: str, report: LinkReport | None, counts: Counts) -> LinkView:
    """Apart from the lane of the same archive, to which results go."""
    counting = counts.studies.get(StudyState.COUNTING)
    return LinkView(
        kind=LinkKind.SOURCE,
        name=f"{name}-query",
        state=_state(report),
        detail=_detail(report),
        checked_at=report.at if report else None,
        waiting=_number(counting),
        oldest_waiting_at=counting.since if counting else None,
        dead=0,
    )


def _number(counted: InState | None) -> int:
    return counted.number if counted else 0


def _state(report: LinkReport | None) -> LinkState:
    if report is None:
        return LinkState.UNKNOWN
    return LinkState.DOWN if isinstance(report.outcome, Unreachable) else LinkState.UP


def _detail(report: LinkReport | None) -> str:
    match report:
        case None:
            return ""
        case LinkReport(Delivered(receipt)):
            return receipt
        case LinkReport(Refused(reason) | Erred(reason) | Unreachable(reason)):
            return reason
        case _:
            raise AssertionError("a link report holds one of three outcomes")
