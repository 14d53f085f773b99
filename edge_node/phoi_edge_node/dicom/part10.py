"""DICOM files (PS3.10) that come in: what lies in front of the data set, and whether it is ours."""

from __future__ import annotations

from pydicom.uid import UID

from phoi_edge_node.dicom.headers import BadHeader, InstanceHeader, data_set_offset, read_header
from phoi_edge_node.dicom.storage_scp import SOP_CLASSES, TRANSFER_SYNTAXES
from phoi_edge_node.dicom.taking import CANNOT_UNDERSTAND, IncomingInstance, NotTaken

# Failure reasons of PS3.18 10.5.3 beside those of C-STORE.
SOP_CLASS_NOT_SUPPORTED = 0x0122
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122


def open_file(content: bytes) -> tuple[IncomingInstance, InstanceHeader]:
    """What a file holds, ready for ``InstanceTaker.take``, and what its header says.

    Raises:
        NotTaken: it is no DICOM file, or its header cannot be used.
    """
    offset = data_set_offset(content)
    if not 0 < offset <= len(content):
        raise NotTaken(CANNOT_UNDERSTAND, "it is not a DICOM file")
    try:
        header = read_header(content)
    except BadHeader as error:
        raise NotTaken(CANNOT_UNDERSTAND, str(error)) from None
    incoming = IncomingInstance(
        data_set=content[offset:],
        transfer_syntax_uid=header.transfer_syntax_uid,
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
    )
    return incoming, header


def require_ct_image(incoming: IncomingInstance) -> None:
    """What an association would not have negotiated is not taken in a file either.

    Raises:
        NotTaken: another SOP class or transfer syntax than those of the Storage SCP.
    """
    if UID(incoming.sop_class_uid) not in SOP_CLASSES:
        raise NotTaken(SOP_CLASS_NOT_SUPPORTED, "it is not a CT image")
    if UID(incoming.transfer_syntax_uid) not in TRANSFER_SYNTAXES:
        raise NotTaken(TRANSFER_SYNTAX_NOT_SUPPORTED, "its transfer syntax is not supported")
