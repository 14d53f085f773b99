"""MLLP server (HL7 v2 Minimal Lower Layer Protocol): connections, frames and their limits.

A connection may carry any number of messages, one after another. Each has a thread of its own;
what a peer can make Phoi hold or wait for is bounded. Where places run out, the connection that has
been silent longest goes, so that silence keeps nobody out.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.hl7v2.mllp import END, START
from phoi_edge_node.settings import OrdersSettings
from phoi_edge_node.tls import server_context

MAXIMUM_MESSAGE = 1024 * 1024  # an order has a few kilobytes
MAXIMUM_CONNECTIONS = 64
MAXIMUM_CONNECTIONS_PER_PEER = 8
IDLE_TIMEOUT_S = 600.0  # interface engines keep connections open between messages
MESSAGE_TIMEOUT_S = 30.0  # from its first byte to its last

log = structlog.get_logger(__name__)


class _Shed(Exception):
    """The peer is disconnected; the text says why."""


@dataclass(eq=False)
class _Connection:
    """One that is open.

    Attributes:
        idle_since: by the monotonic clock; None while a message is under way.
    """

    socket: socket.socket
    peer: str
    idle_since: float | None


class MllpListener:
    """Listens for messages.

    Args:
        answer: gives the acknowledgement of a message, both without frame; called from several
            threads at once, and never raises.

    Raises:
        SettingsError: a file for TLS cannot be used.
    """

    def __init__(
        self,
        settings: OrdersSettings,
        answer: Callable[[bytes], bytes],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._answer = answer
        self._monotonic = monotonic
        self._tls = server_context(settings, "orders")
        self._server: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: list[_Connection] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="mllp", daemon=True)

    @property
    def port(self) -> int:
        """The port in use, also where the settings say 0; only while started."""
        if self._server is None:
            raise AssertionError("not started")
        return int(self._server.getsockname()[1])

    def start(self) -> None:
        """Begin to listen; returns at once.

        Raises:
            EdgeError: the port cannot be used.
        """
        address = (self._settings.host, self._settings.port)
        try:
            self._server = socket.create_server(address)
        except OSError as error:
            raise EdgeError(
                f"cannot listen for orders on {address[0]}:{address[1]} ({error.strerror}). "
                "Stop what uses the port, or set orders.port to another one."
            ) from None
        self._server.settimeout(0.5)
        self._thread.start()
        log.info("listening for orders", port=self.port)

    def stop(self) -> None:
        """Stop listening; what is not acknowledged yet will be sent again. Idempotent."""
        self._stopping.set()
        if self._server is None:
            return
        self._thread.join()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)

    def _accept(self) -> None:
        server = self._server
        if server is None:
            raise AssertionError("not started")
        with server:
            while not self._stopping.is_set():
                try:
                    connection, (peer, *_) = server.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # too many open files, for one: it may pass
                    log.warning("no connection taken", why=type(error).__name__)
                    self._stopping.wait(0.5)
                    continue
                self._take(connection, str(peer))

    def _take(self, connection: socket.socket, peer: str) -> None:
        new = _Connection(connection, peer, self._monotonic())
        refusal = self._refusal(new)
        if refusal:
            log.warning("connection refused", peer=peer, why=refusal)
            connection.close()
            return
        thread = threading.Thread(target=self._serve, args=(new,), name="mllp-peer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: it may pass
            log.warning("connection refused", peer=peer, why="no thread can be started")
            self._forget(new)
            connection.close()

    def _refusal(self, new: _Connection) -> str:
        """Give a connection its place; "", or why it gets none."""
        allowed = self._settings.allowed_peers
        if allowed and not any(ip_address(new.peer) in network for network in allowed):
            return "not in orders.allowed_peers"
        with self._lock:
            same = [other for other in self._open if other.peer == new.peer]
            if len(same) >= MAXIMUM_CONNECTIONS_PER_PEER and not self._make_room(same):
                return "its other connections are all busy"
            if len(self._open) >= MAXIMUM_CONNECTIONS and not self._make_room(self._open):
                return "all connections are busy"
            self._open.append(new)
        return ""

    def _make_room(self, among: Sequence[_Connection]) -> bool:
        """Hang up the one that has been idle longest; False where none is. Holds the lock."""
        idle = [other for other in among if other.idle_since is not None]
        if not idle:
            return False
        oldest = min(idle, key=lambda other: other.idle_since or 0.0)
        self._open.remove(oldest)
        _hang_up(oldest)
        return True

    def _serve(self, connection: _Connection) -> None:
        try:
            self._secure(connection)
            with connection.socket:
                for message in self._messages(connection):
                    connection.socket.settimeout(MESSAGE_TIMEOUT_S)
                    connection.socket.sendall(START + self._answer(message) + END)
        except _Shed as why:
            log.warning("peer disconnected", peer=connection.peer, why=str(why))
        except OSError:
            pass  # it went away; what it got no answer to, it sends again
        finally:
            self._forget(connection)

    def _secure(self, connection: _Connection) -> None:
        """Speak TLS from here on, where the settings say so.

        Raises:
            _Shed: the peer does not, or shows no certificate that is accepted.
        """
        if self._tls is None:
            return
        connection.socket.settimeout(MESSAGE_TIMEOUT_S)
        try:
            secured = self._tls.wrap_socket(
                connection.socket, server_side=True, do_handshake_on_connect=False
            )
            connection.socket = secured  # from here on, hanging up ends the handshake
            secured.do_handshake()
        except OSError as error:
            connection.socket.close()
            reason = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            raise _Shed(f"no TLS: {reason}") from None

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            if connection in self._open:
                self._open.remove(connection)

    def _messages(self, connection: _Connection) -> Iterator[bytes]:
        """The messages of a connection, without their frames, until the peer ends it.

        Raises:
            _Shed: too long, too slow, idle, or no MLLP.
        """
        received = bytearray()
        while not self._stopping.is_set():
            deadline = self._monotonic() + (MESSAGE_TIMEOUT_S if received else IDLE_TIMEOUT_S)
            connection.idle_since = None if received else self._monotonic()
            while (end := received.find(END)) < 0:
                chunk = self._receive(connection.socket, deadline)
                if not chunk:
                    return
                if not received:
                    connection.idle_since = None
                    deadline = self._monotonic() + MESSAGE_TIMEOUT_S
                received += chunk
                _require_frame(received)
            yield bytes(received[1:end])
            del received[: end + len(END)]
            _require_frame(received)

    def _receive(self, connection: socket.socket, deadline: float) -> bytes:
        left_s = deadline - self._monotonic()
        if left_s > 0:
            connection.settimeout(left_s)
            with suppress(TimeoutError):
                return connection.recv(65536)
        raise _Shed("nothing came for too long")


def _hang_up(connection: _Connection) -> None:
    """The thread that serves it notices, and ends."""
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _require_frame(received: bytearray) -> None:
    if received and not received.startswith(START):
        raise _Shed("what it sends is not MLLP")
    if len(received) > MAXIMUM_MESSAGE:
        raise _Shed(f"a message exceeds {MAXIMUM_MESSAGE} bytes")
