"""What a decoder may do with pixels that were made to hurt it; importable by its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from phoi_edge_node.dicom import decoding


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: Path) -> None:
    decoding._allow(0.2)
    while True:
        pass
