"""TLS for DICOM connections, as PS3.15 B.12 asks."""

from __future__ import annotations

import ssl

from phoi_edge_node import tls
from phoi_edge_node.settings import DicomSettings

_SECTION = "dicom"


def server_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """What the DICOM port speaks; None: plain TCP.

    With ``tls_ca`` every peer must show a certificate of that authority.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    return tls.server_context(settings, _SECTION)


def client_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """What Phoi speaks to archives: it shows its certificate and checks theirs.

    An archive's certificate must come from ``tls_ca`` and name the host of the settings. None
    without ``tls_ca``: then there are no archives with TLS.

    Raises:
        SettingsError: a file cannot be used; the text says which setting.
    """
    return tls.client_context(settings, _SECTION) if settings.tls_ca is not None else None
