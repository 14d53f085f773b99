"""What a report says of a case: the model's result, after the review where there was one. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from phoi_models.findings import Attenuation, Finding
from phoi_models.geometry import Triple
from phoi_models.size_class import SizeClass, classify

from phoi_edge_node.ports import ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import (
    Completeness,
    Disposition,
    Nodule,
    Outcome,
    Priority,
    SignedReview,
    TriageResult,
    Verdict,
)
from phoi_edge_node.terms import (
    ATTENUATIONS,
    COMPLETENESSES,
    LOBES,
    LUNG_PARTS_VI,
    LUNGS,
    OUTCOMES,
    REASONS_VI,
    STATUS_NOTICES,
    WITHDRAWN,
    Term,
)
from phoi_edge_node.triage import NOTHING_KNOWN, outcome_of_nothing_found


@dataclass(frozen=True)
class ReportedNodule:
    """One nodule as a report tells it.

    Attributes:
        number: counts from 1; what a reviewer added follows what the model found.
        nodule: None for one that the model missed and the reviewer marked.
        disposition: None while nobody has judged it.
        review: the signed one that judged it; of an earlier report where this one has none.
    """

    number: int
    tracking_uid: str
    nodule: Nodule | None
    disposition: Disposition | None
    review: SignedReview | None = None

    @property
    def tracking_id(self) -> str:
        """Tracking Identifier (112039, DCM)."""
        return f"Nodule {self.number}"

    @property
    def verdict(self) -> Verdict | None:
        """What the reviewer said of it."""
        return self.disposition.verdict if self.disposition else None

    @property
    def center_lps_mm(self) -> Triple | None:
        """Its centre, LPS, mm: the reviewer's where there is one."""
        if self.disposition and self.disposition.correction.center_lps_mm:
            return self.disposition.correction.center_lps_mm
        return self.nodule.finding.center_lps_mm if self.nodule else None

    @property
    def mean_diameter_mm(self) -> float | None:
        """Mean diameter, mm: the reviewer's own where there is one."""
        if self.disposition and self.disposition.correction.mean_diameter_mm is not None:
            return self.disposition.correction.mean_diameter_mm
        return self.nodule.finding.mean_diameter_mm if self.nodule else None

    @property
    def measured_by_model(self) -> bool:
        """The model's other measurements stand: no person has put another size in their place."""
        corrected = self.disposition and self.disposition.correction.mean_diameter_mm is not None
        return self.nodule is not None and not corrected

    @property
    def site(self) -> Term | None:
        """Lobe, else lung, else None: never guessed."""
        if self.nodule is None:
            return None
        finding = self.nodule.finding
        return LOBES[finding.lobe] if finding.lobe else LUNGS[finding.side]

    @property
    def size_class(self) -> SizeClass | None:
        """Provisional class by the sizes that stand; None where they do not suffice for one.

        A reviewer's diameter is that of the whole nodule, and a part-solid one is classed by its
        solid part as well.
        """
        if self.nodule is None or self.mean_diameter_mm is None:
            return None
        if self.measured_by_model:
            return self.nodule.size_class
        attenuation = self.nodule.finding.attenuation
        if attenuation is Attenuation.PART_SOLID:
            return None
        return classify(attenuation, self.mean_diameter_mm)

    @property
    def urgent(self) -> bool:
        """Provisional category 4A or 4B; the model's own where the reviewer's cannot be classed."""
        grade = self.size_class
        if grade is None and self.nodule is not None:
            grade = self.nodule.size_class
        return grade is not None and grade.lung_rads.startswith("4")


def filler_number(study_instance_uid: str) -> str:
    """Phoi's own number for its report of a study; the same for every revision.

    15 characters (75 random bits of a SHA-256), because HL7 v2.5.1 leaves 22 for OBR-3 with its
    namespace.
    """
    digest = hashlib.sha256(f"phoi-report:{study_instance_uid}".encode()).digest()
    return base64.b32encode(digest).decode()[:15]


