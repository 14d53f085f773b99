"""Real `phoi worker` processes, asked over gRPC by the edge's client."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable
from phoi_edge_node.grpc.client import GrpcInference
from phoi_edge_node.grpc.sources import SourceServer
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_edge_node.ports import AnalysisRequest
from phoi_models.bundle_store import BundleStore
from phoi_models.findings import VolumeAnalysis
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb
from phoi_protos.phoi.inference.v1 import inference_pb2_grpc as pb_grpc
from phoi_protos.transport import TlsFiles, open_channel
from support.certificates import Certificates
from support.chests import plain_chest
from support.inference import QUICK, SLOW, WorkerProcess, install, new_home, running_worker

CHEST = plain_chest([((60.0, 10.0, 20.0), 20.0)])
SERVICE = "phoi.inference.v1.InferenceService"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Site:
    home: Home
    quick: ModelIdentity
    slow: ModelIdentity


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = new_home(tmp_path_factory.mktemp("home"))
    quick = install(home, tmp_path_factory.mktemp("quick"), **QUICK)
    slow = install(home, tmp_path_factory.mktemp("slow"), **SLOW)
    return Site(home, quick, slow)


@pytest.fixture(scope="module")
def worker(site: Site) -> Iterator[WorkerProcess]:
    with running_worker(site.home, "--queue", 1) as running:
        yield running


@contextmanager
def client_of(site: Site, *workers: WorkerProcess) -> Iterator[GrpcInference]:
    addresses = [address for worker in workers for address in worker.addresses]
    client = GrpcInference(addresses, VolumeFolder(site.home.volumes, 1 << 30))
    try:
        yield client
    finally:
        client.close()


def ask(
    client: GrpcInference,
    request: AnalysisRequest,
    on_progress: Callable[[str, float], None] = lambda step, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> VolumeAnalysis:
    return client.analyze(request, on_progress, cancelled)


class Step:
    """Progress that tells when a step is reached."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reached = threading.Event()

    def __call__(self, step: str, fraction: float) -> None:
        if step == self.step:
            self.reached.set()


def idle_soon(site: Site, worker: WorkerProcess, name: str) -> None:
    """The worker answers a quick request long before a slow one could have ended."""
    with client_of(site, worker) as client:
        begin = time.monotonic()
        assert ask(client, AnalysisRequest(name, site.quick, CHEST)).findings
        assert time.monotonic() - begin < 30


def test_models_lie_side_by_side(site: Site, worker: WorkerProcess) -> None:
    with client_of(site, worker) as client:
        assert set(client.models()) == {site.quick, site.slow}


def test_the_folder_is_empty_after_an_analysis(site: Site, worker: WorkerProcess) -> None:
    with client_of(site, worker) as client:
        found = ask(client, AnalysisRequest("once", site.quick, CHEST))

    assert found.findings[0].side == "left"
    assert found.timing_s.keys() == {"read", "volume", "lungs", "detect", "measure"}
    assert list(site.home.volumes.iterdir()) == []


def test_a_deadline_stops_the_work(site: Site, worker: WorkerProcess) -> None:
    request = AnalysisRequest("deadline", site.slow, CHEST, deadline_s=3.0)
    with (
        client_of(site, worker) as client,
        pytest.raises(InferenceUnavailable, match="DEADLINE_EXCEEDED"),
    ):
        ask(client, request)

    idle_soon(site, worker, "after-deadline")


def test_cancelling_stops_the_work(site: Site, worker: WorkerProcess) -> None:
    step = Step("detect")
    with client_of(site, worker) as client, pytest.raises(InferenceUnavailable):
        ask(client, AnalysisRequest("cancel", site.slow, CHEST), step, step.reached.is_set)

    idle_soon(site, worker, "after-cancel")


