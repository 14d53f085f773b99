"""``phoi doctor``: what is wrong here, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from phoi_models.home import find_home
from phoi_models.logs import configure_logs
from rich.console import Console
from rich.markup import escape

from phoi_edge_node.checks.catalogue import Health, Language
from phoi_edge_node.checks.finding import Finding
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.doctor import examine
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.settings import read_settings
from phoi_edge_node.system import SystemClock

_MARK = {
    Language.VI: {
        Health.GOOD: "[green]tốt[/]",
        Health.WARNING: "[yellow]XEM[/]",
        Health.BAD: "[red]LỖI[/]",
    },
    Language.EN: {
        Health.GOOD: "[green]ok  [/]",
        Health.WARNING: "[yellow]look[/]",
        Health.BAD: "[red]BAD [/]",
    },
}
_LOOKING = {Language.VI: "Đang kiểm tra ...", Language.EN: "Looking ..."}
_SUMMARY = {
    Language.VI: "{bad} lỗi, {warning} điều cần xem, {good} điều tốt.",
    Language.EN: "{bad} bad, {warning} to look at, {good} good.",
}


def command(
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    language: Annotated[
        Language | None,
        typer.Option("--lang", help="vi or en. Default: site.language of the settings."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON array, with a stable code for each finding.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what is good.")] = False,
) -> None:
    """Check every part and every link of an edge node; say in plain words what to do.

    Speaks Vietnamese or English. Changes nothing; the edge may run meanwhile. Run it as the user
    that runs the edge. Ends within a minute. Names no patient, so its output may be sent to whoever
    helps. Exit status: 0 nothing is bad, 1 something is.
    """
    configure_logs("error")
    language = language or _language(settings_file)
    findings = examine(settings_file, find_home(), SystemClock().now)
    if as_json:
        seen = list(findings)
        rows = [_row(finding, language) for finding in seen]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        seen = _print(findings, language, quiet=quiet)
    if any(finding.health is Health.BAD for finding in seen):
        raise typer.Exit(1)


def _language(settings_file: Path) -> Language:
    """That of the settings; of a file that cannot be used, the shell's."""
    try:
        return Language(read_settings(settings_file).site.language)
    except SettingsError:
        return Language.EN if os.environ.get("LANG", "").startswith("en") else Language.VI


def _print(findings: Iterable[Finding], language: Language, *, quiet: bool) -> list[Finding]:
    console, seen = Console(soft_wrap=True, highlight=False), []
    with console.status(_LOOKING[language]):
        for finding in findings:
            seen.append(finding)
            told = finding.told(language)
            if quiet and told.health is Health.GOOD:
                continue
            mark = _MARK[language][told.health]
            console.print(f"{mark}  {escape(told.what)}: {escape(told.seen)}")
            if told.remedy:
                console.print(f"      {escape(told.remedy)}")
    number = {h.value: sum(finding.health is h for finding in seen) for h in Health}
    console.print(_SUMMARY[language].format_map(number))
    return seen


def _row(finding: Finding, language: Language) -> dict[str, str]:
    told = finding.told(language)
    return {
        "code": finding.code,
        "health": told.health.value,
        "what": told.what,
        "seen": told.seen,
        "remedy": told.remedy,
    }
