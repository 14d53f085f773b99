"""The measurement groups of a report: one nodule each, by the model or by a person.

TID 1411 for what the model found and measured, with its segment; TID 1501 for its axes as lines,
because TID 1411 allows no coordinates, and for what a person measured or added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from highdicom.spatial import ReferenceToImageTransformer
from highdicom.sr import (
    AlgorithmIdentification,
    ContentSequence,
    CoordinatesForMeasurement,
    CoordinatesForMeasurement3D,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    Scoord3DContentItem,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from phoi_models.findings import Finding, Segment
from phoi_models.geometry import Triple
from phoi_models.identity import ModelIdentity
from pydicom import Dataset

from phoi_edge_node import terms
from phoi_edge_node.dicom import codes
from phoi_edge_node.dicom.observers import person
from phoi_edge_node.dicom.segmentation import segmented
from phoi_edge_node.dicom.source import frame_number
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import ReportedCase
from phoi_edge_node.reported import ReportedNodule, reported_nodules
from phoi_edge_node.result import Nodule, SignedReview, Verdict

_IN_PLANE_MM = 0.1


@dataclass(frozen=True)
class Evidence:
    """The objects that the report refers to.

    Attributes:
        images: by tracking UID, what names the image on which a nodule is seen best.
        segmentation: None where no nodule has voxels.
        representative: names the image that stands for the series where nothing else is referred
            to; its Frame of Reference is that of all coordinates.
    """

    images: dict[str, Dataset]
    segmentation: Dataset | None
    representative: Dataset

    @property
    def instances(self) -> list[Dataset]:
        """All of them, images first."""
        images = list(self.images.values()) or [self.representative]
        return [*images, *([self.segmentation] if self.segmentation else [])]

    def segment(self, number: int) -> ReferencedSegment:
        """A reference to one segment, counted from 1."""
        if self.segmentation is None:
            raise EdgeError("a nodule has voxels and no segmentation was made: a bug")
        return ReferencedSegment(
            sop_class_uid=self.segmentation.SOPClassUID,
            sop_instance_uid=self.segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=SourceSeriesForSegmentation(self.representative.SeriesInstanceUID),
        )


def measurement_groups(
    case: ReportedCase, evidence: Evidence, model: ModelIdentity
) -> Iterator[ContentSequence]:
    """Those of every nodule that the report stands for."""
    nodules = reported_nodules(case)
    frame_of_reference = evidence.representative.FrameOfReferenceUID
    for number, (nodule, found) in enumerate(segmented(nodules), start=1):
        yield _volumetric_group(nodule, found, evidence.segment(number), model)
        image = evidence.images.get(nodule.tracking_uid)
        if nodule.measured_by_model and image:
            yield _axes_group(nodule, found.finding, image, frame_of_reference, model)
    for nodule in nodules:
        if nodule.review and not nodule.measured_by_model:
            yield _reviewer_group(nodule, nodule.review, frame_of_reference)


def _volumetric_group(
    nodule: ReportedNodule, found: Nodule, segment: ReferencedSegment, model: ModelIdentity
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    measurements = [_certainty(found.finding)]
    evaluations = [_attenuation(found.finding), *_verdict(nodule)]
    if nodule.measured_by_model:
        measurements = [*_measurements(found.finding), *measurements]
        evaluations = [*_size_classes(nodule), *evaluations]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(nodule),
        referenced_segment=segment,
        finding_type=codes.NODULE,
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_sites=[_site(found.finding)],
        algorithm_id=_algorithm(model),
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )


def _axes_group(
    nodule: ReportedNodule,
    finding: Finding,
    image: Dataset,
    frame_of_reference: str,
    model: ModelIdentity,
) -> MeasurementsAndQualitativeEvaluations:
    """The long and the short axis as lines on the image where they lie on it, and in space."""
    axes = (
        (terms.LONG_AXIS, finding.long_axis_mm, finding.long_axis_lps_mm),
        (terms.SHORT_AXIS, finding.short_axis_mm, finding.short_axis_lps_mm),
    )
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(nodule),
        finding_type=codes.NODULE,
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_sites=[_site(finding)],
        algorithm_id=_algorithm(model),
        measurements=[
            Measurement(
                codes.coded(term),
                round(length, 1),
                codes.MILLIMETER,
                # The image first: viewers that draw on slices (OHIF's) take the first they find.
                referenced_coordinates=[
                    *_line_on_image(ends, image),
                    _line(ends, frame_of_reference),
                ],
            )
            for term, length, ends in axes
        ],
        source_images=[_source_image(image)],
    )


def _reviewer_group(
    nodule: ReportedNodule, review: SignedReview, frame_of_reference: str
) -> MeasurementsAndQualitativeEvaluations:
    """What a person measured or added, with that person as observer (TID 1003)."""
    diameter = nodule.mean_diameter_mm
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(nodule),
        finding_type=codes.NODULE,
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_sites=[_site(nodule.nodule.finding if nodule.nodule else None)],
        measurements=[_mean_diameter(diameter)] if diameter is not None else None,
        qualitative_evaluations=[*_size_classes(nodule), *_verdict(nodule)],
    )
    if nodule.verdict is Verdict.MISSED and nodule.center_lps_mm:
        group[0].ContentSequence.append(_point(nodule.center_lps_mm, frame_of_reference))
    tracking, rest = group[0].ContentSequence[:2], group[0].ContentSequence[2:]
    group[0].ContentSequence = ContentSequence([*tracking, *person(review), *rest])
    return group


def _tracking(nodule: ReportedNodule) -> TrackingIdentifier:
    return TrackingIdentifier(uid=nodule.tracking_uid, identifier=nodule.tracking_id)


def _algorithm(model: ModelIdentity) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=model.name,
        version=model.version,
        parameters=[f"operating point: {model.operating_point}", f"bundle: {model.bundle_hash}"],
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=terms.MANUFACTURER,
    )


def _site(finding: Finding | None) -> FindingSite:
    """The lobe where it is known, else the lung; always with its side where that is known."""
    if finding is None:
        return FindingSite(codes.coded(terms.LUNG))
    place = terms.LOBES[finding.lobe] if finding.lobe else terms.LUNG
    return FindingSite(codes.coded(place), laterality=codes.coded(terms.SIDES[finding.side]))


def _measurements(finding: Finding) -> list[Measurement]:
    """What the model measured, but for the certainty."""
    measurements = [
        _in_mm(terms.LONG_AXIS, finding.long_axis_mm),
        _in_mm(terms.SHORT_AXIS, finding.short_axis_mm),
        _mean_diameter(finding.mean_diameter_mm),
        Measurement(
            codes.coded(terms.VOLUME),
            round(finding.volume_mm3, 1),
            codes.CUBIC_MILLIMETER,
            method=codes.SUM_OF_SEGMENTED_VOXELS,
        ),
        Measurement(
            codes.ATTENUATION_COEFFICIENT,
            round(finding.mean_hu, 1),
            codes.HOUNSFIELD,
            derivation=codes.MEAN,
        ),
    ]
    if finding.solid_diameter_mm is not None:
        measurements.append(_in_mm(terms.SOLID_DIAMETER, finding.solid_diameter_mm))
    return measurements


def _in_mm(term: terms.Term, value: float) -> Measurement:
    return Measurement(codes.coded(term), round(value, 1), codes.MILLIMETER)


def _mean_diameter(value: float) -> Measurement:
    return Measurement(
        codes.coded(terms.MEAN_DIAMETER),
        round(value, 1),
        codes.MILLIMETER,
        derivation=codes.MEAN,
    )


def _certainty(finding: Finding) -> Measurement:
    """The probability that the mark is a nodule, in percent. Never that of cancer."""
    return Measurement(
        codes.coded(terms.CERTAINTY), round(100 * finding.probability, 1), codes.PERCENT
    )


def _attenuation(finding: Finding) -> QualitativeEvaluation:
    value = codes.coded(terms.ATTENUATIONS[finding.attenuation])
    return QualitativeEvaluation(codes.coded(terms.ATTENUATION_CLASS), value)


def _size_classes(nodule: ReportedNodule) -> list[QualitativeEvaluation]:
    """The provisional classes of the size that stands."""
    size = nodule.size_class
    if size is None:
        return []
    classes = [
        (terms.LUNG_RADS, codes.lung_rads_category(size.lung_rads)),
        (terms.SIZE_CLASS_BASIS, codes.size_class_basis(size.basis)),
    ]
    if size.fleischner:
        classes.append((terms.FLEISCHNER, codes.fleischner_class(size.fleischner)))
    return [QualitativeEvaluation(codes.coded(term), value) for term, value in classes]


def _verdict(nodule: ReportedNodule) -> list[QualitativeEvaluation]:
    if nodule.verdict is None:
        return []
    value = codes.coded(terms.VERDICTS[nodule.verdict])
    return [QualitativeEvaluation(codes.coded(terms.REVIEW_VERDICT), value)]


def _source_image(image: Dataset) -> SourceImageForMeasurementGroup:
    frame = frame_number(image)
    return SourceImageForMeasurementGroup(
        image.SOPClassUID, image.SOPInstanceUID, None if frame is None else [frame]
    )


def _line_on_image(ends: Segment, image: Dataset) -> list[CoordinatesForMeasurement]:
    """The line in (column, row) of the image (PS3.3 C.18.6); none where it leaves its plane."""
    to_image = ReferenceToImageTransformer(
        image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    )
    points = to_image(np.asarray(ends, float))  # column, row, mm off the plane
    if np.abs(points[:, 2]).max() > _IN_PLANE_MM:
        return []
    frame = frame_number(image)
    source = SourceImageForRegion(
        image.SOPClassUID, image.SOPInstanceUID, None if frame is None else [frame]
    )
    return [CoordinatesForMeasurement("POLYLINE", points[:, :2], source)]


def _line(ends: Segment, frame_of_reference: str) -> CoordinatesForMeasurement3D:
    return CoordinatesForMeasurement3D("POLYLINE", np.asarray(ends, float), frame_of_reference)


def _point(center_lps_mm: Triple, frame_of_reference: str) -> Scoord3DContentItem:
    return Scoord3DContentItem(
        codes.CENTER,
        "POINT",
        np.asarray([center_lps_mm], float),
        frame_of_reference,
        relationship_type="CONTAINS",
    )
