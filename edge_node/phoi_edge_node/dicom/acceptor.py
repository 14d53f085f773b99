"""pynetdicom as an acceptor that a peer cannot exhaust.

pynetdicom negotiates and runs the associations. Here stands what it leaves open: it starts two
threads for every connection, reads as many bytes as a peer claims that a PDU has
(pydicom/pynetdicom#1086), waits without limit for a PDU that drips in, collects a data set of any
length in memory, and queues messages without end. See ``door`` for what comes before an
association.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, cast

import structlog
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from phoi_edge_node.dicom.door import INVALID_VALUE, Admitted, Door, DoorRules
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Clock

MAXIMUM_PDU = 128 * 1024
_LARGEST_PDU_READ = 2 * MAXIMUM_PDU  # a P-DATA-TF of some senders is a little over what was agreed
LARGEST_COMMAND = 64 * 1024
_LARGEST_OTHER_DATA_SET = 2 * 1024 * 1024  # of what is no C-STORE: a commitment of many instances
SLOWEST_BYTES_PER_S = 16 * 1024
_MOST_UNANSWERED = 2  # one request at a time (PS3.7 D.3.3.3); one more may be on its way
_MOST_EVENT_REPORTS = 100  # on one association: pynetdicom starts a thread for each
_LAST_REQUEST_S = 2.0  # of an association that is aborted: to end what it was told before
_INVALID_PDU = "Evt19"  # PS3.8 9.2.1: the association is aborted

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a peer is waited for, seconds.

    Attributes:
        request: from the connection to its whole A-ASSOCIATE-RQ; and for any other step of ACSE.
        pdu: from the first byte of a PDU to its last.
        idle: between two PDUs.
        message: for one DIMSE message, beside what its bytes take at 16 KiB a second.
    """

    request: float = 10.0
    pdu: float = 30.0
    idle: float = 60.0
    message: float = 60.0


class TooLong(BytesIO):
    """Stands for a data set that was longer than is taken, and so was dropped as it came."""


class _Excess(Exception):
    """A peer goes beyond what an association may cost."""


class MemoryBudget:
    """Bytes that all associations together may hold of data sets that are still coming in.

    Beyond it a sender waits, which TCP tells it; the one whose data set began first never does, so
    that there is always one that ends.
    """

    def __init__(self, limit: int) -> None:
        """Hold at most ``limit`` bytes, and one data set more."""
        self._limit = limit
        self._held: OrderedDict[object, int] = OrderedDict()
        self._changed = threading.Condition()

    def take(self, owner: object, size: int, patience_s: float) -> bool:
        """Hold ``size`` bytes more for ``owner``; False if there was no room for so long."""
        with self._changed:
            self._held.setdefault(owner, 0)
            if not self._changed.wait_for(lambda: self._room(owner, size), patience_s):
                return False
            self._held[owner] += size
            return True

    def give_back(self, owner: object) -> None:
        """All that ``owner`` holds. Idempotent."""
        with self._changed:
            if self._held.pop(owner, None) is not None:
                self._changed.notify_all()

    def _room(self, owner: object, size: int) -> bool:
        first = next(iter(self._held))
        return first is owner or sum(self._held.values()) + size <= self._limit


