"""The review page behind a real server on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from phoi_edge_node.settings import WebSettings
from phoi_edge_node.web.app import server_config
from starlette.types import ASGIApp, Receive, Scope, Send


class Stage:
    """An ASGI application whose play can be changed while the server runs."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        assert self.app is not None
        await self.app(scope, receive, send)


@contextmanager
def serving(app: ASGIApp, settings: WebSettings | None = None) -> Iterator[int]:
    """Serve an application as the edge does; the port."""
    config = server_config(app, settings or WebSettings(port=0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="review page")
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server takes too long to start"
            time.sleep(0.01)
        port: int = server.servers[0].sockets[0].getsockname()[1]
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
