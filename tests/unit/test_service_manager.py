"""What systemd is told: ready, alive while healthy, stopping."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from phoi_models.service_manager import alive_every_s, notify, serve_until, stop_signal


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        path = str(Path(folder) / "notify")
        listening.bind(path)
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


def test_a_service_says_that_it_is_ready_alive_and_stopping(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    stop = threading.Event()
    serving = threading.Thread(target=serve_until, args=(stop,))
    serving.start()
    told = [manager.recv(100).decode() for _ in range(3)]
    stop.set()
    serving.join()
    assert told == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    while (last := manager.recv(100).decode()) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"


def test_one_that_is_in_trouble_does_not_say_that_it_is_alive(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    stop, looked = threading.Event(), []

    def healthy() -> bool:
        looked.append(1)
        if len(looked) == 3:
            stop.set()
        return False

    serve_until(stop, healthy)
    assert [manager.recv(100).decode() for _ in range(2)] == ["READY=1", "STOPPING=1"]
    assert len(looked) == 3


def test_two_looks_that_find_trouble_kill_nothing() -> None:
    dead_after_s = 120.0
    every_s = alive_every_s({"WATCHDOG_USEC": f"{dead_after_s * 1e6:.0f}"})
    assert every_s is not None
    assert 3 * every_s < dead_after_s


def test_without_a_service_manager_nothing_is_told() -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "/absent/notify"})
    assert alive_every_s({}) is None


def test_sigterm_sets_the_event() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = stop_signal()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
