"""TLS contexts for every technology that opens sockets: BCP 195 (RFC 8996, RFC 9325)."""

from __future__ import annotations

import ssl
import threading
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


class RenewedContext:
    """``client_context``, built once, and anew when one of its files has changed."""

    def __init__(self, settings: TlsSettings, section: str) -> None:
        self._settings = settings
        self._section = section
        self._lock = threading.Lock()
        self._held: tuple[object, ssl.SSLContext] | None = None

    def get(self) -> ssl.SSLContext:
        """The context of the files as they are now.

        Raises:
            SettingsError: as ``client_context``.
        """
        with self._lock:
            files = self._files()
            if self._held is None or self._held[0] != files:
                self._held = None  # also where the new files cannot be used
                self._held = files, client_context(self._settings, self._section)
            return self._held[1]

    def _files(self) -> object:
        settings = self._settings
        system = ssl.get_default_verify_paths().cafile
        authority = settings.tls_ca or (Path(system) if system else None)
        return tuple(map(_version, (authority, settings.tls_certificate, settings.tls_key)))


def _version(path: Path | None) -> tuple[int, ...]:
    """What changes with a file; empty where there is none."""
    try:
        found = path.stat() if path else None
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found else ()


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
