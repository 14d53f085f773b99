"""ORU^R01: what stands in the message, and that no text can break it."""

from __future__ import annotations

from dataclasses import replace

import hl7
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phoi_edge_node.hl7v2.fields import components, text
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus, ToldBefore
from phoi_edge_node.reported import filler_number
from phoi_edge_node.result import Completeness, Outcome, Priority
from phoi_edge_node.settings import Hl7Settings, SiteSettings
from phoi_edge_node.terms import COMPLETENESSES, plain_text
from support.cases import (
    LEFT_BIG,
    NAME,
    ORDER,
    PATIENT,
    PHOI_VERSION,
    STUDY,
    CountingUids,
    case,
    known,
    mixed_review,
    nodule,
    reject_all,
    result,
)

SETTINGS = Hl7Settings(host="127.0.0.1", port=2575)
ANY_TEXT = st.text(st.characters(), max_size=60)


def encode(of: ReportedCase) -> str:
    encoder = OruEncoder(SETTINGS, SiteSettings(name="bvdk"), CountingUids(), PHOI_VERSION)
    (document,) = encoder.encode(of)
    assert document.kind is DocumentKind.HL7_ORU
    assert document.identity == "PHOI00000001"
    return document.content.decode("utf-8")


def parsed(of: ReportedCase) -> hl7.Message:
    return hl7.parse(encode(of))


def obx(message: hl7.Message, code: str, sub_id: str = "") -> list[hl7.Segment]:
    return [s for s in message.segments("OBX") if str(s[3][0][0]) == code and str(s[4]) == sub_id]


def test_header_says_who_what_and_in_which_characters() -> None:
    msh = parsed(case()).segment("MSH")
    assert str(msh[3]) == "PHOI"
    assert str(msh[4]) == "bvdk"
    assert str(msh[9]) == "ORU^R01^ORU_R01"
    assert str(msh[10]) == "PHOI00000001"
    assert str(msh[12]) == "2.5.1"
    assert str(msh[18]) == "UNICODE UTF-8"


def test_patient_in_vietnamese_letter_for_letter() -> None:
    pid = parsed(case()).segment("PID")
    assert str(pid[3]) == "BN-000123^^^BVDK^MR"
    assert str(pid[5]) == f"{NAME}^^^^^L"
    assert str(pid[7]) == "19680229"
    assert str(pid[8]) == "F"


def test_order_is_phois_own_and_the_accession_number_is_no_placer_number() -> None:
    message = parsed(case())
    filler = f"{filler_number(STUDY.study_instance_uid)}^PHOI"
    assert len(filler) <= 22
    for name in ("ORC", "OBR"):
        assert str(message.segment(name)[2]) == ""
        assert str(message.segment(name)[3]) == filler
    assert str(message.segment("OBR")[18]) == "ACC2026-17"
    assert str(message.segment("OBR")[4][0][2]) == "99PHOI"


def test_the_imaging_order_is_the_parent_and_says_who_asks_what() -> None:
    message = parsed(replace(case(), order=ORDER, study=replace(STUDY, accession_number="")))
    orc, obr = message.segment("ORC"), message.segment("OBR")
    assert (str(orc[2]), str(obr[2])) == ("", "")
    assert str(orc[8]) == str(obr[29]) == r"P\T\1&HIS^F1&RIS"
    assert str(orc[12]) == str(obr[16]) == "^Lê^Hữu^Trác^^BS"
    assert str(obr[18]) == ORDER.accession_number
    assert message.unescape(str(obr[31])) == "^Ho ra máu | nốt phổi?"


@pytest.mark.parametrize(
    ("status", "letter"),
    [(ReportStatus.PRELIMINARY, "P"), (ReportStatus.FINAL, "F"), (ReportStatus.CORRECTED, "C")],
)
@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_in_every_status(outcome: Outcome, status: ReportStatus, letter: str) -> None:
    message = parsed(case(outcome, status))
    assert str(message.segment("OBR")[25]) == letter
    (told,) = obx(message, "outcome")
    assert str(told[5][0][0]) == outcome.value
    assert str(told[11]) == letter
    deleted = {str(s[3][0][0]) for s in message.segments("OBX") if str(s[11]) == "D"}
    assert deleted <= {"reading-priority"}
    assert {str(s[11]) for s in message.segments("OBX")} <= {letter, "X", "D"}


