"""Cases to encode: real or made images, and a nodule that is put where the test says.

The volume is read here, in a few lines of its own, so that the product's reader does not check
itself.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.ports import (
    ReceivedInstance,
    ReportedCase,
    ReportStatus,
    SeriesChoice,
    SliceRef,
)
from phoi_edge_node.result import (
    Nodule,
    Outcome,
    Patient,
    Priority,
    ResultIdentity,
    StudyHeader,
    TriageResult,
)
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Finding, LungCoverage, NoduleMask, Side
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.identity import ModelIdentity
from phoi_models.size_class import size_class
from phoi_models.volume import Volume

MODEL = ModelIdentity("phoi-lung-nodule", "1.2.0", "ab" * 32)
ANALYSED_AT = datetime(2026, 3, 15, 2, 3, 4, tzinfo=UTC)
WHOLE = LungCoverage(apex=True, base=True, volume_ml=4800.0)
PATIENT = Patient("BN-0042", "BV-A", "Nguyễn^Thị Ánh Tuyết", date(1960, 2, 29), "F")


class CountingUids:
    """UIDs that count, so that two runs give the same."""

    def __init__(self, root: str = "1.2.826.0.1.3680043.10.1") -> None:
        self._root = root
        self._numbers = itertools.count(1)

    def dicom_uid(self) -> str:
        return f"{self._root}.{next(self._numbers)}"

    def message_id(self) -> str:
        return str(next(self._numbers))


@dataclasses.dataclass(frozen=True)
class Images:
    """A series on disk and as a volume; ``instances[z]`` is slice z."""

    root: Path
    instances: tuple[ReceivedInstance, ...]
    volume: Volume

    @property
    def study(self) -> StudyHeader:
        return dataclasses.replace(self.instances[0].study, patient=PATIENT)


def read_images(folder: Path) -> Images:
    """Read a folder that holds one uncompressed CT series, slices in order of their position."""
    headers = {path.name: pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))}
    some = next(iter(headers.values()))
    right, down = np.reshape(np.asarray(some.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(right, down)
    names = sorted(headers, key=lambda n: float(normal @ _position(headers[n])))
    positions = np.array([_position(headers[n]) for n in names])
    step = (positions[-1] - positions[0]) / (len(names) - 1)
    between = float(np.linalg.norm(step))
    row_mm, column_mm = (float(mm) for mm in some.PixelSpacing)
    hu = np.stack([_hu(headers[name]) for name in names])
    geometry = Geometry(
        shape=(len(names), *hu.shape[1:]),
        spacing_mm=(between, row_mm, column_mm),
        origin_lps_mm=as_triple(positions[0]),
        axes_lps=(as_triple(step / between), as_triple(down), as_triple(right)),
    )
    instances = tuple(instance_from_file(folder, name) for name in names)
    return Images(folder, instances, Volume(hu, geometry))


def ball(geometry: Geometry, center_lps_mm: Triple, diameter_mm: float, side: Side) -> Finding:
    """What a perfect model would say of a ball."""
    center = geometry.lps_to_index(center_lps_mm)
    reach = diameter_mm / 2 / np.asarray(geometry.spacing_mm) + 1
    first = np.maximum(np.floor(center - reach).astype(int), 0)
    last = np.minimum(np.ceil(center + reach).astype(int) + 1, geometry.shape)
    index = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(first, last, strict=True)), indexing="ij"),
        axis=-1,
    )
    distance = np.linalg.norm(geometry.index_to_lps(index) - np.asarray(center_lps_mm), axis=-1)
    voxels = distance <= diameter_mm / 2
    z, y, x = (np.flatnonzero(voxels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    tight = voxels[z[0] : z[-1] + 1, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    offset = (int(first[0] + z[0]), int(first[1] + y[0]), int(first[2] + x[0]))
    return Finding(
        center_lps_mm=center_lps_mm,
        probability=0.873,
        long_axis_mm=diameter_mm,
        short_axis_mm=diameter_mm - 1,
        mean_diameter_mm=round(diameter_mm - 0.5, 1),
        volume_mm3=float(tight.sum() * geometry.voxel_volume_mm3),
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=35.5,
        side=side,
        lobe=None,
        long_axis_lps_mm=_axis(geometry, center_lps_mm, diameter_mm, 2),
        short_axis_lps_mm=_axis(geometry, center_lps_mm, diameter_mm - 1, 1),
        mask=NoduleMask(offset, tight),
    )


def nodules(findings: Sequence[Finding]) -> tuple[Nodule, ...]:
    """The findings as numbered nodules."""
    uids = CountingUids("1.2.826.0.1.3680043.10.9")
    return tuple(
        Nodule(number, uids.dicom_uid(), finding, size_class(finding))
        for number, finding in enumerate(findings, start=1)
    )


def case_of(
    images: Images,
    outcome: Outcome,
    findings: Sequence[Finding] = (),
    coverage: LungCoverage | None = WHOLE,
    reason: NotAnalysableReason | None = None,
    detail: str = "",
) -> ReportedCase:
    """A preliminary case of these images."""
    analysed = outcome not in {Outcome.NOT_ANALYSABLE, Outcome.FAILED}
    study, series = images.study, images.instances[0].series_instance_uid
    why = f"thinnest axial series: {len(images.instances)} slices" if analysed else ""
    slices = tuple(SliceRef(instance) for instance in images.instances)
    result = TriageResult(
        identity=ResultIdentity(study.study_instance_uid, series, "00" * 32, MODEL, 1),
        outcome=outcome,
        nodules=nodules(findings),
        suggested_priority=Priority.URGENT if findings else Priority.ROUTINE,
        coverage=coverage if analysed else None,
        reason=reason,
        detail=detail,
        series_reason=why,
        analysed_at=ANALYSED_AT,
    )
    return ReportedCase(
        study=study,
        result=result,
        status=ReportStatus.PRELIMINARY,
        instances=images.instances,
        choice=SeriesChoice(series, slices, why, {}) if analysed else None,
        volume=images.volume if analysed else None,
    )


def _position(header: pydicom.Dataset) -> NDArray[np.float64]:
    return np.asarray(header.ImagePositionPatient, float)


def _hu(header: pydicom.Dataset) -> NDArray[np.int16]:
    stored = header.pixel_array.astype(float)
    hu: NDArray[np.int16] = np.rint(stored * header.RescaleSlope + header.RescaleIntercept).astype(
        np.int16
    )
    return hu


def _axis(geometry: Geometry, center: Triple, length_mm: float, axis: int) -> tuple[Triple, Triple]:
    half = np.asarray(geometry.axes_lps[axis]) * length_mm / 2
    return as_triple(np.asarray(center) - half), as_triple(np.asarray(center) + half)
