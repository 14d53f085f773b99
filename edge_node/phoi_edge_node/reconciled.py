"""What a reconciliation found: values that are stored, shown and printed. No patient data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

NIGHTLY = "nightly"  # who asked for the reconciliation of every night


class Lack(StrEnum):
    """What a study that an archive holds lacked here."""

    NOT_RECEIVED = "not_received"
    IMAGES_MISSING = "images_missing"
    NOT_ANALYSED = "not_analysed"  # it is received, counted, queued or analysed just now
    NOT_DELIVERED = "not_delivered"
    NOT_COMPARED = "not_compared"  # the archive gave no answer about it


class Mending(StrEnum):
    """What was done about it."""

    NONE = "none"  # nothing to be done but wait, or only looked
    FETCHED = "fetched"
    NOT_FETCHED = "not_fetched"  # the archive did not send them, or nothing may be fetched from it
    RESENT = "resent"
    NOT_RESENT = "not_resent"  # it is still being tried, or a later document took its place


@dataclass(frozen=True)
class LackingStudy:
    """One name of the report.

    Attributes:
        number: of images or of deliveries that lacked; 0 where nothing is counted.
    """

    study_instance_uid: str
    lack: Lack
    mending: Mending = Mending.NONE
    number: int = 0


@dataclass(frozen=True)
class ReconciliationReport:
    """How one comparison ended: with zero, or with names.

    Attributes:
        compared: studies that the archives hold and that may show a chest.
        passed_over: CT studies of other regions of the body.
        trouble: why an archive could not be asked; "" where all answered.
    """

    compared: int
    passed_over: int
    lacking: tuple[LackingStudy, ...]
    trouble: str = ""

    @property
    def nothing_left_behind(self) -> bool:
        """Every study that was compared is received, analysed and delivered."""
        return not self.lacking and not self.trouble


@dataclass(frozen=True)
class Reconciliation:
    """One comparison, asked for and perhaps ended. Times are UTC.

    Attributes:
        first, last: Study Dates, both included.
        asked_by: an account of the operating system, or ``NIGHTLY``.
        ended_at, report: None until it ended.
    """

    id: int
    first: date
    last: date
    asked_by: str
    asked_at: datetime
    ended_at: datetime | None
    report: ReconciliationReport | None
