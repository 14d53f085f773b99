"""What ``phoi doctor`` looks at. Each check ends in plain words and, if need be, what to do."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from phoi_models.bundle_store import BundleStore
from phoi_models.errors import PhoiError
from phoi_models.home import Home
from phoi_models.signing import TrustStore

from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import (
    Delivered,
    Destination,
    ImageSource,
    InferenceService,
    Refused,
)
from phoi_edge_node.settings import EdgeSettings, SiteMode

# Before this nobody wrote this program: a clock that says so is wrong.
_EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
_SLOW_FSYNC_S = 0.1
_FSYNCS = 20
_NOBODYS_STUDY = "2.25.1"


class Health(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        what: was looked at.
        seen: what was found, one clause.
        remedy: what to do, one sentence; "" where nothing.
    """

    health: Health
    what: str
    seen: str
    remedy: str = ""


Check = Callable[[], Finding]


def good(what: str, seen: str) -> Finding:
    """All is well."""
    return Finding(Health.GOOD, what, seen)


def bad(what: str, seen: str, remedy: str) -> Finding:
    """This will not work."""
    return Finding(Health.BAD, what, seen, remedy)


def warning(what: str, seen: str, remedy: str) -> Finding:
    """This works, and somebody should look at it."""
    return Finding(Health.WARNING, what, seen, remedy)


def run_checks(
    settings: EdgeSettings,
    home: Home,
    destinations: tuple[Destination, ...],
    inference: InferenceService,
    now: datetime,
    sources: Sequence[ImageSource] = (),
) -> Iterator[Finding]:
    """All checks, one after the other; none raises for what it finds."""
    yield check_mode(settings)
    yield check_clock(now)
    yield check_space(settings)
    yield check_disk(settings.data)
    yield check_quarantine(settings.data)
    yield check_senders(settings)
    yield check_port("DICOM receiver", settings.dicom.host, settings.dicom.port)
    yield check_port("review page", settings.web.host, settings.web.port)
    yield from check_bundles(home, settings.inference.model)
    yield check_inference(inference, settings.inference.model)
    for destination in destinations:
        yield check_destination(destination)
    for source in sources:
        yield check_source(source)


def check_mode(settings: EdgeSettings) -> Finding:
    """Where do results go?"""
    mode = settings.site.mode
    what = f"site mode {mode.value}"
    if mode is SiteMode.SHADOW:
        return good(what, "results stay inside Phoi; nothing is sent to PACS or EMR")
    if not settings.archives:
        return bad(what, "no archive is set", "Add [[archives]] to the settings, or use shadow.")
    if mode is SiteMode.PACS_EMR and settings.hl7 is None and settings.fhir is None:
        return bad(what, "no EMR is set", "Add [hl7] or [fhir] to the settings, or use mode pacs.")
    return good(what, "results are sent out")


def check_clock(now: datetime) -> Finding:
    """A clock that is wrong stamps reports with a wrong time."""
    if now < _EARLIEST:
        return bad("clock", f"says {now:%Y-%m-%d}", "Set it: `timedatectl set-ntp true`.")
    return good("clock", f"{now:%Y-%m-%d %H:%M} UTC")


def check_space(settings: EdgeSettings) -> Finding:
    """Room for images."""
    existing = next(p for p in (settings.data, *settings.data.absolute().parents) if p.exists())
    free_mb = shutil.disk_usage(existing).free // 1_000_000
    least = settings.dicom.minimum_free_disk_mb
    if free_mb < least:
        return bad(
            "disk space",
            f"{free_mb} MB free, {least} needed: images are refused",
            f"Free some space below {existing}, or move `data` to a larger disk.",
        )
    if free_mb < 5 * least:
        return warning("disk space", f"{free_mb} MB free", "Plan more room: a CT takes 100-300 MB.")
    return good("disk space", f"{free_mb} MB free")


