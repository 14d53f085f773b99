"""``phoi send``: DICOM files to an archive or an edge node, by C-STORE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from phoi_models.reading.dicom_series import is_dicom
from rich.console import Console
from rich.progress import track

from phoi_edge_node.dicom.storage_scu import Peer, StorableFile, association, store
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import Delivered


def command(
    path: Annotated[Path, typer.Argument(help="A DICOM file, or a folder of them (and below).")],
    to: Annotated[str, typer.Option(help="Where to: AE@host:port, as PHOI@127.0.0.1:11112.")],
    calling: Annotated[str, typer.Option(help="The AE title to send as.")] = "PHOI-SEND",
) -> None:
    """Send DICOM files by C-STORE, as they are, on one association.

    Exit status: 0 every file was stored, 1 at least one was not; the reasons are counted.
    """
    peer = Peer.parse(to)
    files = find_files(path)
    failures = send(files, peer, calling)
    stored = len(files) - sum(failures.values())
    console = Console(stderr=True)
    console.print(f"{stored} of {len(files)} files stored by {peer.ae_title}")
    for reason, count in failures.items():
        console.print(f"{count} not stored: {reason}", markup=False)
    if failures:
        raise typer.Exit(1)


def find_files(path: Path) -> tuple[StorableFile, ...]:
    """The DICOM files at or below ``path``, by name.

    Raises:
        EdgeError: there are none, or one is damaged.
    """
    candidates = [path] if path.is_file() else sorted(path.rglob("*"))
    files = tuple(StorableFile.open(file) for file in candidates if is_dicom(file))
    if not files:
        raise EdgeError(f"{path}: no DICOM files there")
    return files


def send(files: Sequence[StorableFile], peer: Peer, calling_ae_title: str) -> Counter[str]:
    """Send all files, with a progress bar on stderr; how many failed, by reason.

    Raises:
        EdgeError: no association could be had.
    """
    contexts = {(file.sop_class_uid, file.transfer_syntax_uid) for file in files}
    failures: Counter[str] = Counter()
    with association(peer, calling_ae_title, contexts) as link:
        for file in track(files, description="Sending", console=Console(stderr=True)):
            outcome = store(link, file)
            if not isinstance(outcome, Delivered):
                failures[outcome.reason] += 1
    return failures
