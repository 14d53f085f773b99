"""The lean receiver and pynetdicom's are one service: the same bytes get the same answers.

Everything that is sent to one is sent to the other, which is the oracle. What strangers try is in
``test_attacks.py``.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phoi_edge_node.dicom import lean_receiver
from phoi_edge_node.dicom.acceptor import Patience
from phoi_edge_node.dicom.headers import data_set_offset
from phoi_edge_node.dicom.instance_files import IncomingFile
from phoi_edge_node.dicom.lean_negotiation import Accepted, negotiate
from phoi_edge_node.dicom.storage_scu import StorableFile, association, store
from phoi_edge_node.ports import Delivered, Unreachable
from phoi_edge_node.system import SystemClock
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    MRImageStorage,
)
from support.certificates import Certificates
from support.dcmtk import convert, run, storescu
from support.dicom_edge import Edge, running_edge
from support.dicom_phantom import write_series
from support.dicom_wire import (
    ABORT,
    ACCEPT,
    COMMAND,
    CT_CONTEXT,
    DATA,
    LAST,
    VERIFICATION,
    associate_rq,
    connection,
    echo_rq,
    ends,
    item,
    p_data,
    pdu,
    presentation_context,
    raw_association,
    read_pdu,
    store_rq,
)

RELEASE = pdu(0x05, bytes(4))


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series of twelve; each data set is longer than a PDU."""
    rng = np.random.default_rng(5)
    hu = rng.integers(-1000, 1000, (12, 300, 260)).astype(np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    volume = Volume(hu, Geometry(hu.shape, (5.0, 1.0, 1.0), (-70, -90, -50), axes))
    return list(write_series(tmp_path_factory.mktemp("ct"), volume))


@pytest.fixture
def lean(tmp_path: Path) -> Iterator[Edge]:
    with running_edge(tmp_path / "lean", receiver="lean") as edge:
        yield edge


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Edge]:
    with running_edge(tmp_path / "oracle") as edge:
        yield edge


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each association of the lean port: was it served by the lean receiver?"""
    answers: list[bool] = []

    def remember(*arguments: Any) -> Accepted | None:
        accepted = negotiate(*arguments)
        answers.append(accepted is not None)
        return accepted

    monkeypatch.setattr(lean_receiver, "negotiate", remember)
    return answers


def same_store(lean: Edge, oracle: Edge) -> int:
    """Both hold the same files and were told the same; how many instances."""
    kept = [
        {path: (e.files.root / path).read_bytes() for path in e.files.paths()}
        for e in (lean, oracle)
    ]
    assert kept[0] == kept[1]
    at = SystemClock().now()
    told = [
        sorted((replace(i, received_at=at) for i in edge.receiver.instances), key=str)
        for edge in (lean, oracle)
    ]
    assert told[0] == told[1]
    assert [list(e.files.incoming.iterdir()) for e in (lean, oracle)] == [[], []]
    return len(kept[0])


# --- senders of other people -----------------------------------------------------------------

ENCODINGS: dict[str, tuple[str, ...]] = {
    ExplicitVRLittleEndian: (),
    ImplicitVRLittleEndian: ("dcmconv", "+ti"),
    ExplicitVRBigEndian: ("dcmconv", "+tb"),
    DeflatedExplicitVRLittleEndian: ("dcmconv", "+td"),
    JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    JPEG2000Lossless: ("gdcmconv", "--j2k"),
}


@pytest.mark.parametrize("transfer_syntax", ENCODINGS)
def test_dcmtk_sends_every_encoding(
    tmp_path: Path,
    lean: Edge,
    oracle: Edge,
    taken_over: list[bool],
    slices: list[Path],
    transfer_syntax: str,
) -> None:
    sent = [slices[0], slices[1]]
    if encoder := ENCODINGS[transfer_syntax]:
        sent = [tmp_path / path.name for path in sent]
        for source, target in zip(slices, sent, strict=False):
            convert(encoder[0], source, target, *encoder[1:])
    for edge in (lean, oracle):
        done = storescu(edge.scp.port, *sent, transfer_syntax=transfer_syntax)
        assert done.returncode == 0, done.stderr
        edge.wait_for_release()
    assert same_store(lean, oracle) == 2
    assert taken_over == [True]


@pytest.mark.parametrize("options", [[], ["--max-send-pdu", "4096"], ["--max-pdu", "4096"]])
def test_dcmsend_and_echoscu(
    lean: Edge, oracle: Edge, taken_over: list[bool], slices: list[Path], options: list[str]
) -> None:
    for edge in (lean, oracle):
        address = ("-aec", "PHOI", "127.0.0.1", edge.scp.port)
        done = run("dcmsend", *options, *address, *slices[:3])
        assert done.returncode == 0, done.stderr
        assert run("echoscu", *address).returncode == 0
    assert same_store(lean, oracle) == 3
    assert set(taken_over) == {True}


def test_four_associations_bring_one_study(lean: Edge, slices: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: storescu(lean.scp.port, *slices[n::4]).returncode, range(4)))
    assert done == [0, 0, 0, 0]
    lean.wait_for_release(4)
    assert len({name for _, name in lean.receiver.received}) == 4
    assert sorted((lean.files.root / path).stat().st_size for path in lean.files.paths()) == sorted(
        i.size for i in lean.receiver.instances
    )
    assert len(lean.receiver.received) == len(slices)


def test_our_own_sender_over_one_association(lean: Edge, oracle: Edge, slices: list[Path]) -> None:
    files = [StorableFile.open(path) for path in slices]
    contexts = {(files[0].sop_class_uid, files[0].transfer_syntax_uid)}
    for edge in (lean, oracle):
        with association(edge.peer, "CT1", contexts) as link:
            # The first comes twice: the second time it is a duplicate, and success.
            assert all(isinstance(store(link, f), Delivered) for f in [*files, files[0]])
        edge.wait_for_release()
    assert same_store(lean, oracle) == len(slices)


# --- every way to cut a message --------------------------------------------------------------


def data_set(path: Path) -> bytes:
    content = path.read_bytes()
    return content[data_set_offset(content) :]


def uid(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def pdv(header: int, fragment: bytes, context: int = CT_CONTEXT) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context, header) + fragment


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def values(content: bytes, size: int) -> list[bytes]:
    """A data set as presentation data values of so many bytes."""
    *before, last = cut(content, size)
    return [*(pdv(DATA, piece) for piece in before), pdv(DATA | LAST, last)]


def command(path: Path) -> bytes:
    """The one value of a C-STORE-RQ's command, without its PDU."""
    return store_rq(uid(path))[6:]


