"""DICOM Segmentation (PS3.3 A.51): the voxels of every nodule on the slices of the series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from phoi_models.findings import NoduleMask
from phoi_models.geometry import Geometry
from phoi_models.identity import ModelIdentity
from phoi_models.reading.slice_order import LARGEST_OFFSET_MM
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from phoi_edge_node.dicom import codes
from phoi_edge_node.dicom.source import frame_number
from phoi_edge_node.dicom.stamp import NewInstance, Stamp
from phoi_edge_node.dicom.uids import derived_uid
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.reported import ReportedNodule
from phoi_edge_node.result import Nodule
from phoi_edge_node.terms import LUNG, MANUFACTURER

# Of every nodule, as on the summary; a viewer that lets its user choose overrides it.
_AMBER = CIELabColor.from_rgb(255, 200, 0)


def segmented(nodules: Sequence[ReportedNodule]) -> tuple[tuple[ReportedNodule, Nodule], ...]:
    """The nodules that have voxels, with what the model found: segment n is item n - 1."""
    return tuple((n, n.nodule) for n in nodules if n.nodule)


def slices_with_nodules(nodules: Sequence[ReportedNodule]) -> tuple[int, ...]:
    """Indices of the slices of the volume that any nodule's mask touches, ascending."""
    return tuple(
        sorted({z for _, found in segmented(nodules) for z in _slices_of(found.finding.mask)})
    )


def make_segmentation(
    nodules: Sequence[ReportedNodule],
    geometry: Geometry,
    references: Mapping[int, Dataset],
    instance: NewInstance,
    stamp: Stamp,
) -> Dataset:
    """One binary segment per nodule.

    Args:
        nodules: at least one has a mask, on the grid of ``geometry``.
        geometry: of the analysed volume, axes (z, y, x) = (slice, row, column), LPS, mm.
        references: by slice index, what names and places the source image of every slice of
            ``slices_with_nodules``.

    Raises:
        EdgeError: a source image does not lie where its slice of the volume does.
    """
    slices = slices_with_nodules(nodules)
    images = [references[z] for z in slices]
    for z, image in zip(slices, images, strict=True):
        _check_place(geometry, z, image)
        if not image.get("SliceThickness"):  # Type 2 in CT, Type 1 in a segmentation
            image.SliceThickness = f"{geometry.spacing_mm[0]:.6g}"
    masks = [found.finding.mask for _, found in segmented(nodules)]
    dataset = Segmentation(
        source_images=[_as_image_of_its_own(image) for image in images],
        pixel_array=_pixels(masks, slices, geometry.shape[1:]),
        segmentation_type="BINARY",
        segment_descriptions=_descriptions(nodules, stamp.model),
        series_instance_uid=instance.series_instance_uid,
        series_number=instance.series_number,
        sop_instance_uid=instance.sop_instance_uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=stamp.model.name,
        software_versions=stamp.model.version,
        device_serial_number=stamp.model.bundle_hash,
        content_label="LUNG_NODULES",
        content_description="Lung nodules found by AI",
    )
    stamp.put_on(dataset, instance)
    _fix_dimensions(dataset)
    _name_the_segment_in_each_frame(dataset)
    _refer_to_frames(dataset, images)
    if stamp.lossy:
        stamp.lossy.put_on(dataset)
    return dataset


def _slices_of(mask: NoduleMask) -> range:
    return range(mask.offset[0], mask.offset[0] + mask.voxels.shape[0])


def _check_place(geometry: Geometry, z: int, image: Dataset) -> None:
    """A side must never be exchanged: the first and the last voxel lie where the image says."""
    rows, columns = geometry.shape[1] - 1, geometry.shape[2] - 1
    along_row, along_column = np.reshape(np.asarray(image.ImageOrientationPatient, float), (2, 3))
    row_mm, column_mm = (float(mm) for mm in image.PixelSpacing)
    first = np.asarray(image.ImagePositionPatient, float)
    last = first + along_row * columns * column_mm + along_column * rows * row_mm
    expected = geometry.index_to_lps([(z, 0, 0), (z, rows, columns)])
    same_grid = (image.Rows, image.Columns) == geometry.shape[1:]
    if not same_grid or not np.allclose([first, last], expected, atol=LARGEST_OFFSET_MM):
        raise EdgeError(f"slice {z} of the volume does not lie where its image does: a bug")


