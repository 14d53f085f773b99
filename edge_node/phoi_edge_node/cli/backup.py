"""``phoi edge backup`` and ``phoi edge restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from phoi_models.files import write_atomically
from phoi_models.home import find_home

from phoi_edge_node.backup import make_backup, restore_backup, verify
from phoi_edge_node.cli.options import DEFAULT_SETTINGS, SettingsFile
from phoi_edge_node.settings import read_settings
from phoi_edge_node.system import SystemClock


def backup(
    destination: Annotated[Path, typer.Argument(help="Folder of all backups.")],
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Images too; the PACS has them as well.")
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="How many backups of this node remain.")] = 7,
) -> None:
    """Write a dated folder with database, settings and keys, and read it again. The edge goes on.

    The folder holds patient data and private keys, and is readable by its owner only: keep it where
    only administrators are. Certificates and tokens that the settings name are not in it.
    """
    settings = read_settings(settings_file)
    folder = make_backup(
        settings,
        settings_file,
        find_home(),
        destination,
        SystemClock().now(),
        with_images=with_images,
        keep=keep,
    )
    manifest = verify(folder)
    size = sum(file.size for file in manifest.files)
    typer.echo(f"{folder}: {len(manifest.files)} files, {size / 1e6:.1f} MB, verified")


def restore(
    source: Annotated[Path, typer.Argument(help="The folder of one backup.")],
    settings_file: SettingsFile = DEFAULT_SETTINGS,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Set the present database aside, replace the keys.")
    ] = False,
) -> None:
    """Put a backup back. The edge must not run.

    Where there is no settings file, that of the backup is written first. Studies whose images are
    not on this disk are asked for again by the completeness check and by `phoi reconcile`.
    """
    if not settings_file.exists():
        verify(source)
        settings_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(settings_file, (source / "edge.toml").read_bytes())
    settings = read_settings(settings_file)
    restored = restore_backup(source, settings, find_home(), SystemClock(), force=force)
    typer.echo(f"restored what was backed up at {restored.manifest.made_at:%Y-%m-%d %H:%M:%S} UTC")
    if restored.expired:
        typer.echo(f"{restored.expired} studies keep their results; their images are not here")
    if restored.lost:
        typer.echo(f"{restored.lost} studies lack images, which will be asked for again")
    if restored.paused:
        typer.echo(f"paused until you resume them on the page: {', '.join(restored.paused)}")
    typer.echo("Next: phoi edge run; then phoi reconcile over the days since the backup")
