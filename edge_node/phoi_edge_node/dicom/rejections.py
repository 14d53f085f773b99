"""Who asked for an association and was rejected, in the log: mostly a wrong AE title."""

from __future__ import annotations

import threading

import structlog
from pynetdicom import evt

from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import DicomSettings

_log = structlog.get_logger(__name__)
_TELL_EVERY_S = 60.0  # at most, for one reason: a peer may try again all day


class Rejections:
    """Handles EVT_REJECTED of the receiver. Thread-safe."""

    def __init__(self, settings: DicomSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}

    def handle(self, event: evt.Event) -> None:
        """Log a rejection, and how many more for the same reason since the last."""
        asked = event.assoc.requestor.primitive
        if asked is None:
            return
        why = self._why(asked.called_ae_title, asked.calling_ae_title)
        untold = self._untold(why)
        if untold is None:
            return
        _log.warning(
            "association rejected",
            why=why,
            called=asked.called_ae_title.strip(),
            calling=asked.calling_ae_title.strip(),
            more_before=untold,
        )

    def _why(self, called: str, calling: str) -> str:
        allowed = self._settings.allowed_calling_ae_titles
        if called.strip() != self._settings.ae_title:
            return f"called AE title is not {self._settings.ae_title}"
        if allowed and calling.strip() not in allowed:
            return "calling AE title is not in dicom.allowed_calling_ae_titles"
        return "no room for another association, or nothing in common"

    def _untold(self, why: str) -> int | None:
        """How many were not told of; None where this one is not told of either."""
        now = self._clock.monotonic()
        with self._lock:
            told_at, untold = self._told.get(why, (-_TELL_EVERY_S, 0))
            if now - told_at < _TELL_EVERY_S:
                self._told[why] = (told_at, untold + 1)
                return None
            self._told[why] = (now, 0)
        return untold
