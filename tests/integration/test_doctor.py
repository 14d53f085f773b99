"""``phoi doctor`` on installations that are broken, each in one way, with real ends to ask."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from phoi_edge_node import locks
from phoi_edge_node.bootstrap import EdgeNode, node_runs, only_node, open_storage
from phoi_edge_node.checks.catalogue import CATALOGUE, Health, Language
from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.machine import Machine
from phoi_edge_node.checks.node import check_records
from phoi_edge_node.checks.probes import Installation, Probes, Records, SchemaAge
from phoi_edge_node.checks.run import Check, run_checks
from phoi_edge_node.cli.doctor import command
from phoi_edge_node.doctor import examine
from phoi_edge_node.ports import Document, DocumentKind, Refused
from phoi_edge_node.settings import read_settings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.store import InState
from phoi_edge_node.testing import FakeClock, FakeInference
from phoi_models.bundle_store import BundleStore
from phoi_models.home import Home
from phoi_models.signing import TrustStore, create_signing_key
from support import values
from support.archives import query_scp
from support.certificates import Certificates
from support.commands import phoi
from support.dcmtk import storescp
from support.fhir_peers import FhirPeer, fhir_peer
from support.inference import QUICK, install, new_home, running_worker
from support.mllp_peers import mllp_peer, silent
from support.orthanc import Orthanc, orthanc

DAY = timedelta(days=1)
R4 = (
    b'{"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1",'
    b' "rest": [{"mode": "server", "interaction": [{"code": "transaction"}]}]}'
)
R5 = R4.replace(b"4.0.1", b"5.0.0")
FHIR_JSON = {"Content-Type": "application/fhir+json"}
LOGIN_PAGE = b"<html><body>Sign in</body></html>"
# Not broken: this machine need not stand in Viet Nam, and the node of these set-ups never ran.
USUAL = frozenset({"clock.zone", "clock.not_synchronised", "node.stopped", "backup.never"})


@dataclass
class Site:
    """An installation in a folder; set-ups change it before the doctor comes.

    Attributes:
        top, sections: of the settings file.
        ahead: by how much this machine's clock is wrong.
    """

    folder: Path
    home: Home
    worker: str
    pacs: Orthanc
    stack: ExitStack
    top: str = ""
    sections: str = ""
    dicom: str = "minimum_free_disk_mb = 1"
    web: str = ""
    inference: str = ""
    ahead: timedelta = timedelta()
    machine: Machine = field(default_factory=Machine)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def settings_file(self) -> Path:
        return self.folder / "edge.toml"

    def add(self, section: str, text: str) -> None:
        self.sections += f"[{section}]\n{text}\n"

    def archive(self, port: int, ae_title: str = "ORTHANC", more: str = "") -> None:
        text = f'ae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\n{more}'
        self.add("[archives]", text)

    def fhir(self, status: int, body: bytes, tls: ssl.SSLContext | None = None) -> FhirPeer:
        headers = FHIR_JSON if body.startswith(b"{") else {"Content-Type": "text/html"}
        peer = self.stack.enter_context(fhir_peer(status, body, headers=headers, tls=tls))
        self.add("fhir", f'base_url = "{peer.base_url}"')
        return peer

    def mode(self, mode: str) -> None:
        self.add("site", f'name = "test"\nmode = "{mode}"')

    def store(self, clock: FakeClock) -> SqlStore:
        engine = open_engine(f"sqlite:///{self.data / 'phoi.sqlite'}")
        self.stack.callback(engine.dispose)
        return SqlStore(engine, clock)

    def examine(self) -> list[Finding]:
        self.write()
        return list(examine(self.settings_file, self.home, self.now, self.machine))

    def write(self) -> None:
        if self.settings_file.is_dir():
            return
        self.settings_file.write_text(
            f'data = "{self.data}"\n{self.top}\n'
            f"[dicom]\nport = {free_port()}\n{self.dicom}\n"
            f"[web]\nport = {free_port()}\n{self.web}\n"
            f'[inference]\nworkers = ["{self.worker}"]\n{self.inference}\n{self.sections}'
        )

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("installation")
    home = new_home(folder / "home")
    install(home, folder / "bundle", **QUICK, name="phoi-lung-nodule")
    return home


@pytest.fixture(scope="module")
def worker(home: Home) -> Iterator[str]:
    with running_worker(home) as running:
        yield running.addresses[0]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Checks both AE titles, as a hospital's PACS does; knows PHOI."""
    services = ("Echo", "Store", "Find", "Get", "Move", "FindWorklist")
    settings: dict[str, Any] = {
        **dict.fromkeys((f"DicomAlwaysAllow{service}" for service in services), False),
        "DicomCheckCalledAet": True,
        "DicomModalities": {"phoi": ["PHOI", "127.0.0.1", free_port()]},
    }
    with orthanc(tmp_path_factory.mktemp("pacs"), **settings) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, home: Home, worker: str, pacs: Orthanc) -> Iterator[Site]:
    (tmp_path / "data").mkdir(mode=0o700)
    with ExitStack() as stack:
        yield Site(tmp_path, home, worker, pacs, stack)


