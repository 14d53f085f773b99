"""What a site tells the central training loop: sums, never a study. Pure.

Every number counts from the first day of a model version at a site and only grows, so a report
that is lost or repeated changes nothing: the next one says it all again, and the metric's step is
the report's sequence number.

Sums over few studies can still speak of a person ("one study today, positive"). So nothing here is
broken down by patient, day, person or scanner, and ratios are left out while they would rest on
fewer than ``MINIMUM_FOR_RATIO`` marks or reviews.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime

from phoi_models.identity import ModelIdentity

from phoi_edge_node.ports import Document, DocumentKind

FORMAT = "phoi-usage/1"
MINIMUM_FOR_RATIO = 20

# Upper bounds, seconds: from half a minute, a fast triage, to a day, a slow review.
BOUNDS_S = (30, 60, 120, 300, 900, 3600, 14400, 86400)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def _require_counts(counts: Mapping[str, int]) -> None:
    if any(n < 0 for n in counts.values()):
        raise ValueError("counts are never negative")


@dataclass(frozen=True)
class Durations:
    """Many durations, added up.

    Attributes:
        total_s: their sum, seconds.
        longest_s: the longest, seconds.
        within: how many lasted at most ``BOUNDS_S[i]``, cumulative as in a Prometheus histogram,
            so that sites can be added and quantiles estimated.

    Raises:
        ValueError: the numbers contradict each other.
    """

    count: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    within: tuple[int, ...] = (0,) * len(BOUNDS_S)

    def __post_init__(self) -> None:
        rising = (0, *self.within, self.count)
        if len(self.within) != len(BOUNDS_S) or list(rising) != sorted(rising):
            raise ValueError("the counts of a histogram must not fall")
        if self.total_s < 0 or not 0 <= self.longest_s <= self.total_s + 1e-6:
            raise ValueError("the longest duration is at most the sum of all")

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Durations:
        """Add up ``seconds``. A negative one, from a clock set back, counts as 0."""
        values = [max(0.0, float(s)) for s in seconds]
        bins = [0] * (len(BOUNDS_S) + 1)
        for value in values:
            bins[bisect_left(BOUNDS_S, value)] += 1
        within = tuple(sum(bins[: i + 1]) for i in range(len(BOUNDS_S)))
        return cls(len(values), sum(values), max(values, default=0.0), within)


@dataclass(frozen=True)
class Marks:
    """What reviewers said of the marks, in signed reviews.

    Attributes:
        accepted, modified: marks of the model that are nodules.
        rejected: marks of the model that are not.
        missed: nodules that a reviewer added.
    """

    accepted: int = 0
    modified: int = 0
    rejected: int = 0
    missed: int = 0

    def __post_init__(self) -> None:
        _require_counts(asdict(self))

    @property
    def confirmed(self) -> int:
        """Marks of the model that are nodules."""
        return self.accepted + self.modified


@dataclass(frozen=True)
class UsageReport:
    """All that one site reports of one model version, counted from the first day.

    Attributes:
        site: the site's name in settings.
        model: the version that the numbers are about.
        counted_at: when they were counted, UTC.
        received: studies whose analysis was pinned to this version.
        analysed: of them, those with a result.
        refused: of them, those that could not be analysed.
        failed: of them, those given up.
        reviewed: of them, those whose review was signed.
        withdrawn: of them, those whose result was recalled.
        receive_to_result: from the last instance to the result.
        result_to_review: from the result to the signature.
        marks: verdicts in the signed reviews.
        link_errors: failed tries by destination. These are the site's, not the version's.

    Raises:
        ValueError: a name could hold more than a name, a count is negative, or no time zone.
    """

    site: str
    model: ModelIdentity
    counted_at: datetime
    received: int = 0
    analysed: int = 0
    refused: int = 0
    failed: int = 0
    reviewed: int = 0
    receive_to_result: Durations = Durations()
    result_to_review: Durations = Durations()
    marks: Marks = Marks()
    link_errors: Mapping[str, int] = field(default_factory=dict)
    withdrawn: int = 0

    def __post_init__(self) -> None:
        for name in (self.site, *self.link_errors):
            if not _NAME.fullmatch(name):
                raise ValueError("sites and links are named by a-z, 0-9 and -")
        if self.counted_at.tzinfo is None:
            raise ValueError("counted_at needs a time zone")
        _require_counts(self.studies)
        _require_counts(self.link_errors)

    @property
    def studies(self) -> dict[str, int]:
        """The counters of studies by name."""
        names = ("received", "analysed", "refused", "failed", "reviewed", "withdrawn")
        return {name: getattr(self, name) for name in names}

    def metrics(self) -> dict[str, float]:
        """Every number by the name it has in MLflow."""
        return {
            **{f"studies.{name}": float(n) for name, n in self.studies.items()},
            **{f"marks.{name}": float(n) for name, n in asdict(self.marks).items()},
            **{f"link_errors.{name}": float(n) for name, n in sorted(self.link_errors.items())},
            **_duration_metrics("receive_to_result", self.receive_to_result),
            **_duration_metrics("result_to_review", self.result_to_review),
            **_ratios(self.marks, self.reviewed),
        }


def to_document(report: UsageReport, sequence: int, identity: str) -> Document:
    """Freeze a report as bytes for the outbox.

    Args:
        report: the counts.
        sequence: grows with every report of this site; the step of its metrics.
        identity: of the document, the same on every retry.

    Raises:
        ValueError: the sequence number is below 1.
    """
    if sequence < 1:
        raise ValueError("sequence numbers count from 1")
    content = {
        "format": FORMAT,
        "identity": identity,
        "site": report.site,
        "model": {
            "name": report.model.name,
            "version": report.model.version,
            "bundle_hash": report.model.bundle_hash,
            "device_uid": report.model.device_uid,
            "operating_point": report.model.operating_point,
        },
        "sequence": sequence,
        "counted_at_ms": round(report.counted_at.timestamp() * 1000),
        "metrics": report.metrics(),
    }
    return Document(DocumentKind.USAGE, identity, json.dumps(content, sort_keys=True).encode())


def _duration_metrics(name: str, durations: Durations) -> dict[str, float]:
    metrics = {
        f"{name}.count": float(durations.count),
        f"{name}.total_s": durations.total_s,
        f"{name}.longest_s": durations.longest_s,
    }
    for bound, count in zip(BOUNDS_S, durations.within, strict=True):
        metrics[f"{name}.within_{bound}s"] = float(count)
    if durations.count:
        metrics[f"{name}.mean_s"] = durations.total_s / durations.count
    return metrics


def _ratios(marks: Marks, reviewed: int) -> dict[str, float]:
    """What can be said of accuracy, as far as the numbers carry it.

    The sensitivity is against what reviewers saw with Phoi's marks before them, so it flatters.
    """
    ratios = {}
    if (shown := marks.confirmed + marks.rejected) >= MINIMUM_FOR_RATIO:
        ratios["marks.precision"] = marks.confirmed / shown
    if (nodules := marks.confirmed + marks.missed) >= MINIMUM_FOR_RATIO:
        ratios["marks.sensitivity_to_reader"] = marks.confirmed / nodules
    if reviewed >= MINIMUM_FOR_RATIO:
        ratios["marks.false_per_study"] = marks.rejected / reviewed
    return ratios
