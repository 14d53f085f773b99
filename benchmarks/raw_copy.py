"""The floor: bytes from a socket to files, by nothing else.

    python -m benchmarks.raw_copy FOLDER PORT {durable,not-durable}

One byte answers each file, once it is written, and synced where that is asked for.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_LENGTH = struct.Struct(">Q")


def main() -> None:
    """Until it is killed."""
    folder, port, durable = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as server:
        for number in range(1_000_000):
            stream, _ = server.accept()
            arguments = (stream, Path(folder) / f"copy-{number}", durable == "durable")
            threading.Thread(target=_receive, args=arguments, daemon=True).start()


def _receive(stream: socket.socket, target: Path, durable: bool) -> None:  # noqa: FBT001
    buffer = memoryview(bytearray(256 * 1024))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = 0
    while header := stream.recv(_LENGTH.size, socket.MSG_WAITALL):
        (left,) = _LENGTH.unpack(header)
        number += 1
        descriptor = os.open(f"{target}-{number}", os.O_WRONLY | os.O_CREAT)
        while left:
            read = stream.recv_into(buffer[: min(left, len(buffer))])
            if read == 0:
                return
            os.write(descriptor, buffer[:read])
            left -= read
        if durable:
            os.fdatasync(descriptor)
        os.close(descriptor)
        stream.sendall(b".")


def send(port: int, files: Sequence[Path]) -> None:
    """Send files to it, each once the one before is answered."""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for file in files:
            content = file.read_bytes()
            stream.sendall(_LENGTH.pack(len(content)))
            stream.sendall(content)
            if stream.recv(1) != b".":
                raise ConnectionError("the copy was not answered")


if __name__ == "__main__":
    main()
