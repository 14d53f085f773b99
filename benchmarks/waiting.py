"""Waiting for something to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T | None], patience_s: float = 600.0) -> T:
    """The first thing that ``look`` returns that is not None."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        seen = look()
        if seen is not None:
            return seen
        time.sleep(0.05)
    raise TimeoutError(f"nothing came within {patience_s:.0f} s")