# --- what is broken --------------------------------------------------------------------------


def misspelt(site: Site) -> None:
    site.dicom += "\nae_titel = 'PHOI'"


def mapping_misspelt(site: Site) -> None:
    mapping = site.folder / "mapping.toml"
    mapping.write_text('[flags]\nAA = "N"')
    emr = site.stack.enter_context(mllp_peer(silent))
    site.add("hl7", f'host = "127.0.0.1"\nport = {emr}\nmapping = "{mapping}"')


def policy_is_missing(site: Site) -> None:
    site.add("priority", f'policy = "{site.folder / "nowhere.toml"}"')


def settings_are_a_folder(site: Site) -> None:
    site.settings_file.mkdir()


def password_for_all(site: Site) -> None:
    site.top = 'database_url = "postgresql+psycopg://phoi:secret@127.0.0.1:1/phoi"'
    site.write()
    site.settings_file.chmod(0o644)


def file_of_the_password_for_all(site: Site) -> None:
    """As in deploy/compose: the settings name a file, and hold no password."""
    site.top = 'database_url = "postgresql+psycopg://phoi@127.0.0.1:1/phoi?passfile=/run/pgpass"'
    site.write()
    site.settings_file.chmod(0o644)


def database_misspelt(site: Site) -> None:
    site.top = 'database_url = "postgresql+psycopg://phoi:secret@127.0.0.1:secret/phoi"'


def no_archive(site: Site) -> None:
    site.mode("pacs")


def no_emr(site: Site) -> None:
    site.mode("pacs+emr")
    site.archive(site.pacs.dicom_port)


def clock_of_2019(site: Site) -> None:
    site.ahead = datetime(2019, 1, 1, tzinfo=UTC) - datetime.now(UTC)


def clock_ahead(site: Site) -> None:
    site.fhir(200, R4)
    site.ahead = timedelta(minutes=10)


def emr_behind_a_proxy(site: Site) -> None:
    """Two Date headers, the second without a zone, as RFC 5322 knows it."""
    dated = {**FHIR_JSON, "Date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S -0000")}
    peer = site.stack.enter_context(fhir_peer(200, R4, headers=dated))
    site.add("fhir", f'base_url = "{peer.base_url}"')


def no_ntp(site: Site) -> None:
    program = site.folder / "timedatectl"
    program.write_text("#!/bin/sh\necho no\n")
    program.chmod(0o755)
    site.machine = replace(site.machine, timedatectl=str(program))


def old_cpu(site: Site) -> None:
    (site.folder / "cpuinfo").write_text("flags : fpu sse sse2 ssse3\n")
    site.machine = replace(site.machine, cpuinfo=site.folder / "cpuinfo")


def little_memory(site: Site) -> None:
    (site.folder / "meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 900000 kB\n")
    site.machine = replace(site.machine, meminfo=site.folder / "meminfo")


