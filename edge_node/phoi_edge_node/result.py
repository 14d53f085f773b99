"""What Phoi says of a study, and what a person says of that. Pure, frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum

from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Finding, LungCoverage
from phoi_models.geometry import Triple
from phoi_models.identity import ModelIdentity
from phoi_models.size_class import SizeClass


class Outcome(StrEnum):
    """The one-word result. Only NEGATIVE may ever be read as "nothing was found"."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    LIMITED = "limited"  # nothing found, but not all of the lungs is shown
    NOT_ANALYSABLE = "not_analysable"
    FAILED = "failed"


class Priority(StrEnum):
    """Suggested reading priority. A site's policy maps it; an AI cannot know the worklist."""

    ROUTINE = "routine"
    URGENT = "urgent"
    STAT = "stat"


@dataclass(frozen=True)
class ToldPriority:
    """The priority that is told outward, and why it is that one.

    Attributes:
        priority: None: none is told.
        rule: name of the rule of the site's policy; "": as suggested.
        as_ordered: the order asks for more than that, and no result lowers an order's priority.
    """

    priority: Priority | None
    rule: str = ""
    as_ordered: bool = False


class Completeness(StrEnum):
    """How it is known that a study is whole."""

    CONFIRMED = "confirmed"  # the archive's counts were reached
    BY_GEOMETRY = "geometry"  # no archive can be asked; no gaps, all of the lungs
    UNCONFIRMED = "unconfirmed"  # neither: said on every output


@dataclass(frozen=True)
class Patient:
    """Who is on the images. Never logged.

    Attributes:
        patient_id: Patient ID (0010,0020).
        issuer: Issuer of Patient ID (0010,0021), or "".
        name: Patient's Name (0010,0010) as a DICOM PN string, decoded to Unicode.
        birth_date: None where the header has none.
        sex: M, F, O or "".
    """

    patient_id: str
    issuer: str
    name: str
    birth_date: date | None
    sex: str


@dataclass(frozen=True)
class StudyHeader:
    """What the images say of their study.

    Attributes:
        started_at: Study Date and Time as the modality wrote them, no time zone; None if absent.
        accession_number: "" where there is none.
    """

    study_instance_uid: str
    patient: Patient
    accession_number: str
    study_id: str
    description: str
    referring_physician: str
    started_at: datetime | None


@dataclass(frozen=True)
class ResultIdentity:
    """Two results with the same identity are the same result.

    Attributes:
        input_digest: ``Volume.digest()``; "" where no volume could be built.
        revision: counts from 1 for each study.
    """

    study_instance_uid: str
    series_instance_uid: str
    input_digest: str
    model: ModelIdentity
    revision: int


@dataclass(frozen=True)
class Nodule:
    """One finding with its identity.

    Attributes:
        number: counts from 1, most important first.
        tracking_uid: Tracking UID (112040, DCM), the same in SR, SEG, FHIR, HL7 and on the page.
    """

    number: int
    tracking_uid: str
    finding: Finding
    size_class: SizeClass

    @property
    def tracking_id(self) -> str:
        """Tracking Identifier (112039, DCM): what a person reads."""
        return f"Nodule {self.number}"


@dataclass(frozen=True)
class TriageResult:
    """The result of one analysis of one study.

    Attributes:
        series_reason: why this series was chosen, one English clause.
        nodules: most important first.
        coverage: None where no volume was analysed.
        reason: set exactly when the outcome is NOT_ANALYSABLE.
        detail: one English clause for LIMITED, NOT_ANALYSABLE and FAILED, else "".
        analysed_at: UTC.
        timing_s: seconds by named step.
        runtime: what the networks ran on and in which form, as "CPUExecutionProvider int8", which
            may change the last digits of findings; "" where nobody said.
        passed_over: why each other series was not analysed, by Series Instance UID.
        completeness: how it is known that the study was whole; None in results of earlier versions
            of Phoi, which did not ask.
        told_priority: what the site's policy makes of the suggestion; None in results of earlier
            versions of Phoi, which told the suggestion.
    """

    identity: ResultIdentity
    outcome: Outcome
    nodules: tuple[Nodule, ...]
    suggested_priority: Priority
    coverage: LungCoverage | None
    reason: NotAnalysableReason | None
    detail: str
    series_reason: str
    analysed_at: datetime
    timing_s: Mapping[str, float] = field(default_factory=dict)
    passed_over: Mapping[str, str] = field(default_factory=dict)
    runtime: str = ""
    completeness: Completeness | None = None
    told_priority: ToldPriority | None = None


class Verdict(StrEnum):
    """A radiologist's judgement of one mark (the model of IHE AIRA)."""

    ACCEPTED = "accepted"
    MODIFIED = "modified"
    REJECTED = "rejected"
    MISSED = "missed"


@dataclass(frozen=True)
class Correction:
    """What a reviewer changes or adds. None: left as it was.

    Attributes:
        center_lps_mm: place of a missed nodule, LPS, mm.
        mean_diameter_mm: the reviewer's own measurement, mm.
    """

    center_lps_mm: Triple | None = None
    mean_diameter_mm: float | None = None


@dataclass(frozen=True)
class Disposition:
    """One judgement by one named person.

    Attributes:
        tracking_uid: of the nodule judged; a new one for a missed nodule.
        reviewer: account name.
        decided_at: UTC.
        reason: free text, may be "".
    """

    tracking_uid: str
    verdict: Verdict
    reviewer: str
    decided_at: datetime
    reason: str = ""
    correction: Correction = field(default_factory=Correction)


@dataclass(frozen=True)
class SignedReview:
    """A finished review: the latest disposition of every mark, and who signed.

    Attributes:
        reviewer_name: the person's display name, for documents.
        signed_at: UTC.
    """

    reviewer: str
    reviewer_name: str
    signed_at: datetime
    dispositions: tuple[Disposition, ...]

    def kept(self, nodules: tuple[Nodule, ...]) -> tuple[Nodule, ...]:
        """The nodules that were not rejected."""
        rejected = {d.tracking_uid for d in self.dispositions if d.verdict is Verdict.REJECTED}
        return tuple(n for n in nodules if n.tracking_uid not in rejected)

    def missed(self) -> tuple[Disposition, ...]:
        """Nodules that the reviewer marked and the model did not."""
        return tuple(d for d in self.dispositions if d.verdict is Verdict.MISSED)
