"""A series on disk becomes the volume that was scanned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry
from phoi_models.reading.dicom_series import read_volume
from phoi_models.reading.pixels import AIR_HU
from phoi_models.volume import Volume
from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from support.dicom_phantom import POSITIONS, Position, SeriesOptions, acquire, write_series

Reason = NotAnalysableReason


@pytest.fixture(scope="module")
def volume() -> Volume:
    """Smooth, without symmetry, from air to bone, 8 x 48 x 40 voxels."""
    z, y, x = np.mgrid[:8, :48, :40]
    hu = (-1000 + 60 * z + 20 * y + 10 * x).astype(np.int16)
    geometry = Geometry(
        shape=(8, 48, 40),
        spacing_mm=(2.0, 0.75, 0.7),
        origin_lps_mm=(-60.0, -50.0, 20.0),
        axes_lps=((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    )
    return Volume(hu, geometry)


def shuffled(paths: tuple[Path, ...]) -> list[Path]:
    return sorted(paths, key=lambda path: path.name[::-1])


def values_at(volume: Volume, lps_mm: NDArray[np.float64]) -> NDArray[np.int16]:
    index = np.rint(volume.geometry.lps_to_index(lps_mm)).astype(int)
    values: NDArray[np.int16] = volume.hu[index[:, 0], index[:, 1], index[:, 2]]
    return values


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("reversed_numbering", [False, True])
def test_every_place_of_the_patient_has_its_value(
    tmp_path: Path, volume: Volume, position: Position, *, reversed_numbering: bool
) -> None:
    options = SeriesOptions(position=position, reversed_numbering=reversed_numbering)
    paths = write_series(tmp_path, volume, options)

    read, ordered = read_volume(shuffled(paths))

    everywhere = volume.geometry.index_to_lps(np.argwhere(np.ones(volume.hu.shape, bool)))
    assert np.array_equal(values_at(read, everywhere), volume.hu.ravel())
    assert {source.path for source in ordered} == set(paths)
    first = dcmread(ordered[0].path)
    assert np.allclose(first.ImagePositionPatient, read.geometry.origin_lps_mm)


@pytest.mark.parametrize("degrees", [-20.0, 12.0])
def test_a_tilted_gantry_leans_the_slice_axis(
    tmp_path: Path, volume: Volume, degrees: float
) -> None:
    tilted = acquire(volume, "HFS", degrees)
    paths = write_series(tmp_path, volume, SeriesOptions(gantry_tilt_degrees=degrees))

    read, _ = read_volume(shuffled(paths))

    corners = tilted.geometry.index_to_lps([[3, 4, 5], [6, 20, 2]])
    assert np.array_equal(values_at(read, corners), tilted.hu[[3, 6], [4, 20], [5, 2]])
    lean = np.degrees(np.arcsin(np.dot(read.geometry.axes_lps[0], read.geometry.axes_lps[1])))
    assert abs(lean) == pytest.approx(abs(degrees), abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        SeriesOptions(transfer_syntax=ImplicitVRLittleEndian),
        SeriesOptions(transfer_syntax=ExplicitVRBigEndian),
        SeriesOptions(transfer_syntax=DeflatedExplicitVRLittleEndian),
        SeriesOptions(transfer_syntax=RLELossless),
        SeriesOptions(transfer_syntax=JPEGLSLossless),
        SeriesOptions(transfer_syntax=JPEG2000Lossless),
        SeriesOptions(signed=True, intercept=0.0),
        SeriesOptions(signed=True, intercept=0.0, transfer_syntax=JPEG2000Lossless),
        SeriesOptions(slope=0.25, intercept=-1024.5),
        SeriesOptions(intercept=-8192.0),
    ],
    ids=lambda options: f"{options.transfer_syntax}-{options.slope}-{options.intercept}",
)
def test_encodings_do_not_change_a_voxel(
    tmp_path: Path, volume: Volume, options: SeriesOptions
) -> None:
    read, _ = read_volume(write_series(tmp_path, volume, options))
    assert np.abs(read.hu - volume.hu).max() <= (options.slope % 1 > 0)


@pytest.mark.parametrize(
    "options",
    [
        SeriesOptions(padding_value=63536),
        SeriesOptions(padding_value=-2000, signed=True, intercept=0),
        SeriesOptions(padding_value=-2000, signed=True, intercept=-24),
    ],
)
@pytest.mark.parametrize("mislabelled", [False, True])
def test_padding_outside_the_field_of_view_is_air(
    tmp_path: Path, volume: Volume, options: SeriesOptions, *, mislabelled: bool
) -> None:
    paths = write_series(tmp_path, volume, options)
    for path in paths if mislabelled else ():
        # What many scanners write: the bits of -2000 as an unsigned number, or the reverse.
        dataset = dcmread(path)
        bits = dataset.PixelPaddingValue % 65536
        dataset["PixelPaddingValue"] = (
            DataElement("PixelPaddingValue", "US", bits)
            if options.signed
            else DataElement("PixelPaddingValue", "SS", bits - 65536)
        )
        dataset.save_as(path)

    read, _ = read_volume(paths)

    assert (read.hu[:, 0, 0] == AIR_HU).all()
    assert np.array_equal(read.hu[:, 24, 20], volume.hu[:, 24, 20])


def test_a_padding_value_that_is_tissue_is_not_believed(tmp_path: Path, volume: Volume) -> None:
    """0 HU is water: blanking it would cut holes into the patient."""
    options = SeriesOptions(signed=True, intercept=0, header=(("PixelPaddingValue", 0),))
    read, _ = read_volume(write_series(tmp_path, volume, options))
    assert (volume.hu == 0).any()
    assert np.array_equal(read.hu, volume.hu)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_bits_beside_those_stored_are_no_part_of_the_value(
    tmp_path: Path, volume: Volume, high_bit: int, *, signed: bool
) -> None:
    """Old scanners kept overlays in the other bits (PS3.5 8.1.1 of 2004)."""
    rng = np.random.default_rng(3)
    paths = write_series(tmp_path, volume, SeriesOptions(signed=signed, intercept=-300.0))
    clean = np.clip(volume.hu, -300 - 2048 * signed, 3795 - 2048 * signed)
    for path in paths:
        dataset = dcmread(path)
        stored = np.frombuffer(dataset.PixelData, np.int16 if signed else np.uint16)
        value = np.clip(stored, -2048 * signed, 4095 - 2048 * signed).view(np.uint16) & 0xFFF
        low = high_bit - 11
        others = rng.integers(0, 1 << 16, value.shape) & ~(0xFFF << low)
        dataset.BitsStored, dataset.HighBit = 12, high_bit
        dataset.PixelData = ((value << low) | others).astype(np.uint16).tobytes()
        dataset.save_as(path)

    read, ordered = read_volume(shuffled(paths))

    expected = clean if read.geometry.axes_lps[0][2] > 0 else clean[::-1]
    assert np.array_equal(read.hu, np.maximum(expected, AIR_HU))
    assert len(ordered) == len(paths)


def damage_last(paths: tuple[Path, ...], change: Callable[[Dataset], object]) -> NotAnalysable:
    dataset = dcmread(paths[-1])
    change(dataset)
    dataset.save_as(paths[-1])
    with pytest.raises(NotAnalysable) as caught:
        read_volume(paths)
    return caught.value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: delattr(d, "RescaleSlope"), Reason.NOT_HOUNSFIELD),
        (lambda d: setattr(d, "RescaleSlope", 0), Reason.NOT_HOUNSFIELD),
        (lambda d: setattr(d, "RescaleType", "US"), Reason.NOT_HOUNSFIELD),
        (lambda d: delattr(d, "ImagePositionPatient"), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0]), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: setattr(d, "PixelSpacing", None), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-200]), Reason.UNREADABLE_PIXELS),
        (lambda d: delattr(d, "PixelData"), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "PixelData", d.PixelData * 2), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "Rows", 65535), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "BitsAllocated", 8), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "BitsStored", 0), Reason.UNREADABLE_PIXELS),
        (lambda d: setattr(d, "SamplesPerPixel", 3), Reason.NOT_HOUNSFIELD),
        (lambda d: setattr(d, "NumberOfFrames", 10**9), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: setattr(d, "SOPClassUID", EnhancedCTImageStorage), Reason.INCONSISTENT_GEOMETRY),
        (lambda d: setattr(d, "SOPClassUID", MRImageStorage), Reason.NO_CT_IMAGES),
    ],
)
def test_a_damaged_slice_is_refused_by_name(
    tmp_path: Path, volume: Volume, change: Callable[[Dataset], object], reason: Reason
) -> None:
    refusal = damage_last(write_series(tmp_path, volume), change)
    assert refusal.reason is reason
    assert "Nguy" not in str(refusal)


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
@pytest.mark.parametrize("keep", [0.999, 0.7, 0.03])
def test_a_truncated_file_is_never_a_slice(
    tmp_path: Path, volume: Volume, transfer_syntax: str, keep: float
) -> None:
    paths = write_series(tmp_path, volume, SeriesOptions(transfer_syntax=transfer_syntax))
    content = paths[3].read_bytes()
    paths[3].write_bytes(content[: int(len(content) * keep) - 4])
    with pytest.raises(NotAnalysable) as caught:
        read_volume(paths)
    assert caught.value.reason in {Reason.UNREADABLE_PIXELS, Reason.NO_CT_IMAGES}


def test_no_dicom_at_all_is_unreadable(tmp_path: Path, volume: Volume) -> None:
    paths = write_series(tmp_path, volume)
    paths[2].write_bytes(b"not DICOM")
    with pytest.raises(NotAnalysable) as caught:
        read_volume(paths)
    assert caught.value.reason is Reason.UNREADABLE_PIXELS
