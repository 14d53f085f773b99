"""From what a model found to what Phoi says: numbering, size class, outcome, suggested priority.

Pure: identities and time are arguments.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from phoi_models.errors import NotAnalysable
from phoi_models.findings import Finding, LungCoverage, VolumeAnalysis
from phoi_models.size_class import SizeClass, size_class

from phoi_edge_node.ports import UidSource
from phoi_edge_node.result import (
    Completeness,
    Nodule,
    Outcome,
    Priority,
    ResultIdentity,
    TriageResult,
)

# A lung nodule is no emergency, so STAT is never suggested. Categories 4A and 4B are those for
# which Lung-RADS v2022 advises work-up within three months.
_URGENT_CATEGORIES = frozenset({"4A", "4B"})
NOTHING_KNOWN = frozenset({Outcome.NOT_ANALYSABLE, Outcome.FAILED})
"""Of the lungs: the suggested priority of such a result means nothing."""


def make_result(
    identity: ResultIdentity,
    analysis: VolumeAnalysis,
    series_reason: str,
    uids: UidSource,
    at: datetime,
    completeness: Completeness | None = None,
) -> TriageResult:
    """The result of an analysis that ran to its end.

    Args:
        series_reason: why this series was chosen, one English clause.
        uids: gives each nodule its Tracking UID.
        at: UTC, aware.
        completeness: as it was known before; None: nobody could be asked.
    """
    nodules = number_nodules(analysis.findings, uids)
    completeness = known_completeness(completeness, analysis.coverage)
    outcome = (
        Outcome.POSITIVE if nodules else outcome_of_nothing_found(analysis.coverage, completeness)
    )
    return TriageResult(
        identity=identity,
        outcome=outcome,
        nodules=nodules,
        suggested_priority=suggest_priority(nodules),
        coverage=analysis.coverage,
        reason=None,
        detail=_limitation(analysis.coverage) if outcome is Outcome.LIMITED else "",
        completeness=completeness,
        series_reason=series_reason,
        analysed_at=at,
        timing_s=analysis.timing_s,
        runtime=analysis.runtime,
    )


def not_analysable_result(
    identity: ResultIdentity,
    refusal: NotAnalysable,
    series_reason: str,
    at: datetime,
    completeness: Completeness | None = None,
) -> TriageResult:
    """The result for images that cannot be analysed. Nothing is known of the lungs."""
    result = _without_analysis(identity, Outcome.NOT_ANALYSABLE, series_reason, at, completeness)
    return replace(result, reason=refusal.reason, detail=refusal.detail)


def failed_result(
    identity: ResultIdentity,
    detail: str,
    series_reason: str,
    at: datetime,
    completeness: Completeness | None = None,
) -> TriageResult:
    """The result where Phoi itself failed. Nothing is known of the lungs.

    Args:
        detail: one plain English clause, without patient data.
    """
    result = _without_analysis(identity, Outcome.FAILED, series_reason, at, completeness)
    return replace(result, detail=detail)


def known_completeness(before: Completeness | None, coverage: LungCoverage | None) -> Completeness:
    """How a study is known to be whole, once its images were looked at.

    What an archive said stands, and so does what it did not say until the limit. Where none could
    be asked, a series that was read has no gaps, and shows all of the lungs or not.

    Args:
        before: None or BY_GEOMETRY: the images are to tell.
        coverage: None where they were not analysed, and so tell nothing.
    """
    if before in {Completeness.CONFIRMED, Completeness.UNCONFIRMED}:
        return before
    whole = coverage is not None and coverage.complete
    return Completeness.BY_GEOMETRY if whole else Completeness.UNCONFIRMED


def outcome_of_nothing_found(
    coverage: LungCoverage | None, completeness: Completeness | None
) -> Outcome:
    """NEGATIVE only where all of the lungs was looked at, as far as anybody can know.

    A study that came in part may look whole: every other slice of it makes a series without gaps,
    and its thin series may be the one that is missing. So what is unconfirmed is LIMITED too.
    """
    shown = coverage is not None and coverage.complete
    return (
        Outcome.NEGATIVE
        if shown and completeness is not Completeness.UNCONFIRMED
        else Outcome.LIMITED
    )


def number_nodules(findings: tuple[Finding, ...], uids: UidSource) -> tuple[Nodule, ...]:
    """Nodules, most important first: by size category, then diameter, then probability.

    The order does not depend on the order of ``findings``.
    """
    graded = sorted(((finding, size_class(finding)) for finding in findings), key=_importance)
    return tuple(
        Nodule(number, uids.dicom_uid(), finding, grade)
        for number, (finding, grade) in enumerate(graded, start=1)
    )


def suggest_priority(nodules: tuple[Nodule, ...]) -> Priority:
    """URGENT for a nodule of provisional category 4A or 4B, else ROUTINE."""
    urgent = any(nodule.size_class.lung_rads in _URGENT_CATEGORIES for nodule in nodules)
    return Priority.URGENT if urgent else Priority.ROUTINE


def _importance(graded: tuple[Finding, SizeClass]) -> tuple[object, ...]:
    finding, grade = graded
    category = ("4B", "4A", "3", "2").index(grade.lung_rads)
    return (
        category,
        -finding.mean_diameter_mm,
        -finding.probability,
        finding.center_lps_mm,  # so that equals are always numbered alike
    )


def _limitation(coverage: LungCoverage) -> str:
    if coverage.complete:
        return "nothing found, but it is not confirmed that all images of the study came"
    missing = [name for name, shown in coverage.parts.items() if not shown]
    return f"nothing found, but the images do not show the lung {' and '.join(missing)}"


def _without_analysis(
    identity: ResultIdentity,
    outcome: Outcome,
    series_reason: str,
    at: datetime,
    completeness: Completeness | None,
) -> TriageResult:
    return TriageResult(
        identity=identity,
        outcome=outcome,
        nodules=(),
        suggested_priority=Priority.ROUTINE,
        coverage=None,
        reason=None,
        detail="",
        series_reason=series_reason,
        analysed_at=at,
        completeness=known_completeness(completeness, None),
    )
