"""The door of the DICOM port: a connection is nobody's concern before its A-ASSOCIATE-RQ is whole.

One thread holds every connection that has not yet asked for an association (PS3.8 9.3.2): it
costs a socket and the bytes that came, no thread and no memory by a claimed length. Who may not
connect, who asks for nothing in time and who asks for too much is gone before a DICOM library
sees a byte of it. Half-open connections and associations are counted apart, so that silent
sockets take no sender's place.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

import structlog

from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import DicomSettings

_A_ASSOCIATE_RQ = 0x01
_HEADER = struct.Struct(">BxL")  # PDU type, reserved, length (PS3.8 9.3.1)
# A-ASSOCIATE-RJ, transient, by the presentation provider: local limit exceeded (PS3.8 9.3.4).
_LOCAL_LIMIT_EXCEEDED = bytes((0x03, 0, 0, 0, 0, 4, 0, 2, 3, 2))
# A-ABORT by the service provider: unexpected PDU; invalid parameter value (PS3.8 9.3.8).
_UNEXPECTED_PDU = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 2))
INVALID_VALUE = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 6))
_LOOK_EVERY_S = 0.25
_TELL_EVERY_S = 10.0  # of one reason to turn away: who floods the door does not flood the log

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DoorRules:
    """Who is let in.

    Attributes:
        allowed_peers: empty: any address.
        tls: every connection begins with this handshake; None: plain TCP.
        maximum_associations: at once.
        maximum_associations_per_peer: at once, from one address.
        maximum_waiting: half-open connections at once; with one more, the oldest is closed.
            With all associations they must stay below the 1024 descriptors that select() knows.
        patience_s: from the connection to the last byte of its A-ASSOCIATE-RQ.
        longest_request: bytes of an A-ASSOCIATE-RQ; 128 presentation contexts take about 64 KiB.
    """

    allowed_peers: tuple[IPv4Network | IPv6Network, ...] = ()
    tls: ssl.SSLContext | None = None
    maximum_associations: int = 64
    maximum_associations_per_peer: int = 16
    maximum_waiting: int = 256
    patience_s: float = 10.0
    longest_request: int = 256 * 1024

    @classmethod
    def of(
        cls, settings: DicomSettings, tls: ssl.SSLContext | None, patience_s: float
    ) -> DoorRules:
        """What the settings say."""
        return cls(
            allowed_peers=tuple(settings.allowed_peers),
            tls=tls,
            maximum_associations=settings.maximum_associations,
            maximum_associations_per_peer=settings.maximum_associations_per_peer,
            patience_s=patience_s,
        )

    def allow(self, host: str) -> bool:
        """May this address connect?"""
        address = _plain(host)
        return not self.allowed_peers or any(address in network for network in self.allowed_peers)


@dataclass(frozen=True)
class Admitted:
    """A connection that asks for an association.

    Attributes:
        stream: blocking; past the TLS handshake where there is one.
        address: of the peer, as the socket gives it.
        request: its A-ASSOCIATE-RQ, header and all: read already.
    """

    stream: socket.socket
    address: tuple[str, int]
    request: bytes


class _Refusal(Exception):
    """What to answer before closing."""

    def __init__(self, answer: bytes, why: str) -> None:
        super().__init__(why)
        self.answer = answer


@dataclass
class _Waiting:
    """A connection on the doorstep."""

    stream: socket.socket
    address: tuple[str, int]
    deadline: float
    handshaking: bool
    received: bytearray = field(default_factory=bytearray)

    def read(self, longest: int) -> bytes:
        """The whole request.

        Raises:
            BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError: there is more to come.
            OSError: the connection is lost.
            _Refusal: this is no A-ASSOCIATE-RQ, or too long a one.
        """
        if self.handshaking and isinstance(self.stream, ssl.SSLSocket):
            self.stream.do_handshake()
            self.handshaking = False
        while missing := self._missing(longest):
            chunk = self.stream.recv(missing)
            if not chunk:
                raise ConnectionResetError("closed before its request was complete")
            self.received += chunk
        return bytes(self.received)

    def _missing(self, longest: int) -> int:
        if len(self.received) < _HEADER.size:
            return _HEADER.size - len(self.received)
        pdu_type, length = _HEADER.unpack_from(self.received)
        if pdu_type != _A_ASSOCIATE_RQ:
            raise _Refusal(_UNEXPECTED_PDU, "it begins with something else than a request")
        if length > longest:
            raise _Refusal(INVALID_VALUE, "its request claims to be too long")
        return int(_HEADER.size + length - len(self.received))


class Door:
    """Holds the listening socket.

    Args:
        listener: bound and listening; closed by ``stop``.
        admit: takes over a connection; called in the door's thread, so it must return soon.
        associations: the peers' addresses of the associations that are open now.
    """

    def __init__(
        self,
        listener: socket.socket,
        rules: DoorRules,
        clock: Clock,
        admit: Callable[[Admitted], None],
        associations: Callable[[], Collection[str]],
    ) -> None:
        self._listener = listener
        self._rules = rules
        self._clock = clock
        self._admit = admit
        self._associations = associations
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, _Waiting] = {}  # the oldest first
        self._told: dict[str, tuple[float, int]] = {}
        self._thread = threading.Thread(target=self._serve, name="dicom-door", daemon=True)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def start(self) -> None:
        """Begin to let in."""
        self._thread.start()

    def stop(self) -> None:
        """Close the door, and what waits before it."""
        self._stopping.set()
        self._thread.join()

    def trouble(self) -> str:
        """What is wrong with its thread, for an operator; "" where nothing is."""
        if self._thread.is_alive() or self._thread.ident is None or self._stopping.is_set():
            return ""
        return "the DICOM port lets nobody in: its thread has died: restart Phoi, and report it"

    def _serve(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(_LOOK_EVERY_S):
                self._deal_with(key)
            self._show_out_the_late()
        for waiting in list(self._waiting.values()):
            self._turn_away(waiting, "stopping")
        self._selector.close()
        self._listener.close()

    def _deal_with(self, key: selectors.SelectorKey) -> None:
        """Whatever one connection does, the door stays open."""
        waiting = self._waiting.get(key.data)
        try:
            if key.fileobj is self._listener:
                self._accept()
            elif waiting is not None:
                self._advance(waiting)
        except Exception as error:  # a connection can fail in more ways than can be listed
            _log.error("a connection failed", error=type(error).__name__)
            if waiting is not None and waiting.stream in self._waiting:
                self._turn_away(waiting, "it failed")

    def _accept(self) -> None:
        try:
            stream, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is left: make room
            self._turn_away_oldest(error.strerror or "no more connections")
            self._stopping.wait(_LOOK_EVERY_S)  # it is still there: no use to look at once
            return
        try:
            self._greet(stream, (address[0], address[1]))
        except OSError as error:
            stream.close()
            self._tell(address[0], error.strerror or "lost")
        except Exception:
            stream.close()
            raise

    def _greet(self, stream: socket.socket, address: tuple[str, int]) -> None:
        if not self._rules.allow(address[0]):
            self._tell(address[0], "not in dicom.allowed_peers")
            stream.close()
            return
        if len(self._waiting) >= self._rules.maximum_waiting:
            self._turn_away_oldest("too many silent connections")
        self._hold(stream, address)

    def _hold(self, stream: socket.socket, address: tuple[str, int]) -> None:
        """Wait for its request.

        Raises:
            OSError: the peer has reset it already, which the TLS layer says at once.
        """
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self._rules.tls
        if tls is not None:
            stream.getpeername()  # fails while the stream is still ours to close
            stream = tls.wrap_socket(stream, server_side=True, do_handshake_on_connect=False)
        deadline = self._clock.monotonic() + self._rules.patience_s
        self._waiting[stream] = _Waiting(stream, address, deadline, handshaking=tls is not None)
        self._selector.register(stream, selectors.EVENT_READ, stream)

    def _advance(self, waiting: _Waiting) -> None:
        try:
            request = waiting.read(self._rules.longest_request)
            self._require_place(waiting.address[0])
        except (BlockingIOError, ssl.SSLWantReadError):
            self._selector.modify(waiting.stream, selectors.EVENT_READ, waiting.stream)
        except ssl.SSLWantWriteError:
            self._selector.modify(waiting.stream, selectors.EVENT_WRITE, waiting.stream)
        except _Refusal as refusal:
            with contextlib.suppress(OSError):
                waiting.stream.send(refusal.answer)
            self._turn_away(waiting, str(refusal))
        except ssl.SSLError as error:
            self._turn_away(waiting, f"TLS: {error.reason}")
        except OSError as error:
            self._turn_away(waiting, error.strerror or "lost")
        else:
            self._let_in(waiting, request)

    def _require_place(self, host: str) -> None:
        """Room for one more association, in all and of this peer."""
        hosts = [_plain(other) for other in self._associations()]
        if len(hosts) >= self._rules.maximum_associations:
            raise _Refusal(_LOCAL_LIMIT_EXCEEDED, "dicom.maximum_associations is reached")
        if hosts.count(_plain(host)) >= self._rules.maximum_associations_per_peer:
            raise _Refusal(_LOCAL_LIMIT_EXCEEDED, "dicom.maximum_associations_per_peer is reached")

    def _let_in(self, waiting: _Waiting, request: bytes) -> None:
        self._forget(waiting)
        waiting.stream.setblocking(True)
        try:
            self._admit(Admitted(waiting.stream, waiting.address, request))
        except Exception as error:  # whatever one connection does, the door stays open
            _log.error("not let in", peer=waiting.address[0], error=type(error).__name__)
            waiting.stream.close()

    def _show_out_the_late(self) -> None:
        now = self._clock.monotonic()
        for waiting in list(self._waiting.values()):
            if waiting.deadline > now:
                return  # all that follow came later
            self._turn_away(waiting, "asked for no association in time")

    def _turn_away_oldest(self, why: str) -> None:
        oldest = next(iter(self._waiting.values()), None)
        if oldest is not None:
            self._turn_away(oldest, why)

    def _turn_away(self, waiting: _Waiting, why: str) -> None:
        self._forget(waiting)
        self._tell(waiting.address[0], why)
        waiting.stream.close()

    def _tell(self, host: str, why: str) -> None:
        """Log a peer that was turned away, and how many more for the same reason since the last."""
        now = self._clock.monotonic()
        told_at, untold = self._told.get(why, (-_TELL_EVERY_S, 0))
        if now - told_at < _TELL_EVERY_S:
            self._told[why] = (told_at, untold + 1)
            return
        self._told[why] = (now, 0)
        _log.warning("turned away", peer=host, why=why, more_before=untold)

    def _forget(self, waiting: _Waiting) -> None:
        self._selector.unregister(waiting.stream)
        del self._waiting[waiting.stream]


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; that of IPv4 also where it comes mapped into IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
