"""MLLP receivers that behave badly, each in its own way, one connection at a time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behaviour = Callable[[socket.socket, threading.Event], None]


@contextmanager
def mllp_peer(behave: Behaviour, port: int = 0) -> Iterator[int]:
    """A receiver on 127.0.0.1 that does ``behave`` with each connection; yields its port."""
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            while not stopped.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    connection.settimeout(5)
                    with connection, suppress(OSError):
                        behave(connection, stopped)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            stopped.set()
            thread.join()


def received(connection: socket.socket) -> bytes:
    """One framed message, without its frame."""
    data = b""
    while b"\x1c\r" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return data.split(b"\x1c\r")[0].removeprefix(b"\x0b")


def control_id(message: bytes) -> str:
    """MSH-10, read in a way of its own."""
    return message.split(b"\r")[0].split(b"|")[9].decode()


def acknowledging(
    msa: str, error: str = "", taken: Callable[[str], object] = lambda _: None
) -> Behaviour:
    """Answers ``MSA|msa``, with MSH-10 for ``{id}`` in it, and the ``ERR`` segment given.

    Args:
        taken: is told MSH-10 of each message before it is answered.
    """

    def behave(connection: socket.socket, stopped: threading.Event) -> None:
        message = received(connection)
        if not message:
            return  # somebody only looked whether the port is open
        number = control_id(message)
        taken(number)
        segments = ["MSH|^~\\&|EMR|BV|PHOI|bvdk|20261123||ACK^R01^ACK|1|P|2.5.1"]
        segments.append(f"MSA|{msa.replace('{id}', number)}")
        if error:
            segments.append(error)
        answer = "\r".join(segments) + "\r"
        connection.sendall(b"\x0b" + answer.encode() + b"\x1c\r")

    return behave


def answering(content: bytes) -> Behaviour:
    """Answers these bytes and closes."""

    def behave(connection: socket.socket, stopped: threading.Event) -> None:
        received(connection)
        connection.sendall(content)

    return behave


def silent(connection: socket.socket, stopped: threading.Event) -> None:
    """Takes the message and says nothing."""
    received(connection)
    stopped.wait(5)


def dripping(connection: socket.socket, stopped: threading.Event) -> None:
    """Answers one byte at a time, without end."""
    received(connection)
    while not stopped.wait(0.02):
        connection.sendall(b"x")


def flooding(connection: socket.socket, stopped: threading.Event) -> None:
    """Answers without end, as fast as it can."""
    received(connection)
    while not stopped.is_set():
        connection.sendall(b"x" * 65536)
