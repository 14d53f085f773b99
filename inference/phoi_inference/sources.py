"""Pulls voxels and bundles from edge nodes on other hosts."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from phoi_models.bundle_store import UnknownModel
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb
from phoi_protos.phoi.inference.v1 import inference_pb2_grpc as pb_grpc
from phoi_protos.transport import TlsFiles, open_channel

from phoi_inference.errors import SourceUnavailable, UnknownVolume

_TIMEOUT_S = 300.0


class Sources:
    """A client of ``VolumeSource`` and ``BundleSource``."""

    def __init__(self, tls: TlsFiles | None) -> None:
        """Connects only when asked to pull; without ``tls`` on this host only."""
        self._tls = tls

    def volume(self, address: str, token: str) -> Iterator[bytes]:
        """Stream the voxels that ``token`` names.

        Raises:
            UnknownVolume: the source has no such volume.
            SourceUnavailable: it does not answer, or breaks off.
        """
        with open_channel(address, self._tls) as channel:
            stub = pb_grpc.VolumeSourceStub(channel)
            try:
                chunks = stub.ReadVolume(pb.ReadVolumeRequest(token=token), timeout=_TIMEOUT_S)
                for chunk in chunks:
                    yield chunk.data
            except grpc.RpcError as error:
                if _code(error) is grpc.StatusCode.NOT_FOUND:
                    raise UnknownVolume("the source has no such volume") from None
                raise _unavailable(error) from None

    def bundle(self, address: str, bundle_hash: str) -> Iterator[bytes]:
        """Stream a bundle as tar.

        Raises:
            UnknownModel: the source has no such bundle.
            SourceUnavailable: it does not answer, or breaks off.
        """
        with open_channel(address, self._tls) as channel:
            stub = pb_grpc.BundleSourceStub(channel)
            try:
                request = pb.ReadBundleRequest(bundle_hash=bundle_hash)
                for chunk in stub.ReadBundle(request, timeout=_TIMEOUT_S):
                    yield chunk.data
            except grpc.RpcError as error:
                if _code(error) is grpc.StatusCode.NOT_FOUND:
                    raise UnknownModel("the source has no such bundle") from None
                raise _unavailable(error) from None


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _unavailable(error: grpc.RpcError) -> SourceUnavailable:
    return SourceUnavailable(f"the source answers {_code(error).name}: nothing can be pulled now")
