"""C-STORE at the rate of the line: a blocking thread for each association, bytes straight to disk.

The same service as ``StorageScp`` gives through pynetdicom, whose loops poll and copy. Behind the
same door, with the same limits, and what is taken goes through the same ``InstanceTaker``.
Associations that ask for more than storage and verification are pynetdicom's
(docs/adr/0006-lean-receiver.md).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import structlog
from pynetdicom import AE

from phoi_edge_node.dicom.acceptor import (
    LARGEST_COMMAND,
    SLOWEST_BYTES_PER_S,
    Limits,
)
from phoi_edge_node.dicom.door import INVALID_VALUE, Admitted
from phoi_edge_node.dicom.instance_files import IncomingFile
from phoi_edge_node.dicom.lean_messages import C_ECHO_RQ, C_STORE_RQ, Request
from phoi_edge_node.dicom.lean_negotiation import Accepted, negotiate
from phoi_edge_node.dicom.lean_wire import (
    A_ABORT,
    A_RELEASE_RQ,
    LARGEST_PDU,
    P_DATA_TF,
    BrokenProtocol,
    Fragment,
    Wire,
)
from phoi_edge_node.dicom.taking import (
    DATA_SET_DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SUCCESS,
    IncomingInstance,
    InstanceTaker,
    NotTaken,
    status_of,
)
from phoi_edge_node.dicom.uids import is_uid

_A_RELEASE_RP = bytes((0x06, 0, 0, 0, 0, 4, 0, 0, 0, 0))
_SHORT_PDU = 4  # bytes, of A-RELEASE and A-ABORT
_LOOK_AT_DISK_EVERY = 16 * 1024 * 1024  # bytes of one data set
_LAST_REQUEST_S = 2.0
_LONGEST_KEPT = 32 * 1024  # bytes of an A-ASSOCIATE-RQ

_log = structlog.get_logger(__name__)


class LeanReceiver:
    """Serves associations that were let in.

    Args:
        entity: with all that this port serves, and whom.
        services: SOP classes that are served here.
        new_name: names an association.
    """

    def __init__(
        self,
        entity: AE,
        services: Collection[str],
        taker: InstanceTaker,
        limits: Limits,
        new_name: Callable[[], str],
    ) -> None:
        self._entity = entity
        self._services = frozenset(services)
        self._taker = taker
        self._limits = limits
        self._new_name = new_name
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, _Open] = {}
        self._stopping = False
        # Senders ask for the same again and again; reading that takes longer than some slices.
        self._known = lru_cache(maxsize=32)(self._negotiate)

    def take_over(self, admitted: Admitted, otherwise: Callable[[Admitted], None]) -> None:
        """Returns at once; ``otherwise`` is called with what is pynetdicom's."""
        thread = threading.Thread(
            target=self._serve, args=(admitted, otherwise), name="lean-association", daemon=True
        )
        with self._lock:
            thread.start()
            self._open[thread] = _Open(admitted.address[0])

    def peers(self) -> list[str]:
        """Of the associations that run."""
        with self._lock:
            return [association.address for association in self._open.values()]

    def stop(self) -> None:
        """Abort all associations, so that their senders try again."""
        with self._lock:
            self._stopping = True
            running = dict(self._open)
            for association in running.values():
                association.ask_to_stop()
        give_up_at = time.monotonic() + _LAST_REQUEST_S
        for thread in running:
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def _serve(self, admitted: Admitted, otherwise: Callable[[Admitted], None]) -> None:
        try:
            accepted = self._negotiated(admitted.request)
            if accepted is None:
                otherwise(admitted)
            else:
                self._begin(admitted, accepted).run()
        except Exception as error:  # our bug: the others go on
            _log.error("not served", peer=admitted.address[0], error=type(error).__name__)
            admitted.stream.close()
        finally:
            with self._lock:
                del self._open[threading.current_thread()]

    def _negotiated(self, request: bytes) -> Accepted | None:
        return (self._known if len(request) <= _LONGEST_KEPT else self._negotiate)(request)

    def _negotiate(self, request: bytes) -> Accepted | None:
        return negotiate(request, self._entity, self._services)

    def _begin(self, admitted: Admitted, accepted: Accepted) -> LeanAssociation:
        association = LeanAssociation(
            admitted.stream, accepted, self._taker, self._limits, self._new_name()
        )
        with self._lock:
            self._open[threading.current_thread()].association = association
            if self._stopping:
                association.ask_to_stop()
        return association