@pytest.mark.parametrize("outcome", Outcome)
def test_only_negative_reads_like_negative(outcome: Outcome) -> None:
    message = parsed(case(outcome))
    (told,) = obx(message, "outcome")
    (counted,) = obx(message, "nodule-count")
    words = encode(case(outcome)).lower()
    is_negative = outcome is Outcome.NEGATIVE
    assert (str(told[8]) == "N") is is_negative
    assert (str(counted[5]) == "0") is is_negative
    assert ("negative" in words) is is_negative
    assert ("âm tính" in words) is is_negative
    if outcome in {Outcome.LIMITED, Outcome.NOT_ANALYSABLE, Outcome.FAILED}:
        assert (str(counted[5]), str(counted[11])) == ("", "X")


@pytest.mark.parametrize("how", Completeness)
def test_how_the_study_is_known_to_be_whole_is_told(how: Completeness) -> None:
    told = encode(replace(case(), result=known(Outcome.POSITIVE, how)))
    (item,) = obx(hl7.parse(told), "completeness")
    unconfirmed = how is Completeness.UNCONFIRMED
    assert str(item[5][0][0]) == COMPLETENESSES[how].code
    assert (str(item[8]) == "A") is unconfirmed
    assert ("CHƯA XÁC NHẬN ĐỦ HÌNH" in str(obx(hl7.parse(told), "121073")[0][5])) is unconfirmed


def test_a_nodule_is_one_group() -> None:
    message = parsed(case())
    values = {
        str(s[3][0][0]): str(s[5]).split("^")[0]
        for s in message.segments("OBX")
        if str(s[4]) == "1"
    }
    assert values["112040"] == LEFT_BIG.tracking_uid
    assert values["112039"] == "Nodule 1"
    assert values["363698007"] == "41224006"  # left lower lobe
    assert values["272741003"] == "7771000"  # left
    assert values["81827009"] == "12.3"
    assert values["103339001"] == "13.3"
    assert values["103340004"] == "11.3"
    assert values["118565006"] == "974"
    assert values["111012"] == "93.4"
    assert values["1362105002"] == "lung-rads-4A"
    (site,) = obx(message, "363698007", "2")
    assert str(site[5][0][0]) == "3341006"  # right lung: no lobe is guessed
    assert str(obx(message, "112039", "1")[0][8]) == "AA"
    assert str(obx(message, "112039", "2")[0][8]) == "A"


def test_a_reviewers_diameter_replaces_the_models_measurements() -> None:
    message = parsed(case(Outcome.POSITIVE, ReportStatus.FINAL, mixed_review()))
    assert str(obx(message, "81827009", "1")[0][5]) == "10.5"
    (volume,) = obx(message, "118565006", "1")
    assert (str(volume[5]), str(volume[11])) == ("", "D")
    assert str(obx(message, "1362105002", "1")[0][5][0][0]) == "lung-rads-4A"
    assert str(obx(message, "verdict", "1")[0][5][0][0]) == "modified"


def test_rejected_nodules_are_deleted_and_missed_ones_added() -> None:
    message = parsed(case(Outcome.POSITIVE, ReportStatus.FINAL, mixed_review()))
    rejected = [s for s in message.segments("OBX") if str(s[4]) == "2"]
    assert rejected
    assert {(str(s[5]), str(s[11])) for s in rejected} == {("", "D")}
    assert str(obx(message, "112040", "3")[0][5]) == "2.25.799"
    assert str(obx(message, "nodule-count")[0][5]) == "2"
    assert str(message.segment("OBR")[32]) == "bs.hoa&BS. Lê Thị Hòa"


def test_all_marks_rejected_is_negative_only_where_the_lungs_are_wholly_shown() -> None:
    positive = result(Outcome.POSITIVE)
    whole = case(Outcome.POSITIVE, ReportStatus.FINAL, reject_all(positive))
    assert str(obx(parsed(whole), "outcome")[0][5][0][0]) == "negative"
    partial = replace(whole, result=replace(positive, coverage=result(Outcome.LIMITED).coverage))
    assert str(obx(parsed(partial), "outcome")[0][5][0][0]) == "limited"
    unsure = replace(whole, result=known(Outcome.POSITIVE, Completeness.UNCONFIRMED))
    assert str(obx(parsed(unsure), "outcome")[0][5][0][0]) == "limited"


