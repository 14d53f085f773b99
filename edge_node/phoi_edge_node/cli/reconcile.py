"""``phoi reconcile``: is every chest CT of the archives received, analysed and delivered?"""

from __future__ import annotations

import getpass
import time
from datetime import date, datetime
from typing import Annotated

import typer

from phoi_edge_node.bootstrap import make_sources, node_runs, opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.errors import EdgeError, SettingsError
from phoi_edge_node.reconciled import Reconciliation, ReconciliationReport
from phoi_edge_node.reconciliation import Reconciler, report_lines
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.store import StudyStore
from phoi_edge_node.system import SystemClock

_LOOK_EVERY_S = 0.5


def command(
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="Study Date.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Study Date.")],
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look; mend nothing.")] = False,
) -> None:
    """Compare the chest CTs of the archives with what was received, analysed and delivered.

    The running node fetches what is missing and sends again what was refused; this command waits
    for its report. What it names is mended in the everyday way, so run it again later to see zero.
    The archives asked are those of the settings with `query = true`. The same happens by itself
    every night (`[reconciliation]`).

    Exit status: 0 nothing was left behind, 1 studies are named or an archive could not be asked.
    """
    settings = read_settings(settings_file)
    if last < first:
        raise SettingsError("--to lies before --from")
    if not any(archive.query for archive in settings.archives):
        raise SettingsError(f"{settings_file}: no archive may be asked: set query = true in one")
    with opened_storage(settings, SystemClock()) as storage:
        look = _look if dry_run else _ask_node
        report = look(settings, storage.store, first.date(), last.date())
    for line in report_lines(report):
        typer.echo(line)
    if not report.nothing_left_behind:
        raise typer.Exit(1)


def _look(
    settings: EdgeSettings, store: StudyStore, first: date, last: date
) -> ReconciliationReport:
    return Reconciler(store, make_sources(settings)).run(first, last, mend=False)


def _ask_node(
    settings: EdgeSettings, store: StudyStore, first: date, last: date
) -> ReconciliationReport:
    """Images come in through the node, so the node does it.

    Raises:
        EdgeError: no node runs, or it ended before it was done.
    """
    _require_node(settings)
    number = store.ask_reconciliation(first, last, getpass.getuser())
    while (ended := _ended(store, number)) is None:
        time.sleep(_LOOK_EVERY_S)
        _require_node(settings)
    return ended


def _ended(store: StudyStore, number: int) -> ReconciliationReport | None:
    found: list[Reconciliation] = [r for r in store.reconciliations() if r.id == number]
    return found[0].report if found else None


def _require_node(settings: EdgeSettings) -> None:
    if not node_runs(settings.data):
        raise EdgeError(
            f"no edge node runs on {settings.data}: start it with `phoi edge run`, or only look "
            "with --dry-run"
        )
