"""Storage SCP (PS3.4 B): takes CT images, and answers success only for what survives a crash.

pynetdicom negotiates and runs the associations. An instance is never decoded here: its bytes go
to disk as they came. Nothing of a patient is logged.
"""

from __future__ import annotations

import itertools
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

from phoi_edge_node.dicom.acceptor import (
    Acceptor,
    Limits,
    MemoryBudget,
    Patience,
    TooLong,
    end_message,
)
from phoi_edge_node.dicom.door import DoorRules
from phoi_edge_node.dicom.lean_receiver import LeanReceiver
from phoi_edge_node.dicom.rejections import Rejections
from phoi_edge_node.dicom.storage_commitment import PUSH_MODEL, CommitmentService
from phoi_edge_node.dicom.taking import (
    DATA_SET_DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
    status_of,
)
from phoi_edge_node.dicom.tls import server_context
from phoi_edge_node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
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
_BUDGET = 512 * 1024 * 1024  # bytes of data sets that come in at once, beside the one that is first

_log = structlog.get_logger(__name__)


class StorageScp:
    """Listens for CT images."""

    def __init__(
        self,
        settings: DicomSettings,
        taker: InstanceTaker,
        clock: Clock,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        commitment: CommitmentService | None = None,
    ) -> None:
        """Nothing is opened yet. ``commitment``: what is done with requests for it."""
        self._settings = settings
        self._taker = taker
        self._clock = clock
        self._patience = patience
        self._commitment = commitment
        self._acceptor: Acceptor | None = None
        self._count = itertools.count(1)
        self._open: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port in use, also where the settings say 0; only while started."""
        if self._acceptor is None:
            raise EdgeError("the DICOM receiver is not started")
        return self._acceptor.port

    def start(self) -> None:
        """Begin to listen; returns at once.

        Raises:
            EdgeError: the port, or a file for TLS, cannot be used.
        """
        settings, tls = self._settings, server_context(self._settings)
        entity = self._entity()
        limits = Limits(
            settings.largest_instance_mb * 1_000_000, MemoryBudget(_BUDGET), self._patience
        )
        self._acceptor = Acceptor(
            entity,
            (settings.host, settings.port),
            DoorRules.of(settings, tls, self._patience.request),
            limits,
            self._clock,
            [
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_REJECTED, Rejections(settings, self._clock).handle),
                *(self._commitment.handlers if self._commitment else ()),
            ],
            self._ended,
            self._lean(entity, limits),
        )
        _log.info("listening", ae_title=settings.ae_title, port=self.port, tls=tls is not None)

    def stop(self) -> None:
        """Stop listening; open associations are aborted, so their senders try again. Idempotent."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.stop()

    def trouble(self) -> str:
        """Why nobody is let in, for an operator; "" where all is well, or it is not started."""
        acceptor = self._acceptor
        return acceptor.trouble() if acceptor is not None else ""

    def _lean(self, entity: AE, limits: Limits) -> LeanReceiver | None:
        if self._settings.receiver != "lean":
            return None
        services = (_VERIFICATION, *SOP_CLASSES)
        return LeanReceiver(entity, services, self._taker, limits, self._new_name)

    def _entity(self) -> AE:
        entity = AE(ae_title=self._settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.allowed_calling_ae_titles)
        entity.add_supported_context(_VERIFICATION)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        if self._commitment is not None:
            # Peers ask us as SCU, and answer us as SCP.
            entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        return entity

    def _association(self, association: Any) -> str:
        """Our name of an association, given when it stores its first instance."""
        with self._lock:
            name = self._open.get(id(association))
            if name is None:
                name = self._new_name()
                self._open[id(association)] = name
            return name

    def _new_name(self) -> str:
        return f"{self._clock.now():%Y%m%dT%H%M%S}-{next(self._count)}"

    def _ended(self, association: Any) -> None:
        with self._lock:
            name = self._open.pop(id(association), None)
        if name is not None:
            self._taker.released(name)
        if self._commitment is not None:
            self._commitment.ended(association)

    def _store(self, event: evt.Event) -> int:
        """Answer one C-STORE request."""
        request = cast("C_STORE", event.request)
        try:
            return status_of(lambda: self._take(event), str(request.AffectedSOPInstanceUID))
        finally:
            end_message(event.assoc)

    def _take(self, event: evt.Event) -> None:
        self._taker.take(_incoming(event), self._association(event.assoc))


def _incoming(event: evt.Event) -> IncomingInstance:
    """One C-STORE request.

    Raises:
        NotTaken: it names another SOP class than its presentation context, or was too long.
    """
    request = cast("C_STORE", event.request)
    if isinstance(request.DataSet, TooLong):
        raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
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