def test_what_an_earlier_report_told_is_deleted() -> None:
    earlier = replace(result(Outcome.POSITIVE), nodules=(nodule(3), nodule(4)))
    told = replace(case(), told_before=(ToldBefore(earlier, None),))
    message = parsed(told)
    for number in ("3", "4"):
        assert {str(s[11]) for s in message.segments("OBX") if str(s[4]) == number} == {"D"}
    assert {str(s[11]) for s in message.segments("OBX") if str(s[4]) == "1"} == {"P"}


def test_a_priority_that_was_suggested_ends_with_the_signature() -> None:
    (suggested,) = obx(parsed(case()), "reading-priority")
    assert (str(suggested[5][0][0]), str(suggested[11])) == ("urgent", "P")
    (ended,) = obx(parsed(case(status=ReportStatus.FINAL)), "reading-priority")
    assert (str(ended[5]), str(ended[11])) == ("", "D")


def test_what_an_earlier_report_told_of_the_study_is_deleted() -> None:
    earlier = ToldBefore(known(Outcome.POSITIVE, Completeness.UNCONFIRMED), None)
    failed = replace(case(Outcome.FAILED), told_before=(earlier,))
    for code in ("completeness", "reading-priority"):
        (gone,) = obx(parsed(failed), code)
        assert (str(gone[5]), str(gone[8]), str(gone[11])) == ("", "", "D")


@pytest.mark.parametrize(
    ("priority", "letter"), [(Priority.ROUTINE, "R"), (Priority.URGENT, "A"), (Priority.STAT, "S")]
)
def test_suggested_priority_in_tq1_and_obr_27(priority: Priority, letter: str) -> None:
    told = replace(case(), result=replace(result(Outcome.POSITIVE), suggested_priority=priority))
    message = parsed(told)
    assert str(message.segment("TQ1")[9][0][0]) == letter
    assert str(message.segment("OBR")[27]) == f"^^^^^{letter}"


def test_unknown_values_leave_their_fields_empty() -> None:
    unknown = replace(PATIENT, patient_id="", issuer="", name="", birth_date=None, sex="")
    study = replace(STUDY, patient=unknown, accession_number="", started_at=None)
    message = parsed(replace(case(), study=study))
    number = filler_number(STUDY.study_instance_uid)  # two nameless patients are never one
    assert str(message.segment("PID")) == f"PID|1||{number}^^^PHOI^U||^^^^^^U"
    assert str(message.segment("OBR")[7]) == ""
    assert str(message.segment("OBR")[18]) == ""


def test_same_case_same_bytes() -> None:
    assert encode(case()) == encode(case())


@given(ANY_TEXT)
def test_escaped_text_comes_back(value: str) -> None:
    escaped = text(value)
    assert not set(escaped) & set("|^~&\r\n\x0b\x1c")
    message = hl7.parse(f"MSH|^~\\&|A|B\rOBX|1|ST|{components('x', value)}x\r")
    back = str(message.unescape(escaped))
    assert back == plain_text(value)


@example(name="\ud800^\x0b|&", patient_id="\udfff\r\n\x1c", description="\x85\u2028\ud800")
@given(name=ANY_TEXT, patient_id=ANY_TEXT, description=ANY_TEXT)
def test_no_text_breaks_the_message(name: str, patient_id: str, description: str) -> None:
    patient = replace(PATIENT, name=name, patient_id=patient_id, issuer=description)
    study = replace(STUDY, patient=patient, accession_number=patient_id)
    content = encode(replace(case(), study=study))
    plain = encode(case())
    assert "\x0b" not in content
    assert "\x1c" not in content
    assert content.count("\r") == plain.count("\r")
    for line, expected in zip(content.split("\r"), plain.split("\r"), strict=True):
        assert line[:3] == expected[:3]


@pytest.mark.parametrize("outcome", [Outcome.NOT_ANALYSABLE, Outcome.FAILED])
def test_no_priority_is_suggested_where_nothing_is_known(outcome: Outcome) -> None:
    told = replace(case(), result=result(outcome))
    assert "TQ1|" not in encode(told)
    assert "reading-priority" not in encode(told)