def full_disk(site: Site) -> None:
    site.dicom = "minimum_free_disk_mb = 1_000_000_000"


def mounted(site: Site, kind: str, options: str) -> None:
    lines = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {site.data} {kind} {options} 0 0\n"
    (site.folder / "mounts").write_text(lines)
    site.machine = replace(site.machine, mounts=site.folder / "mounts")


def on_nfs(site: Site) -> None:
    mounted(site, "nfs4", "rw,relatime")


def read_only(site: Site) -> None:
    mounted(site, "ext4", "ro,errors=remount-ro")


def data_is_a_file(site: Site) -> None:
    site.data.rmdir()
    site.data.write_text("")


def data_for_all(site: Site) -> None:
    site.data.chmod(0o755)


def token(site: Site, content: str | None, mode: int = 0o600) -> None:
    path = site.folder / "token"
    site.add("stow", f'bearer_token_file = "{path}"')
    if content is not None:
        path.write_text(content)
        path.chmod(mode)


def no_token(site: Site) -> None:
    token(site, None)


def empty_token(site: Site) -> None:
    token(site, "\n")


def token_for_all(site: Site) -> None:
    token(site, "a-token", 0o644)


def web_certificate(
    site: Site, host: str = "localhost", begins: timedelta = -DAY, ends: timedelta = 365 * DAY
) -> tuple[Path, Path]:
    files = Certificates(site.folder / "ca").issue("web", host, begins=begins, ends=ends)
    site.web = f'tls_certificate = "{files.certificate}"\ntls_key = "{files.key}"'
    return files.certificate, files.key


def certificate_expired(site: Site) -> None:
    web_certificate(site, begins=-10 * DAY, ends=-DAY)


def certificate_early(site: Site) -> None:
    web_certificate(site, begins=2 * DAY, ends=90 * DAY)


def certificate_soon(site: Site) -> None:
    web_certificate(site, ends=20 * DAY)


def certificate_without_names(site: Site) -> None:
    web_certificate(site, host="")


def certificate_gone(site: Site) -> None:
    certificate, _ = web_certificate(site)
    certificate.unlink()


def certificate_is_text(site: Site) -> None:
    certificate, _ = web_certificate(site)
    certificate.write_text("see the other folder")


def key_of_another(site: Site) -> None:
    _, key = web_certificate(site)
    shutil.copy(Certificates(site.folder / "other").issue("other").key, key)


def key_for_all(site: Site) -> None:
    _, key = web_certificate(site)
    key.chmod(0o644)


def key_with_password(site: Site) -> None:
    _, path = web_certificate(site)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))


def workers_of_another_authority(site: Site) -> None:
    ours = Certificates(site.folder / "ca").issue("edge", ends=365 * DAY)
    theirs = Certificates(site.folder / "other").issue("worker", ends=365 * DAY)
    site.inference = (
        f'tls_certificate = "{ours.certificate}"\ntls_key = "{ours.key}"\n'
        f'tls_ca = "{theirs.authority}"'
    )


def taken_port(site: Site) -> None:
    server = site.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    site.add("orders", f"port = {server.getsockname()[1]}")


def taken_port_for_voxels(site: Site) -> None:
    server = site.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    ours = Certificates(site.folder / "ca").issue("edge", ends=365 * DAY)
    site.inference = (
        f'source_listen = "127.0.0.1:{server.getsockname()[1]}"\n'
        f'tls_certificate = "{ours.certificate}"\ntls_key = "{ours.key}"\n'
        f'tls_ca = "{ours.authority}"'
    )


def foreign_address(site: Site) -> None:
    site.add("orders", 'host = "192.0.2.1"\nallowed_peers = ["192.0.2.2"]')


def deaf_to_the_pacs(site: Site) -> None:
    site.add("[archives]", 'ae_title = "PACS"\nhost = "no-such-host.invalid"\nport = 104')