def accession_number(case: ReportedCase) -> str:
    """As on the images, else as ordered; "" where neither says."""
    return case.study.accession_number or (case.order.accession_number if case.order else "")


def reported_nodules(case: ReportedCase) -> tuple[ReportedNodule, ...]:
    """The nodules that the report stands for: not rejected, and those that were missed.

    Until somebody signs again, what a person had added to the last signed report stands: it was
    never the AI's, and no analysis takes it back.
    """
    if case.status is ReportStatus.WITHDRAWN:
        return ()
    marks = _marks(case.result, case.review, case.told_before)
    return tuple(mark for mark in marks if mark.verdict is not Verdict.REJECTED)


def told_earlier(case: ReportedCase) -> tuple[ReportedNodule, ...]:
    """All that earlier reports of the study told of nodules, as they told it, oldest first."""
    told = case.told_before
    if case.review:  # a signed report follows the preliminary one of the same result
        told = (*told, ToldBefore(case.result, None))
    return tuple(
        mark
        for number, report in enumerate(told)
        for mark in _marks(report.result, report.review, told[:number])
    )


def retracted_nodules(case: ReportedCase) -> tuple[ReportedNodule, ...]:
    """Nodules told before that no longer stand: rejected, or of an earlier report only.

    Of a report that is withdrawn, what a person had added stands: it was never the AI's.
    """
    kept = {nodule.tracking_uid for nodule in reported_nodules(case)}
    told = {nodule.tracking_uid: nodule for nodule in told_earlier(case)}
    if case.status is ReportStatus.WITHDRAWN:
        kept = {uid for uid, nodule in told.items() if nodule.nodule is None}
    return tuple(nodule for uid, nodule in told.items() if uid not in kept)


def _marks(
    result: TriageResult, review: SignedReview | None, told_before: Sequence[ToldBefore]
) -> tuple[ReportedNodule, ...]:
    judged = {d.tracking_uid: d for d in review.dispositions} if review else {}
    found = tuple(
        ReportedNodule(n.number, n.tracking_uid, n, judged.get(n.tracking_uid), review)
        for n in result.nodules
    )
    last = review or next((told.review for told in reversed(told_before) if told.review), None)
    added = tuple(
        ReportedNodule(number, d.tracking_uid, None, d, last)
        for number, d in enumerate(last.missed() if last else (), start=len(found) + 1)
    )
    return found + added


def outcome_term(case: ReportedCase) -> Term:
    """What stands in the place of the outcome, coded."""
    outcome = reported_outcome(case)
    return OUTCOMES[outcome] if outcome else WITHDRAWN


def reported_outcome(case: ReportedCase) -> Outcome | None:
    """The outcome, as the reviewer left it: all marks rejected is not positive any more.

    Nothing is negative while a nodule that a person added stands; that the AI could not tell is
    told until a person has read the study. None where it is withdrawn: then there is none.
    """
    if case.status is ReportStatus.WITHDRAWN:
        return None
    outcome = case.result.outcome
    if reported_nodules(case) and (case.review or outcome is Outcome.NEGATIVE):
        return Outcome.POSITIVE
    if outcome is not Outcome.POSITIVE or case.review is None:
        return outcome
    return outcome_of_nothing_found(case.result.coverage, case.result.completeness)


def warnings(case: ReportedCase) -> tuple[tuple[str, str], ...]:
    """What stands beside the outcome wherever it is told, in English and Vietnamese."""
    withdrawn = case.status is ReportStatus.WITHDRAWN
    if withdrawn or case.result.completeness is not Completeness.UNCONFIRMED:
        return ()
    term = COMPLETENESSES[Completeness.UNCONFIRMED]
    return ((f"{term.en}.", f"{term.vi}."),)


def told_priority(case: ReportedCase) -> Priority | None:
    """What the systems outside are to take the study's priority for; None once a person read it."""
    if case.status is ReportStatus.WITHDRAWN or case.review is not None:
        return None
    if case.result.told_priority is not None:
        return case.result.told_priority.priority
    return None if case.result.outcome in NOTHING_KNOWN else case.result.suggested_priority


