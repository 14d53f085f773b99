"""MLLP client (HL7 v2 Minimal Lower Layer Protocol): one message, one acknowledgement.

A connection serves one message: a receiver that hangs or breaks off spoils nothing for the next.
Messages ask for no acknowledgement by name (MSH-15 and MSH-16 are empty), which is the original
mode: the receiver answers once, after it has processed the message (2.5.1, 2.9.2). One that works
in enhanced mode all the same answers that it has the message in safe storage, which is enough: what
it may tell later, on a connection of its own, is not listened to.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.settings import Hl7Settings
from phoi_edge_node.tls import client_context

START = b"\x0b"
END = b"\x1c\r"
MAXIMUM_ANSWER = 64 * 1024  # an acknowledgement has a few hundred bytes

# MSA-1, table 0008: the first of each pair in original mode, the second in enhanced mode.
_ACCEPTED = frozenset({"AA", "CA"})
_ERRED = frozenset({"AE", "CE"})  # it failed on the message, which often passes
_REFUSED = frozenset({"AR", "CR"})  # it takes no such message
_ERROR_CODE = re.compile(r"[0-9]{1,6}")
_SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}")
_POSITION = re.compile(r"[0-9]{1,3}")


class _NoAcknowledgement(Exception):
    """The peer did not acknowledge; the text says what it did instead."""


@dataclass(frozen=True)
class Acknowledgement:
    """What an ACK says.

    Attributes:
        code: MSA-1.
        control_id: MSA-2: MSH-10 of the message acknowledged; "" where it names none.
        errors: what is wrong, as "204 at PID-5": only numbers and names of segments, for free text
            could name the patient.
    """

    code: str
    control_id: str
    errors: tuple[str, ...] = ()


class MllpDestination:
    """An EMR that takes ORU^R01 over MLLP.

    Raises:
        SettingsError: a file for TLS cannot be used.
    """

    def __init__(
        self, settings: Hl7Settings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._tls = client_context(settings, "hl7") if settings.tls else None

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
        deadline = self._monotonic() + self._settings.timeout_s
        try:
            connection = self._connection()
        except OSError as error:
            return Unreachable(_no_connection(error), nothing_taken=True)
        try:
            answer = self._exchange(connection, START + document.content + END, deadline)
        except TimeoutError:
            return Unreachable(f"no acknowledgement within {self._settings.timeout_s:g} s")
        except OSError as error:
            return Unreachable(_no_connection(error))
        except _NoAcknowledgement as error:
            return Unreachable(str(error))
        return judge(parse_acknowledgement(answer), document.identity)

    def check(self) -> SendOutcome:
        """Open a TCP connection and close it."""
        try:
            with self._connection():
                return Delivered("connected")
        except OSError as error:
            return Unreachable(_no_connection(error))

    def _connection(self) -> socket.socket:
        host, timeout_s = self._settings.host, self._settings.timeout_s
        plain = socket.create_connection((host, self._settings.port), timeout=timeout_s)
        if self._tls is None:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def _exchange(self, connection: socket.socket, frame: bytes, deadline: float) -> bytes:
        with connection:
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


def _no_connection(error: OSError) -> str:
    """Why, in words that hold nothing of a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"no TLS: its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or type(error).__name__}"
    return f"no connection: {type(error).__name__}"


def judge(answer: Acknowledgement | None, control_id: str) -> SendOutcome:
    """What an answer means for the message with this MSH-10.

    One that names no message (an empty or missing MSA-2) can be for this one only, the connection
    carries no other. It is believed where it says no: a receiver that cannot parse a message cannot
    quote it either. That it has the message it must say of this one.
    """
    if answer is None:
        return Unreachable("the answer is not an HL7 acknowledgement")
    if not answer.control_id and answer.code not in _ERRED | _REFUSED:
        return Unreachable("the answer does not say which message it acknowledges")
    if answer.control_id not in {"", control_id}:
        return Unreachable("the answer acknowledges another message")
    if answer.code in _ACCEPTED:
        return Delivered(answer.code)
    if answer.code in _ERRED:
        return Erred(_said(answer))
    if answer.code in _REFUSED:
        return Refused(_said(answer))
    return Unreachable("the acknowledgement has an unknown code")


def _said(answer: Acknowledgement) -> str:
    errors = f", error {', '.join(answer.errors)}" if answer.errors else ""
    return f"the receiver answered {answer.code}{errors}: see its own log"


def parse_acknowledgement(answer: bytes) -> Acknowledgement | None:
    """Read an ACK; None where the bytes are none. Never raises."""
    segments = re.split(r"[\r\n]+", answer.decode("utf-8", errors="replace").strip())
    if not segments[0].startswith("MSH") or len(segments[0]) < 5:
        return None
    separator, component = segments[0][3], segments[0][4]
    fields = [segment.split(separator) for segment in segments]
    msa = next(([*f, ""] for f in fields if f[0] == "MSA" and len(f) > 1), None)
    if msa is None:
        return None
    told = [_error(field, component) for field in fields if field[0] == "ERR"]
    errors = dict.fromkeys(error for error in (*told, _error_of_msa(msa, component)) if error)
    return Acknowledgement(msa[1].strip(), msa[2].strip(), tuple(errors)[:8])


def _error(err: list[str], component: str) -> str:
    """Where (ERR-2) and what (ERR-3); before 2.5 both stand in ERR-1."""
    old, place, code = ([*f.split(component), "", "", "", ""] for f in [*err, "", "", ""][1:4])
    number = code[0] or old[3].split("&")[0]
    if not _ERROR_CODE.fullmatch(number):
        return ""
    segment, _, position = (place if place[0] else old)[:3]
    if not _SEGMENT.fullmatch(segment):
        return number
    return f"{number} at {segment}" + (f"-{position}" if _POSITION.fullmatch(position) else "")


def _error_of_msa(msa: list[str], component: str) -> str:
    """MSA-6, in place of which 2.5 has ERR."""
    code = msa[6].split(component)[0] if len(msa) > 6 else ""
    return code if _ERROR_CODE.fullmatch(code) else ""
