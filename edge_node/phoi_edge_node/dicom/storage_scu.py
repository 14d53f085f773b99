"""Storage SCU (PS3.4 B): sends DICOM files as they are, without decoding them."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context, build_role

from phoi_edge_node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Delivered, Erred, Refused, SendOutcome, Unreachable
from phoi_edge_node.settings import ArchiveSettings

# A file's data set goes out byte for byte. pynetdicom knows this only as a setting of the process.
_config.STORE_SEND_CHUNKED_DATASET = True
# What archives answer is neither written to a log nor decoded for one.
_config.LOG_RESPONSE_IDENTIFIERS = False

VERIFICATION = "1.2.840.10008.1.1"
_IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: odd identifiers from 1 to 255
MAXIMUM_PDU = 128 * 1024

_SUCCESS = 0x0000
_WARNINGS = range(0xB000, 0xC000)
# About the archive, not the object: its disk is full (PS3.4 Table B.2-1; A701 and A702 are Query/
# Retrieve's, Table C.4-2), or it has no room for the operation now (PS3.7 C.5.21).
_OUT_OF_RESOURCES = range(0xA700, 0xA703)
_RESOURCE_LIMITATION = 0x0213
# The rest of A7xx means "out of resources" too, but archives say other things with it: it is tried
# again, and not for ever. What dcm4chee says with A770 to A779 (its ``StoreService``) is about the
# object: a rejection note that it cannot follow, or a patient who is not the one it knows.
_OTHER_RESOURCES = range(0xA703, 0xA800)
_OF_DCM4CHEE = range(0xA770, 0xA77A)
ALREADY_NOTED = 0xA770  # it holds this very rejection note
# It tried and failed. "Cannot understand" (PS3.4 Table B.2-1) should be for good, but archives also
# answer it when their database is locked; "processing failure" (PS3.7 C.5.14) is any such trouble.
_CANNOT_UNDERSTAND = range(0xC000, 0xD000)
_PROCESSING_FAILURE = 0x0110
_TRIED_AND_FAILED = frozenset({*_CANNOT_UNDERSTAND, *_OTHER_RESOURCES, _PROCESSING_FAILURE})


class PeerUnreachable(EdgeError):
    """No association with the peer could be had. Passing, or its settings do not know us."""


class NothingAccepted(EdgeError):
    """The peer takes none of the SOP classes and transfer syntaxes that were proposed."""


@dataclass(frozen=True)
class Peer:
    """Another application entity.

    Attributes:
        timeout_s: for the connection and for each answer.
        tls: None: plain TCP.
    """

    ae_title: str
    host: str
    port: int
    timeout_s: float = 30.0
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, archive: ArchiveSettings, tls: ssl.SSLContext | None = None) -> Peer:
        """An archive of the settings; ``tls`` is used where they say so."""
        return cls(
            archive.ae_title,
            archive.host,
            archive.port,
            archive.timeout_s,
            tls if archive.tls else None,
        )

    @classmethod
    def parse(cls, address: str) -> Peer:
        """From ``AE@host:port``.

        Raises:
            EdgeError: it is written otherwise.
        """
        match = re.fullmatch(r"([^@\\]{1,16})@([^@]+):(\d{1,5})", address.strip())
        if not match or not match[1].isascii() or not 0 < int(match[3]) < 65536:
            raise EdgeError(
                f"{address!r} is no DICOM address: write AE@host:port, PHOI@10.0.0.5:104"
            )
        return cls(match[1], match[2], int(match[3]))


@dataclass(frozen=True)
class StorableFile:
    """What must be negotiated to send a file, from its file meta information."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str

    @classmethod
    def open(cls, path: Path) -> StorableFile:
        """Read the file meta information.

        Raises:
            EdgeError: it is no complete DICOM file.
        """
        try:
            meta = read_file_meta_info(path)
            return cls(path, str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
        except Exception as error:
            # A damaged file makes the parser raise nearly anything.
            raise EdgeError(f"{path.name} is no DICOM file ({type(error).__name__})") from None


@contextmanager
def association(
    peer: Peer,
    calling_ae_title: str,
    contexts: Collection[tuple[str, str]],
    *,
    taken: Collection[str] = (),
    on_store: Callable[[evt.Event], int] | None = None,
) -> Iterator[Association]:
    """An established association, released at the end.

    Args:
        contexts: pairs of abstract syntax and transfer syntax to propose; at most 128.
        taken: abstract syntaxes of which we are the SCP on this association (C-GET).
        on_store: answers the peer's C-STORE requests on it.

    Raises:
        PeerUnreachable: no connection, no answer, or the association is rejected.
        NothingAccepted: the peer takes nothing of what was proposed.
    """
    entity = _entity(calling_ae_title, peer.timeout_s)
    proposed = [build_context(*pair) for pair in sorted(contexts)[:_MAXIMUM_CONTEXTS]]
    handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, _send_at_once)]
    if on_store is not None:
        handlers.append((evt.EVT_C_STORE, on_store))
    try:
        link = entity.associate(
            peer.host,
            peer.port,
            contexts=proposed,
            ae_title=peer.ae_title,
            max_pdu=MAXIMUM_PDU,
            tls_args=None if peer.tls is None else (peer.tls, peer.host),
            ext_neg=[build_role(sop_class, scp_role=True) for sop_class in sorted(taken)],
            evt_handlers=handlers,
        )
    except (OSError, TypeError, ValueError) as error:
        raise PeerUnreachable(f"{_where(peer)} cannot be reached ({error})") from None
    if not link.is_established:
        raise _no_association(peer, link)
    try:
        yield link
    finally:
        if link.is_established:
            link.release()


