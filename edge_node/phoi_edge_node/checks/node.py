"""The node itself: its mode, ports, service, models, database, backups and logs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from phoi_models.bundle import read_manifest
from phoi_models.bundle_store import BundleStore, StoredModel
from phoi_models.errors import PhoiError
from phoi_models.home import Home
from phoi_models.signing import TrustStore

from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.machine import existing
from phoi_edge_node.checks.network import answers, listener, own_address
from phoi_edge_node.checks.probes import Installation, Probes, Records, SchemaAge
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.settings import LOCAL, EdgeSettings, SiteMode

_VOLUME_MB = 400  # 800 slices of 512 x 512 in int16
_LONG_PAUSE = timedelta(days=1)
_OLD_BACKUP = timedelta(days=2)
_UNITS = ("phoi-edge.service", "phoi.target")


def check_mode(settings: EdgeSettings) -> Finding:
    """Where do results go?"""
    mode = settings.site.mode
    if mode is SiteMode.SHADOW:
        return found("mode.shadow", "mode", mode.value)
    if not settings.archives:
        return found("mode.no_archive", "mode", mode.value)
    if mode is SiteMode.PACS_EMR and settings.hl7 is None and settings.fhir is None:
        return found("mode.no_emr", "mode", mode.value)
    return found("mode.sending", "mode", mode.value)


# --- process and ports -----------------------------------------------------------------------


def check_node(installation: Installation) -> Iterator[Finding]:
    """Does it run, and say that it is ready?"""
    settings = installation.settings
    if not installation.probes.node_runs():
        yield found("node.stopped", "node", path=installation.settings_file)
    elif reason := _unready(settings):
        yield found("node.not_ready", "node", reason=reason)
    else:
        yield found("node.runs", "node")


def _unready(settings: EdgeSettings) -> str:
    web = settings.web
    scheme = "https" if web.tls_certificate else "http"
    url = f"{scheme}://{own_address(web.host)}:{web.port}/readyz"
    try:
        # Our own page, on this machine: its certificate names the host that people type.
        answer = httpx.get(url, timeout=5, trust_env=False, verify=False)  # noqa: S501
    except httpx.HTTPError as error:
        return type(error).__name__
    return "" if answer.is_success else answer.text.strip().replace("\n", "; ")


@dataclass(frozen=True)
class Port:
    """A port on which the node is to listen."""

    setting: str
    host: str
    port: int


def check_port(probes: Probes, port: Port) -> Finding:
    """Is it Phoi's, or free, or another program's?"""
    address = f"{own_address(port.host)}:{port.port}"
    values = {"address": address, "setting": port.setting}
    runs, heard = probes.node_runs(), answers(own_address(port.host), port.port)
    if runs:
        return found("port.open" if heard else "port.silent", "port", port.setting, **values)
    if heard:
        program = listener(port.port)
        return found("port.taken", "port", port.setting, program=program, **values)
    try:
        family = socket.getaddrinfo(port.host, None, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((port.host, port.port), family=family):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return found("port.unusable", "port", port.setting, reason=reason, **values)
    return found("port.free", "port", port.setting, **values)


def ports(settings: EdgeSettings) -> Iterator[Port]:
    """Every port on which the node listens."""
    yield Port("dicom", settings.dicom.host, settings.dicom.port)
    yield Port("web", settings.web.host, settings.web.port)
    if settings.orders:
        yield Port("orders", settings.orders.host, settings.orders.port)
    host, _, port = settings.inference.source_listen.rpartition(":")
    if port.isdigit():
        yield Port("inference.source_listen", host, int(port))


def check_receiver(installation: Installation) -> Iterator[Finding]:
    """Would images of the PACS get in?"""
    dicom, archives = installation.settings.dicom, installation.settings.archives
    if dicom.host in LOCAL and any(archive.host not in LOCAL for archive in archives):
        yield found("receiver.local", "receiver", host=dicom.host, port=dicom.port)
    allowed = dicom.allowed_calling_ae_titles
    if allowed:
        yield found("receiver.senders", "receiver", senders=", ".join(allowed))
    elif dicom.host not in LOCAL:
        yield found("receiver.anyone", "receiver")
    # With TLS, or where this machine itself is not let in, nobody can try it from here.
    if dicom.tls_certificate or dicom.allowed_peers or not installation.probes.node_runs():
        return
    calling = allowed[0] if allowed else "DOCTOR"
    heard = installation.probes.own_echo(calling)
    yield found("receiver.good" if heard else "receiver.no_echo", "receiver", ae=dicom.ae_title)


def check_service(settings: EdgeSettings) -> Iterator[Finding]:
    """systemd's opinion, where Phoi was installed as a service."""
    for unit in _UNITS:
        enabled = _systemctl("--root=/", "is-enabled", unit)
        if enabled in {"", "not-found"}:
            continue
        code = "service.good" if enabled.startswith("enabled") else "service.disabled"
        failed = _systemctl("is-failed", unit) == "failed"
        yield found("service.failed" if failed else code, "service", unit, unit=unit)
    yield from _shut_out(settings)


