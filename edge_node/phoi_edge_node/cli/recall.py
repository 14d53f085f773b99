"""``phoi recall``: list the results of a model, a period or a sender, and take them back."""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from phoi_models.errors import PhoiError
from phoi_models.home import find_home

from phoi_edge_node.bootstrap import node_runs, opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.doctor import offered_models
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.recall import StoredRecallBook, recall_lines, result_line
from phoi_edge_node.recalled import (
    CURRENT_MODEL,
    RecallAction,
    RecallBook,
    RecallCriteria,
    RecalledResult,
    RecallRequest,
)
from phoi_edge_node.result import Outcome
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.system import SystemClock

app = typer.Typer(invoke_without_command=True, no_args_is_help=True)

_DAY = "%Y-%m-%d"
_WORDS = {
    RecallAction.WITHDRAW: "to be withdrawn everywhere they went",
    RecallAction.LEAVE_SIGNED: "signed by a person: left, and put on top of the worklist",
    RecallAction.RESTART: "under way: begun anew",
    RecallAction.ANALYSE_AGAIN: "withdrawn before: to be analysed again",
    RecallAction.NOTHING: "replaced or withdrawn before: nothing to do",
}


@app.callback()
def recall(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="NAME@VERSION, or NAME for all of its versions.")] = "",
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=[_DAY], help="Result made on this day or later."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=[_DAY], help="Result made on this day or before."),
    ] = None,
    calling_ae: Annotated[str, typer.Option(help="Calling AE title that sent images.")] = "",
    outcome: Annotated[Outcome | None, typer.Option(help="Only results of this outcome.")] = None,
    replacement: Annotated[
        str,
        typer.Option("--with-model", help="Analyse the studies again: NAME@VERSION, or `current`."),
    ] = "",
    reason: Annotated[
        str, typer.Option(help="Why, for the audit. No patient data: many people read it.")
    ] = "",
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    signed: Annotated[
        bool, typer.Option("--signed", help="Withdraw what people have signed as well.")
    ] = False,
    pause: Annotated[bool, typer.Option(help="Stop the model at once.")] = True,
    yes: Annotated[
        bool, typer.Option("--yes/--dry-run", help="Do it. The default only lists.")
    ] = False,
) -> None:
    """Stop a model that turned out bad, and take back what it told.

    Lists the results that fit all that is said; with --yes, recalls them.

    A recall stops the model, withdraws its results here at once, and tells every destination that
    got something of them. What a person has signed stays, and is put on top of the worklist, unless
    --signed is given. The running node does the telling: see `phoi recall status`.
    """
    if context.invoked_subcommand:
        return
    settings = read_settings(settings_file)
    criteria = _criteria(model, first, last, calling_ae, outcome)
    user = getpass.getuser()
    request = RecallRequest(criteria, reason or "listed", user, signed, replacement, pause)
    with _book(settings) as book:
        found = book.recallable(criteria, signed_too=signed, redo=bool(replacement))
        for line in (*_listed(criteria, found, book), *_unoffered(settings, replacement)):
            typer.echo(line)
        if not yes:
            typer.echo("nothing was changed: this was a dry run. To recall, add --yes and --reason")
            return
        if not reason.strip():
            raise EdgeError("say why with --reason: whoever reads the audit must understand it")
        number = book.ask(request)
    typer.echo(f"recall {number} is asked for: follow it with `phoi recall status`")
    if not node_runs(settings.data):
        typer.echo("no edge node runs: the notices go out once it is started (`phoi edge run`)")


@app.command()
def status(settings_file: SettingsFile = DEFAULT_SETTINGS) -> None:
    """Say how far each recall is.

    Exit status: 0 all are done, 1 something still waits.
    """
    with _book(read_settings(settings_file)) as book:
        recalls = book.recalls()
    for one, withdrawals in recalls:
        for line in recall_lines(one, withdrawals):
            typer.echo(line)
    if not recalls:
        typer.echo("nothing was ever recalled")
    if not all(one.done for one, _ in recalls):
        raise typer.Exit(1)


def _criteria(
    model: str,
    first: datetime | None,
    last: datetime | None,
    calling_ae: str,
    outcome: Outcome | None,
) -> RecallCriteria:
    """Days are this machine's own, as on the page."""
    name, _, version = model.partition("@")
    try:
        since = first.astimezone(UTC) if first else None
        until = (last + timedelta(days=1)).astimezone(UTC) if last else None
    except OverflowError:
        raise EdgeError("no calendar has the day after --to: name an earlier one") from None
    return RecallCriteria(
        model_name=name,
        model_version=version,
        since=since,
        until=until,
        calling_ae_title=calling_ae,
        outcome=outcome,
    )


def _listed(
    criteria: RecallCriteria, found: Sequence[RecalledResult], book: RecallBook
) -> Iterator[str]:
    yield from map(result_line, found)
    counts = Counter(result.action for result in found)
    yield f"{len(found)} results of {criteria}"
    for action, words in _WORDS.items():
        if counts[action]:
            yield f"  {counts[action]} {words}"
    if criteria.calling_ae_title and (unknown := book.unknown_senders()):
        yield f"  {unknown} studies are not looked at: their images, and so their sender, are gone"


def _unoffered(settings: EdgeSettings, replacement: str) -> Iterator[str]:
    """A worker may get the model later; till then everything that needs it waits."""
    if replacement in {"", CURRENT_MODEL}:
        return
    try:
        offered = offered_models(settings, find_home())
    except PhoiError:
        yield f"  no worker answers: {replacement} is waited for"
        return
    if not any(model.is_any_of([replacement]) for model in offered):
        yield f"  no worker has {replacement}: it is waited for. See `phoi models list`"


@contextmanager
def _book(settings: EdgeSettings) -> Iterator[RecallBook]:
    with opened_storage(settings, SystemClock()) as storage:
        yield StoredRecallBook(storage.store)
