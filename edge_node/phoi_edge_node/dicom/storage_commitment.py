"""Storage Commitment Push Model (PS3.4 J.3) on the wire, as SCP and as SCU.

Requests are taken at once and answered later, by a report (N-EVENT-REPORT) on an association of
its own to the address that the settings give for the peer's AE title. A peer that they do not name
gets it on the association on which it asked, as long as that is open.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP

from phoi_edge_node.commitment import (
    MOST_REFERENCES,
    CommitmentClerk,
    CommitmentReport,
    CommitmentRequest,
    Reference,
)
from phoi_edge_node.dicom.header_scan import scan_file_meta
from phoi_edge_node.dicom.headers import data_set_offset, text
from phoi_edge_node.dicom.storage_scu import (
    NothingAccepted,
    Peer,
    PeerUnreachable,
    association,
    outcome,
)
from phoi_edge_node.dicom.uids import is_uid
from phoi_edge_node.ports import Document, Refused, SendOutcome, Unreachable
from phoi_edge_node.settings import ArchiveSettings

PUSH_MODEL = "1.2.840.10008.1.20.1"
WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
_CONTEXTS = {(PUSH_MODEL, ImplicitVRLittleEndian), (PUSH_MODEL, ExplicitVRLittleEndian)}
_REQUEST_COMMITMENT = 1  # Action Type ID (PS3.4 J.3.2)
_ALL_COMMITTED, _FAILURES_EXIST = 1, 2  # Event Type ID (PS3.4 J.3.3)
_MEDIA_STORAGE_SOP_CLASS_UID = 0x00020002
_LONGEST_FILE_META = 64 * 1024

# Statuses of PS3.7 C.
_SUCCESS = 0x0000
_NO_SUCH_INSTANCE = 0x0112
_INVALID_ARGUMENT = 0x0115
_NO_SUCH_ACTION = 0x0123
_RESOURCE_LIMITATION = 0x0213

_log = structlog.get_logger(__name__)


class _BadRequest(Exception):
    """What to answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status 0x{status:04X}")
        self.status = status


