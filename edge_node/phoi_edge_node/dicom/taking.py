"""Takes one encoded instance, whichever way it came in: C-STORE, STOW-RS, a folder, a retrieve.

The same checks for all: room on the disk, a header that can be used, the instance that was
announced; then durable on disk, then indexed. Pixels are never decoded here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

from phoi_edge_node.dicom.headers import BadHeader, InstanceHeader, read_data_set_header
from phoi_edge_node.dicom.instance_files import InstanceFiles, StoredFile
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock, Intake, ReceivedInstance, Receiver
from phoi_edge_node.settings import DicomSettings

# Status of a C-STORE response (PS3.4 B.2.3, PS3.7 C); STOW-RS gives the same as a reason.
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000


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
        sop_class_uid, sop_instance_uid: as announced by the request; the data set must say the
            same.
        calling_ae_title: of the sender, or "".
        called_ae_title: of ours that it asked for, or "".
    """

    data_set: bytes
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    calling_ae_title: str = ""
    called_ae_title: str = ""

    def file_meta(self) -> bytes:
        """Preamble, prefix and file meta information (PS3.10 7.1), naming who sent it."""
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = UID(self.sop_class_uid)
        meta.MediaStorageSOPInstanceUID = UID(self.sop_instance_uid)
        meta.TransferSyntaxUID = UID(self.transfer_syntax_uid)
        meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
        meta.SendingApplicationEntityTitle = self.calling_ae_title
        meta.ReceivingApplicationEntityTitle = self.called_ae_title
        buffer = DicomBytesIO()
        buffer.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(buffer, meta)
        return buffer.getvalue()


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
        self._require_room(len(incoming.data_set))
        header = _parse(incoming)
        _require_match(incoming, header)
        file_meta = incoming.file_meta()
        stored = self._write(header, file_meta, incoming.data_set)
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

    def _require_room(self, size: int) -> None:
        if size > self._settings.largest_instance_mb * 1_000_000:
            raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
        if self._files.free_bytes() - size < self._settings.minimum_free_disk_mb * 1_000_000:
            raise NotTaken(OUT_OF_RESOURCES, "the disk is nearly full")

    def _write(self, header: InstanceHeader, file_meta: bytes, data_set: bytes) -> StoredFile:
        try:
            return self._files.store(
                header.study.study_instance_uid, header.sop_instance_uid, file_meta, data_set
            )
        except OSError as error:
            raise NotTaken(
                OUT_OF_RESOURCES, f"the disk does not take it: {error.strerror}"
            ) from None

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


def _parse(incoming: IncomingInstance) -> InstanceHeader:
    try:
        return read_data_set_header(incoming.data_set, incoming.transfer_syntax_uid)
    except BadHeader as error:
        raise NotTaken(CANNOT_UNDERSTAND, str(error)) from None


def _require_match(incoming: IncomingInstance, header: InstanceHeader) -> None:
    """The data set must be what the request and its presentation context say it is."""
    if header.sop_instance_uid != incoming.sop_instance_uid:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the request names another SOP instance")
    if header.sop_class_uid != incoming.sop_class_uid:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the data set is of another SOP class")
