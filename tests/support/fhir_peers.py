"""FHIR servers that behave badly, each in its own way."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal


@dataclass
class FhirPeer:
    """What it answers, and what it was asked.

    Attributes:
        drip_s: seconds between the bytes of what drips; 0 sends it at once.
        requests: method, path and Authorization header of each request.
    """

    status: int
    body: bytes
    drip_s: float = 0.0
    base_url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)


@contextmanager
def fhir_peer(
    status: int,
    body: bytes,
    drip_s: float = 0.0,
    drips: Literal["body", "headers"] = "body",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[FhirPeer]:
    """A server on 127.0.0.1, by TLS on localhost, that answers every request alike."""
    peer = FhirPeer(status, body, drip_s)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            authorization = self.headers.get("Authorization", "")
            peer.requests.append((self.command, self.path, authorization))
            if drips == "headers":
                with suppress(OSError):
                    self._drip(b"HTTP/1.1 200 OK\r\nX-Endless: " + b"a" * 2000)
                return
            self.send_response(peer.status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(peer.body)))
            self.end_headers()
            with suppress(OSError):  # the client hangs up on what is too long or too slow
                self._send()

        def _send(self) -> None:
            if not peer.drip_s:
                self.wfile.write(peer.body)
                return
            self._drip(peer.body)

        def _drip(self, told: bytes) -> None:
            for byte in told:
                self.wfile.write(bytes([byte]))
                time.sleep(peer.drip_s)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server asks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        peer.base_url = f"http://127.0.0.1:{server.server_port}/fhir"
        if tls:
            # The handshake in the thread of the request, so that one that fails ends no other.
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            peer.base_url = f"https://localhost:{server.server_port}/fhir"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield peer
        finally:
            server.shutdown()
            thread.join()
