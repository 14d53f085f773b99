"""Batches and bound memory, as on a GPU: here with the CPU's memory, since no test needs a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from phoi_inference.engine import Engine
from phoi_models import sessions
from phoi_models.bundle import DetectorParameters, Form, SecondLook, heatmap_outputs
from phoi_models.bundle_store import BundleStore
from phoi_models.detector_sessions import DetectorSessions, automatic_batch
from phoi_models.device_buffers import BoundSession
from phoi_models.findings import Finding, Region
from phoi_models.sessions import Provider, SessionSettings
from support.bundles import blob_network, parameters
from support.chests import plain_chest
from support.inference import QUICK, install, new_home

CPU = "CPUExecutionProvider"
OUTPUTS = heatmap_outputs((16, 20, 24), 4)
SETTINGS = SessionSettings(Provider.CPU, threads=1)
NODULES = [((75.0, 30.0, 20.0), 20.0), ((-70.0, 10.0, -60.0), 16.0)]


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(blob_network(), providers=[CPU])


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sessions.GPU_MEMORY, CPU, "cpu")


def patches(count: int, seed: int = 0) -> sessions.Float32:
    return np.random.default_rng(seed).random((count, 1, 16, 20, 24), np.float32)


def test_bound_memory_gives_what_a_plain_run_gives(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session, OUTPUTS, "cpu")
    given = []
    for seed, count in enumerate((3, 1, 2, 4, 3)):  # filled up, and once more than before
        got = bound.run(patches(count, seed))
        wanted = session.run(list(OUTPUTS), {"image": patches(count, seed)})
        assert [output.shape for output in got] == [(count, *one) for one in OUTPUTS.values()]
        given.append((got, wanted))
    for got, wanted in given:  # only now: what was given must not change with later runs
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bound_memory_takes_one_shape_of_patch(
    session: onnxruntime.InferenceSession, count: int
) -> None:
    bound = BoundSession(session, OUTPUTS, "cpu")
    bound.run(patches(2))
    with pytest.raises(ValueError, match="ran before"):
        bound.run(np.zeros((count, 1, 16, 16, 16), np.float32))
    assert len(bound.run(patches(2))[0]) == 2


def found(home_of: Path, settings: SessionSettings) -> tuple[tuple[Finding, ...], str]:
    home = new_home(home_of)
    identity = install(home, home_of / "bundle", **QUICK)
    engine = Engine(BundleStore(home.models), home.trust, settings)
    analysis = engine.analyze(
        identity, plain_chest(NODULES), Region.LUNGS, lambda _step, _done: None, lambda: False
    )
    return analysis.findings, analysis.runtime


def test_a_worker_finds_the_same_in_batches(tmp_path: Path, as_on_a_gpu: None) -> None:
    with pytest.MonkeyPatch.context() as on_a_cpu:
        on_a_cpu.delitem(sessions.GPU_MEMORY, CPU)
        plain, runtime = found(tmp_path / "plain", SETTINGS)
    batched, same = found(tmp_path / "batched", replace(SETTINGS, batch_size=3))
    assert runtime == same
    assert len(plain) == len(batched) >= len(NODULES)
    for one, other in zip(plain, batched, strict=True):
        assert one.center_lps_mm == pytest.approx(other.center_lps_mm, abs=0.1)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_on_a_gpu_patches_keep_one_shape_and_go_in_batches(as_on_a_gpu: None) -> None:
    second = SecondLook(patch_shape=(32, 32, 32), least_score=0.1, most=4, weight=0.5)
    how = DetectorParameters.model_validate(parameters(**QUICK, patch_multiple=16))
    how = how.model_copy(update={"second_look": second})
    network = {Form.FLOAT32: blob_network()}
    started = DetectorSessions.start(how, network, network, SETTINGS)
    assert isinstance(started.parameters, DetectorParameters)
    assert started.parameters.patch_multiple is None
    assert started.batch_size == 64, "8 patches of 96 voxels a side are 64 of 48"
    assert started.second_look is not None
    assert (
        DetectorSessions.start(how, network, network, replace(SETTINGS, batch_size=2)).batch_size
        == 2
    )


def test_on_a_cpu_patches_are_fitted_and_go_one_by_one() -> None:
    how = DetectorParameters.model_validate(parameters(**QUICK, patch_multiple=16))
    started = DetectorSessions.start(how, {Form.FLOAT32: blob_network()}, None, SETTINGS)
    assert (started.parameters, started.batch_size) == (how, 1)


def test_a_patch_larger_than_a_batch_runs_alone() -> None:
    assert automatic_batch((512, 512, 192), on_gpu=True) == 1
    assert automatic_batch((96, 96, 96), on_gpu=True) == 8
    assert automatic_batch((96, 96, 96), on_gpu=False) == 1
