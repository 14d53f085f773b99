"""A study of the past as a report would tell it, for a dry run: nothing is stored or sent."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.orders import ImagingOrder
from phoi_edge_node.ports import ReportedCase, ReportStatus
from phoi_edge_node.result import (
    Correction,
    Disposition,
    Patient,
    SignedReview,
    StudyHeader,
    TriageResult,
    Verdict,
)
from phoi_edge_node.store import StoredAnalysis, StudyStore
from phoi_edge_node.workflow import told_before

_HIDDEN_BIRTH_DATE = date(1900, 1, 1)


class NoPastCase(EdgeError):
    """There is nothing to show; the text says why."""


def past_case(
    store: StudyStore, study_instance_uid: str, status: ReportStatus | None, now: datetime
) -> ReportedCase:
    """The latest result of a study, in this status, without its images.

    Args:
        status: None: as it stands, signed or not. One that needs a signature which nobody gave
            gets that of a made-up reviewer who accepts all.
        now: UTC: when it would be signed or withdrawn.

    Raises:
        NoPastCase: no such study, or no result yet.
    """
    study = store.study(study_instance_uid)
    if study is None:
        raise NoPastCase("no such study here: give the Study Instance UID that its page shows")
    analysis = _latest(store, study_instance_uid)
    if analysis is None or analysis.result is None:
        raise NoPastCase("the study has no result yet: wait until it is analysed")
    signed = store.review(analysis.id).signed
    status = status or _as_it_stands(store, analysis, signed)
    withdrawn = status is ReportStatus.WITHDRAWN
    unsigned = status in {ReportStatus.PRELIMINARY, ReportStatus.WITHDRAWN}
    return ReportedCase(
        study=study.header,
        result=analysis.result,
        status=status,
        instances=(),
        choice=None,
        volume=None,
        review=None if unsigned else signed or _made_up_review(analysis.result, now),
        predecessors=store.identities(study_instance_uid),
        told_before=told_before(store, study_instance_uid, analysis.revision + withdrawn),
        order=store.order_of(study_instance_uid),
        withdrawn_at=now if withdrawn else None,
    )


def hidden(case: ReportedCase) -> ReportedCase:
    """The same of nobody: letters become x, digits 0, so that lengths and forms still show.

    Study Instance UID, measurements and times stay.
    """
    review = case.review
    if review is not None:
        review = replace(
            review, reviewer=_hide(review.reviewer), reviewer_name=_hide(review.reviewer_name)
        )
    return replace(
        case,
        study=_hidden_study(case.study),
        review=review,
        order=_hidden_order(case.order) if case.order else None,
    )


def _latest(store: StudyStore, study_instance_uid: str) -> StoredAnalysis | None:
    ended = [a for a in store.analyses(study_instance_uid) if a.result is not None]
    return max(ended, key=lambda analysis: analysis.revision, default=None)


def _as_it_stands(
    store: StudyStore, analysis: StoredAnalysis, signed: SignedReview | None
) -> ReportStatus:
    if signed is None:
        return ReportStatus.PRELIMINARY
    earlier = told_before(store, analysis.study_instance_uid, analysis.revision)
    return ReportStatus.CORRECTED if any(e.review for e in earlier) else ReportStatus.FINAL


def _made_up_review(result: TriageResult, now: datetime) -> SignedReview:
    accepted = tuple(
        Disposition(n.tracking_uid, Verdict.ACCEPTED, "reviewer", now, correction=Correction())
        for n in result.nodules
    )
    return SignedReview("reviewer", "Made-up reviewer", now, accepted)


def _hide(value: str) -> str:
    return "".join(_hidden_letter(c) for c in value)


def _hidden_letter(c: str) -> str:
    if c.isascii() and not c.isalnum():
        return c  # what parts a name or a number
    if c.isdigit():
        return "0"
    return "X" if c.isupper() else "x"


def _hidden_study(study: StudyHeader) -> StudyHeader:
    patient = study.patient
    return replace(
        study,
        patient=Patient(
            patient_id=_hide(patient.patient_id),
            issuer=patient.issuer,
            name=_hide(patient.name),
            birth_date=_HIDDEN_BIRTH_DATE if patient.birth_date else None,
            sex="U" if patient.sex else "",
        ),
        accession_number=_hide(study.accession_number),
        study_id=_hide(study.study_id),
        description=_hide(study.description),
        referring_physician=_hide(study.referring_physician),
    )


def _hidden_order(order: ImagingOrder) -> ImagingOrder:
    return replace(
        order,
        placer=replace(order.placer, value=_hide(order.placer.value)),
        filler=replace(order.filler, value=_hide(order.filler.value)),
        accession_number=_hide(order.accession_number),
        patients=tuple(replace(key, patient_id=_hide(key.patient_id)) for key in order.patients),
        requester=_hide(order.requester),
        clinical_question=_hide(order.clinical_question),
    )
