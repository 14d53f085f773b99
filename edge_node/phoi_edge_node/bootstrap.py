"""Wires one edge node, top to bottom. The only module that knows every adapter."""

from __future__ import annotations

import fcntl
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

import structlog
import uvicorn
from phoi_models.bundle_store import BundleStore
from phoi_models.files import make_folder, write_atomically
from phoi_models.home import Home
from phoi_models.signing import TrustStore
from phoi_protos.transport import TlsFiles
from prometheus_client import CollectorRegistry, make_asgi_app
from sqlalchemy import Engine

from phoi_edge_node.champion import ChampionFollower, ChampionState
from phoi_edge_node.committing import Committing
from phoi_edge_node.counting import StudyCounter
from phoi_edge_node.courier import Courier
from phoi_edge_node.current_model import CurrentModel
from phoi_edge_node.damage import ImageCare
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.dicom.arrival import (
    DecodingOnArrival,
    ForgettingDecoded,
    arrival_decoder,
)
from phoi_edge_node.dicom.dicomweb import DicomwebSource
from phoi_edge_node.dicom.documents import DicomEncoder
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.query_retrieve import DicomSource
from phoi_edge_node.dicom.recovery import recover_files
from phoi_edge_node.dicom.retired_files import RetiredFiles
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.dicom.storage_scp import StorageScp
from phoi_edge_node.dicom.stored_images import StoredFiles
from phoi_edge_node.dicom.taking import InstanceTaker
from phoi_edge_node.dicom.tls import client_context
from phoi_edge_node.errors import EdgeError, InferenceUnavailable
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.grpc.client import GrpcInference
from phoi_edge_node.grpc.sources import SourceServer
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_edge_node.hl7v2.mapping import site_mapping
from phoi_edge_node.hl7v2.mllp import MllpDestination
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.links import Links
from phoi_edge_node.locks import only_holder
from phoi_edge_node.loops import LONGEST_STEP_S, Loop
from phoi_edge_node.metrics import EdgeCollector
from phoi_edge_node.mlflow.registry import MlflowRegistry
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.tracker import MlflowTracker
from phoi_edge_node.policies import ANALYSIS_GRACE, RetryPolicy, lane_policy, limits
from phoi_edge_node.ports import (
    Clock,
    Destination,
    DocumentEncoder,
    ImageSource,
    InferenceService,
    UidSource,
)
from phoi_edge_node.priority_policy import read_policy
from phoi_edge_node.recall import RecallDesk
from phoi_edge_node.receiving_state import ReceivingCollector, ReceivingState
from phoi_edge_node.reconciliation import Reconciler, ReconciliationDesk
from phoi_edge_node.reporting import Reporter
from phoi_edge_node.retention import Retention
from phoi_edge_node.review_desk import ReviewDesk
from phoi_edge_node.settings import (
    ArchiveSettings,
    EdgeSettings,
    InferenceSettings,
    MlflowSettings,
    SiteMode,
)
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import StudyStore
from phoi_edge_node.system import RandomUids, SystemClock
from phoi_edge_node.watchdog import Watchdog
from phoi_edge_node.ways_in import WaysIn
from phoi_edge_node.web.app import create_app, server_config
from phoi_edge_node.workflow import Analyst, Outbox

log = structlog.get_logger(__name__)

MLFLOW = "mlflow"  # the lane of usage reports
LINK_CHECK_S = 15.0
DECODE_S = 0.05
WATCHDOG_S = 60.0
VERIFY_S = 60.0  # from one study to the next
LONGEST_FETCH_S = 3 * 3600.0  # of one study: 500 MB at half a megabit a second
RECALL_LOOK_S = 1.0
RECONCILE_LOOK_S = 2.0
RETENTION_S = 20.0  # a study each time: 4,320 a day
STOP_WITHIN_S = 10.0


@dataclass(frozen=True)
class Storage:
    """What an edge node remembers, for the node itself and for the commands beside it."""

    files: InstanceFiles
    engine: Engine
    store: StudyStore
    reader: DicomSeriesReader


