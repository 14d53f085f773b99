"""``phoi demo``: the whole way of one real chest CT, on this machine, with nothing faked inside."""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import Storage, open_storage
from phoi_edge_node.cli.nodule_table import ABOUT_SIZE_CLASSES, nodule_table
from phoi_edge_node.cli.send import find_files, send
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.result import Outcome, TriageResult
from phoi_edge_node.sample import default_cache, fetch_sample
from phoi_edge_node.stand_ins.hospital import Hospital, Ports, hospital, require_free
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.store import Delivery, StoredAccount, StoredAnalysis
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.system import SystemClock
from phoi_edge_node.workflow import UNKNOWN_MODEL

_PATIENCE_S = 600.0
_USERNAME = "demo"
_ENDED = (DeliveryState.DELIVERED, DeliveryState.DEAD)


def command(
    dicom: Annotated[
        Path | None,
        typer.Option(help="A folder of DICOM of one study; default: fetch LIDC-IDRI-0001."),
    ] = None,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="End when the study has gone its whole way.")
    ] = False,
    web_port: Annotated[int, typer.Option(help="Of the review page; 0: any.")] = 8080,
    mlflow_port: Annotated[int, typer.Option(help="Of MLflow; 0: any.")] = 5000,
) -> None:
    """Start a whole hospital on 127.0.0.1 and send one chest CT through it.

    Starts MLflow, an inference worker, an edge node, and stand-ins for the archive, the MLLP
    receiver and the FHIR server; sends the CT by C-STORE; shows what happened and where to look;
    serves until Ctrl-C. Exit status: 0 only if every step really happened.
    """
    console = Console()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        complete = _run(console, dicom, once=once, ports=_ports(web_port, mlflow_port))
    except KeyboardInterrupt:
        console.print("Stopped; nothing runs any more.")
        return
    if not complete:
        raise typer.Exit(1)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _ports(web: int, mlflow: int) -> Ports:
    for port, option in ((web, "--web-port"), (mlflow, "--mlflow-port")):
        if port:
            require_free(port, option)
    return Ports(web=web or free_port(), mlflow=mlflow or free_port())


def _run(console: Console, dicom: Path | None, *, once: bool, ports: Ports) -> bool:
    cache = default_cache()
    say: Callable[[str], None] = lambda line: console.print(f"[dim]-[/] {line}")  # noqa: E731
    images = dicom or fetch_sample(cache, say)
    files = find_files(images)
    folder = cache / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    with hospital(folder, cache, ports, say) as site:
        storage = open_storage(site.settings, SystemClock())
        password = _add_account(storage)
        say("Registering the shipped model in MLflow")
        site.register_model()
        say(f"Sending {len(files)} files by C-STORE to PHOI@127.0.0.1:{ports.dicom}")
        failures = send(files, Peer("PHOI", "127.0.0.1", ports.dicom, 30.0), "DEMO-CT")
        for reason, count in failures.items():
            console.print(f"[red]{count} files were not stored: {reason}")
        analysis = _follow(console, storage)
        facts = _check(site, storage, analysis, len(files) - failures.total())
        _show(console, storage, analysis, facts)
        _show_where(console, site, password)
        complete = not failures and all(fact.holds for fact in facts)
        storage.engine.dispose()
        if not complete:
            console.print(f"[red]Not every step happened. The logs are in {folder}.")
        elif not once:
            console.print("Serving until Ctrl-C ...")
            threading.Event().wait()
    return complete


def _add_account(storage: Storage) -> str:
    password = secrets.token_urlsafe(9)
    account = Account(_USERNAME, "Bs. Demo", Role.ADMIN)
    storage.store.put_account(StoredAccount(account, hash_password(password)))
    return password


# --- following -------------------------------------------------------------------------------


def _follow(console: Console, storage: Storage) -> StoredAnalysis:
    """Wait, with progress, until the study's result has gone everywhere."""
    deadline = time.monotonic() + _PATIENCE_S
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Waiting for the study to be complete", total=1.0)
        while time.monotonic() < deadline:
            analysis = _analysis(storage)
            if analysis is not None:
                progress.update(task, completed=analysis.fraction, description=_phase(analysis))
                if analysis.result is not None and _all_ended(storage.store.deliveries()):
                    return analysis
            time.sleep(0.2)
    raise EdgeError(f"the study did not go its way within {_PATIENCE_S:.0f} s: see the logs")


def _analysis(storage: Storage) -> StoredAnalysis | None:
    studies = storage.store.studies(1)
    if not studies:
        return None
    analyses = storage.store.analyses(studies[0].header.study_instance_uid)
    return analyses[-1] if analyses else None


def _phase(analysis: StoredAnalysis) -> str:
    if analysis.result is not None:
        return "Delivering"
    return f"Analysing: {analysis.step or 'starting'} {analysis.error}".rstrip()


def _all_ended(deliveries: Sequence[Delivery]) -> bool:
    usage = [d for d in deliveries if d.kind is DocumentKind.USAGE]
    sent = [d for d in deliveries if d.kind is not DocumentKind.USAGE]
    reported = any(d.state is DeliveryState.DELIVERED for d in usage)
    return reported and bool(sent) and all(d.state in _ENDED for d in sent)


