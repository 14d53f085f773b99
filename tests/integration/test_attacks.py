"""What strangers try at the DICOM port, and that a sender is served in spite of it.

docs/explanation/attacks.md lists these tests as a table.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_edge_node.dicom import storage_scp
from phoi_edge_node.dicom.acceptor import MemoryBudget, Patience
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.dicom.storage_scu import StorableFile, association, store
from phoi_edge_node.dicom.tls import client_context
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.ports import Delivered, Document, DocumentKind, Unreachable
from phoi_edge_node.settings import ArchiveSettings, DicomSettings
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from phoi_protos.transport import TlsFiles
from pydicom import dcmread
from support.certificates import Certificates
from support.dcmtk import run, storescp, storescu
from support.dicom_edge import Edge, running_edge
from support.dicom_peers import report_file
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

SHORT = Patience(request=2, pdu=1, idle=1, message=1)
FOREVER = Patience(request=600, pdu=600, idle=600, message=600)
LOCAL_LIMIT_EXCEEDED = bytes((0x03, 0, 0, 0, 0, 4, 0, 2, 3, 2))


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series of twenty."""
    rng = np.random.default_rng(3)
    hu = rng.integers(-1000, 1000, (20, 32, 32)).astype(np.int16)
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    volume = Volume(hu, Geometry(hu.shape, (5.0, 3.0, 3.0), (-70, -90, -50), axes))
    return list(write_series(tmp_path_factory.mktemp("ct"), volume))


@pytest.fixture(scope="module", params=["pynetdicom", "lean"])
def receiver(request: pytest.FixtureRequest) -> str:
    """Both take the same blows."""
    name: str = request.param
    return name


@pytest.fixture
def edge(tmp_path: Path, receiver: str) -> Iterator[Edge]:
    with running_edge(tmp_path / "instances", receiver=receiver) as running:
        yield running


@pytest.fixture
def hurried(tmp_path: Path, receiver: str) -> Iterator[Edge]:
    """An edge that waits a second or two for everything."""
    with running_edge(tmp_path / "instances", SHORT, receiver=receiver) as running:
        yield running


def echoes(edge: Edge) -> bool:
    return run("echoscu", "-aec", "PHOI", "127.0.0.1", edge.scp.port).returncode == 0


