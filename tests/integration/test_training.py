"""`phoi train` and `phoi evaluate`, small, from a folder of volumes to a bundle that works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import SimpleITK
import torch
from mlflow import MlflowClient
from phoi_edge_node.stand_ins.program import free_port
from phoi_models.bundle import parse_parameters
from phoi_models.errors import PhoiError
from phoi_models.home import find_home
from phoi_models.networks import CenterHeatmapNet, ExportedNet
from phoi_models.phantom import chest_phantom
from phoi_models.signing import create_signing_key
from phoi_models.volume import Volume
from phoi_training.cli import command, evaluate_command
from phoi_training.dataset import NoTrainingData, load
from phoi_training.earlier_run import RESUMES
from phoi_training.export import export_onnx
from phoi_training.fit import Recipe, fit
from phoi_training.initial import UnusableWeights, initial_network
from phoi_training.patches import PatchBank, chests
from phoi_training.ranks import Ranks
from phoi_training.train import untuned
from support.commands import phoi

LICENCE = Path(__file__).parents[2] / "LICENSE"


def write_nifti(volume: Volume, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])  # type: ignore[no-untyped-call]
    image.SetOrigin(volume.geometry.origin_lps_mm)  # type: ignore[no-untyped-call]
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short phantoms in the layout of a folder of backgrounds."""
    folder = tmp_path_factory.mktemp("data")
    index = {}
    for number in range(2):
        rng = np.random.default_rng(number)
        volume = chest_phantom(rng, (4.0, 2.8, 2.8), cut_apex=True, cut_base=True)
        write_nifti(volume, folder / f"chest-{number}.nii.gz")
        index[f"chest-{number}"] = {"complete": True, "collection": "Made up, CC0"}
    (folder / "volumes.json").write_text(json.dumps(index))
    return folder


def test_further_marks_join_a_data_set(data: Path, tmp_path: Path) -> None:
    def row(z: float, *, nodule: bool | None) -> dict[str, object]:
        return {"centre_lps_mm": [0.0, 0.0, z], "diameter_mm": 8.0, "nodule": nodule}

    further = tmp_path / "marks.json"
    rows = [row(1.0, nodule=True), row(2.0, nodule=None), row(3.0, nodule=False)]
    further.write_text(json.dumps({"chest-1": {"complete": False, "marks": rows}}))
    plain, marked = load(data, marks=further)
    assert (plain.marks, plain.rejected, plain.complete) == ((), (), True)
    assert [(m.center_lps_mm[2], m.certain) for m in marked.marks] == [(1.0, True), (2.0, False)]
    assert [m.center_lps_mm[2] for m in marked.rejected] == [3.0]
    assert not marked.complete

    further.write_text(json.dumps({"chest-7": {}}))
    with pytest.raises(NoTrainingData, match="chest-7"):
        load(data, marks=further)
    with pytest.raises(NoTrainingData, match=r"volumes\.json"):
        load(tmp_path, marks=further)


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; MLflow is not named by the environment."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's SQL store
def test_train_then_evaluate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: Path
) -> None:
    bundle, work = tmp_path / "out" / "bundle", tmp_path / "work"
    monkeypatch.setenv("PHOI_HOME", str(tmp_path / "home"))
    create_signing_key(find_home().signing_key)
    trained = phoi(
        command,
        *(data, bundle, "--work", work, "--steps", "3", "--batch", "2", "--patch", "32"),
        *("--workers", "0", "--phantoms", "0", "--copies", "1", "--version", "0.0.7"),
    )
    assert trained.exit_code == 0, trained.output
    assert (bundle / "LICENSE").read_bytes() == LICENCE.read_bytes(), "also outside the repository"
    parameters = parse_parameters((bundle / "configs" / "metadata.json").read_bytes())
    assert parameters.version == "0.0.7"
    card = (bundle / "docs" / "README.md").read_text()
    assert "- Made up, CC0" in card
    assert set(re.findall(r"- `(chest-\d): [0-9a-f]{16}`", card)) == {"chest-0", "chest-1"}
    assert "not a cleared medical device" in card
    model = (bundle / "models" / "model.onnx").read_bytes()
    assert len(model) < 4_000_000
    assert b"site-packages" not in model
    assert str(LICENCE.parent).encode() not in model

    uri = f"sqlite:///{work / 'mlflow.sqlite'}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("phoi-lung-nodule")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (network,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert network.info.run_name == "network 1"
    (run,) = [run for run in runs if run is not network]
    assert len(run.data.params["data_sha256"]) == 64
    assert run.data.metrics["validation_nodules"] > 0
    lost = run.data.metrics["int8_fp32_cpm"] - run.data.metrics["int8_cpm"]
    assert (parameters.int8 is not None) == (lost <= 0.01)
    assert (bundle / "models" / "model.int8.onnx").is_file() == (lost <= 0.01)
    names = {artefact.path for artefact in client.list_artifacts(run.info.run_id)}
    assert {"bundle", "environment.json", "split.json", "validation.json"} <= names
    (version,) = client.search_model_versions("name = 'phoi-lung-nodule'")
    assert str(version.source).startswith(str(work / "artifacts"))
    assert (Path(str(version.source)) / "manifest.json").is_file()

    marks = tmp_path / "marks.json"
    options = ("--only", "chest-0", "--json", marks, "--tracking-uri", uri)
    evaluated = phoi(evaluate_command, bundle, data, *options)
    assert evaluated.exit_code == 0, evaluated.output
    assert "chest-0" in evaluated.output
    assert set(json.loads(marks.read_text())) == {"real", "planted"}
    assert list(current.iterdir()) == [], "nothing lands in the current folder"


