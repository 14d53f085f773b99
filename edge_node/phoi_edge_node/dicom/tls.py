"""TLS for DICOM connections: BCP 195 (RFC 8996, RFC 9325), as PS3.15 B.12 asks."""

from __future__ import annotations

import ssl
from pathlib import Path

from phoi_edge_node.errors import SettingsError
from phoi_edge_node.settings import DicomSettings

# For TLS 1.2 what RFC 9325 4.2 recommends, and ChaCha20; TLS 1.3 has only good ones.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def server_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """What the DICOM port speaks; None: plain TCP.

    With ``tls_ca`` every peer must show a certificate of that authority.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings.tls_certificate, settings.tls_key)
    if settings.tls_ca is not None:
        _trust(context, settings.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """What Phoi speaks to archives: it shows its certificate and checks theirs.

    An archive's certificate must come from ``tls_ca`` and name the host of the settings. None
    without ``tls_ca``: then there are no archives with TLS.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    if settings.tls_certificate is None or settings.tls_key is None or settings.tls_ca is None:
        return None
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.tls_certificate, settings.tls_key)
    _trust(context, settings.tls_ca)
    return context


def _context(protocol: ssl._SSLMethod, certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"dicom.tls_certificate and dicom.tls_key cannot be used: {error.strerror}"
        ) from None
    return context


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"dicom.tls_ca cannot be used: {error.strerror}") from None


def _no_password() -> str:
    """A service cannot be asked for one: a key with a password is refused, not waited for."""
    return ""
