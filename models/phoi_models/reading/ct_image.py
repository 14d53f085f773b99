"""The header of a CT file: which slices it holds, where they lie, how its pixels are stored.

No pixel is read here, and nothing that a header claims is believed to the point of allocating
memory for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import as_triple
from phoi_models.reading.multi_frame import KEYWORDS as MULTI_FRAME_KEYWORDS
from phoi_models.reading.multi_frame import MULTI_FRAME, single_frames
from phoi_models.reading.slice_order import SlicePlace

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

_KEYWORDS = (
    *PLACE_KEYWORDS,
    *MULTI_FRAME_KEYWORDS,
    "SOPInstanceUID",
    "ImageType",
    "VolumeBasedCalculationTechnique",
    "ConvolutionKernel",
    "AcquisitionNumber",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)
_SOP_CLASSES = frozenset({CTImageStorage, *MULTI_FRAME})
_PIXEL_DATA = {True: b"\x7f\xe0\x00\x10", False: b"\xe0\x7f\x10\x00"}  # big endian, little
_LARGEST_SIDE = 4096  # pixels; scanners reconstruct 512 to 2048
_NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})
_NOT_SLICES = frozenset({"LOCALIZER", "MIP", "MINIP", "PROJECTION IMAGE", "SCREEN SAVE"})
# Of Volume Based Calculation Technique (0008,9207); a flat MPR is a slice.
_NO_SLICE_TECHNIQUES = frozenset(
    {"MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"}
)
_EXPLICIT_VR = frozenset({b"OW", b"OB"})  # as a length these would be odd, which none may be
_FILE_META_LENGTH = 1024  # bytes in which a transfer syntax is looked for
_LARGEST_INFLATED = 1 << 30  # bytes: a volume of 2000 slices
_PIECE = 1 << 20
_HOUNSFIELD_TYPES = frozenset({"HU", "HU_MOD", ""})
_CELL_BITS = 16


@dataclass(frozen=True)
class Rescale:
    """Stored value to HU (PS3.3 C.11.1.1.2): ``slope * stored + intercept``.

    Raises:
        NotAnalysable: NOT_HOUNSFIELD, it is no such line.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if self.slope == 0 or not np.isfinite([self.slope, self.intercept]).all():
            raise _not_hounsfield("the header gives no rescale to Hounsfield units")


@dataclass(frozen=True)
class CtSlice:
    """What a header says of one slice.

    Attributes:
        frame: of its instance, counted from 1; None where the instance is one image.
        padding: 16-bit patterns, lowest and highest value, that stand for "outside the field of
            view" (PS3.3 C.7.5.1.1.2); None for none.
        image_type: upper case.
        stack: tells apart what may lie at the same places: acquisition, stack and time.
    """

    frame: int | None
    place: SlicePlace
    rescale: Rescale
    padding: tuple[int, int] | None
    image_type: tuple[str, ...]
    kernel: str
    stack: tuple[str, ...]


@dataclass(frozen=True)
class PixelLayout:
    """How the pixels of a file are stored; one sample each, in cells of 16 bits.

    Attributes:
        offset: where the first pixel lies in the file; None where pixels are encoded.
        little_endian: byte order of pixels that are not encoded.
    """

    rows: int
    columns: int
    frames: int
    bits_stored: int
    high_bit: int
    signed: bool
    offset: int | None
    little_endian: bool = True

    @property
    def frame_bytes(self) -> int:
        """Size of one frame that is not encoded."""
        return self.rows * self.columns * _CELL_BITS // 8


@dataclass(frozen=True)
class CtImage:
    """One CT file.

    Attributes:
        slices: by frame; None for a frame that is no slice, as a localizer.
    """

    path: Path
    sop_instance_uid: str
    transfer_syntax_uid: str
    slices: tuple[CtSlice | None, ...]
    layout: PixelLayout | None


def read_ct_image(path: Path) -> CtImage:
    """Read the header of a file.

    Raises:
        NotAnalysable: it is no CT image, cannot be read, has no Hounsfield units, or lacks
            position, orientation or pixel spacing.
    """
    try:
        with path.open("rb") as file:
            require_modest(file)
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
            return _parse(path, header, file)
    except NotAnalysable:
        raise
    except Exception as error:
        # A damaged file makes the parser raise nearly anything, with values of the header in it.
        raise NotAnalysable(
            NotAnalysableReason.UNREADABLE_PIXELS,
            f"a file cannot be read ({type(error).__name__})",
        ) from None


