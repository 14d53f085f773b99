"""Voxels and bundles for workers on other hosts, which pull them from here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from phoi_models.bundle_store import BundleStore, pack
from phoi_models.volume import Volume
from phoi_protos import transport
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb
from phoi_protos.phoi.inference.v1 import inference_pb2_grpc as pb_grpc
from phoi_protos.transport import TlsFiles

from phoi_edge_node.errors import SettingsError

_STREAMS = 8


class SourceServer(pb_grpc.VolumeSourceServicer, pb_grpc.BundleSourceServicer):
    """Serves the volumes that are lent out just now, and the bundles of the store.

    A volume can be read only by who knows its token: 256 random bits, told to one worker.
    """

    def __init__(self, listen: str, tls: TlsFiles | None, store: BundleStore) -> None:
        """Start to serve.

        Args:
            listen: ``host:port``; off this host only with ``tls``.
            tls: certificates for mutual TLS.
            store: whose bundles workers may have.

        Raises:
            SettingsError: the address or a certificate cannot be used.
        """
        self._store = store
        self._volumes: dict[str, Volume] = {}
        self._server = grpc.server(
            ThreadPoolExecutor(_STREAMS, thread_name_prefix="sources"),
            options=transport.SERVER_OPTIONS,
        )
        pb_grpc.add_VolumeSourceServicer_to_server(self, self._server)
        pb_grpc.add_BundleSourceServicer_to_server(self, self._server)
        try:
            self.address = transport.listen(self._server, listen, tls)
        except transport.TransportError as error:
            raise SettingsError(str(error)) from None
        self._server.start()

    def stop(self) -> None:
        """Break off what is being read, and end."""
        self._server.stop(grace=None).wait()

    @contextmanager
    def lend(self, volume: Volume) -> Iterator[str]:
        """A token for the volume, good for the duration of the context."""
        token = secrets.token_urlsafe(32)
        self._volumes[token] = volume
        try:
            yield token
        finally:
            del self._volumes[token]

    def ReadVolume(  # noqa: N802
        self, request: pb.ReadVolumeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        """Stream the voxels: little-endian int16 HU, C order (z, y, x)."""
        volume = self._volumes.get(request.token)
        if volume is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such volume")
        voxels = np.ascontiguousarray(volume.hu, dtype="<i2").data.cast("B")
        for start in range(0, len(voxels), transport.CHUNK_BYTES):
            yield pb.Chunk(data=bytes(voxels[start : start + transport.CHUNK_BYTES]))

    def ReadBundle(  # noqa: N802
        self, request: pb.ReadBundleRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        """Stream a bundle as an uncompressed tar."""
        for model in self._store.models():
            if model.identity.bundle_hash == request.bundle_hash:
                yield from (pb.Chunk(data=chunk) for chunk in pack(model.folder))
                return
        context.abort(grpc.StatusCode.NOT_FOUND, "no such bundle")
