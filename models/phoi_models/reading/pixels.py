"""The pixels of a CT file, frame by frame, in Hounsfield units.

Pixels that are not encoded are read straight from their place in the file. All others go through
pydicom's decoders, which are given nothing that claims to be larger than its header says, or that
ends too early: some decoders fill what is missing with black.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, RLELossless

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.ct_image import CtImage, CtSlice, PixelLayout, Rescale

AIR_HU = -1024
"""Floor of the volumes, and what fills pixels outside the field of view: no tissue is lighter."""

Stored = NDArray[np.signedinteger | np.unsignedinteger]

_MAXIMUM_HU = int(np.iinfo(np.int16).max)
_PLAUSIBLE_TISSUE_HU = (-1000.0, 3000.0)
_CELL_BITS = 16
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000 alike
_J2K_START = b"\xff\x4f\xff\x51"
_J2K_SEARCHED = 256  # bytes; some writers leave the boxes of a JP2 file before the code stream
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # among C0 to CF: tables and an extension
_JPEG_LS_FRAME = 0xF7


def frames_hu(image: CtImage) -> Iterator[NDArray[np.int16]]:
    """Each frame of a file in HU: axes (row, column), int16, at least ``AIR_HU``.

    A frame that is no slice is given as stored; nobody asks for it.

    Raises:
        NotAnalysable: UNREADABLE_PIXELS; the text names the instance.
    """
    layout = image.layout
    if layout is None:
        return
    cells = _native(image, layout) if layout.offset is not None else _decoded(image, layout)
    try:
        for about, stored in zip(image.slices, cells, strict=True):
            yield _to_hounsfield(stored, about, layout) if about else stored.astype(np.int16)
    except NotAnalysable:
        raise
    except Exception as error:
        # Decoders are many and raise what they like; their texts may hold values of the header.
        raise _unreadable(image, f"it cannot be decoded ({type(error).__name__})") from None


def hounsfield(stored: Stored, rescale: Rescale) -> NDArray[np.int16]:
    """Stored values in HU, at least ``AIR_HU``.

    What lies above all that 16 bits with a sign can say is a negative value whose sign was lost,
    as 63536 for -2000 outside the field of view: it becomes ``AIR_HU``.
    """
    limits = np.iinfo(stored.dtype)
    if rescale.slope != 1.0 or not _is_short(rescale.intercept):
        exact = np.rint(stored * rescale.slope + rescale.intercept)
        exact[exact > _MAXIMUM_HU] = AIR_HU
        rounded: NDArray[np.int16] = np.maximum(exact, AIR_HU).astype(np.int16)
        return rounded
    intercept = int(rescale.intercept)
    lowest = max(AIR_HU - intercept, limits.min)
    highest = min(_MAXIMUM_HU - intercept, limits.max)
    # All sums lie within int16, or are overwritten, so that they may be made modulo 2 to the 16.
    sums = np.maximum(stored, stored.dtype.type(lowest)).view(np.uint16)
    sums += np.uint16(intercept % (1 << _CELL_BITS))
    hu = sums.view(np.int16)
    if highest < limits.max:
        hu[stored > highest] = AIR_HU
    return hu


def _is_short(value: float) -> bool:
    return value.is_integer() and -_MAXIMUM_HU <= value <= _MAXIMUM_HU


def _to_hounsfield(cells: Stored, about: CtSlice, layout: PixelLayout) -> NDArray[np.int16]:
    stored = _stored_bits(cells, layout)
    hu = hounsfield(stored, about.rescale)
    if about.padding is not None and _must_be_blanked(about.padding, about.rescale):
        lowest, highest = about.padding
        hu[(stored >= lowest) & (stored <= highest)] = AIR_HU
        if stored is not cells:  # the padding value may have bits that no other pixel has
            hu[(cells >= lowest) & (cells <= highest)] = AIR_HU
    return hu


def _stored_bits(cells: Stored, layout: PixelLayout) -> Stored:
    """The value in each cell: other bits are not its (PS3.5 8.1.1), whatever is in them.

    Encoders of JPEG's family often drop the bits above a negative value, and no decoder tells.
    """
    if layout.bits_stored == _CELL_BITS:
        return cells
    shifted = np.left_shift(cells, _CELL_BITS - 1 - layout.high_bit)
    shifted >>= _CELL_BITS - layout.bits_stored
    return shifted


def _must_be_blanked(padding: tuple[int, int], rescale: Rescale) -> bool:
    """Padding that is not air yet.

    A padding value inside the range of tissue is a wrong header: blanking would cut holes.
    """
    lowest, highest = sorted(value * rescale.slope + rescale.intercept for value in padding)
    air = highest <= AIR_HU
    may_be_tissue = lowest < _PLAUSIBLE_TISSUE_HU[1] and highest > _PLAUSIBLE_TISSUE_HU[0]
    return not air and not may_be_tissue


def _native(image: CtImage, layout: PixelLayout) -> Iterator[Stored]:
    kind = np.dtype(np.int16 if layout.signed else np.uint16)
    in_file = kind.newbyteorder("<" if layout.little_endian else ">")
    with image.path.open("rb", buffering=0) as file:
        file.seek(layout.offset or 0)
        for _ in range(layout.frames):
            cells: Stored = np.empty((layout.rows, layout.columns), dtype=in_file)
            if file.readinto(cells.data) != layout.frame_bytes:
                raise _unreadable(image, "it ends too early")
            yield cells.astype(kind, copy=False)


def _decoded(image: CtImage, layout: PixelLayout) -> Iterator[Stored]:
    dataset = dcmread(image.path)
    syntax = UID(image.transfer_syntax_uid)
    if "PixelData" not in dataset:
        raise _unreadable(image, "it has no pixels")
    if syntax.is_encapsulated:
        _require_whole_frames(image, dataset, layout)
    for cells, _ in get_decoder(syntax).iter_array(dataset, raw=True, correct_unused_bits=False):
        if cells.shape != (layout.rows, layout.columns):
            raise _unreadable(image, "its pixels have another size than its header says")
        yield cells


def _require_whole_frames(image: CtImage, dataset: Dataset, layout: PixelLayout) -> None:
    """Each frame is there, to its end, and as large as the header says.

    Raises:
        NotAnalysable: UNREADABLE_PIXELS.
    """
    frames = list(generate_frames(dataset.PixelData, number_of_frames=layout.frames))
    if len(frames) != layout.frames:
        raise _unreadable(image, f"{len(frames)} of its {layout.frames} frames are there")
    if image.transfer_syntax_uid == RLELossless:
        return  # its decoder counts
    for frame in frames:
        if not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
            raise _unreadable(image, "its pixels end too early")
        if _claimed_shape(frame, image.transfer_syntax_uid) != (layout.rows, layout.columns):
            raise _unreadable(image, "its pixels have another size than its header says")


def _claimed_shape(frame: bytes, transfer_syntax: str) -> tuple[int, int] | None:
    """Rows and columns that a code stream says it has; None where it says nothing."""
    if transfer_syntax in JPEG2000TransferSyntaxes:
        return _shape_of_jpeg_2000(frame)
    return _shape_of_jpeg(frame)


def _shape_of_jpeg_2000(frame: bytes) -> tuple[int, int] | None:
    """The SIZ marker segment (ISO/IEC 15444-1 A.5.1)."""
    start = frame[:_J2K_SEARCHED].find(_J2K_START)
    if start < 0:
        return None
    x, y, x_offset, y_offset = (
        int.from_bytes(frame[at : at + 4], "big") for at in range(start + 8, start + 24, 4)
    )
    return y - y_offset, x - x_offset


def _shape_of_jpeg(frame: bytes) -> tuple[int, int] | None:
    """The frame header (ISO/IEC 10918-1 B.2.2; that of ISO/IEC 14495-1 has the same form)."""
    at = 2
    while frame[at : at + 1] == b"\xff" and at + 9 <= len(frame):
        marker = frame[at + 1]
        if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(
                frame[at + 7 : at + 9], "big"
            )
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _unreadable(image: CtImage, detail: str) -> NotAnalysable:
    return NotAnalysable(
        NotAnalysableReason.UNREADABLE_PIXELS, f"instance {image.sop_instance_uid}: {detail}"
    )