def test_registering_needs_a_place_that_stays(data: Path, tmp_path: Path, current: Path) -> None:
    with pytest.raises(PhoiError, match="--work or --tracking-uri") as told:
        phoi(command, data, tmp_path / "bundle", "--licence", LICENCE)
    assert "\n" not in str(told.value)
    assert list(current.iterdir()) == []


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    bank = PatchBank(tmp_path, untuned("0.0.1"), 48, seed=0)
    seen: list[int] = []

    def run(steps: int) -> CenterHeatmapNet:
        torch.manual_seed(1)
        recipe = Recipe(steps=steps, minutes=60, batch=1, patch=32, workers=0)
        return fit(
            CenterHeatmapNet(),
            bank,
            chests([], 1, phantoms=1),
            untuned("0.0.1"),
            recipe,
            tmp_path / "checkpoint.pt",
            ranks=Ranks.of_environment(),
            on_metrics=lambda step, _: seen.append(step),
        )

    run(2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    network = run(20)
    assert seen == [20]
    assert not network.training


SAVING_ALWAYS = """
from phoi_models.command_line import main
from phoi_training import fit
fit._SAVE_EVERY_S = 0.0
main()
"""


def saved_step(work: Path) -> int:
    """Of the only network's checkpoint; 0 before there is one."""
    checkpoints = list(work.glob("network-1-*/checkpoint.pt"))
    return int(torch.load(checkpoints[0], weights_only=True)["step"]) if checkpoints else 0


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's SQL store
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_from_its_checkpoint(
    data: Path, tmp_path: Path, current: Path
) -> None:
    bundle, work = tmp_path / "bundle", tmp_path / "work"

    def arguments(steps: int) -> list[str | Path]:
        return [
            *(data, bundle, "--work", work, "--steps", str(steps), "--batch", "1"),
            *("--patch", "32", "--workers", "0", "--variants", "1", "--phantoms", "0"),
            *("--copies", "0", "--no-register", "--no-int8"),
        ]

    killed = subprocess.Popen(
        [sys.executable, "-c", SAVING_ALWAYS, "train", *map(str, arguments(100_000))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while saved_step(work) < 2:
            assert killed.poll() is None, "it ended by itself"
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.wait()
    step = saved_step(work)
    (checkpoint,) = work.glob("network-1-*/checkpoint.pt")
    checkpoint.with_suffix(".partial").write_bytes(b"half of a checkpoint")
    assert not bundle.exists()

    planted = {path: path.stat().st_mtime_ns for path in work.glob("patches-*/*.npz")}
    assert planted
    done = phoi(command, *arguments(step + 3))
    assert done.exit_code == 0, done.output
    assert saved_step(work) == step + 3
    assert parse_parameters((bundle / "configs" / "metadata.json").read_bytes())
    assert not list(work.rglob("*.partial"))
    assert {path: path.stat().st_mtime_ns for path in planted} == planted, "not planted anew"

    client = MlflowClient(f"sqlite:///{work / 'mlflow.sqlite'}")
    experiment = client.get_experiment_by_name("phoi-lung-nodule")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    later = [run for run in runs.values() if RESUMES in run.data.tags]
    assert sorted(run.info.status for run in runs.values()) == [*2 * ["FINISHED"], *2 * ["KILLED"]]
    for run in later:
        earlier = runs[run.data.tags[RESUMES]]
        assert (run.info.status, earlier.info.status) == ("FINISHED", "KILLED")
        assert ("mlflow.parentRunId" in run.data.tags) == (
            "mlflow.parentRunId" in earlier.data.tags
        )
    assert len(later) == 2, "the run, and that of its network"


def test_two_processes_train_one_network(data: Path, tmp_path: Path, current: Path) -> None:
    """As torchrun starts them on a machine with two GPUs; here on the CPU, over gloo."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    phoi_train = [
        *("--no-python", str(Path(sys.executable).with_name("phoi")), "train"),
        *(str(data), str(tmp_path / "bundle"), "--work", str(tmp_path / "work")),
        *("--steps", "2", "--batch", "1", "--patch", "32", "--workers", "0", "--phantoms", "1"),
        *("--copies", "0", "--licence", str(LICENCE), "--no-register", "--no-int8"),
    ]
    done = subprocess.run(
        [*torchrun, "--master-port", str(free_port()), *phoi_train],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x cpu" in done.stdout
    assert done.stdout.count("MLflow run:") == 1, "one process reports"
    assert (tmp_path / "bundle" / "models" / "model.onnx").is_file()
    (checkpoint,) = (tmp_path / "work").glob("network-1-*/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 2


def test_weights_survive_export_and_return(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CenterHeatmapNet()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    network.eval()
    path = tmp_path / "model.onnx"
    assert export_onnx(network, path, (32, 32, 32)) < 1e-4

    image = torch.rand(3, 1, 32, 32, 32)
    again = initial_network(path).eval()
    with torch.inference_mode():
        for wanted, got in zip(network(image), again(image), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
        heat = ExportedNet(network)(image)[0].numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got_heat,) = session.run(["heatmap"], {"image": image.numpy()})
    np.testing.assert_allclose(got_heat, heat, atol=1e-4)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"average": {"module.stem": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(UnusableWeights, match="another network"):
        initial_network(tmp_path / "other.pt")
    with pytest.raises(UnusableWeights, match="no weights"):
        initial_network(tmp_path / "absent.pt")
