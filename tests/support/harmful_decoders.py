"""What a decoder may do with pixels that were made to hurt it; importable by its process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: Path) -> None:
    signal.alarm(1)
    while True:
        time.sleep(60)
