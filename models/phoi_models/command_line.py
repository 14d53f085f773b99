"""The command ``phoi``: assembled from what each package registers, importing only what is run.

Sub-commands are entry points of the group ``phoi.commands`` (a typer app, or a function), and
those of a sub-command that is an app itself come from ``phoi.commands.<name>``.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from typing import Annotated, NoReturn

import typer

from phoi_models.errors import PhoiError
from phoi_models.quiet import keep_values_out

GROUP = "phoi.commands"


@dataclass(frozen=True)
class _About:
    """What is said of a command without importing it, and the extra that brings what it needs."""

    summary: str
    extra: str


_ABOUT = {
    f"{GROUP}.analyze": _About("Analyse one CT in a file or folder, without servers.", "worker"),
    f"{GROUP}.deliveries": _About("List what did not arrive, and why; send it again.", "edge"),
    f"{GROUP}.demo": _About("Start a whole hospital on this machine and send one real CT.", "demo"),
    f"{GROUP}.doctor": _About("Say in plain words what is wrong with this installation.", "edge"),
    f"{GROUP}.edge": _About("Receive, analyse, deliver, review: the hospital's node.", "edge"),
    f"{GROUP}.hl7": _About("Show the HL7 message of a past study before an EMR gets it.", "edge"),
    f"{GROUP}.priority": _About("Check a site's policy of priorities; try it on the past.", "edge"),
    f"{GROUP}.recall": _About("List a model's results, and take them back everywhere.", "edge"),
    f"{GROUP}.reconcile": _About("Compare with the archives: is any study left behind?", "edge"),
    f"{GROUP}.send": _About("Send DICOM files to an archive or an edge node by C-STORE.", "edge"),
    f"{GROUP}.worker": _About("Run models for edge nodes, over gRPC.", "worker"),
    f"{GROUP}.models": _About("List, sign, verify and install model bundles.", "worker"),
    f"{GROUP}.train": _About("Train a detector and register it.", "training"),
    f"{GROUP}.evaluate": _About("Measure a detector: FROC on marked volumes.", "training"),
    f"{GROUP}.models.import": _About("Import a detector that was trained elsewhere.", "import"),
    f"{GROUP}.models.promote": _About("Make a registered version the champion.", "training"),
    f"{GROUP}.models.quantise": _About("Add a bundle's networks in 8-bit integers.", "training"),
    f"{GROUP}.models.register": _About("Register a bundle that was trained elsewhere.", "training"),
}


def main() -> NoReturn:
    """Run ``phoi`` with the arguments of this process.

    Exit status: 0 success, 1 failure (one line on stderr says what to do), 2 wrong usage; a
    command may define more.
    """
    arguments = sys.argv[1:]
    if os.environ.get("PHOI_DEBUG") != "1":
        keep_values_out()
    try:
        # Calling the app itself would put Typer's own hook for uncaught exceptions over ours.
        typer.main.get_command(build(arguments))(prog_name="phoi")
    except (PhoiError, ModuleNotFoundError) as error:
        message = _missing_extra(error, arguments) if isinstance(error, ImportError) else error
        if message is None or os.environ.get("PHOI_DEBUG") == "1":
            raise
        typer.echo(f"phoi: {message}", err=True)
        raise SystemExit(1) from None
    raise SystemExit(0)


def build(arguments: Sequence[str]) -> typer.Typer:
    """The command line in which the command that ``arguments`` name is loaded, and no other."""
    app = typer.Typer(
        help="AI triage of chest CT for lung nodules: receive, analyse, deliver, review, learn.",
        epilog="PHOI_HOME names the folder of keys and models; PHOI_DEBUG=1 shows tracebacks.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,  # they print variables, and those may hold patient data
    )
    app.callback()(_options)
    _register(app, GROUP, _words(arguments))
    return app


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it so
    if wanted:
        typer.echo(f"phoi {version('phoi')}")
        raise typer.Exit


def _options(
    *,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The options of ``phoi`` itself; ``--version`` is handled as it is read."""


def _register(app: typer.Typer, group: str, words: Sequence[str]) -> None:
    """Add the commands of ``group`` to ``app``; load the one that the first word names."""
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        about = _ABOUT.get(f"{group}.{entry.name}")
        if words[:1] != [entry.name]:
            app.command(entry.name, help=about.summary if about else None)(_unloaded)
            continue
        loaded = entry.load()
        if isinstance(loaded, typer.Typer):
            extended = copy.copy(loaded)
            extended.registered_commands = list(loaded.registered_commands)
            _register(extended, f"{group}.{entry.name}", words[1:])
            app.add_typer(extended, name=entry.name)
        else:
            app.command(entry.name)(loaded)


def _unloaded() -> None:
    """Stands for a command that was not asked for: shown in the help, never run."""


def _words(arguments: Sequence[str]) -> Sequence[str]:
    return [argument for argument in arguments if not argument.startswith("-")]


def _missing_extra(error: ModuleNotFoundError, arguments: Sequence[str]) -> str | None:
    """What to install for the command that was asked for; None if our own module is missing."""
    words = _words(arguments)
    about = _ABOUT.get(".".join([GROUP, *words[:2]])) or _ABOUT.get(".".join([GROUP, *words[:1]]))
    if about is None or error.name is None or error.name.startswith("phoi_"):
        return None
    return (
        f"`{words[0]}` needs {error.name}, which is not installed: "
        f"run pip install 'phoi[{about.extra}]'"
    )
