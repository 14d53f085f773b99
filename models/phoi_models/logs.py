"""JSON logs of edge and worker: what happened to which UID. Never a patient's data."""

from __future__ import annotations

import json
import logging
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import structlog

from phoi_models.errors import PhoiError
from phoi_models.quiet import places

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class LogFile:
    """A file of log lines that never outgrows the disk.

    Attributes:
        path: the present file; older ones lie beside it as ``.1``, ``.2``, ...
        maximum_mb: of one file; then it is set aside and a new one begun.
        keep: how many older ones remain.
    """

    path: Path
    maximum_mb: int = 50
    keep: int = 10


def configure_logs(level: str = "info", file: LogFile | None = None) -> None:
    """One JSON object a line, with time and level, on standard error or into a file.

    Args:
        level: as in logging; nothing below it is written.

    Raises:
        PhoiError: the file cannot be written.
    """
    lines: _Lines = _StandardError() if file is None else _File(file)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_exception_text,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    # pynetdicom and others may log values of a header: only their errors, and only their place.
    logging.basicConfig(level=logging.ERROR, handlers=[_LibraryErrors(lines)])


class _Lines(ABC):
    """What structlog calls a logger: takes whole lines, whatever their level."""

    @abstractmethod
    def msg(self, message: str) -> None:
        """Write one line."""

    def __getattr__(self, level: str) -> Any:
        if level in {"debug", "info", "warning", "error", "critical", "exception", "log"}:
            return self.msg
        raise AttributeError(level)


class _StandardError(_Lines):
    """The stream is asked for each time: it may be replaced while we run."""

    def msg(self, message: str) -> None:
        """Write one line at once, so that those of several threads stay whole."""
        with suppress(OSError):  # of a full disk behind it: the line is lost, the work goes on
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()


class _File(_Lines):
    def __init__(self, file: LogFile) -> None:
        try:
            self._handler = RotatingFileHandler(
                file.path,
                maxBytes=file.maximum_mb * _MEGABYTE,
                backupCount=file.keep,
                encoding="utf-8",
            )
        except OSError as error:
            raise PhoiError(f"the log {file.path} cannot be written: {error.strerror}") from None
        self._handler.handleError = _drop  # type: ignore[method-assign]

    def msg(self, message: str) -> None:
        """Write one line; begin a new file where this one is full."""
        self._handler.handle(logging.LogRecord("phoi", logging.INFO, "", 0, message, None, None))


def _drop(record: logging.LogRecord) -> None:
    """As with standard error: a full disk stops no node."""
    del record


class _LibraryErrors(logging.Handler):
    """Of a library's error its name, level and type of exception only."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, without its text: it may hold values of a header."""
        line = {
            "event": "a library's error",
            "library": record.name,
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        self._lines.msg(json.dumps(line))


def _without_exception_text(_: Any, __: str, event: Any) -> Any:
    """Where an exception was raised, without its text: a library may put a value in it."""
    exc_info = event.pop("exc_info", None)
    if not exc_info:
        return event
    error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
    if error is not None:
        event["exception"] = type(error).__name__
        event["at"] = places(error)
    return event
