"""Who is let in, and that turning away costs neither a place nor a log."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import struct
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from phoi_edge_node.dicom.door import Admitted, Door, DoorRules
from phoi_edge_node.testing import FakeClock
from structlog.testing import capture_logs
from support.certificates import Certificates
from support.dicom_wire import associate_rq, ends


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),  # the same one, where the port listens on IPv6
        ("192.0.3.7", False),
        ("2001:db8::1", True),
        ("fe80::1%eth0", False),
    ],
)
def test_addresses_are_matched_however_they_are_written(host: str, *, allowed: bool) -> None:
    rules = DoorRules(allowed_peers=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
    assert rules.allow(host) is allowed
    assert DoorRules().allow(host)


def test_who_floods_the_door_does_not_flood_the_log() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    rules, clock = DoorRules(allowed_peers=(ip_network("192.0.2.0/24"),)), FakeClock()
    door = Door(listener, rules, clock, lambda _: None, list)
    with capture_logs() as logs:
        door.start()
        for number in range(6):
            if number == 5:
                clock.advance(11)
            with socket.create_connection(listener.getsockname(), timeout=30) as peer:
                assert peer.recv(1) == b""
        door.stop()
    assert [entry["more_before"] for entry in logs] == [0, 4]


class Exhausted:
    """A listener whose ``accept`` fails as often as it is told to."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.socket.accept()


def test_without_descriptors_the_oldest_makes_room_for_who_comes() -> None:
    listener: Any = Exhausted()
    admitted: list[bytes] = []

    def admit(who: Admitted) -> None:
        admitted.append(who.request)
        who.stream.close()

    door = Door(listener, DoorRules(), FakeClock(), admit, list)
    door.start()
    with socket.create_connection(listener.getsockname(), timeout=30) as oldest:
        oldest.sendall(b"\x01")
        while not door._waiting:
            time.sleep(0.01)
        listener.failures = 1
        with socket.create_connection(listener.getsockname(), timeout=30) as second:
            assert oldest.recv(1) == b""
            second.sendall(associate_rq())
            assert second.recv(1) == b""
    door.stop()
    assert admitted == [associate_rq()]


class Resetting:
    """A listener whose peers have reset the connection by the time it is looked at."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.accepted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def accept(self) -> Any:
        stream, address = self.socket.accept()
        self.accepted += 1
        if self.accepted <= 2:
            poll = select.poll()
            poll.register(stream, 0)  # of the reset only
            assert poll.poll(30_000)
        return stream, address


def test_a_reset_before_the_tls_handshake_leaves_the_door_open(tmp_path: Path) -> None:
    certificate = Certificates(tmp_path).issue("door")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.certificate, certificate.key)
    listener: Any = Resetting()
    door = Door(listener, DoorRules(tls=tls), FakeClock(), lambda _: None, list)
    door.start()
    for _ in range(2):
        peer = socket.create_connection(listener.getsockname(), timeout=30)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    with socket.create_connection(listener.getsockname(), timeout=30) as peer:
        peer.sendall(b"no handshake")
        assert ends(peer)
    assert door.trouble() == ""
    door.stop()


def test_what_no_one_foresaw_of_one_connection_leaves_the_door_open() -> None:
    class Failing(DoorRules):
        def allow(self, host: str) -> bool:
            raise RuntimeError(host)

    listener = socket.create_server(("127.0.0.1", 0))
    door = Door(listener, Failing(), FakeClock(), lambda _: None, list)
    with capture_logs() as logs:
        door.start()
        for _ in range(2):
            with socket.create_connection(listener.getsockname(), timeout=30) as peer:
                assert peer.recv(1) == b""
        assert door.trouble() == ""
        door.stop()
    assert [entry["error"] for entry in logs] == ["RuntimeError", "RuntimeError"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_door_is_told() -> None:
    class Broken(FakeClock):
        def monotonic(self) -> float:
            raise RuntimeError

    listener = socket.create_server(("127.0.0.1", 0))
    door = Door(listener, DoorRules(), Broken(), lambda _: None, list)
    assert door.trouble() == ""
    door.start()
    door._thread.join(30)
    assert "restart Phoi" in door.trouble()
    listener.close()