def check_disk(data: Path) -> Finding:
    """Can it be written, and how long does it take to be safe?"""
    probe = data / ".doctor"
    try:
        data.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(_FSYNCS):
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        each = (time.perf_counter() - started) / _FSYNCS
        probe.unlink()
    except OSError as error:
        return bad(
            "data folder",
            f"{data} cannot be written: {error.strerror}",
            "Give it to the user that runs Phoi: `chown`, or set another `data`.",
        )
    if each > _SLOW_FSYNC_S:
        return warning(
            "data folder", f"a safe write takes {each * 1000:.0f} ms", "Use an SSD for `data`."
        )
    return good("data folder", f"a safe write takes {each * 1000:.1f} ms")


def check_quarantine(data: Path) -> Finding:
    """Was anything set aside?"""
    folder = data / "instances" / "quarantine"
    number = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    if number == 0:
        return good("quarantine", "empty")
    return warning(
        "quarantine",
        f"{number} instances came under UIDs, or for studies, of others that were received before",
        f"Find who sends them: their files, with the sender's AE title, are in {folder}.",
    )


def check_senders(settings: EdgeSettings) -> Finding:
    """Who may send images?"""
    allowed = settings.dicom.allowed_calling_ae_titles
    if allowed:
        return good("who may send", ", ".join(allowed))
    if settings.dicom.host in {"127.0.0.1", "::1", "localhost"}:
        return good("who may send", "anyone on this machine only")
    return warning(
        "who may send",
        "anyone who reaches the port",
        "Name your PACS in dicom.allowed_calling_ae_titles.",
    )


def check_port(what: str, host: str, port: int) -> Finding:
    """Is the port free, or does Phoi answer on it?"""
    address = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - read, not bound
    try:
        if _answers(address, port):
            return good(what, f"{address}:{port} answers")
        with socket.create_server((host, port), family=_family(host)):
            pass
    except OSError as error:
        return bad(
            what,
            f"{host}:{port} cannot be used: {error.strerror}",
            "Choose another port or address in the settings.",
        )
    return warning(what, f"nothing answers on {address}:{port}", "Start it: `phoi edge run`.")


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def _answers(address: str, port: int) -> bool:
    with socket.socket(_family(address)) as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0


def check_bundles(home: Home, name: str) -> Iterator[Finding]:
    """Is there a model, and is it to be trusted?"""
    models = [m for m in BundleStore(home.models).models() if m.identity.name == name]
    if not models:
        yield bad("model", f"no {name} in {home.models}", "Run `phoi models init`.")
    for model in models:
        what = f"model {model.identity.name} {model.identity.version}"
        try:
            BundleStore(home.models).load(model.identity, TrustStore.load(home.trust))
        except PhoiError as error:
            yield bad(what, str(error), "Install it again, or ask who made it for their key.")
        else:
            yield good(what, f"signed and trusted, {model.identity.bundle_hash[:12]}")


def check_inference(inference: InferenceService, name: str) -> Finding:
    """Does a worker answer, and does it have the model?"""
    try:
        models = [m for m in inference.models() if m.name == name]
    except PhoiError as error:
        return bad("inference", str(error), "Start a worker: `phoi worker`.")
    if not models:
        return bad("inference", f"no worker has {name}", "Run `phoi models init` where it runs.")
    return good("inference", ", ".join(f"{m.name} {m.version}" for m in models))


def check_destination(destination: Destination) -> Finding:
    """Does it answer?"""
    what = f"destination {destination.name}"
    match destination.check():
        case Delivered(receipt):
            return good(what, receipt or "answers")
        case Refused(reason):
            return bad(what, f"answers, and refuses: {reason}", "Ask its owner to let Phoi in.")
        case outcome:
            return bad(
                what,
                f"does not answer: {outcome.reason}",
                "Check its address and port in the settings, and the firewall between.",
            )


def check_source(source: ImageSource) -> Finding:
    """Does an archive say what it holds? Without that no study's completeness is confirmed."""
    what = f"questions to {source.name}"
    try:
        source.series(_NOBODYS_STUDY)
    except SourceUnavailable as error:
        return bad(
            what,
            str(error),
            "Ask its owner to allow Query/Retrieve (C-FIND, or QIDO-RS) for Phoi's AE title.",
        )
    return good(what, "answers what it holds")
