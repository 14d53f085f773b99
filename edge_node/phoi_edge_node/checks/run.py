"""All checks of one installation, side by side, each with an end."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from phoi_models.errors import PhoiError

from phoi_edge_node.checks import files, links, machine, node
from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.machine import Machine
from phoi_edge_node.checks.probes import Installation

LIMIT_S = 30.0


@dataclass(frozen=True)
class Check:
    """One question, named as its findings are."""

    subject: str
    look: Callable[[], Finding | Iterable[Finding]]
    name: str = ""


@dataclass
class _Running:
    """A check on a thread of its own: nothing that hangs holds up the doctor."""

    check: Check
    findings: list[Finding] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        subject, name = self.check.subject, self.check.name
        try:
            seen = self.check.look()
            self.findings.extend([seen] if isinstance(seen, Finding) else seen)
        except PhoiError as error:  # a setting that an adapter cannot use
            self.findings.append(found("settings.unusable", subject, name, reason=error))
        except Exception as error:  # whatever it is: the other checks are to be told
            self.findings.append(found("check.failed", subject, name, kind=_place(error)))


def _place(error: Exception) -> str:
    """Kind and place of an error of ours; its text might quote anything."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}, {Path(last.filename).name}:{last.lineno}"


def run_checks(checks: Sequence[Check], limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """The findings in the order of the checks, as they come; none waits longer than the limit."""
    running = [_Running(check) for check in checks]
    until = time.monotonic() + limit_s
    for one in running:
        one.thread.join(max(0.0, until - time.monotonic()))
        hangs = one.thread.is_alive()  # before its findings: what it found until it ended is told
        yield from tuple(one.findings)
        if hangs:
            yield found("check.no_end", one.check.subject, one.check.name, seconds=f"{limit_s:g}")


def checks_of(installation: Installation, here: Machine | None = None) -> Sequence[Check]:
    """Everything there is to look at."""
    here = here or Machine()
    settings, probes = installation.settings, installation.probes
    return [
        Check("settings", lambda: files.check_settings_file(settings, _file(installation))),
        Check("mode", lambda: node.check_mode(settings)),
        Check("clock", lambda: machine.check_clock(installation, here)),
        Check("cpu", lambda: machine.check_cpu(settings, here)),
        Check("memory", lambda: machine.check_memory(settings, here)),
        Check("disk", lambda: machine.check_disk(settings, here)),
        Check("data", lambda: files.check_data_folder(settings.data)),
        Check("file", lambda: files.check_secrets(settings)),
        Check("certificate", lambda: files.check_certificates(settings, probes.now())),
        Check("node", lambda: node.check_node(installation)),
        Check("service", lambda: node.check_service(settings)),
        *(
            Check("port", partial(node.check_port, probes, port), port.setting)
            for port in node.ports(settings)
        ),
        Check("receiver", lambda: node.check_receiver(installation)),
        Check("model", lambda: node.check_models(installation.home, settings.inference.model)),
        Check("volumes", lambda: node.check_volumes(settings, installation.home)),
        Check("worker", lambda: links.check_workers(installation)),
        *_link_checks(installation),
        Check("watched", lambda: node.check_watched_folder(settings)),
        Check("quarantine", lambda: node.check_quarantine(settings.data)),
        Check("database", lambda: node.check_records(installation)),
        Check("backup", lambda: node.check_backup(probes)),
        Check("logs", lambda: node.check_logs(settings)),
    ]


def _link_checks(installation: Installation) -> Iterator[Check]:
    settings, probes = installation.settings, installation.probes
    for archive in settings.archives:
        yield Check("archive", partial(links.check_archive, installation, archive), archive.name)
        if archive.query:
            yield Check("query", partial(_check_query, installation, archive.name), archive.name)
    if settings.hl7:
        yield Check("emr", partial(links.check_hl7, probes, settings.hl7), settings.hl7.name)
    if settings.fhir:
        yield Check("emr", partial(links.check_fhir, probes, settings.fhir), settings.fhir.name)
    if settings.mlflow:
        yield Check("mlflow", partial(links.check_mlflow, probes, settings.mlflow))


def _check_query(installation: Installation, name: str) -> Iterator[Finding]:
    for source in installation.probes.sources():
        if source.name == name:
            yield links.check_source(source)


def _file(installation: Installation) -> Path:
    return Path(installation.settings_file)