def closed_to_commitment(site: Site) -> None:
    site.dicom += '\nallowed_calling_ae_titles = ["CT1"]'
    site.archive(site.pacs.dicom_port, more="commitment = true")


def emr_stopped(site: Site) -> None:
    site.add("hl7", f'host = "127.0.0.1"\nport = {free_port()}')


def silent_firewall(site: Site) -> None:
    """A queue of connections that is full: further ones wait for an answer that never comes."""
    server = site.stack.enter_context(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for _ in range(4):
        waiting = site.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(server.getsockname())
    site.add("hl7", f'host = "127.0.0.1"\nport = {server.getsockname()[1]}')


def serving(site: Site, host: str, ends: timedelta = 90 * DAY) -> Path:
    """A FHIR server with a certificate for a host; the authority's file."""
    files = Certificates(site.folder / "ca").issue("emr", host, begins=-10 * DAY, ends=ends)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    site.fhir(200, R4, context)
    return files.authority


def trusted(site: Site, authority: Path) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("SSL_CERT_FILE", str(authority))
    site.stack.callback(patch.undo)


def emr_expired(site: Site) -> None:
    trusted(site, serving(site, "localhost", ends=-DAY))


def emr_of_unknown_authority(site: Site) -> None:
    serving(site, "localhost")


def emr_of_another_name(site: Site) -> None:
    trusted(site, serving(site, "emr.example"))


def emr_about_to_expire(site: Site) -> None:
    trusted(site, serving(site, "localhost", ends=3 * DAY))


def emr_without_tls(site: Site) -> None:
    with fhir_peer(200, R4):
        pass
    peer = site.stack.enter_context(fhir_peer(200, R4))
    site.add("fhir", f'base_url = "{peer.base_url.replace("http:", "https:")}"')


def emr_is_a_login_page(site: Site) -> None:
    site.fhir(200, LOGIN_PAGE)


def emr_of_r5(site: Site) -> None:
    site.fhir(200, R5)


def mlflow_is_a_login_page(site: Site) -> None:
    peer = site.stack.enter_context(fhir_peer(200, LOGIN_PAGE))
    site.add("mlflow", f'tracking_uri = "{peer.base_url}"')


def mlflow_wants_a_token(site: Site) -> None:
    peer = site.stack.enter_context(fhir_peer(401, b""))
    site.add("mlflow", f'tracking_uri = "{peer.base_url}"')


def wrong_called_ae(site: Site) -> None:
    site.archive(site.pacs.dicom_port, ae_title="OTHER")


def wrong_calling_ae(site: Site) -> None:
    site.dicom += '\nae_title = "STRANGER"'
    site.archive(site.pacs.dicom_port)


def archive_is_a_web_server(site: Site) -> None:
    site.archive(site.pacs.http_port)


def archive_without_query(site: Site) -> None:
    scp = site.stack.enter_context(storescp(site.folder / "scp"))
    site.archive(scp.peer.port, "ARCHIVE", "query = true")


def archive_without_commitment(site: Site) -> None:
    scp = site.stack.enter_context(storescp(site.folder / "scp"))
    site.archive(scp.peer.port, "ARCHIVE", "commitment = true")


def archive_gets_pictures_only(site: Site) -> None:
    site.archive(site.pacs.dicom_port, more='objects = ["sc", "kos"]')


def no_worker(site: Site) -> None:
    site.worker = f"unix:{site.folder / 'worker.sock'}"


def worker_is_a_web_server(site: Site) -> None:
    peer = site.stack.enter_context(fhir_peer(200, LOGIN_PAGE))
    site.worker = f"127.0.0.1:{urlsplit(peer.base_url).port}"


def worker_without_the_model(site: Site) -> None:
    install(site.home, site.folder / "bundle", **QUICK, name="other-model")
    site.inference = 'model = "third-model"'


def own_home(site: Site) -> Path:
    """A home of this test's own; the folder of its model."""
    target = site.folder / "home"
    shutil.copytree(site.home.root, target)
    site.home = Home(target)
    (model,) = (
        m for m in BundleStore(site.home.models).models() if m.identity.name == "phoi-lung-nodule"
    )
    return model.folder


def no_model(site: Site) -> None:
    shutil.rmtree(own_home(site).parent)


def model_without_signature(site: Site) -> None:
    folder = own_home(site)
    shutil.copytree(folder, folder.with_name("2.0.0-0123456789ab"))
    (folder.with_name("2.0.0-0123456789ab") / "manifest.json").unlink()


def model_altered(site: Site) -> None:
    with (own_home(site) / "models" / "model.onnx").open("ab") as file:
        file.write(b"x")


def model_of_a_stranger(site: Site) -> None:
    own_home(site)
    stranger = create_signing_key(site.folder / "stranger.pem")
    TrustStore.of([stranger.public_key()]).save(site.home.trust)


def model_revoked(site: Site) -> None:
    own_home(site)
    trust = TrustStore.load(site.home.trust)
    for stored in BundleStore(site.home.models).models():
        trust = trust.revoking(stored.identity.bundle_hash)
    trust.save(site.home.trust)


def volumes_are_a_file(site: Site) -> None:
    (site.folder / "volumes").write_text("")
    site.inference = f'volumes = "{site.folder / "volumes"}"'


def no_watched_folder(site: Site) -> None:
    site.add("watched_folder", f'folder = "{site.folder / "cds"}"')


def no_folder_for_logs(site: Site) -> None:
    site.add("logs", f'file = "{site.folder / "absent" / "edge.log"}"')


def in_quarantine(site: Site) -> None:
    folder = site.data / "instances" / "quarantine"
    folder.mkdir(parents=True)
    (folder / "ab.dcm").write_bytes(b"")


def later_schema(site: Site) -> None:
    site.store(FakeClock())
    with sa.create_engine(f"sqlite:///{site.data / 'phoi.sqlite'}").begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))


