"""Images of one study come by many threads, and are taken away by one: never at the same time.

An image that comes is on disk a moment before it is indexed. Who takes images away in that moment
would take one that the index speaks of a moment later, and that success was answered for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class ComingAndGoing:
    """Keeps them apart, study by study. Safe to use from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._coming: Counter[str] = Counter()
        self._going: set[str] = set()

    @contextmanager
    def coming(self, study_instance_uid: str) -> Iterator[None]:
        """An image of the study is given its name and indexed meanwhile; others may come too."""
        uid = study_instance_uid
        with self._changed:
            self._changed.wait_for(lambda: uid not in self._going)
            self._coming[uid] += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming[uid] -= 1
                if not self._coming[uid]:
                    del self._coming[uid]
                    self._changed.notify_all()

    @contextmanager
    def going(self, study_instance_uid: str) -> Iterator[None]:
        """Images of the study are taken away meanwhile: none comes, and nobody else takes any."""
        uid = study_instance_uid
        with self._changed:
            self._changed.wait_for(lambda: uid not in self._going)
            self._going.add(uid)  # no more begin to come
            self._changed.wait_for(lambda: uid not in self._coming)
        try:
            yield
        finally:
            with self._changed:
                self._going.discard(uid)
                self._changed.notify_all()