class _BoundedDimse(DIMSEServiceProvider):
    """Collects messages within bounds of size, time and number."""

    def __init__(
        self, association: Any, largest_data_set: int, budget: MemoryBudget, patience: Patience
    ) -> None:
        super().__init__(association)
        self._largest = largest_data_set
        self._budget = budget
        self._patience = patience
        self._event_reports = 0
        self._started = 0.0
        self._command_bytes = self._data_bytes = 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA-TF; beyond a bound the association is aborted."""
        try:
            message = self._message()
            self._count(primitive)
            self._require_bounds()
            self._hold_or_drop(primitive)
            super().receive_primitive(primitive)
            self._require_bounds_of(message)
            if self.message is None and not isinstance(message, C_STORE_RQ):
                self.end_message()  # it is whole, and short: none but images are worth counting
        except _Excess as excess:
            self._abort(str(excess))
        except Exception as error:  # a message can be wrong in more ways than can be listed
            self._abort(f"a message cannot be read ({type(error).__name__})")

    def end_message(self) -> None:
        """What came last has been dealt with."""
        self._budget.give_back(self)

    def _message(self) -> DIMSEMessage:
        """The message that is coming in, or a new one."""
        if self.message is None:
            if self.msg_queue.qsize() >= _MOST_UNANSWERED:
                raise _Excess("it sends requests without waiting for responses")
            if self.msg_queue.empty():
                self.end_message()
            self.message = DIMSEMessage()
            self._started = time.monotonic()
            self._command_bytes = self._data_bytes = 0
        return self.message

    def _count(self, primitive: P_DATA) -> None:
        for _, fragment in primitive.presentation_data_value_list:
            if _is_command(fragment):
                self._command_bytes += len(fragment)
            else:
                self._data_bytes += len(fragment)

    def _require_bounds(self) -> None:
        if self._command_bytes > LARGEST_COMMAND:
            raise _Excess("its command set is too long")
        taken = self._command_bytes + self._data_bytes
        if time.monotonic() - self._started > self._patience.message + taken / SLOWEST_BYTES_PER_S:
            raise _Excess("a message takes too long")

    def _hold_or_drop(self, primitive: P_DATA) -> None:
        """Of a data set that is too long nothing is kept; it is refused once it has come."""
        fragments = primitive.presentation_data_value_list
        if self._data_bytes > self._largest and self.message is not None:
            self.message.data_set = TooLong()
            self._budget.give_back(self)
            kept: list[Any] = [  # pynetdicom takes lists of two, whatever its annotations say
                [context_id, fragment if _is_command(fragment) else fragment[:1]]
                for context_id, fragment in fragments
            ]
            primitive.presentation_data_value_list = kept
            return
        # A command set is short, and whoever only sends those must not be first.
        size = sum(len(fragment) for _, fragment in fragments if not _is_command(fragment))
        if size and not self._budget.take(self, size, self._patience.pdu):
            raise _Excess("there is no memory for its data set")

    def _require_bounds_of(self, message: DIMSEMessage) -> None:
        """What can be told once the command set has been read."""
        if isinstance(message, N_EVENT_REPORT_RQ) and self.message is None:
            self._event_reports += 1
            if self._event_reports > _MOST_EVENT_REPORTS:
                raise _Excess("it reports too many events")
        if self._data_bytes > _LARGEST_OTHER_DATA_SET and not isinstance(message, C_STORE_RQ):
            raise _Excess("the data set of a message is too long")

    def _abort(self, why: str) -> None:
        _log.warning("association aborted", why=why)
        self.message = None
        self.end_message()
        self.dul.event_queue.put(_INVALID_PDU)


def _is_command(fragment: bytes) -> bool:
    """Of the command set, not of the data set (message control header, PS3.8 E.2)."""
    return bool(fragment[0] & 1)


class _SteadyStateMachine(StateMachine):
    """Ends an association in order where an action cannot deal with what a peer sent.

    pynetdicom's own ends the thread by an exception, and leaves the connection open.
    """

    def do_action(self, event: str) -> None:
        """One transition (PS3.8 9.2)."""
        dul: Any = self.dul
        try:
            super().do_action(event)
        except Exception as error:  # a PDU can be wrong in more ways than can be listed
            why = f"a PDU cannot be used ({type(error).__name__})"
            _log.warning("association aborted", why=why)
            self._end()
        if dul._kill_thread:  # noqa: SLF001
            # Whoever waits for a request that will not come now gives its place back at once.
            dul.to_user_queue.put(None)

    def _end(self) -> None:
        association: Any = self.dul.assoc
        link: Any = self.dul.socket
        if link.socket is not None:
            link.send(INVALID_VALUE)
            link.close()
        association.is_aborted, association.is_established = True, False
        association._kill = True  # as pynetdicom does where its reactor fails  # noqa: SLF001
        self.dul.kill_dul()


def end_message(association: Any) -> None:
    """The request that came last on this association has been dealt with: its memory is free."""
    association.dimse.end_message()


class _AdmittedSocket(AssociationSocket):
    """A connection whose first PDU was read at the door, and that is read within bounds."""

    def __init__(self, association: Any, admitted: Admitted, patience: Patience) -> None:
        super().__init__(association, client_socket=admitted.stream)
        self._read_ahead = memoryview(admitted.request)
        self._patience = patience

    @property
    def ready(self) -> bool:
        """Is there something to read?"""
        return bool(self._read_ahead) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly so many bytes, or fewer where the peer closed.

        Raises:
            OSError: the peer claims more than may be, or takes too long.
        """
        if self._read_ahead:
            ahead, self._read_ahead = self._read_ahead[:nr_bytes], self._read_ahead[nr_bytes:]
            return bytearray(ahead)
        if nr_bytes > _LARGEST_PDU_READ:
            raise OSError("the peer claims a PDU that is longer than was negotiated")
        stream = self.socket
        if stream is None:
            raise OSError("the connection is closed")
        try:
            return _receive(stream, nr_bytes, time.monotonic() + self._patience.pdu)
        finally:
            stream.settimeout(self._patience.pdu)  # of whatever is sent next


