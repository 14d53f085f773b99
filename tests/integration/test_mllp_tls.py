"""MLLP over TLS, both ways, with python-hl7 at the other end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import hl7
import pytest
from hl7.client import MLLPClient
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.hl7v2.listener import MllpListener
from phoi_edge_node.hl7v2.mllp import END, START, MllpDestination
from phoi_edge_node.ports import Delivered, Document, DocumentKind, SendOutcome, Unreachable
from phoi_edge_node.settings import Hl7Settings, OrdersSettings
from phoi_protos.transport import TlsFiles
from support.certificates import Certificates
from support.mllp_peers import mllp_peer
from support.outside import wait_for

MESSAGE = "MSH|^~\\&|PHOI|B|EMR|H|20261123||ORU^R01^ORU_R01|1|P|2.5.1|||||VNM|UNICODE UTF-8\r"
DOCUMENT = Document(DocumentKind.HL7_ORU, "1", MESSAGE.encode())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return Certificates(tmp_path_factory.mktemp("elsewhere")).issue("stranger")


@pytest.fixture(scope="module")
def emr(authority: Certificates) -> TlsFiles:
    return authority.issue("emr")


@pytest.fixture(scope="module")
def phoi(authority: Certificates) -> TlsFiles:
    return authority.issue("phoi")


# --- out -------------------------------------------------------------------------------------


@contextmanager
def receiver(files: TlsFiles) -> Iterator[int]:
    """python-hl7's server, which asks for a certificate of the same authority; its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.authority))
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    loop = asyncio.new_event_loop()

    async def connected(reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        try:
            writer.writemessage((await reader.readmessage()).create_ack("AA"))
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # a check only connects
        finally:
            writer.close()

    server = loop.run_until_complete(
        start_hl7_server(connected, "127.0.0.1", 0, encoding="utf-8", ssl=context)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def to(port: int, files: TlsFiles, host: str = "localhost") -> MllpDestination:
    settings = Hl7Settings(
        host=host,
        port=port,
        timeout_s=5,
        tls=True,
        tls_ca=files.authority,
        tls_certificate=files.certificate,
        tls_key=files.key,
    )
    return MllpDestination(settings)


def test_a_receiver_that_asks_for_a_certificate(emr: TlsFiles, phoi: TlsFiles) -> None:
    with receiver(emr) as port:
        assert to(port, phoi).check() == Delivered("connected")
        assert to(port, phoi).send(DOCUMENT) == Delivered("AA")


def test_nothing_is_sent_to_whom_the_certificate_does_not_name(
    emr: TlsFiles, phoi: TlsFiles, stranger: TlsFiles
) -> None:
    def why(outcome: SendOutcome) -> str:
        assert isinstance(outcome, Unreachable)
        return outcome.reason

    with receiver(emr) as port:
        assert "certificate is not accepted" in why(to(port, stranger).send(DOCUMENT))
        assert "certificate is not accepted" in why(to(port, phoi, "127.0.0.1").check())
    with mllp_peer(_speaks_no_tls) as port:
        assert why(to(port, phoi).check()) == "no TLS: WRONG_VERSION_NUMBER"


def _speaks_no_tls(connection: socket.socket, _: threading.Event) -> None:
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("spoilt", ["tls_ca", "tls_certificate"])
def test_a_file_that_cannot_be_used_is_named(phoi: TlsFiles, tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "spoilt.pem").write_text("no certificate")
    settings = Hl7Settings(
        host="h",
        port=1,
        tls=True,
        tls_ca=phoi.authority,
        tls_certificate=phoi.certificate,
        tls_key=phoi.key,
    ).model_copy(update={spoilt: tmp_path / "spoilt.pem"})
    with pytest.raises(SettingsError, match=rf"hl7\.{spoilt}"):
        MllpDestination(settings)


# --- in --------------------------------------------------------------------------------------


@pytest.fixture
def listener(phoi: TlsFiles) -> Iterator[MllpListener]:
    settings = OrdersSettings(
        port=0, tls_certificate=phoi.certificate, tls_key=phoi.key, tls_ca=phoi.authority
    )
    made = MllpListener(settings, lambda message: b"MSH|^~\\&|A\rMSA|AA|" + message[-1:] + b"\r")
    made.start()
    yield made
    made.stop()


Connect = Callable[[], socket.socket]


def connecting(port: int, files: TlsFiles | None, authority: Path) -> Connect:
    def connect() -> socket.socket:
        context = ssl.create_default_context(cafile=str(authority))
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        plain = socket.create_connection(("127.0.0.1", port), timeout=5)
        return context.wrap_socket(plain, server_hostname="localhost")

    return connect


class _Client(MLLPClient):  # type: ignore[misc]  # python-hl7 has no types
    """On a connection that is open."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.encoding = "utf-8"


def said_to(connect: Connect) -> bytes:
    """What python-hl7's client is answered; b"" where it is disconnected."""
    try:
        with closing(connect()) as secured:
            answer: bytes = _Client(secured).send_message("MSH|^~\\&|HIS|1")
            return answer
    except OSError:
        return b""


def test_a_sender_with_a_certificate_of_the_authority(
    listener: MllpListener, emr: TlsFiles
) -> None:
    answer = said_to(connecting(listener.port, emr, emr.authority))
    assert str(hl7.parse(answer.removeprefix(START).removesuffix(END)).segment("MSA")[1]) == "AA"


def test_everybody_else_is_disconnected_and_harms_nobody(
    listener: MllpListener, emr: TlsFiles, stranger: TlsFiles
) -> None:
    assert said_to(connecting(listener.port, None, emr.authority)) == b""
    assert said_to(connecting(listener.port, stranger, emr.authority)) == b""
    with (
        suppress(ConnectionResetError, BrokenPipeError),
        socket.create_connection(("127.0.0.1", listener.port), timeout=5) as plain,
    ):
        plain.sendall(START + MESSAGE.encode() + END)
        assert b"MSA" not in plain.recv(1024)
    assert said_to(connecting(listener.port, emr, emr.authority))


def test_silent_handshakes_leave_no_threads_behind(listener: MllpListener, emr: TlsFiles) -> None:
    """The one that has been silent longest goes, also while it has not shown who it is."""
    silent = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(12)]
    try:
        assert said_to(connecting(listener.port, emr, emr.authority))
        serving = [t for t in threading.enumerate() if t.name == "mllp-peer"]
        assert wait_for("end of threads", lambda: sum(t.is_alive() for t in serving) <= 8)
    finally:
        for connection in silent:
            connection.close()
