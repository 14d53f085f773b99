"""Is anybody at the other end of a wire, and whose certificate does it show?"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from phoi_edge_node.checks.finding import Finding, found

TIMEOUT_S = 5.0
SOON_DAYS = 30
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL})
_TCP = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"
# OpenSSL's verify codes (x509_vfy.h).
_EXPIRED = frozenset({9, 10})
_OTHER_NAME = frozenset({62, 64})


@dataclass(frozen=True)
class End:
    """The other end of a link.

    Attributes:
        subject, name: as of a finding.
        setting: that names the address.
        tls: what Phoi speaks to it; None: plain TCP.
    """

    subject: str
    name: str
    setting: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None


def reach(end: End) -> Finding | None:
    """Connect, and say why that failed; None where it did not."""
    values = {"host": end.host, "port": end.port, "setting": end.setting}
    try:
        with socket.create_connection((end.host, end.port), TIMEOUT_S) as connection:
            return _shake_hands(end, connection)
    except TimeoutError:
        return found("link.silent", end.subject, end.name, seconds=f"{TIMEOUT_S:g}", **values)
    except socket.gaierror:
        return found("link.unknown_host", end.subject, end.name, **values)
    except OSError as error:
        code = "link.no_route" if error.errno in _NO_ROUTE else "link.closed"
        return found(code, end.subject, end.name, **values)


def _shake_hands(end: End, connection: socket.socket) -> Finding | None:
    if end.tls is None:
        return None
    values = {"host": end.host, "port": end.port, "setting": end.setting}
    try:
        with end.tls.wrap_socket(connection, server_hostname=end.host) as secured:
            return _near_its_end(end, secured.getpeercert() or {})
    except ssl.SSLCertVerificationError as error:
        return found(_untrusted(error.verify_code), end.subject, end.name, **values)
    except ssl.SSLError as error:
        if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
            return found("tls.none", end.subject, end.name, **values)
        reason = (error.reason or "no handshake").lower().replace("_", " ")
        return found("tls.failed", end.subject, end.name, host=end.host, reason=reason)
    except TimeoutError:  # it waits for us to speak, in the clear
        return found("tls.none", end.subject, end.name, **values)
    except OSError:
        return found("tls.none", end.subject, end.name, **values)


def _untrusted(verify_code: int) -> str:
    if verify_code in _EXPIRED:
        return "tls.expired"
    return "tls.other_name" if verify_code in _OTHER_NAME else "tls.unknown_authority"


def _near_its_end(end: End, certificate: Mapping[str, object]) -> Finding | None:
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (until - datetime.now(UTC)).days
    if days >= SOON_DAYS:
        return None
    return found("tls.soon", end.subject, end.name, host=end.host, days=days)


def answers(host: str, port: int) -> bool:
    """Does anything listen there, on this machine?"""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def listener(port: int) -> str:
    """The program that listens on a port of this machine, by name and process; "?" if unknown."""
    inodes = {f"socket:[{inode}]" for file in _TCP for inode in _listening(file, port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                return f"{name}, PID {process.name}"
        except OSError:  # it ended, or is another user's
            continue
    return "?"


def _listening(table: Path, port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on a port (proc(5), /proc/net/tcp)."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9]


def own_address(host: str) -> str:
    """Where this machine reaches itself, of an address that it listens at."""
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - read, not bound
