"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SettingsFile = Annotated[
    Path,
    typer.Option(
        "--settings",
        "-s",
        envvar="PHOI_EDGE_SETTINGS",
        help="The edge's settings file; `phoi edge init` writes one.",
        dir_okay=False,
    ),
]
DEFAULT_SETTINGS = Path("edge.toml")