def database_damaged(site: Site) -> None:
    (site.data / "phoi.sqlite").write_bytes(b"not a database" * 1000)


def pause_forgotten(site: Site) -> None:
    site.store(FakeClock(datetime.now(UTC) - 3 * DAY)).pause("destination pacs", "it")


def dead_letter(site: Site) -> None:
    store = site.store(FakeClock())
    store.enqueue_usage([Document(DocumentKind.USAGE, "1", b"{}")], "mlflow")
    claimed = store.claim_delivery("mlflow")
    assert claimed
    store.settle_delivery(claimed[0].id, Refused("no"), FakeClock().now())


def backup_old(site: Site) -> None:
    (site.data / "last-backup").write_text((datetime.now(UTC) - 9 * DAY).isoformat())


def data_of_another(site: Site) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "geteuid", lambda: site.data.stat().st_uid + 1)
    site.stack.callback(patch.undo)


def token_is_a_folder(site: Site) -> None:
    token(site, None)
    (site.folder / "token").mkdir()


def anyone_may_send(site: Site) -> None:
    site.dicom += '\nhost = "0.0.0.0"'


def archive_without_echo(site: Site) -> None:
    site.archive(site.stack.enter_context(query_scp()), "ARCHIVE")


def node_hangs(site: Site) -> None:
    """It holds the folder, and answers nowhere."""
    site.stack.enter_context(only_node(site.data))


def backup_yesterday(site: Site) -> None:
    (site.data / "last-backup").write_text((datetime.now(UTC) - DAY).isoformat())


def systemctl(site: Site, enabled: str, failed: str, shown: str = "") -> None:
    """A service manager that knows of Phoi."""
    program = site.folder / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$1" in is-failed) echo {failed};; show) printf "{shown}";;'
        f" *) echo {enabled};; esac\n"
    )
    program.chmod(0o755)
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    site.stack.callback(patch.undo)


def service_disabled(site: Site) -> None:
    systemctl(site, "disabled", "inactive")


def service_failed(site: Site) -> None:
    systemctl(site, "enabled", "failed")


