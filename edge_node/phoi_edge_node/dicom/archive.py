"""A PACS as a destination (port ``Destination``): takes the DICOM objects of a result."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Collection
from pathlib import Path

from phoi_edge_node.dicom.storage_scu import (
    ALREADY_NOTED,
    NothingAccepted,
    Peer,
    PeerUnreachable,
    StorableFile,
    association,
    echo,
    store,
)
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.settings import ArchiveSettings

_HOLDS_THIS_NOTE = Refused(f"status 0x{ALREADY_NOTED:04X}")


class DicomArchive:
    """One archive of the settings."""

    def __init__(
        self,
        settings: ArchiveSettings,
        calling_ae_title: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Send as ``calling_ae_title``; nothing is opened yet. ``tls`` is of ``tls.py``."""
        self._name = settings.name
        self._peer = Peer.of(settings, tls)
        self._calling_ae_title = calling_ae_title
        kinds = (DocumentKind(kind) for kind in settings.objects)
        self._accepts = frozenset({*kinds, DocumentKind.REJECTION_NOTE})

    @property
    def name(self) -> str:
        """The lane's name."""
        return self._name

    @property
    def accepts(self) -> Collection[DocumentKind]:
        """The objects of the settings; and always the note that withdraws them."""
        return self._accepts

    def send(self, document: Document) -> SendOutcome:
        """C-STORE the bytes, on an association of their own.

        A rejected association is ``Unreachable``: the archive said no to us, not to the document,
        and an administrator can put that right without anything being lost.
        """
        with tempfile.TemporaryDirectory(prefix="phoi-send-") as folder:
            path = Path(folder) / "document.dcm"
            path.write_bytes(document.content)
            try:
                file = StorableFile.open(path)
            except EdgeError as error:
                return Refused(str(error))
            outcome = self._send(file)
        if document.kind is DocumentKind.REJECTION_NOTE and outcome == _HOLDS_THIS_NOTE:
            # The answer to an earlier try was lost.
            return Delivered(_HOLDS_THIS_NOTE.reason)
        return outcome

    def check(self) -> SendOutcome:
        """C-ECHO."""
        return echo(self._peer, self._calling_ae_title)

    def _send(self, file: StorableFile) -> SendOutcome:
        context = (file.sop_class_uid, file.transfer_syntax_uid)
        try:
            with association(self._peer, self._calling_ae_title, {context}) as link:
                return store(link, file)
        except NothingAccepted as error:
            return Refused(str(error))
        except PeerUnreachable as error:
            return Unreachable(str(error), nothing_taken=True)
