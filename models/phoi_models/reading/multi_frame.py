"""The frames of an enhanced multi-frame CT, each described as the single slice that it is.

What a classic CT image says at its top level, an enhanced one says in functional groups, for each
frame or for all of them together (PS3.3 C.7.6.16, A.38.1, A.70.1). Everything else here reads the
classic form only.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from phoi_models.errors import NotAnalysable, NotAnalysableReason

Element = DataElement | RawDataElement

MULTI_FRAME = frozenset({EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
"""SOP classes whose instances hold many slices."""

# By functional group: what it says, under the keyword by which a classic image says it.
_GROUPS: Mapping[str, Mapping[str, str]] = {
    "CTImageFrameTypeSequence": {
        "FrameType": "ImageType",
        "VolumeBasedCalculationTechnique": "VolumeBasedCalculationTechnique",
    },
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "FrameContentSequence": {
        "FrameAcquisitionNumber": "AcquisitionNumber",
        "StackID": "StackID",
        "TemporalPositionIndex": "TemporalPositionIndex",
    },
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PixelValueTransformationSequence": {
        "RescaleIntercept": "RescaleIntercept",
        "RescaleSlope": "RescaleSlope",
        "RescaleType": "RescaleType",
    },
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
}
# What holds for all frames of an instance stands at its top level in both forms.
_COMMON = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "ImageType",
    "VolumeBasedCalculationTechnique",
    "Rows",
    "Columns",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)

KEYWORDS = (
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""What ``single_frames`` looks at beside the keywords of a classic image."""


def single_frames(dataset: Dataset) -> tuple[Dataset, ...]:
    """The header as one of a classic image for each frame; a classic one as it is.

    Frame n (PS3.3 C.7.6.6, counted from 1) is item n - 1.

    Raises:
        NotAnalysable: the header describes another number of frames than it says there are.
    """
    count = _number_of_frames(dataset)
    if dataset.get("SOPClassUID") not in MULTI_FRAME:
        if count != 1:
            raise _inconsistent("an image of one slice claims to have several frames")
        return (dataset,)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != count:
        raise _inconsistent(f"{len(per_frame)} frames are described, {count} are said to be there")
    shared = _said_by(next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset()))
    common = {
        keyword: element
        for keyword in _COMMON
        if (element := dataset.get_item(Tag(keyword))) is not None
    }
    return tuple(_single_frame(common, {**shared, **_said_by(groups)}) for groups in per_frame)


def _number_of_frames(dataset: Dataset) -> int:
    try:
        return int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        raise _inconsistent("the number of frames cannot be read") from None


def _said_by(groups: Dataset) -> Mapping[str, Element]:
    """Elements by classic keyword, of one item of functional groups."""
    return {
        classic: element
        for name, keywords in _GROUPS.items()
        for group in (groups.get(name) or [])[:1]
        for keyword, classic in keywords.items()
        if (element := group.get_item(Tag(keyword))) is not None
    }


def _single_frame(common: Mapping[str, Element], said: Mapping[str, Element]) -> Dataset:
    frame = Dataset()
    for keyword, element in {**common, **said}.items():
        if element.tag == Tag(keyword):
            frame[keyword] = element
        else:
            setattr(frame, keyword, Dataset({element.tag: element})[element.tag].value)
    return frame


def _inconsistent(detail: str) -> NotAnalysable:
    return NotAnalysable(NotAnalysableReason.INCONSISTENT_GEOMETRY, detail)
