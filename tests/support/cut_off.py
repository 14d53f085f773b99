"""A node whose peers, on real sockets, can be cut off for days of a clock that a test turns.

Each peer notes what arrives, and when. Nothing listens at its port while it is cut off.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from phoi_edge_node.courier import Courier
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.fhir.bundle import FhirEncoder
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.hl7v2.mllp import MllpDestination
from phoi_edge_node.hl7v2.oru_r01 import OruEncoder
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.mlflow.tracker import MlflowTracker
from phoi_edge_node.policies import RetryPolicy, lane_policy
from phoi_edge_node.ports import (
    Clock,
    Destination,
    Document,
    DocumentKind,
    ReportedCase,
    SendOutcome,
)
from phoi_edge_node.reporting import Reporter
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import (
    ArchiveSettings,
    DeliverySettings,
    EdgeSettings,
    FhirSettings,
    Hl7Settings,
    MlflowSettings,
    SiteSettings,
)
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.testing import FakeClock, FakeInference, FakeSeriesReader
from phoi_edge_node.workflow import Analyst, Outbox
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from support import values
from support.cases import CountingUids
from support.dicom_peers import VERIFICATION, report_file
from support.mllp_peers import acknowledging, mllp_peer

PACS, HL7, FHIR, MLFLOW = "pacs", "emr-hl7", "emr-fhir", "mlflow"
SITE = SiteSettings(name="bvdk")


class Listener(Protocol):
    """Something that listens until it is closed."""

    def close(self) -> None:
        """Stop; the port is free again."""


@dataclass
class Peer:
    """The other end of a lane.

    Attributes:
        arrived: identity and time of everything that was taken, in order, twice if taken twice.
    """

    clock: Clock
    listen: Callable[[int, Callable[[str], None]], Listener]
    port: int = field(default_factory=free_port)
    arrived: list[tuple[str, datetime]] = field(default_factory=list)
    _listener: Listener | None = None

    def up(self) -> None:
        self._listener = self.listen(self.port, self._take)

    def cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _take(self, identity: str) -> None:
        self.arrived.append((identity, self.clock.now()))

    @property
    def identities(self) -> list[str]:
        return [identity for identity, _ in self.arrived]


class _Closing:
    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close

    def close(self) -> None:
        self._close()


def listen_dicom(port: int, take: Callable[[str], None]) -> Listener:
    """A storage SCP, AE title ARCHIVE."""

    def store(event: evt.Event) -> int:
        take(str(event.request.AffectedSOPInstanceUID))  # type: ignore[union-attr]
        return 0

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(Comprehensive3DSRStorage, ExplicitVRLittleEndian)
    address = ("127.0.0.1", port)
    server = entity.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    return _Closing(server.shutdown)


def listen_mllp(port: int, take: Callable[[str], None]) -> Listener:
    """A receiver that acknowledges with AA; a connection that says nothing is only a check."""
    serving = ExitStack()
    serving.enter_context(mllp_peer(acknowledging("AA|{id}", taken=take), port))
    return _Closing(serving.close)


Answer = Callable[[str, dict[str, object]], dict[str, object]]


def _listen_http(port: int, answer: Answer) -> Listener:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps(answer(self.path, json.loads(content or b"{}"))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server asks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def close() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return _Closing(close)


def listen_fhir(port: int, take: Callable[[str], None]) -> Listener:
    """A FHIR R4 server that takes transactions."""

    def answer(path: str, body: dict[str, object]) -> dict[str, object]:
        if path.endswith("/metadata"):
            rest = {"mode": "server", "interaction": [{"code": "transaction"}]}
            return {
                "resourceType": "CapabilityStatement",
                "fhirVersion": "4.0.1",
                "format": ["json"],
                "rest": [rest],
            }
        take(body["identifier"]["value"])  # type: ignore[index]
        stored = [{"response": {"status": "201 Created"}} for _ in body["entry"]]  # type: ignore[attr-defined]
        return {"resourceType": "Bundle", "type": "transaction-response", "entry": stored}

    return _listen_http(port, answer)


def listen_mlflow(port: int, take: Callable[[str], None]) -> Listener:
    """As much of MLflow as usage reports need; a batch is known by its step."""
    run = {"info": {"run_id": "r1", "artifact_uri": "mlflow-artifacts:/1"}}

    def answer(path: str, body: dict[str, object]) -> dict[str, object]:
        if "get-by-name" in path:
            return {"experiment": {"experiment_id": "1"}}
        if path.endswith("runs/search"):
            return {"runs": [run]}
        if path.endswith("log-batch"):
            take(str(body["metrics"][0]["step"]))  # type: ignore[index]
        return {}

    return _listen_http(port, answer)


@dataclass
class Counted:
    """A destination that counts its contacts.

    Attributes:
        contacts: when it was talked to, checks as well as documents.
    """

    inner: Destination
    clock: Clock
    contacts: list[datetime] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def accepts(self) -> Collection[DocumentKind]:
        return self.inner.accepts

    def send(self, document: Document) -> SendOutcome:
        self.contacts.append(self.clock.now())
        return self.inner.send(document)

    def check(self) -> SendOutcome:
        self.contacts.append(self.clock.now())
        return self.inner.check()


class TwoObjects:
    """A SEG and an SR of each study, as far as an archive looks at them."""

    def __init__(self, uids: CountingUids) -> None:
        self._uids = uids

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        kinds = (DocumentKind.SEGMENTATION, DocumentKind.STRUCTURED_REPORT)
        uids = [self._uids.dicom_uid() for _ in kinds]
        return [Document(k, uid, report_file(uid)) for k, uid in zip(kinds, uids, strict=True)]


@dataclass(frozen=True)
class Outage:
    """What came of one, measured at the receivers; times are of the test's clock.

    Attributes:
        documents: queued for the lane in all.
        attempts: contacts in vain while the peer was away.
        noticed: from its return to the first document.
        drained: from its return to the last of those that had waited.
        duplicates: arrivals of what had arrived before.
        disorders: arrivals before something that was queued earlier.
        other_lanes: longest that a document waited in any lane that was not cut.
    """

    lane: str
    away: timedelta
    documents: int
    attempts: int
    noticed: timedelta
    drained: timedelta
    duplicates: int
    disorders: int
    other_lanes: timedelta

    HEADER = (
        "| lane | away | documents | contacts in vain | first after | last after "
        "| twice | out of order | longest wait elsewhere |\n" + "|---" * 9 + "|"
    )

    def __str__(self) -> str:
        times = [f"{t.total_seconds():.0f} s" for t in (self.noticed, self.drained)]
        hours = f"{self.away.total_seconds() / 3600:.0f} h"
        cells = [self.lane, hours, self.documents, self.attempts, *times]
        cells += [self.duplicates, self.disorders, f"{self.other_lanes.total_seconds():.0f} s"]
        return f"| {' | '.join(map(str, cells))} |"


class Node:
    """Analyst, outbox and one courier for each lane, on a store in a file; a test turns the clock.

    Args:
        random_share: of all couriers' jitter.
    """

    def __init__(self, folder: Path, random_share: Callable[[], float]) -> None:
        self.clock = FakeClock()
        self.peers = {
            PACS: Peer(self.clock, listen_dicom),
            HL7: Peer(self.clock, listen_mllp),
            FHIR: Peer(self.clock, listen_fhir),
            MLFLOW: Peer(self.clock, listen_mlflow),
        }
        self._resources = ExitStack()
        self._database = f"sqlite:///{folder / 'phoi.sqlite'}"
        self._random_share = random_share
        self._uids = CountingUids()
        self._studies = 0
        self.cut_lanes: tuple[str, ...] = ()
        self.destinations = {d.name: Counted(d, self.clock) for d in self._destinations()}
        self.start()

    def start(self) -> None:
        """A process on the folder, as it was left."""
        self._engine = open_engine(self._database)
        self.store = SqlStore(self._engine, self.clock)
        self.store.requeue_interrupted()
        settings = DeliverySettings()
        retry = RetryPolicy(EdgeSettings.model_fields["retry_delays_s"].default)
        self.couriers = {
            name: Courier(
                self.store,
                destination,
                self.clock,
                retry,
                lane_policy(settings, destination.accepts),
                self._random_share,
            )
            for name, destination in self.destinations.items()
        }
        outbox = Outbox(self._encoders(), {n: d.accepts for n, d in self.destinations.items()})
        self._analyst = Analyst(
            self.store,
            FakeSeriesReader(values.small_volume()),
            FakeInference(values.MODEL, values.volume_analysis(values.finding())),
            outbox,
            self.clock,
            self._uids,
            lambda: values.MODEL,
            retry,
            deadline_s=60,
            maximum_attempts=3,
        )
        self._reporter = Reporter(self.store, self.clock, self._uids, SITE.name, MLFLOW)

    def restart(self) -> None:
        """The process dies and comes back."""
        self._engine.dispose()
        self.start()

    def close(self) -> None:
        for peer in self.peers.values():
            peer.cut()
        self._engine.dispose()
        self._resources.close()

    def visit(self) -> None:
        """A study comes, is analysed, and what follows is queued; usage is reported."""
        self._studies += 1
        uid = f"1.2.3.{self._studies}"
        self.store.add_instance(replace(values.instance(1, uid), received_at=self.clock.now()))
        assert self.store.complete_study(uid, Priority.ROUTINE)
        assert self._analyst.run_next(), "analysis waits for no destination"
        self._reporter.report()

    def deliver(self) -> None:
        """Every lane sends what it can now."""
        for courier in self.couriers.values():
            while courier.send_next():
                pass

    def run_until(self, end: datetime, between_visits: timedelta) -> None:
        """Studies come regularly; lanes that are cut off probe when they mean to."""
        next_visit = self.clock.now()
        while self.clock.now() < end:
            if self.clock.now() >= next_visit:
                self.visit()
                next_visit += between_visits
                self.deliver()
            away = [c for c in self.couriers.values() if c.next_probe_at]
            for courier in away:
                courier.send_next()  # the others have nothing to send
            probes = [at for courier in away if (at := courier.next_probe_at)]
            self._turn_to(min([end, next_visit, *probes]))

    def drain(self, longest: timedelta) -> None:
        """Until nothing waits."""
        end = self.clock.now() + longest
        while self.store.deliveries(states=(DeliveryState.PENDING,)):
            self.deliver()
            assert self.clock.now() < end, "it did not drain"
            self._turn_to(self.clock.now() + timedelta(seconds=1))

    def _turn_to(self, moment: datetime) -> None:
        self.clock.advance(max(0.001, (moment - self.clock.now()).total_seconds()))

    def outage(self, lane: str, cut_at: datetime, back_at: datetime) -> Outage:
        """What came of one, once it is over."""
        peer = self.peers[lane]
        queued = self.queued(lane)
        arrived = Counter(peer.identities)
        waited = [at - back_at for _, at in peer.arrived if at >= back_at]
        order = {identity: n for n, identity in enumerate(queued)}
        places = [order[identity] for identity in peer.identities]
        return Outage(
            lane=lane,
            away=back_at - cut_at,
            documents=len(queued),
            attempts=sum(cut_at <= at < back_at for at in self.destinations[lane].contacts),
            noticed=min(waited),
            drained=max(waited),
            duplicates=sum(number - 1 for number in arrived.values()),
            disorders=sum(a > b for a, b in pairwise(places)),
            other_lanes=self._longest_wait(back_at),
        )

    def queued(self, lane: str) -> dict[str, datetime]:
        """What was ever queued for a lane, by the identity that its peer sees; and when."""
        queued = [d for d in self.store.deliveries() if d.destination == lane]
        if lane == MLFLOW:  # a report is known by its number
            return {str(number): d.created_at for number, d in enumerate(queued, start=1)}
        return {d.identity: d.created_at for d in queued}

    def _longest_wait(self, until: datetime) -> timedelta:
        """In the lanes that nobody cut."""
        waits = []
        for lane in self.peers.keys() - set(self.cut_lanes):
            queued = self.queued(lane)
            waits += [at - queued[name] for name, at in self.peers[lane].arrived if at < until]
        return max(waits)

    def cut(self, *lanes: str) -> None:
        self.cut_lanes = lanes
        for lane in lanes:
            self.peers[lane].cut()

    def back(self) -> None:
        for lane in self.cut_lanes:
            self.peers[lane].up()

    def _encoders(self) -> tuple[TwoObjects, OruEncoder, FhirEncoder]:
        hl7 = Hl7Settings(host="127.0.0.1", port=self.peers[HL7].port)
        fhir = FhirSettings(base_url=self._fhir_url)
        return (
            TwoObjects(self._uids),
            OruEncoder(hl7, SITE, self._uids, "0"),
            FhirEncoder(fhir, SITE, self._uids, "0"),
        )

    @property
    def _fhir_url(self) -> str:
        return f"http://127.0.0.1:{self.peers[FHIR].port}/fhir"

    def _destinations(self) -> tuple[Destination, ...]:
        def at(lane: str) -> int:
            return self.peers[lane].port

        archive = ArchiveSettings(ae_title="ARCHIVE", host="127.0.0.1", port=at(PACS), timeout_s=5)
        mlflow = MlflowSettings(tracking_uri=f"http://127.0.0.1:{at(MLFLOW)}")
        return (
            DicomArchive(archive, "PHOI"),
            MllpDestination(Hl7Settings(host="127.0.0.1", port=at(HL7), timeout_s=5)),
            FhirDestination(FhirSettings(base_url=self._fhir_url, timeout_s=5)),
            MlflowTracker(self._resources.enter_context(MlflowRest(mlflow)), MLFLOW),
        )


@contextmanager
def running_node(folder: Path, random_share: Callable[[], float]) -> Iterator[Node]:
    """A node with all its peers up."""
    node = Node(folder, random_share)
    try:
        for peer in node.peers.values():
            peer.up()
        yield node
    finally:
        node.close()
