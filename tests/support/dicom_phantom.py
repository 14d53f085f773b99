"""Writes a volume as the CT series that a scanner would have made of it.

The patient is the same in every series: only how it was scanned and encoded differs. A nodule on
the left stays on the left, whichever way the table went in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.volume import Volume
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from scipy import ndimage

from support import planted

Position = Literal["HFS", "FFS", "HFP", "FFP"]
POSITIONS: tuple[Position, ...] = ("HFS", "FFS", "HFP", "FFP")

# Patient Position (PS3.3 C.7.3.1.1.2): LPS directions (x, y, z) along which slices follow one
# another, rows go down, and columns go right, as a scanner shows them from the foot of its table.
_AXES: Mapping[Position, tuple[Triple, Triple, Triple]] = {
    "HFS": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "FFS": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "HFP": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    "FFP": ((0, 0, 1), (0, -1, 0), (1, 0, 0)),
}
_UNCOMPRESSED = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
}
AIR_HU = -1000


@dataclass(frozen=True)
class SeriesOptions:
    """How a series is scanned, numbered and encoded.

    Attributes:
        reversed_numbering: Instance Number counts against the direction of acquisition.
        gantry_tilt_degrees: the image planes lean about the patient's left-right axis.
        missing: indices of slices, in order of acquisition, that are not written.
        transfer_syntax: one of the uncompressed ones, RLE, JPEG-LS lossless or JPEG 2000 lossless.
        slope, intercept: of the rescale to HU.
        signed: Pixel Representation 1.
        padding_value: stored value outside the circular field of view; None: no padding.
        seed: series of one seed share a patient; UIDs follow from ``seed``, ``study``, ``series``.
        header: further elements, by keyword, written into every slice; None removes one.
    """

    position: Position = "HFS"
    reversed_numbering: bool = False
    gantry_tilt_degrees: float = 0.0
    missing: tuple[int, ...] = ()
    transfer_syntax: str = ExplicitVRLittleEndian
    slope: float = 1.0
    intercept: float = -1024.0
    signed: bool = False
    padding_value: int | None = None
    patient_id: str = planted.PATIENT_ID
    patient_name: str = planted.NAME
    character_set: str = "ISO_IR 192"
    accession_number: str = planted.ACCESSION_NUMBER
    seed: str = "phoi-phantom"
    study: int = 1
    series: int = 1
    kernel: str = "STANDARD"
    header: tuple[tuple[str, object], ...] = ()

    def uid(self, *what: object) -> str:
        """A UID that follows from the seed, the study and what it is for."""
        return generate_uid(entropy_srcs=[self.seed, str(self.study), *map(str, what)])

    @property
    def study_instance_uid(self) -> str:
        return self.uid("study")

    @property
    def series_instance_uid(self) -> str:
        return self.uid("series", self.series)


def write_series(
    folder: Path, volume: Volume, options: SeriesOptions | None = None
) -> tuple[Path, ...]:
    """Write one file per slice into ``folder`` (made if absent); the paths, in acquisition order.

    File names say nothing about the order.
    """
    options = options or SeriesOptions()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dataset in make_series(volume, options):
        path = folder / f"{generate_uid(entropy_srcs=[dataset.SOPInstanceUID])[-12:]}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def make_series(volume: Volume, options: SeriesOptions | None = None) -> Sequence[Dataset]:
    """The data sets of a series, in acquisition order."""
    options = options or SeriesOptions()
    acquired = acquire(volume, options.position, options.gantry_tilt_degrees)
    count = acquired.geometry.shape[0]
    return [_slice(acquired, k, options) for k in range(count) if k not in options.missing]


def acquire(volume: Volume, position: Position, gantry_tilt_degrees: float = 0.0) -> Volume:
    """The volume on the grid of a scanner: axes (slice, row, column) in order of acquisition.

    Args:
        volume: on a grid whose axes (z, y, x) are LPS (0, 0, 1), (0, 1, 0), (1, 0, 0).
    """
    assert np.allclose(volume.geometry.axes_lps, ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    axes = _AXES[position]
    signs = [int(axes[0][2]), int(axes[1][1]), int(axes[2][0])]
    first = [0 if sign > 0 else n - 1 for sign, n in zip(signs, volume.geometry.shape, strict=True)]
    flipped = volume.hu[:: signs[0], :: signs[1], :: signs[2]]
    geometry = Geometry(
        shape=volume.geometry.shape,
        spacing_mm=volume.geometry.spacing_mm,
        origin_lps_mm=as_triple(volume.geometry.index_to_lps(first)),
        axes_lps=axes,
    )
    if not gantry_tilt_degrees:
        return Volume(np.ascontiguousarray(flipped), geometry)
    return _resample(volume, _tilted(geometry, gantry_tilt_degrees))


def _tilted(geometry: Geometry, degrees: float) -> Geometry:
    """The same planes turned about the left-right axis, as many as show all of the volume."""
    angle = np.deg2rad(degrees)
    rows, columns = geometry.axes_lps[1], geometry.axes_lps[2]
    leaning = as_triple(np.cos(angle) * np.asarray(rows) + np.sin(angle) * np.array([0, 0, 1.0]))
    half = (geometry.shape[1] - 1) / 2 * geometry.spacing_mm[1]
    margin = int(np.ceil(half * abs(np.sin(angle)) / geometry.spacing_mm[0]))
    matrix = geometry.matrix
    middle = geometry.origin_lps_mm + matrix[:, 1] * (geometry.shape[1] - 1) / 2
    origin = middle - np.asarray(leaning) * half - margin * matrix[:, 0]
    return Geometry(
        shape=(geometry.shape[0] + 2 * margin, geometry.shape[1], geometry.shape[2]),
        spacing_mm=geometry.spacing_mm,
        origin_lps_mm=as_triple(origin),
        axes_lps=(geometry.axes_lps[0], leaning, columns),
    )


def _resample(volume: Volume, geometry: Geometry) -> Volume:
    """The volume, linearly interpolated on another grid; beyond head and foot it goes on."""
    hu = np.empty(geometry.shape, dtype=np.int16)
    row, column = np.mgrid[: geometry.shape[1], : geometry.shape[2]]
    for k in range(geometry.shape[0]):
        index = np.stack([np.full_like(row, k), row, column], axis=-1)
        source = volume.geometry.lps_to_index(geometry.index_to_lps(index))
        source[..., 0] = np.clip(source[..., 0], 0, volume.geometry.shape[0] - 1)
        values = ndimage.map_coordinates(
            volume.hu, np.moveaxis(source, -1, 0), order=1, cval=AIR_HU, output=np.float32
        )
        hu[k] = np.rint(values)
    return Volume(hu, geometry)


def _slice(acquired: Volume, k: int, options: SeriesOptions) -> Dataset:
    sop_instance_uid = UID(options.uid("series", options.series, "slice", k))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    uncompressed = options.transfer_syntax in _UNCOMPRESSED
    syntax = UID(options.transfer_syntax) if uncompressed else ExplicitVRLittleEndian
    meta.TransferSyntaxUID = syntax
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = sop_instance_uid
    _describe_study(dataset, options)
    _describe_slice(dataset, acquired, k, options)
    _write_pixels(dataset, acquired.hu[k], options)
    for keyword, value in options.header:
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if not uncompressed:
        dataset.compress(options.transfer_syntax, generate_instance_uid=False)
    return dataset


def _describe_study(dataset: Dataset, options: SeriesOptions) -> None:
    dataset.SpecificCharacterSet = options.character_set
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20260315"
    dataset.ContentDate = "20260315"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "083000"
    dataset.ContentTime = "083000"
    dataset.AccessionNumber = options.accession_number
    dataset.Modality = "CT"
    dataset.Manufacturer = "Phoi project"
    dataset.ManufacturerModelName = "Procedural chest"
    dataset.ReferringPhysicianName = "Trần^Văn Đức"
    dataset.StudyDescription = "CT ngực"
    dataset.PatientName = options.patient_name
    dataset.PatientID = options.patient_id
    dataset.PatientBirthDate = planted.BIRTH_DATE
    dataset.PatientSex = "F"
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = "120"
    dataset.PatientPosition = options.position
    dataset.ConvolutionKernel = options.kernel
    dataset.StudyInstanceUID = options.study_instance_uid
    dataset.SeriesInstanceUID = options.series_instance_uid
    dataset.FrameOfReferenceUID = options.uid("frame")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = str(options.study)
    dataset.SeriesNumber = options.series


def _describe_slice(dataset: Dataset, acquired: Volume, k: int, options: SeriesOptions) -> None:
    geometry = acquired.geometry
    count = geometry.shape[0]
    dataset.InstanceNumber = count - k if options.reversed_numbering else k + 1
    dataset.AcquisitionNumber = 1
    dataset.GantryDetectorTilt = f"{options.gantry_tilt_degrees:g}"
    dataset.SliceThickness = f"{geometry.spacing_mm[0]:.6g}"
    dataset.PixelSpacing = [f"{mm:.8g}" for mm in geometry.spacing_mm[1:]]
    origin = geometry.index_to_lps((k, 0, 0))
    dataset.ImagePositionPatient = [f"{mm:.8g}" for mm in origin]
    along_row, along_column = geometry.axes_lps[2], geometry.axes_lps[1]
    dataset.ImageOrientationPatient = [f"{c:.10g}" for c in (*along_row, *along_column)]


def _write_pixels(dataset: Dataset, hu: NDArray[np.int16], options: SeriesOptions) -> None:
    stored_type = np.dtype(np.int16 if options.signed else np.uint16)
    limits = np.iinfo(stored_type)
    stored = np.rint((hu.astype(np.float64) - options.intercept) / options.slope)
    stored = np.clip(stored, limits.min, limits.max).astype(stored_type)
    if options.padding_value is not None:
        stored[_outside_field_of_view(hu.shape)] = options.padding_value
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(options.signed)
    if options.padding_value is not None:
        dataset.PixelPaddingValue = options.padding_value
    dataset.RescaleIntercept = f"{options.intercept:g}"
    dataset.RescaleSlope = f"{options.slope:g}"
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    big_endian = options.transfer_syntax == ExplicitVRBigEndian
    dataset.PixelData = stored.astype(
        stored_type.newbyteorder(">" if big_endian else "<")
    ).tobytes()
    dataset["PixelData"].VR = "OW"


def _outside_field_of_view(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    row, column = np.ogrid[: shape[0], : shape[1]]
    center = (np.asarray(shape) - 1) / 2
    radius = ((row - center[0]) / center[0]) ** 2 + ((column - center[1]) / center[1]) ** 2
    outside: NDArray[np.bool_] = radius > 1
    return outside


def short_study(
    folder: Path, seed: str, slices: int, options: SeriesOptions | None = None
) -> tuple[list[Path], str]:
    """A CT of water in slices of 3 mm: its files in their order, and its Study Instance UID.

    Args:
        options: in place of a phantom's usual ones, with this seed.
    """
    geometry = Geometry(
        shape=(slices, 32, 32),
        spacing_mm=(3.0, 2.0, 2.0),
        origin_lps_mm=(0.0, 0.0, 0.0),
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    options = replace(options or SeriesOptions(), seed=seed)
    volume = Volume(np.zeros(geometry.shape, np.int16), geometry)
    return list(write_series(folder, volume, options)), options.study_instance_uid
