"""Matching, FROC and the figures by group: what a claim about a detector rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_models.bundle import Calibration
from phoi_models.findings import Attenuation, Lobe
from phoi_models.geometry import Geometry, Triple
from phoi_models.planting_host import LungSpace
from phoi_models.volume import Volume
from phoi_training.background import Background, Mark
from phoi_training.breakdown import (
    breakdown,
    calibration_error,
    false_per_scan,
    overall,
    reliability,
    seconds_by_step,
    size_errors,
    wilson,
)
from phoi_training.evaluation import (
    RATES,
    Prediction,
    ScanResult,
    as_rows,
    calibrate,
    cross_fitted,
    froc,
    matched,
    paired_cpm,
    recalibrated,
)

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def chest(*marks: Mark) -> Background:
    volume = Volume(
        np.full((2, 2, 2), -850, np.int16),
        Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), AXES),
    )
    lungs = LungSpace(np.ones((2, 2, 2), bool), (0.0, 0.0, 0.0), 1.0)
    return Background("chest", "chest", volume, lungs, marks, complete=True)


def at(x: float, diameter: float = 10.0, *, certain: bool = True) -> Mark:
    return Mark((x, 0.0, 0.0), diameter, certain)


def mark(x: float, probability: float) -> tuple[Triple, float, float]:
    return (x, 0.0, 0.0), 8.0, probability


def hits(scan: Background, *marks: tuple[Triple, float, float]) -> list[tuple[float, int | None]]:
    counted, _ = matched(marks, scan)
    return [(p.probability, p.nodule) for p in counted]


def test_a_mark_hits_within_the_radius_and_not_beyond() -> None:
    assert hits(chest(at(0)), mark(4.9, 0.9), mark(5.1, 0.8)) == [(0.9, 0), (0.8, None)]


def test_further_marks_on_a_nodule_count_for_nothing_and_are_known() -> None:
    assert hits(chest(at(0)), mark(0, 0.9), mark(1, 0.8)) == [(0.9, 0)]
    counted, further = matched([mark(0, 0.9), mark(1, 0.8), mark(40, 0.7)], chest(at(0)))
    scan = ScanResult("scan", (at(0),), counted, True, 1.0, further=further)
    assert [scan.marks_on(0, least) for least in (0.95, 0.85, 0.5)] == [0, 1, 2]
    more_probable = recalibrated(scan, Calibration(slope=1.0, intercept=1.0))
    assert more_probable.marks_on(0, 0.85) == 2


def test_a_mark_in_a_mass_hits_it_though_a_small_nodule_is_nearer() -> None:
    mass, small = at(0, 40), at(22, 4)
    assert hits(chest(mass, small), mark(15, 0.9)) == [(0.9, 0)]


def test_where_two_nodules_overlap_each_takes_a_mark() -> None:
    assert hits(chest(at(0), at(4)), mark(1, 0.9), mark(1, 0.8)) == [(0.9, 0), (0.8, 1)]


def test_marks_on_what_nobody_knows_count_neither_way() -> None:
    scan = chest(at(0), at(50, certain=False))
    assert hits(scan, mark(50, 0.9), mark(0, 0.8), mark(90, 0.7)) == [(0.8, 0), (0.7, None)]


def test_a_nodule_is_hit_though_an_uncertain_finding_overlaps_it() -> None:
    assert hits(chest(at(2, certain=False), at(0)), mark(2, 0.9)) == [(0.9, 0)]


def result(
    nodules: int,
    marks: list[tuple[float, int | None]],
    *,
    complete: bool = True,
    patient: str = "",
) -> ScanResult:
    truths = tuple(at(20.0 * i, 8.0) for i in range(nodules))
    predictions = tuple(Prediction((0.0, 0.0, 0.0), 8.0, p, hit) for p, hit in marks)
    return ScanResult("scan", truths, predictions, complete, 1.0, patient=patient)


@st.composite
def scans(draw: st.DrawFn) -> ScanResult:
    """Up to three nodules, each with at most one mark, and false marks; few probabilities."""
    probability = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])
    nodules = draw(st.integers(0, 3))
    found = [(draw(probability), i) for i in range(nodules) if draw(st.booleans())]
    false = [(p, None) for p in draw(st.lists(probability, max_size=6))]
    return result(nodules, [*found, *false], complete=draw(st.booleans()))


@given(st.lists(scans(), min_size=1, max_size=6))
def test_froc_is_what_counting_at_every_threshold_gives(results: list[ScanResult]) -> None:
    counted = [r for r in results if r.complete]
    total = sum(len(r.nodules) for r in counted)
    if total == 0:
        with pytest.raises(ValueError, match="complete scans with nodules"):
            froc(results, rng=np.random.default_rng(0))
        return
    thresholds = [*sorted({p.probability for r in counted for p in r.predictions}), 1.0]
    points = [
        (
            sum(r.false_marks(t) for r in counted) / len(counted),
            sum(r.found(t) for r in counted) / total,
        )
        for t in thresholds
    ]
    curve = froc(results, rng=np.random.default_rng(0), resamples=20)
    wanted = [max(sensitivity for false, sensitivity in points if false <= r) for r in RATES]
    assert list(curve.sensitivities) == pytest.approx(wanted)
    assert curve.cpm == pytest.approx(np.mean(wanted))
    assert len(curve.intervals) == len(RATES)
    for interval in filter(None, curve.intervals):
        assert interval[0] < interval[1]


def test_copies_of_one_patient_are_drawn_together() -> None:
    """The patients differ, their copies do not: copies must not make the figure any surer."""
    good: list[tuple[float, int | None]] = [(0.9, 0), (0.8, 1)]
    bad: list[tuple[float, int | None]] = [(0.9, None), (0.8, 0)]
    few = [result(2, m, patient=p) for p, m in (("a", good), ("b", bad), ("c", bad), ("d", good))]
    once = froc(few, rng=np.random.default_rng(0))
    often = froc([r for r in few for _ in range(8)], rng=np.random.default_rng(0))
    assert once.interval is not None
    assert often.interval == pytest.approx(once.interval)
    assert (often.scans, often.patients, often.nodules) == (32, 4, 64)


def test_where_resampling_cannot_tell_there_is_no_interval() -> None:
    one = [result(2, [(0.9, 0), (0.3, None)], patient="a")] * 3
    curve = froc(one, rng=np.random.default_rng(0))
    assert (curve.interval, set(curve.intervals), curve.patients) == (None, {None}, 1)
    found = [result(1, [(0.9, 0)], patient=name) for name in "ab"]
    assert froc(found, rng=np.random.default_rng(0)).interval is None


def test_smaller_nodules_are_neither_hits_nor_misses() -> None:
    truths = (at(0, 4), at(20, 8), at(40, 4), at(60, 6))
    marks = tuple(Prediction((0.0, 0.0, 0.0), 5.0, p, i) for p, i in ((0.9, 0), (0.8, 3)))
    false = Prediction((90.0, 0.0, 0.0), 5.0, 0.85, None)
    scan = ScanResult("a", truths, (*marks, false), True, 1.0, further=marks[:1])
    large = scan.of_at_least(6.0)
    assert [n.diameter_mm for n in large.nodules] == [8, 6]
    assert [(p.probability, p.nodule) for p in large.predictions] == [(0.8, 1), (0.85, None)]
    assert large.further == ()
    curve = froc([scan], rng=np.random.default_rng(0), least_mm=6.0)
    assert (curve.nodules, curve.at(1.0), curve.at(0.5)) == (2, (0.5, None), (0.0, None))
    with pytest.raises(ValueError, match="complete scans with nodules"):
        froc([scan], rng=np.random.default_rng(0), least_mm=9.0)


@given(st.lists(scans(), min_size=1, max_size=6))
def test_a_detector_differs_from_itself_by_nothing(results: list[ScanResult]) -> None:
    named = [replace(r, patient=str(i)) for i, r in enumerate(results)]
    if not any(r.complete and r.nodules for r in named):
        with pytest.raises(ValueError, match="complete scans with nodules"):
            paired_cpm(named, named, rng=np.random.default_rng(0))
        return
    same = paired_cpm(named, named, rng=np.random.default_rng(0), resamples=10)
    assert (same.difference, same.interval) == (0.0, None)
    assert same.cpm == froc(named, rng=np.random.default_rng(0), resamples=1).cpm


def test_a_paired_difference_is_surer_than_either_figure() -> None:
    """Patients differ much from each other, and each form loses as little on all of them."""
    easy: list[tuple[float, int | None]] = [(0.9, i) for i in range(6)]
    hard: list[tuple[float, int | None]] = [(0.9, 0), (0.8, None)]
    reference = [result(6, easy if i % 2 else hard, patient=str(i)) for i in range(12)]
    worse = [replace(r, predictions=r.predictions[1:]) for r in reference]
    found = paired_cpm(worse, reference, rng=np.random.default_rng(0))
    assert found.difference == pytest.approx(-1 / 6)
    assert found.interval is not None
    alone = froc(reference, rng=np.random.default_rng(0)).interval
    assert alone is not None
    assert np.diff(found.interval) < np.diff(alone) / 2
    with pytest.raises(ValueError, match="same scans"):
        paired_cpm(worse[:-1], reference, rng=np.random.default_rng(0))


def test_wilson_is_the_published_interval() -> None:
    # Newcombe, Stat Med 1998;17:857-72, table I, method 3: 81 of 263 and 15 of 148; 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    for found, total in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="is no share"):
            wilson(found, total)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors(case: tuple[int, int]) -> None:
    found, total = case
    low, high = wilson(found, total)
    assert 0 <= low <= found / total <= high <= 1
    assert wilson(total - found, total) == pytest.approx((1 - high, 1 - low))


def test_groups_count_what_is_known_of_each_nodule() -> None:
    solid = replace(at(0, 5), attenuation=Attenuation.SOLID, lobe=Lobe.RIGHT_MIDDLE)
    hazy = replace(at(20, 12), attenuation=Attenuation.NON_SOLID)
    found = Prediction((0.0, 0.0, 0.0), 8.0, 0.9, 0)
    faint = Prediction((20.0, 0.0, 0.0), 8.0, 0.2, 1)
    thin = ScanResult("thin", (solid, hazy, at(40, 25)), (found, faint), True, 1.0, slice_mm=1.25)
    thick = replace(thin, scan="thick", predictions=(), slice_mm=5.0)
    tables = breakdown([thin, thick], 0.5)
    counts = {
        title: {share.name: (share.found, share.total) for share in shares}
        for title, shares in tables.items()
    }
    assert counts == {
        "size": {"0 to 6 mm": (1, 2), "10 to 20 mm": (0, 2), "20 mm and more": (0, 2)},
        "attenuation": {"non_solid": (0, 2), "solid": (1, 2)},
        "side": {"right": (1, 2)},
        "lobe": {"right_middle": (1, 2)},
        "slice spacing": {"slices up to 1.25 mm": (1, 3), "over 2.5 mm": (0, 3)},
    }
    everything = overall([thin, thick], 0.1)
    assert everything is not None
    assert (everything.found, everything.total) == (2, 6)
    assert overall([], 0.1) is None


def test_calibration_compares_probability_with_the_share_of_nodules() -> None:
    marks = [(0.95, 0), (0.95, 1), (0.95, None), (0.95, 2), (1.0, 3), (0.15, None), (0.15, 4)]
    rows = reliability([result(5, marks), result(1, [(0.5, None)], complete=False)])
    assert [(row.hits.found, row.hits.total) for row in rows] == [(1, 2), (4, 5)]
    assert rows[1].predicted == pytest.approx(0.96)
    assert calibration_error(rows) == pytest.approx((2 * 0.35 + 5 * 0.16) / 7)
    assert calibration_error([]) is None


def test_the_error_of_likely_marks_is_not_hidden_by_thousands_of_unlikely_ones() -> None:
    many = result(1, [(0.8, 0), (0.8, None), *[(0.001, None)] * 2000])
    error = calibration_error(reliability([many]))
    assert error is not None
    assert error < 0.002
    (row,) = reliability([many], 0.05)
    assert calibration_error([row]) == pytest.approx(0.3)
    (low,) = reliability([result(0, [(0.07, None), (0.04, None)])], 0.05)
    assert (low.hits.name, low.hits.total) == ("0.05 to 0.1", 1)


def test_each_patient_is_calibrated_on_the_others() -> None:
    """What is true of one patient only must not help that patient."""
    usual = [result(1, [(0.7, None)] * 8 + [(0.7, 0)] * 2, patient=p) for p in "abcd"]
    odd = result(9, [(0.7, i) for i in range(9)], patient="odd")
    *_, fitted = cross_fitted([*usual, odd])
    assert fitted.predictions[0].probability == pytest.approx(0.2, abs=0.05)
    again = cross_fitted([recalibrated(r, calibrate([*usual, odd])) for r in [*usual, odd]])
    assert again[-1].predictions[0].probability == pytest.approx(0.2, abs=0.05)


def test_nothing_is_calibrated_on_others_where_there_are_none() -> None:
    alone = result(1, [(0.7, 0), (0.4, None)], patient="a")
    not_all_known = result(0, [(0.9, None)], complete=False, patient="b")
    without_marks = result(1, [], patient="c")
    assert cross_fitted([alone, alone]) == []
    assert cross_fitted([alone, not_all_known, without_marks]) == []
    assert len(cross_fitted([alone, not_all_known, replace(alone, patient="d")])) == 3


def test_false_marks_count_on_complete_scans_only() -> None:
    known, unknown = result(0, [(0.9, None)]), result(0, [(0.9, None)] * 4, complete=False)
    assert false_per_scan([known, known, unknown], 0.5) == 1.0
    assert false_per_scan([unknown], 0.5) is None
    assert [row["outcome"] for row in as_rows([known, unknown])] == ["false", *["unknown"] * 4]


def test_errors_of_size_are_told_by_kind_and_size() -> None:
    solid = [replace(at(20.0 * i, 8.0), attenuation=Attenuation.SOLID) for i in range(3)]
    hazy = replace(at(80, 12), attenuation=Attenuation.NON_SOLID)
    marks = tuple(
        Prediction((0.0, 0.0, 0.0), 8.0, 0.9, i, measured)
        for i, measured in enumerate((8.0, 9.0, None, 11.0))
    )
    groups = {g.name: g for g in size_errors([ScanResult("a", (*solid, hazy), marks, True, 1.0)])}
    assert list(groups) == ["all", "solid", "solid, 6 to 10 mm"]
    assert groups["all"].errors_mm == (0.0, 1.0, -1.0)
    assert groups["solid"].agreement.bias == 0.5
    assert groups["solid"].agreement.upper == pytest.approx(0.5 + 1.96 * np.sqrt(0.5))
    assert size_errors([]) == []


def test_seconds_are_told_by_step() -> None:
    slow = replace(result(0, []), steps_s={"read": 4.0, "detect": 3.0}, seconds=3.0)
    quick = replace(slow, steps_s={"read": 1.0, "detect": 1.0}, seconds=1.0)
    assert seconds_by_step([slow, quick, quick]) == {
        "read": (1.0, 4.0),
        "detect": (1.0, 3.0),
        "all": (1.0, 3.0),
    }
