"""ORM^O01, OMI^O23 and ADT as senders write them, and every way in which they can be wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.hl7v2.incoming import BadMessage, moment, parse
from phoi_edge_node.hl7v2.orders import read_message
from phoi_edge_node.hl7v2.reception import Reception
from phoi_edge_node.orders import (
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    OrderNumber,
    PatientKey,
    PatientMerge,
    PatientUpdate,
)
from phoi_edge_node.result import Patient, Priority
from phoi_edge_node.testing import FakeClock, SequentialUids

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
PID = "PID|1||BN-42^^^BVTEST&1.2.3&ISO^MR~001060000001^^^CCCD^NI||Nguyễn^Ánh^Thị||19610504|F"


def _message(*segments: str, kind: str = "ORM^O01", charset: str = "UNICODE UTF-8") -> bytes:
    header = f"MSH|^~\\&|HIS|BV|PHOI|PHOI|20260302094500+0700||{kind}|M1|P|2.3.1||||||{charset}"
    return "\r".join([header, *segments, ""]).encode()


def _read(content: bytes) -> HospitalMessage:
    return read_message(parse(content), content, NOW)


def _order(*segments: str, kind: str = "ORM^O01") -> ImagingOrder:
    [told] = _read(_message(PID, *segments, kind=kind)).orders
    return told.order


def test_an_orm_as_ihe_has_it() -> None:
    content = _message(
        PID,
        "PV1||E",
        "ORC|NW|P1^HIS|F1^RIS|||||||||77^Trần^An^Văn^^BS",
        "OBR|1|P1^HIS|F1^RIS|71250^CT ngực^LOCAL|||||||||Ho ra máu|||||ACC1|RP1|SPS1||||CT|||"
        "^^^^^S||||^Nốt phổi?~^Di căn?",
        "ZDS|1.2.3.4^Phoi^Application^DICOM",
    )
    told = _read(content)
    assert told.sent_at == datetime(2026, 3, 2, 2, 45, tzinfo=UTC)
    [only] = told.orders
    assert only.action is OrderAction.PLACE
    assert only.order == ImagingOrder(
        placer=OrderNumber("P1", "HIS"),
        filler=OrderNumber("F1", "RIS"),
        accession_number="ACC1",
        study_instance_uid="1.2.3.4",
        patients=(PatientKey("BN-42", "BVTEST"), PatientKey("001060000001", "CCCD")),
        requester="Trần^An^Văn^BS",
        clinical_question="Nốt phổi?; Di căn?; Ho ra máu",
        procedure_code="71250",
        procedure="CT ngực",
        priority=Priority.STAT,
    )


def test_an_omi_as_ihe_has_it() -> None:
    order = _order(
        "ORC|NW|P1^HIS",
        "TQ1|1||||||||A",
        "OBR|1|P1^HIS||71250^CT ngực^LOCAL",
        "IPC|ACC2^RIS|RP1|1.2.3.5^RIS|SPS1|CT",
        kind="OMI^O23^OMI_O23",
    )
    assert (order.accession_number, order.study_instance_uid) == ("ACC2", "1.2.3.5")
    assert order.priority is Priority.URGENT


@pytest.mark.parametrize(
    ("control", "action"),
    [
        ("NW", OrderAction.PLACE),
        ("XO", OrderAction.PLACE),
        ("CA", OrderAction.CANCEL),
        ("DC", OrderAction.CANCEL),
        ("SC", OrderAction.UPDATE),
        ("SC|P1|||CA", OrderAction.CANCEL),
    ],
)
def test_order_control_codes(control: str, action: OrderAction) -> None:
    orc = f"ORC|{control}" if "|" in control else f"ORC|{control}|P1"
    assert [o.action for o in _read(_message(PID, orc)).orders] == [action]


@pytest.mark.parametrize(
    ("segments", "priority"),
    [
        (["OBR|1|P1|||S"], Priority.STAT),
        (["ORC|NW|P1|||||^^^^^R", "OBR|1|P1|||S"], Priority.ROUTINE),
        (["ORC|NW|P1", "OBR|1|P1" + 25 * "|" + "^^^^^A"], Priority.URGENT),
        (["ORC|NW|P1", "TQ1|1||||||||STAT^Stat^HL70485"], Priority.STAT),
        (["ORC|NW|P1", "TQ1|1||||||||TM15"], Priority.URGENT),
        (["ORC|NW|P1", "TQ1|1||||||||whenever"], None),
        (["ORC|NW|P1"], None),
    ],
)
def test_priorities_stand_in_several_places(segments: list[str], priority: Priority | None) -> None:
    assert _order(*segments).priority is priority


def test_several_orders_in_one_message_keep_their_own_numbers() -> None:
    told = _read(_message(PID, "ORC|NW|P1", "OBR|1|P1", "ORC|NW|P2", "OBR|2|P2", "OBR|3|P3"))
    assert [t.order.placer.value for t in told.orders] == ["P1", "P2", "P3"]


def test_an_obr_behind_another_is_done_with_as_their_orc_says() -> None:
    orc = "ORC|CA|P1||||||||||77^Trần^An"
    told = _read(_message(PID, orc, "OBR|1|P1", "OBR|2|P2")).orders
    assert [(t.action, t.order.placer.value, t.order.requester) for t in told] == [
        (OrderAction.CANCEL, "P1", "Trần^An"),
        (OrderAction.CANCEL, "P2", "Trần^An"),
    ]


@pytest.mark.parametrize("event", ["A18", "A30", "A34", "A36", "A39", "A40", "A46", "A47"])
def test_every_kind_of_merge_is_taken(event: str) -> None:
    [merge] = _read(_message(PID, "MRG|BN-1^^^BVTEST", kind=f"ADT^{event}")).merges
    assert merge == PatientMerge(PatientKey("BN-1", "BVTEST"), PatientKey("BN-42", "BVTEST"))


@pytest.mark.parametrize("event", ["A24", "A37", "A43", "A44", "A45"])
def test_a_change_of_identity_that_is_not_followed_is_refused(event: str) -> None:
    with pytest.raises(BadMessage) as refused:
        _read(_message(PID, "MRG|BN-1^^^BVTEST", kind=f"ADT^{event}"))
    assert (refused.value.code, refused.value.error) == ("AR", 201)


@pytest.mark.parametrize("processing", ["T", "D", ""])
def test_what_is_not_for_production_is_refused(processing: str) -> None:
    content = _message(PID, "MRG|BN-1^^^BVTEST", kind="ADT^A40")
    with pytest.raises(BadMessage) as refused:
        _read(content.replace(b"|M1|P|", f"|M1|{processing}|".encode()))
    assert (refused.value.code, refused.value.error) == ("AR", 202)


def test_a_site_that_tries_its_interfaces_takes_those_of_its_test_system_only() -> None:
    content = _message(PID, "MRG|BN-1^^^BVTEST", kind="ADT^A40")
    test = content.replace(b"|M1|P|", b"|M1|T|")
    assert read_message(parse(test), test, NOW, "T").merges
    with pytest.raises(BadMessage, match="MSH-11 T"):
        read_message(parse(content), content, NOW, "T")


def test_escapes_nulls_and_line_ends() -> None:
    content = _message(PID, 'ORC|NW|P\\T\\1|""', "OBR|1||||||||||||a\\S\\b\\.br\\c \\F\\ d\\E\\")
    [told] = _read(content.replace(b"\r", b"\r\n")).orders
    assert told.order.placer.value == "P&1"
    assert told.order.filler == OrderNumber()
    assert told.order.clinical_question == "a^b c | d\\"


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("UNICODE UTF-8", "utf-8"),
        ("8859/1", "latin-1"),
        ("8859/1", "utf-8"),  # mislabelled
        ("", "utf-8"),
        ("ASCII", "latin-1"),
        ("GB 18030-2000", "gb18030"),
    ],
)
def test_character_sets(charset: str, encoding: str) -> None:
    content = _message("PID|||BN-42", "ORC|NW|P1||||||||||1^Trần^Ân", charset=charset).decode()
    name = "Trần^Ân" if encoding in {"utf-8", "gb18030"} else "Trân^Ân"
    told = _read(content.replace("Trần", name.split("^")[0]).encode(encoding))
    assert told.orders[0].order.requester == name


def test_a_clock_that_runs_ahead_blocks_no_later_message() -> None:
    content = _message(PID, "ORC|NW|P1").replace(b"20260302094500+0700", b"20990101000000")
    assert _read(content).sent_at == NOW


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20260302094500+0700", datetime(2026, 3, 2, 2, 45, tzinfo=UTC)),
        ("202603020945-0130", datetime(2026, 3, 2, 11, 15, tzinfo=UTC)),
        ("20260302094500.123+0000", datetime(2026, 3, 2, 9, 45, tzinfo=UTC)),
        ("20260231", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times(value: str, expected: datetime | None) -> None:
    assert moment(value) == expected


def test_a_merge_and_what_it_knows_of_the_patient() -> None:
    told = _read(_message(PID, "MRG|BN-1^^^BVTEST~BN-2^^^OLD", kind="ADT^A40"))
    surviving = PatientKey("BN-42", "BVTEST")
    assert told.merges == (
        PatientMerge(PatientKey("BN-1", "BVTEST"), surviving),
        PatientMerge(PatientKey("BN-2", "OLD"), surviving),
    )
    assert [u.name for u in told.updates] == ["Nguyễn^Ánh^Thị"]


def test_several_merges_in_one_message() -> None:
    other = "PID|||BN-9^^^BVTEST"
    told = _read(
        _message(PID, "MRG|BN-1^^^BVTEST", other, "MRG|BN-8^^^BVTEST", kind="ADT^A40^ADT_A39")
    )
    assert [(m.gone.patient_id, m.surviving.patient_id) for m in told.merges] == [
        ("BN-1", "BN-42"),
        ("BN-8", "BN-9"),
    ]


def test_a_correction() -> None:
    [update] = _read(_message(PID, kind="ADT^A08")).updates
    assert update.name == "Nguyễn^Ánh^Thị"
    assert (update.birth_date, update.sex) == (date(1961, 5, 4), "F")
    assert update.patients[0] == PatientKey("BN-42", "BVTEST")


def test_admissions_tell_nothing() -> None:
    told = _read(_message(PID, kind="ADT^A01"))
    assert (told.orders, told.merges, told.updates) == ((), (), ())


@pytest.mark.parametrize(
    ("known", "told", "kept"),
    [
        ("NGUYEN^THI ANH TUYET", "Nguyễn^Thị Ánh Tuyết", True),
        ("DANG^VAN DUC", "Đặng^Văn Đức", True),
        ("Nguyễn^Thị Ánh Tuyết", "NGUYỄN^THỊ^ÁNH TUYẾT", True),
        ("Nguyễn^Văn Tuấn", "Nguyễn^Văn Tuân", False),
        ("NGUYEN^VAN TUAN", "Nguyễn^Văn Minh", False),
        ("NGUYEN^VAN TUAN", "", True),
    ],
)
def test_a_name_without_accents_is_not_corrected_by_one_with(
    known: str, told: str, *, kept: bool
) -> None:
    patient = Patient("1", "", known, None, "")
    corrected = PatientUpdate((PatientKey("1"),), told).over(patient)
    assert corrected.name == (known if kept else told)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "AR"),
        (b"hello", "AR"),
        (b"MSH", "AR"),
        (b"MSH|^~\\&|A|B|C|D|20260101||ORM^O01", "AR"),
        (_message(PID, kind="ORU^R01"), "AR"),
        (_message(PID), "AE"),
        (_message(PID, "ORC|NW"), "AE"),
        (_message(PID, "ORC|QQ|P1"), "AE"),
        (_message("PID|||", "ORC|NW|P1"), "AE"),
        (_message(PID, "ORC|NW|P1", charset="EBCDIC"), "AE"),
        (_message(PID, "ORC|NW|P1").replace("Á".encode(), b"\xff"), "AE"),
        (_message(PID, kind="ADT^A40"), "AE"),
        (_message(PID, "ORC|NW|" + 251 * "1"), "AE"),
        (_message("PV1||E", kind="ADT^A08"), "AE"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(content: bytes, code: str) -> None:
    with pytest.raises(BadMessage) as refusal:
        _read(content)
    assert refusal.value.code == code
    assert "BN-42" not in str(refusal.value)


class _Memory:
    """Stands for the store."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.messages: list[HospitalMessage] = []
        self._trouble = trouble

    def take_message(self, message: HospitalMessage) -> bool:
        if self._trouble:
            raise self._trouble
        new = message.identity not in {m.identity for m in self.messages}
        self.messages.append(message)
        return new

    def order_of(self, study_instance_uid: str) -> ImagingOrder | None:
        return None


