"""Which associations the lean receiver serves, and how it accepts them (PS3.8 7.1).

Whatever is not plain storage or verification, and whatever is to be rejected, is left to
pynetdicom, so that there is one set of rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from phoi_edge_node.dicom.acceptor import MAXIMUM_PDU

_APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")
_PROTOCOL_VERSION = 1
_LONGEST_RESPONSE = 512
# A window of asynchronous operations is not granted, by not answering to it (PS3.7 D.3.3.3).
_PLAIN_ITEMS = (
    MaximumLengthNotification,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    AsynchronousOperationsWindowNegotiation,
)


@dataclass(frozen=True)
class Accepted:
    """What was agreed on.

    Attributes:
        contexts: (abstract syntax, transfer syntax) by presentation context id.
        answer: the A-ASSOCIATE-AC.
    """

    calling_ae_title: str
    called_ae_title: str
    contexts: Mapping[int, tuple[str, str]]
    answer: bytes


def negotiate(request: bytes, entity: AE, services: Collection[str]) -> Accepted | None:
    """Accept an A-ASSOCIATE-RQ; None: it is pynetdicom's.

    Args:
        entity: with all that this port serves, and whom.
        services: the SOP classes that the lean receiver serves.
    """
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        proposal = pdu.to_primitive()
        if pdu.protocol_version != _PROTOCOL_VERSION or not _is_plain(proposal):
            return None
        if not _is_welcome(proposal, entity):
            return None
        results, _ = negotiate_as_acceptor(
            proposal.presentation_context_definition_list, entity.supported_contexts, {}
        )
        accepted = [context for context in results if context.result == 0]
        if not accepted or any(str(c.abstract_syntax) not in services for c in accepted):
            return None
        return Accepted(
            str(proposal.calling_ae_title),
            str(proposal.called_ae_title),
            {
                int(c.context_id or 0): (str(c.abstract_syntax), str(c.transfer_syntax[0]))
                for c in accepted
            },
            _answer(proposal, results, entity),
        )
    except Exception:  # a request can be wrong in more ways than can be listed
        return None


def _is_plain(proposal: A_ASSOCIATE) -> bool:
    """Nothing but contexts is negotiated, and the peer takes our responses in one PDU."""
    longest = proposal.maximum_length_received
    return (longest == 0 or (longest or 0) >= _LONGEST_RESPONSE) and all(
        isinstance(item, _PLAIN_ITEMS) for item in proposal.user_information
    )


def _is_welcome(proposal: A_ASSOCIATE, entity: AE) -> bool:
    allowed = entity.require_calling_aet
    if allowed and proposal.calling_ae_title not in {title.strip() for title in allowed}:
        return False
    return bool(proposal.called_ae_title == entity.ae_title.strip())


def _answer(proposal: A_ASSOCIATE, results: list[PresentationContext], entity: AE) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION_CONTEXT
    primitive.calling_ae_title = proposal.calling_ae_title
    primitive.called_ae_title = proposal.called_ae_title
    primitive.result, primitive.result_source = 0, 1
    primitive.presentation_context_definition_results_list = results
    longest = MaximumLengthNotification()
    longest.maximum_length_received = MAXIMUM_PDU
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = entity.implementation_class_uid
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = entity.implementation_version_name
    primitive.user_information = [longest, implementation, version]
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())
