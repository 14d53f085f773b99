"""A backup of one edge node, made while it runs, and its way back. Knows adapters.

One folder for each backup, named by its node and time, readable by its owner only, since it holds
patient data and keys: the database, the settings file, the keys of the data folder (sessions,
pseudonyms) and of the installation (its signing key, what it trusts), and the images where that is
wanted. Not in it: files that the settings name (certificates, tokens), which are the hospital's to
keep, and model bundles, which are signed and can be installed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from phoi_models.files import make_folder, sync_folder, write_atomically
from phoi_models.home import Home

from phoi_edge_node.bootstrap import Storage, make_destinations, only_node, open_storage
from phoi_edge_node.desk import Switch, SwitchKind
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.locks import only_holder
from phoi_edge_node.ports import Clock
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql.dump import (
    ASIDE,
    check_dump,
    dump_database,
    find_dump,
    is_empty,
    restore_database,
)

_MANIFEST = "manifest.json"
_FORMAT = 1
_LAST = "last-backup"
_DATA_KEYS = ("session.key", "pseudonyms.key")
_IMAGES = ("studies", "quarantine")


@dataclass(frozen=True)
class BackedUpFile:
    """One file of a backup. ``path`` is relative to its folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a backup holds.

    Attributes:
        node: which node made it: its site and a random id.
        made_at: UTC.
        phoi: version that made it; its schema is brought forward when it is restored.
        images: are they in it?
    """

    node: str
    made_at: datetime
    phoi: str
    images: bool
    files: tuple[BackedUpFile, ...]


@dataclass(frozen=True)
class Restored:
    """What a restore found.

    Attributes:
        lost: studies that wait for images which are not on this disk: they are asked for again.
        expired: studies whose results had all arrived and whose images are not on this disk.
        paused: destinations to which nothing is sent before somebody resumes them.
    """

    manifest: Manifest
    lost: int
    expired: int
    paused: tuple[str, ...]


# --- making one ------------------------------------------------------------------------------


def make_backup(
    settings: EdgeSettings,
    settings_file: Path,
    home: Home,
    destination: Path,
    now: datetime,
    *,
    with_images: bool,
    keep: int,
) -> Path:
    """Write one backup, read it again, then forget the oldest ones.

    Args:
        destination: folder of all backups.
        keep: how many of this node remain, this one among them. Other nodes' are left alone.

    Returns:
        The folder of this backup.

    Raises:
        EdgeError: it could not be written, or not read again, or another one is being made.
    """
    with _only_backup(settings.data):
        node_id = _node_id(settings.data)
        _sweep(destination, node_id)
        manifest = Manifest(
            f"{settings.site.name}-{node_id}", now, version("phoi"), with_images, files=()
        )
        folder = _write(manifest, settings, settings_file, home, destination)
        for old in _backups_of(destination, node_id)[: -max(keep, 1)]:
            (old / _MANIFEST).unlink()  # half removed it counts no more
            shutil.rmtree(old)
        write_atomically(settings.data / _LAST, now.isoformat().encode())
    return folder


def last_backup(data: Path) -> datetime | None:
    """When the latest backup of a data folder was made, UTC; None where none is known of."""
    try:
        return datetime.fromisoformat((data / _LAST).read_text())
    except (OSError, ValueError):
        return None


def _write(
    manifest: Manifest, settings: EdgeSettings, settings_file: Path, home: Home, destination: Path
) -> Path:
    folder = destination / f"phoi-{manifest.node}-{manifest.made_at:%Y%m%dT%H%M%S.%f}Z"
    partial = destination / f".{folder.name}.partial"
    try:
        make_folder(destination)
        partial.mkdir(mode=0o700)
        _fill(partial, settings, settings_file, home, with_images=manifest.images)
        _make_durable(partial)
        files = tuple(_describe(partial, path) for path in _files(partial))
        manifest = replace(manifest, files=files)
        write_atomically(partial / _MANIFEST, _to_json(manifest), mode=0o600)
        verify(partial)
        partial.rename(folder)
        sync_folder(destination)
    except OSError as error:
        raise EdgeError(f"cannot write the backup {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _only_backup(data: Path) -> AbstractContextManager[None]:
    """One at a time, so that nobody sweeps away what another is writing."""
    return only_holder(
        data / "backup.lock",
        f"a backup of {data} is being made already: wait for it",
        f"cannot back up {data}",
    )


def _node_id(data: Path) -> str:
    """Of this data folder, made with its first backup: two nodes may share a folder of backups."""
    path = data / "node.id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text()


def backups(destination: Path) -> list[Path]:
    """The complete backups in a folder, of whichever nodes, oldest first."""
    return _backups_of(destination, "*")


def _backups_of(destination: Path, node_id: str) -> list[Path]:
    found = destination.glob(f"phoi-*-{node_id}-*Z/{_MANIFEST}")
    return sorted((path.parent for path in found), key=lambda path: path.name.rsplit("-", 1)[1])


def _sweep(destination: Path, node_id: str) -> None:
    """Remove what a crash left of this node's backups: half written, or half removed."""
    for half_written in destination.glob(f".phoi-*-{node_id}-*Z.partial"):
        shutil.rmtree(half_written)
    for folder in destination.glob(f"phoi-*-{node_id}-*Z"):
        if not (folder / _MANIFEST).exists():
            shutil.rmtree(folder)