def test_a_running_request_is_joined_and_a_finished_one_replayed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOI_WORKER_METRICS_PORT", "19464")  # as /etc/phoi/worker-1.env does
    with (
        running_worker(site.home) as worker,
        client_of(site, worker) as client,
        ThreadPoolExecutor() as threads,
    ):
        request = AnalysisRequest("joined", site.quick, CHEST)
        together = [threads.submit(ask, client, request) for _ in range(3)]
        results = [future.result(PATIENCE_S) for future in together]
        results.append(ask(client, request))
        metrics = httpx.get("http://127.0.0.1:19464/metrics", timeout=60).text
        other = plain_chest([((-60.0, 10.0, 20.0), 20.0)])
        with pytest.raises(InferenceFailed, match="used for other input"):
            ask(client, AnalysisRequest("joined", site.quick, other))

    assert len({result.findings[0].center_lps_mm for result in results}) == 1
    assert 'phoi_worker_analyses_total{model="test-blobs",version="1.0.0"} 1.0' in metrics
    assert 'phoi_worker_requests_total{status="OK"} 4.0' in metrics
    assert 'phoi_worker_step_seconds_count{step="detect"} 1.0' in metrics


def test_a_full_queue_says_when_to_come_back(site: Site, worker: WorkerProcess) -> None:
    running, over = Step("detect"), threading.Event()
    with client_of(site, worker) as client, ThreadPoolExecutor() as threads:

        def occupy(name: str) -> None:
            # Again and again: its place may be taken for a moment by one of those who only ask.
            while not over.is_set():
                with pytest.raises(InferenceUnavailable):
                    ask(client, AnalysisRequest(name, site.slow, CHEST), running, over.is_set)

        occupied = [threads.submit(occupy, "runs")]
        assert running.reached.wait(PATIENCE_S)
        occupied.append(threads.submit(occupy, "waits"))
        full = _until_full(client, site)
        over.set()
        for future in occupied:
            future.result(PATIENCE_S)

    assert full.retry_after_s is not None
    assert full.retry_after_s >= 1


def _until_full(client: GrpcInference, site: Site) -> InferenceUnavailable:
    """The refusal of a third request, once the second one waits."""
    for attempt in range(100):
        request = AnalysisRequest(f"third-{attempt}", site.slow, CHEST, deadline_s=0.5)
        with pytest.raises(InferenceUnavailable) as refused:
            ask(client, request)
        if "RESOURCE_EXHAUSTED" in str(refused.value):
            return refused.value
        time.sleep(0.05)
    raise AssertionError("the queue was never full")


def test_a_worker_killed_in_the_middle_is_replaced_by_the_next(site: Site) -> None:
    with (
        running_worker(site.home) as first,
        running_worker(site.home) as second,
        client_of(site, first, second) as client,
    ):
        killed = threading.Event()

        def kill_in_the_middle(step: str, fraction: float) -> None:
            if step == "lungs" and not killed.is_set():
                first.process.kill()
                killed.set()

        found = ask(client, AnalysisRequest("killed", site.quick, CHEST), kill_in_the_middle)
        assert found.findings
        second.process.kill()
        second.process.wait()
        with pytest.raises(InferenceUnavailable):
            ask(client, AnalysisRequest("nobody", site.quick, CHEST))
        with pytest.raises(InferenceUnavailable):
            client.models()


def test_sigterm_lets_end_what_runs_and_sends_away_what_waits(site: Site) -> None:
    step = Step("detect")
    with (
        running_worker(site.home) as worker,
        client_of(site, worker) as client,
        ThreadPoolExecutor() as threads,
    ):
        runs = threads.submit(ask, client, AnalysisRequest("runs", site.quick, CHEST), step)
        assert step.reached.wait(PATIENCE_S)
        waits = threads.submit(ask, client, AnalysisRequest("waits", site.slow, CHEST))
        time.sleep(0.5)
        _terminate(worker)
        assert runs.result(PATIENCE_S).findings
        with pytest.raises(InferenceUnavailable):
            waits.result(PATIENCE_S)


