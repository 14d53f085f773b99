"""Encodes CT files in every transfer syntax that Phoi takes, with other people's encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from support.dcmtk import convert, run

Encoder = Callable[[Path, Path], None]


def by_tool(tool: str, *options: str) -> Encoder:
    """An encoder that is a program of DCMTK or GDCM."""
    return lambda source, target: convert(tool, source, target, *options)


def by_openjph(transfer_syntax: str, *options: str) -> Encoder:
    """OpenJPH's encoder of High-Throughput JPEG 2000, which knows no DICOM."""

    def encode(source: Path, target: Path) -> None:
        dataset = dcmread(source)
        cells = np.frombuffer(dataset.PixelData, "<u2")
        pixels = cells.reshape(dataset.Rows, dataset.Columns)
        grey = target.with_suffix(".pgm")
        head = f"P5\n{pixels.shape[1]} {pixels.shape[0]}\n65535\n".encode()
        grey.write_bytes(head + pixels.astype(">u2").tobytes())
        stream = target.with_suffix(".j2c")
        done = run("ojph_compress", "-i", grey, "-o", stream, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        dataset.PixelData = encapsulate([stream.read_bytes()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
        dataset.save_as(target)
        grey.unlink()
        stream.unlink()

    return encode


LOSSLESS: Mapping[str, Encoder] = {
    ExplicitVRLittleEndian: by_tool("dcmconv", "+te"),
    ImplicitVRLittleEndian: by_tool("dcmconv", "+ti"),
    ExplicitVRBigEndian: by_tool("dcmconv", "+tb"),
    DeflatedExplicitVRLittleEndian: by_tool("dcmconv", "+td"),
    RLELossless: by_tool("dcmcrle"),
    JPEGLosslessSV1: by_tool("dcmcjpeg", "+e1"),
    JPEGLossless: by_tool("dcmcjpeg", "+el"),
    JPEGLSLossless: by_tool("dcmcjpls", "+el"),
    JPEG2000Lossless: by_tool("gdcmconv", "--j2k"),
    HTJ2KLossless: by_openjph(HTJ2KLossless, "-reversible", "true", "-prog_order", "LRCP"),
    HTJ2KLosslessRPCL: by_openjph(HTJ2KLosslessRPCL, "-reversible", "true"),
}
"""By transfer syntax."""

LOSSY: Mapping[str, Encoder] = {
    JPEGExtended12Bit: by_tool("dcmcjpeg", "+ee", "+un"),
    JPEGLSNearLossless: by_tool("dcmcjpls", "+en", "+md", "2", "+un"),
    JPEG2000: by_tool("gdcmconv", "--j2k", "--lossy", "-r", "4"),
    HTJ2K: by_openjph(HTJ2K, "-qstep", "0.0001"),
}
"""By transfer syntax; JPEG Extended needs pixels of 12 bits."""
