"""How long images are kept. Results, reviews and the outbox are kept for ever.

The images of a study may go once nothing needs them here: it is complete, its latest revision has
ended, and every document of it has arrived (in shadow mode there is none). So a study that is
received, counted, queued or analysed keeps them, and one with a dead letter too. They go after
``pixels_days``, if the wall clock can be trusted; on a disk that is getting full, earlier: of
signed studies first, those whose results arrived longest ago before others, then of unsigned ones
that nobody signed for ``review_hours``. Images that a review may still need go only when receiving
would stop soon: a disk that others fill must not take every study from its reader the moment its
results have arrived. The archive has them still. What is quarantined was never answered
with success, or is damaged: it goes after a time of its own, and first of all on a full disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import RetentionSettings
from phoi_edge_node.steady_clock import SteadyClock
from phoi_edge_node.store import SettledStudy, StudyStore

log = structlog.get_logger(__name__)

# What is set aside can be put back by hand for so long.
GRACE = timedelta(minutes=10)
# Long enough for somebody to look why there is so much of it.
QUARANTINE_ON_FULL_DISK = timedelta(days=1)


class RemovableImages(Protocol):
    """Where images lie. Removing is two steps, so that a crash between them loses nothing."""

    def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
        """No image of the study comes meanwhile."""
        ...

    def retire(self, study_instance_uid: str) -> None:
        """Set the images of a study aside; nothing happens where there are none."""
        ...

    def empty(self, before: datetime) -> int:
        """Remove for good what was set aside before this moment, unless it is indexed again.

        Returns:
            How many files were removed.
        """
        ...

    def drop_quarantined(self, before: datetime) -> int:
        """Remove what was quarantined before this moment: no sender was told that it is safe.

        Returns:
            How many files were removed.
        """
        ...

    def room(self) -> int:
        """Bytes that are free, or will be once what was set aside is removed."""
        ...


def next_to_expire(
    settled: Sequence[SettledStudy],
    now: datetime,
    room: int,
    settings: RetentionSettings,
    least_room: int,
) -> SettledStudy | None:
    """The study whose images go now, if any has to.

    Args:
        settled: studies whose images nothing needs any more.
        room: free disk, bytes.
        least_room: with less of it receiving would stop soon, bytes.
    """
    if room < settings.free_disk_target_mb * 1_000_000:
        reviewed_by = now - timedelta(hours=settings.review_hours)
        may_go = (
            s for s in settled if s.signed or s.settled_at <= reviewed_by or room < least_room
        )
        return min(may_go, key=lambda study: (not study.signed, study.settled_at), default=None)
    oldest = min(settled, key=lambda study: study.settled_at, default=None)
    if oldest is None or not settings.pixels_days:
        return None
    is_old = now - oldest.settled_at >= timedelta(days=settings.pixels_days)
    return oldest if is_old else None


class Retention:
    """Removes images, one study at a time."""

    def __init__(
        self,
        store: StudyStore,
        images: RemovableImages,
        clock: Clock,
        settings: RetentionSettings,
        least_room: int,
    ) -> None:
        self._store = store
        self._images = images
        self._clock = clock
        self._settings = settings
        self._least_room = least_room
        self._quarantine = timedelta(days=settings.quarantine_days)
        self._steady = SteadyClock(store, clock)

    def run(self) -> bool:
        """Remove the images of one study, if it is time; True if the next has to go at once.

        By age one study goes each time that the loop comes round: more than a hospital receives,
        and few enough that somebody sees it before all are gone.
        """
        now = self._clock.now()
        removed = self._images.empty(now - GRACE)
        if removed:
            log.info("images removed", files=removed)
        is_trusted, room = self._steady.is_trusted(), self._images.room()
        is_full = room < self._settings.free_disk_target_mb * 1_000_000
        if is_full or is_trusted:
            self._drop_quarantined(now, is_full=is_full)
        if not is_full and not (self._settings.pixels_days and is_trusted):
            return False
        settled = self._store.settled_studies()
        study = next_to_expire(settled, now, room, self._settings, self._least_room)
        if study is None:
            return False
        uid = study.study_instance_uid
        with self._images.going(uid):
            # First the index: what a crash leaves on disk is set aside at the next start.
            if self._store.expire_study(uid):
                self._images.retire(uid)
                log.info("images set aside", study_instance_uid=uid)
        return is_full

    def _drop_quarantined(self, now: datetime, *, is_full: bool) -> None:
        kept_for = QUARANTINE_ON_FULL_DISK if is_full else self._quarantine
        dropped = self._images.drop_quarantined(now - kept_for)
        if dropped:
            log.info("quarantined images removed", files=dropped)
