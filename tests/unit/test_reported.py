"""What a report says after the review, and the words and codes it says it with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node import terms
from phoi_edge_node.person_name import PersonName, person_name
from phoi_edge_node.ports import ReportStatus, ToldBefore
from phoi_edge_node.reported import (
    filler_number,
    impression,
    reported_at,
    reported_nodules,
    reported_outcome,
    retracted_nodules,
)
from phoi_edge_node.result import Correction, Outcome, Verdict
from phoi_edge_node.terms import Scheme, Term, plain_text
from phoi_edge_node.web.texts import TEXTS
from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Lobe, Side
from support.cases import (
    ANALYSED_AT,
    LEFT_BIG,
    NO_BASE,
    RIGHT_SMALL,
    SIGNED_AT,
    accept_all,
    case,
    disposition,
    mixed_review,
    nodule,
    reject_all,
    result,
    review,
)

FINAL = ReportStatus.FINAL


def test_vietnamese_name_is_taken_apart_and_written_in_its_order() -> None:
    name = person_name("Nguyễn^Tuyết^Thị Ánh^BS.^Jr")
    assert name == PersonName("Nguyễn", "Tuyết", "Thị Ánh", "BS.", "Jr")
    assert name.text == "Nguyễn Thị Ánh Tuyết"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", PersonName()),
        ("^^^", PersonName()),
        ("NGUYEN VAN A", PersonName("NGUYEN VAN A")),
        ("^=山田^太郎", PersonName("山田", "太郎")),
        ("A^B^C^D^E^F^G", PersonName("A", "B", "C", "D", "E")),
    ],
)
def test_unusual_names(value: str, expected: PersonName) -> None:
    assert person_name(value) == expected


@given(st.text(st.characters()))
def test_any_text_is_some_name(value: str) -> None:
    assert "\n" not in person_name(value).text


@given(st.text(st.characters()))
def test_plain_text_can_always_be_sent(value: str) -> None:
    plain = plain_text(value)
    plain.encode("utf-8")
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in plain)
    assert plain_text(plain) == plain


def test_filler_number_is_that_of_the_study() -> None:
    numbers = {filler_number(f"1.2.3.{n}") for n in range(1000)}
    assert len(numbers) == 1000
    assert all(len(number) == 15 and number.isalnum() for number in numbers)
    assert filler_number("1.2.3.1") == filler_number("1.2.3.1")


@pytest.mark.parametrize("outcome", Outcome)
def test_without_a_review_the_outcome_is_that_of_the_result(outcome: Outcome) -> None:
    assert reported_outcome(case(outcome)) is outcome
    assert reported_at(case(outcome)) == ANALYSED_AT


@pytest.mark.parametrize("outcome", Outcome)
def test_a_missed_nodule_makes_any_outcome_positive(outcome: Outcome) -> None:
    missed = disposition("2.25.5", Verdict.MISSED, Correction(mean_diameter_mm=6.0))
    signed = case(outcome, FINAL, review(missed))
    assert reported_outcome(signed) is Outcome.POSITIVE
    assert reported_at(signed) == SIGNED_AT


def test_all_marks_rejected_leaves_what_the_images_allow() -> None:
    rejected = case(Outcome.POSITIVE, FINAL, reject_all(result(Outcome.POSITIVE)))
    assert reported_outcome(rejected) is Outcome.NEGATIVE
    for coverage in (NO_BASE, None):
        partial = replace(rejected, result=replace(rejected.result, coverage=coverage))
        assert reported_outcome(partial) is Outcome.LIMITED


def test_review_keeps_modifies_and_adds() -> None:
    modified, missed = reported_nodules(case(Outcome.POSITIVE, FINAL, mixed_review()))
    assert (modified.number, modified.mean_diameter_mm, modified.measured_by_model) == (
        1,
        10.5,
        False,
    )
    assert modified.size_class is not None
    assert modified.size_class.lung_rads == "4A"
    assert (missed.number, missed.tracking_id, missed.nodule) == (3, "Nodule 3", None)
    assert missed.center_lps_mm == (-40.0, 20.0, -90.0)
    assert missed.site is None
    assert missed.size_class is None


def test_no_class_is_made_of_a_part_solid_nodule_measured_as_a_whole() -> None:
    finding = replace(LEFT_BIG.finding, attenuation=Attenuation.PART_SOLID, solid_diameter_mm=6.5)
    part_solid = replace(LEFT_BIG, finding=finding)
    of = replace(result(Outcome.POSITIVE), nodules=(part_solid,))
    smaller = disposition(LEFT_BIG.tracking_uid, Verdict.MODIFIED, Correction(mean_diameter_mm=9.0))
    (told,) = reported_nodules(replace(case(status=FINAL), result=of, review=review(smaller)))
    assert told.size_class is None


def test_retracted_is_what_was_told_and_no_longer_stands() -> None:
    assert retracted_nodules(case()) == ()
    earlier = ToldBefore(replace(result(Outcome.POSITIVE), nodules=(nodule(7),)), mixed_review())
    told = replace(case(Outcome.POSITIVE, FINAL, mixed_review()), told_before=(earlier,))
    assert [n.tracking_uid for n in retracted_nodules(told)] == ["2.25.707", "2.25.702"]
    accepted = replace(told, review=accept_all(told.result))
    assert [n.tracking_uid for n in retracted_nodules(accepted)] == ["2.25.707", "2.25.799"]


@pytest.mark.parametrize("outcome", Outcome)
def test_impression_says_the_outcome_first_and_the_standing_last(outcome: Outcome) -> None:
    lines = impression(case(outcome))
    assert lines[0][0].startswith(terms.OUTCOMES[outcome].en)
    assert lines[0][1].startswith(terms.OUTCOMES[outcome].vi)
    assert "not verified by a physician" in lines[-1][0]
    assert "chưa được bác sĩ xác nhận" in lines[-1][1]


def test_impression_says_side_and_why() -> None:
    _, left, right, _ = impression(case())
    assert "left lower lobe" in left[0]
    assert "thùy dưới trái" in left[1]
    assert "right lung" in right[0]
    assert "phổi phải" in right[1]
    assert "thiếu lát cắt" in impression(case(Outcome.NOT_ANALYSABLE))[0][1]
    assert "không thấy đáy phổi" in impression(case(Outcome.LIMITED))[0][1]
    assert RIGHT_SMALL.finding.side is Side.RIGHT


def test_impression_counts_the_verdicts() -> None:
    lines = impression(case(Outcome.POSITIVE, FINAL, mixed_review()))
    (line,) = [line for line in lines if "Hòa" in line[0]]
    assert line == (
        "Reviewed by BS. Lê Thị Hòa: 0 accepted, 1 modified, 1 rejected, 1 added.",
        "BS. Lê Thị Hòa đã xem: 0 đồng ý, 1 sửa, 1 loại, 1 thêm.",  # names hold their title
    )


def test_every_value_has_its_words() -> None:
    assert set(terms.REASONS_VI) == set(NotAnalysableReason)
    assert set(terms.OUTCOMES) == set(Outcome)
    assert set(terms.LOBES) == set(Lobe)
    assert set(terms.VERDICTS) == set(Verdict)
    assert set(terms.STATUS_NOTICES) == set(ReportStatus)
    assert set(terms.LUNG_PARTS_VI) == set(NO_BASE.parts)
    assert {f"study.coverage.{part}" for part in NO_BASE.parts} <= set(TEXTS)


def test_own_codes_fit_a_dicom_code_value_and_name_one_thing_each() -> None:
    found = [value for value in vars(terms).values() if isinstance(value, Term)]
    for table in (terms.OUTCOMES, terms.VERDICTS, terms.PRIORITIES, terms.ATTENUATIONS):
        found += [term for term in table.values() if isinstance(term, Term)]
    own = [term for term in found if term.scheme is Scheme.PHOI]
    assert len(own) > 15
    assert all(len(term.code) <= 16 for term in own)  # SH, PS3.5 6.2
    assert all(len(term.en) <= 64 for term in found)  # LO
    assert len({term.code for term in own}) == len(own)
