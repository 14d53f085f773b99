"""A study of the past as a report would tell it, for a dry run: nothing is stored or sent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.orders import ImagingOrder, key_of
from phoi_edge_node.ports import ReportedCase, ReportStatus
from phoi_edge_node.recall import withdrawn_case
from phoi_edge_node.recalled import CURRENT_MODEL, RecallCriteria, RecallItem
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
from phoi_edge_node.study import AnalysisState
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
    if status is ReportStatus.WITHDRAWN:
        return withdrawn_case(store, _as_if_recalled(analysis, now))
    unsigned = status is ReportStatus.PRELIMINARY
    return ReportedCase(
        study=study.header,
        result=analysis.result,
        status=status,
        instances=(),
        choice=None,
        volume=None,
        review=None if unsigned else signed or _made_up_review(analysis.result, now),
        predecessors=store.identities(study_instance_uid),
        told_before=told_before(store, study_instance_uid, analysis.revision),
        order=store.order_of(study_instance_uid),
    )


def hidden(case: ReportedCase) -> ReportedCase:
    """The same of nobody: letters become x, digits 0, so that lengths and forms still show.

    Two numbers of the patient stay two: a second one of the same form ends with 1.

    Study Instance UID, measurements and times stay.
    """
    keys = [key_of(case.study.patient), *(case.order.patients if case.order else ())]
    numbers = _hidden_apart(key.patient_id for key in keys)
    review = case.review
    if review is not None:
        review = replace(
            review, reviewer=_hide(review.reviewer), reviewer_name=_hide(review.reviewer_name)
        )
    return replace(
        case,
        study=_hidden_study(case.study, numbers),
        review=review,
        order=_hidden_order(case.order, numbers) if case.order else None,
    )


def _latest(store: StudyStore, study_instance_uid: str) -> StoredAnalysis | None:
    ended = [a for a in store.analyses(study_instance_uid) if a.result is not None]
    return max(ended, key=lambda analysis: analysis.revision, default=None)


def _as_it_stands(
    store: StudyStore, analysis: StoredAnalysis, signed: SignedReview | None
) -> ReportStatus:
    if analysis.state is AnalysisState.WITHDRAWN:
        return ReportStatus.WITHDRAWN
    if signed is None:
        return ReportStatus.PRELIMINARY
    earlier = told_before(store, analysis.study_instance_uid, analysis.revision)
    return ReportStatus.CORRECTED if any(e.review for e in earlier) else ReportStatus.FINAL


def _as_if_recalled(analysis: StoredAnalysis, now: datetime) -> RecallItem:
    """The item of a list that it stands on alone."""
    return RecallItem(
        id=0,
        recall_id=0,
        analysis_id=analysis.id,
        study_instance_uid=analysis.study_instance_uid,
        revision=analysis.revision,
        criteria=RecallCriteria(since=analysis.created_at),
        replacement=CURRENT_MODEL,
        at=now,
    )


def _made_up_review(result: TriageResult, now: datetime) -> SignedReview:
    accepted = tuple(
        Disposition(n.tracking_uid, Verdict.ACCEPTED, "reviewer", now, correction=Correction())
        for n in result.nodules
    )
    return SignedReview("reviewer", "Made-up reviewer", now, accepted)


def _hide(value: str) -> str:
    return "".join(_hidden_letter(c) for c in value)


def _hidden_apart(values: Iterable[str]) -> Mapping[str, str]:
    """Each value with what hides it: another one for each, since encoders compare numbers."""
    shown: dict[str, str] = {}
    for value in values:
        shown.setdefault(value, _unlike(_hide(value), shown.values()))
    return shown


def _unlike(form: str, taken: Collection[str]) -> str:
    """The form, counted up at its end until nobody has it."""
    endings = ("", *map(str, range(1, len(taken) + 1)))
    counted = (form[: len(form) - len(ending)] + ending for ending in endings)
    return next(one for one in counted if one not in taken)


def _hidden_letter(c: str) -> str:
    if c.isascii() and not c.isalnum():
        return c  # what parts a name or a number
    if c.isdigit():
        return "0"
    return "X" if c.isupper() else "x"


def _hidden_study(study: StudyHeader, numbers: Mapping[str, str]) -> StudyHeader:
    patient = study.patient
    return replace(
        study,
        patient=Patient(
            patient_id=numbers[patient.patient_id],
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


def _hidden_order(order: ImagingOrder, numbers: Mapping[str, str]) -> ImagingOrder:
    return replace(
        order,
        placer=replace(order.placer, value=_hide(order.placer.value)),
        filler=replace(order.filler, value=_hide(order.filler.value)),
        accession_number=_hide(order.accession_number),
        patients=tuple(replace(key, patient_id=numbers[key.patient_id]) for key in order.patients),
        requester=_hide(order.requester),
        clinical_question=_hide(order.clinical_question),
    )
