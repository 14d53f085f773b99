"""What Python itself says on standard error, without values: they may be a patient's.

Libraries put values into warnings (pydicom: a birth date that is none) and into exceptions
(SQLAlchemy: the parameters of a statement), and Python shows both to whoever reads the log.
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import TextIO

_PLACES = 6
_SHOW_ALL = "PHOI_DEBUG=1 shows all"


def keep_values_out() -> None:
    """From now on this process tells warnings and uncaught exceptions by type and place only."""
    warnings.showwarning = _show_warning
    sys.excepthook = lambda _, error, __: _tell(f"phoi: internal error: {_named(error)}")
    threading.excepthook = lambda about: _tell(f"thread ended: {_named(about.exc_value)}")
    sys.unraisablehook = lambda about: _tell(f"not raised: {_named(about.exc_value)}")


def places(error: BaseException) -> list[str]:
    """Where an exception was raised, innermost last: "module.function:line"."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "?")
        found.append(f"{module}.{code.co_name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return found[-_PLACES:]


def _named(error: BaseException | None) -> str:
    if error is None:
        return "unknown"
    return f"{type(error).__name__} at {' < '.join(reversed(places(error)))} ({_SHOW_ALL})"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As ``warnings.showwarning``."""
    del message, line
    _tell(f"{category.__name__} at {Path(filename).name}:{lineno}", file)


def _tell(text: str, file: TextIO | None = None) -> None:
    target = file or sys.stderr
    if target is not None:  # Python at its end has none
        target.write(f"{text}\n")