@dataclass
class _Open:
    """A connection that was let in; its association is None until it is accepted."""

    address: str
    association: LeanAssociation | None = None

    def ask_to_stop(self) -> None:
        if self.association is not None:
            self.association.ask_to_stop()


class LeanAssociation:
    """From its acceptance to its end."""

    def __init__(
        self,
        stream: socket.socket,
        accepted: Accepted,
        taker: InstanceTaker,
        limits: Limits,
        name: str,
    ) -> None:
        self._stream = stream
        self._accepted = accepted
        self._taker = taker
        self._limits = limits
        self._name = name
        self._wire = Wire(stream, limits.patience)
        self._message = _Message()
        self._stopping = False
        self._has_stored = False

    def ask_to_stop(self) -> None:
        """End after the request that is being dealt with. Called by another thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            # Of the plain socket, also where TLS is on top: TLS still says that it ends.
            socket.socket.shutdown(self._stream, socket.SHUT_RD)

    def run(self) -> None:
        """Whatever the peer does, and however it ends, nothing half-written remains."""
        try:
            self._send(self._accepted.answer)
            while self._serve_pdu():
                pass
        except BrokenProtocol as broken:
            self._abort(str(broken))
        except OSError as error:
            if self._stopping:
                self._abort("stopping")
            else:
                _log.info("association lost", why=error.strerror or type(error).__name__)
        except Exception as error:  # our bug: the others go on. No traceback: it shows the patient.
            self._abort(type(error).__name__)
        finally:
            self._message.end()
            self._stream.close()
            if self._has_stored:
                self._taker.released(self._name)

    def _serve_pdu(self) -> bool:
        """One PDU; False once the association has ended."""
        if self._stopping:
            raise BrokenProtocol("stopping")
        pdu_type, length = self._wire.next_pdu()
        if pdu_type == P_DATA_TF and 0 < length <= LARGEST_PDU:
            self._serve_data(length)
            return True
        if pdu_type == A_RELEASE_RQ and length == _SHORT_PDU:
            self._wire.pass_on(length, len)  # what is not read would reset the connection
            self._send(_A_RELEASE_RP)
            return False
        if pdu_type == A_ABORT:
            _log.info("association aborted by the peer")
            return False
        raise BrokenProtocol("a PDU that is not expected, or too long")

    def _serve_data(self, left: int) -> None:
        while left:
            fragment = self._wire.next_fragment(left)
            left -= 6 + fragment.length
            self._message.require_pace(fragment.length, self._limits)
            if fragment.of_command:
                self._take_command(fragment)
            else:
                self._take_data(fragment)

    def _take_command(self, fragment: Fragment) -> None:
        message = self._message
        if message.request is not None:
            raise BrokenProtocol("a request within a request")
        if len(message.command_set) + fragment.length > LARGEST_COMMAND:
            raise BrokenProtocol("a command set is too long")
        self._wire.pass_on(fragment.length, message.command_set.extend)
        if fragment.is_last:
            request = Request.decode(fragment.context_id, bytes(message.command_set))
            message.request = request
            self._begin(request)

    def _begin(self, request: Request) -> None:
        context = self._accepted.contexts.get(request.context_id)
        if context is None:
            raise BrokenProtocol("a request in a presentation context that was not accepted")
        if request.command == C_STORE_RQ and request.has_data_set:
            self._message.storing = _Storing(
                IncomingInstance(
                    data_set=b"",
                    transfer_syntax_uid=context[1],
                    sop_class_uid=request.sop_class_uid,
                    sop_instance_uid=request.sop_instance_uid,
                    calling_ae_title=self._accepted.calling_ae_title,
                    called_ae_title=self._accepted.called_ae_title,
                ),
                self._taker,
                self._limits.largest_data_set,
            )
            self._message.storing.begin(context[0])
        elif request.command == C_ECHO_RQ and not request.has_data_set:
            self._answer(request, SUCCESS)
        else:
            raise BrokenProtocol("a request that is not served here")

    def _take_data(self, fragment: Fragment) -> None:
        request, storing = self._message.request, self._message.storing
        if request is None or storing is None or fragment.context_id != request.context_id:
            raise BrokenProtocol("data without a request")
        self._wire.pass_on(fragment.length, storing.write)
        if fragment.is_last:
            self._has_stored = True
            self._answer(request, storing.end(self._name))

    def _answer(self, request: Request, status: int) -> None:
        self._message.end()
        self._message = _Message()
        self._send(request.response(status))

    def _send(self, pdu: bytes) -> None:
        self._stream.settimeout(self._limits.patience.pdu)
        self._stream.sendall(pdu)

    def _abort(self, why: str) -> None:
        _log.warning("association aborted", why=why)
        with contextlib.suppress(OSError):
            self._send(INVALID_VALUE)


class _Message:
    """What has come of the current request."""

    def __init__(self) -> None:
        self.command_set = bytearray()
        self.request: Request | None = None
        self.storing: _Storing | None = None
        self._started = 0.0
        self._bytes = 0

    def require_pace(self, length: int, limits: Limits) -> None:
        """Not slower than anyone is waited for.

        Raises:
            BrokenProtocol: it takes too long.
        """
        now = time.monotonic()
        self._started = self._started or now
        self._bytes += length
        if now - self._started > limits.patience.message + self._bytes / SLOWEST_BYTES_PER_S:
            raise BrokenProtocol("a message takes too long")

    def end(self) -> None:
        """Leave nothing half-written."""
        if self.storing is not None:
            self.storing.discard()


class _Storing:
    """One C-STORE request whose data set comes in. What cannot be kept is still read to its end."""

    def __init__(self, announced: IncomingInstance, taker: InstanceTaker, largest: int) -> None:
        self._announced = announced
        self._taker = taker
        self._largest = largest
        self._file: IncomingFile | None = None
        self._refusal: NotTaken | None = None
        self._size = 0
        self._look_at_disk_at = _LOOK_AT_DISK_EVERY

    def begin(self, abstract_syntax: str) -> None:
        """Open its file, unless what was announced cannot be kept."""
        announced = self._announced
        try:
            _require_usable(announced, abstract_syntax)
            self._taker.require_room(0)
            self._file = self._taker.begin(announced)
        except NotTaken as refusal:
            self._refuse(refusal)

    def write(self, fragment: memoryview) -> None:
        """The next bytes."""
        self._size += len(fragment)
        if self._file is None:
            return
        try:
            self._require_room()
            self._file.write(fragment)
        except NotTaken as refusal:
            self._refuse(refusal)
        except OSError as error:
            why = f"the disk does not take it: {error.strerror}"
            self._refuse(NotTaken(OUT_OF_RESOURCES, why))

    def end(self, association: str) -> int:
        """It is whole: keep it. The status to answer."""
        return status_of(lambda: self._keep(association), self._announced.sop_instance_uid)

    def discard(self) -> None:
        """Leave nothing that was not kept. Idempotent."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _keep(self, association: str) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._file is None:
            raise AssertionError("what was not refused has a file")
        self._taker.require_room(0)
        self._taker.end(self._announced, self._file, association)

    def _require_room(self) -> None:
        if self._size > self._largest:
            raise NotTaken(OUT_OF_RESOURCES, "it is larger than dicom.largest_instance_mb allows")
        if self._size >= self._look_at_disk_at:
            self._look_at_disk_at += _LOOK_AT_DISK_EVERY
            self._taker.require_room(0)

    def _refuse(self, refusal: NotTaken) -> None:
        self._refusal = refusal
        self.discard()


def _require_usable(announced: IncomingInstance, abstract_syntax: str) -> None:
    if announced.sop_class_uid != abstract_syntax:
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the request names another SOP class")
    if not is_uid(announced.sop_instance_uid):
        raise NotTaken(DATA_SET_DOES_NOT_MATCH, "the request names no SOP instance")