def require_modest(file: BinaryIO) -> None:
    """What is deflated must not inflate without bound: pydicom inflates all of it at once.

    Raises:
        NotAnalysable: UNREADABLE_PIXELS.
    """
    head = file.read(_FILE_META_LENGTH)
    if DeflatedExplicitVRLittleEndian.encode() in head:
        group_length = int.from_bytes(head[140:144], "little")  # PS3.10 7.1
        file.seek(144 + group_length)
        inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, b""
        while not inflater.eof and (rest := rest or file.read(_PIECE)):
            size += len(inflater.decompress(rest, _PIECE))
            rest = inflater.unconsumed_tail
            if size > _LARGEST_INFLATED:
                raise _unreadable(f"it inflates to more than {_LARGEST_INFLATED >> 20} MB")
    file.seek(0)


def slice_place(dataset: Dataset) -> SlicePlace:
    """Where a slice lies, from its header.

    Raises:
        NotAnalysable: no CT image, or one without usable position, orientation or pixel spacing.
    """
    if dataset.get("SOPClassUID") not in _SOP_CLASSES:
        raise NotAnalysable(NotAnalysableReason.NO_CT_IMAGES, "an object that is no CT image")
    try:
        orientation = _decimals(dataset, "ImageOrientationPatient")
        row_mm, column_mm = _decimals(dataset, "PixelSpacing")
        thickness_mm = _decimals(dataset, "SliceThickness")
        return SlicePlace(
            position_lps_mm=as_triple(_decimals(dataset, "ImagePositionPatient")),
            along_row_lps=as_triple(orientation[:3]),
            along_column_lps=as_triple(orientation[3:]),
            pixel_spacing_mm=(row_mm, column_mm),
            shape=(int(dataset.Rows), int(dataset.Columns)),
            thickness_mm=thickness_mm[0] if thickness_mm else 0.0,
            frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        )
    except (AttributeError, TypeError, ValueError):
        raise NotAnalysable(
            NotAnalysableReason.INCONSISTENT_GEOMETRY,
            "a slice's header lacks its position, orientation or pixel spacing",
        ) from None


def _parse(path: Path, header: Dataset, file: BinaryIO) -> CtImage:
    """``file`` stands where its header ends."""
    transfer_syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if header.get("SOPClassUID") in _SOP_CLASSES:
        _require_pixels(file, transfer_syntax)
    frames = single_frames(header)
    several = header.get("SOPClassUID") in MULTI_FRAME
    slices = tuple(
        _slice(frame, number if several else None) for number, frame in enumerate(frames, start=1)
    )
    return CtImage(
        path=path,
        sop_instance_uid=str(header.get("SOPInstanceUID", "")),
        transfer_syntax_uid=transfer_syntax,
        slices=slices,
        layout=_layout(header, len(frames), transfer_syntax, file) if any(slices) else None,
    )


def _require_pixels(file: BinaryIO, transfer_syntax: str) -> None:
    """A header that ends before any pixels was cut off, whatever it still says.

    Raises:
        NotAnalysable: UNREADABLE_PIXELS.
    """
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        return  # where the file stands says nothing of what is deflated in it
    at = file.tell()
    if file.read(4) != _PIXEL_DATA[transfer_syntax == ExplicitVRBigEndian]:
        raise _unreadable("it ends before its pixels")
    file.seek(at)


def _slice(header: Dataset, frame: int | None) -> CtSlice | None:
    image_type = tuple(value.strip().upper() for value in _texts(header, "ImageType"))
    technique = str(header.get("VolumeBasedCalculationTechnique") or "").strip().upper()
    if _NOT_SLICES & set(image_type) or technique in _NO_SLICE_TECHNIQUES:
        return None
    return CtSlice(
        frame=frame,
        place=slice_place(header),
        rescale=_rescale(header),
        padding=_padding(header),
        image_type=image_type,
        kernel=next(iter(_texts(header, "ConvolutionKernel")), ""),
        stack=tuple(
            str(header.get(keyword) or "")
            for keyword in ("StackID", "TemporalPositionIndex", "AcquisitionNumber")
        ),
    )


def _rescale(header: Dataset) -> Rescale:
    kind = str(header.get("RescaleType") or "").strip().upper()
    if kind not in _HOUNSFIELD_TYPES:
        raise _not_hounsfield("the pixels are no Hounsfield units by their Rescale Type")
    try:
        (slope,), (intercept,) = (
            _decimals(header, keyword) for keyword in ("RescaleSlope", "RescaleIntercept")
        )
        return Rescale(slope, intercept)
    except ValueError:
        raise _not_hounsfield("the header gives no rescale to Hounsfield units") from None