def store(link: Association, file: StorableFile) -> SendOutcome:
    """Send one file on an established association and wait for the answer."""
    accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in link.accepted_contexts}
    if (file.sop_class_uid, file.transfer_syntax_uid) not in accepted:
        return Refused("no presentation context was accepted for this SOP class")
    try:
        return outcome(link.send_c_store(file.path))
    except RuntimeError:
        return Unreachable("the association was lost")
    except (ValueError, AttributeError, OSError) as error:
        return Refused(f"the file cannot be sent ({type(error).__name__})")


def echo(peer: Peer, calling_ae_title: str) -> SendOutcome:
    """C-ECHO."""
    context = (VERIFICATION, _IMPLICIT_VR_LITTLE_ENDIAN)
    try:
        with association(peer, calling_ae_title, {context}) as link:
            return outcome(link.send_c_echo())
    except NothingAccepted as error:
        return Refused(str(error))
    except (PeerUnreachable, RuntimeError) as error:
        return Unreachable(str(error))


def outcome(response: Dataset) -> SendOutcome:
    """What the status of a response means for the document that was sent.

    Success and warnings count as delivered: the archive has stored it. What is about the archive,
    and no answer at all, will pass. Where it tried and failed, trying again may help. Every other
    failure is about the object itself.
    """
    status = response.get("Status")
    if status is None:
        return Unreachable("no answer")
    text = f"status 0x{status:04X}"
    if status == _SUCCESS or status in _WARNINGS:
        return Delivered(text)
    if status in _OUT_OF_RESOURCES or status == _RESOURCE_LIMITATION:
        return Unreachable(text, nothing_taken=True)
    if status in _OF_DCM4CHEE:
        return Refused(text)
    if status in _TRIED_AND_FAILED:
        return Erred(text)
    return Refused(text)


def _entity(calling_ae_title: str, timeout_s: float) -> AE:
    entity = AE(ae_title=calling_ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.acse_timeout = timeout_s
    entity.dimse_timeout = timeout_s
    entity.network_timeout = timeout_s
    entity.connection_timeout = timeout_s
    return entity


def _send_at_once(event: evt.Event) -> None:
    """Without this, Nagle's algorithm and delayed acknowledgements cost 40 ms a file."""
    connection: Any = event.assoc.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _no_association(peer: Peer, link: Association) -> EdgeError:
    if link.is_rejected:
        answer: Any = link.acceptor.primitive
        return PeerUnreachable(f"{_where(peer)} rejected the association: {answer.reason_str}")
    if link.rejected_contexts:
        return NothingAccepted(f"{_where(peer)} takes nothing of what was proposed")
    return PeerUnreachable(f"{_where(peer)} cannot be reached")


def _where(peer: Peer) -> str:
    return f"{peer.ae_title} at {peer.host}:{peer.port}"