SHUT_IN = r"ProtectSystem=strict\nReadWritePaths={}\nStateDirectory=phoi\nLogsDirectory=phoi\n"


def service_good(site: Site) -> None:
    site.add("logs", 'file = "/var/log/edge.log"')
    systemctl(site, "enabled", "active", SHUT_IN.format(f"-{site.folder} /var/log"))


def service_shut_in(site: Site) -> None:
    """The data lie on a disk that the units do not know of."""
    systemctl(site, "enabled", "active", SHUT_IN.format("/var/backups/phoi"))


Prepare = Callable[[Site], None]

# What each is to be found as; nothing else may be found.
BROKEN: dict[Prepare, set[str]] = {
    misspelt: {"settings.unusable"},
    settings_are_a_folder: {"settings.unusable"},
    mapping_misspelt: {"settings.unusable"},
    policy_is_missing: {"settings.unusable"},
    database_misspelt: {"settings.unusable"},
    file_of_the_password_for_all: {"database.unusable"},
    password_for_all: {"settings.open", "database.unusable"},
    no_archive: {"mode.no_archive"},
    no_emr: {"mode.no_emr"},
    clock_of_2019: {"clock.impossible"},
    clock_ahead: {"clock.skewed"},
    emr_behind_a_proxy: set(),
    no_ntp: {"clock.not_synchronised"},
    old_cpu: {"cpu.old"},
    little_memory: {"memory.short"},
    full_disk: {"disk.full"},
    on_nfs: {"disk.network"},
    read_only: {"disk.read_only"},
    data_is_a_file: {"data.not_writable"},
    data_for_all: {"data.open"},
    no_token: {"file.missing"},
    empty_token: {"file.empty"},
    token_for_all: {"file.open"},
    certificate_expired: {"certificate.expired"},
    certificate_early: {"certificate.early"},
    certificate_soon: {"certificate.soon"},
    certificate_without_names: {"certificate.no_names"},
    certificate_gone: {"certificate.missing"},
    certificate_is_text: {"certificate.not_pem"},
    key_of_another: {"certificate.key_mismatch"},
    key_for_all: {"certificate.key_open"},
    key_with_password: {"certificate.key_password"},
    workers_of_another_authority: {"certificate.other_authority", "certificate.soon"},
    taken_port: {"port.taken"},
    taken_port_for_voxels: {"port.taken", "certificate.soon"},
    foreign_address: {"port.unusable"},
    deaf_to_the_pacs: {"receiver.local", "link.unknown_host"},
    closed_to_commitment: {"receiver.not_allowed"},
    emr_stopped: {"link.closed"},
    silent_firewall: {"link.silent"},
    emr_expired: {"tls.expired"},
    emr_of_unknown_authority: {"tls.unknown_authority"},
    emr_of_another_name: {"tls.other_name"},
    emr_about_to_expire: {"tls.soon"},
    emr_without_tls: {"tls.none"},
    emr_is_a_login_page: {"emr.not_fhir"},
    emr_of_r5: {"link.refuses"},
    mlflow_is_a_login_page: {"mlflow.not_mlflow"},
    mlflow_wants_a_token: {"link.trouble"},
    wrong_called_ae: {"archive.called"},
    wrong_calling_ae: {"archive.calling"},
    archive_is_a_web_server: {"archive.not_dicom"},
    archive_without_query: {"query.refused"},
    archive_without_commitment: {"archive.no_commitment"},
    archive_gets_pictures_only: {"archive.no_report"},
    no_worker: {"worker.closed"},
    worker_is_a_web_server: {"worker.no_answer"},
    worker_without_the_model: {"worker.no_model", "model.none"},
    no_model: {"model.none"},
    model_without_signature: {"model.unsigned"},
    model_altered: {"model.altered"},
    model_of_a_stranger: {"model.unknown_key"},
    model_revoked: {"model.revoked"},
    volumes_are_a_file: {"volumes.unusable"},
    no_watched_folder: {"watched.unusable"},
    no_folder_for_logs: {"logs.unusable"},
    in_quarantine: {"quarantine.filled"},
    later_schema: {"database.later"},
    database_damaged: {"database.unusable"},
    pause_forgotten: {"pauses.forgotten"},
    dead_letter: {"deliveries.dead"},
    backup_old: {"backup.old"},
    backup_yesterday: set(),
    service_disabled: {"service.disabled"},
    service_failed: {"service.failed"},
    service_good: set(),
    service_shut_in: {"service.shut_out"},
    data_of_another: {"data.other_owner"},
    token_is_a_folder: {"file.unreadable"},
    anyone_may_send: {"receiver.anyone"},
    archive_without_echo: {"archive.rejects"},
    node_hangs: {"node.not_ready", "port.silent", "receiver.no_echo"},
}