def _make_durable(folder: Path) -> None:
    """Before it counts as a backup, and older ones go."""
    for path in _files(folder):
        with (folder / path).open("rb") as file:
            os.fsync(file.fileno())
            # It is read again from the disk, not from memory.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(inner)
    sync_folder(folder)


def _fill(
    folder: Path, settings: EdgeSettings, settings_file: Path, home: Home, *, with_images: bool
) -> None:
    dump_database(settings.resolved_database_url, folder)
    _copy(settings_file, folder / "edge.toml")
    for name in _DATA_KEYS:
        _copy(settings.data / name, folder / "data" / name)
    for file in (home.trust, home.signing_key):
        _copy(file, folder / "home" / file.relative_to(home.root))
    if with_images:
        # After the database, so that every image that it knows is there.
        root = settings.data / "instances"
        for kind in _IMAGES:
            for image in _files(root / kind):
                _copy(root / kind / image, folder / "instances" / kind / image)


def _copy(source: Path, target: Path) -> None:
    """Copy a file that may not be there, or may be removed just now by retention."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)
        return
    target.chmod(0o600)


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder))


def _describe(folder: Path, path: str) -> BackedUpFile:
    with (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BackedUpFile(path, (folder / path).stat().st_size, digest)


def _to_json(manifest: Manifest) -> bytes:
    content = {"format": _FORMAT, **asdict(manifest), "made_at": manifest.made_at.isoformat()}
    return json.dumps(content, indent=1).encode() + b"\n"


# --- reading one -----------------------------------------------------------------------------


def verify(folder: Path) -> Manifest:
    """Read every byte of a backup.

    Raises:
        EdgeError: it is no backup, or a file of it is missing or damaged; the text says which.
    """
    manifest = _read_manifest(folder)
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            raise EdgeError(f"{path} is missing: take another backup")
        if _describe(folder, file.path) != file:
            raise EdgeError(f"{path} is damaged: take another backup")
    check_dump(find_dump(folder))
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise EdgeError(f"{folder}: no complete backup there") from None
    if content.pop("format", None) != _FORMAT:
        raise EdgeError(f"{folder} was made by a later version of Phoi: install that one")
    return Manifest(
        node=content["node"],
        made_at=datetime.fromisoformat(content["made_at"]),
        phoi=content["phoi"],
        images=content["images"],
        files=tuple(BackedUpFile(**file) for file in content["files"]),
    )


# --- putting one back ------------------------------------------------------------------------


def restore_backup(
    folder: Path, settings: EdgeSettings, home: Home, clock: Clock, *, force: bool
) -> Restored:
    """Make this node what it was. Nothing runs on the data folder meanwhile.

    What was delivered since is delivered again with the same identities. That may replace what is
    newer there, a signed report by its preliminary one, so nothing is sent before somebody has
    looked and resumes each destination.
    Images on this disk that the restored database does not know are indexed at the next start.

    Args:
        force: also where there is a database already, which is set aside.

    Raises:
        EdgeError: a node runs, there is a database and no ``force``, or the backup is damaged.
    """
    manifest = verify(folder)
    with only_node(settings.data):
        if not force and not is_empty(settings.resolved_database_url):
            raise EdgeError(
                "there is a database already: --force sets it aside and puts the backup in its "
                "place"
            )
        aside = f"{ASIDE}{clock.now():%Y%m%dT%H%M%S}"
        restore_database(settings.resolved_database_url, find_dump(folder), aside)
        _put_back(folder / "data", settings.data, force=True)
        _put_back(folder / "home", home.root, force=force)
        _put_back(folder / "instances", settings.data / "instances", force=False)
        storage = open_storage(settings, clock)
        try:
            paused = _pause_destinations(settings, storage)
            lost, expired = _recognise_absent_images(storage)
        finally:
            storage.engine.dispose()
    return Restored(manifest, lost, expired, paused)


def _put_back(source: Path, target: Path, *, force: bool) -> None:
    for path in _files(source):
        if force or not (target / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target / path, (source / path).read_bytes(), mode=0o600)


def _pause_destinations(settings: EdgeSettings, storage: Storage) -> tuple[str, ...]:
    names = tuple(destination.name for destination in make_destinations(settings))
    for name in names:
        storage.store.pause(Switch(SwitchKind.DESTINATION, name).target, "phoi edge restore")
    return names


def _recognise_absent_images(storage: Storage) -> tuple[int, int]:
    """The index must not speak of images that are not on this disk."""
    lost = expired = 0
    store, root = storage.store, storage.files.root
    for uid in store.instance_counts():
        instances = store.instances(uid)
        absent = [i.sop_instance_uid for i in instances if not (root / i.path).exists()]
        if not absent:
            continue
        if len(absent) == len(instances) and store.expire_study(uid):
            expired += 1
        else:
            store.lose_instances(uid, dict.fromkeys(absent, "missing"))
            lost += 1
    return lost, expired