def _receive(stream: socket.socket, length: int, deadline: float) -> bytearray:
    pdu = bytearray(length)
    got = 0
    with memoryview(pdu) as view:
        while got < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("a PDU takes too long")
            stream.settimeout(left)
            read = stream.recv_into(view[got:])
            if read == 0:
                break
            got += read
    return pdu[:got] if got < length else pdu


class _Handler(RequestHandler):
    """Makes the association of a connection that was let in."""

    server: _Server

    def _create_association(self) -> Any:
        association: Any = super()._create_association()
        admitted, limits = self.server.admitted, self.server.limits
        # The socket that is replaced said "Evt5", connection indication; the new one says it too.
        association.dul.event_queue.get_nowait()
        association.dul.socket = _AdmittedSocket(association, admitted, limits.patience)
        association.dul.state_machine = _SteadyStateMachine(association.dul)
        association.dimse = _BoundedDimse(
            association, limits.largest_data_set, limits.budget, limits.patience
        )
        return association

    def handle(self) -> None:
        association: Any = self._create_association()
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        threading.Thread(
            target=self.server.run_association, args=(association,), name="association", daemon=True
        ).start()


@dataclass(frozen=True)
class Limits:
    """Of one acceptor.

    Attributes:
        largest_data_set: bytes, of a C-STORE request.
    """

    largest_data_set: int
    budget: MemoryBudget
    patience: Patience


class FastPath(Protocol):
    """Serves those associations that it can, in threads of its own."""

    def take_over(self, admitted: Admitted, otherwise: Callable[[Admitted], None]) -> None:
        """Returns at once; ``otherwise`` is called with what is pynetdicom's."""
        ...

    def peers(self) -> list[str]:
        """Of the associations that run."""
        ...

    def stop(self) -> None:
        """Abort all."""
        ...


class _Server(AssociationServer):
    """pynetdicom's server without its own way to accept."""

    request_queue_size = 128
    limits: Limits
    ended: Callable[[Any], None]
    fast: FastPath | None
    admitting: threading.Lock
    admitted: Admitted

    def admit(self, admitted: Admitted) -> None:
        """Called by one thread, the door's."""
        if self.fast is None:
            self._serve(admitted)
        else:
            self.fast.take_over(admitted, self._serve)

    def _serve(self, admitted: Admitted) -> None:
        with self.admitting:
            self.admitted = admitted
            self.finish_request(admitted.stream, admitted.address)

    def run_association(self, association: Any) -> None:
        """To its end, however it ends."""
        association.start()
        association.join()
        end_message(association)
        self.ended(association)

    def peers(self) -> list[str]:
        """Of the associations that run."""
        addresses = [a.requestor.address_info for a in self.active_associations]
        others = self.fast.peers() if self.fast is not None else []
        return [address.address for address in addresses if address is not None] + others


class Acceptor:
    """Listens, and runs associations within limits.

    Args:
        ended: told of every association of pynetdicom's that had been let in, once, after its last
            request.
        fast: is asked first.

    Raises:
        EdgeError: the port cannot be used.
    """

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        rules: DoorRules,
        limits: Limits,
        clock: Clock,
        handlers: Sequence[evt.EventHandlerType],
        ended: Callable[[Any], None],
        fast: FastPath | None = None,
    ) -> None:
        entity.acse_timeout = limits.patience.request
        entity.dimse_timeout = limits.patience.pdu
        entity.network_timeout = limits.patience.idle
        entity.maximum_pdu_size = MAXIMUM_PDU
        entity.maximum_associations = rules.maximum_associations
        try:
            self._server = _Server(
                entity,
                address,
                entity.ae_title,
                entity.supported_contexts,
                evt_handlers=list(handlers),
                request_handler=_Handler,
            )
        except OSError as error:
            raise EdgeError(
                f"cannot listen for DICOM on {address[0]}:{address[1]} ({error.strerror}). "
                "Stop what uses the port, or set dicom.port to another one."
            ) from None
        self._server.limits, self._server.ended, self._server.fast = limits, ended, fast
        self._server.admitting = threading.Lock()
        self._door = Door(
            cast("socket.socket", self._server.socket),
            rules,
            clock,
            self._server.admit,
            self._server.peers,
        )
        self._door.start()

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        return int(self._server.server_address[1])

    def trouble(self) -> str:
        """Why nobody is let in, though it listens; "" where all is well."""
        return self._door.trouble()

    def stop(self) -> None:
        """Stop listening; open associations are aborted, so their senders try again."""
        self._door.stop()
        if self._server.fast is not None:
            self._server.fast.stop()
        associations = self._server.active_associations
        for association in associations:
            association.abort()
        give_up_at = time.monotonic() + _LAST_REQUEST_S
        for association in associations:  # all of them together, however many there are
            association.join(max(0.0, give_up_at - time.monotonic()))