@pytest.mark.parametrize("prepare", BROKEN, ids=lambda prepare: prepare.__name__)
def test_what_is_broken_is_found_with_its_remedy_and_nothing_else_is(
    site: Site, prepare: Prepare
) -> None:
    prepare(site)
    wrong = [finding for finding in site.examine() if finding.health is not Health.GOOD]
    assert {finding.code for finding in wrong} - (USUAL - BROKEN[prepare]) == BROKEN[prepare]
    for finding in wrong:
        remedies = {finding.told(language).remedy for language in Language}
        assert len(remedies - {""}) == 2, "one in each language"


def test_a_good_set_up_with_a_real_archive_and_worker_is_good(site: Site) -> None:
    site.mode("pacs+emr")
    site.archive(site.pacs.dicom_port, more="query = true\ncommitment = true")
    site.fhir(200, R4)
    findings = site.examine()
    assert {f.code for f in findings if f.health is not Health.GOOD} <= USUAL
    assert {"archive.good", "query.good", "emr.good", "worker.good", "model.good"} <= {
        f.code for f in findings
    }


def test_an_emr_of_the_hospitals_own_authority_is_good(site: Site) -> None:
    site.mode("pacs+emr")
    site.archive(site.pacs.dicom_port)
    authority = serving(site, "localhost")
    site.sections += f'tls_ca = "{authority}"\n'
    findings = site.examine()
    wrong = {f.code for f in findings if f.health is not Health.GOOD}
    assert wrong - USUAL == {"certificate.soon"}, "an authority of tests lives for a day"
    assert "emr.good" in {f.code for f in findings}


def test_a_node_that_runs_is_asked_itself(site: Site) -> None:
    site.write()
    settings = read_settings(site.settings_file)
    inference = FakeInference(values.MODEL, values.volume_analysis())
    node = EdgeNode(settings, site.home, inference)
    node.start()
    try:
        findings = {f.code for f in examine(site.settings_file, site.home, site.now)}
    finally:
        node.stop()
    assert {"node.runs", "receiver.good", "port.open", "database.good"} <= findings


def test_a_data_folder_that_the_node_made_is_for_its_owner_only(site: Site) -> None:
    site.data.rmdir()
    site.write()
    open_storage(read_settings(site.settings_file), FakeClock()).engine.dispose()
    assert "data.good" in {f.code for f in site.examine()}


def test_results_that_nobody_signs_are_told(site: Site) -> None:
    site.write()
    settings = read_settings(site.settings_file)
    since = site.now() - 20 * DAY
    records = Records(SchemaAge.CURRENT, "0004", unsigned=InState(7, since))
    probes = replace(_no_probes(), now=site.now, records=lambda: records)
    installation = Installation(settings, str(site.settings_file), site.home, probes)
    found = {finding.code: finding for finding in check_records(installation)}
    assert found["reviews.waiting"].told(Language.EN).seen == (
        "7 results wait for a signature, the oldest for 20 days"
    )


def _no_probes() -> Probes:
    names = (field.name for field in fields(Probes))
    return Probes(**dict.fromkeys(names, _unasked))


def _unasked(*_: object) -> Any:
    raise AssertionError("nobody was to ask")