def _shut_out(settings: EdgeSettings) -> Iterator[Finding]:
    """Folders that the settings name, and that the services may not write to."""
    watched, log_file = settings.watched_folder, settings.logs.file
    written = {
        "phoi-edge.service": [
            settings.data,
            *([watched.folder] if watched else []),
            *([log_file.parent] if log_file else []),
        ],
        "phoi-backup.service": [settings.data],
    }
    for unit, folders in written.items():
        writable = _writable(unit)
        if writable is None:
            continue
        for folder in dict.fromkeys(folders):
            if not any(folder.resolve().is_relative_to(path.resolve()) for path in writable):
                yield found("service.shut_out", "service", unit, path=folder, unit=unit)


def _writable(unit: str) -> Sequence[Path] | None:
    """Where a unit of ours may write; None: anywhere, or there is none."""
    asked = "ProtectSystem,ReadWritePaths,StateDirectory,LogsDirectory"
    lines = _systemctl("show", f"--property={asked}", unit).splitlines()
    shown = {name: value.split() for name, _, value in (line.partition("=") for line in lines)}
    if shown.get("ProtectSystem") != ["strict"]:
        return None
    return [
        *(Path(path.lstrip("+-")) for path in shown.get("ReadWritePaths", [])),
        *(Path("/var/lib", name) for name in shown.get("StateDirectory", [])),
        *(Path("/var/log", name) for name in shown.get("LogsDirectory", [])),
    ]


def _systemctl(*arguments: str) -> str:
    """What it prints; "" where there is none, or it does not answer."""
    try:
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


# --- models ----------------------------------------------------------------------------------


def check_models(home: Home, name: str) -> Iterator[Finding]:
    """Is there a model, and is it to be trusted?"""
    store = BundleStore(home.models)
    models = [m for m in store.models() if m.identity.name == name]
    known = {model.folder for model in models}
    for folder in sorted((home.models / name).glob("*/")):
        if folder not in known:
            yield found("model.unsigned", "model", f"{name} ({folder.name})", path=folder)
    if not models:
        yield found("model.none", "model", name, path=home.models)
    for model in models:
        yield _check_model(store, model, home)


def _check_model(store: BundleStore, model: StoredModel, home: Home) -> Finding:
    name = f"{model.identity.name} {model.identity.version}"
    trust = TrustStore.load(home.trust)
    key = read_manifest(model.folder).key_id
    if trust.revoked & {key, model.identity.bundle_hash}:
        return found("model.revoked", "model", name)
    if key not in trust.keys:
        return found("model.unknown_key", "model", name, key=key[:12])
    try:
        store.load(model.identity, trust)
    except PhoiError:
        return found("model.altered", "model", name, path=model.folder)
    return found("model.good", "model", name, hash=model.identity.bundle_hash[:12])


