"""The series with the most detail of the whole chest is chosen, and the reason is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.series_choice import (
    SuitableSeries,
    is_original,
    kernel_sharpness,
    rank,
    require_coverage,
)
from phoi_models.errors import NotAnalysable
from phoi_models.geometry import Geometry


def series(
    uid: str, count: int = 120, spacing: float = 2.5, *, original: bool = True, kernel: str = "B30f"
) -> SuitableSeries:
    geometry = Geometry(
        (count, 512, 512), (spacing, 0.7, 0.7), (0, 0, 0), ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    )
    return SuitableSeries(uid, (), geometry, original, kernel)


THIN = series("thin", 300, 1.0)
THICK = series("thick", 60, 5.0)
SHARP = series("sharp", 300, 1.0, kernel="B70f")
SHORT = series("short", 120, 1.0)
DERIVED = series("derived", 300, 1.0, original=False)
ALL = [THIN, THICK, SHARP, SHORT, DERIVED]


@given(st.permutations(ALL))
def test_the_best_wins_in_any_order_and_every_other_has_its_reason(
    candidates: list[SuitableSeries],
) -> None:
    ranking = rank(candidates)
    assert ranking.best is THIN
    assert ranking.reason == "thinnest axial series: 300 slices of 1 mm"
    assert ranking.passed_over == {
        "thick": "thicker: 60 slices of 5 mm",
        "sharp": "sharper kernel: B70f",
        "short": "shows 120 mm of the patient, not 300 mm",
        "derived": "derived, not an original acquisition",
    }


@pytest.mark.parametrize(
    ("better", "worse"),
    [(THIN, THICK), (THIN, SHARP), (THIN, SHORT), (THICK, SHORT), (THICK, DERIVED)],
)
def test_what_counts_more(better: SuitableSeries, worse: SuitableSeries) -> None:
    assert rank([worse, better]).best is better


def test_the_only_one_is_not_called_the_thinnest() -> None:
    assert rank([THICK]).reason == "the only suitable series: 60 slices of 5 mm"


def test_a_chosen_series_that_is_not_the_thinnest_is_not_called_so() -> None:
    assert rank([THICK, SHORT]).reason == "best axial series: 60 slices of 5 mm"


def test_equals_are_told_apart_always_alike() -> None:
    twins = [series("a"), series("b")]
    assert rank(twins).best.series_instance_uid == rank(twins[::-1]).best.series_instance_uid == "a"
    assert rank(twins).passed_over == {"b": "as good as the chosen one: 120 slices of 2.5 mm"}


@pytest.mark.parametrize(
    ("softer", "sharper"),
    [
        ("B30f", "B70f"),
        ("Br40d\\3", "Bl64d"),
        ("FC08", "FC51"),
        ("STANDARD", "LUNG"),
        ("standard", "BONEPLUS"),
        ("B", "YA"),
        ("I30f", "I70f"),
        ("SOFT", "nobody knows"),
        ("nobody knows", "EDGE"),
    ],
)
def test_kernels(softer: str, sharper: str) -> None:
    assert kernel_sharpness(softer) < kernel_sharpness(sharper)


def test_image_types() -> None:
    axial = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    assert is_original(axial)
    assert not is_original(["DERIVED", "PRIMARY", "AXIAL"])
    assert not is_original([])


def test_ten_centimetres_are_needed() -> None:
    require_coverage(series("x", 40, 2.5).geometry)
    with pytest.raises(NotAnalysable, match="39 slices show 98 mm of the patient"):
        require_coverage(series("x", 39, 2.5).geometry)
