"""Small valid values of the edge's domain."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
from phoi_edge_node.ports import Document, DocumentKind, ReceivedInstance
from phoi_edge_node.result import (
    Outcome,
    Patient,
    Priority,
    ResultIdentity,
    StudyHeader,
    TriageResult,
)
from phoi_edge_node.testing import SequentialUids
from phoi_edge_node.triage import make_result
from phoi_models.findings import (
    Attenuation,
    Finding,
    LungCoverage,
    NoduleMask,
    Side,
    VolumeAnalysis,
)
from phoi_models.geometry import Geometry
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODEL = ModelIdentity(name="phoi-lung-nodule", version="1.0.0", bundle_hash="ab" * 32)
PATIENT = Patient("BN-0042", "BVTEST", "Nguyễn^Thị Ánh Tuyết", date(1961, 5, 4), "F")


def header(study_uid: str = "1.2.3") -> StudyHeader:
    return StudyHeader(
        study_instance_uid=study_uid,
        patient=PATIENT,
        accession_number="ACC1",
        study_id="S1",
        description="CT nguc",
        referring_physician="Trần^Văn An",
        started_at=datetime(2026, 1, 2, 9, 30),  # noqa: DTZ001 - DICOM writes no time zone
    )


def instance(number: int, study_uid: str = "1.2.3", sha256: str = "00") -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=f"{study_uid}.9.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        series_instance_uid=f"{study_uid}.9",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path=f"aa/{study_uid}-{number}.dcm",
        sha256=sha256,
        size=1000,
        modality="CT",
        calling_ae_title="PACS",
        received_at=AT,
        study=header(study_uid),
    )


def finding(center: tuple[float, float, float] = (56.0, 86.0, -116.0)) -> Finding:
    x, y, z = center
    return Finding(
        center_lps_mm=center,
        probability=0.93,
        long_axis_mm=14.0,
        short_axis_mm=10.0,
        mean_diameter_mm=12.0,
        volume_mm3=900.0,
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=31.0,
        side=Side.LEFT,
        lobe=None,
        long_axis_lps_mm=((x - 7, y, z), (x + 7, y, z)),
        short_axis_lps_mm=((x, y - 5, z), (x, y + 5, z)),
        mask=NoduleMask((1, 2, 3), np.ones((2, 3, 4), dtype=bool)),
    )


def volume_analysis(*findings: Finding) -> VolumeAnalysis:
    return VolumeAnalysis(findings, LungCoverage(apex=True, base=True, volume_ml=4200.0), {})


def small_volume() -> Volume:
    geometry = Geometry(
        shape=(4, 8, 8),
        spacing_mm=(2.0, 1.0, 1.0),
        origin_lps_mm=(0.0, 0.0, 0.0),
        axes_lps=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    return Volume(np.zeros(geometry.shape, dtype=np.int16), geometry)


def result(
    study_uid: str = "1.2.3", revision: int = 1, findings: tuple[Finding, ...] | None = None
) -> TriageResult:
    identity = ResultIdentity(study_uid, f"{study_uid}.9", "cd" * 32, MODEL, revision)
    found = (finding(),) if findings is None else findings
    made = make_result(identity, volume_analysis(*found), "the only series", SequentialUids(), AT)
    assert made.outcome is (Outcome.POSITIVE if found else Outcome.NEGATIVE)
    return replace(made, suggested_priority=Priority.URGENT)


def document(identity: str, kind: DocumentKind = DocumentKind.STRUCTURED_REPORT) -> Document:
    return Document(kind, identity, f"content of {identity}".encode())
