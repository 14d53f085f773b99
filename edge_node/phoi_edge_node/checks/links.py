"""The other ends: archives, EMR, MLflow and workers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from phoi_models.errors import PhoiError

from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.network import TIMEOUT_S, End, reach
from phoi_edge_node.checks.probes import Echo, Installation, Probes
from phoi_edge_node.errors import SettingsError, SourceUnavailable
from phoi_edge_node.ports import Delivered, Destination, ImageSource, Refused
from phoi_edge_node.settings import (
    ArchiveSettings,
    DicomSettings,
    EdgeSettings,
    FhirSettings,
    Hl7Settings,
    MlflowSettings,
)
from phoi_edge_node.tls import TlsSettings, client_context

_NOBODYS_STUDY = "2.25.1"
_LARGEST_SKEW_S = 60.0


# --- archives --------------------------------------------------------------------------------


def check_archive(installation: Installation, archive: ArchiveSettings) -> Iterator[Finding]:
    """Reachable, speaking TLS where it should, and knowing both AE titles."""
    settings, setting = installation.settings, f"archives.{archive.name}"
    end = End("archive", archive.name, setting, archive.host, archive.port)
    if "sr" not in archive.objects:
        yield found("archive.no_report", "archive", archive.name, setting=setting)
    trouble = reach(_with_tls(end, archive, settings.dicom))
    if trouble:
        yield trouble
        if trouble.code != "tls.soon":
            return
    answer = installation.probes.echo(archive)
    yield _echoed(answer, archive, settings)
    if answer is Echo.ANSWERED and archive.commitment:
        yield from _check_commitment(installation, archive)


def _with_tls(end: End, archive: ArchiveSettings, dicom: DicomSettings) -> End:
    if not archive.tls:
        return end
    return replace(end, tls=_context(dicom, "dicom"))


def _context(settings: TlsSettings, section: str) -> ssl.SSLContext | None:
    """None where a file cannot be used: ``check_certificates`` tells of that."""
    try:
        return client_context(settings, section)
    except SettingsError:
        return None


def _echoed(answer: Echo, archive: ArchiveSettings, settings: EdgeSettings) -> Finding:
    codes = {
        Echo.ANSWERED: "archive.good",
        Echo.UNKNOWN_CALLED: "archive.called",
        Echo.UNKNOWN_CALLING: "archive.calling",
        Echo.REJECTED: "archive.rejects",
        Echo.NOT_DICOM: "archive.not_dicom",
    }
    return found(
        codes[answer],
        "archive",
        archive.name,
        called=archive.ae_title,
        calling=settings.dicom.ae_title,
        own_port=settings.dicom.port,
        host=archive.host,
        port=archive.port,
        setting=f"archives.{archive.name}",
    )


def _check_commitment(installation: Installation, archive: ArchiveSettings) -> Iterator[Finding]:
    """It must offer the service, and be let in when it calls back (PS3.4 J.3.3)."""
    dicom = installation.settings.dicom
    if not installation.probes.takes_commitment(archive):
        yield found("archive.no_commitment", "archive", archive.name, calling=dicom.ae_title)
    allowed = dicom.allowed_calling_ae_titles
    if allowed and archive.ae_title not in allowed:
        yield found("receiver.not_allowed", "receiver", ae=archive.ae_title)


def check_source(source: ImageSource) -> Finding:
    """Does an archive say what it holds? Without that no study's completeness is confirmed."""
    try:
        source.series(_NOBODYS_STUDY)
    except SourceUnavailable as error:
        return found("query.refused", "query", source.name, reason=error)
    return found("query.good", "query", source.name)


# --- EMR and MLflow --------------------------------------------------------------------------


def check_hl7(probes: Probes, settings: Hl7Settings) -> Iterator[Finding]:
    """Its port, its TLS, and what the lane itself says."""
    end = End("emr", settings.name, "hl7", settings.host, settings.port)
    if settings.tls:
        end = replace(end, tls=_context(settings, "hl7"))
    yield from _then(reach(end), lambda: check_lane(probes.lane(settings.name), "emr", "hl7"))


def check_fhir(probes: Probes, settings: FhirSettings) -> Iterator[Finding]:
    """A FHIR server, its clock, and whether it lets us in."""
    context = _context(settings, "fhir")
    page = _Page("emr", settings.name, "fhir.base_url", settings.base_url, context)

    def ask() -> Iterator[Finding]:
        answer = page.get("/metadata")
        if answer is None:
            yield found("link.trouble", "emr", settings.name, reason="HTTP", setting=page.setting)
            return
        yield from _skew(answer, probes.now(), page)
        if answer.is_success and not _is_json(answer):
            status = answer.status_code
            yield found("emr.not_fhir", "emr", settings.name, url=page.shown, status=status)
            return
        yield from check_lane(probes.lane(settings.name), "emr", "fhir")

    yield from _then(reach(page.end()), ask)