def test_a_check_that_breaks_or_hangs_stops_none_of_the_others() -> None:
    never = threading.Event()

    def hangs() -> Finding:
        never.wait()
        return found("settings.good", "settings")

    def breaks() -> Finding:
        raise ValueError("NGUYỄN THỊ BÍ MẬT")

    checks = [Check("disk", hangs), Check("clock", breaks), Check("mode", lambda: AS_IT_SHOULD)]
    findings = list(run_checks(checks, limit_s=3.0))
    never.set()
    assert [f.code for f in findings] == ["check.no_end", "check.failed", "settings.good"]
    told = findings[1].told(Language.EN)
    assert "ValueError, test_doctor.py" in told.seen
    assert "NGUYỄN" not in told.seen


def test_what_a_check_finds_after_the_limit_is_told_or_that_it_did_not_end() -> None:
    inside, goes_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Finding]:
        yield found("clock.zone", "clock", zone="UTC")
        inside.set()
        goes_on.wait()
        yield found("clock.not_synchronised", "clock")

    before = set(threading.enumerate())
    findings = run_checks([Check("mode", lambda: AS_IT_SHOULD), Check("clock", slow)], 3.0)
    next(findings)
    assert inside.wait(30)
    assert next(findings).code == "clock.zone"
    goes_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert [finding.code for finding in findings] == ["check.no_end"]


def test_looking_keeps_no_node_from_starting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 30.0)
    site.data.mkdir(exist_ok=True)
    with (site.data / "edge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN))
        letting_go.start()
        with only_node(site.data):
            assert node_runs(site.data)
        letting_go.join()


@pytest.mark.parametrize("code", ["settings.open", "file.open", "certificate.key_open"])
def test_closing_a_file_to_others_leaves_it_open_to_phoi(code: str) -> None:
    for language in Language:
        remedy = found(code, "file", path="FILE").told(language).remedy
        assert "chmod 600" not in remedy
        for command_ in ("`chmod o= FILE`", "`chgrp phoi FILE`", "`chmod 640 FILE`"):
            assert command_ in remedy


AS_IT_SHOULD = found("settings.good", "settings")


def test_nothing_is_changed_by_looking(site: Site) -> None:
    site.data.rmdir()
    site.write()
    before = sorted(site.folder.rglob("*"))
    list(examine(site.settings_file, site.home, site.now))
    assert sorted(site.folder.rglob("*")) == before


def test_the_command_speaks_the_sites_language_and_json(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOI_HOME", str(site.home.root))
    emr_stopped(site)
    site.write()
    done = phoi(command, "--settings", site.settings_file)
    assert done.exit_code == 1
    assert "không có chương trình nào nghe cổng" in done.stdout
    done = phoi(command, "--settings", site.settings_file, "--lang", "en", "--quiet")
    assert "nothing listens on port" in done.stdout
    assert "answers" not in done.stdout
    done = phoi(command, "--settings", site.settings_file, "--json", "--lang", "en")
    rows = {row["code"]: row for row in json.loads(done.stdout)}
    assert rows["link.closed"]["health"] == "bad"
    assert rows["link.closed"]["remedy"].startswith("Start it there")
    assert done.exit_code == 1


# Prepared by the tests that are not in the table.
ELSEWHERE = frozenset({"check.no_end", "check.failed", "reviews.waiting"})
# Needs what a test cannot have: another kernel, disk or network. The rest of what
# can be said is prepared above.
NOT_PREPARED = {
    "cpu.few",
    "disk.inodes",
    "disk.short",
    "disk.slow",
    "link.no_route",
    "tls.failed",
    "volumes.small",
}


def test_nearly_all_that_can_be_said_is_prepared_here() -> None:
    prepared = set().union(*BROKEN.values()) | USUAL | ELSEWHERE
    can_be_said = {code for code, entry in CATALOGUE.items() if entry.health is not Health.GOOD}
    assert can_be_said - prepared == NOT_PREPARED
