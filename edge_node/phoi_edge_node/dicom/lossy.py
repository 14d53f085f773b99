"""What images lost to compression before they came (PS3.3 C.7.6.1.1.5).

It stays true of all that is derived from them, whatever they are stored as later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from phoi_edge_node.dicom.headers import text

LOSSY = "01"
_METHODS: Mapping[str, str] = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
}


@dataclass(frozen=True)
class LossyCompression:
    """One or several steps, oldest first.

    Attributes:
        ratios: Lossy Image Compression Ratio (0028,2112), as "9.4"; empty where nobody says.
        methods: Lossy Image Compression Method (0028,2114), as "ISO_15444_1"; the same.
    """

    ratios: tuple[str, ...]
    methods: tuple[str, ...]

    def put_on(self, image: Dataset) -> None:
        """Say it of an image that is derived from these."""
        image.LossyImageCompression = LOSSY
        if self.ratios:
            image.LossyImageCompressionRatio = list(self.ratios)
        if self.methods:
            image.LossyImageCompressionMethod = list(self.methods)

    @property
    def remark(self) -> tuple[str, str]:
        """For a reader, in English and Vietnamese."""
        details = [*self.methods[-1:], *(f"{float(ratio):.1f}:1" for ratio in self.ratios[-1:])]
        how = f" ({', '.join(details)})" if details else ""
        return (
            f"The images were lossy compressed{how}: small or faint nodules may be missed.",
            f"Hình đã bị nén mất dữ liệu{how}: có thể bỏ sót nốt nhỏ hoặc mờ.",
        )


def lossy_compression(header: Dataset, size: int) -> LossyCompression | None:
    """By what the image says itself, else by how it is stored; None where nothing was lost.

    Args:
        header: with its file meta information, if it has any.
        size: of the file, bytes.
    """
    syntax = str(getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID", ""))
    stated = text(header, "LossyImageCompression") == LOSSY
    if not stated and syntax not in _METHODS:
        return None
    ratios = _values(header, "LossyImageCompressionRatio")
    methods = _values(header, "LossyImageCompressionMethod")
    if syntax in _METHODS:
        methods = methods or (_METHODS[syntax],)
        ratios = ratios or _ratio(header, size)
    return LossyCompression(ratios, methods)


def _values(header: Dataset, keyword: str) -> tuple[str, ...]:
    try:
        value = header.get(keyword)
    except ValueError:  # no number
        return ()
    several = value if isinstance(value, MultiValue) else [value]
    return tuple(str(one) for one in several if one)


def _ratio(header: Dataset, size: int) -> tuple[str, ...]:
    """Of the pixels without compression to the file."""
    cells = ("Rows", "Columns", "BitsAllocated", "NumberOfFrames", "SamplesPerPixel")
    try:
        whole = prod(int(header.get(keyword) or 1) for keyword in cells) / 8
    except (TypeError, ValueError):  # several values, or no number
        return ()
    return (f"{whole / size:.1f}",)
