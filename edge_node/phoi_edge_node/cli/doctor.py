"""``phoi doctor``: what is wrong here, and what to do."""

from __future__ import annotations

import typer
from phoi_models.home import find_home
from rich.console import Console

from phoi_edge_node.bootstrap import Connections, make_sources
from phoi_edge_node.checks import Health, run_checks
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.system import SystemClock

_MARK = {Health.GOOD: "[green]ok  ", Health.WARNING: "[yellow]look", Health.BAD: "[red]BAD "}


def command(settings_file: SettingsFile = DEFAULT_SETTINGS) -> None:
    """Check every part and every link of an edge node; say in plain words what to do.

    Changes nothing; the edge may run meanwhile. Exit status: 0 all is well, 1 something is bad.
    """
    settings = _beside_the_edge(read_settings(settings_file))
    home = find_home()
    console = Console(soft_wrap=True)
    worst = Health.GOOD
    with Connections(settings, home) as connections:
        for finding in run_checks(
            settings,
            home,
            connections.destinations,
            connections.inference,
            SystemClock().now(),
            make_sources(settings),
        ):
            console.print(f"{_MARK[finding.health]}[/]  {finding.what}: {finding.seen}")
            if finding.remedy:
                console.print(f"      {finding.remedy}")
            if finding.health is Health.BAD:
                worst = Health.BAD
    if worst is Health.BAD:
        raise typer.Exit(1)


def _beside_the_edge(settings: EdgeSettings) -> EdgeSettings:
    """The same, but not in the way of an edge that serves voxels on its port just now."""
    if not settings.inference.source_listen:
        return settings
    inference = settings.inference.model_copy(update={"source_listen": "127.0.0.1:0"})
    return settings.model_copy(update={"inference": inference})
