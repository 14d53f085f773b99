"""Whoever finds a document that did not arrive is told what to do."""

from __future__ import annotations

import pytest
from phoi_edge_node.dicom.storage_scu import outcome
from phoi_edge_node.hl7v2.mllp import judge, parse_acknowledgement
from phoi_edge_node.plain_words import NOTES, TABLE, UNKNOWN, explain
from phoi_edge_node.ports import Delivered, DocumentKind, Unreachable
from pydicom import Dataset

SR = DocumentKind.STRUCTURED_REPORT


@pytest.mark.parametrize(
    ("reason", "says", "advises"),
    [
        ("status 0xA900", "does not fit its kind", "PACS vendor"),
        ("status 0xC123, 10 times", "time after time", "its log"),
        ("status 0x0110, 10 times", "failed while it stored", "its log"),
        ("no presentation context was accepted for this SOP class", "kind of object", "objects"),
        ("ARCHIVE at 10.0.0.5:104 takes nothing of what was proposed", "kind of", "SOP class"),
        ("status 0xA771", "hidden this object before", "restore"),
        ("status 0xA778", "by other data", "compare"),
        ("status 0xA7FF, 10 times", "no room", "disk"),
        ("status 0x0124", "does not let Phoi store", "AE title"),
        (
            "the receiver answered AR, error 204 at PID-3: see its own log",
            "does not know",
            "merged",
        ),
        (
            "the receiver answered AE, error 101 at PV1-3: see its own log, 10 times",
            "misses",
            "map",
        ),
        ("the receiver answered AE: see its own log, 10 times", "time after time", "interface log"),
        ("the receiver answered CR: see its own log", "rejected", "hl7.mapping"),
        ("HTTP 422 (business-rule)", "own rules", "which rule"),
        ("HTTP 409 (conflict), 10 times", "contradicts", "duplicates"),
        ("HTTP 403 (forbidden), 10 times", "does not let Phoi write", "add system/*.read"),
        ("HTTP 501", "no transactions", "by transaction"),
        ("HTTP 404 (not-found)", "refused", "base_url"),
        ("MLflow answered 400 INVALID_PARAMETER_VALUE", "usage figures", "runs MLflow"),
        ("the file cannot be sent (ValueError)", "fault of ours", "Report it"),
        ("something that nobody has seen before", "did not take", "administrator"),
    ],
)
def test_a_reason_is_explained_with_a_remedy(reason: str, says: str, advises: str) -> None:
    words = explain(reason, SR)
    assert says in words.en
    assert advises in words.remedy_en


def test_every_explanation_is_there_in_both_languages_and_ends_with_sending_again() -> None:
    for words in (UNKNOWN, *(words for _, words in TABLE)):
        assert words.en.endswith(".")
        assert words.vi.endswith(".")
        assert words.en != words.vi
        assert words.remedy_en.endswith("send again.")
        assert words.remedy_vi.endswith("gửi lại.")


@pytest.mark.parametrize(
    "reason",
    [
        "status 0x0122",
        "no presentation context was accepted for this SOP class",
        "ARCHIVE at 10.0.0.5:104 takes nothing of what was proposed",
        "status 0xA772",
        "status 0xA774",
    ],
)
def test_a_rejection_note_that_no_setting_leaves_out_is_followed_by_hand(reason: str) -> None:
    words = explain(reason, DocumentKind.REJECTION_NOTE)
    assert words in [words for _, words in NOTES]
    assert "still shows" in words.en
    for remedy in (words.remedy_en, words.remedy_vi):
        assert "archives.objects" not in remedy
        assert "'Phoi AI lung nodules'" in remedy
    assert words.en != words.vi
    again = explain("status 0x0110, 10 times", DocumentKind.REJECTION_NOTE)
    assert "send again" in again.remedy_en


def test_no_status_of_an_archive_is_without_words() -> None:
    for status in range(0x10000):
        answer = Dataset()
        answer.Status = status
        found = outcome(answer)
        if not isinstance(found, Delivered | Unreachable):
            assert explain(found.reason, SR) is not UNKNOWN


@pytest.mark.parametrize("code", ["AE", "AR", "CE", "CR"])
@pytest.mark.parametrize("error", ["", "ERR||PID^1^3|204^Unknown key^HL70357|E\r"])
def test_no_acknowledgement_is_without_words(code: str, error: str) -> None:
    ack = f"MSH|^~\\&|E|B|P|s|1||ACK|1|P|2.5.1\rMSA|{code}|M1\r{error}"
    found = judge(parse_acknowledgement(ack.encode()), "M1")
    assert not isinstance(found, Delivered | Unreachable)
    assert explain(found.reason, SR) is not UNKNOWN
