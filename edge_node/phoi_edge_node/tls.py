"""TLS contexts for every technology that opens sockets: BCP 195 (RFC 8996, RFC 9325)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from phoi_edge_node.errors import SettingsError

# For TLS 1.2 what RFC 9325 4.2 recommends, and ChaCha20; TLS 1.3 has only good ones.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsSettings(Protocol):
    """The PEM files that a section of the settings names."""

    @property
    def tls_certificate(self) -> Path | None:
        """Ours."""
        ...

    @property
    def tls_key(self) -> Path | None:
        """Its key."""
        ...

    @property
    def tls_ca(self) -> Path | None:
        """Of the authority that peers' certificates must come from."""
        ...


def server_context(settings: TlsSettings, section: str) -> ssl.SSLContext | None:
    """What a port speaks; None without a certificate: plain TCP.

    With ``tls_ca`` every peer must show a certificate of that authority.

    Args:
        section: the settings' name, for errors.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _show(context, settings.tls_certificate, settings.tls_key, section)
    if settings.tls_ca is not None:
        _trust(context, settings.tls_ca, section)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: TlsSettings, section: str) -> ssl.SSLContext:
    """What is spoken to a peer: it shows our certificate, if there is one, and checks theirs.

    Theirs must come from ``tls_ca``, or from an authority of this system without one, and name the
    host that was called.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if settings.tls_certificate is not None and settings.tls_key is not None:
        _show(context, settings.tls_certificate, settings.tls_key, section)
    if settings.tls_ca is not None:
        _trust(context, settings.tls_ca, section)
    else:
        context.load_default_certs()
    return context


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path, section: str) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{section}.tls_certificate and {section}.tls_key cannot be used: {error.strerror}"
        ) from None


def _trust(context: ssl.SSLContext, authority: Path, section: str) -> None:
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{section}.tls_ca cannot be used: {error.strerror}") from None


def _no_password() -> str:
    """A service cannot be asked for one: a key with a password is refused, not waited for."""
    return ""
