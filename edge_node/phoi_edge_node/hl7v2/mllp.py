"""MLLP client (HL7 v2 Minimal Lower Layer Protocol): one message, one acknowledgement.

A connection serves one message: a receiver that hangs or breaks off spoils nothing for the next.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.settings import Hl7Settings

START = b"\x0b"
END = b"\x1c\r"
MAXIMUM_ANSWER = 64 * 1024  # an acknowledgement has a few hundred bytes

_ACCEPTED = frozenset({"AA", "CA"})
_REFUSED = frozenset({"AE", "AR", "CE", "CR"})
_ERROR_CODE = re.compile(r"[0-9]{1,6}")


class _NoAcknowledgement(Exception):
    """The peer did not acknowledge; the text says what it did instead."""


@dataclass(frozen=True)
class Acknowledgement:
    """What an ACK says.

    Attributes:
        code: MSA-1.
        control_id: MSA-2: MSH-10 of the message acknowledged.
        error_codes: ERR-3.1, only those that are numbers: free text could name the patient.
    """

    code: str
    control_id: str
    error_codes: tuple[str, ...] = ()


class MllpDestination:
    """An EMR that takes ORU^R01 over MLLP."""

    def __init__(
        self, settings: Hl7Settings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic

    @property
    def name(self) -> str:
        """The lane's name."""
        return self._settings.name

    @property
    def accepts(self) -> Collection[DocumentKind]:
        """HL7 messages only."""
        return frozenset({DocumentKind.HL7_ORU})

    def send(self, document: Document) -> SendOutcome:
        """Send one message and wait for its acknowledgement."""
        try:
            answer = self._exchange(START + document.content + END)
        except TimeoutError:
            return Unreachable(f"no acknowledgement within {self._settings.timeout_s:g} s")
        except OSError as error:
            return Unreachable(f"no connection: {type(error).__name__}")
        except _NoAcknowledgement as error:
            return Unreachable(str(error))
        return judge(parse_acknowledgement(answer), document.identity)

    def check(self) -> SendOutcome:
        """Open a TCP connection and close it."""
        try:
            with self._connection():
                return Delivered("connected")
        except OSError as error:
            return Unreachable(f"no connection: {type(error).__name__}")

    def _connection(self) -> socket.socket:
        peer = (self._settings.host, self._settings.port)
        return socket.create_connection(peer, timeout=self._settings.timeout_s)

    def _exchange(self, frame: bytes) -> bytes:
        deadline = self._monotonic() + self._settings.timeout_s
        with self._connection() as connection:
            connection.sendall(frame)
            received = b""
            while END not in received:
                # Each wait gets only what is left, so that a peer that drips bytes holds nobody.
                left_s = deadline - self._monotonic()
                if left_s <= 0:
                    raise TimeoutError
                connection.settimeout(left_s)
                chunk = connection.recv(4096)
                received += chunk
                if not chunk:
                    raise _NoAcknowledgement("the peer closed the connection without an answer")
                if len(received) > MAXIMUM_ANSWER:
                    raise _NoAcknowledgement(f"the answer exceeds {MAXIMUM_ANSWER} bytes")
        return received.split(END)[0].rpartition(START)[2]


def judge(answer: Acknowledgement | None, control_id: str) -> SendOutcome:
    """What an answer means for the message with this MSH-10."""
    if answer is None:
        return Unreachable("the answer is not an HL7 acknowledgement")
    if answer.control_id != control_id:
        return Unreachable("the answer acknowledges another message")
    if answer.code in _ACCEPTED:
        return Delivered(answer.code)
    if answer.code in _REFUSED:
        codes = f", error {', '.join(answer.error_codes)}" if answer.error_codes else ""
        return Refused(f"the receiver answered {answer.code}{codes}: see its own log")
    return Unreachable("the acknowledgement has an unknown code")


def parse_acknowledgement(answer: bytes) -> Acknowledgement | None:
    """Read an ACK; None where the bytes are none. Never raises."""
    segments = re.split(r"[\r\n]+", answer.decode("utf-8", errors="replace").strip())
    if not segments[0].startswith("MSH") or len(segments[0]) < 5:
        return None
    separator, component = segments[0][3], segments[0][4]
    fields = [segment.split(separator) for segment in segments]
    msa = next((f for f in fields if f[0] == "MSA" and len(f) > 2), None)
    if msa is None:
        return None
    errors = (f[3].split(component)[0] for f in fields if f[0] == "ERR" and len(f) > 3)
    codes = tuple(code for code in errors if _ERROR_CODE.fullmatch(code))
    return Acknowledgement(msa[1].strip(), msa[2].strip(), codes[:8])
