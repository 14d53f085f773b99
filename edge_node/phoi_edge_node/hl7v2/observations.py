"""What an ORU^R01 observes: of the study, then of each nodule, then what no longer stands.

OBX-4 groups the observations of one nodule. What was told before, of a nodule or of the study, and
no longer stands is told again with OBX-11 ``D``. An outcome that is neither positive nor negative
is flagged abnormal, and its nodule count has OBX-11 ``X`` (cannot be obtained) in place of a
number: a receiver that looks at numbers or flags alone cannot take it for a negative one.

A withdrawal is a correction whose outcome is "withdrawn"; what else was told of the study and of
its nodules is told again with OBX-11 ``D``, less what a person had added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from phoi_models.findings import Finding
from phoi_models.size_class import SizeClass

from phoi_edge_node.hl7v2.fields import components
from phoi_edge_node.ports import ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.reported import (
    ReportedNodule,
    impression,
    outcome_term,
    reported_nodules,
    reported_outcome,
    retracted_nodules,
    stated_priority,
    told_earlier,
)
from phoi_edge_node.result import Completeness, Outcome, SignedReview
from phoi_edge_node.terms import (
    ATTENUATION_CLASS,
    ATTENUATIONS,
    CENTER,
    CERTAINTY,
    COMPLETENESS,
    COMPLETENESSES,
    FINDING_SITE,
    FLEISCHNER,
    IMPRESSION,
    LATERALITY,
    LONG_AXIS,
    LUNG_RADS,
    MEAN_DIAMETER,
    NODULE_COUNT,
    OUTCOME_OF_TRIAGE,
    PRIORITIES,
    REVIEW_VERDICT,
    SHORT_AXIS,
    SIDES,
    SIZE_CLASS_BASIS,
    SOLID_DIAMETER,
    STUDY_INSTANCE_UID,
    SUGGESTED_PRIORITY,
    TRACKING_IDENTIFIER,
    TRACKING_UID,
    VERDICTS,
    VOLUME,
    Term,
    lung_rads_category,
)

MM = components("mm", "millimeter", "UCUM")
MM3 = components("mm3", "cubic millimeter", "UCUM")
PERCENT = components("%", "percent", "UCUM")

DELETED = "D"  # OBX-11, table 0085
_FINAL = "F"
_NOT_OBTAINABLE = "X"
_COUNTED = frozenset({Outcome.POSITIVE, Outcome.NEGATIVE})


@dataclass(frozen=True)
class Lines:
    """What a person reads, line by line, each in English and Vietnamese."""

    lines: tuple[tuple[str, str], ...]


Value = str | Term | Lines


@dataclass(frozen=True)
class Observation:
    """One OBX before it is numbered and worded.

    Attributes:
        value_type: OBX-2 of 2.5.1.
        value: OBX-5: plain text or a number, a coded value, or lines of text; "": none.
        sub_id: OBX-4: the number of the nodule that it belongs to.
        units: OBX-6, encoded.
        flag: OBX-8.
        status: OBX-11 where it differs from that of the report.
        review: the signed one that it comes from, where the report has none (OBX-16).
    """

    value_type: str
    term: Term
    value: Value
    sub_id: str = ""
    units: str = ""
    flag: str = ""
    status: str = ""
    review: SignedReview | None = None


ALL_OBSERVED = (
    STUDY_INSTANCE_UID,
    OUTCOME_OF_TRIAGE,
    NODULE_COUNT,
    COMPLETENESS,
    SUGGESTED_PRIORITY,
    IMPRESSION,
    TRACKING_IDENTIFIER,
    TRACKING_UID,
    FINDING_SITE,
    LATERALITY,
    CENTER,
    MEAN_DIAMETER,
    CERTAINTY,
    ATTENUATION_CLASS,
    LONG_AXIS,
    SHORT_AXIS,
    VOLUME,
    SOLID_DIAMETER,
    LUNG_RADS,
    FLEISCHNER,
    SIZE_CLASS_BASIS,
    REVIEW_VERDICT,
)


def observations(case: ReportedCase, *, preliminary: bool = True) -> Iterator[Observation]:
    """All that is observed, in order.

    Args:
        preliminary: reports that nobody had signed were told before, too.
    """
    told = set()
    for item in chain(_of_study(case), _of_standing_nodules(case)):
        told.add((item.sub_id, item.term))
        yield item
    for item in _told_before(case, preliminary=preliminary):
        if (item.sub_id, item.term) not in told:
            told.add((item.sub_id, item.term))
            yield replace(item, value="", flag="", status=DELETED)


def _of_standing_nodules(case: ReportedCase) -> Iterator[Observation]:
    for nodule in reported_nodules(case):
        # What was signed in an earlier report stays what a person said.
        signed = None if case.review else nodule.review
        for item in _of_nodule(nodule):
            yield replace(item, status=_FINAL, review=signed) if signed else item


def _told_before(case: ReportedCase, *, preliminary: bool) -> Iterator[Observation]:
    """What earlier reports told, which is deleted where it is not told again."""
    if case.status is ReportStatus.WITHDRAWN:
        yield Observation("CWE", COMPLETENESS, "")
        yield Observation("CWE", SUGGESTED_PRIORITY, "")
    for report in _reports_before(case):
        if preliminary or report.review:
            yield from _of_study(report)
    earlier = _no_longer_told(case, preliminary=preliminary)
    yield from chain.from_iterable(map(_of_nodule, earlier))


def lines_told(case: ReportedCase, *, preliminary: bool = True) -> int:
    """How many lines the longest impression has that was told of this study before."""
    return max(
        (len(impression(told)) for told in _reports_before(case) if preliminary or told.review),
        default=0,
    )


def _reports_before(case: ReportedCase) -> Iterator[ReportedCase]:
    """Earlier reports of the study, oldest first."""
    told = case.told_before
    if case.review:  # a signed report follows the preliminary one of the same result
        told = (*told, ToldBefore(case.result, None))
    for number, report in enumerate(told):
        status = ReportStatus.FINAL if report.review else ReportStatus.PRELIMINARY
        yield replace(
            case,
            result=report.result,
            review=report.review,
            status=status,
            told_before=told[:number],
            withdrawn_at=None,
        )


def _no_longer_told(case: ReportedCase, *, preliminary: bool) -> Sequence[ReportedNodule]:
    """Whose observations are deleted where they are not told again."""
    if case.status is ReportStatus.WITHDRAWN:
        return retracted_nodules(case)
    if preliminary:
        return told_earlier(case)
    signed = tuple(told for told in case.told_before if told.review)
    return told_earlier(replace(case, review=None, told_before=signed))


def _of_study(case: ReportedCase) -> Iterator[Observation]:
    outcome = reported_outcome(case)
    nodules = reported_nodules(case)
    yield Observation("ST", STUDY_INSTANCE_UID, case.study.study_instance_uid)
    flag = _flag(outcome, nodules)
    yield Observation("CWE", OUTCOME_OF_TRIAGE, outcome_term(case), flag=flag)
    if outcome in _COUNTED:
        yield Observation("NM", NODULE_COUNT, str(len(nodules)))
    else:
        yield Observation("NM", NODULE_COUNT, "", flag="A", status=_NOT_OBTAINABLE)
    completeness = case.result.completeness
    if completeness and outcome:
        flag = "A" if completeness is Completeness.UNCONFIRMED else ""
        yield Observation("CWE", COMPLETENESS, COMPLETENESSES[completeness], flag=flag)
    if (priority := stated_priority(case)) is not None:
        yield Observation("CWE", SUGGESTED_PRIORITY, PRIORITIES[priority])
    yield Observation("TX", IMPRESSION, Lines(impression(case)))


def _flag(outcome: Outcome | None, nodules: Sequence[ReportedNodule]) -> str:
    if outcome is Outcome.NEGATIVE:
        return "N"
    return "AA" if any(nodule.urgent for nodule in nodules) else "A"


def _of_nodule(reported: ReportedNodule) -> Iterator[Observation]:
    flag = "AA" if reported.urgent else "A"
    for item in (
        Observation("ST", TRACKING_IDENTIFIER, reported.tracking_id, flag=flag),
        Observation("ST", TRACKING_UID, reported.tracking_uid),
        *_place(reported),
        *_measured(reported),
        *_judged(reported),
    ):
        yield replace(item, sub_id=str(reported.number))


def _place(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.site:
        yield Observation("CWE", FINDING_SITE, reported.site)
    if reported.nodule:
        side = SIDES[reported.nodule.finding.side]
        yield Observation("CWE", LATERALITY, side)
    if reported.center_lps_mm:
        center = " ".join(f"{mm:.1f}" for mm in reported.center_lps_mm)
        yield Observation("ST", CENTER, center)


def _measured(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.mean_diameter_mm is not None:
        yield Observation("NM", MEAN_DIAMETER, f"{reported.mean_diameter_mm:.1f}", units=MM)
    if reported.nodule is None:
        return
    finding = reported.nodule.finding
    percent = f"{100 * finding.probability:.1f}"
    attenuation = ATTENUATIONS[finding.attenuation]
    yield Observation("NM", CERTAINTY, percent, units=PERCENT)
    yield Observation("CWE", ATTENUATION_CLASS, attenuation)
    if reported.measured_by_model:
        yield from _measured_by_model(finding)
    if reported.size_class:
        yield from _classed(reported.size_class)


def _measured_by_model(finding: Finding) -> Iterator[Observation]:
    yield Observation("NM", LONG_AXIS, f"{finding.long_axis_mm:.1f}", units=MM)
    yield Observation("NM", SHORT_AXIS, f"{finding.short_axis_mm:.1f}", units=MM)
    yield Observation("NM", VOLUME, f"{finding.volume_mm3:.0f}", units=MM3)
    if finding.solid_diameter_mm is not None:
        yield Observation("NM", SOLID_DIAMETER, f"{finding.solid_diameter_mm:.1f}", units=MM)


def _classed(grade: SizeClass) -> Iterator[Observation]:
    yield Observation("CWE", LUNG_RADS, lung_rads_category(grade.lung_rads))
    if grade.fleischner:
        yield Observation("ST", FLEISCHNER, grade.fleischner)
    yield Observation("ST", SIZE_CLASS_BASIS, grade.basis)


def _judged(reported: ReportedNodule) -> Iterator[Observation]:
    if reported.verdict:
        yield Observation("CWE", REVIEW_VERDICT, VERDICTS[reported.verdict])
