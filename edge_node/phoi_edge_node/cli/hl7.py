"""``phoi hl7``: what an EMR would get, before it gets it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from phoi_edge_node.bootstrap import opened_storage
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.hl7v2.fields import SEGMENT_END
from phoi_edge_node.hl7v2.mapping import read_mapping, site_mapping
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.hl7v2.readable import readable
from phoi_edge_node.past_case import hidden, past_case
from phoi_edge_node.ports import ReportedCase, ReportStatus
from phoi_edge_node.settings import EdgeSettings, read_settings
from phoi_edge_node.system import RandomUids, SystemClock

app = typer.Typer(help="HL7 v2 messages: see what an EMR would get.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep sub-commands, though there is one."""


@app.command()
def preview(
    study_instance_uid: Annotated[str, typer.Argument(help="Of a study that has a result.")],
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    mapping: Annotated[
        Path | None, typer.Option(help="Mapping file to try; by default that of the settings.")
    ] = None,
    status: Annotated[
        ReportStatus | None, typer.Option(help="As if it were; by default as it stands.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The message itself.")] = False,
    show_patient: Annotated[
        bool, typer.Option("--show-patient", help="Names and numbers as they are.")
    ] = False,
) -> None:
    """Print the message that a past study would give. Nothing is stored and nothing is sent.

    Names, numbers and dates of birth are hidden unless you ask for them.
    """
    settings = read_settings(settings_file)
    case = _case(settings, study_instance_uid, status)
    content = _message(settings, mapping, case if show_patient else hidden(case))
    if content is None:
        typer.echo(f"no message: the mapping has preliminary = false, and this is {case.status}")
        return
    lines = content.decode().split(SEGMENT_END) if raw else readable(content)
    for line in lines:
        typer.echo(line)


def _case(
    settings: EdgeSettings, study_instance_uid: str, status: ReportStatus | None
) -> ReportedCase:
    clock = SystemClock()
    with opened_storage(settings, clock) as storage:
        return past_case(storage.store, study_instance_uid, status, clock.now())


def _message(settings: EdgeSettings, mapping: Path | None, case: ReportedCase) -> bytes | None:
    if settings.hl7 is None:
        raise SettingsError("the settings have no [hl7]: write one with host and port first")
    wanted = read_mapping(mapping) if mapping else site_mapping(settings.hl7)
    encoder = OruEncoder(settings.hl7, settings.site, RandomUids(), version("phoi"), wanted)
    documents = encoder.encode(case)
    return documents[0].content if documents else None
