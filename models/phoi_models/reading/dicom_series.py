"""A CT series in DICOM files, one slice a file, into a ``Volume``.

Read are CT Image Storage objects (PS3.3 A.3) in every transfer syntax that pydicom's decoders know.
Enhanced multi-frame CT is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import as_triple
from phoi_models.reading.slice_order import SlicePlace, order_slices
from phoi_models.volume import Volume

AIR_HU = -1024
"""Floor of the volumes, and what fills pixels outside the field of view: no tissue is lighter."""

_MAXIMUM_HU = int(np.iinfo(np.int16).max)
_ENHANCED = frozenset({EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
_PLAUSIBLE_TISSUE_HU = (-1000.0, 3000.0)
_HOUNSFIELD_TYPES = frozenset({"HU", "HU_MOD", ""})

PLACE_KEYWORDS = (
    "SOPClassUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SliceThickness",
    "FrameOfReferenceUID",
)
"""What ``slice_place`` looks at, for reading only that much of a header."""


def slice_place(dataset: Dataset) -> SlicePlace:
    """Where a slice lies, from its header.

    Raises:
        NotAnalysable: no CT image, or one without usable position, orientation or pixel spacing.
    """
    sop_class = dataset.get("SOPClassUID")
    if sop_class in _ENHANCED:
        raise NotAnalysable(
            NotAnalysableReason.NO_SUITABLE_SERIES, "enhanced multi-frame CT is not read"
        )
    if sop_class != CTImageStorage:
        raise NotAnalysable(NotAnalysableReason.NO_CT_IMAGES, "an object that is no CT image")
    try:
        orientation = [float(v) for v in dataset.ImageOrientationPatient]
        row_mm, column_mm = (float(v) for v in dataset.PixelSpacing)
        return SlicePlace(
            position_lps_mm=as_triple([float(v) for v in dataset.ImagePositionPatient]),
            along_row_lps=as_triple(orientation[:3]),
            along_column_lps=as_triple(orientation[3:]),
            pixel_spacing_mm=(row_mm, column_mm),
            shape=(int(dataset.Rows), int(dataset.Columns)),
            thickness_mm=float(dataset.get("SliceThickness") or 0.0),
            frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        )
    except (AttributeError, TypeError, ValueError):
        raise NotAnalysable(
            NotAnalysableReason.INCONSISTENT_GEOMETRY,
            "a slice's header lacks its position, orientation or pixel spacing",
        ) from None


def read_place(path: Path) -> SlicePlace:
    """Where the slice in a file lies; no pixels are read.

    Raises:
        NotAnalysable: UNREADABLE_PIXELS, or see ``slice_place``.
    """
    return slice_place(_read(path, headers_only=True))


def read_volume(
    paths: Sequence[Path], on_slice: Callable[[int], None] = lambda _: None
) -> tuple[Volume, tuple[Path, ...]]:
    """Read a series.

    Args:
        paths: the files of one series, one slice each, in any order.
        on_slice: gets the number of slices decoded so far.

    Returns:
        The volume, HU, int16, and the paths in the order of its slice axis.

    Raises:
        NotAnalysable: a file that cannot be read or decoded, values that are no Hounsfield units,
            or a stack that is not regular.
    """
    stack = order_slices([read_place(path) for path in paths])
    ordered = tuple(paths[index] for index in stack.order)
    hu = np.empty(stack.geometry.shape, dtype=np.int16)
    for z, path in enumerate(ordered):
        hu[z] = _decode(_read(path), z + 1, len(paths))
        on_slice(z + 1)
    return Volume(hu, stack.geometry), ordered


def to_hounsfield(dataset: Dataset) -> NDArray[np.int16]:
    """One slice in HU: axes (row, column), int16, at least ``AIR_HU``.

    Pixels of the padding value (PS3.3 C.7.5.1.1.2), outside the field of view, become ``AIR_HU``.

    Raises:
        NotAnalysable: NOT_HOUNSFIELD, the header gives no linear way to HU.
        Exception: whatever the decoder raises for pixels that it cannot decode.
    """
    slope, intercept = _rescale(dataset)
    stored: NDArray[np.integer] = dataset.pixel_array
    if stored.ndim != 2:
        raise NotAnalysable(NotAnalysableReason.NOT_HOUNSFIELD, "colour or several frames")
    if slope == 1.0 and intercept == int(intercept):
        hu = stored.astype(np.int32)
        hu += int(intercept)
    else:
        hu = np.rint(stored * slope + intercept).astype(np.int32)
    np.clip(hu, AIR_HU, _MAXIMUM_HU, out=hu)
    padding = _padding(dataset, stored)
    if padding is not None and not _is_tissue(padding * slope + intercept):
        hu[stored == padding] = AIR_HU
    return hu.astype(np.int16)


def _read(path: Path, *, headers_only: bool = False) -> Dataset:
    try:
        if headers_only:
            return dcmread(path, stop_before_pixels=True, specific_tags=list(PLACE_KEYWORDS))
        return dcmread(path)
    except Exception as error:
        # A damaged file makes the parser raise nearly anything, with values of the header in it.
        raise NotAnalysable(
            NotAnalysableReason.UNREADABLE_PIXELS,
            f"a file of the series cannot be read ({type(error).__name__})",
        ) from None


def _decode(dataset: Dataset, number: int, count: int) -> NDArray[np.int16]:
    if "PixelData" not in dataset:
        raise NotAnalysable(
            NotAnalysableReason.UNREADABLE_PIXELS, f"slice {number} of {count} has no pixels"
        )
    try:
        return to_hounsfield(dataset)
    except NotAnalysable:
        raise
    except Exception as error:
        # Decoders are many and raise what they like; their texts may hold values of the header.
        raise NotAnalysable(
            NotAnalysableReason.UNREADABLE_PIXELS,
            f"the pixels of slice {number} of {count} cannot be decoded ({type(error).__name__})",
        ) from None


def _rescale(dataset: Dataset) -> tuple[float, float]:
    kind = str(dataset.get("RescaleType") or "").strip().upper()
    try:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    except (AttributeError, TypeError, ValueError):
        slope, intercept = 0.0, 0.0
    if kind not in _HOUNSFIELD_TYPES or not np.isfinite([slope, intercept]).all() or slope <= 0:
        raise NotAnalysable(
            NotAnalysableReason.NOT_HOUNSFIELD, "the header gives no rescale to Hounsfield units"
        )
    return slope, intercept


def _padding(dataset: Dataset, stored: NDArray[np.integer]) -> int | None:
    """The padding value as it appears among the stored values."""
    value = dataset.get("PixelPaddingValue")
    if value is None or isinstance(value, MultiValue | bytes):
        return None
    # Writers often take the wrong one of US and SS: 63536 for -2000. Same bits, other sign.
    bits = 8 * stored.dtype.itemsize
    unsigned = int(value) % (1 << bits)
    signed = stored.dtype.kind == "i" and unsigned >= 1 << (bits - 1)
    return unsigned - (1 << bits) if signed else unsigned


def _is_tissue(hu: float) -> bool:
    """A padding value inside the range of tissue is a wrong header: blanking would cut holes."""
    return _PLAUSIBLE_TISSUE_HU[0] < hu < _PLAUSIBLE_TISSUE_HU[1]


def is_dicom(path: Path) -> bool:
    """The file is in DICOM's file format (PS3.10): "DICM" after 128 bytes."""
    try:
        with path.open("rb") as file:
            file.seek(128, os.SEEK_SET)
            return file.read(4) == b"DICM"
    except OSError:
        return False