Cutting = Callable[[bytes, bytes], list[bytes]]
CUTTINGS: dict[str, Cutting] = {
    "a fragment a PDU": lambda c, d: [pdu(4, v) for v in [c, *values(d, 16000)]],
    "odd sizes": lambda c, d: [pdu(4, v) for v in [c, *values(d, 997)]],
    "the longest PDUs": lambda c, d: [pdu(4, v) for v in [c, *values(d, 131072 - 6)]],
    "a little longer than agreed": lambda c, d: [pdu(4, v) for v in [c, *values(d, 131072 + 6)]],
    "command and data in one PDU": lambda c, d: [
        pdu(4, c + pdv(DATA, d[:5000])),
        *(pdu(4, v) for v in values(d[5000:], 60000)),
    ],
    "many fragments a PDU": lambda c, d: [
        pdu(4, b"".join(part)) for part in _in_groups([c, *values(d, 701)], 50)
    ],
    "an empty last fragment": lambda c, d: [
        pdu(4, v) for v in [c, *(pdv(DATA, p) for p in cut(d, 30000)), pdv(DATA | LAST, b"")]
    ],
    "empty fragments all over": lambda c, d: [
        pdu(4, v) for v in [pdv(COMMAND, b""), c, pdv(DATA, b""), *values(d, 50000)]
    ],
    "the command in three parts": lambda c, d: [
        pdu(4, pdv(COMMAND, c[6:20])),
        pdu(4, pdv(COMMAND, c[20:21]) + pdv(COMMAND | LAST, c[21:])),
        *(pdu(4, v) for v in values(d, 40000)),
    ],
}


