"""Wires what comes in beside C-STORE: STOW-RS, a watched folder, orders. Knows
adapters."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from phoi_edge_node.dicom.stow import StowService
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.dicom.watched_folder import WatchedFolder
from phoi_edge_node.dicom.worklist import ModalityWorklist
from phoi_edge_node.hl7v2.listener import MllpListener
from phoi_edge_node.hl7v2.reception import Reception
from phoi_edge_node.loops import Loop
from phoi_edge_node.order_lookup import OrderLookup
from phoi_edge_node.ports import Clock, UidSource
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.store import StudyStore


class WaysIn:
    """The further ways in that a site has set; none by default.

    Args:
        on_order: called after each message that was new.
        stopping: asked by what takes long.

    Attributes:
        loops: to be run beside those of the node.

    Raises:
        EdgeError: one of them cannot be used.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        taker: InstanceTaker,
        store: StudyStore,
        clock: Clock,
        uids: UidSource,
        on_order: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.loops: list[Loop] = []
        self._stow: StowService | None = None
        self.orders: MllpListener | None = None
        if settings.stow is not None:
            self._stow = StowService(settings.stow, settings.dicom, taker, clock)
        if settings.watched_folder is not None:
            watched = WatchedFolder(settings.watched_folder, settings.dicom, taker, clock, stopping)
            self.loops.append(Loop("watched-folder", watched.look, 1.0))
        if settings.worklist is not None:
            worklist = ModalityWorklist(settings.worklist, settings.dicom.ae_title)
            lookup = OrderLookup(store, worklist, clock)
            self.loops.append(Loop("worklist", lookup.ask_next, 1.0))
        if settings.orders is not None:
            orders = settings.orders
            reception = Reception(
                store, clock, uids, settings.site.name, on_order, orders.processing_id
            )
            self.orders = MllpListener(orders, reception.answer)

    def mount_on(self, app: FastAPI) -> None:
        """Put what speaks HTTP on the page's server."""
        if self._stow is not None:
            app.mount("/dicom-web", self._stow.application())

    def start(self) -> None:
        """Open what has a port of its own.

        Raises:
            EdgeError: the port cannot be used.
        """
        if self.orders is not None:
            self.orders.start()

    def stop(self) -> None:
        """Close it again. Idempotent."""
        if self.orders is not None:
            self.orders.stop()
