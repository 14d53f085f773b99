"""JSON logs: what happened to which UID. Never a patient's data."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from phoi_models.quiet import places


def configure_logs(level: str = "info") -> None:
    """One JSON object a line on standard error; ``level`` as in logging."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_exception_text,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        # Not cached, and the stream asked for each time: it may be replaced while we run.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # pynetdicom and others may log values of a header: only their errors, and only their place.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutExceptionText("%(name)s %(levelname)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])


class _WithoutExceptionText(logging.Formatter):
    """Of an exception in a library its type only."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        """Its type."""
        return str(ei[0].__name__)


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
