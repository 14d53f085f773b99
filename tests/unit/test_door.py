"""Who is let in, and that turning away costs neither a place nor a log."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest
from phoi_edge_node.dicom.door import Door, DoorRules
from phoi_edge_node.testing import FakeClock
from structlog.testing import capture_logs


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
