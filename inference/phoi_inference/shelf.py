"""Keeps a few loaded things at hand: what was used longest ago goes first, never what is in use."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shelf(Generic[_T]):
    """At most ``most`` of them, by key; more only while more are in use at once. Thread-safe.

    Args:
        most: how many stay.
        on_evicted: told of each that went to make room; not of those that were taken away.
    """

    def __init__(self, most: int, on_evicted: Callable[[str, _T], None]) -> None:
        self._most = most
        self._on_evicted = on_evicted
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _T] = OrderedDict()
        self._in_use: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> _T | None:
        """What is kept under a key, if anything; it does not count as used."""
        return self._kept.get(key)

    def put(self, key: str, value: _T) -> None:
        """Keep one more; it was used last."""
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            evicted = self._surplus(self._most, but=key)
        self._tell(evicted)

    def take_away(self, key: str) -> None:
        """Keep it no longer. Who uses it goes on with it."""
        with self._lock:
            self._kept.pop(key, None)

    def make_room(self) -> None:
        """For one more, before it is loaded: both at once might not fit into memory."""
        with self._lock:
            evicted = self._surplus(self._most - 1)
        self._tell(evicted)

    @contextmanager
    def using(self, key: str) -> Iterator[None]:
        """What is, or will be, kept under a key is in use."""
        with self._lock:
            self._in_use[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[key] -= 1
                if key in self._kept:
                    self._kept.move_to_end(key)
                evicted = self._surplus(self._most)
            self._tell(evicted)

    def _surplus(self, most: int, but: str = "") -> list[tuple[str, _T]]:
        """Drop those used longest ago until ``most`` are left, or all others are in use."""
        idle = [key for key in self._kept if not self._in_use[key] and key != but]
        going = idle[: max(0, len(self._kept) - most)]
        return [(key, self._kept.pop(key)) for key in going]

    def _tell(self, evicted: list[tuple[str, _T]]) -> None:
        for key, value in evicted:
            self._on_evicted(key, value)
