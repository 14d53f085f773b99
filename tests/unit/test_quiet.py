"""Python's own words on standard error: of warnings and uncaught exceptions no value is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECRET = "BÍ MẬT 29/02/1960"

WARNS = "import warnings; warnings.warn(f'Invalid value for VR DA: {SECRET}')"
RAISES = "raise RuntimeError(SECRET)"
IN_A_THREAD = """
import threading
def broken(): raise RuntimeError(SECRET)
thread = threading.Thread(target=broken)
thread.start()
thread.join()
"""
NOT_RAISED = """
class Broken:
    def __del__(self): raise RuntimeError(SECRET)
Broken()
"""


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (WARNS, "UserWarning at <string>:"),
        (RAISES, "phoi: internal error: RuntimeError at __main__.<module>:"),
        (IN_A_THREAD, "thread ended: RuntimeError at __main__.broken:"),
        (NOT_RAISED, "not raised: RuntimeError at __main__.__del__:"),
    ],
)
def test_type_and_place_are_told_and_no_value(what: str, told: str) -> None:
    script = f"from phoi_models.quiet import keep_values_out\nSECRET = {SECRET!r}\n"
    loud, quiet = script + what, f"{script}keep_values_out()\n{what}"
    assert SECRET in _stderr(loud), "Python itself tells it"
    said = _stderr(quiet)
    assert told in said
    assert SECRET not in said


def _stderr(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-X", "utf8", "-c", script], capture_output=True, text=True, check=False
    ).stderr


def test_a_command_that_breaks_shows_no_value(tmp_path: Path) -> None:
    """A real one: Typer has ideas of its own about uncaught exceptions."""
    script = (
        "import sys\n"
        "from phoi_edge_node.cli import deliveries\n"
        "from phoi_models.command_line import main\n"
        f"def broken(*_): raise RuntimeError({SECRET!r})\n"
        "deliveries.read_settings = broken\n"
        "sys.argv = ['phoi', 'deliveries', 'list']\n"
        "main()\n"
    )
    environment = {**os.environ, "PHOI_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    for debug, shown in (("0", False), ("1", True)):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "PHOI_DEBUG": debug},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert (SECRET in done.stderr) is shown
        assert ("phoi: internal error: RuntimeError at __main__.broken:" in done.stderr) != shown
        assert "RuntimeError" in done.stderr
