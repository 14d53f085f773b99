"""How both ends of the contract connect.

On one host: a unix socket or a loopback address, in plain text. Across hosts: mutual TLS, always.
So the address alone says which, on both ends.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

RETRY_AFTER_MS = "retry-after-ms"
"""Trailer of RESOURCE_EXHAUSTED: when to ask again, milliseconds in decimal."""

NOT_ANALYSABLE = "phoi-not-analysable-bin"
"""Trailer of FAILED_PRECONDITION: a serialized ``NotAnalysable``."""

CHUNK_BYTES = 2 << 20
"""Size of the chunks in which voxels and bundles travel."""

_CHANNEL_OPTIONS = (
    # A result carries the masks of its nodules.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A worker that comes back is found again within seconds.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 1 << 20),
    # A second server on the same port is an error, not half of the requests.
    ("grpc.so_reuseport", 0),
    # A peer that died without a word is noticed after half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class TransportError(Exception):
    """An address or a certificate cannot be used. The text says what to change."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files for mutual TLS: who I am, and whose certificates I accept.

    Attributes:
        certificate: this side's certificate chain.
        key: its private key.
        authority: certificates of the authority that both sides' certificates come from.
    """

    certificate: Path
    key: Path
    authority: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that asks its clients for a certificate.

        Raises:
            TransportError: a file cannot be read.
        """
        certificate, key, authority = self._read()
        return grpc.ssl_server_credentials(
            [(key, certificate)], authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client that shows its certificate.

        Raises:
            TransportError: a file cannot be read.
        """
        certificate, key, authority = self._read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        try:
            certificate, key, authority = (
                path.read_bytes() for path in (self.certificate, self.key, self.authority)
            )
        except OSError as error:
            raise TransportError(f"cannot read {error.filename}: {error.strerror}") from None
        return certificate, key, authority


def is_local(address: str) -> bool:
    """Does a gRPC address stay on this host?

    Raises:
        TransportError: it is neither ``unix:/path`` nor ``host:port``.
    """
    if address.startswith("unix:"):
        return True
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise TransportError(f"{address} is neither unix:/path nor host:port")
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_tls_off_host(address: str, tls: TlsFiles | None) -> None:
    """Refuse to talk to another host in plain text.

    Raises:
        TransportError: the address is not on this host, and there is no TLS.
    """
    if tls is None and not is_local(address):
        raise TransportError(f"{address} is not on this host: that needs TLS certificates")


def open_channel(address: str, tls: TlsFiles | None) -> grpc.Channel:
    """A channel to ``address``; it connects when first used.

    Raises:
        TransportError: see ``require_tls_off_host``, or a certificate cannot be read.
    """
    require_tls_off_host(address, tls)
    if tls is None or is_local(address):
        return grpc.insecure_channel(address, _CHANNEL_OPTIONS)
    return grpc.secure_channel(address, tls.channel_credentials(), _CHANNEL_OPTIONS)


def listen(server: grpc.Server, address: str, tls: TlsFiles | None) -> str:
    """Bind ``server``; returns the address, with the port that the system chose for port 0.

    Raises:
        TransportError: the address is taken; see also ``require_tls_off_host``.
    """
    require_tls_off_host(address, tls)
    try:
        if tls is None or is_local(address):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls.server_credentials())
    except RuntimeError:
        raise TransportError(
            f"cannot listen on {address}: it is taken, or not of this host"
        ) from None
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
