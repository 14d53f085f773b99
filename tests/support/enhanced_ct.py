"""A volume as enhanced multi-frame CT: by hand, from PS3.3 A.38.1, or by highdicom's converter."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from phoi_models.volume import Volume
from pydicom import Dataset, dcmread
from pydicom.uid import UID, EnhancedCTImageStorage, generate_uid

from support.dicom_phantom import SeriesOptions, make_series

# Where each of them stands in a classic image, and in which functional group of an enhanced one.
_GROUPS = (
    ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
)
_PER_SLICE = (
    *(keyword for _, keywords in _GROUPS for keyword in keywords),
    *("InstanceNumber", "AcquisitionNumber", "GantryDetectorTilt", "ConvolutionKernel"),
)


@dataclass(frozen=True)
class FrameOptions:
    """How frames are written.

    Attributes:
        shared: groups that are the same for all frames are written once.
        shuffled: frames follow one another in no order.
        localizers: frames of type LOCALIZER that stand before the others, in a stack of their own.
        phases: each place is shown so often, in stacks of their own.
    """

    shared: bool = True
    shuffled: bool = True
    localizers: int = 0
    phases: int = 1


def write_enhanced(
    path: Path,
    volume: Volume,
    options: SeriesOptions | None = None,
    frames: FrameOptions | None = None,
) -> Dataset:
    """Write one Enhanced CT Image of a whole volume; phase n is 10 HU higher than phase n - 1."""
    options, frames = options or SeriesOptions(), frames or FrameOptions()
    slices = list(make_series(volume, options))
    order = list(np.random.default_rng(1).permutation(len(slices)) if frames.shuffled else ())
    slices = [slices[k] for k in order] or slices
    shown = [(image, "0", 0) for image in slices[: frames.localizers]]
    shown += [(image, str(phase), phase) for phase in range(frames.phases) for image in slices]
    dataset = deepcopy(slices[0])
    for keyword in _PER_SLICE:
        delattr(dataset, keyword)
    _name(dataset, options)
    dataset.NumberOfFrames = len(shown)
    dataset.SharedFunctionalGroupsSequence = [_groups(slices[0], shared=frames.shared)]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame(image, stack, number, localizer=number <= frames.localizers, options=frames)
        for number, (image, stack, _) in enumerate(shown, start=1)
    ]
    dataset.PixelData = b"".join(
        (np.frombuffer(image.PixelData, np.uint16) + 10 * phase).tobytes()
        for image, _, phase in shown
    )
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def write_legacy_converted(path: Path, sources: Sequence[Path]) -> Dataset:
    """Write one Legacy Converted Enhanced CT Image of a classic series, by highdicom."""
    images = [dcmread(source) for source in sources]
    for image in images:
        image.StudyID, image.SeriesNumber = "1", 1
    converted: Dataset = LegacyConvertedEnhancedCTImage(
        images,
        series_instance_uid=generate_uid(entropy_srcs=[images[0].SeriesInstanceUID]),
        series_number=2,
        sop_instance_uid=generate_uid(entropy_srcs=[images[0].SOPInstanceUID]),
        instance_number=1,
    )
    converted.save_as(path)
    return converted


def _name(dataset: Dataset, options: SeriesOptions) -> None:
    uid = UID(options.uid("enhanced", options.series))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]


def _groups(image: Dataset, *, shared: bool) -> Dataset:
    """What is the same for all frames where it is ``shared``; else what this frame says."""
    groups = Dataset()
    for name, keywords in _GROUPS if shared else ():
        if name != "PlanePositionSequence":
            setattr(groups, name, [_item(image, keywords)])
    kernel = Dataset()
    kernel.ConvolutionKernel = image.ConvolutionKernel
    groups.CTReconstructionSequence = [kernel]
    return groups


def _frame(
    image: Dataset, stack: str, number: int, *, localizer: bool, options: FrameOptions
) -> Dataset:
    groups = Dataset()
    for name, keywords in _GROUPS:
        if not options.shared or name == "PlanePositionSequence":
            setattr(groups, name, [_item(image, keywords)])
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if localizer else "VOLUME", "NONE"]
    groups.CTImageFrameTypeSequence = [kind]
    content = Dataset()
    content.StackID, content.InStackPositionNumber = stack, number
    content.DimensionIndexValues = [1, number]
    groups.FrameContentSequence = [content]
    return groups


def _item(image: Dataset, keywords: Sequence[str]) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = image[keyword]
    return item
