"""Takes one encoded instance, whichever way it came in: C-STORE, STOW-RS, a folder, a retrieve.

The same checks for all: room on the disk, a header that can be used, the instance that was
announced; then durable on disk, then indexed. Pixels are never decoded here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from phoi_edge_node.dicom.file_meta import encode_file_meta
from phoi_edge_node.dicom.headers import BadHeader, InstanceHeader, read_data_set_header
from phoi_edge_node.dicom.instance_files import IncomingFile, InstanceFiles, StoredFile
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock, Intake, ReceivedInstance, Receiver
from phoi_edge_node.settings import DicomSettings

# Status of a C-STORE response (PS3.4 B.2.3, PS3.7 C); STOW-RS gives the same as a reason.
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_log = structlog.get_logger(__name__)


class NotTaken(EdgeError):
    """An instance is not taken. The text holds no patient data.

    Attributes:
        status: of PS3.4 B.2.3.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class IncomingInstance:
    """What came, and what was said of it.

    Attributes:
        data_set: encoded as ``transfer_syntax_uid`` says, without the file meta information.
            Empty while it still comes.
        sop_class_uid, sop_instance_uid: as announced by the request; the data set must say the
            same.
        calling_ae_title: of the sender, or "".
        called_ae_title: of ours that it asked for, or "".
    """

    data_set: bytes | memoryview
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    calling_ae_title: str = ""
    called_ae_title: str = ""

    def file_meta(self) -> bytes:
        """Preamble, prefix and file meta information (PS3.10 7.1), naming who sent it."""
        return encode_file_meta(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            sending_ae_title=self.calling_ae_title,
            receiving_ae_title=self.called_ae_title,
        )


class InstanceTaker:
    """Safe to use from several threads."""

    def __init__(
        self, settings: DicomSettings, files: InstanceFiles, receiver: Receiver, clock: Clock
    ) -> None:
        self._settings = settings
        self._files = files
        self._receiver = receiver
        self._clock = clock

    def take(self, incoming: IncomingInstance, association: str) -> Intake:
        """Durable and indexed once this returns.

        Args:
            association: names what it came with; its study is not complete before
                ``association_released``.

        Returns:
            STORED, or DUPLICATE: success may be answered.

        Raises:
            NotTaken: with the status to answer; nothing is left behind but a quarantined file
                where other content was received under this UID before.
        """
        self.require_room(len(incoming.data_set))
        header = _header(incoming)
        with self.begin(incoming) as file:
            _write(file, incoming.data_set)
            return self._keep(incoming, header, file, association)

    def begin(self, announced: IncomingInstance) -> IncomingFile:
        """The file that a data set is written to as it comes; to be discarded, or ended by ``end``.

        Raises:
            NotTaken: the disk does not take it.
        """
        try:
            return self._files.begin(announced.file_meta())
        except OSError as error:
            raise _no_disk(error) from None

    def end(self, announced: IncomingInstance, file: IncomingFile, association: str) -> Intake:
        """As ``take``, of a data set that was written to ``file`` as it came."""
        incoming = replace(announced, data_set=file.data_set())
        return self._keep(incoming, _header(incoming), file, association)

    def require_room(self, size: int) -> None:
        """Room for ``size`` bytes.

        Raises:
            NotTaken: it is more than is taken of anyone, or than the disk has left.
        """
        if size > self._settings.largest_instance_mb * 1_000_000:
            raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
        if self._files.free_bytes() - size < self._settings.minimum_free_disk_mb * 1_000_000:
            raise NotTaken(OUT_OF_RESOURCES, "the disk is nearly full")

    def _keep(
        self,
        incoming: IncomingInstance,
        header: InstanceHeader,
        file: IncomingFile,
        association: str,
    ) -> Intake:
        with self._files.studies.coming(header.study.study_instance_uid):
            return self._keep_and_index(incoming, header, file, association)

    def _keep_and_index(
        self,
        incoming: IncomingInstance,
        header: InstanceHeader,
        file: IncomingFile,
        association: str,
    ) -> Intake:
        try:
            stored = file.keep(header.study.study_instance_uid, header.sop_instance_uid)
        except OSError as error:
            raise _no_disk(error) from None
        # If this raises, the file stays: whether it was indexed is not known then, and taking away
        # what is would lose it. It is taken over when it comes again, or by the next start.
        intake = self._receiver.instance_received(
            self._describe(incoming, header, stored), association
        )
        if intake is Intake.CONFLICT:
            self._files.quarantine(stored.path)
            raise NotTaken(
                DUPLICATE_SOP_INSTANCE, "other content was received under this UID before"
            )
        if intake is Intake.OTHER_PATIENT:
            self._files.quarantine(stored.path)
            raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the study belongs to another patient")
        return intake

    def released(self, association: str) -> None:
        """No more comes of it."""
        self._receiver.association_released(association)

    def _describe(
        self, incoming: IncomingInstance, header: InstanceHeader, stored: StoredFile
    ) -> ReceivedInstance:
        return ReceivedInstance(
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            series_instance_uid=header.series_instance_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            path=stored.path,
            sha256=stored.sha256,
            size=stored.size,
            modality=header.modality,
            calling_ae_title=incoming.calling_ae_title,
            received_at=self._clock.now(),
            study=header.study,
        )


def status_of(take: Callable[[], object], sop_instance_uid: str) -> int:
    """What to answer to a C-STORE request that ``take`` deals with (PS3.4 B.2.3)."""
    try:
        take()
    except NotTaken as refusal:
        _log.warning(
            "refused",
            sop_instance_uid=sop_instance_uid,
            status=f"0x{refusal.status:04X}",
            why=str(refusal),
        )
        return refusal.status
    except Exception as error:
        # Whatever it was, it must not read as success; the sender keeps the instance. No
        # traceback: those of structlog show local variables, and so the patient.
        _log.error("not_stored", sop_instance_uid=sop_instance_uid, error=type(error).__name__)
        return OUT_OF_RESOURCES
    return SUCCESS


def _write(file: IncomingFile, data_set: bytes | memoryview) -> None:
    try:
        file.write(data_set)
    except OSError as error:
        raise _no_disk(error) from None


def _no_disk(error: OSError) -> NotTaken:
    return NotTaken(OUT_OF_RESOURCES, f"the disk does not take it: {error.strerror}")


def _header(incoming: IncomingInstance) -> InstanceHeader:
    """The header, which must be of what the request and its presentation context announced."""
    try:
        header = read_data_set_header(incoming.data_set, incoming.transfer_syntax_uid)
    except BadHeader as error:
        raise NotTaken(CANNOT_UNDERSTAND, str(error)) from None
    if header.sop_instance_uid != incoming.sop_instance_uid:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the request names another SOP instance")
    if header.sop_class_uid != incoming.sop_class_uid:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the data set is of another SOP class")
    return header
