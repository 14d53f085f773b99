"""Decodes compressed CT in processes of its own, one file at a time.

Decoders hold Python's lock, so threads would not make them faster; and they are C, fed with what
anybody may send: what crashes one, hangs it or eats its memory must not take the edge along.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.quiet import keep_values_out
from phoi_models.reading.ct_image import CtImage, read_ct_image
from phoi_models.reading.pixels import frames_hu

FramesHu = NDArray[np.int16]
"""All frames of one file in HU: axes (frame, row, column)."""

_LARGEST_MEMORY = 8 << 30  # bytes of address space; a volume may have 4 GiB
# CPU time, so that a busy host takes none of it: a frame of 512 x 512 takes 0.01 to 0.1 s.
_LONGEST_S = 120.0
_LONGEST_PER_FRAME_S = 1.0
_NICENESS = 10  # receiving, and the network of a worker on this host, go first


class DecodingProcesses:
    """Started when the first file comes; safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, path: Path) -> Future[FramesHu]:
        """Begin to decode a file.

        Its result raises ``NotAnalysable`` where the file cannot be decoded, and
        ``BrokenProcessPool`` where a process died, of this file or of another.
        """
        with self._lock:
            self._pool = self._pool or _pool(self.count)
            try:
                return self._pool.submit(_decode, path)
            except BrokenProcessPool:
                self._pool = _pool(self.count)
                return self._pool.submit(_decode, path)

    def result(self, image: CtImage, future: Future[FramesHu]) -> FramesHu:
        """Wait for a file. One whose process died is decoded again, and then again alone.

        Raises:
            NotAnalysable: UNREADABLE_PIXELS, also where the file killed its decoder.
        """
        for attempt in (future, None):
            try:
                return (attempt or self.submit(image.path)).result()
            except BrokenProcessPool:
                continue
        return _decode_alone(image)

    def stop(self) -> None:
        """Leave what is not begun; do not wait for the rest."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _pool(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin)


def _decode_alone(image: CtImage) -> FramesHu:
    with _pool(1) as pool:
        try:
            return pool.submit(_decode, image.path).result()
        except BrokenProcessPool:
            raise NotAnalysable(
                NotAnalysableReason.UNREADABLE_PIXELS,
                f"instance {image.sop_instance_uid}: its decoder crashed or took too long",
            ) from None


def _begin() -> None:
    """What holds in each process."""
    keep_values_out()
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (_LARGEST_MEMORY, _LARGEST_MEMORY))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed can stop nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _decode(path: Path) -> FramesHu:
    _allow(_LONGEST_S)
    try:
        image = read_ct_image(path)
        if image.layout is None:
            return np.empty((0, 0, 0), np.int16)
        _allow(_LONGEST_S + image.layout.frames * _LONGEST_PER_FRAME_S)
        shape = (image.layout.frames, image.layout.rows, image.layout.columns)
        frames = np.empty(shape, dtype=np.int16)
        for number, frame in enumerate(frames_hu(image)):
            frames[number] = frame
        return frames
    finally:
        _allow(0)


def _allow(cpu_s: float) -> None:
    """Kill this process once it has worked for so long, also in the midst of a decoder; 0: never.

    The signal is left to the system: its default ends the process.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
