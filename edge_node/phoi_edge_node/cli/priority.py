"""``phoi priority``: check a site's policy of priorities, and try it on past studies."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from phoi_edge_node.bootstrap import opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.priority_policy import preview, preview_lines, read_policy
from phoi_edge_node.result import Priority, TriageResult
from phoi_edge_node.settings import read_settings
from phoi_edge_node.store import StudyStore
from phoi_edge_node.system import SystemClock

_MOST_STUDIES = 10_000

app = typer.Typer(
    help="Check a site's policy of priorities, and try it on past studies.", no_args_is_help=True
)


@app.command()
def check(policy: Annotated[Path, typer.Argument(help="The policy, TOML.")]) -> None:
    """Say whether a policy can be used, and its rules in the order in which they are asked."""
    read = read_policy(policy)
    for rule in read.rules:
        lowers = ", also below the order's priority" if rule.may_lower_order else ""
        typer.echo(f"{rule.name}: tells {rule.tell}{lowers}")
    typer.echo("otherwise: as suggested")


@app.command("preview")
def show_preview(
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    policy: Annotated[
        Path | None, typer.Option(help="The policy, TOML. Default: that of the settings.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Results of so many days back.")] = 30,
) -> None:
    """Show what a policy would have told of this node's past results. Changes nothing.

    For each study its latest result counts, at the time when it was made; of the 10,000 latest
    studies at most. Studies are named by Study Instance UID.
    """
    settings = read_settings(settings_file)
    read = read_policy(policy or settings.priority.policy)
    clock = SystemClock()
    since = clock.now() - timedelta(days=days)
    with opened_storage(settings, clock) as storage:
        past = [r for r in _results(storage.store) if r[0].analysed_at >= since]
    for line in preview_lines(preview(read, past)):
        typer.echo(line)


def _results(store: StudyStore) -> Iterator[tuple[TriageResult, Priority | None]]:
    """The latest result of each study, with the priority of its order."""
    uids = [study.header.study_instance_uid for study in store.studies(_MOST_STUDIES)]
    for uid, analysis in store.latest_analyses(uids).items():
        if analysis.result is not None:
            order = store.order_of(uid)
            yield analysis.result, order.priority if order else None
