"""Archives that answer as a test wants, and a small document for them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

VERIFICATION = "1.2.840.10008.1.1"


@contextmanager
def answering_scp(
    status: int | None,
    *,
    sop_class: str = Comprehensive3DSRStorage,
    allowed_calling_ae_titles: tuple[str, ...] = (),
    comment: str = "",
) -> Iterator[int]:
    """A storage SCP, AE title ARCHIVE, that answers every C-STORE with one status; its port.

    Args:
        status: None aborts the association instead.
        sop_class: the only one it takes.
        comment: Error Comment (0000,0902) of each answer.
    """

    def answer(event: evt.Event) -> int | Dataset:
        if status is None:
            event.assoc.abort()
            return 0
        told = Dataset()
        told.Status = status
        if comment:
            told.ErrorComment = comment
        return told

    entity = AE(ae_title="ARCHIVE")
    entity.require_calling_aet = list(allowed_calling_ae_titles)
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)]
    )
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


def report_file(sop_instance_uid: str) -> bytes:
    """A DICOM file that says it is a Comprehensive 3D SR; enough for an archive to keep."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = Comprehensive3DSRStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = Comprehensive3DSRStorage
    dataset.SOPInstanceUID = sop_instance_uid
    dataset.PatientName = "Nguyễn^Thị Ánh Tuyết"
    dataset.PatientID = "BN-000123"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
    dataset.Modality = "SR"
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
