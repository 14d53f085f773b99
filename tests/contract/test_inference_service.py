"""What the edge may expect of inference, whoever does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable
from phoi_edge_node.grpc.client import GrpcInference
from phoi_edge_node.grpc.volume_folder import VolumeFolder
from phoi_edge_node.ports import AnalysisRequest, InferenceService
from phoi_edge_node.result import Priority
from phoi_edge_node.testing import FakeInference
from phoi_inference.in_process import InProcessInference
from phoi_inference.server import Worker
from phoi_inference.settings import WorkerSettings
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import Finding, Side, VolumeAnalysis
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume
from support.chests import plain_chest
from support.inference import QUICK, install, new_home

NODULE_LPS_MM = (60.0, 10.0, 20.0)
CHEST = plain_chest([(NODULE_LPS_MM, 20.0)])
NOT_A_CHEST = Volume(np.zeros_like(CHEST.hu), CHEST.geometry)


@dataclass(frozen=True)
class Installation:
    home: Home
    model: ModelIdentity
    truth: VolumeAnalysis


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    home = new_home(tmp_path_factory.mktemp("home"))
    model = install(home, tmp_path_factory.mktemp("bundle"), **QUICK)
    service = InProcessInference(home.models, home.trust, threads=1)
    request = AnalysisRequest("truth", model, CHEST)
    truth = service.analyze(request, lambda step, fraction: None, lambda: False)
    return Installation(home, model, truth)


@pytest.fixture(scope="module", params=["fake", "in process", "grpc"])
def service(
    request: pytest.FixtureRequest, installation: Installation
) -> Iterator[InferenceService]:
    home = installation.home
    match request.param:
        case "fake":
            yield FakeInference(installation.model, installation.truth)
        case "in process":
            yield InProcessInference(home.models, home.trust, threads=1)
        case "grpc":
            settings = WorkerSettings(("127.0.0.1:0",), home.models, home.trust, home.volumes)
            worker = Worker(settings)
            client = GrpcInference(worker.addresses, VolumeFolder(home.volumes, 1 << 30))
            yield client
            client.close()
            worker.stop(0.0)


def ask(service: InferenceService, request: AnalysisRequest) -> VolumeAnalysis:
    return service.analyze(request, lambda step, fraction: None, lambda: False)


def test_it_offers_its_models(service: InferenceService, installation: Installation) -> None:
    assert list(service.models()) == [installation.model]


def test_a_model_it_offers_can_be_loaded(
    service: InferenceService, installation: Installation
) -> None:
    service.load(installation.model)

    assert installation.model in service.models()


@pytest.mark.parametrize("priority", [Priority.ROUTINE, Priority.STAT])
def test_it_finds_the_nodule_on_the_patients_own_side(
    service: InferenceService, installation: Installation, priority: Priority
) -> None:
    found = ask(service, AnalysisRequest(f"find-{priority}", installation.model, CHEST, priority))

    near = [f for f in found.findings if np.linalg.norm(_offset(f)) < 5]
    assert [f.side for f in near] == [Side.LEFT]
    assert found.coverage.complete
    assert found.timing_s["detect"] > 0


def test_every_way_gives_the_same_result(
    service: InferenceService, installation: Installation
) -> None:
    found = ask(service, AnalysisRequest("same", installation.model, CHEST))

    truth = installation.truth
    assert [_plain(f) for f in found.findings] == [_plain(f) for f in truth.findings]
    for mine, theirs in zip(found.findings, truth.findings, strict=True):
        np.testing.assert_array_equal(mine.mask.voxels, theirs.mask.voxels)
        assert mine.mask.voxels.dtype == np.bool_
    assert found.coverage == truth.coverage


def test_progress_names_steps_and_never_falls(
    service: InferenceService, installation: Installation
) -> None:
    seen: list[tuple[str, float]] = []

    def on_progress(step: str, fraction: float) -> None:
        seen.append((step, fraction))

    request = AnalysisRequest("progress", installation.model, CHEST)
    service.analyze(request, on_progress, lambda: False)

    fractions = [fraction for _, fraction in seen]
    assert seen
    assert fractions == sorted(fractions)
    assert {step for step, _ in seen} <= {"volume", "lungs", "detect", "measure"}
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_what_cannot_be_analysed_is_refused_by_reason(
    service: InferenceService, installation: Installation
) -> None:
    if isinstance(service, FakeInference):
        refusal = NotAnalysable(NotAnalysableReason.NOT_HOUNSFIELD, "all values are 0")
        service = FakeInference(installation.model, installation.truth, [refusal])

    with pytest.raises(NotAnalysable) as refused:
        ask(service, AnalysisRequest("zeros", installation.model, NOT_A_CHEST))

    assert refused.value.reason is NotAnalysableReason.NOT_HOUNSFIELD
    assert refused.value.detail


def test_an_analysis_that_is_no_longer_wanted_may_be_asked_for_again(
    service: InferenceService, installation: Installation
) -> None:
    request = AnalysisRequest("cancel", installation.model, CHEST)

    with pytest.raises(InferenceUnavailable):
        service.analyze(request, lambda step, fraction: None, lambda: True)

    assert ask(service, request).findings


@pytest.mark.parametrize("change", [{"bundle_hash": "0" * 64}, {"operating_point": "none such"}])
def test_a_model_that_it_lacks_cannot_be_asked_for(
    service: InferenceService, installation: Installation, change: dict[str, str]
) -> None:
    other = replace(installation.model, **change)

    with pytest.raises(InferenceFailed):
        ask(service, AnalysisRequest(f"lacks-{next(iter(change))}", other, CHEST))


def _offset(finding: Finding) -> tuple[float, ...]:
    return tuple(np.subtract(finding.center_lps_mm, NODULE_LPS_MM))


def _plain(finding: Finding) -> tuple[object, ...]:
    return (
        *(value for name, value in vars(finding).items() if name != "mask"),
        finding.mask.offset,
        finding.mask.voxels.shape,
    )