def open_storage(settings: EdgeSettings, clock: Clock) -> Storage:
    """Open the data folder and bring its schema up to date.

    Raises:
        EdgeError: the folder cannot be used.
    """
    root = settings.data / "instances"
    try:
        make_folder(settings.data, mode=0o700)  # patients' data
        files = InstanceFiles(root)
    except OSError as error:
        raise EdgeError(f"cannot use the data folder {settings.data}: {error.strerror}") from None
    issuer = settings.orders.default_issuer if settings.orders else ""
    engine = open_engine(settings.resolved_database_url, issuer)
    return Storage(files, engine, SqlStore(engine, clock), DicomSeriesReader(root))


@contextmanager
def opened_storage(settings: EdgeSettings, clock: Clock) -> Iterator[Storage]:
    """The same for as long as a command needs it; the node may run meanwhile."""
    storage = open_storage(settings, clock)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def make_encoders(
    settings: EdgeSettings, uids: UidSource, instance_root: Path
) -> tuple[DocumentEncoder, ...]:
    """Everything that can be said of a study at this site, in the order in which it is sent."""
    phoi_version = version("phoi")
    encoders: list[DocumentEncoder] = [DicomEncoder(instance_root, uids, phoi_version)]
    if settings.hl7 is not None:
        mapping = site_mapping(settings.hl7)
        encoders.append(OruEncoder(settings.hl7, settings.site, uids, phoi_version, mapping))
    if settings.fhir is not None:
        encoders.append(FhirEncoder(settings.fhir, settings.site, uids, phoi_version))
    return tuple(encoders)


def make_destinations(settings: EdgeSettings) -> tuple[Destination, ...]:
    """Where results of studies go in this site's mode: nowhere in shadow mode."""
    mode = settings.site.mode
    destinations: list[Destination] = []
    if mode in {SiteMode.PACS, SiteMode.PACS_EMR}:
        calling = settings.dicom.ae_title
        tls = client_context(settings.dicom)
        destinations += [DicomArchive(archive, calling, tls) for archive in settings.archives]
    if mode is SiteMode.PACS_EMR:
        if settings.hl7 is not None:
            destinations.append(MllpDestination(settings.hl7))
        if settings.fhir is not None:
            destinations.append(FhirDestination(settings.fhir))
    return tuple(destinations)


def make_sources(
    settings: EdgeSettings, taker: InstanceTaker | None = None
) -> tuple[ImageSource, ...]:
    """The archives that may be asked what they hold.

    Args:
        taker: takes what is fetched; None: they are only asked.
    """
    largest = settings.dicom.largest_instance_mb * 1_000_000
    tls = client_context(settings.dicom)

    def source(archive: ArchiveSettings) -> ImageSource:
        if archive.dicomweb and archive.retrieve in {"", "wado-rs"}:
            return DicomwebSource(archive, taker, largest)
        return DicomSource(archive, settings.dicom.ae_title, taker, tls)

    return tuple(source(archive) for archive in settings.archives if archive.query)


class Connections:
    """Everything that this site talks to: where results go, MLflow, and inference.

    Raises:
        SettingsError: an address cannot be used.
    """

    def __init__(
        self, settings: EdgeSettings, home: Home, inference: InferenceService | None = None
    ) -> None:
        self._resources = ExitStack()
        self.inference = inference or self._connect(settings.inference, home)
        self.mlflow = MlflowRest(settings.mlflow) if settings.mlflow else None
        destinations = list(make_destinations(settings))
        if self.mlflow is not None:
            self._resources.callback(self.mlflow.close)
            destinations.append(MlflowTracker(self.mlflow, MLFLOW))
        self.destinations: tuple[Destination, ...] = tuple(destinations)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _connect(self, settings: InferenceSettings, home: Home) -> InferenceService:
        tls = None
        if settings.tls_certificate and settings.tls_key and settings.tls_ca:
            tls = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_ca)
        source = None
        if settings.source_listen:
            source = SourceServer(settings.source_listen, tls, BundleStore(home.models))
            self._resources.callback(source.stop)
        inference = GrpcInference(
            settings.workers,
            VolumeFolder(settings.volumes or home.volumes, settings.volumes_budget_mb * 1_000_000),
            source=source,
            source_address=settings.source_address,
            tls=tls,
        )
        self._resources.callback(inference.close)
        return inference


def only_node(data: Path) -> AbstractContextManager[None]:
    """Hold the data folder, so that no second node works on it.

    Raises:
        EdgeError: another node holds it, or it cannot be used; on entering.
    """
    return only_holder(
        data / "edge.lock",
        f"an edge node runs on {data} already: stop it first",
        f"cannot use the data folder {data}",
    )


