"""Watches everything that leaves Phoi during a session of tests, for the planted patients.

What people who are signed in see, what archives and EMRs get, and the node's own images and
database are a patient's by their purpose, and not looked at. All else is: see ``CHANNELS``.
"""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from phoi_edge_node.settings import WebSettings
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from support.planted import secrets_in
from support.web_server import serving

CHANNELS: Mapping[str, str] = {
    "captured": "what the tests' own process wrote: logs of nodes in it, too",
    "command": "what a command of Phoi wrote, and its arguments",
    "process": "arguments and environment of every process below this one",
    "page": "every answer with an error status, and every metric, that a client here got",
    "mlflow": "every request to MLflow: address, headers and body",
    "log": "every log file and every file of MLflow's",
    "operator": "what the node's database holds for operators: reasons, errors, the audit",
    "path": "the name of every file and folder",
}
LEAKS_FOR = "PHOI_TEST_LEAKS_FOR"
"""Environment of processes that leak on purpose: pid of the session that must not look at them."""

_LOOK_EVERY_S = 1.0
_LARGE = 500_000  # bytes
_OF_A_CONNECTION = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_FOR_OPERATORS = (
    ("deliveries", "last_error"),
    ("analyses", "error"),
    ("audit", "detail"),
    ("facts", "value"),
)


@dataclass(frozen=True)
class Leak:
    """A patient where no patient may be. Says where, and not who."""

    channel: str
    where: str
    secrets: frozenset[str]

    def told(self) -> str:
        """A line for a person."""
        return f"{self.channel}: {', '.join(sorted(self.secrets))} in {self.where}"


class Watch:
    """Looks at what it is shown; thread-safe.

    Attributes:
        leaks: what was found.
        bytes_seen: by channel.
    """

    def __init__(self) -> None:
        self.leaks: list[Leak] = []
        self.bytes_seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._large: dict[bytes, frozenset[str]] = {}

    def saw(self, channel: str, where: str, content: bytes | str) -> None:
        """Look at something that left."""
        found = self._secrets_in(content)
        with self._lock:
            self.bytes_seen[channel] += len(content)
            if found:
                self.leaks.append(Leak(channel, where, found))

    def _secrets_in(self, content: bytes | str) -> frozenset[str]:
        """What is large comes again and again: the networks of one model."""
        if len(content) < _LARGE or isinstance(content, str):
            return secrets_in(content)
        digest = hashlib.sha256(content).digest()
        if digest not in self._large:
            self._large[digest] = secrets_in(content)
        return self._large[digest]

    def told(self) -> str:
        """What was found, a line each; "" for nothing."""
        return "\n".join(sorted({leak.told() for leak in self.leaks}))

    # --- what happens while tests run --------------------------------------------------------

    @contextmanager
    def processes(self) -> Iterator[None]:
        """Every process below this one, and what Phoi's commands write to a test that runs them."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look_at_processes, args=[ended], daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            communicate = subprocess.Popen.communicate

            def recorded(process: Any, *arguments: Any, **named: Any) -> Any:
                written = communicate(process, *arguments, **named)
                if (command := _phoi_command(process.args)) is not None:
                    for content in (command, *written):
                        self.saw("command", command, content or "")
                return written

            patch.setattr(subprocess.Popen, "communicate", recorded)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _look_at_processes(self, ended: threading.Event) -> None:
        me, seen = psutil.Process(), set[str]()
        while not ended.wait(_LOOK_EVERY_S):
            for process in me.children(recursive=True):
                with suppress(psutil.Error):
                    environment = process.environ()
                    told = "\n".join((*process.cmdline(), *environment.values()))
                    if told not in seen and environment.get(LEAKS_FOR) != str(me.pid):
                        seen.add(told)
                        self.saw("process", process.name(), told)

    @contextmanager
    def pages(self) -> Iterator[None]:
        """Answers that clients in this process get: errors, and metrics."""
        send = httpx.Client.send

        def recorded(client: httpx.Client, request: httpx.Request, **named: Any) -> httpx.Response:
            response = send(client, request, **named)
            if not named.get("stream") and _is_for_anybody(request, response):
                where = f"{request.method} answered {response.status_code}"
                self.saw("page", where, f"{response.headers.raw}")
                self.saw("page", where, response.content)
            return response

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(httpx.Client, "send", recorded)
            yield

    @contextmanager
    def relay_to(self, url: str, port: int = 0) -> Iterator[str]:
        """Stands before MLflow and records all requests; yields the address to use."""
        with (
            httpx.Client(base_url=url, timeout=120, trust_env=False) as upstream,
            serving(_Relay(self, upstream), WebSettings(port=port)) as listening,
        ):
            yield f"http://127.0.0.1:{listening}"

    # --- what is left when they end ----------------------------------------------------------

    def look_at_files(self, root: Path) -> None:
        """Everything below a folder: names, logs, MLflow's files, databases' words for operators.

        Images, archives of images, messages and FHIR resources are a patient's by their purpose.
        """
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            self.saw("path", name, name)
            if path.is_symlink() or not path.is_file():
                continue
            if path.suffix == ".log" or "mlflow" in path.relative_to(root).parts[:-1]:
                self.saw("log", name, path.read_bytes())
            elif path.name == "phoi.sqlite":
                self._look_at_database(path, name)

    def _look_at_database(self, path: Path, name: str) -> None:
        with closing(sqlite3.connect(path)) as database:
            for table, column in _FOR_OPERATORS:
                with suppress(sqlite3.OperationalError):  # of an older schema, or broken on purpose
                    rows = database.execute(f"SELECT {column} FROM {table}").fetchall()
                    self.saw("operator", f"{name}: {table}.{column}", "\n".join(map(str, rows)))


class _Relay:
    """ASGI: passes requests on, once the watch has seen them."""

    def __init__(self, watch: Watch, upstream: httpx.Client) -> None:
        self._watch = watch
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        request = Request(scope, receive)
        body = await request.body()
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        where = f"{request.method} {request.url.path}"
        self._watch.saw("mlflow", where, f"{target}\n{request.headers.raw}")
        self._watch.saw("mlflow", where, body)
        headers = _without(request.headers, _OF_A_CONNECTION)
        asked = self._upstream.build_request(request.method, target, content=body, headers=headers)
        answer = await run_in_threadpool(self._upstream.send, asked)
        told = _without(answer.headers, _OF_A_CONNECTION | {"content-encoding", "date"})
        await Response(answer.content, answer.status_code, told)(scope, receive, send)


def _without(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in names}


def _phoi_command(arguments: object) -> str | None:
    """The command line, where it is one of Phoi's."""
    if not isinstance(arguments, list | tuple):
        return None
    words = [str(argument) for argument in arguments]
    is_phoi = Path(words[0]).name == "phoi" or any(word.startswith("phoi_") for word in words)
    return " ".join(words) if is_phoi else None


def _is_for_anybody(request: httpx.Request, response: httpx.Response) -> bool:
    """Not what an EMR answers, which may name its patient."""
    if "fhir" in response.headers.get("content-type", ""):
        return False
    return response.is_error or request.url.path.startswith("/metrics")
