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
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
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

from phoi_edge_node.dicom.headers import BadHeader, InstanceHeader, read_header
from phoi_edge_node.dicom.instance_files import InstanceFiles, StoredFile
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock, Intake, ReceivedInstance, Receiver
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

# Status of a C-STORE response (PS3.4 B.2.3, PS3.7 C).
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_VERIFICATION = UID("1.2.840.10008.1.1")
_MAXIMUM_PDU = 128 * 1024
_LARGEST_PDU_READ = 2 * _MAXIMUM_PDU  # an A-ASSOCIATE-RQ is not bound by the negotiated length
_ACSE_TIMEOUT_S = 10.0
_STALL_TIMEOUT_S = 30.0
_IDLE_TIMEOUT_S = 60.0

_log = structlog.get_logger(__name__)


class _Refusal(Exception):
    """An instance is not taken; carries the status to answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class StorageScp:
    """Listens for CT images."""

    def __init__(
        self, settings: DicomSettings, files: InstanceFiles, receiver: Receiver, clock: Clock
    ) -> None:
        self._settings = settings
        self._files = files
        self._receiver = receiver
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
            self._receiver.association_released(name)

    def _store(self, event: evt.Event) -> int:
        """Answer one C-STORE request."""
        request = cast("C_STORE", event.request)
        log = _log.bind(sop_instance_uid=str(request.AffectedSOPInstanceUID))
        try:
            self._take(event)
        except _Refusal as refusal:
            log.warning("refused", status=f"0x{refusal.status:04X}", why=str(refusal))
            return refusal.status
        except Exception as error:
            # Whatever it was, it must not read as success; the sender keeps the instance. No
            # traceback: those of structlog show local variables, and so the patient.
            log.error("not_stored", error=type(error).__name__)  # noqa: TRY400
            return OUT_OF_RESOURCES
        return SUCCESS

    def _take(self, event: evt.Event) -> None:
        self._require_room()
        data_set = event.encoded_dataset(include_meta=False)
        file_meta = _file_meta(event)
        header = _parse(file_meta + data_set)
        _require_match(event, header)
        stored = self._write(header, file_meta, data_set)
        association = self._association(event.assoc)
        intake = self._receiver.instance_received(
            self._describe(event, header, stored), association
        )
        with self._lock:
            lost = association not in self._open.values()
        if lost:  # the connection ended while its last instance was being indexed
            self._receiver.association_released(association)
        if intake is Intake.CONFLICT:
            self._files.quarantine(stored.path)
            raise _Refusal(
                DUPLICATE_SOP_INSTANCE, "other content was received under this UID before"
            )
        if intake is Intake.OTHER_PATIENT:
            self._files.quarantine(stored.path)
            raise _Refusal(DATA_SET_DOES_NOT_MATCH, "the study belongs to another patient")

    def _require_room(self) -> None:
        if self._files.free_bytes() < self._settings.minimum_free_disk_mb * 1_000_000:
            raise _Refusal(OUT_OF_RESOURCES, "the disk is nearly full")

    def _write(self, header: InstanceHeader, file_meta: bytes, data_set: bytes) -> StoredFile:
        try:
            return self._files.store(
                header.study.study_instance_uid, header.sop_instance_uid, file_meta, data_set
            )
        except OSError as error:
            raise _Refusal(
                OUT_OF_RESOURCES, f"the disk does not take it: {error.strerror}"
            ) from None

    def _describe(
        self, event: evt.Event, header: InstanceHeader, stored: StoredFile
    ) -> ReceivedInstance:
        return ReceivedInstance(
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            series_instance_uid=header.series_instance_uid,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            path=stored.path,
            sha256=stored.sha256,
            size=stored.size,
            modality=header.modality,
            calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
            received_at=self._clock.now(),
            study=header.study,
        )


def _file_meta(event: evt.Event) -> bytes:
    """Preamble, prefix and file meta information, naming who sent the instance."""
    meta = event.file_meta
    meta.SendingApplicationEntityTitle = str(event.assoc.requestor.ae_title).strip()
    meta.ReceivingApplicationEntityTitle = str(event.assoc.acceptor.ae_title).strip()
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue()


def _parse(content: bytes) -> InstanceHeader:
    try:
        return read_header(content)
    except BadHeader as error:
        raise _Refusal(CANNOT_UNDERSTAND, str(error)) from None


def _require_match(event: evt.Event, header: InstanceHeader) -> None:
    """The data set must be what the request and its presentation context say it is."""
    request = cast("C_STORE", event.request)
    if header.sop_instance_uid != str(request.AffectedSOPInstanceUID):
        raise _Refusal(DATA_SET_DOES_NOT_MATCH, "the request names another SOP instance")
    classes = {str(request.AffectedSOPClassUID), str(event.context.abstract_syntax)}
    if classes != {header.sop_class_uid}:
        raise _Refusal(DATA_SET_DOES_NOT_MATCH, "the data set is of another SOP class")


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
