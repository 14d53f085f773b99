"""Usage reports: pure sums that name nobody."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.usage import (
    BOUNDS_S,
    MINIMUM_FOR_RATIO,
    Durations,
    Marks,
    UsageReport,
    to_document,
)
from phoi_models.identity import ModelIdentity

MODEL = ModelIdentity("phoi-lung-nodule", "1.0.0", "ab" * 32)
AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, UTC)
REPORT = UsageReport("site-a", MODEL, AT, received=5, analysed=3, refused=1, failed=1, reviewed=2)


@given(st.lists(st.floats(0, 200_000)))
def test_a_histogram_counts_every_duration_at_most_once_per_bound(seconds: list[float]) -> None:
    durations = Durations.of(seconds)
    assert durations.count == len(seconds)
    assert durations.within == tuple(sum(s <= bound for s in seconds) for bound in BOUNDS_S)
    assert durations.longest_s == max(seconds, default=0.0)


def test_a_clock_set_back_makes_no_negative_duration() -> None:
    assert Durations.of([-5.0, 10.0]) == Durations.of([0.0, 10.0])


def test_the_document_is_the_same_bytes_for_the_same_report() -> None:
    document = to_document(REPORT, 7, "usage-7")
    assert document == to_document(REPORT, 7, "usage-7")
    assert document.kind is DocumentKind.USAGE
    content = json.loads(document.content)
    assert content["sequence"] == 7
    assert content["counted_at_ms"] == 1772366400250
    assert content["model"]["device_uid"] == MODEL.device_uid
    assert content["metrics"]["studies.received"] == 5


def test_ratios_are_told_only_when_enough_marks_carry_them() -> None:
    few = replace(REPORT, marks=Marks(accepted=MINIMUM_FOR_RATIO - 2, rejected=1))
    assert not [name for name in few.metrics() if name == "marks.precision"]
    enough = replace(REPORT, marks=Marks(accepted=14, modified=1, rejected=5, missed=10))
    assert enough.metrics()["marks.precision"] == 0.75
    assert enough.metrics()["marks.sensitivity_to_reader"] == 0.6
    assert "marks.false_per_study" not in enough.metrics()  # only 2 reviews
    many = replace(enough, reviewed=20)
    assert many.metrics()["marks.false_per_study"] == 0.25


@pytest.mark.parametrize("name", ["Nguyễn Văn A", "1.2.840.113619 ", "PACS", "", "a/b"])
def test_a_name_that_could_hold_a_patient_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="named by"):
        replace(REPORT, site=name)
    with pytest.raises(ValueError, match="named by"):
        replace(REPORT, link_errors={name: 1})


def test_counts_never_fall_below_zero_and_times_have_a_zone() -> None:
    with pytest.raises(ValueError, match="negative"):
        replace(REPORT, failed=-1)
    with pytest.raises(ValueError, match="negative"):
        Marks(missed=-1)
    with pytest.raises(ValueError, match="time zone"):
        replace(REPORT, counted_at=datetime(2026, 3, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="from 1"):
        to_document(REPORT, 0, "usage-0")
