"""All DICOM objects of a result.

SR and Secondary Capture always; SEG where a nodule has voxels; key images where one has a place;
a rejection note for each archive that has some of them where the result is withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta, timezone, tzinfo
from pathlib import Path

from phoi_models.reading.multi_frame import single_frames
from pydicom import Dataset
from pydicom.config import disable_value_validation

from phoi_edge_node.dicom.key_objects import make_key_images, make_rejection_note
from phoi_edge_node.dicom.key_slice import key_slice
from phoi_edge_node.dicom.lossy import LossyCompression, lossy_compression
from phoi_edge_node.dicom.measurement_groups import Evidence
from phoi_edge_node.dicom.secondary_capture import make_secondary_capture
from phoi_edge_node.dicom.segmentation import make_segmentation, segmented, slices_with_nodules
from phoi_edge_node.dicom.source import (
    image_reference,
    read_header,
    representative_header,
    time_zone,
)
from phoi_edge_node.dicom.stamp import NewInstance, Stamp, to_bytes
from phoi_edge_node.dicom.structured_report import make_structured_report
from phoi_edge_node.dicom.summary_page import draw_summary
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import (
    Document,
    DocumentKind,
    ReportedCase,
    UidSource,
)
from phoi_edge_node.reported import ReportedNodule, reported_at, reported_nodules
from phoi_edge_node.result import Completeness

INDOCHINA_TIME = timezone(timedelta(hours=7))

# In the 64 characters of Content Description (0070,0081).
_UNCONFIRMED = "AI lung nodules. COMPLETENESS UNCONFIRMED: images may be missing"

_SERIES = {
    DocumentKind.SEGMENTATION: (9101, "Phoi AI lung nodules: segmentation"),
    DocumentKind.STRUCTURED_REPORT: (9102, "Phoi AI lung nodules: measurements"),
    DocumentKind.SECONDARY_CAPTURE: (9103, "Phoi AI lung nodules: summary"),
    DocumentKind.KEY_OBJECTS: (9104, "Phoi AI lung nodules: key images"),
    DocumentKind.REJECTION_NOTE: (9105, "Phoi AI lung nodules: withdrawn"),
}


class DicomEncoder:
    """Encodes a case as DICOM files.

    The bytes follow from the case, the source instances and the UIDs alone.
    """

    def __init__(
        self,
        root: Path,
        uids: UidSource,
        phoi_version: str,
        local_time: tzinfo = INDOCHINA_TIME,
    ) -> None:
        """``root`` is the instance store's; ``local_time`` is for headers that name no zone."""
        self._root = root
        self._uids = uids
        self._phoi_version = phoi_version
        self._local_time = local_time

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        """In the order in which they must arrive.

        A rejection note comes first: what follows it replaces what it rejects. SEG comes before
        the SR that refers to it.

        Raises:
            EdgeError: a source instance cannot be read any more.
        """
        # What a source header says is copied, not judged: pydicom would quote it in warnings.
        with disable_value_validation():
            return self._encode(case)

    def _encode(self, case: ReportedCase) -> Sequence[Document]:
        header = representative_header(self._root, case)
        stamp = Stamp(
            header=header,
            study=case.study,
            model=case.result.identity.model,
            phoi_version=self._phoi_version,
            at=reported_at(case).astimezone(time_zone(header, self._local_time)),
            lossy=_lossy(case, header),
        )
        nodules = reported_nodules(case)
        references = self._references(case, nodules)
        slices = _key_slices(case, nodules)
        images = {tracking_uid: references[z] for tracking_uid, z in slices.items()}
        segmentation = self._segmentation(case, nodules, references, stamp)
        report = make_structured_report(
            case,
            Evidence(images, segmentation, image_reference(header)),
            self._new_instance(DocumentKind.STRUCTURED_REPORT),
            stamp,
        )
        capture = make_secondary_capture(
            draw_summary(case, self._phoi_version, stamp.at, stamp.remarks),
            [references[z] for z in sorted(set(slices.values()))],
            self._new_instance(DocumentKind.SECONDARY_CAPTURE),
            stamp,
        )
        made = (
            (DocumentKind.SEGMENTATION, segmentation),
            (DocumentKind.STRUCTURED_REPORT, report),
            (DocumentKind.SECONDARY_CAPTURE, capture),
            (DocumentKind.KEY_OBJECTS, self._key_images(case, list(images.values()), stamp)),
        )
        objects = [_document(kind, dataset) for kind, dataset in made if dataset is not None]
        return [*self._rejection_notes(case, stamp), *objects]

    def _rejection_notes(self, case: ReportedCase, stamp: Stamp) -> Iterator[Document]:
        """One for each archive, over what that one holds."""
        for archive, held in (case.held or {}).items():
            instance = self._new_instance(DocumentKind.REJECTION_NOTE)
            note = make_rejection_note(case, held, instance, stamp)
            if note is not None:
                yield replace(_document(DocumentKind.REJECTION_NOTE, note), only_to=archive)

    def _key_images(
        self, case: ReportedCase, images: Sequence[Dataset], stamp: Stamp
    ) -> Dataset | None:
        if not images:
            return None
        return make_key_images(case, images, self._new_instance(DocumentKind.KEY_OBJECTS), stamp)

    def _segmentation(
        self,
        case: ReportedCase,
        nodules: Sequence[ReportedNodule],
        references: dict[int, Dataset],
        stamp: Stamp,
    ) -> Dataset | None:
        if not segmented(nodules):
            return None
        if case.volume is None:
            raise EdgeError("nodules have voxels and the volume is not given: a bug")
        instance = self._new_instance(DocumentKind.SEGMENTATION)
        made = make_segmentation(nodules, case.volume.geometry, references, instance, stamp)
        if case.result.completeness is Completeness.UNCONFIRMED:
            made.ContentDescription = _UNCONFIRMED
        return made

    def _new_instance(self, kind: DocumentKind) -> NewInstance:
        number, description = _SERIES[kind]
        return NewInstance(self._uids.dicom_uid(), number, description)

    def _references(
        self, case: ReportedCase, nodules: Sequence[ReportedNodule]
    ) -> dict[int, Dataset]:
        """What names and places each slice that any document refers to, by slice index."""
        if case.choice is None or case.volume is None:
            return {}
        wanted = {*slices_with_nodules(nodules), *_key_slices(case, nodules).values()}
        slices = {z: case.choice.slices[z] for z in sorted(wanted)}
        instances = {one.instance.path: one.instance for one in slices.values()}
        frames = {
            path: single_frames(read_header(self._root, one)) for path, one in instances.items()
        }
        return {
            z: image_reference(frames[one.instance.path][(one.frame or 1) - 1], one.frame)
            for z, one in slices.items()
        }


def _lossy(case: ReportedCase, header: Dataset) -> LossyCompression | None:
    instances = case.choice.instances if case.choice else case.instances
    return lossy_compression(header, instances[0].size)


def _key_slices(case: ReportedCase, nodules: Sequence[ReportedNodule]) -> dict[str, int]:
    """The slice on which each nodule is seen best, by tracking UID."""
    if case.volume is None:
        return {}
    found = ((n.tracking_uid, key_slice(n, case.volume.geometry)) for n in nodules)
    return {tracking_uid: z for tracking_uid, z in found if z is not None}


def _document(kind: DocumentKind, dataset: Dataset) -> Document:
    return Document(kind, str(dataset.SOPInstanceUID), to_bytes(dataset))
