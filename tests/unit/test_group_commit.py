"""What several threads wait with is committed together, and each learns what became of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from phoi_edge_node.group_commit import GroupCommit


class Disk:
    """Commits numbers; can be held up, and refuses what is negative, and everything when full."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()
        self.full = False

    def commit(self, items: Sequence[int]) -> Sequence[str]:
        self.groups.append(list(items))
        self.busy.set()
        assert self.free.wait(10)
        if self.full:
            raise OSError("full")
        if min(items) < 0:
            raise ValueError("negative")
        return [f"kept {item}" for item in items]


def together(disk: Disk, group: GroupCommit[int, str], items: Sequence[int]) -> list[Future[str]]:
    """One commit is under way while all ``items`` are brought by threads of their own."""
    disk.free.clear()
    pool = ThreadPoolExecutor(len(items) + 1)
    futures = [pool.submit(group.add, 0)]
    assert disk.busy.wait(10)
    futures += [pool.submit(group.add, item) for item in items]
    while len(group._queue) < len(items):
        assert not any(future.done() for future in futures)
    disk.free.set()
    pool.shutdown()
    return futures


def test_one_alone_is_committed_at_once() -> None:
    disk = Disk()
    group = GroupCommit(disk.commit)
    assert [group.add(1), group.add(2)] == ["kept 1", "kept 2"]
    assert disk.groups == [[1], [2]]


def test_what_comes_during_a_commit_goes_into_the_next() -> None:
    disk = Disk()
    futures = together(disk, GroupCommit(disk.commit), [1, 2, 3, 4])
    assert [future.result() for future in futures] == [f"kept {n}" for n in range(5)]
    assert [sorted(group) for group in disk.groups] == [[0], [1, 2, 3, 4]]


def test_only_the_one_at_fault_fails() -> None:
    disk = Disk()
    futures = together(disk, GroupCommit(disk.commit), [1, -1, 2])
    assert [f.exception() is None for f in futures] == [True, True, False, True]
    assert isinstance(futures[2].exception(), ValueError)
    assert len(disk.groups) == 2 + 3


def test_what_is_nobodys_fault_is_not_tried_again_for_each() -> None:
    disk = Disk()
    disk.full = True
    futures = together(disk, GroupCommit(disk.commit, of_all=(OSError,)), [1, 2, 3])
    assert {type(future.exception()) for future in futures} == {OSError}
    assert len(disk.groups) == 2


def test_it_goes_on_after_a_failure() -> None:
    disk = Disk()
    group = GroupCommit(disk.commit)
    with pytest.raises(ValueError, match="negative"):
        group.add(-1)
    assert group.add(1) == "kept 1"