def node_runs(data: Path) -> bool:
    """Does an edge node hold this data folder now?

    Raises:
        EdgeError: the folder cannot be used.
    """
    try:
        with (data / "edge.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise EdgeError(f"cannot use the data folder {data}: {error.strerror}") from None
    return False


def secret_key(data: Path) -> bytes:
    """This installation's key for sessions; made at the first start, readable by its owner only."""
    path = data / "session.key"
    if not path.exists():
        write_atomically(path, secrets.token_bytes(32), mode=0o600)
    return path.read_bytes()


class EdgeNode:
    """One edge node in one process.

    Args:
        settings: what it is told.
        home: keys and models of this installation, shared with the workers of this host.
        inference: where models run; by default over gRPC, as the settings say.
    """

    def __init__(
        self, settings: EdgeSettings, home: Home, inference: InferenceService | None = None
    ) -> None:
        self._settings = settings
        self._clock: Clock = SystemClock()
        self._uids: UidSource = RandomUids()
        self._priorities = read_policy(settings.priority.policy)
        self._resources = ExitStack()
        self._resources.enter_context(only_node(settings.data))
        self.storage = open_storage(settings, self._clock)
        self._resources.callback(self.storage.engine.dispose)
        self._decode_on_arrival()
        self._connections = self._resources.enter_context(Connections(settings, home, inference))
        self._inference = self._connections.inference
        self._retry = RetryPolicy(settings.retry_delays_s)
        self.model = CurrentModel(self.storage.store, self._inference, settings.inference.model)
        self._make_outbox()
        self._loops: list[Loop] = []
        self._eager: list[Loop] = []  # those that have work from what was queued
        self._recover()
        self._make_ways_in()
        self._follow_mlflow(home)
        self._sources = make_sources(settings, self._taker)
        self._counter = StudyCounter(
            self.storage.store, self._sources, self._intake, self._clock, settings.completeness
        )
        self._watch()
        self._web = self._make_web()
        self._make_loops()

    @property
    def web_port(self) -> int:
        """The port of the page, also where the settings say 0; only while started."""
        return int(self._web.servers[0].sockets[0].getsockname()[1])

    def start(self) -> None:
        """Receive, analyse, deliver, serve; returns once the ports are open.

        Raises:
            EdgeError: a port cannot be used.
        """
        self.scp.start()
        self._resources.callback(self.scp.stop)
        self.ways_in.start()
        self._resources.callback(self.ways_in.stop)
        self._start_web()
        for loop in self._loops:
            loop.start()
        log.info("edge node started", site=self._settings.site.name, mode=self._settings.site.mode)

    def stop(self) -> None:
        """Stop within about ten seconds; what is under way is taken up at the next start."""
        for loop in self._loops:
            loop.ask_to_stop()
        self._stopping.set()
        self._web.should_exit = True
        give_up_at = self._clock.monotonic() + STOP_WITHIN_S / 2
        self.scp.stop()  # its senders hear at once that they must try again
        self.ways_in.stop()
        for loop in self._loops:  # all of them together, however many there are
            loop.join(max(0.0, give_up_at - self._clock.monotonic()))
        self._resources.close()
        log.info("edge node stopped")

    # --- parts -------------------------------------------------------------------------------

    def _make_outbox(self) -> None:
        """Where documents go, and what makes them."""
        settings = self._settings
        self._couriers = [
            Courier(
                self.storage.store,
                destination,
                self._clock,
                self._retry,
                lane_policy(settings.delivery, destination.accepts),
            )
            for destination in self._connections.destinations
        ]
        self._outbox = Outbox(
            make_encoders(settings, self._uids, self.storage.files.root),
            {c.destination.name: c.destination.accepts for c in self._couriers},
        )

    def _make_ways_in(self) -> None:
        """All that images and orders come by, and who is told of them."""
        settings = self._settings
        self._intake = StudyIntake(
            self.storage.store,
            self._clock,
            settings.dicom.quiet_time_s,
            self._nudge,
            settings.completeness,
            counted=any(archive.query for archive in settings.archives),
        )
        self._taker = InstanceTaker(
            settings.dicom,
            self.storage.files,
            DecodingOnArrival(self._intake, self._decoder),
            self._clock,
        )
        self._committing = Committing(
            settings,
            self.storage.store,
            self.storage.files,
            self._clock,
            self._uids,
            self._retry,
        )
        self.scp = StorageScp(
            settings.dicom, self._taker, self._clock, commitment=self._committing.service
        )
        self._receiving = ReceivingState(
            self.storage.files.free_bytes,
            self.storage.files.quarantined,
            settings.dicom.minimum_free_disk_mb,
        )
        self.ways_in = WaysIn(
            settings,
            self._taker,
            self.storage.store,
            self._clock,
            self._uids,
            on_order=self._nudge,
            stopping=lambda: self._stopping.is_set(),
        )

    def _watch(self) -> None:
        """Over links, images on disk, and whatever waits."""
        settings = self._settings
        self._links = Links(self._couriers, self._inference, self._clock, self._counter.heard)
        self._care = ImageCare(
            self.storage.store, StoredFiles(self.storage.files), self._intake.reopened
        )
        self.watchdog = Watchdog(
            self.storage.store,
            self._clock,
            limits(settings),
            self._intake.look_again,
            lambda: (*self._loops, self.scp),
        )

    def _recover(self) -> None:
        """Take up what a crash left: half-written files, unindexed instances, work under way."""
        store = self.storage.store
        images = ForgettingDecoded(
            RetiredFiles(self.storage.files, store.indexed, self._clock), self._decoder
        )
        settings = self._settings
        self._retention = Retention(
            store, images, self._clock, settings.retention, settings.dicom.scarce_disk_bytes
        )
        found = recover_files(self.storage.files, store, images.retire)
        requeued = store.requeue_interrupted()
        log.info(
            "recovered",
            half_written=found.half_written,
            indexed=found.indexed,
            requeued=requeued,
        )

    def _decode_on_arrival(self) -> None:
        files = self.storage.files
        self._decoder = arrival_decoder(
            self._settings.data / "decoded", files, self._settings.dicom
        )
        self._resources.callback(self._decoder.stop)
        reader = DicomSeriesReader(files.root, self._decoder.files_hu)
        self.storage = replace(self.storage, reader=reader)

    def _follow_mlflow(self, home: Home) -> None:
        self._reporter: Reporter | None = None
        self._champion: ChampionFollower | None = None
        self._champion_refused = ""
        rest = self._connections.mlflow
        if rest is None:
            return
        self._reporter = Reporter(
            self.storage.store, self._clock, self._uids, self._settings.site.name, MLFLOW
        )
        self._champion = ChampionFollower(
            MlflowRegistry(rest),
            BundleStore(home.models),
            lambda: TrustStore.load(home.trust),
            self._inference,
            self._settings.data / "incoming-models",
        )

    def _make_web(self) -> uvicorn.Server:
        settings = self._settings
        self.desk = ReviewDesk(
            self.storage.store,
            self.storage.reader,
            self._outbox,
            self._links,
            self._clock,
            self._uids,
            [settings.inference.model],
            [courier.destination.name for courier in self._couriers],
            self.watchdog,
            lambda: self._champion_refused,
            self._receiving.view,
            self._care.look_after,
            self._committing.refused_by,
        )
        app = create_app(
            self.desk, settings.web, settings.site, self._clock, secret_key(settings.data)
        )
        registry = CollectorRegistry()
        registry.register(
            EdgeCollector(self.storage.store, self._links, self._clock, self.watchdog)
        )
        registry.register(ReceivingCollector(self._receiving, self.storage.store.commitment_counts))
        app.mount("/metrics", make_asgi_app(registry))
        self.ways_in.mount_on(app)
        return uvicorn.Server(server_config(app, settings.web))

    def _start_web(self) -> None:
        thread = threading.Thread(target=self._web.run, name="web", daemon=True)
        thread.start()
        while not self._web.started:
            thread.join(0.05)
            if not thread.is_alive():
                web = self._settings.web
                raise EdgeError(
                    f"cannot serve the page on {web.host}:{web.port}. "
                    "Stop what uses the port, or set web.port to another one."
                )

    def _make_loops(self) -> None:
        self._stopping = threading.Event()
        self._eager = [
            Loop("completeness", self._intake.complete_quiet_studies, 0.5),
            *self._analysing_loops(),
            *(
                Loop(f"to-{courier.destination.name}", courier.step, 1.0)
                for courier in self._couriers
            ),
        ]
        self._loops = [
            *self._eager,
            *self._counting_loops(),
            *self._committing.loops,
            *self._reconciling_loops(),
            self._recalling_loop(),
            Loop("retention", self._retention.run, RETENTION_S),
            Loop("decode", self._decoder.begin_next, DECODE_S),
            Loop("links", self._links.check_inference, LINK_CHECK_S),
            Loop("watchdog", self.watchdog.look, WATCHDOG_S),
            Loop("verify-images", self._care.verify_next, VERIFY_S),
            *self.ways_in.loops,
            *self._mlflow_loops(),
        ]

    def _analysing_loops(self) -> Sequence[Loop]:
        analyst, deadline_s = self._analyst(), self._settings.inference.deadline_s
        longest_s = max(LONGEST_STEP_S, deadline_s + 2 * ANALYSIS_GRACE.total_seconds())
        return [
            Loop(f"analyst-{number}", lambda: self._analyse(analyst), 1.0, longest_s)
            for number, _ in enumerate(self._settings.inference.workers)
        ]

    def _counting_loops(self) -> Sequence[Loop]:
        """Apart from one another, so that a slow archive holds up only what needs it."""
        if not self._sources:
            return []
        return [
            Loop("settle", self._counter.settle, 0.5),
            Loop("ask-archives", self._counter.ask_next, 0.5),
            Loop("fetch-images", self._counter.fetch_next, 0.5, LONGEST_FETCH_S),
        ]

    def _reconciling_loops(self) -> Sequence[Loop]:
        if not self._sources:
            return []

        def between_studies() -> bool:
            loop.goes_on()  # a night of fetches may take hours; one study may not
            return self._stopping.is_set()

        desk = ReconciliationDesk(
            self.storage.store,
            Reconciler(self.storage.store, self._sources, between_studies),
            self._settings.reconciliation,
            self._clock,
        )
        loop = Loop("reconcile", desk.run_next, RECONCILE_LOOK_S, LONGEST_FETCH_S)
        return [loop]

    def _recalling_loop(self) -> Loop:
        desk = RecallDesk(
            self.storage.store, self._outbox, self._inference, self.model, self._clock
        )

        def step() -> bool:
            did = desk.run_next()
            if did:
                self._nudge()
            return did

        return Loop("recall", step, RECALL_LOOK_S)

    def _mlflow_loops(self) -> Sequence[Loop]:
        settings: MlflowSettings | None = self._settings.mlflow
        if settings is None or self._reporter is None:
            return []
        return [
            Loop("usage", self._report, settings.report_every_s),
            Loop("champion", self.follow_champion, settings.follow_champion_every_s),
        ]

    def _analyst(self) -> Analyst:
        settings = self._settings.inference
        return Analyst(
            self.storage.store,
            self.storage.reader,
            self._inference,
            self._outbox,
            self._clock,
            self._uids,
            self.model.get,
            self._retry,
            deadline_s=settings.deadline_s,
            maximum_attempts=settings.maximum_attempts,
            look_after=self._care.look_after,
            priorities=self._priorities,
        )

    # --- steps -------------------------------------------------------------------------------

    def _analyse(self, analyst: Analyst) -> bool:
        ran = analyst.run_next(self._stopping.is_set)
        if ran:
            self._nudge()
        return ran

    def _report(self) -> bool:
        if self._reporter is not None and self._reporter.report():
            self._nudge()
        return False

    def follow_champion(self) -> bool:
        """Look at the registry once; a new champion becomes the model of new analyses."""
        if self._champion is None:
            return False
        try:
            check = self._champion.check(self.model.get())
        except InferenceUnavailable:
            return False  # no model was ever chosen here: nothing to compare with
        if check.state is ChampionState.CHANGED:
            self.model.set(check.model)
        if check.state is not ChampionState.POSTPONED:
            self._champion_refused = check.detail if check.state is ChampionState.REFUSED else ""
        if check.state is not ChampionState.UNCHANGED:
            log.info("champion", state=check.state, detail=check.detail)
        return False

    def _nudge(self) -> None:
        """Something was queued. Whatever looks around by the clock is none the wiser for it."""
        for loop in self._eager:
            loop.nudge()
