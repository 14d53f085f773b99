"""C-ECHO for the doctor: who rejects us, and for which AE title."""

from __future__ import annotations

from typing import Any

from pynetdicom import AE

from phoi_edge_node.checks.probes import Echo
from phoi_edge_node.dicom.storage_scu import (
    VERIFICATION,
    NothingAccepted,
    Peer,
    PeerUnreachable,
    association,
)
from phoi_edge_node.dicom.storage_scu import echo as send_echo
from phoi_edge_node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from phoi_edge_node.ports import Delivered

_STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
_IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
# PS3.8 table 9-21: the reasons of the service user, source 1.
_CALLING_NOT_RECOGNISED = (1, 3)
_CALLED_NOT_RECOGNISED = (1, 7)


def echo(peer: Peer, calling_ae_title: str) -> Echo:
    """C-ECHO, told apart by why it failed. To a peer whose port is known to be open.

    One that only hangs up is asked again: a busy DICOM peer does so now and then.
    """
    answer = _echo(peer, calling_ae_title)
    return _echo(peer, calling_ae_title) if answer is Echo.NOT_DICOM else answer


def _echo(peer: Peer, calling_ae_title: str) -> Echo:
    entity = AE(ae_title=calling_ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.acse_timeout = entity.dimse_timeout = peer.timeout_s
    entity.network_timeout = entity.connection_timeout = peer.timeout_s
    entity.add_requested_context(VERIFICATION)
    tls = None if peer.tls is None else (peer.tls, peer.host)
    link = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, tls_args=tls)
    if link.is_rejected:
        return _rejected(link.acceptor.primitive)
    if not link.is_established:
        return Echo.REJECTED if link.rejected_contexts else Echo.NOT_DICOM
    try:
        return Echo.ANSWERED if link.send_c_echo().get("Status") == 0 else Echo.REJECTED
    finally:
        link.release()


def _rejected(answer: Any) -> Echo:
    match (answer.result_source, answer.diagnostic):
        case reason if reason == _CALLED_NOT_RECOGNISED:
            return Echo.UNKNOWN_CALLED
        case reason if reason == _CALLING_NOT_RECOGNISED:
            return Echo.UNKNOWN_CALLING
        case _:
            return Echo.REJECTED


def answers(peer: Peer, calling_ae_title: str) -> bool:
    """Does C-ECHO succeed?"""
    return isinstance(send_echo(peer, calling_ae_title), Delivered)


def takes_commitment(peer: Peer, calling_ae_title: str) -> bool:
    """Is Storage Commitment Push Model (PS3.4 J) accepted on an association?"""
    try:
        context = {(_STORAGE_COMMITMENT, _IMPLICIT_VR_LITTLE_ENDIAN)}
        with association(peer, calling_ae_title, context):
            return True
    except (NothingAccepted, PeerUnreachable):
        return False
