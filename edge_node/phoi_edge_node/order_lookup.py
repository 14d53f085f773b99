"""Asks the worklist for the order behind studies that come in without one.

Beside the study's life, never in its way: a study is analysed whether an answer came or not, and an
urgent order that is found later still moves it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import structlog

from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.orders import UNDATED, HospitalMessage, ImagingOrder, OrderAction, ToldOrder
from phoi_edge_node.ports import Clock
from phoi_edge_node.result import StudyHeader
from phoi_edge_node.store import StudyStore

TRIES = 3
WAIT_S = 20.0  # before asking about a study again

log = structlog.get_logger(__name__)


class Worklist(Protocol):
    """What knows the orders of the day."""

    def order_for(self, study: StudyHeader) -> ImagingOrder | None:
        """The order behind a study; None where there is none, or which is not clear.

        Raises:
            SourceUnavailable: no usable answer.
        """
        ...


@dataclass(frozen=True)
class _Asked:
    """How often, and when it may be asked again."""

    tries: int
    again_at: float


class OrderLookup:
    """One step of a loop asks about one study."""

    def __init__(self, store: StudyStore, worklist: Worklist, clock: Clock) -> None:
        self._store = store
        self._worklist = worklist
        self._clock = clock
        self._asked: dict[str, _Asked] = {}

    def ask_next(self) -> bool:
        """Ask about the next study that comes in and whose order is not known; False: none."""
        coming = self._store.receiving_studies()
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in set(coming)}
        return any(self._may_ask(uid) and self._ask(uid) for uid in coming)

    def _may_ask(self, uid: str) -> bool:
        asked = self._asked.get(uid)
        if asked is None:
            return True
        return asked.tries < TRIES and self._clock.monotonic() >= asked.again_at

    def _ask(self, uid: str) -> bool:
        """True if the worklist was asked."""
        tries = self._asked[uid].tries + 1 if uid in self._asked else 1
        self._asked[uid] = _Asked(tries, self._clock.monotonic() + WAIT_S)
        study = self._store.study(uid)
        if study is None or self._store.order_of(uid) is not None:
            return False
        try:
            order = self._worklist.order_for(study.header)
        except SourceUnavailable as error:
            log.warning("the worklist was not asked", why=str(error), study_instance_uid=uid)
            return True
        if order is not None:
            self._remember(uid, order)
        return True

    def _remember(self, uid: str, order: ImagingOrder) -> None:
        identity = sha256(f"worklist {uid} {order!r}".encode()).hexdigest()
        told = ToldOrder(OrderAction.UPDATE, order)
        self._store.take_message(HospitalMessage(identity, UNDATED, orders=(told,)))
        log.info("order found on the worklist", study_instance_uid=uid)
