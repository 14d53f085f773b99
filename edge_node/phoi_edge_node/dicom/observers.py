"""TID 1001 Observation Context (PS3.16): the model, and the persons who reviewed."""

from __future__ import annotations

from highdicom.sr import (
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
)
from phoi_models.identity import ModelIdentity

from phoi_edge_node.dicom import codes
from phoi_edge_node.result import SignedReview
from phoi_edge_node.terms import MANUFACTURER, plain_text

_MAXIMUM_NAME = 63  # characters of a component group of a PN, less the caret


def observers(model: ModelIdentity, review: SignedReview | None) -> ObservationContext:
    """The model, and the person who signed."""
    device = DeviceObserverIdentifyingAttributes(
        uid=model.device_uid,
        name=model.name,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.bundle_hash,
    )
    return ObservationContext(
        observer_person_context=person(review) if review else None,
        observer_device_context=ObserverContext(CodedConcept.from_code(codes.DEVICE), device),
    )


def person(review: SignedReview) -> ObserverContext:
    """TID 1003: the person who signed."""
    name = PersonObserverIdentifyingAttributes(name=display_name(review.reviewer_name))
    return ObserverContext(CodedConcept.from_code(codes.PERSON), name)


def display_name(name: str) -> str:
    """A display name as a PN of one component: which part is which is not known."""
    plain = plain_text(name.translate(str.maketrans("^=\\", "   ")))
    return f"{plain[:_MAXIMUM_NAME]}^"