def _reception(memory: _Memory) -> Reception:
    return Reception(memory, FakeClock(), SequentialUids(), "bvdk")


def test_the_acknowledgement_answers_in_the_senders_terms() -> None:
    memory = _Memory()
    answer = _reception(memory).answer(_message(PID, "ORC|NW|P1")).decode()
    msh, msa, rest = answer.split("\r")
    assert msh.split("|")[2:6] == ["PHOI", "PHOI", "HIS", "BV"]
    assert msh.split("|")[8] == "ACK^O01^ACK"
    assert msh.split("|")[11] == "2.3.1"
    assert (msa, rest) == ("MSA|AA|M1", "")
    assert len(memory.messages) == 1


def test_what_could_not_be_stored_is_an_error_that_tells_nothing_of_the_patient() -> None:
    memory = _Memory(OSError("INSERT ... BN-42"))
    answer = _reception(memory).answer(_message(PID, "ORC|NW|P1")).decode()
    assert "\rMSA|AE|M1\r" in answer
    assert "BN-42" not in answer


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reception(noise: bytes) -> None:
    assert b"\rMSA|A" in _reception(_Memory()).answer(noise)


_SEGMENTS = _message(PID, "ORC|NW|P1", "OBR|1|P1|||S", "MRG|1", "ZDS|1.2").split(b"\r")


@given(
    st.permutations(_SEGMENTS[1:]),
    st.sampled_from([b"ORM^O01", b"OMI^O23", b"ADT^A40", b"ADT^A08", b"ADT"]),
    st.integers(0, 400),
    st.binary(max_size=4),
)
def test_no_order_of_segments_and_no_damage_breaks_it(
    segments: list[bytes], kind: bytes, place: int, damage: bytes
) -> None:
    content = b"\r".join([_SEGMENTS[0].replace(b"ORM^O01", kind), *segments])
    damaged = content[:place] + damage + content[place + len(damage) :]
    for message in (content, damaged):
        answer = _reception(_Memory()).answer(message)
        assert answer.startswith(b"MSH|^~\\&|")
        assert b"\rMSA|A" in answer
        assert b"|207^" not in answer, "a trouble of our own"