# --- checking from outside -------------------------------------------------------------------


@dataclass(frozen=True)
class _Fact:
    """Something that must be so, seen from outside."""

    what: str
    seen: str
    holds: bool


def _check(
    site: Hospital, storage: Storage, analysis: StoredAnalysis, sent: int
) -> tuple[_Fact, ...]:
    received = len(storage.store.instances(analysis.study_instance_uid))
    deliveries = storage.store.deliveries(analysis.study_instance_uid)
    archived = site.archived()
    identities = {d.kind: d.identity for d in deliveries}
    outcome = analysis.result.outcome if analysis.result else Outcome.FAILED
    facts = [
        _Fact("Received by C-STORE", f"{received} instances", received == sent > 0),
        _Fact("Analysed", outcome.value, outcome is not Outcome.FAILED),
    ]
    for kind, label in _EXPECTED.items():
        if kind in _OF_NODULES and not _positive(analysis.result):
            continue
        uid = identities.get(kind, "")
        facts.append(_Fact(f"{label} in the archive", uid or "missing", uid in archived))
    control_id = identities.get(DocumentKind.HL7_ORU, "")
    held = sum(control_id in message for message in site.messages()) if control_id else 0
    facts.append(_Fact("ORU^R01 at the MLLP receiver", control_id or "missing", held == 1))
    reports = site.fhir_resources("DiagnosticReport")
    seen = ", ".join(f"DiagnosticReport/{report['id']}" for report in reports)
    facts.append(_Fact("FHIR Bundle at the server", seen or "missing", len(reports) == 1))
    usage = site.usage()
    counted = usage.get("studies.received", 0.0)
    facts.append(_Fact("Usage in MLflow", f"{len(usage)} metrics", counted >= 1))
    model = analysis.result.identity.model if analysis.result else UNKNOWN_MODEL
    versions = site.registered(model.name).get(model.bundle_hash, "")
    facts.append(_Fact("Model in MLflow's registry", f"version {versions}", bool(versions)))
    return tuple(facts)


_EXPECTED = {
    DocumentKind.SEGMENTATION: "SEG",
    DocumentKind.STRUCTURED_REPORT: "SR",
    DocumentKind.SECONDARY_CAPTURE: "Secondary Capture",
    DocumentKind.KEY_OBJECTS: "Key images",
}
_OF_NODULES = frozenset({DocumentKind.SEGMENTATION, DocumentKind.KEY_OBJECTS})


def _positive(result: TriageResult | None) -> bool:
    return result is not None and result.outcome is Outcome.POSITIVE


# --- showing ---------------------------------------------------------------------------------


def _show(
    console: Console, storage: Storage, analysis: StoredAnalysis, facts: Sequence[_Fact]
) -> None:
    result = analysis.result
    if result is None:
        raise AssertionError("the study was followed to its result")
    table = Table("Step", "Seen from outside", "", title="What happened")
    for fact in facts:
        table.add_row(fact.what, fact.seen, "[green]yes" if fact.holds else "[red]NO")
    console.print(table)
    console.print(_timing(storage, analysis, result))
    console.print(nodule_table(result.nodules, title="Nodules found"))
    console.print(ABOUT_SIZE_CLASSES)
    model = result.identity.model
    console.print(
        f"Outcome: [bold]{result.outcome.value}[/] {result.detail}  "
        f"Suggested priority: [bold]{result.suggested_priority.value}[/]\n"
        f"Series: {result.series_reason}\nModel: {model.name} {model.version} ({model.device_uid})"
    )


def _timing(storage: Storage, analysis: StoredAnalysis, result: TriageResult) -> Table:
    table = Table("Step", "Seconds", title="How long each step took")
    study = storage.store.study(analysis.study_instance_uid)
    if study is None or analysis.started_at is None or analysis.finished_at is None:
        raise AssertionError("the study was followed to its result")
    report = next(
        d
        for d in storage.store.deliveries(analysis.study_instance_uid)
        if d.kind is DocumentKind.STRUCTURED_REPORT
    )
    last = study.last_received_at
    rows: list[tuple[str, datetime, datetime]] = [
        ("receive", study.first_received_at, last),
        ("wait for completeness", last, analysis.started_at),
        ("analysis and encoding", analysis.started_at, analysis.finished_at),
        ("SR handed to the archive", analysis.finished_at, report.updated_at),
        ("last slice to SR delivered", last, report.updated_at),
    ]
    for name, begin, end in rows:
        table.add_row(name, f"{(end - begin).total_seconds():.2f}")
        if name == "analysis and encoding":
            for step, seconds in result.timing_s.items():
                table.add_row(f"  [dim]{step}", f"[dim]{seconds:.2f}")
    return table


def _show_where(console: Console, site: Hospital, password: str) -> None:
    console.print(
        f"\nWorklist  {site.page}  sign in as [bold]{_USERNAME}[/] / [bold]{password}[/]\n"
        f"MLflow    {site.mlflow}\n"
        f"Archive   {site.folder / 'archive'}\n"
        f"HL7       {site.folder / 'mllp'}\n"
        f"FHIR      {site.fhir}/DiagnosticReport"
    )