def rss() -> int:
    """Memory of this process, in which the SCP runs, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def drip(peer: socket.socket, content: bytes) -> bool:
    """Send byte by byte until the other side has had enough; False if it never has."""
    peer.settimeout(0.05)
    for place in range(len(content)):
        try:
            peer.sendall(content[place : place + 1])
            if peer.recv(64)[:1] in {b"", ABORT}:
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


# --- connections -----------------------------------------------------------------------------


def test_two_hundred_silent_sockets_leave_a_sender_undisturbed(
    tmp_path: Path, slices: list[Path]
) -> None:
    with running_edge(tmp_path / "instances", FOREVER) as edge, ExitStack() as open_sockets:
        before = threading.active_count()
        silent = [open_sockets.enter_context(connection(edge.scp.port)) for _ in range(100)]

        done = storescu(edge.scp.port, slices[0].parent)

        assert done.returncode == 0, done.stderr
        assert len(edge.receiver.received) == 20
        for peer in silent:  # they were there all the time, and cost no thread
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
        assert threading.active_count() < before + 50


def test_the_oldest_silent_socket_goes_first(tmp_path: Path) -> None:
    with running_edge(tmp_path / "instances", FOREVER) as edge, ExitStack() as open_sockets:
        silent = [open_sockets.enter_context(connection(edge.scp.port)) for _ in range(260)]
        assert echoes(edge)
        assert all(peer.recv(1) == b"" for peer in silent[:4])
        silent[-1].sendall(associate_rq())
        assert read_pdu(silent[-1])[:1] == ACCEPT


def test_a_silent_socket_is_closed(hurried: Edge) -> None:
    with connection(hurried.scp.port) as peer:
        assert peer.recv(1) == b""


def test_a_request_that_drips_in_is_not_waited_for(hurried: Edge) -> None:
    with connection(hurried.scp.port) as peer:
        assert drip(peer, associate_rq())
    assert echoes(hurried)


def test_a_pdu_that_drips_in_is_not_waited_for(hurried: Edge) -> None:
    with raw_association(hurried.scp.port) as peer:
        assert drip(peer, p_data(CT_CONTEXT, DATA, bytes(1000)))
    assert echoes(hurried)


def test_a_message_of_endless_small_pdus_is_not_waited_for(tmp_path: Path, receiver: str) -> None:
    """Each of them comes in time."""
    with (
        running_edge(tmp_path / "instances", Patience(message=1), receiver=receiver) as edge,
        raw_association(edge.scp.port) as peer,
    ):
        peer.sendall(store_rq())
        peer.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            while True:
                peer.sendall(p_data(CT_CONTEXT, DATA, b"\0"))
                with contextlib.suppress(TimeoutError):
                    assert peer.recv(64)[:1] in {b"", ABORT}
                    break
        assert echoes(edge)


def test_an_idle_association_ends_and_its_study_is_told(
    tmp_path: Path, receiver: str, slices: list[Path]
) -> None:
    file = StorableFile.open(slices[0])
    context = (file.sop_class_uid, file.transfer_syntax_uid)
    with (
        running_edge(tmp_path / "instances", Patience(idle=3), receiver=receiver) as edge,
        association(edge.peer, "CT1", {context}) as link,
    ):
        assert isinstance(store(link, file), Delivered)
        edge.wait_for_release()
        link.join(10)
        assert not link.is_alive()


def test_associations_that_are_aborted_leave_no_thread_and_no_descriptor(edge: Edge) -> None:
    def costs() -> tuple[int, int]:
        return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = costs()
    for _ in range(100):
        with raw_association(edge.scp.port) as peer:
            peer.sendall(pdu(0x07, bytes(4)))
            assert ends(peer)
    deadline = time.monotonic() + 20
    while any(now > then for now, then in zip(costs(), before, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_peer_cannot_take_all_places(tmp_path: Path) -> None:
    with (
        running_edge(
            tmp_path / "instances", maximum_associations=4, maximum_associations_per_peer=2
        ) as edge,
        raw_association(edge.scp.port),
    ):
        with (
            raw_association(edge.scp.port),
            connection(edge.scp.port) as third,
            connection(edge.scp.port, source="127.0.0.2") as other,
        ):
            third.sendall(associate_rq())
            assert read_pdu(third) == LOCAL_LIMIT_EXCEEDED
            other.sendall(associate_rq())
            assert read_pdu(other)[:1] == ACCEPT
        deadline = time.monotonic() + 20
        while not echoes(edge):
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("allowed", "served"), [(["192.0.2.0/24"], False), (["127.0.0.0/8", "192.0.2.7"], True)]
)
def test_an_address_that_may_not_connect_is_not_heard(
    *, tmp_path: Path, allowed: list[str], served: bool
) -> None:
    with running_edge(tmp_path / "instances", allowed_peers=allowed) as edge:
        assert echoes(edge) is served
        if not served:
            with connection(edge.scp.port) as peer:
                assert peer.recv(1) == b""


# --- PDUs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("established", [False, True])
def test_a_claimed_length_costs_nothing_while_bytes_come(*, edge: Edge, established: bool) -> None:
    opened = raw_association if established else connection
    chunk = bytes(1 << 20)
    with opened(edge.scp.port) as peer:
        before = rss()
        peer.sendall(pdu(0x04 if established else 0x01, b"", length=0xFFFFFFF0))
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                peer.sendall(chunk)
        assert rss() - before < 4 << 20
    assert echoes(edge)


TOO_MANY = tuple(
    presentation_context(number % 256, VERIFICATION, "1.2.840.10008.1.2")
    for number in range(1, 900)
)
OPENINGS: dict[str, bytes] = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": bytes.fromhex("16030100050100000100"),
    "P-DATA first": echo_rq(),
    "A-RELEASE-RQ first": pdu(0x05, bytes(4)),
    "A-ABORT first": pdu(0x07, bytes(4)),
    "an unknown PDU": pdu(0x09, bytes(4)),
    "protocol version 2": associate_rq(version=2),
    "no presentation context": associate_rq(()),
    "900 presentation contexts": associate_rq(TOO_MANY),
    "an empty request": pdu(0x01, b""),
    "a request of 68 zeros": pdu(0x01, bytes(68)),
    "an item that is longer than the request": associate_rq((item(0x20, bytes(4), length=9000),)),
    "user items without end": associate_rq(user=item(0x51, bytes(4)) * 5000),
    "another called AE title": associate_rq(called="NOBODY"),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_a_wrong_beginning_ends_the_connection(hurried: Edge, name: str) -> None:
    with connection(hurried.scp.port) as peer:
        peer.sendall(OPENINGS[name])
        assert ends(peer)
    assert echoes(hurried)


MESSAGES: dict[str, bytes] = {
    "an A-ASSOCIATE-RQ again": associate_rq(),
    "an A-ASSOCIATE-AC": pdu(0x02, associate_rq()[6:]),
    "an A-RELEASE-RP": pdu(0x06, bytes(4)),
    "an unknown PDU": pdu(0xFF, bytes(4)),
    "a PDV of no bytes": pdu(0x04, struct.pack(">L", 0)),
    "a PDV without control header": pdu(0x04, struct.pack(">LB", 1, 1)),
    "a PDV that is longer than its PDU": pdu(0x04, struct.pack(">LBB", 0xFFFFFFF0, 1, 3)),
    "a command set that is none": p_data(1, COMMAND | LAST, b"\xff" * 64),
    "a command of an unknown kind": echo_rq().replace(b"\x30\0", b"\x77\x77"),
    "a command without end": p_data(1, COMMAND, bytes(60_000)) * 2,
    "a data set before its command": p_data(CT_CONTEXT, DATA | LAST, b"data"),
    "a context that was not accepted": store_rq().replace(b"\x03\x03\0\0", b"\x07\x03\0\0", 1),
    "no word more": b"",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_ends_the_association(hurried: Edge, name: str) -> None:
    with raw_association(hurried.scp.port) as peer:
        peer.sendall(MESSAGES[name])
        assert ends(peer)
    assert echoes(hurried)
    assert list(hurried.files.paths()) == []


def test_requests_without_waiting_for_responses_are_not_queued(tmp_path: Path) -> None:
    """pynetdicom would collect them all; the lean receiver reads one at a time anyway."""
    request = store_rq() + p_data(CT_CONTEXT, DATA | LAST, bytes(100))
    with running_edge(tmp_path / "instances") as edge:
        with raw_association(edge.scp.port) as peer, contextlib.suppress(ConnectionError):
            peer.sendall(request * 1000)
            assert ends(peer)
        assert echoes(edge)


def test_the_lean_receiver_holds_such_a_sender_back(tmp_path: Path) -> None:
    """It reads the next request after its answer to the one before, so nothing is collected."""
    sent = (store_rq() + p_data(CT_CONTEXT, DATA | LAST, bytes(130_000))) * 300
    with (
        running_edge(tmp_path / "instances", receiver="lean") as edge,
        raw_association(edge.scp.port) as peer,
        ThreadPoolExecutor(1) as sender,
    ):
        before = rss()
        sending = sender.submit(peer.sendall, sent)
        answers = [read_pdu(peer) for _ in range(300)]
        sending.result()
        status = b"\x00\x00\x00\x09\x02\x00\x00\x00"
        assert {answer[answer.index(status) + 8 :][:2] for answer in answers} == {b"\x00\xc0"}
        assert rss() - before < len(sent) // 2  # of the whole process, whatever else it does
        assert echoes(edge)


# --- content ---------------------------------------------------------------------------------


def test_a_data_set_that_is_too_long_is_refused_and_never_held(
    tmp_path: Path, slices: list[Path], receiver: str
) -> None:
    big = tmp_path / "big.dcm"
    dataset = dcmread(slices[0])
    dataset.Rows = dataset.Columns = 3000
    dataset.PixelData = bytes(2 * 3000 * 3000)
    dataset.save_as(big)
    with running_edge(tmp_path / "instances", largest_instance_mb=1, receiver=receiver) as edge:
        file = StorableFile.open(big)
        with association(
            edge.peer, "CT1", {(file.sop_class_uid, file.transfer_syntax_uid)}
        ) as link:
            assert store(link, file) == Unreachable("status 0xA700")
            # The association goes on: what follows it in the sender's queue is not held up.
            assert isinstance(store(link, StorableFile.open(slices[1])), Delivered)
        assert len(list(edge.files.paths())) == 1


def test_a_header_that_claims_65535_rows_is_stored_at_its_own_size(
    tmp_path: Path, edge: Edge, slices: list[Path]
) -> None:
    """Nothing is made of Rows and Columns before pixels are decoded."""
    claims = tmp_path / "claims.dcm"
    dataset = dcmread(slices[0])
    dataset.Rows = dataset.Columns = 65535
    dataset.NumberOfFrames = 2**31 - 1
    dataset.save_as(claims)
    before = rss()
    assert isinstance(edge.send(claims), Delivered)
    assert rss() - before < 8 << 20
    assert edge.receiver.instances[0].size < 10_000


def test_memory_of_what_comes_in_is_shared_and_one_always_goes_on() -> None:
    budget, first, second = MemoryBudget(100), object(), object()
    assert budget.take(first, 60, 0)
    assert not budget.take(second, 60, 0.01)
    assert budget.take(first, 1000, 0)  # the first is never stopped: it will end
    budget.give_back(first)
    assert budget.take(second, 60, 0)


def test_who_only_echoes_is_not_first_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[MemoryBudget] = []

    def made(limit: int) -> MemoryBudget:
        budgets.append(MemoryBudget(limit))
        return budgets[-1]

    monkeypatch.setattr(storage_scp, "MemoryBudget", made)
    with (
        running_edge(tmp_path / "instances", receiver="pynetdicom") as edge,
        raw_association(edge.scp.port) as peer,
    ):
        peer.sendall(echo_rq())
        read_pdu(peer)
        assert not budgets[0]._held


def test_a_disk_below_the_watermark_takes_nothing_until_there_is_room(
    tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_edge(tmp_path / "instances", minimum_free_disk_mb=1000) as edge:
        free = [999_000_000]
        monkeypatch.setattr(edge.files, "free_bytes", lambda: free[0])
        assert edge.send(slices[0]) == Unreachable("status 0xA700")
        assert [path for path in edge.files.root.rglob("*") if path.is_file()] == []
        free[0] = 2_000_000_000
        assert isinstance(edge.send(slices[0]), Delivered)


def test_a_write_that_fails_leaves_nothing_and_the_next_succeeds(
    edge: Edge, slices: list[Path]
) -> None:
    """The kernel refuses in the middle of the file, as it does when a disk runs full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert edge.send(slices[0]) == Unreachable("status 0xA700")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in edge.files.root.rglob("*") if path.is_file()] == []
    assert edge.receiver.received == []
    assert isinstance(edge.send(slices[0]), Delivered)


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(authority: Certificates) -> TlsFiles:
    return authority.issue("node")


