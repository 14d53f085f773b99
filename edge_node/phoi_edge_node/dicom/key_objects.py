"""Key Object Selection (PS3.3 A.35.4; TID 2010 of PS3.16): key images, and the note that withdraws.

Key images show a viewer that hides reports and segmentations where to look. A rejection note, as
IHE Imaging Object Change Management (IOCM) has it, tells an archive which objects must not be
shown any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import (
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    TextContentItem,
)
from phoi_models.identity import ModelIdentity
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from phoi_edge_node.dicom import codes
from phoi_edge_node.dicom.observers import observers
from phoi_edge_node.dicom.requests import referenced_requests
from phoi_edge_node.dicom.source import frame_number, reference_to
from phoi_edge_node.dicom.stamp import NewInstance, Stamp
from phoi_edge_node.dicom.uids import series_of
from phoi_edge_node.ports import DocumentKind, ReportedCase
from phoi_edge_node.reported import impression
from phoi_edge_node.terms import plain_text

# What can be rejected. Not a rejection note: to reject one is to show again what it rejected.
_SOP_CLASSES: Mapping[DocumentKind, UID] = {
    DocumentKind.SEGMENTATION: SegmentationStorage,
    DocumentKind.STRUCTURED_REPORT: Comprehensive3DSRStorage,
    DocumentKind.SECONDARY_CAPTURE: SecondaryCaptureImageStorage,
    DocumentKind.KEY_OBJECTS: KeyObjectSelectionDocumentStorage,
}
_IMAGES = frozenset({SegmentationStorage, SecondaryCaptureImageStorage})


def make_key_images(
    case: ReportedCase, images: Sequence[Dataset], instance: NewInstance, stamp: Stamp
) -> Dataset:
    """The images on which the nodules of a case are seen best, titled "Of Interest".

    Args:
        images: what names each of them; at least one, some perhaps twice.
    """
    items = _image_items(images)
    return _document(codes.OF_INTEREST, items, images, case, instance, stamp)


def make_rejection_note(
    case: ReportedCase,
    held: Mapping[DocumentKind, Sequence[str]],
    instance: NewInstance,
    stamp: Stamp,
) -> Dataset | None:
    """Rejects, for patient safety, every object of a case that one archive holds.

    IOCM (IHE RAD TF-2, 4.66) asks for the study of the rejected objects, and for a title of its
    list. No human being need have looked, so the title is not the one for quality.

    Args:
        held: their SOP Instance UIDs; what else is held is left out. An object that the archive
            does not have may be taken for an error of the whole note.

    Returns:
        None where it holds none.
    """
    rejected = list(_rejectable(held, case.study.study_instance_uid))
    if not rejected:
        return None
    items = [_object_item(reference) for reference in rejected]
    return _document(codes.REJECTED_FOR_SAFETY, items, rejected, case, instance, stamp)


def _document(
    title: Code,
    items: Iterable[ContentItem],
    evidence: Sequence[Dataset],
    case: ReportedCase,
    instance: NewInstance,
    stamp: Stamp,
) -> Dataset:
    dataset = KeyObjectSelectionDocument(
        evidence=evidence,
        content=_content(title, items, case, stamp.model),
        series_instance_uid=instance.series_instance_uid,
        series_number=instance.series_number,
        sop_instance_uid=instance.sop_instance_uid,
        instance_number=1,
    )
    for item in dataset.ContentSequence:
        if item.ValueType in {"IMAGE", "COMPOSITE"}:
            # highdicom wants a purpose of reference, and TID 2010 has none.
            del item.ConceptNameCodeSequence
    if requests := referenced_requests(case, stamp.header):
        dataset.ReferencedRequestSequence = requests
    stamp.put_on(dataset, instance)
    return dataset


def _content(
    title: Code, items: Iterable[ContentItem], case: ReportedCase, model: ModelIdentity
) -> KeyObjectSelection:
    """The tree. TID 2010 allows one description, so both languages stand in it."""
    lines = impression(case)
    description = [vi for _, vi in lines] + [en for en, _ in lines]
    root = ContainerContentItem(name=title, template_id="2010")
    root.ContentSequence = ContentSequence(
        [
            *observers(model, case.review),
            TextContentItem(
                codes.KEY_OBJECT_DESCRIPTION,
                "\r\n".join(plain_text(line) for line in description),
                relationship_type="CONTAINS",
            ),
            *items,
        ]
    )
    return KeyObjectSelection.from_sequence([root])


def _image_items(images: Iterable[Dataset]) -> list[ContentItem]:
    """One item for each instance, with the frames of it that are meant."""
    frames: dict[tuple[str, str], set[int]] = defaultdict(set)
    for image in images:
        frames[image.SOPClassUID, image.SOPInstanceUID].update(filter(None, [frame_number(image)]))
    return [
        ImageContentItem(
            codes.SOURCE,
            sop_class_uid,
            sop_instance_uid,
            referenced_frame_numbers=sorted(numbers) or None,
            relationship_type="CONTAINS",
        )
        for (sop_class_uid, sop_instance_uid), numbers in frames.items()
    ]


def _object_item(reference: Dataset) -> ContentItem:
    item = ImageContentItem if reference.SOPClassUID in _IMAGES else CompositeContentItem
    return item(
        codes.SOURCE,
        reference.SOPClassUID,
        reference.SOPInstanceUID,
        relationship_type="CONTAINS",
    )


def _rejectable(
    held: Mapping[DocumentKind, Sequence[str]], study_instance_uid: str
) -> Iterator[Dataset]:
    for kind, identities in held.items():
        if kind in _SOP_CLASSES:
            for uid in identities:
                yield reference_to(_SOP_CLASSES[kind], uid, series_of(uid), study_instance_uid)
