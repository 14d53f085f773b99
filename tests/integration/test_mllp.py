"""MLLP: python-hl7's receiver keeps what it gets; bad receivers do no harm."""

from __future__ import annotations

import time
from pathlib import Path

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.hl7v2.mllp import MllpDestination, judge, parse_acknowledgement
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.ports import Delivered, Document, Erred, Refused, Unreachable
from phoi_edge_node.settings import Hl7Settings, SiteSettings
from phoi_edge_node.stand_ins.program import listening
from support.cases import NAME, PHOI_VERSION, CountingUids, case
from support.mllp_peers import (
    Behaviour,
    acknowledging,
    answering,
    dripping,
    flooding,
    mllp_peer,
    silent,
)

RECEIVER = "phoi_edge_node.stand_ins.mllp"


def to(port: int, timeout_s: float = 5.0) -> MllpDestination:
    return MllpDestination(Hl7Settings(host="127.0.0.1", port=port, timeout_s=timeout_s))


def document() -> Document:
    settings = Hl7Settings(host="127.0.0.1", port=1)
    encoder = OruEncoder(settings, SiteSettings(name="bvdk"), CountingUids(), PHOI_VERSION)
    (made,) = encoder.encode(case())
    return made


def test_receiver_has_the_message_once_letter_for_letter(tmp_path: Path) -> None:
    with listening(RECEIVER, tmp_path) as port:
        emr = to(port)
        assert emr.check() == Delivered("connected")
        assert emr.send(document()) == Delivered("AA")
        assert emr.send(document()) == Delivered("AA")  # a retry: the same MSH-10
    (kept,) = tmp_path.glob("*.hl7")
    content = kept.read_bytes().decode("utf-8")
    assert content == document().content.decode("utf-8")
    assert NAME in str(hl7.parse(content).segment("PID")[5])


@pytest.mark.parametrize(("answer", "meaning"), [("AE", Erred), ("AR", Refused)])
def test_receiver_that_says_no(tmp_path: Path, answer: str, meaning: type) -> None:
    with listening(RECEIVER, tmp_path, options=["--answer", answer]) as port:
        outcome = to(port).send(document())
    assert outcome == meaning(f"the receiver answered {answer}: see its own log")
    assert not list(tmp_path.glob("*.hl7"))


@pytest.mark.parametrize("code", ["AA", "CA"])
def test_accepted(code: str) -> None:
    with mllp_peer(acknowledging(f"{code}|{{id}}")) as port:
        assert to(port).send(document()) == Delivered(code)


@pytest.mark.parametrize(("code", "meaning"), [("CE", Erred), ("CR", Refused)])
def test_no_in_enhanced_mode(code: str, meaning: type) -> None:
    with mllp_peer(acknowledging(f"{code}|{{id}}")) as port:
        assert isinstance(to(port).send(document()), meaning)


@pytest.mark.parametrize("msa", ["{code}||cannot parse", "{code}|", "{code}"])
@pytest.mark.parametrize(
    ("code", "meaning"), [("AR", Refused), ("CR", Refused), ("AE", Erred), ("CE", Erred)]
)
def test_a_no_that_names_no_message_is_for_the_one_that_was_sent(
    code: str, meaning: type, msa: str
) -> None:
    with mllp_peer(acknowledging(msa.format(code=code))) as port:
        assert isinstance(to(port).send(document()), meaning)


def test_refusal_tells_the_error_code_and_none_of_the_words() -> None:
    words = "ERR||PID^1^5|204^Unknown key identifier|E|||Nguyễn Thị Ánh Tuyết BN-000123"
    with mllp_peer(acknowledging(f"AR|{{id}}|{NAME}", words)) as port:
        outcome = to(port).send(document())
    assert outcome == Refused("the receiver answered AR, error 204 at PID-5: see its own log")


@pytest.mark.parametrize(
    ("msa", "err", "told"),
    [
        ("AE|1|words", "ERR|OBX^3^5^102&Data type error", ("102 at OBX-5",)),  # 2.3.1
        ("AE|1||||207^Application internal error^HL70357", "", ("207",)),
        ("AE|1", "ERR|||Nguyễn^An\rERR||nguyễn^1|101\rERR||MSH^1^an|203", ("101", "203 at MSH")),
    ],
)
def test_what_is_wrong_is_told_where_it_is_a_code(msa: str, err: str, told: tuple[str]) -> None:
    answer = f"MSH|^~\\&|EMR\rMSA|{msa}\r{err}\r".encode()
    parsed = parse_acknowledgement(answer)
    assert parsed is not None
    assert parsed.errors == told


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (acknowledging("AA|ANOTHER"), "another message"),
        (acknowledging("AA|"), "does not say which message"),
        (acknowledging("CA"), "does not say which message"),
        (acknowledging("AR|ANOTHER"), "another message"),
        (acknowledging("ZZ|{id}"), "unknown code"),
        (answering(b""), "closed the connection"),
        (answering(b"\x0bMSH|^~\\&|EMR"), "closed the connection"),
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n\x1c\r"), "not an HL7 acknowledgement"),
        (answering(b"\x0b\xff\xfe\x00\x1c\r"), "not an HL7 acknowledgement"),
        (flooding, "exceeds"),
    ],
)
def test_strange_answers_are_tried_again_later(behaviour: Behaviour, reason: str) -> None:
    with mllp_peer(behaviour) as port:
        outcome = to(port).send(document())
    assert isinstance(outcome, Unreachable)
    assert reason in outcome.reason
    assert "Nguy" not in outcome.reason


@pytest.mark.parametrize("behaviour", [silent, dripping])
def test_no_receiver_holds_us_longer_than_the_timeout(behaviour: Behaviour) -> None:
    with mllp_peer(behaviour) as port:
        begun = time.monotonic()
        outcome = to(port, timeout_s=0.3).send(document())
        took_s = time.monotonic() - begun
    assert outcome == Unreachable("no acknowledgement within 0.3 s")
    assert took_s < 30  # of which a busy machine may need much: what drips does so without end


@given(st.binary(max_size=300))
def test_any_bytes_can_be_an_answer(answer: bytes) -> None:
    parsed = parse_acknowledgement(answer)
    assert isinstance(judge(parsed, "1"), Unreachable)  # none of it says MSH-10


@given(st.binary(max_size=80), st.sampled_from([b"MSA|", b"MSA", b"ERR|||", b"MSA|AA|1\r"]))
def test_any_bytes_after_a_header_can_be_an_answer(rest: bytes, segment: bytes) -> None:
    parsed = parse_acknowledgement(b"MSH|^~\\&|A\r" + segment + rest)
    assert parsed is None or all(error[0].isdigit() for error in parsed.errors)
    said = judge(parsed, "1")
    assert isinstance(said, Delivered) or said.reason.isprintable()
