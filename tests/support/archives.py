"""Archives that answer Query/Retrieve and DICOMweb as a test wants, well or badly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from phoi_edge_node.dicom.query_retrieve import FIND, GET, MOVE
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

Answers = Iterable[tuple[int, Dataset | None]]


@contextmanager
def query_scp(
    find: Callable[[evt.Event], Answers] = lambda _: (),
    get: Callable[[evt.Event], Iterable[object]] | None = None,
    move: Callable[[evt.Event], Iterable[object]] | None = None,
) -> Iterator[int]:
    """A Query/Retrieve SCP, AE title ARCHIVE, with these services; its port."""
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(FIND)
    handlers: list[evt.EventHandlerType] = [(evt.EVT_C_FIND, find)]
    if get is not None:
        entity.add_supported_context(GET)
        entity.add_supported_context(
            CTImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True
        )
        handlers.append((evt.EVT_C_GET, get))
    if move is not None:
        entity.add_supported_context(MOVE)
        handlers.append((evt.EVT_C_MOVE, move))
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


Page = tuple[int, str, bytes]  # status, Content-Type, body


@contextmanager
def web_archive(answer: Callable[[str, Mapping[str, str]], Page]) -> Iterator[str]:
    """A DICOMweb server that answers each GET by path and query; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            query["authorization"] = self.headers.get("Authorization", "")
            status, content_type, body = answer(url.path.removeprefix("/dicom-web"), query)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the client hangs up on what is too long
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        finally:
            server.shutdown()
            thread.join()
