"""Decodes compressed images while their study still arrives, so that its voxels are ready by then.

What is decoded is a cache and nothing more: files that are bounded, dropped under disk pressure,
and forgotten at every start. Receiving never waits for it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray
from phoi_models.reading.ct_image import CtImage
from phoi_models.reading.pixels import frames_hu
from pydicom.uid import UID

from phoi_edge_node.dicom.decoding import DecodingProcesses, FramesHu
from phoi_edge_node.dicom.file_version import FileVersion, version_of
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.ports import Intake, ReceivedInstance, Receiver
from phoi_edge_node.retention import RemovableImages
from phoi_edge_node.settings import DicomSettings

_SUFFIX = ".hu"
_MOST_WAITING = 20_000  # paths; what does not fit is decoded when it is read
_READ_AHEAD = 8  # files
_PATIENCE_S = 1.0
_MOST_PROCESSES = 4

_log = structlog.get_logger(__name__)


class _Kept(NamedTuple):
    source: FileVersion
    size: int


class DecodedFiles:
    """Decoded frames on disk, by the file they came from. Safe to use from several threads.

    Frames are given for the very file that they were decoded from, never for one that took its
    place. Nothing is synced: what a crash leaves behind is removed by the next start.
    """

    def __init__(self, root: Path, budget_bytes: int, free_bytes: Callable[[], int]) -> None:
        """Make the folder, empty.

        Args:
            root: the folder; its own, nothing else lies in it.
            budget_bytes: of all files together; the oldest go first. 0: nothing is kept.
            free_bytes: what the disk can still take beside what must stay free.
        """
        self._root = root
        self.budget_bytes = budget_bytes
        self._free_bytes = free_bytes
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()  # by source
        self._lock = threading.Lock()
        root.mkdir(mode=0o750, parents=True, exist_ok=True)
        for leftover in root.iterdir():
            leftover.unlink()

    def put(self, source: FileVersion, frames: FramesHu) -> None:
        """Keep the frames of a file, if there is room for them.

        Args:
            source: the file as it was before it was decoded.

        Raises:
            OSError: they could not be written; nothing is left behind.
        """
        if (
            not frames.size
            or frames.nbytes > self.budget_bytes
            or not self._make_room(frames.nbytes)
        ):
            return
        final = self._path(source.path)
        partial_file = final.with_suffix(".part")
        try:
            partial_file.write_bytes(np.ascontiguousarray(frames).data)
            partial_file.rename(final)
        except OSError:
            partial_file.unlink(missing_ok=True)
            raise
        with self._lock:
            self._kept[source.path] = _Kept(source, frames.nbytes)

    def get(self, image: CtImage) -> FramesHu | None:
        """The frames of a file, mapped; None where they are not there, or not as many."""
        with self._lock:
            kept = self._kept.get(image.path)
        if image.layout is None or kept is None or kept.source != version_of(image.path):
            return None
        shape = (image.layout.frames, image.layout.rows, image.layout.columns)
        try:
            stored = np.memmap(self._path(image.path), np.int16, mode="r")
        except (OSError, ValueError):
            return None
        return stored.reshape(shape) if stored.size == np.prod(shape) else None

    def forget_missing(self) -> None:
        """Forget the frames of files that are there no longer."""
        with self._lock:
            for source in [source for source in self._kept if not source.exists()]:
                self._forget(source)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for source in list(self._kept):
                self._forget(source)

    def _make_room(self, size: int) -> bool:
        if self._free_bytes() < size:
            self.clear()  # what was received needs the disk more
            return False
        with self._lock:
            while sum(kept.size for kept in self._kept.values()) + size > self.budget_bytes:
                self._forget(next(iter(self._kept)))
        return True

    def _forget(self, source: Path) -> None:
        del self._kept[source]
        self._path(source).unlink(missing_ok=True)

    def _path(self, source: Path) -> Path:
        return self._root / f"{source.stem}{_SUFFIX}"


class ArrivalDecoder:
    """Decodes what arrives in the background, and what is read at once."""

    def __init__(self, root: Path, decoded: DecodedFiles, processes: DecodingProcesses) -> None:
        """``root`` is the instance store's."""
        self._root = root
        self._decoded = decoded
        self._processes = processes
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Path, None] = OrderedDict()
        self._running: dict[Path, Future[FramesHu]] = {}

    def arrived(self, instance: ReceivedInstance) -> None:
        """Have it decoded when a process is free; returns at once."""
        if not UID(instance.transfer_syntax_uid).is_encapsulated or not self._decoded.budget_bytes:
            return
        with self._changed:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting[self._root / instance.path] = None
                self._changed.notify()

    def begin_next(self) -> bool:
        """Begin the next of what arrived, once a process is free; True if there was one.

        Only as many are begun as there are processes, since who reads must not queue behind them.
        """
        with self._changed:
            if not self._changed.wait_for(self._may_begin, _PATIENCE_S):
                return False
            path, _ = self._waiting.popitem(last=False)
        source = version_of(path)
        if source is None:
            return True
        future = self._processes.submit(path)
        with self._changed:
            self._running[path] = future
        future.add_done_callback(partial(self._done, source))
        return True

    def files_hu(self, images: Sequence[CtImage]) -> Iterator[Iterable[NDArray[np.int16]]]:
        """The frames of each file, from where they are soonest; some files are begun ahead.

        Raises:
            NotAnalysable: UNREADABLE_PIXELS.
        """
        ahead: deque[Callable[[], Iterable[NDArray[np.int16]]]] = deque()
        for image in images:
            ahead.append(self._frames(image))
            if len(ahead) > _READ_AHEAD:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()

    def forget_missing(self) -> None:
        """Forget what was decoded of files that are there no longer."""
        self._decoded.forget_missing()

    def stop(self) -> None:
        """Leave what is not begun."""
        with self._changed:
            self._waiting.clear()
        self._processes.stop()

    def _may_begin(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._processes.count

    def _frames(self, image: CtImage) -> Callable[[], Iterable[NDArray[np.int16]]]:
        if image.layout is None or image.layout.offset is not None:
            return partial(frames_hu, image)
        decoded = self._decoded.get(image)
        if decoded is not None:
            return lambda: decoded
        with self._changed:
            self._waiting.pop(image.path, None)
            future = self._running.get(image.path)
        future = future or self._processes.submit(image.path)
        return lambda: self._processes.result(image, future)

    def _done(self, source: FileVersion, future: Future[FramesHu]) -> None:
        try:
            if not future.cancelled() and future.exception() is None:
                self._decoded.put(source, future.result())
        except OSError as error:
            _log.warning("decoded images could not be kept", why=error.strerror)
        finally:
            with self._changed:
                self._running.pop(source.path, None)
                self._changed.notify()


def arrival_decoder(folder: Path, files: InstanceFiles, settings: DicomSettings) -> ArrivalDecoder:
    """The decoder of an instance store, with its cache in ``folder``.

    The cache stays well clear of the point below which images are refused.
    """
    decoded = DecodedFiles(
        folder,
        settings.decoded_images_mb * 1_000_000,
        lambda: files.free_bytes() - settings.scarce_disk_bytes,
    )
    processes = DecodingProcesses(min(_MOST_PROCESSES, os.cpu_count() or 1))
    return ArrivalDecoder(files.root, decoded, processes)


class DecodingOnArrival:
    """A receiver that has each new image decoded as soon as it is durable and indexed."""

    def __init__(self, receiver: Receiver, decoder: ArrivalDecoder) -> None:
        self._receiver = receiver
        self._decoder = decoder

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        """See ``Receiver``."""
        intake = self._receiver.instance_received(instance, association)
        if intake is Intake.STORED:
            self._decoder.arrived(instance)
        return intake

    def association_released(self, association: str) -> None:
        """See ``Receiver``."""
        self._receiver.association_released(association)


class ForgettingDecoded:
    """Removes images, and with them what was decoded of them (``RemovableImages``)."""

    def __init__(self, images: RemovableImages, decoder: ArrivalDecoder) -> None:
        self._images = images
        self._decoder = decoder

    def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
        """See ``RemovableImages``."""
        return self._images.going(study_instance_uid)

    def retire(self, study_instance_uid: str) -> None:
        """See ``RemovableImages``."""
        self._images.retire(study_instance_uid)
        self._decoder.forget_missing()

    def empty(self, before: datetime) -> int:
        """See ``RemovableImages``."""
        return self._images.empty(before)

    def drop_quarantined(self, before: datetime) -> int:
        """See ``RemovableImages``."""
        return self._images.drop_quarantined(before)

    def room(self) -> int:
        """See ``RemovableImages``."""
        return self._images.room()