def stated_priority(case: ReportedCase) -> Priority | None:
    """What the report states as suggested; None where only the order's own priority is told on."""
    told = case.result.told_priority
    return None if told is not None and told.as_ordered else told_priority(case)


def reported_at(case: ReportedCase) -> datetime:
    """Time of the report, UTC: of its withdrawal, of signing, else of the analysis."""
    at = case.review.signed_at if case.review else case.result.analysed_at
    at = case.withdrawn_at or at
    return at.astimezone(UTC)


def impression(case: ReportedCase) -> tuple[tuple[str, str], ...]:
    """What a person reads, line by line, each in English and Vietnamese."""
    nodules = reported_nodules(case)
    lines = [_headline(case), *warnings(case), *(_nodule_line(n) for n in nodules)]
    if case.review:
        lines.append(_review_line(case.review))
    lines.append(STATUS_NOTICES[case.status])
    return tuple(lines)


def _headline(case: ReportedCase) -> tuple[str, str]:
    outcome = reported_outcome(case)
    term = outcome_term(case)
    detail_en, detail_vi = _detail(case.result, outcome) if outcome else ("", "")
    return f"{term.en}{detail_en}.", f"{term.vi}{detail_vi}."


def _detail(result: TriageResult, outcome: Outcome) -> tuple[str, str]:
    if outcome is Outcome.NOT_ANALYSABLE and result.reason:
        return f" ({result.detail})", f" ({REASONS_VI[result.reason]})"
    if outcome is Outcome.FAILED:
        return f" ({result.detail})", ""
    coverage = result.coverage
    if coverage is None or coverage.complete:
        return "", ""
    unseen = [part for part, shown in coverage.parts.items() if not shown]
    return (
        f" (lung {' and '.join(unseen)} not shown)",
        f" (không thấy {' và '.join(LUNG_PARTS_VI[part] for part in unseen)})",
    )


def _nodule_line(nodule: ReportedNodule) -> tuple[str, str]:
    en, vi = [nodule.tracking_id], [f"Nốt {nodule.number}"]
    if nodule.nodule and nodule.site:
        en.append(_place(nodule.nodule.finding))
        vi.append(nodule.site.vi.lower())
        attenuation = ATTENUATIONS[nodule.nodule.finding.attenuation]
        en.append(attenuation.en.lower())
        vi.append(attenuation.vi.lower())
    if nodule.mean_diameter_mm is not None:
        en.append(f"mean diameter {nodule.mean_diameter_mm:.1f} mm")
        vi.append(f"đường kính trung bình {nodule.mean_diameter_mm:.1f} mm")
    if nodule.size_class:
        category = nodule.size_class.lung_rads
        en.append(f"Lung-RADS {category} if this is a baseline screening (provisional, by size)")
        vi.append(f"Lung-RADS {category} nếu là tầm soát lần đầu (tạm tính theo kích thước)")
    if nodule.verdict is Verdict.MISSED:
        en.append("marked by the reviewer")
        vi.append("do bác sĩ đánh dấu")
    return ", ".join(en) + ".", ", ".join(vi) + "."


def _place(finding: Finding) -> str:
    """English as it is spoken, where the coded term is long."""
    return f"{finding.lobe.replace('_', ' ')} lobe" if finding.lobe else f"{finding.side} lung"


def _review_line(review: SignedReview) -> tuple[str, str]:
    verdicts = [d.verdict for d in review.dispositions]
    accepted, modified, rejected, missed = (
        verdicts.count(v)
        for v in (Verdict.ACCEPTED, Verdict.MODIFIED, Verdict.REJECTED, Verdict.MISSED)
    )
    name = review.reviewer_name
    return (
        f"Reviewed by {name}: {accepted} accepted, {modified} modified, {rejected} rejected, "
        f"{missed} added.",
        f"{name} đã xem: {accepted} đồng ý, {modified} sửa, {rejected} loại, {missed} thêm.",
    )
