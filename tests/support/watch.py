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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from phoi_edge_node.settings import WebSettings
from phoi_edge_node.sql.tables import metadata
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
    "operator": "all that the node's database holds, but for the columns that are a patient's",
    "path": "the name of every file and folder",
}
LEAKS_FOR = "PHOI_TEST_LEAKS_FOR"
"""Environment of processes that leak on purpose: pid of the session that must not look at them."""

_LOOK_EVERY_S = 1.0
_LARGE = 500_000  # bytes
_OF_A_COMMAND = ("arguments", "output", "errors")
_OF_A_CONNECTION = frozenset({"connection", "content-length", "host", "transfer-encoding"})
# What a person typed (problems, recalls) is looked at as well: Phoi itself must put nobody there.
_OF_A_PATIENT = {
    "studies": {"header", "patient_id"},
    "documents": {"content"},
    "orders": {"placer", "filler", "accession_number", "content"},
    "patient_merges": {"patient_id", "surviving_id"},
    "patient_updates": {"patient_id"},
}
_COLUMNS = (
    "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c "
    "WHERE m.type = 'table'"
)


def _check_columns() -> None:
    """A column that was renamed would hide nothing any more, and nobody would notice."""
    for table, columns in _OF_A_PATIENT.items():
        unknown = columns - set(metadata.tables[table].columns.keys())
        assert not unknown, f"no such columns of {table}: {unknown}"


_check_columns()


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
                if words := _phoi_command(process.args):
                    where = _blotted(words, " ")
                    for part, content in zip(
                        _OF_A_COMMAND, (" ".join(words), *written), strict=True
                    ):
                        self.saw("command", f"{where}: {part}", content or "")
                return written

            patch.setattr(subprocess.Popen, "communicate", recorded)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _look_at_processes(self, ended: threading.Event) -> None:
        me, seen = psutil.Process(), set[tuple[str, str]]()
        while not ended.wait(_LOOK_EVERY_S):
            for process in me.children(recursive=True):
                with suppress(psutil.Error):
                    environment = process.environ()
                    if environment.get(LEAKS_FOR) == str(me.pid):
                        continue
                    for part, values in (
                        ("arguments", process.cmdline()),
                        ("environment", environment.values()),
                    ):
                        told = f"{process.name()}: {part}", "\n".join(values)
                        if told not in seen:
                            seen.add(told)
                            self.saw("process", *told)

    @contextmanager
    def pages(self) -> Iterator[None]:
        """Answers that clients in this process get: errors, and metrics."""
        send = httpx.Client.send

        def recorded(client: httpx.Client, request: httpx.Request, **named: Any) -> httpx.Response:
            response = send(client, request, **named)
            if not named.get("stream") and _is_for_anybody(request, response):
                what = "metrics" if _is_metrics(request) else "answered"
                where = f"{request.method} {what} {response.status_code}"
                self.saw("page", f"{where}: headers", _joined(response.headers.raw))
                self.saw("page", f"{where}: body", response.content)
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
        """Everything below a folder: names, logs, MLflow's files, nodes' databases.

        Images, archives of images, messages and FHIR resources are a patient's by their purpose.
        """
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            name = _blotted(relative.parts, "/")
            self.saw("path", name, str(relative))
            if path.is_symlink() or not path.is_file():
                continue
            if ".log" in path.name or "mlflow" in relative.parts[:-1]:
                self.saw("log", name, path.read_bytes())
            elif path.name == "phoi.sqlite":
                self._look_at_database(path, name)

    def _look_at_database(self, path: Path, name: str) -> None:
        """Whatever tables and columns there are: no migration brings one that nobody looks at."""
        with closing(sqlite3.connect(path)) as database:
            for table, column in database.execute(_COLUMNS).fetchall():
                if column not in _OF_A_PATIENT.get(table, ()):
                    rows = database.execute(f'SELECT "{column}" FROM "{table}"').fetchall()
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
        where = f"{request.method} {_blotted(request.url.path.split('/'), '/')}"
        self._watch.saw("mlflow", f"{where}: address", target)
        self._watch.saw("mlflow", f"{where}: headers", _joined(request.headers.raw))
        self._watch.saw("mlflow", f"{where}: body", body)
        headers = _without(request.headers, _OF_A_CONNECTION)
        asked = self._upstream.build_request(request.method, target, content=body, headers=headers)
        answer = await run_in_threadpool(self._upstream.send, asked)
        told = _without(answer.headers, _OF_A_CONNECTION | {"content-encoding", "date"})
        await Response(answer.content, answer.status_code, told)(scope, receive, send)


def _without(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in names}


def _joined(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"\n".join(name + b": " + value for name, value in headers)


def _blotted(parts: Sequence[str], between: str) -> str:
    """Says where a patient was found, without the patient."""
    return between.join("…" if secrets_in(part) else part for part in parts)


def _phoi_command(arguments: object) -> Sequence[str]:
    """The words of the command line, where it is one of Phoi's."""
    if not isinstance(arguments, list | tuple):
        return ()
    words = [str(argument) for argument in arguments]
    is_phoi = Path(words[0]).name == "phoi" or any(word.startswith("phoi_") for word in words)
    return words if is_phoi else ()


def _is_for_anybody(request: httpx.Request, response: httpx.Response) -> bool:
    """Not what an EMR answers, which may name its patient."""
    if "fhir" in response.headers.get("content-type", ""):
        return False
    return response.is_error or _is_metrics(request)


def _is_metrics(request: httpx.Request) -> bool:
    return request.url.path.startswith("/metrics")
