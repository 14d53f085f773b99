"""Clock, CPU, memory and disk of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.probes import Installation
from phoi_edge_node.settings import EdgeSettings

# Before this nobody wrote this program: a clock that says so is wrong.
_EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
_VIET_NAM = timedelta(hours=7)
_SLOW_FSYNC_S = 0.1
_FSYNCS = 20
_FEWEST_INODES = 10_000
WORKER_MB = 1500  # resident, of one worker with the shipped model on a CT of 500 slices
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "afs"}
)


@dataclass(frozen=True)
class Machine:
    """Where a machine tells of itself; tests prepare other ones."""

    cpuinfo: Path = Path("/proc/cpuinfo")
    meminfo: Path = Path("/proc/meminfo")
    mounts: Path = Path("/proc/self/mounts")
    timedatectl: str = "timedatectl"


def check_clock(installation: Installation, machine: Machine) -> Iterator[Finding]:
    """A clock that is wrong stamps reports with a wrong time."""
    now = installation.probes.now()
    if now < _EARLIEST:
        yield found("clock.impossible", "clock", date=f"{now:%Y-%m-%d}")
        return
    local = now.astimezone()
    zone = local.tzname() or "?"
    if not _synchronised(machine.timedatectl):
        yield found("clock.not_synchronised", "clock")
    if installation.settings.site.language == "vi" and local.utcoffset() != _VIET_NAM:
        yield found("clock.zone", "clock", zone=zone)
    yield found("clock.good", "clock", now=f"{now:%Y-%m-%d %H:%M}", zone=zone)


def _synchronised(timedatectl: str) -> bool:
    """As the system says; also where it says nothing."""
    try:
        told = subprocess.run(
            [timedatectl, "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return told.stdout.strip() != "no"


def check_cpu(settings: EdgeSettings, machine: Machine) -> Iterator[Finding]:
    """Which form of the model will run, and how many workers share the cores."""
    try:
        flags = set(machine.cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    cores = os.cpu_count() or 1
    workers = len(_workers_here(settings))
    if workers > cores:
        yield found("cpu.few", "cpu", workers=workers, cores=cores)
    if not {"avx2", "asimd"} & flags:
        yield found("cpu.old", "cpu")
    elif {"avx512_vnni", "avx_vnni", "asimddp"} & flags:
        yield found("cpu.good", "cpu", cores=cores)
    else:
        yield found("cpu.float", "cpu", cores=cores)


def check_memory(settings: EdgeSettings, machine: Machine) -> Iterator[Finding]:
    """Room for the workers of this machine."""
    try:
        lines = machine.meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), None)
    if kilobytes is None:
        return
    free = int(kilobytes) * 1024 // 1_000_000
    # Workers that run already have theirs: only where there is none for any is it too little.
    if _workers_here(settings) and free < WORKER_MB:
        yield found("memory.short", "memory", free=free, each=WORKER_MB)
    else:
        yield found("memory.good", "memory", free=free)


def _workers_here(settings: EdgeSettings) -> Sequence[str]:
    here = ("unix:", "127.0.0.1:", "localhost:", "[::1]:")
    return [address for address in settings.inference.workers if address.startswith(here)]


def check_disk(settings: EdgeSettings, machine: Machine) -> Iterator[Finding]:
    """Room for images, and how long it takes until they are safe."""
    folder = existing(settings.data)
    kind, options = _mount(folder, machine.mounts)
    if kind in _NETWORK_FILE_SYSTEMS and not settings.database_url:
        yield found("disk.network", "disk", path=folder, kind=kind)
    if "ro" in options:
        yield found("disk.read_only", "disk", path=folder)
        return
    state = os.statvfs(folder)
    if state.f_files and state.f_favail < _FEWEST_INODES:
        yield found("disk.inodes", "disk", free=state.f_favail)
    free, least = shutil.disk_usage(folder).free // 1_000_000, settings.dicom.minimum_free_disk_mb
    if free < least:
        yield found("disk.full", "disk", free=free, least=least, path=folder)
        return
    if free < 5 * least:
        yield found("disk.short", "disk", free=free)
    yield from _write_safely(settings.data, folder, free)


def _write_safely(data: Path, folder: Path, free: int) -> Iterator[Finding]:
    probe = folder / ".phoi-doctor"
    try:
        if data.exists() and not data.is_dir():
            raise NotADirectoryError(0, "it is a file")
        started = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(_FSYNCS):
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        each = (time.perf_counter() - started) / _FSYNCS
        probe.unlink()
    except OSError as error:
        yield found("data.not_writable", "data", path=data, reason=error.strerror)
        return
    told = f"{each * 1000:.1f}"
    if each > _SLOW_FSYNC_S:
        yield found("disk.slow", "disk", each=told)
    else:
        yield found("disk.good", "disk", free=free, each=told)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def _mount(folder: Path, mounts: Path) -> tuple[str, frozenset[str]]:
    """Kind and options of the file system that holds a folder (fstab(5))."""
    resolved = folder.resolve()
    kind, options, depth = "", frozenset[str](), -1
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind, options
    for line in lines:
        _, point, its_kind, its_options, *_ = line.split(" ")
        path = Path(point.replace("\\040", " "))
        if resolved.is_relative_to(path) and len(path.parts) >= depth:
            kind, options, depth = its_kind, frozenset(its_options.split(",")), len(path.parts)
    return kind, options
