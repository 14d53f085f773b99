"""Storage SCP (PS3.4 B): takes CT images, and answers success only for what survives a crash.

pynetdicom negotiates and runs the associations. An instance is never decoded here: its bytes go
to disk as they came. Nothing of a patient is logged.
"""

from __future__ import annotations

import itertools
import socket
import threading
from typing import Any, cast

import structlog
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE

from phoi_edge_node.dicom.taking import (
    DATA_SET_DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SUCCESS,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
)
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import DicomSettings

SOP_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
    RLELossless,
    JPEGExtended12Bit,
)

_VERIFICATION = UID("1.2.840.10008.1.1")
_MAXIMUM_PDU = 128 * 1024
_LARGEST_PDU_READ = 2 * _MAXIMUM_PDU  # an A-ASSOCIATE-RQ is not bound by the negotiated length
_ACSE_TIMEOUT_S = 10.0
_STALL_TIMEOUT_S = 30.0
_IDLE_TIMEOUT_S = 60.0

_log = structlog.get_logger(__name__)


class StorageScp:
    """Listens for CT images."""

    def __init__(self, settings: DicomSettings, taker: InstanceTaker, clock: Clock) -> None:
        self._settings = settings
        self._taker = taker
        self._clock = clock
        self._server: Any = None
        self._count = itertools.count(1)
        self._open: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port in use, also where the settings say 0; only while started."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to listen; returns at once.

        Raises:
            EdgeError: the port cannot be used.
        """
        address = (self._settings.host, self._settings.port)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._ended),
            (evt.EVT_ABORTED, self._ended),
            (evt.EVT_CONN_CLOSE, self._ended),
        ]
        try:
            self._server = self._entity().start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            raise EdgeError(
                f"cannot listen for DICOM on {address[0]}:{address[1]} ({error.strerror}). "
                "Stop what uses the port, or set dicom.port to another one."
            ) from None
        _log.info("listening", ae_title=self._settings.ae_title, port=self.port)

    def stop(self) -> None:
        """Stop listening; open associations are aborted, so their senders try again. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            for open_association in server.active_associations:
                open_association.abort()

    def _entity(self) -> AE:
        entity = AE(ae_title=self._settings.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.allowed_calling_ae_titles)
        entity.maximum_pdu_size = _MAXIMUM_PDU
        entity.maximum_associations = self._settings.maximum_associations
        entity.acse_timeout = _ACSE_TIMEOUT_S
        entity.dimse_timeout = _STALL_TIMEOUT_S
        entity.network_timeout = _IDLE_TIMEOUT_S
        entity.add_supported_context(_VERIFICATION)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        return entity

    def _opened(self, event: evt.Event) -> None:
        _guard(event.assoc.dul.socket)

    def _association(self, association: Any) -> str:
        """Our name of an association, given when it stores its first instance."""
        with self._lock:
            name = self._open.get(id(association))
            if name is None:
                name = f"{self._clock.now():%Y%m%dT%H%M%S}-{next(self._count)}"
                self._open[id(association)] = name
            return name

    def _ended(self, event: evt.Event) -> None:
        # Told up to three times of one association: released or aborted, and then closed.
        with self._lock:
            name = self._open.pop(id(event.assoc), None)
        if name is not None:
            self._taker.released(name)

    def _store(self, event: evt.Event) -> int:
        """Answer one C-STORE request."""
        request = cast("C_STORE", event.request)
        log = _log.bind(sop_instance_uid=str(request.AffectedSOPInstanceUID))
        try:
            self._take(event)
        except NotTaken as refusal:
            log.warning("refused", status=f"0x{refusal.status:04X}", why=str(refusal))
            return refusal.status
        except Exception as error:
            # Whatever it was, it must not read as success; the sender keeps the instance. No
            # traceback: those of structlog show local variables, and so the patient.
            log.error("not_stored", error=type(error).__name__)  # noqa: TRY400
            return OUT_OF_RESOURCES
        return SUCCESS

    def _take(self, event: evt.Event) -> None:
        incoming = _incoming(event)
        association = self._association(event.assoc)
        try:
            self._taker.take(incoming, association)
        finally:
            with self._lock:
                lost = association not in self._open.values()
            if lost:  # the connection ended while its last instance was being indexed
                self._taker.released(association)


def _incoming(event: evt.Event) -> IncomingInstance:
    """One C-STORE request.

    Raises:
        NotTaken: it names another SOP class than its presentation context.
    """
    request = cast("C_STORE", event.request)
    if str(request.AffectedSOPClassUID) != str(event.context.abstract_syntax):
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the request names another SOP class")
    return IncomingInstance(
        data_set=event.encoded_dataset(include_meta=False),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
        called_ae_title=str(event.assoc.acceptor.ae_title).strip(),
    )


def _guard(connection: Any) -> None:
    """Bound what a peer can make us wait for and hold in memory.

    pynetdicom reads as many bytes as a peer claims that a PDU has, before any association exists
    (pydicom/pynetdicom#1086), and 4 KiB at a time.
    """
    stream: socket.socket = connection.socket
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.settimeout(_STALL_TIMEOUT_S)

    def receive(length: int) -> bytearray:
        if length > _LARGEST_PDU_READ:
            raise OSError("the peer claims a PDU that is longer than was negotiated")
        pdu = bytearray(length)
        view, got = memoryview(pdu), 0
        while got < length:
            read = stream.recv_into(view[got:])
            if read == 0:
                break
            got += read
        del view
        return pdu[:got] if got < length else pdu

    connection.recv = receive
