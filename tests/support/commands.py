"""Run one of Phoi's commands in this process."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner, Result


def phoi(function: object, *arguments: str | Path) -> Result:
    """As from the shell; what is no exit is raised."""
    app = typer.Typer()
    app.command()(function)  # type: ignore[type-var]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