def _pixels(
    masks: Sequence[NoduleMask], slices: Sequence[int], plane: tuple[int, int]
) -> NDArray[np.uint8]:
    """Label map (slice, row, column); one more axis (segment) only where masks overlap.

    A label map takes a fraction of the memory.
    """
    frame_of = {z: frame for frame, z in enumerate(slices)}
    labels = np.zeros((len(slices), *plane), dtype=np.uint8)
    overlap = len(masks) > np.iinfo(np.uint8).max
    for number, mask in enumerate(masks, start=1):
        region = _region(labels, mask, frame_of)
        overlap = overlap or bool(region[mask.voxels].any())
        region[mask.voxels] = min(number, np.iinfo(np.uint8).max)
    if not overlap:
        return labels
    stack = np.zeros((len(slices), *plane, len(masks)), dtype=np.uint8)
    for number, mask in enumerate(masks):
        _region(stack[..., number], mask, frame_of)[mask.voxels] = 1
    return stack


def _region(
    pixels: NDArray[np.uint8], mask: NoduleMask, frame_of: Mapping[int, int]
) -> NDArray[np.uint8]:
    """View of the box of ``mask`` in pixels (slice, row, column): its slices are neighbours."""
    first = frame_of[mask.offset[0]]
    depth, height, width = mask.voxels.shape
    _, row, column = mask.offset
    return pixels[first : first + depth, row : row + height, column : column + width]


def _descriptions(
    nodules: Sequence[ReportedNodule], model: ModelIdentity
) -> list[SegmentDescription]:
    algorithm = AlgorithmIdentificationSequence(
        name=model.name, family=codes.ARTIFICIAL_INTELLIGENCE, version=model.version
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=nodule.tracking_id,
            segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
            segmented_property_type=codes.NODULE,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=nodule.tracking_uid,
            tracking_id=nodule.tracking_id,
            anatomic_regions=[codes.coded(LUNG)],
            display_color=_AMBER,
        )
        for number, (nodule, _) in enumerate(segmented(nodules), start=1)
    ]


def _fix_dimensions(dataset: Dataset) -> None:
    """Derive the one UID that highdicom draws at random, so that bytes can be compared."""
    uid = derived_uid(dataset.SOPInstanceUID, "dimensions")
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid
    for item in dataset.DimensionIndexSequence:
        item.DimensionOrganizationUID = uid


def _name_the_segment_in_each_frame(dataset: Dataset) -> None:
    """Where there is one segment, highdicom names it once for all frames. Viewers look in each."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
        del shared.SegmentIdentificationSequence


def _as_image_of_its_own(image: Dataset) -> Dataset:
    """A frame as if it were an instance: highdicom takes all frames of an instance or none."""
    if frame_number(image) is None:
        return image
    alone = deepcopy(image)
    alone.SOPClassUID = CTImageStorage
    return alone


def _refer_to_frames(dataset: Dataset, images: Sequence[Dataset]) -> None:
    """Where the source is multi-frame, name each frame of it, and its instance once."""
    sources = {_position(image): image for image in images}
    if any(frame_number(image) is None for image in images):
        return
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = sources[_position(group.PlanePositionSequence[0])]
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                source.ReferencedSOPClassUID = image.SOPClassUID
                source.ReferencedFrameNumber = frame_number(image)
    classes = {image.SOPInstanceUID: image.SOPClassUID for image in images}
    for series in dataset.ReferencedSeriesSequence:
        once = {item.ReferencedSOPInstanceUID: item for item in series.ReferencedInstanceSequence}
        series.ReferencedInstanceSequence = list(once.values())
        for uid, item in once.items():
            item.ReferencedSOPClassUID = classes[uid]


def _position(image: Dataset) -> tuple[float, ...]:
    return tuple(round(float(mm), 3) for mm in image.ImagePositionPatient)
