"""Whatever bytes come, in whatever pieces: no exception escapes, nothing half-written remains, and
success is answered only for what is stored.

``tests/corpus/wire`` holds what ``scripts/fuzz-wire`` found worth keeping.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_edge_node.dicom.lean_messages import C_ECHO_RQ, C_STORE_RQ, Request
from phoi_edge_node.dicom.lean_wire import BrokenProtocol
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RSP, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from support.ct_data_set import data_set
from support.dicom_wire import COMMAND, CT_CONTEXT, DATA, LAST, VERIFICATION, echo_rq, pdu, store_rq
from support.lean_peer import LARGEST, LeanPeer, answers

CORPUS = sorted((Path(__file__).parents[1] / "corpus" / "wire").iterdir())
RELEASE = pdu(0x05, bytes(4))


def pdv(header: int, fragment: bytes) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, CT_CONTEXT, header) + fragment


def store(uid: str, sizes: Sequence[int], pixels: int = 64) -> bytes:
    """A whole C-STORE, its data set cut into fragments of these sizes and a rest."""
    content, values = data_set(uid, pixels=pixels), []
    for size in sizes:
        values.append(pdv(DATA, content[:size]))
        content = content[size:]
    return store_rq(uid) + b"".join(pdu(4, v) for v in [*values, pdv(DATA | LAST, content)])


def converse(pieces: Sequence[bytes]) -> list[tuple[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        peer = LeanPeer(Path(folder))
        stream = peer.say(pieces)
        peer.check(stream)
        return answers(stream.sent)


def in_pieces(content: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({0, *(place % (len(content) + 1) for place in places), len(content)})
    return [content[a:b] for a, b in pairwise(at)]


SIZES = st.lists(st.integers(0, 120), max_size=6)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), SIZES), min_size=1, max_size=4), PLACES)
def test_whole_messages_in_any_pieces_are_stored(
    messages: list[tuple[int, list[int]]], places: list[int]
) -> None:
    uids = [f"1.2.3.{number}" for number, _ in messages]
    said = b"".join(store(uid, sizes) for uid, (_, sizes) in zip(uids, messages, strict=True))
    got = converse(in_pieces(said + echo_rq() + RELEASE, places))
    assert got == [*((uid, 0) for uid in uids), ("", 0)]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=600), PLACES)
def test_any_bytes(said: bytes, places: list[int]) -> None:
    converse(in_pieces(said, places))


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_whole_messages_with_bytes_changed_added_or_missing(data: st.DataObject) -> None:
    said = bytearray(store("1.2.3.1", [40]) + echo_rq() + store("1.2.3.2", [], 10) + RELEASE)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(said) - 1))
        match data.draw(st.sampled_from("=+-")):
            case "=":
                said[at] = data.draw(st.sampled_from((0, 1, 2, 3, 4, 0x7F, 0xFF)))
            case "+":
                said[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "-":
                del said[at : at + data.draw(st.integers(1, 200))]
                said = said or bytearray(1)
    converse(in_pieces(bytes(said), data.draw(PLACES)))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    converse(in_pieces(path.read_bytes(), [7, 100, 3000]))


def test_a_data_set_that_is_too_long_is_read_to_its_end_and_refused() -> None:
    said = store("1.2.3.1", [], LARGEST) + store("1.2.3.2", [])
    assert converse([said]) == [("1.2.3.1", 0xA700), ("1.2.3.2", 0)]


@pytest.mark.parametrize("uid", ["", "../../etc", "1.2.3.", "x" * 64])
def test_what_is_no_uid_is_refused(uid: str) -> None:
    assert converse([store_rq(uid) + pdu(4, pdv(DATA | LAST, data_set("1.2")))]) == [(uid, 0xA900)]


def test_a_command_set_without_end_is_not_collected() -> None:
    endless = pdu(4, pdv(COMMAND, bytes(30_000)))
    with tempfile.TemporaryDirectory() as folder:
        peer = LeanPeer(Path(folder))
        assert peer.say([endless] * 10).sent[:1] == b"\x07"


# --- what we say is what pynetdicom says -----------------------------------------------------


@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xC000])
def test_a_c_store_response_is_pynetdicoms(status: int) -> None:
    said = C_STORE()
    said.MessageIDBeingRespondedTo = 17
    said.AffectedSOPClassUID, said.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.4"
    said.Status = status
    request = Request(CT_CONTEXT, C_STORE_RQ, 17, True, str(CTImageStorage), "1.2.3.4")
    assert request.response(status) == _encoded(C_STORE_RSP(), said)


def test_a_c_echo_response_is_pynetdicoms() -> None:
    said = C_ECHO()
    said.MessageIDBeingRespondedTo, said.AffectedSOPClassUID, said.Status = 3, VERIFICATION, 0
    request = Request(CT_CONTEXT, C_ECHO_RQ, 3, False, VERIFICATION, "")
    assert request.response(0) == _encoded(C_ECHO_RSP(), said)


def _encoded(message: C_STORE_RSP | C_ECHO_RSP, primitive: C_STORE | C_ECHO) -> bytes:
    message.primitive_to_message(primitive)
    (data,) = message.encode_msg(CT_CONTEXT, 16384)
    ((context_id, value),) = data.presentation_data_value_list
    return pdu(4, struct.pack(">LB", len(value) + 1, context_id) + value)


@pytest.mark.parametrize(
    "command_set",
    [b"", b"\0", bytes(8), bytes(70_000), store_rq()[12:-20], echo_rq()[12:40]],
    ids=range(6),
)
def test_a_command_set_that_lacks_something_breaks_the_protocol(command_set: bytes) -> None:
    with pytest.raises(BrokenProtocol):
        Request.decode(CT_CONTEXT, command_set)