def test_sigterm_abandons_what_takes_too_long(site: Site) -> None:
    step = Step("detect")
    with (
        running_worker(site.home) as worker,
        client_of(site, worker) as client,
        ThreadPoolExecutor() as threads,
    ):
        runs = threads.submit(ask, client, AnalysisRequest("long", site.slow, CHEST), step)
        assert step.reached.wait(PATIENCE_S)
        _terminate(worker)
        with pytest.raises(InferenceUnavailable):
            runs.result(PATIENCE_S)


def _terminate(worker: WorkerProcess) -> None:
    """SIGTERM; the worker has stopped within 10 s. Its exit may take longer on a busy machine."""
    begin = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    while worker.log[-1]["event"] != "worker stopped":
        assert time.monotonic() - begin < 10
        time.sleep(0.02)
    assert worker.process.wait(PATIENCE_S) == 0


def test_health_and_reflection(worker: WorkerProcess) -> None:
    with grpc.insecure_channel(worker.addresses[0]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="phoi.Other"), timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        described = DescriptorPool(database).FindServiceByName(SERVICE)
        assert "Analyze" in [method.name for method in described.methods]


def test_a_unix_socket(site: Site, tmp_path: Path) -> None:
    with (
        running_worker(site.home, "--listen", f"unix:{tmp_path}/worker.sock") as worker,
        client_of(site, worker) as client,
    ):
        assert ask(client, AnalysisRequest("unix", site.quick, CHEST)).findings


def test_a_worker_elsewhere_pulls_voxels_and_model_over_mutual_tls(
    site: Site, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    edge = certificates.issue("edge")
    stranger = Certificates(tmp_path / "stranger").issue("edge")
    there = new_home(tmp_path / "there")
    (there.trust).write_bytes(site.home.trust.read_bytes())
    # Spelled so, it is not taken for an address of this host, and both ends insist on TLS.
    elsewhere = "LOCALHOST:0"
    source = SourceServer(elsewhere, edge, BundleStore(site.home.models))
    options = ["--listen", elsewhere, "--source", source.address, *_options(certificates)]
    folder = VolumeFolder(site.home.volumes, 1 << 30)
    with running_worker(there, *options) as worker:
        client = GrpcInference(
            worker.addresses, folder, source=source, source_address=source.address, tls=edge
        )
        assert list(client.models()) == []

        pulled = ask(client, AnalysisRequest("pulled", site.quick, CHEST))
        assert list(client.models()) == [site.quick]
        assert (there.models / "test-blobs").is_dir()

        stranger_client = GrpcInference(
            worker.addresses, folder, source=source, source_address=source.address, tls=stranger
        )
        with pytest.raises(InferenceUnavailable):
            stranger_client.models()
        stranger_client.close()
        client.close()
    with open_channel(source.address, edge) as channel:
        _nothing_is_lent_any_more(channel)
    source.stop()

    assert pulled.findings[0].side == "left"


def _options(certificates: Certificates) -> list[object]:
    tls: TlsFiles = certificates.issue("worker")
    return [
        "--tls-certificate", tls.certificate, "--tls-key", tls.key, "--tls-ca", tls.authority,
    ]  # fmt: skip


def _nothing_is_lent_any_more(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(pb_grpc.VolumeSourceStub(channel).ReadVolume(pb.ReadVolumeRequest(token="guess")))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--listen", "0.0.0.0:0"], "TLS"),
        (["--listen", "nowhere"], "host:port"),
        (["--provider", "cuda"], "CPUExecutionProvider"),
        (["--tls-key", "key.pem"], "all three"),
    ],
)
def test_a_setting_that_cannot_work_is_one_plain_line(
    site: Site, options: list[str], advice: str
) -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("phoi"), "worker", *options],
        env={"PHOI_HOME": str(site.home.root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last.startswith("phoi: ")
    assert advice in last
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_plain_line(site: Site, worker: WorkerProcess) -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("phoi"), "worker", "--listen", worker.addresses[0]],
        env={"PHOI_HOME": str(site.home.root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 1
    assert "choose another --listen" in ended.stderr.splitlines()[-1]