class CommitmentService:
    """What the storage SCP does with commitment messages. Safe to use from several threads.

    Args:
        peers: addresses by AE title.
        on_request: called when there is something to report.
    """

    def __init__(
        self,
        clerk: CommitmentClerk,
        peers: Mapping[str, Peer],
        calling_ae_title: str,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        self._clerk = clerk
        self._peers = peers
        self._calling_ae_title = calling_ae_title
        self._on_request = on_request
        self._answered: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def handlers(self) -> list[evt.EventHandlerType]:
        """To bind to the acceptor."""
        return [
            (evt.EVT_N_ACTION, self._requested),
            (evt.EVT_N_EVENT_REPORT, self._reported),
            (evt.EVT_DIMSE_SENT, self._sent),
        ]

    def ended(self, open_association: Any) -> None:
        """Nothing can be reported on it any more."""
        with self._lock:
            for ae_title, known in list(self._answered.items()):
                if known is open_association:
                    del self._answered[ae_title]

    def report(self, ae_title: str, report: CommitmentReport) -> SendOutcome:
        """N-EVENT-REPORT to a peer: to its address, or where it asked."""
        peer = self._peers.get(ae_title)
        try:
            if peer is not None:
                with association(
                    peer, self._calling_ae_title, _CONTEXTS, taken={PUSH_MODEL}
                ) as link:
                    return _send_report(link, report)
            with self._lock:
                asked_on = self._answered.get(ae_title)
            if asked_on is None:
                return Unreachable("its AE title is not among the archives of the settings")
            return _send_report(asked_on, report)
        except NothingAccepted as error:
            return Refused(str(error))
        except (PeerUnreachable, RuntimeError, ValueError) as error:
            return Unreachable(str(error))

    def _requested(self, event: evt.Event) -> tuple[int, None]:
        """N-ACTION: somebody asks us."""
        try:
            request = _request(event)
        except _BadRequest as refusal:
            _log.warning("commitment refused", status=f"0x{refusal.status:04X}")
            return refusal.status, None
        if not self._clerk.requested(request):
            return _RESOURCE_LIMITATION, None
        self._on_request()
        return _SUCCESS, None

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        """N-EVENT-REPORT: an archive answers."""
        try:
            report = _report(event.event_information)
        except _BadRequest as refusal:
            return refusal.status, None
        known = self._clerk.reported(_calling(event.assoc), report)
        return (_SUCCESS if known else _INVALID_ARGUMENT), None

    def _sent(self, event: evt.Event) -> None:
        """From its response on, a report may go the same way."""
        if isinstance(event.message, N_ACTION_RSP):
            with self._lock:
                self._answered[_calling(event.assoc)] = event.assoc


class ArchiveCommitment:
    """One archive of the settings, asked about what was sent to it (port ``CommitmentPeer``)."""

    def __init__(
        self,
        settings: ArchiveSettings,
        calling_ae_title: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Ask as ``calling_ae_title``; nothing is opened yet."""
        self._name = settings.name
        self._peer = Peer.of(settings, tls)
        self._calling_ae_title = calling_ae_title

    @property
    def name(self) -> str:
        """As in the settings."""
        return self._name

    @property
    def ae_title(self) -> str:
        """As in the settings."""
        return self._peer.ae_title

    def ask(self, transaction_uid: str, documents: Sequence[Document]) -> SendOutcome:
        """N-ACTION; the report comes later, on another association."""
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = [_item(_reference(document)) for document in documents]
        try:
            with association(self._peer, self._calling_ae_title, _CONTEXTS) as link:
                status, _ = link.send_n_action(
                    request, _REQUEST_COMMITMENT, PUSH_MODEL, WELL_KNOWN_INSTANCE
                )
                return outcome(status)
        except NothingAccepted as error:
            return Refused(str(error))
        except (PeerUnreachable, RuntimeError) as error:
            return Unreachable(str(error))


def data_set_hash(file: Path) -> str | None:
    """SHA-256, hex, of the data set of a DICOM file, read from disk now; None if it cannot be."""
    try:
        with file.open("rb") as stream:
            stream.seek(data_set_offset(stream.read(_LONGEST_FILE_META)))
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _request(event: evt.Event) -> CommitmentRequest:
    request: Any = event.request
    if str(request.RequestedSOPInstanceUID) != WELL_KNOWN_INSTANCE:
        raise _BadRequest(_NO_SUCH_INSTANCE)
    if event.action_type != _REQUEST_COMMITMENT:
        raise _BadRequest(_NO_SUCH_ACTION)
    try:
        asked = event.action_information
        references = _references(asked, "ReferencedSOPSequence")
        transaction_uid = text(asked, "TransactionUID")
    except Exception:  # a damaged data set makes the parser raise nearly anything
        raise _BadRequest(_INVALID_ARGUMENT) from None
    if not is_uid(transaction_uid) or not references:
        raise _BadRequest(_INVALID_ARGUMENT)
    if len(references) > MOST_REFERENCES:
        raise _BadRequest(_RESOURCE_LIMITATION)
    return CommitmentRequest(transaction_uid, _calling(event.assoc), references)


def _report(information: Dataset) -> CommitmentReport:
    try:
        failed = tuple(
            (reference, 0) for reference in _references(information, "FailedSOPSequence")
        )
        committed = _references(information, "ReferencedSOPSequence")
        return CommitmentReport(text(information, "TransactionUID"), committed, failed)
    except Exception:  # a damaged data set makes the parser raise nearly anything
        raise _BadRequest(_INVALID_ARGUMENT) from None


def _references(dataset: Dataset, keyword: str) -> tuple[Reference, ...]:
    """The items of a sequence.

    Raises:
        _BadRequest: one names no UIDs.
    """
    items = dataset.get(keyword) or ()
    found = tuple(
        Reference(text(item, "ReferencedSOPClassUID"), text(item, "ReferencedSOPInstanceUID"))
        for item in items
    )
    if not all(is_uid(r.sop_class_uid) and is_uid(r.sop_instance_uid) for r in found):
        raise _BadRequest(_INVALID_ARGUMENT)
    return found


def _reference(document: Document) -> Reference:
    meta, _ = scan_file_meta(document.content, {_MEDIA_STORAGE_SOP_CLASS_UID})
    sop_class = meta[_MEDIA_STORAGE_SOP_CLASS_UID].decode("ascii").strip("\0")
    return Reference(sop_class, document.identity)


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


def _send_report(link: Association, report: CommitmentReport) -> SendOutcome:
    information = Dataset()
    information.TransactionUID = report.transaction_uid
    if report.committed:
        information.ReferencedSOPSequence = [_item(reference) for reference in report.committed]
    if report.failed:
        information.FailedSOPSequence = [_item(*failed) for failed in report.failed]
    event_type = _FAILURES_EXIST if report.failed else _ALL_COMMITTED
    status, _ = link.send_n_event_report(information, event_type, PUSH_MODEL, WELL_KNOWN_INSTANCE)
    return outcome(status)


def _calling(open_association: Any) -> str:
    return str(open_association.requestor.ae_title).strip()
