"""How values read on the page: names, ages, sizes, times."""

from __future__ import annotations

from datetime import date, datetime

from phoi_edge_node.person_name import person_name
from phoi_edge_node.result import Patient
from phoi_edge_node.web.texts import Language, say


def full_name(pn: str) -> str:
    """A DICOM PN to read, in Vietnamese order; a dash where it is empty."""
    return person_name(pn).text or "—"


def patient_age_years(patient: Patient, on: date) -> int | None:
    """Completed years on a day; None without a plausible date of birth."""
    born = patient.birth_date
    if born is None or born > on:
        return None
    return on.year - born.year - ((on.month, on.day) < (born.month, born.day))


def duration(seconds: float, language: Language) -> str:
    """A duration in its largest whole unit; a clock that ran backwards gives zero."""
    seconds = max(0.0, seconds)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return say(language, f"time.{unit}", n=int(seconds // size))
    return say(language, "time.seconds", n=int(seconds))


def local_time(moment: datetime) -> str:
    """A UTC time on this machine's own clock, with its offset."""
    return moment.astimezone().strftime("%d/%m/%Y %H:%M (%z)")


def clock_time(moment: datetime) -> str:
    """The time of day of a UTC time, on this machine's own clock."""
    return moment.astimezone().strftime("%H:%M:%S")


def header_time(moment: datetime | None) -> str:
    """A date and time as the modality wrote it, without a zone; a dash where there is none."""
    return moment.strftime("%d/%m/%Y %H:%M") if moment else "—"


def day(moment: date | None) -> str:
    """A date as it is written in Viet Nam; a dash where there is none."""
    return moment.strftime("%d/%m/%Y") if moment else "—"


def number(value: float, digits: int = 1) -> str:
    """A number with a decimal point in both languages, as in DICOM and on scanners."""
    return f"{value:.{digits}f}"


def percent(fraction: float) -> str:
    """A fraction in whole percent, never rounded up to certainty."""
    return f"{min(99, round(100 * fraction))} %"
