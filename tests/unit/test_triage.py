"""Outcome, order and priority of a result. Only NEGATIVE reads like negative."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.result import Completeness, Outcome, Priority, ResultIdentity
from phoi_edge_node.testing import SequentialUids
from phoi_edge_node.triage import failed_result, make_result, not_analysable_result
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import (
    Attenuation,
    Finding,
    LungCoverage,
    NoduleMask,
    Side,
    VolumeAnalysis,
)
from phoi_models.identity import ModelIdentity

AT = datetime(2026, 3, 15, 8, 30, tzinfo=UTC)
IDENTITY = ResultIdentity("1.2", "1.3", "ab", ModelIdentity("m", "1", "cd"), revision=1)
WHOLE = LungCoverage(apex=True, base=True, volume_ml=5000)


def finding(
    diameter: float, probability: float = 0.9, attenuation: Attenuation = Attenuation.SOLID
) -> Finding:
    return Finding(
        center_lps_mm=(diameter, probability, 0.0),
        probability=probability,
        long_axis_mm=diameter,
        short_axis_mm=diameter,
        mean_diameter_mm=diameter,
        volume_mm3=diameter**3 / 2,
        attenuation=attenuation,
        solid_diameter_mm=None,
        mean_hu=0.0,
        side=Side.LEFT,
        lobe=None,
        long_axis_lps_mm=((0, 0, 0), (1, 0, 0)),
        short_axis_lps_mm=((0, 0, 0), (0, 1, 0)),
        mask=NoduleMask((0, 0, 0), np.ones((1, 1, 1), bool)),
    )


def analysis(*findings: Finding, coverage: LungCoverage = WHOLE) -> VolumeAnalysis:
    return VolumeAnalysis(findings, coverage, {"detect": 1.5})


@given(st.permutations([finding(7), finding(30), finding(4, 0.99), finding(16), finding(16, 0.5)]))
def test_the_largest_class_comes_first_whatever_the_order(findings: list[Finding]) -> None:
    result = make_result(IDENTITY, analysis(*findings), "only one", SequentialUids(), AT)
    assert [nodule.finding.mean_diameter_mm for nodule in result.nodules] == [30, 16, 16, 7, 4]
    assert [nodule.finding.probability for nodule in result.nodules[1:3]] == [0.9, 0.5]
    assert [nodule.number for nodule in result.nodules] == [1, 2, 3, 4, 5]
    assert [nodule.size_class.lung_rads for nodule in result.nodules] == ["4B"] * 3 + ["3", "2"]
    assert len({nodule.tracking_uid for nodule in result.nodules}) == 5


def test_a_large_faint_nodule_does_not_hide_a_smaller_solid_one() -> None:
    found = analysis(finding(25, attenuation=Attenuation.NON_SOLID), finding(9))
    result = make_result(IDENTITY, found, "", SequentialUids(), AT)
    assert [nodule.finding.mean_diameter_mm for nodule in result.nodules] == [9, 25]


@pytest.mark.parametrize(
    ("diameter", "priority"),
    [(4, Priority.ROUTINE), (7, Priority.ROUTINE), (8, Priority.URGENT), (30, Priority.URGENT)],
)
def test_priority_follows_the_size_class(diameter: float, priority: Priority) -> None:
    result = make_result(IDENTITY, analysis(finding(diameter)), "", SequentialUids(), AT)
    assert result.outcome is Outcome.POSITIVE
    assert result.suggested_priority is priority


@pytest.mark.parametrize(
    ("apex", "base", "sides", "outcome", "detail"),
    [
        (True, True, True, Outcome.NEGATIVE, ""),
        (False, True, True, Outcome.LIMITED, "do not show the lung apex"),
        (True, False, True, Outcome.LIMITED, "do not show the lung base"),
        (True, True, False, Outcome.LIMITED, "do not show the lung sides"),
        (False, False, True, Outcome.LIMITED, "do not show the lung apex and base"),
    ],
)
def test_lungs_not_wholly_shown_are_never_negative(
    *, apex: bool, base: bool, sides: bool, outcome: Outcome, detail: str
) -> None:
    coverage = LungCoverage(apex, base, 3000, sides)
    result = make_result(IDENTITY, analysis(coverage=coverage), "", SequentialUids(), AT)
    assert result.outcome is outcome
    assert result.detail.endswith(detail)
    assert (result.detail == "") == (outcome is Outcome.NEGATIVE)
    assert result.suggested_priority is Priority.ROUTINE
    positive = analysis(finding(5), coverage=coverage)
    assert make_result(IDENTITY, positive, "", SequentialUids(), AT).outcome is Outcome.POSITIVE


CUT_OFF = LungCoverage(apex=True, base=False, volume_ml=3000)


@pytest.mark.parametrize(
    ("before", "coverage", "how", "outcome"),
    [
        (None, WHOLE, Completeness.BY_GEOMETRY, Outcome.NEGATIVE),
        (Completeness.BY_GEOMETRY, WHOLE, Completeness.BY_GEOMETRY, Outcome.NEGATIVE),
        (None, CUT_OFF, Completeness.UNCONFIRMED, Outcome.LIMITED),
        (Completeness.BY_GEOMETRY, CUT_OFF, Completeness.UNCONFIRMED, Outcome.LIMITED),
        (Completeness.CONFIRMED, WHOLE, Completeness.CONFIRMED, Outcome.NEGATIVE),
        (Completeness.CONFIRMED, CUT_OFF, Completeness.CONFIRMED, Outcome.LIMITED),
        (Completeness.UNCONFIRMED, WHOLE, Completeness.UNCONFIRMED, Outcome.LIMITED),
    ],
)
def test_nothing_found_in_a_study_that_may_lack_images_is_never_negative(
    before: Completeness | None, coverage: LungCoverage, how: Completeness, outcome: Outcome
) -> None:
    found = analysis(coverage=coverage)
    result = make_result(IDENTITY, found, "", SequentialUids(), AT, before)
    assert (result.completeness, result.outcome) == (how, outcome)
    assert bool(result.detail) is (outcome is Outcome.LIMITED)


def test_images_that_were_not_analysed_tell_nothing_of_completeness() -> None:
    confirmed = failed_result(IDENTITY, "the worker died", "", AT, Completeness.CONFIRMED)
    assert confirmed.completeness is Completeness.CONFIRMED
    unasked = failed_result(IDENTITY, "the worker died", "", AT)
    assert unasked.completeness is Completeness.UNCONFIRMED


def test_what_was_not_analysed_knows_nothing_of_the_lungs() -> None:
    refusal = NotAnalysable(NotAnalysableReason.MISSING_SLICES, "3 of 120 slices are missing")
    refused = not_analysable_result(IDENTITY, refusal, "only one", AT)
    failed = failed_result(IDENTITY, "the worker died", "only one", AT)
    assert refused.outcome is Outcome.NOT_ANALYSABLE
    assert refused.reason is NotAnalysableReason.MISSING_SLICES
    assert refused.detail == "3 of 120 slices are missing"
    assert (failed.outcome, failed.reason, failed.detail) == (
        Outcome.FAILED,
        None,
        "the worker died",
    )
    for result in (refused, failed):
        assert result.coverage is None
        assert result.nodules == ()


def test_a_result_carries_its_identity_time_and_timing() -> None:
    result = make_result(IDENTITY, analysis(), "thinnest", SequentialUids(), AT)
    assert result.identity == IDENTITY
    assert result.analysed_at == AT
    assert result.series_reason == "thinnest"
    assert result.timing_s == {"detect": 1.5}
    other = replace(IDENTITY, revision=2)
    assert make_result(other, analysis(), "", SequentialUids(), AT).identity.revision == 2
