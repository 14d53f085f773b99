"""Reported cases, made by hand: every outcome, every status, one Vietnamese patient."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import count

import numpy as np
from phoi_edge_node.orders import ImagingOrder, OrderNumber, PatientKey
from phoi_edge_node.ports import ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import (
    Completeness,
    Correction,
    Disposition,
    Nodule,
    Outcome,
    Patient,
    Priority,
    ResultIdentity,
    SignedReview,
    StudyHeader,
    TriageResult,
    Verdict,
)
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Finding, Lobe, LungCoverage, NoduleMask, Side
from phoi_models.identity import ModelIdentity
from phoi_models.size_class import size_class

PHOI_VERSION = "0.1.0"
NAME = "Nguyễn^Thị Ánh Tuyết"
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.2"
ANALYSED_AT = datetime(2026, 11, 23, 3, 50, 2, 250_000, tzinfo=UTC)
SIGNED_AT = datetime(2026, 11, 23, 7, 1, 0, tzinfo=UTC)
WITHDRAWN_AT = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
MODEL = ModelIdentity("phoi-lung-nodule", "1.0.0", "ab" * 32)
PATIENT = Patient("BN-000123", "BVDK", NAME, date(1968, 2, 29), "F")
STUDY = StudyHeader(
    study_instance_uid=STUDY_UID,
    patient=PATIENT,
    accession_number="ACC2026-17",
    study_id="17",
    description="CT NGỰC",
    referring_physician="Trần^Văn Bình",
    started_at=datetime(2026, 11, 23, 9, 15, 0),  # noqa: DTZ001 - modalities write no zone
)

ORDER = ImagingOrder(
    placer=OrderNumber("P&1", "HIS"),
    filler=OrderNumber("F1", "RIS"),
    accession_number="ACC2026-17",
    patients=(PatientKey("BN-000123", "BVDK"),),
    requester="Lê^Hữu^Trác^BS",
    clinical_question="Ho ra máu | nốt phổi?",
    priority=Priority.STAT,
)


class CountingUids:
    """Identities first, first + 1, ...: the same in every run."""

    def __init__(self, first: int = 1) -> None:
        self._numbers = count(first)

    def dicom_uid(self) -> str:
        return f"2.25.{next(self._numbers)}"

    def message_id(self) -> str:
        return f"PHOI{next(self._numbers):08d}"


def finding(side: Side = Side.LEFT, diameter_mm: float = 12.3) -> Finding:
    """A solid nodule whose numbers agree with one another."""
    x = 56.0 if side is Side.LEFT else -56.0
    center = (x, 86.0, -116.0)
    return Finding(
        center_lps_mm=center,
        probability=0.934,
        long_axis_mm=diameter_mm + 1,
        short_axis_mm=diameter_mm - 1,
        mean_diameter_mm=diameter_mm,
        volume_mm3=0.5236 * diameter_mm**3,
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=31.0,
        side=side,
        lobe=Lobe.LEFT_LOWER if side is Side.LEFT else None,
        long_axis_lps_mm=((x - 6, 86.0, -116.0), (x + 6, 86.0, -116.0)),
        short_axis_lps_mm=((x, 80.0, -116.0), (x, 92.0, -116.0)),
        mask=NoduleMask((0, 0, 0), np.ones((1, 1, 1), dtype=np.bool_)),
    )


def nodule(number: int, side: Side = Side.LEFT, diameter_mm: float = 12.3) -> Nodule:
    """``finding`` with a number and a Tracking UID made of it."""
    found = finding(side, diameter_mm)
    return Nodule(number, f"2.25.70{number}", found, size_class(found))


LEFT_BIG = nodule(1, Side.LEFT, 12.3)
RIGHT_SMALL = nodule(2, Side.RIGHT, 4.8)

COMPLETE = LungCoverage(apex=True, base=True, volume_ml=4200.0)
NO_BASE = LungCoverage(apex=True, base=False, volume_ml=3100.0)


def result(outcome: Outcome) -> TriageResult:
    """A result of this outcome as ``phoi_edge_node.triage`` makes it."""
    positive = TriageResult(
        identity=ResultIdentity(STUDY_UID, SERIES_UID, "d" * 64, MODEL, 1),
        outcome=Outcome.POSITIVE,
        nodules=(LEFT_BIG, RIGHT_SMALL),
        suggested_priority=Priority.URGENT,
        coverage=COMPLETE,
        reason=None,
        detail="",
        series_reason="thinnest axial series: 133 slices of 2.5 mm",
        analysed_at=ANALYSED_AT,
    )
    if outcome is Outcome.POSITIVE:
        return positive
    nothing = replace(positive, outcome=outcome, nodules=(), suggested_priority=Priority.ROUTINE)
    return {
        Outcome.NEGATIVE: nothing,
        Outcome.LIMITED: replace(
            nothing,
            coverage=NO_BASE,
            detail="nothing found, but the images do not show the lung base",
        ),
        Outcome.NOT_ANALYSABLE: replace(
            nothing,
            coverage=None,
            reason=NotAnalysableReason.MISSING_SLICES,
            detail="5 of 120 slices are missing",
        ),
        Outcome.FAILED: replace(nothing, coverage=None, detail="no worker could finish in 5 tries"),
    }[outcome]


def known(outcome: Outcome, how: Completeness) -> TriageResult:
    """A result of this outcome, of a study that is known to be whole in this way."""
    return replace(result(outcome), completeness=how)


def disposition(tracking_uid: str, verdict: Verdict, correction: Correction) -> Disposition:
    return Disposition(tracking_uid, verdict, "bs.hoa", SIGNED_AT, correction=correction)


def review(*dispositions: Disposition) -> SignedReview:
    return SignedReview("bs.hoa", "BS. Lê Thị Hòa", SIGNED_AT, dispositions)


def accept_all(of: TriageResult) -> SignedReview:
    return review(
        *(disposition(n.tracking_uid, Verdict.ACCEPTED, Correction()) for n in of.nodules)
    )


def reject_all(of: TriageResult) -> SignedReview:
    return review(
        *(disposition(n.tracking_uid, Verdict.REJECTED, Correction()) for n in of.nodules)
    )


def mixed_review() -> SignedReview:
    """Nodule 1 measured anew as 10.5 mm, nodule 2 rejected, one missed nodule of 6 mm added."""
    return review(
        disposition(LEFT_BIG.tracking_uid, Verdict.MODIFIED, Correction(mean_diameter_mm=10.5)),
        disposition(RIGHT_SMALL.tracking_uid, Verdict.REJECTED, Correction()),
        disposition(
            "2.25.799",
            Verdict.MISSED,
            Correction(center_lps_mm=(-40.0, 20.0, -90.0), mean_diameter_mm=6.0),
        ),
    )


def withdrawn(of: TriageResult, signed: SignedReview | None = None) -> ReportedCase:
    """The notice that a result, told before, is withdrawn."""
    return ReportedCase(
        study=STUDY,
        result=of,
        status=ReportStatus.WITHDRAWN,
        instances=(),
        choice=None,
        volume=None,
        predecessors={},
        told_before=(ToldBefore(of, signed),),
        withdrawn_at=WITHDRAWN_AT,
    )


def case(
    outcome: Outcome = Outcome.POSITIVE,
    status: ReportStatus = ReportStatus.PRELIMINARY,
    signed: SignedReview | None = None,
) -> ReportedCase:
    """A case without images; signed by accepting all where the status asks for a review."""
    of = result(outcome)
    if status is ReportStatus.WITHDRAWN:
        return withdrawn(of)
    if status is not ReportStatus.PRELIMINARY and signed is None:
        signed = accept_all(of)
    return ReportedCase(
        study=STUDY,
        result=of,
        status=status,
        instances=(),
        choice=None,
        volume=None,
        review=signed,
    )
