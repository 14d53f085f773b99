"""``phoi doctor``: the checks, with real ends to ask. Knows adapters; changes nothing."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from phoi_models.home import Home
from phoi_models.identity import ModelIdentity

from phoi_edge_node.backup import last_backup
from phoi_edge_node.bootstrap import MLFLOW, Connections, make_destinations, make_sources, node_runs
from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.machine import Machine
from phoi_edge_node.checks.network import TIMEOUT_S, own_address
from phoi_edge_node.checks.probes import Installation, Probes
from phoi_edge_node.checks.run import checks_of, run_checks
from phoi_edge_node.dicom import doctor as dicom
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.dicom.tls import client_context
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.hl7v2.mapping import site_mapping
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.tracker import MlflowTracker
from phoi_edge_node.ports import Destination
from phoi_edge_node.priority_policy import read_policy
from phoi_edge_node.settings import (
    ArchiveSettings,
    EdgeSettings,
    SiteMode,
    read_settings,
)
from phoi_edge_node.sql.records import read_records


def examine(
    settings_file: Path,
    home: Home,
    now: Callable[[], datetime],
    machine: Machine | None = None,
) -> Iterator[Finding]:
    """Look at one installation; the findings as they come, in a fixed order."""
    try:
        settings = _in_haste(read_settings(settings_file))
    except SettingsError as error:
        for line in str(error).splitlines():
            yield found("settings.unusable", "settings", reason=line)
        return
    for reason in _unusable_files(settings):
        yield found("settings.unusable", "settings", reason=reason)
    probes = _probes(settings, home, now)
    installation = Installation(settings, str(settings_file), home, probes)
    yield from run_checks(checks_of(installation, machine))


def _unusable_files(settings: EdgeSettings) -> Iterator[str]:
    """What is wrong with the site's own rules, without which the node does not start."""
    readers: list[Callable[[], object]] = [partial(read_policy, settings.priority.policy)]
    if settings.hl7:
        readers.append(partial(site_mapping, settings.hl7))
    for read in readers:
        try:
            read()
        except SettingsError as error:
            yield from str(error).splitlines()


def _probes(settings: EdgeSettings, home: Home, now: Callable[[], datetime]) -> Probes:
    dicom_settings = settings.dicom

    def peer(archive: ArchiveSettings) -> Peer:
        return Peer.of(archive, client_context(dicom_settings))

    def own_echo(calling_ae_title: str) -> bool:
        host = own_address(dicom_settings.host)
        own = Peer(dicom_settings.ae_title, host, dicom_settings.port, TIMEOUT_S)
        return dicom.answers(own, calling_ae_title)

    return Probes(
        now=now,
        node_runs=_once(
            lambda: (settings.data / "edge.lock").exists() and node_runs(settings.data)
        ),
        echo=lambda archive: dicom.echo(peer(archive), dicom_settings.ae_title),
        own_echo=own_echo,
        takes_commitment=lambda a: dicom.takes_commitment(peer(a), dicom_settings.ae_title),
        lane=lambda name: _lane(settings, name),
        sources=lambda: make_sources(settings),
        models=lambda: offered_models(settings, home),
        records=lambda: read_records(settings.resolved_database_url),
        last_backup=lambda: last_backup(settings.data),
    )


def _once(ask: Callable[[], bool]) -> Callable[[], bool]:
    """The first answer, for all checks at once: asking takes the lock of a node that starts now."""
    lock, answers = threading.Lock(), list[bool]()

    def answer() -> bool:
        with lock:
            if not answers:
                answers.append(ask())
            return answers[0]

    return answer


def offered_models(settings: EdgeSettings, home: Home) -> Sequence[ModelIdentity]:
    """What all workers that answer have. Asked with a folder and a port for voxels of its own.

    Opening the node's folder would sweep it, and its port may be in use: by the node, just now.

    Raises:
        PhoiError: none answers.
    """
    with tempfile.TemporaryDirectory(prefix="phoi-doctor-") as folder:
        own: dict[str, object] = {"volumes": Path(folder)}
        if settings.inference.source_listen:
            own["source_listen"] = "127.0.0.1:0"
        inference = settings.inference.model_copy(update=own)
        alone = {"inference": inference, "archives": (), "hl7": None, "fhir": None, "mlflow": None}
        with Connections(settings.model_copy(update=alone), home) as connections:
            return connections.inference.models()


def _lane(settings: EdgeSettings, name: str) -> Destination | None:
    """Alone, so that what is wrong with another one is not told of this one.

    In any mode of the site: what is wrong is to be known before it goes live.
    """
    if settings.mlflow and name == MLFLOW:
        return MlflowTracker(MlflowRest(settings.mlflow), MLFLOW)
    only: dict[str, object] = {
        "site": settings.site.model_copy(update={"mode": SiteMode.PACS_EMR}),
        "archives": (),
        "hl7": settings.hl7 if settings.hl7 and settings.hl7.name == name else None,
        "fhir": settings.fhir if settings.fhir and settings.fhir.name == name else None,
    }
    return next(iter(make_destinations(settings.model_copy(update=only))), None)


def _in_haste(settings: EdgeSettings) -> EdgeSettings:
    """The same with short time-outs."""
    short = {"timeout_s": TIMEOUT_S}
    return settings.model_copy(
        update={
            "archives": tuple(archive.model_copy(update=short) for archive in settings.archives),
            "hl7": settings.hl7 and settings.hl7.model_copy(update=short),
            "fhir": settings.fhir and settings.fhir.model_copy(update=short),
        }
    )