def check_volumes(settings: EdgeSettings, home: Home) -> Iterator[Finding]:
    """Where voxels are left for the workers of this machine."""
    folder = settings.inference.volumes or home.volumes
    present = folder if folder.exists() else existing(folder)
    free = shutil.disk_usage(present).free // 1_000_000
    if not present.is_dir():
        yield found("volumes.unusable", "volumes", path=folder, reason="not a directory")
    elif not os.access(present, os.W_OK | os.X_OK):
        yield found("volumes.unusable", "volumes", path=folder, reason="permission denied")
    elif free < _VOLUME_MB:
        yield found("volumes.small", "volumes", free=free, path=folder, each=_VOLUME_MB)
    else:
        yield found("volumes.good", "volumes", free=free)


# --- folders ---------------------------------------------------------------------------------


def check_watched_folder(settings: EdgeSettings) -> Iterator[Finding]:
    """Can it be read and emptied?"""
    if settings.watched_folder is None:
        return
    folder = settings.watched_folder.folder
    usable = folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    yield found("watched.good" if usable else "watched.unusable", "watched", path=folder)


def check_quarantine(data: Path) -> Finding:
    """Was anything set aside?"""
    folder = data / "instances" / "quarantine"
    number = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    if number == 0:
        return found("quarantine.empty", "quarantine")
    return found("quarantine.filled", "quarantine", number=number, path=folder)


def check_logs(settings: EdgeSettings) -> Finding:
    """Where do they lie?"""
    file = settings.logs.file
    if file is None:
        return found("logs.journal", "logs")
    present = file if file.exists() else file.parent
    usable = present.exists() and os.access(present, os.W_OK) and not file.is_dir()
    return found("logs.file" if usable else "logs.unusable", "logs", path=file)


# --- what the database remembers -------------------------------------------------------------


def check_records(installation: Installation) -> Iterator[Finding]:
    """The database opens, and nothing in it waits for a person in silence."""
    try:
        records = installation.probes.records()
    except EdgeError as error:
        reason = str(error).removeprefix("cannot use the database: ")
        yield found("database.unusable", "database", reason=reason)
        return
    yield _schema(records)
    if records.age is SchemaAge.CURRENT:
        yield from _pauses(installation, records)
        yield from _dead(records)
        yield _unsigned(installation, records)


def _schema(records: Records) -> Finding:
    codes = {
        SchemaAge.ABSENT: "database.new",
        SchemaAge.EARLIER: "database.earlier",
        SchemaAge.CURRENT: "database.good",
        SchemaAge.LATER: "database.later",
    }
    return found(codes[records.age], "database", schema=records.schema)


def _pauses(installation: Installation, records: Records) -> Iterator[Finding]:
    if not records.pauses:
        yield found("pauses.none", "pauses")
    for pause in records.pauses:
        forgotten = installation.probes.now() - pause.at > _LONG_PAUSE
        code = "pauses.forgotten" if forgotten else "pauses.some"
        since = f"{pause.at:%Y-%m-%d %H:%M}"
        yield found(code, "pauses", target=pause.target, who=pause.username, since=since)


def _dead(records: Records) -> Iterator[Finding]:
    dead = {name: number for name, number in records.dead.items() if number}
    if not dead:
        yield found("deliveries.good", "deliveries")
    for name, number in sorted(dead.items()):
        yield found("deliveries.dead", "deliveries", name, number=number)


def _unsigned(installation: Installation, records: Records) -> Finding:
    longest = timedelta(days=installation.settings.watchdog.unreviewed_days)
    waiting = records.unsigned
    if waiting is None or (age := installation.probes.now() - waiting.since) <= longest:
        return found("reviews.good", "reviews")
    return found("reviews.waiting", "reviews", number=waiting.number, days=age.days)


def check_backup(probes: Probes) -> Finding:
    """When was the latest made?"""
    at = probes.last_backup()
    if at is None:
        return found("backup.never", "backup")
    age, told = probes.now() - at, f"{at:%Y-%m-%d %H:%M} UTC"
    if age > _OLD_BACKUP:
        return found("backup.old", "backup", days=age.days, at=told)
    return found("backup.good", "backup", at=told)