def _in_groups(parts: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [parts[at : at + size] for at in range(0, len(parts), size)]


def converse(edge: Edge, messages: Sequence[bytes], pieces: random.Random | None = None) -> bytes:
    """All answers to messages sent one after another, each after the answer to the one before.

    Args:
        pieces: cuts each message anywhere, for TCP.
    """
    answers = b""
    with raw_association(edge.scp.port) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for message in messages:
            for piece in _anywhere(message, pieces) if pieces else [message]:
                peer.sendall(piece)
            answers += read_pdu(peer)
        peer.sendall(RELEASE)
        answers += read_pdu(peer)
        assert peer.recv(1) == b""
    return answers


def _anywhere(message: bytes, pieces: random.Random) -> list[bytes]:
    places = sorted({0, len(message), *(pieces.randrange(len(message)) for _ in range(40))})
    return [message[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("cutting", CUTTINGS)
def test_every_way_to_cut_a_message(
    lean: Edge, oracle: Edge, taken_over: list[bool], slices: list[Path], cutting: str
) -> None:
    messages = [
        b"".join(CUTTINGS[cutting](command(path), data_set(path))) for path in slices[:2]
    ] + [echo_rq(7)]
    answers = [converse(edge, messages, random.Random(11)) for edge in (lean, oracle)]
    assert answers[0] == answers[1]
    for edge in (lean, oracle):
        edge.wait_for_release()
    assert same_store(lean, oracle) == 2
    assert taken_over == [True]


# --- the same refusals -----------------------------------------------------------------------


def changed(path: Path, target: Path, **values: object) -> bytes:
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return data_set(target)


def test_the_same_refusals(tmp_path: Path, lean: Edge, oracle: Edge, slices: list[Path]) -> None:
    first, second, *_ = slices
    target = tmp_path / "changed.dcm"
    wrong = [
        (store_rq(uid(first)), data_set(second)),  # another instance than announced
        (store_rq(uid(first)), changed(first, target, SOPClassUID=EnhancedCTImageStorage)),
        (store_rq(uid(first)), changed(first, target, StudyInstanceUID="")),
        (store_rq(uid(first)), b"no data set at all"),
        (store_rq(uid(first)), data_set(first)[:-100]),  # cut within the pixels: kept as it is
        (store_rq(uid(first)), data_set(first)),  # the whole one is now another content
        (store_rq(uid(second)), data_set(second)[:200]),
        (store_rq(uid(second)), b""),
    ]
    messages = [
        head + b"".join(pdu(4, v) for v in (values(body, 50000) if body else [pdv(LAST, b"")]))
        for head, body in wrong
    ]
    answers = [converse(edge, messages) for edge in (lean, oracle)]
    assert answers[0] == answers[1]
    assert same_store(lean, oracle) == 1
    quarantined = [
        sorted(p.read_bytes() for p in (edge.files.root / "quarantine").iterdir())
        for edge in (lean, oracle)
    ]
    assert quarantined[0] == quarantined[1]
    assert len(quarantined[0]) == 1


@pytest.mark.parametrize(
    "message",
    [
        p_data(CT_CONTEXT, DATA | LAST, b"data before any command"),
        p_data(99, COMMAND | LAST, store_rq()[12:]),
        p_data(CT_CONTEXT, COMMAND | LAST, b"no command set"),
        store_rq() + p_data(99, DATA, b"x" * 50) + store_rq(),
        pdu(0x04, struct.pack(">LBB", 1, CT_CONTEXT, 0)),
        pdu(0x04, struct.pack(">LBB", 5000, CT_CONTEXT, 0) + b"short"),
        pdu(0x09, b"no such PDU"),
        associate_rq(),
        store_rq("1." * 40 + "1"),
    ],
    ids=range(9),
)
def test_what_breaks_the_protocol_ends_the_association(
    lean: Edge, taken_over: list[bool], message: bytes
) -> None:
    with raw_association(lean.scp.port) as peer:
        peer.sendall(message)
        assert ends(peer)
    assert run("echoscu", "-aec", "PHOI", "127.0.0.1", lean.scp.port).returncode == 0
    assert [*lean.files.incoming.iterdir(), *lean.files.paths()] == []
    assert taken_over == [True, True]


# --- negotiation -----------------------------------------------------------------------------

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
MAXIMUM = item(0x51, struct.pack(">L", 0))
IMPLEMENTATION = item(0x52, b"1.2.3") + item(0x55, b"TEST")
WINDOW = item(0x53, struct.pack(">HH", 8, 8))
ROLE = item(0x54, struct.pack(">H", len(CTImageStorage)) + CTImageStorage.encode() + b"\1\1")
IDENTITY = item(0x58, struct.pack(">BBH", 1, 0, 4) + b"user" + struct.pack(">H", 0))


def proposal(*classes: str) -> tuple[bytes, ...]:
    return tuple(
        presentation_context(2 * number + 1, sop_class, syntax)
        for number, (sop_class, syntax) in enumerate((c, s) for c in classes for s in SYNTAXES)
    )


@pytest.mark.parametrize(
    ("request_pdu", "is_lean"),
    [
        (associate_rq(), True),
        (associate_rq(proposal(CTImageStorage, VERIFICATION, MRImageStorage)), True),
        (associate_rq(proposal(*([CTImageStorage] * 64))), True),
        (associate_rq(user=MAXIMUM + IMPLEMENTATION), True),
        (associate_rq(user=item(0x51, struct.pack(">L", 4096)) + IMPLEMENTATION + WINDOW), True),
        # pynetdicom's: what is negotiated beside contexts, and whatever is rejected.
        (associate_rq(user=MAXIMUM + IMPLEMENTATION + ROLE), False),
        (associate_rq(user=MAXIMUM + IMPLEMENTATION + IDENTITY), False),
        (associate_rq(called="OTHER"), False),
        (associate_rq(version=2), False),
        (associate_rq(proposal(MRImageStorage)), False),
    ],
    ids=range(10),
)
def test_the_same_answer_to_a_proposal(
    lean: Edge, oracle: Edge, taken_over: list[bool], request_pdu: bytes, *, is_lean: bool
) -> None:
    answers = []
    for edge in (lean, oracle):
        with connection(edge.scp.port) as peer:
            peer.sendall(request_pdu)
            answers.append(read_pdu(peer))
    assert answers[0] == answers[1]
    assert taken_over == [is_lean]


def test_what_the_lean_receiver_does_not_serve_goes_to_pynetdicom_on_the_same_port(
    lean: Edge, taken_over: list[bool], slices: list[Path]
) -> None:
    content = pdu(4, command(slices[0])) + b"".join(
        pdu(4, v) for v in values(data_set(slices[0]), 9000)
    )
    with connection(lean.scp.port) as peer:
        peer.sendall(associate_rq(user=MAXIMUM + IMPLEMENTATION + ROLE))
        assert read_pdu(peer)[:1] == ACCEPT
        peer.sendall(content)
        assert read_pdu(peer)[:1] == b"\x04"
    assert taken_over == [False]
    assert len(lean.receiver.received) == 1


# --- trouble ---------------------------------------------------------------------------------


def test_a_disk_that_fails_in_the_middle_is_refused_and_the_next_is_taken(
    lean: Edge, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fails = IncomingFile.write, [True]

    def full(file: IncomingFile, fragment: bytes | memoryview) -> None:
        if fails and file.size > 50_000:
            fails.clear()
            raise OSError(28, "No space left on device")
        write(file, fragment)

    monkeypatch.setattr(IncomingFile, "write", full)
    files = [StorableFile.open(path) for path in slices[:2]]
    contexts = {(files[0].sop_class_uid, files[0].transfer_syntax_uid)}
    with association(lean.peer, "CT1", contexts) as link:
        assert store(link, files[0]) == Unreachable("status 0xA700")
        assert list(lean.files.incoming.iterdir()) == []
        assert isinstance(store(link, files[1]), Delivered)
    assert len(list(lean.files.paths())) == 1


def test_a_disk_that_runs_low_while_a_long_data_set_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_edge(tmp_path / "lean", receiver="lean", minimum_free_disk_mb=100) as edge:
        free = iter([200_000_000, 90_000_000])
        monkeypatch.setattr(edge.files, "free_bytes", lambda: next(free))
        long = pdu(4, pdv(DATA, bytes(131000))) * 140
        with raw_association(edge.scp.port) as peer:
            peer.sendall(store_rq() + long + pdu(4, pdv(DATA | LAST, b"end")))
            assert struct.pack("<H", 0xA700) in read_pdu(peer)
            assert list(edge.files.incoming.iterdir()) == []


@pytest.mark.parametrize("sent", [b"", store_rq(), store_rq() + p_data(CT_CONTEXT, DATA, b"half")])
def test_who_falls_silent_is_shed(tmp_path: Path, sent: bytes) -> None:
    patience = Patience(pdu=0.3, idle=0.3, message=0.3)
    with running_edge(tmp_path / "lean", patience, receiver="lean") as edge:
        with raw_association(edge.scp.port) as peer:
            _takes(peer, sent)  # or is shed before, where the machine is busy
            assert ends(peer)
        assert list(edge.files.incoming.iterdir()) == []


def test_who_drips_a_message_is_shed(tmp_path: Path) -> None:
    patience = Patience(message=0.3)
    with running_edge(tmp_path / "lean", patience, receiver="lean") as edge:
        with raw_association(edge.scp.port) as peer:
            peer.sendall(store_rq())
            _wait_until(lambda: not _takes(peer, p_data(CT_CONTEXT, DATA, b"x")))
        assert list(edge.files.incoming.iterdir()) == []


def test_stopping_aborts_and_leaves_nothing_half_written(
    tmp_path: Path, slices: list[Path]
) -> None:
    with ExitStack() as stack:
        edge = stack.enter_context(running_edge(tmp_path / "lean", receiver="lean"))
        idle = stack.enter_context(raw_association(edge.scp.port))
        halfway = stack.enter_context(raw_association(edge.scp.port))
        halfway.sendall(store_rq(uid(slices[0])) + pdu(4, pdv(DATA, data_set(slices[0])[:90_000])))
        _wait_until(lambda: list(edge.files.incoming.iterdir()))
        began = time.monotonic()
        edge.scp.stop()
        assert time.monotonic() - began < 10
        assert [read_pdu(peer)[:1] for peer in (idle, halfway)] == [ABORT, ABORT]
        assert list(edge.files.incoming.iterdir()) == []


def _takes(peer: socket.socket, message: bytes) -> bool:
    try:
        peer.sendall(message)
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_associations_of_both_kinds_count_together(tmp_path: Path) -> None:
    with running_edge(tmp_path / "lean", receiver="lean", maximum_associations=2) as edge:
        with raw_association(edge.scp.port), connection(edge.scp.port) as pynetdicoms:
            pynetdicoms.sendall(associate_rq(user=MAXIMUM + IMPLEMENTATION + ROLE))
            assert read_pdu(pynetdicoms)[:1] == ACCEPT
            with connection(edge.scp.port) as third:
                third.sendall(associate_rq())
                assert read_pdu(third)[:1] == b"\x03"
        _wait_until(lambda: not [t for t in threading.enumerate() if t.name == "lean-association"])
        _wait_until(
            lambda: run("echoscu", "-aec", "PHOI", "127.0.0.1", edge.scp.port).returncode == 0
        )


@pytest.mark.parametrize("with_certificate", [True, False])
def test_mutual_tls(tmp_path: Path, slices: list[Path], *, with_certificate: bool) -> None:
    authority = Certificates(tmp_path / "certificates")
    node, sender = authority.issue("node"), authority.issue("ct1")
    settings: dict[str, Any] = {
        "tls_certificate": node.certificate,
        "tls_key": node.key,
        "tls_ca": node.authority,
    }
    certificate = ("+tls", sender.key, sender.certificate) if with_certificate else ("+tla",)
    options = (*certificate, "+cf", sender.authority, "-aec", "PHOI", "localhost")
    with running_edge(tmp_path / "lean", receiver="lean", **settings) as edge:
        done = run("storescu", *options, edge.scp.port, *slices)
        assert (done.returncode == 0) is with_certificate, done.stderr
        assert len(edge.receiver.received) == (len(slices) if with_certificate else 0)
        if with_certificate:
            edge.wait_for_release()