@pytest.fixture
def guarded(tmp_path: Path, node: TlsFiles) -> Iterator[Edge]:
    """An edge that speaks mutual TLS."""
    with running_edge(
        tmp_path / "instances",
        tls_certificate=node.certificate,
        tls_key=node.key,
        tls_ca=node.authority,
    ) as running:
        yield running


def tls_options(files: TlsFiles, *more: str) -> tuple[str, ...]:
    """Of DCMTK's programs."""
    return ("+tls", str(files.key), str(files.certificate), "+cf", str(files.authority), *more)


def test_mutual_tls_lets_in_who_shows_a_certificate_of_the_authority(
    guarded: Edge, authority: Certificates, slices: list[Path]
) -> None:
    options = (*tls_options(authority.issue("ct1")), "-aec", "PHOI", "localhost")
    done = run("storescu", *options, guarded.scp.port, *slices)
    assert done.returncode == 0, done.stderr
    assert len(guarded.receiver.received) == 20


@pytest.mark.parametrize("peer", ["plain", "anonymous", "stranger"])
def test_mutual_tls_keeps_out_everybody_else(
    tmp_path: Path, guarded: Edge, node: TlsFiles, slices: list[Path], peer: str
) -> None:
    stranger = Certificates(tmp_path / "elsewhere").issue("ct1")
    options = {
        "plain": (),
        "anonymous": ("+tla", "-ic"),
        "stranger": (*tls_options(stranger, "+cf", str(node.authority)), "-ic"),
    }[peer]
    done = run("storescu", *options, "-aec", "PHOI", "localhost", guarded.scp.port, slices[0])
    assert done.returncode != 0
    assert guarded.receiver.received == []


