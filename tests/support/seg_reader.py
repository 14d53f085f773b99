"""Reads DICOM Segmentation objects by hand, from the standard alone, to check their makers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset


@dataclass(frozen=True)
class ReadSegment:
    """One segment, frame by frame.

    Attributes:
        points_lps_mm: centres of its voxels, (n, 3), LPS, mm.
        sources: SOP Instance UID of the source image of each voxel's frame.
        rows_columns: (n, 2) place of each voxel on its source image.
        pixel_area_mm2: area of one pixel.
    """

    label: str
    tracking_uid: str
    points_lps_mm: NDArray[np.float64]
    sources: tuple[str, ...]
    rows_columns: NDArray[np.int64]
    pixel_area_mm2: float


def read_segments(dataset: Dataset) -> dict[int, ReadSegment]:
    """The segments of a binary segmentation, by their number (PS3.3 C.8.20.2, C.7.6.16)."""
    assert dataset.SegmentationType == "BINARY"
    rows, columns, count = dataset.Rows, dataset.Columns, int(dataset.NumberOfFrames)
    # Pixels are one bit each, the first in the least significant bit, frames not padded.
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: count * rows * columns].reshape(count, rows, columns)
    groups = dataset.PerFrameFunctionalGroupsSequence
    return {
        int(segment.SegmentNumber): _read(dataset, segment, frames, list(groups))
        for segment in dataset.SegmentSequence
    }


def _read(
    dataset: Dataset, segment: Dataset, frames: NDArray[np.uint8], groups: list[Dataset]
) -> ReadSegment:
    points, sources, places = [], [], []
    for frame, group in zip(frames, groups, strict=True):
        identification = group.SegmentIdentificationSequence[0]
        if identification.ReferencedSegmentNumber != segment.SegmentNumber:
            continue
        place = np.argwhere(frame)
        points.append(_points(dataset, group, place))
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        sources += [str(source)] * len(place)
        places.append(place)
    row_mm, column_mm = _shared(dataset).PixelMeasuresSequence[0].PixelSpacing
    return ReadSegment(
        label=segment.SegmentLabel,
        tracking_uid=segment.TrackingUID,
        points_lps_mm=np.concatenate(points),
        sources=tuple(sources),
        rows_columns=np.concatenate(places),
        pixel_area_mm2=float(row_mm) * float(column_mm),
    )


def _points(dataset: Dataset, group: Dataset, place: NDArray[np.int64]) -> NDArray[np.float64]:
    """Equation C.7.6.2.1-1."""
    shared = _shared(dataset)
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    right, down = np.reshape(np.asarray(orientation, float), (2, 3))
    row_mm, column_mm = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    origin = np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, float)
    points: NDArray[np.float64] = (
        origin + place[:, 1:] * column_mm * right + place[:, :1] * row_mm * down
    )
    return points


def _shared(dataset: Dataset) -> Dataset:
    shared: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return shared
