"""From what a model found to what Phoi says: numbering, size class, outcome, suggested priority.

Pure: identities and time are arguments.
"""

from __future__ import annotations

from datetime import datetime

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import Finding, LungCoverage, VolumeAnalysis
from phoi_models.size_class import SizeClass, size_class

from phoi_edge_node.ports import UidSource
from phoi_edge_node.result import Nodule, Outcome, Priority, ResultIdentity, TriageResult

# A lung nodule is no emergency, so STAT is never suggested. Categories 4A and 4B are those for
# which Lung-RADS v2022 advises work-up within three months.
_URGENT_CATEGORIES = frozenset({"4A", "4B"})


def make_result(
    identity: ResultIdentity,
    analysis: VolumeAnalysis,
    series_reason: str,
    uids: UidSource,
    at: datetime,
) -> TriageResult:
    """The result of an analysis that ran to its end.

    Args:
        series_reason: why this series was chosen, one English clause.
        uids: gives each nodule its Tracking UID.
        at: UTC, aware.
    """
    nodules = number_nodules(analysis.findings, uids)
    outcome = _outcome(nodules, analysis.coverage)
    return TriageResult(
        identity=identity,
        outcome=outcome,
        nodules=nodules,
        suggested_priority=suggest_priority(nodules),
        coverage=analysis.coverage,
        reason=None,
        detail=_limitation(analysis.coverage) if outcome is Outcome.LIMITED else "",
        series_reason=series_reason,
        analysed_at=at,
        timing_s=analysis.timing_s,
        runtime=analysis.runtime,
    )


def not_analysable_result(
    identity: ResultIdentity, refusal: NotAnalysable, series_reason: str, at: datetime
) -> TriageResult:
    """The result for images that cannot be analysed. Nothing is known of the lungs."""
    return _without_analysis(
        identity, Outcome.NOT_ANALYSABLE, refusal.reason, refusal.detail, series_reason, at
    )


def failed_result(
    identity: ResultIdentity, detail: str, series_reason: str, at: datetime
) -> TriageResult:
    """The result where Phoi itself failed. Nothing is known of the lungs.

    Args:
        detail: one plain English clause, without patient data.
    """
    return _without_analysis(identity, Outcome.FAILED, None, detail, series_reason, at)


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


def _outcome(nodules: tuple[Nodule, ...], coverage: LungCoverage) -> Outcome:
    if nodules:
        return Outcome.POSITIVE
    return Outcome.NEGATIVE if coverage.complete else Outcome.LIMITED


def _limitation(coverage: LungCoverage) -> str:
    missing = [
        name for name, shown in (("apex", coverage.apex), ("base", coverage.base)) if not shown
    ]
    return f"nothing found, but the images do not show the lung {' and '.join(missing)}"


def _without_analysis(
    identity: ResultIdentity,
    outcome: Outcome,
    reason: NotAnalysableReason | None,
    detail: str,
    series_reason: str,
    at: datetime,
) -> TriageResult:
    return TriageResult(
        identity=identity,
        outcome=outcome,
        nodules=(),
        suggested_priority=Priority.ROUTINE,
        coverage=None,
        reason=reason,
        detail=detail,
        series_reason=series_reason,
        analysed_at=at,
    )