def _padding(header: Dataset) -> tuple[int, int] | None:
    """The padding values by their bits.

    Writers often take the wrong one of US and SS: 63536 for -2000. Same bits, other sign.
    """
    value = _cell(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = _cell(header, "PixelPaddingRangeLimit")
    bits = [value] if limit is None else [value, limit]
    signed = header.get("PixelRepresentation") == 1
    values = sorted(_signed(pattern) if signed else pattern for pattern in bits)
    return values[0], values[-1]


def _cell(header: Dataset, keyword: str) -> int | None:
    """The bits of an element of one US or SS value; None where it is anything else."""
    element = header.get_item(Tag(keyword))
    value = element.value if element is not None else None
    if isinstance(value, bytes) and len(value) == _CELL_BITS // 8:
        return int.from_bytes(
            value, "little" if getattr(element, "is_little_endian", True) else "big"
        )
    return value % (1 << _CELL_BITS) if isinstance(value, int) else None


def _signed(bits: int) -> int:
    return bits - (1 << _CELL_BITS) if bits >= 1 << (_CELL_BITS - 1) else bits


def _layout(header: Dataset, frames: int, transfer_syntax: str, file: BinaryIO) -> PixelLayout:
    """How the pixels are stored. ``file`` stands where its pixels begin.

    Raises:
        NotAnalysable: sizes that cannot be.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    stored, high = int(header.BitsStored), int(header.HighBit)
    if max(rows, columns) > _LARGEST_SIDE:
        raise _unreadable(f"its header claims {rows} x {columns} pixels")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise _not_hounsfield("the pixels are colours")
    # PS3.3 C.8.2.1.1 and C.8.15.3 allow nothing else in a CT.
    if int(header.BitsAllocated) != _CELL_BITS or not 0 < stored <= high + 1 <= _CELL_BITS:
        raise _unreadable("its header describes no pixels of 16 bits")
    little_endian = transfer_syntax != ExplicitVRBigEndian
    offset = None
    if transfer_syntax in _NATIVE:
        needed = frames * rows * columns * _CELL_BITS // 8
        offset = _native_offset(file, transfer_syntax, needed, columns)
    return PixelLayout(
        rows=rows,
        columns=columns,
        frames=frames,
        bits_stored=stored,
        high_bit=high,
        signed=int(header.PixelRepresentation) == 1,
        offset=offset,
        little_endian=little_endian,
    )


def _native_offset(file: BinaryIO, transfer_syntax: str, needed: int, columns: int) -> int:
    """Where the pixels begin; ``file`` stands before the Pixel Data element (PS3.5 7.1).

    Raises:
        NotAnalysable: there are more or fewer than the header describes.
    """
    order: Literal["big", "little"] = "big" if transfer_syntax == ExplicitVRBigEndian else "little"
    element = file.read(8)
    if (
        element[4:6] in _EXPLICIT_VR
    ):  # whatever the transfer syntax says: mislabelled ones are common
        element = file.read(4)
    length = int.from_bytes(element[-4:], order)
    if not needed <= length < needed + 2 * columns:  # padding is less than a row
        raise _unreadable("it has more or fewer pixels than its header says")
    return file.tell()


def _decimals(header: Dataset, keyword: str) -> list[float]:
    """The numbers of a Decimal String (PS3.5 6.2), however many digits it has.

    From the bytes, since pydicom warns of each one that is longer than 16 characters, and many are.

    Raises:
        ValueError: it holds anything else.
    """
    element = header.get_item(Tag(keyword))
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        text = value.decode("ascii", "replace").strip(" \0")
        return [float(number) for number in text.split("\\")] if text else []
    if value is None or value == "":
        return []
    return [float(number) for number in value] if isinstance(value, MultiValue) else [float(value)]


def _texts(header: Dataset, keyword: str) -> Sequence[str]:
    value = header.get(keyword) or ()
    return (value,) if isinstance(value, str) else tuple(str(v) for v in value)


def _not_hounsfield(detail: str) -> NotAnalysable:
    return NotAnalysable(NotAnalysableReason.NOT_HOUNSFIELD, detail)


def _unreadable(detail: str) -> NotAnalysable:
    return NotAnalysable(NotAnalysableReason.UNREADABLE_PIXELS, detail)
