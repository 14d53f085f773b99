"""MLLP receivers that were not written here, and what each of them parsed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hl7
from hl7apy.mllp import AbstractHandler, MLLPServer
from phoi_edge_node.stand_ins.program import listening

from support.emr import hl7_checked
from support.mllp_peers import control_id

# Segments in order: name, then fields from 1 on as they stand in the message, less empty ones at
# the end. MSH-1 and MSH-2 are left out: parsers differ in how they count them.
Parsed = Sequence[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Receiver:
    """One that runs.

    Attributes:
        received: what it parsed of the message with this MSH-10.
    """

    port: int
    received: Callable[[str], Parsed]


def fields_sent(message: bytes) -> Parsed:
    """The same of a message as it is sent, by nothing but its delimiters."""
    return as_parsed(line.split("|") for line in message.decode("utf-8").split("\r") if line)


def as_parsed(segments: Iterable[Sequence[str]]) -> Parsed:
    """Of segments that begin with their name."""
    return [_fields(segment) for segment in segments]


def _fields(values: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    name, *fields = values
    if name == "MSH":
        fields = fields[1:] if fields[0] == r"^~\&" else fields[2:]
    while fields and not fields[-1]:
        fields.pop()
    return name, tuple(fields)


@contextmanager
def python_hl7(folder: Path) -> Iterator[Receiver]:
    """python-hl7's asyncio server, as a program of its own; it keeps what it parsed."""

    def received(number: str) -> Parsed:
        for path in folder.glob("*.hl7"):
            content = path.read_bytes()
            if control_id(content) == number:
                message = hl7.parse(content.decode("utf-8"))
                return as_parsed([str(field) for field in segment] for segment in message)
        raise AssertionError("it did not keep the message")

    with listening("phoi_edge_node.stand_ins.mllp", folder) as port:
        yield Receiver(port, received)


class _Strict(AbstractHandler):  # type: ignore[misc]  # hl7apy has no types
    """Answers AA to what hl7apy finds no fault with, else AR."""

    def __init__(self, message: str, kept: dict[str, Parsed]) -> None:
        super().__init__(message)
        self._kept = kept

    def reply(self) -> str:
        content = self.incoming_message.encode()
        number = control_id(content)
        parsed, faults = hl7_checked(content)
        if parsed is not None:
            self._kept[number] = [_by_hl7apy(segment) for segment in _segments(parsed)]
        answer = [r"MSH|^~\&|H|H|PHOI|P|20261123||ACK^R01^ACK|1|P|2.5.1"]
        answer.append(f"MSA|{'AR' if faults else 'AA'}|{number}")
        return "\x0b" + "".join(line + "\r" for line in answer) + "\x1c\r"


@contextmanager
def hl7apy_server(_: Path) -> Iterator[Receiver]:
    """hl7apy's threading server; it takes only what its strict validation has no fault with."""
    kept: dict[str, Parsed] = {}
    handlers: Mapping[str, tuple[object, ...]] = {"ORU^R01^ORU_R01": (_Strict, kept)}
    with MLLPServer("127.0.0.1", 0, handlers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Receiver(server.server_address[1], kept.__getitem__)
        finally:
            server.shutdown()
            thread.join()


def _segments(element: Any) -> Iterator[Any]:
    """Those in its groups, too."""
    for child in element.children:
        yield from [child] if child.classname == "Segment" else _segments(child)


def _by_hl7apy(segment: Any) -> tuple[str, tuple[str, ...]]:
    by_position: dict[int, list[str]] = {}
    for field in segment.children:
        position = int(field.name.rpartition("_")[2])
        by_position.setdefault(position, []).append(field.to_er7())
    last = max(by_position)
    return _fields([segment.name, *("~".join(by_position.get(n, [])) for n in range(1, last + 1))])
