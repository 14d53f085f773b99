"""What a service tells systemd: that it is ready, that it stops, that it is alive (sd_notify(3)).

Under any other service manager, or none, nothing is told.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager; False where there is none to tell."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            manager.sendall(state.encode())
        except OSError:
            return False
    return True


def alive_every_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often to say so; None: never.

    Four times in the time after which it counts as dead, so that one look at a thread that was busy
    for a moment too long kills nothing.
    """
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 4e6 if microseconds.isdigit() else None


def stop_signal() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set from now on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


def serve_until(stop: threading.Event, healthy: Callable[[], bool] = lambda: True) -> None:
    """Say that the service is ready, then that it is alive while it is healthy, until ``stop``."""
    notify(READY)
    every_s = alive_every_s()
    while not stop.wait(every_s):
        if healthy():
            notify(ALIVE)
    notify(STOPPING)