@pytest.mark.parametrize("ciphers", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA"])
def test_suites_that_bcp_195_advises_against_are_not_spoken(
    guarded: Edge, authority: Certificates, ciphers: str
) -> None:
    files = authority.issue("ct1")
    context = ssl.create_default_context(cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    with connection(guarded.scp.port) as peer, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(peer, server_hostname="localhost")


def test_silent_sockets_leave_a_tls_sender_undisturbed(
    guarded: Edge, authority: Certificates, slices: list[Path]
) -> None:
    with ExitStack() as open_sockets:
        for _ in range(100):
            open_sockets.enter_context(connection(guarded.scp.port))
        options = (*tls_options(authority.issue("ct1")), "-aec", "PHOI", "localhost")
        assert run("storescu", *options, guarded.scp.port, slices[0]).returncode == 0


def test_results_go_to_an_archive_by_tls(
    tmp_path: Path, authority: Certificates, node: TlsFiles
) -> None:
    archive_files = authority.issue("archive")
    own = DicomSettings(tls_certificate=node.certificate, tls_key=node.key, tls_ca=node.authority)
    document = Document(DocumentKind.STRUCTURED_REPORT, "2.25.7", report_file("2.25.7"))
    with storescp(tmp_path / "archive", *tls_options(archive_files)) as archive:
        options = ArchiveSettings(
            ae_title="ARCHIVE", host="localhost", port=archive.peer.port, tls=True, timeout_s=5
        )
        outcome = DicomArchive(options, "PHOI", client_context(own)).send(document)
        assert outcome == Delivered("status 0x0000")
        assert len(list(archive.folder.iterdir())) == 1
        # An archive that shows a certificate of somebody else is not the archive.
        stranger = Certificates(tmp_path / "elsewhere").issue("node")
        other = own.model_copy(update={"tls_ca": stranger.authority})
        outcome = DicomArchive(options, "PHOI", client_context(other)).send(document)
        assert isinstance(outcome, Unreachable)


def test_a_certificate_that_cannot_be_used_is_said_plainly(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    with (
        pytest.raises(SettingsError, match=r"dicom\.tls_certificate and dicom\.tls_key"),
        running_edge(tmp_path / "instances", tls_certificate=bad, tls_key=bad),
    ):
        pass


# --- fuzz ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, receiver: str) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("fuzz")
    places = {"maximum_associations": 64, "maximum_associations_per_peer": 64}
    with running_edge(folder / "instances", SHORT, receiver=receiver, **places) as running:
        yield running


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """``content`` with some bytes changed, and its end perhaps cut off."""
    changed = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        changed[place] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(content)))])


CONVERSATION = (
    associate_rq()
    + echo_rq()
    + store_rq()
    + p_data(CT_CONTEXT, DATA | LAST, b"\x08\0\x18\0UI\x08\x001.2.3.4\0")
    + pdu(0x05, bytes(4))
)


@settings(max_examples=40)
@given(data=st.data())
def test_no_bytes_bring_the_service_down(target: Edge, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=400)) or mutated(data, CONVERSATION)
    with connection(target.scp.port) as peer, contextlib.suppress(OSError):
        peer.sendall(content)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass
    with raw_association(target.scp.port) as peer:
        peer.sendall(echo_rq())
        assert read_pdu(peer)[:1] == b"\x04"
    assert list(target.files.paths()) == []
