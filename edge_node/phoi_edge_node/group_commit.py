"""Commits together what several threads wait with, so that one sync to disk serves them all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")


class _Waiting(Generic[_Item, _Outcome]):
    """What one thread brought, and later what became of it."""

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.outcome: list[_Outcome] = []
        self.error: Exception | None = None

    @property
    def settled(self) -> bool:
        return bool(self.outcome) or self.error is not None


class GroupCommit(Generic[_Item, _Outcome]):
    """One commit at a time; what comes while one runs waits and goes into the next, all together.

    A thread that finds nothing under way commits at once, so a single one never waits for others.

    Args:
        commit: durable once it returns; gives one outcome for each item, in order.
        of_all: errors that no single item is to blame for. After any other, each item of the group
            is committed alone, so that only the one at fault fails.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_Item]], Sequence[_Outcome]],
        of_all: tuple[type[Exception], ...] = (),
    ) -> None:
        self._commit = commit
        self._of_all = of_all
        self._queue: deque[_Waiting[_Item, _Outcome]] = deque()
        self._committing = threading.Lock()

    def add(self, item: _Item) -> _Outcome:
        """Committed once this returns. Raises what ``commit`` raised for this item."""
        mine = _Waiting[_Item, _Outcome](item)
        self._queue.append(mine)
        with self._committing:
            if not mine.settled:
                # Mine is among these: whoever took it before would have settled it.
                self._settle([self._queue.popleft() for _ in range(len(self._queue))])
        if mine.error is not None:
            raise mine.error
        return mine.outcome[0]

    def _settle(self, group: Sequence[_Waiting[_Item, _Outcome]]) -> None:
        try:
            outcomes = self._commit([waiting.item for waiting in group])
        except Exception as error:
            if len(group) > 1 and not isinstance(error, self._of_all):
                for waiting in group:
                    self._settle([waiting])
                return
            for waiting in group:
                waiting.error = error
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.outcome.append(outcome)
