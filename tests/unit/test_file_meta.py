"""Our file meta information is pydicom's, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.file_meta import encode_file_meta
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

UIDS = st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,5}", fullmatch=True)
AE_TITLES = st.from_regex(r"([A-Z0-9_]([A-Z0-9_ ]{0,14}[A-Z0-9_])?)?", fullmatch=True)


@given(UIDS, UIDS, UIDS, AE_TITLES, AE_TITLES)
def test_as_pydicom_writes_it(
    sop_class: str, instance: str, syntax: str, sender: str, receiver: str
) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.SendingApplicationEntityTitle = sender
    meta.ReceivingApplicationEntityTitle = receiver
    expected = DicomBytesIO()
    expected.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(expected, meta)

    written = encode_file_meta(
        sop_class_uid=sop_class,
        sop_instance_uid=instance,
        transfer_syntax_uid=syntax,
        sending_ae_title=sender,
        receiving_ae_title=receiver,
    )

    assert written == expected.getvalue()


def test_what_dicom_does_not_allow_does_not_get_in() -> None:
    written = encode_file_meta(
        sop_class_uid="1.2",
        sop_instance_uid="1.2.3",
        transfer_syntax_uid="1.2",
        sending_ae_title="CT\u00e9",
        receiving_ae_title="PHOI",
    )
    assert b"AE\x04\x00CT? " in written
