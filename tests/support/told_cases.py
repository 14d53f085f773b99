"""Cases of every outcome and status, and those that were hard once: what an EMR must take."""

from __future__ import annotations

from dataclasses import replace

from phoi_edge_node.orders import PatientKey
from phoi_edge_node.ports import ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.result import Completeness, Outcome, Patient

from support.cases import ORDER, SIGNED_AT, STUDY, case, known, mixed_review, result

NATIONAL = (PatientKey("001085012345", "CCCD"), PatientKey("HT4790123456789", "BHYT"))
UNKNOWN = replace(
    STUDY,
    patient=Patient("", "", "", None, ""),
    accession_number="",
    description="",
    referring_physician="",
    started_at=None,
)
CASES: dict[str, ReportedCase] = {
    f"{outcome.value}-{status.value}": case(outcome, status)
    for outcome in Outcome
    for status in ReportStatus
} | {
    "reviewed": case(Outcome.POSITIVE, ReportStatus.FINAL, mixed_review()),
    "ordered": replace(case(), order=ORDER),
    "long-number": replace(
        case(),
        study=replace(STUDY, accession_number=""),
        order=replace(ORDER, accession_number="BVDK-2026-11-23-00000017"),
    ),
    "citizen": replace(case(), order=replace(ORDER, patients=(*ORDER.patients, *NATIONAL))),
    "nameless": replace(case(), study=UNKNOWN),
    **{how.value: replace(case(), result=known(Outcome.POSITIVE, how)) for how in Completeness},
    "corrected-after-review": replace(
        case(Outcome.POSITIVE, ReportStatus.CORRECTED),
        told_before=(ToldBefore(result(Outcome.POSITIVE), mixed_review()),),
    ),
    "withdrawn-after-review": replace(
        case(),
        status=ReportStatus.WITHDRAWN,
        told_before=(ToldBefore(result(Outcome.POSITIVE), mixed_review()),),
        withdrawn_at=SIGNED_AT,
    ),
    "again-after-withdrawal": replace(
        case(Outcome.NEGATIVE),
        told_before=(ToldBefore(result(Outcome.POSITIVE), mixed_review()),),
    ),
}