def check_mlflow(probes: Probes, settings: MlflowSettings) -> Iterator[Finding]:
    """An MLflow server, its version and clock, and whether it lets us in."""
    context = httpx.create_ssl_context()
    page = _Page("mlflow", "", "mlflow.tracking_uri", settings.tracking_uri, context)

    def ask() -> Iterator[Finding]:
        answer = page.get("/version")
        if answer is None:
            yield found("link.trouble", "mlflow", reason="HTTP", setting=page.setting)
            return
        yield from _skew(answer, probes.now(), page)
        version = answer.text.strip() if answer.is_success else ""
        if answer.is_success and not version.replace(".", "").isalnum():
            status = answer.status_code
            yield found("mlflow.not_mlflow", "mlflow", url=page.shown, status=status)
            return
        refused = check_lane(probes.lane("mlflow"), "mlflow", "mlflow.token_file")
        yield from (f for f in refused if f.code != "emr.good")
        if version:
            yield found("mlflow.good", "mlflow", version=version)

    yield from _then(reach(page.end()), ask)


def _then(trouble: Finding | None, go_on: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Tell of what is wrong with a link; go on where it can be used all the same."""
    if trouble:
        yield trouble
    if trouble is None or trouble.code == "tls.soon":
        yield from go_on()


def check_lane(lane: Destination | None, subject: str, setting: str) -> Iterator[Finding]:
    """What a lane's own check says."""
    if lane is None:
        return
    match lane.check():
        case Delivered(receipt):
            yield found("emr.good", subject, lane.name, receipt=receipt or "OK")
        case Refused(reason):
            yield found("link.refuses", subject, lane.name, reason=reason)
        case outcome:
            reason = outcome.reason
            yield found("link.trouble", subject, lane.name, reason=reason, setting=setting)


@dataclass(frozen=True)
class _Page:
    """A web service, asked without any secret."""

    subject: str
    name: str
    setting: str
    url: str
    context: ssl.SSLContext | None

    @property
    def shown(self) -> str:
        """The address without a password that somebody may have written into it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}:{self._port}{parts.path}"

    @property
    def _port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def end(self) -> End:
        """Where it listens."""
        tls = self.context if urlsplit(self.url).scheme == "https" else None
        host = urlsplit(self.url).hostname or ""
        return End(self.subject, self.name, self.setting, host, self._port, tls)

    def get(self, path: str) -> httpx.Response | None:
        """An answer, whatever it is; None where it is not HTTP."""
        try:
            verify = self.context or ssl.create_default_context()
            with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=verify) as client:
                return client.get(f"{self.url.rstrip('/')}{path}")
        except httpx.HTTPError:
            return None


def _is_json(answer: httpx.Response) -> bool:
    return "json" in answer.headers.get("Content-Type", "")


def _skew(answer: httpx.Response, now: datetime, page: _Page) -> Iterator[Finding]:
    """Compare clocks by the Date of an answer (RFC 9110, 6.6.1; whole seconds)."""
    dates = answer.headers.get_list("Date")  # a proxy may have put its own before the server's
    try:
        theirs = parsedate_to_datetime(dates[-1])
    except (IndexError, ValueError):
        return
    if theirs.tzinfo is None:  # "-0000"
        theirs = theirs.replace(tzinfo=UTC)
    seconds = abs((now - theirs).total_seconds())
    if seconds > _LARGEST_SKEW_S:
        yield found("clock.skewed", "clock", seconds=f"{seconds:.0f}", peer=page.name or "MLflow")


# --- inference -------------------------------------------------------------------------------


def check_workers(installation: Installation) -> Iterator[Finding]:
    """Does each answer, and does any have the model?"""
    settings = installation.settings.inference
    absent = [trouble for address in settings.workers for trouble in _absent(address)]
    yield from absent
    if len(absent) == len(settings.workers):
        return
    try:
        models = [m for m in installation.probes.models() if m.name == settings.model]
    except PhoiError as error:
        yield found("worker.no_answer", "worker", reason=error)
        return
    if models:
        told = ", ".join(f"{m.name} {m.version}" for m in models)
        yield found("worker.good", "worker", models=told)
    else:
        yield found("worker.no_model", "worker", model=settings.model)


def _absent(address: str) -> Iterator[Finding]:
    if address.startswith("unix:"):
        if not Path(address.removeprefix("unix:")).is_socket():
            yield found("worker.closed", "worker", address, address=address)
        return
    host, _, port = address.rpartition(":")
    end = End("worker", address, "inference.workers", host.strip("[]"), int(port))
    trouble = reach(end)
    if trouble is None:
        return
    if trouble.code == "link.closed":
        yield found("worker.closed", "worker", address, address=address)
    else:
        yield trouble
