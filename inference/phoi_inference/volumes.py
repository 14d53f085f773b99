"""Where the voxels of a request come from: a file on this host, or an edge node elsewhere."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import Cancelled
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume

from phoi_inference.errors import BadRequest, NotAllowed, UnknownVolume, VolumeDamaged

MAX_VOLUME_BYTES = 4 << 30
_HANDLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_LITTLE_ENDIAN_INT16 = np.dtype("<i2")

Pull = Callable[[str, str], Iterator[bytes]]
"""Streams the voxels that ``token`` names at ``address``."""


@dataclass(frozen=True)
class Handle:
    """A file in the shared folder."""

    name: str


@dataclass(frozen=True)
class Reference:
    """A volume that an edge node holds."""

    address: str
    token: str


@dataclass(frozen=True)
class VolumeReader:
    """Reads volumes, and refuses what the configuration does not allow.

    Attributes:
        folder: where handles lie; None: no handles.
        sources: addresses that may be pulled from.
        pull: how.
    """

    folder: Path | None
    sources: frozenset[str]
    pull: Pull

    def read(
        self,
        location: Handle | Reference,
        geometry: Geometry,
        digest: str,
        cancelled: Callable[[], bool],
    ) -> Volume:
        """The volume, once it proves to be the one that ``digest`` names.

        Args:
            location: where the voxels are: little-endian int16 HU, C order (z, y, x).
            geometry: of the volume.
            digest: ``Volume.digest()`` as the edge computed it.
            cancelled: asked between chunks.

        Raises:
            BadRequest, NotAllowed: the location is malformed, or not configured.
            UnknownVolume: nothing is there.
            VolumeDamaged: other voxels are there.
            Cancelled: nobody waits any more.
        """
        size = voxel_bytes(geometry)
        if isinstance(location, Handle):
            content: memoryview | bytearray = self._map(location.name, size)
        else:
            content = self._fetch(location, size, cancelled)
        voxels: NDArray[np.int16] = np.frombuffer(content, _LITTLE_ENDIAN_INT16)
        volume = Volume(voxels.astype(np.int16, copy=False).reshape(geometry.shape), geometry)
        if volume.digest() != digest:
            raise VolumeDamaged("the voxels do not match their digest")
        return volume

    def _map(self, name: str, size: int) -> memoryview:
        if self.folder is None:
            raise NotAllowed("this worker has no folder for volumes: see `phoi worker --volumes`")
        if not _HANDLE.fullmatch(name):
            raise BadRequest("the volume handle is malformed")
        # No handle holds a slash and no link is followed, so that none leads out of the folder.
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            raise UnknownVolume("the volume handle names no file here") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotAllowed("the volume handle names no plain file")
            if status.st_size != size:
                raise VolumeDamaged(f"the volume has {status.st_size} bytes instead of {size}")
            return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def _fetch(self, location: Reference, size: int, cancelled: Callable[[], bool]) -> bytearray:
        if location.address not in self.sources:
            raise NotAllowed("this worker may not pull from there: see `phoi worker --source`")
        content = bytearray(size)
        filled = 0
        for chunk in self.pull(location.address, location.token):
            if cancelled():
                raise Cancelled("nobody waits for this analysis")
            if filled + len(chunk) > size:
                raise VolumeDamaged("the source sends more voxels than the geometry has")
            content[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled != size:
            raise VolumeDamaged("the source sends fewer voxels than the geometry has")
        return content


def voxel_bytes(geometry: Geometry) -> int:
    """Size of the voxels, bytes.

    Raises:
        BadRequest: more than a worker takes.
    """
    z, y, x = geometry.shape
    size = z * y * x * _LITTLE_ENDIAN_INT16.itemsize
    if size > MAX_VOLUME_BYTES:
        raise BadRequest(f"a volume may have {MAX_VOLUME_BYTES >> 30} GiB at most")
    return size
