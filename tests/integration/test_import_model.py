"""Other people's models: a MONAI RetinaNet of random weights and a plain ONNX become bundles."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from phoi_models.boxes import InputGrid, to_input_grid
from phoi_models.bundle import AnchorBoxParameters, Bundle, OperatingPoint
from phoi_models.canonical import to_canonical
from phoi_models.command_line import main
from phoi_models.detector import detect
from phoi_models.findings import LungCoverage, Region
from phoi_models.home import Home
from phoi_models.lungs import LungMask
from phoi_models.phantom import flipped
from phoi_models.pipeline import analyze_volume
from phoi_models.reading.dicom_series import read_volume
from phoi_models.sessions import OnnxHeads, Provider, SessionSettings
from phoi_models.signing import TrustStore, create_signing_key, load_signing_key
from phoi_models.volume import Volume
from phoi_training.import_model import agreement, plain_onnx
from phoi_training.import_model.configuration import Configuration
from phoi_training.import_model.errors import CannotImport, OutputsDiffer
from phoi_training.import_model.monai_parts import RetinaNetDetector
from phoi_training.import_model.retinanet import (
    build_detector,
    load_weights,
    parameters_of,
    read_preprocessing,
)
from support.bundles import blob_network
from support.bundles import parameters as blob_parameters
from support.chests import plain_chest
from support.monai_bundles import configuration, write_monai_bundle
from support.real_ct import lidc_idri_0001

PATCH = (32, 32, 16)
POINTS = {"default": OperatingPoint(probability=0.5)}
CPU = SessionSettings(Provider.CPU)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    key = create_signing_key(home.signing_key)
    TrustStore.of([key.public_key()]).save(home.trust)
    return home


@pytest.fixture
def phoi(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run ``phoi models import``; its exit status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setenv("PHOI_HOME", str(home.root))
        monkeypatch.setattr(sys, "argv", ["phoi", "models", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out + printed.err

    return run


@dataclass(frozen=True, eq=False)
class Exported:
    """What was made of a MONAI bundle, its own detector, and the CT on which both are compared."""

    bundle: Path
    detector: RetinaNetDetector
    parameters: AnchorBoxParameters
    volume: Volume
    run: agreement.Run


@pytest.fixture(scope="module")
def real() -> Volume:
    return read_volume(list(lidc_idri_0001().glob("*.dcm")))[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_monai_bundle(tmp_path_factory.mktemp("monai") / "b", configuration(patch=PATCH))


@pytest.fixture(scope="module")
def exported(
    source: Path, home: Home, real: Volume, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """Imported by the command line, compared on real CT."""
    bundle = tmp_path_factory.mktemp("import") / "bundle"
    arguments = ["phoi", "models", "import", str(source), str(bundle), "--threshold", "0.4"]
    arguments += ["--threshold", "sensitive=0.2", "--check-on", str(lidc_idri_0001())]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PHOI_HOME", str(home.root))
        patched.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    content = Configuration.of_bundle(source)
    detector = build_detector(content)
    load_weights(detector.network, source)
    parameters = Bundle.load(bundle, TrustStore.load(home.trust)).parameters
    assert isinstance(parameters, AnchorBoxParameters)
    run = agreement.in_onnx_runtime(bundle / "models" / "model.onnx", parameters)
    volume = agreement.small_part(real, parameters)
    return Exported(bundle, detector, parameters, volume, run)


def test_the_bundle_is_signed_licensed_and_says_that_nothing_was_validated(
    source: Path, exported: Exported, home: Home
) -> None:
    bundle = Bundle.load(exported.bundle, TrustStore.load(home.trust))

    assert (bundle.manifest.name, bundle.manifest.version) == ("lung-nodule-ct-detection", "0.6.9")
    points = {name: p.probability for name, p in bundle.parameters.operating_points.items()}
    assert points == {"default": 0.4, "sensitive": 0.2}
    licence = (source / "LICENSE").read_text()
    assert (exported.bundle / "LICENSE").read_text() == licence
    card = (exported.bundle / "docs" / "README.md").read_text()
    assert "**Nothing was validated here**" in card
    assert "not a cleared medical device" in card
    assert "boxes of MONAI in torch and of Phoi in ONNX Runtime are the same on a CT" in card
    assert b"site-packages" not in (exported.bundle / "models" / "model.onnx").read_bytes()


def test_what_surrounds_the_network_is_as_the_bundle_says(exported: Exported) -> None:
    given = exported.parameters

    assert (given.axes, given.input_spacing_mm) == ("RAS", (0.703125, 0.703125, 1.25))
    assert (given.window_hu, given.patch_shape, given.overlap) == ((-1024.0, 300.0), PATCH, 0.25)
    assert [level.stride for level in given.levels] == [(4, 4, 2), (8, 8, 4), (16, 16, 8)]
    assert list(given.levels[1].anchors) == [(12, 16, 8), (16, 12, 10), (20, 20, 12)]
    assert (given.score_threshold, given.nms_iou) == (0.02, 0.22)
    assert (given.top_k_per_level, given.most_boxes) == (1000, 300)


@pytest.mark.parametrize("axes", [(), (0, 2), (1,)], ids=str)
def test_it_finds_what_monai_finds_whichever_way_the_ct_lies(
    exported: Exported, axes: tuple[int, ...]
) -> None:
    volume = flipped(exported.volume, *axes)
    coarser = replace(volume.geometry, spacing_mm=(2.5, 0.62, 0.66))  # resampled along all axes

    agreed = agreement.compare(
        exported.detector, exported.parameters, Volume(volume.hu, coarser), exported.run
    )

    assert agreed.boxes >= 20
    assert agreed.score_difference < 1e-4
    assert agreed.corner_difference_mm < 1e-2


def test_a_network_that_sees_hardly_anything_is_compared_too(exported: Exported) -> None:
    def quieter(patches: agreement.Floats) -> tuple[agreement.Floats, ...]:
        *logits, a, b, c = exported.run(patches)
        return (*(level - np.float32(9) for level in logits), a, b, c)

    bias = exported.detector.network.classification_head.cls_logits.bias
    with torch.no_grad():
        bias -= 9
        try:
            agreed = agreement.compare(
                exported.detector, exported.parameters, exported.volume, quieter
            )
        finally:
            bias += 9

    assert agreed.boxes >= 20


def _mirrored(grid: InputGrid) -> InputGrid:
    return replace(grid, hu=np.ascontiguousarray(grid.hu[::-1]))


def _shifted(grid: InputGrid) -> InputGrid:
    return replace(grid, origin_lps_mm=tuple(grid.index_to_lps((0.5, 0, 0))))


def _transposed(grid: InputGrid) -> InputGrid:
    return replace(grid, hu=np.ascontiguousarray(grid.hu.transpose(1, 0, 2)))


def _darker(grid: InputGrid) -> InputGrid:
    return replace(grid, hu=grid.hu - 24)


@pytest.mark.parametrize("wrong", [_mirrored, _shifted, _transposed, _darker])
def test_a_wrong_way_to_the_network_does_not_pass(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[InputGrid], InputGrid]
) -> None:
    monkeypatch.setattr(agreement, "to_input_grid", lambda *a: wrong(to_input_grid(*a)))

    with pytest.raises(OutputsDiffer, match="no equal"):
        agreement.compare(exported.detector, exported.parameters, exported.volume, exported.run)


def test_another_network_does_not_pass(exported: Exported) -> None:
    def louder(patches: agreement.Floats) -> tuple[agreement.Floats, ...]:
        return tuple(1.01 * output for output in exported.run(patches))

    with pytest.raises(OutputsDiffer, match="no equal"):
        agreement.compare(exported.detector, exported.parameters, exported.volume, louder)


def test_the_worker_runs_it_without_torch(exported: Exported, home: Home) -> None:
    bundle = Bundle.load(exported.bundle, TrustStore.load(home.trust))
    heads = OnnxHeads(bundle.onnx, CPU, bundle.parameters.outputs)
    heads.warm_up(bundle.parameters.patch_shape)
    canonical = to_canonical(exported.volume, bundle.parameters.spacing_mm)
    nowhere = LungMask(
        np.zeros(canonical.hu.shape, np.uint8), 1.0, LungCoverage(apex=True, base=True, volume_ml=1)
    )

    marks = detect(
        canonical,
        nowhere,
        bundle.parameters,
        heads,
        volume=exported.volume,
        region=Region.WHOLE,
    )

    parameters = exported.parameters
    theirs = agreement.found_by_monai(exported.detector, parameters, exported.volume)
    best = int(theirs.scores.argmax())
    assert marks[0].probability == pytest.approx(theirs.scores[best], abs=1e-4)
    assert marks[0].center_lps_mm == pytest.approx(theirs.ends_lps_mm[best].mean(axis=0), abs=0.01)


def _rewritten(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the bundle with another configuration."""
    shutil.copytree(source, folder)
    content = configuration(patch=PATCH, **changes)
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    return folder


def _without(source: Path, folder: Path, name: str) -> Path:
    shutil.copytree(source, folder)
    (folder / name).unlink()
    return folder


def _two_channels(source: Path, folder: Path) -> Path:
    backbone = configuration()["backbone"].replace("n_input_channels=1", "n_input_channels=2")
    return _rewritten(source, folder, backbone=backbone)


def _two_classes(source: Path, folder: Path) -> Path:
    return _rewritten(
        source, folder, network_def={**configuration()["network_def"], "num_classes": 2}
    )


def _normalised(source: Path, folder: Path) -> Path:
    pipeline = configuration()["preprocessing"]
    more = [*pipeline["transforms"], {"_target_": "NormalizeIntensityd", "keys": "image"}]
    return _rewritten(source, folder, preprocessing={**pipeline, "transforms": more})


def _other_weights(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    stored = torch.load(folder / "models" / "model.pt", weights_only=True)
    stored.pop("classification_head.cls_logits.bias")
    torch.save(stored, folder / "models" / "model.pt")
    return folder


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("EXECUTED",))


def _evil_weights(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    torch.save(_Evil(), folder / "models" / "model.pt")
    return folder


def _evil_pickle(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    (folder / "models" / "model.pt").write_bytes(pickle.dumps(_Evil()))
    return folder


BROKEN: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "no metadata": (
        lambda s, f: _without(s, f, "configs/metadata.json"),
        "configs/metadata.json: it is no MONAI bundle",
    ),
    "no configuration": (
        lambda s, f: _without(s, f, "configs/inference.json"),
        "no configs/inference.json or .yaml",
    ),
    "no licence": (lambda s, f: _without(s, f, "LICENSE"), "give --licence FILE"),
    "no weights": (lambda s, f: _without(s, f, "models/model.pt"), "neither models/model.pt nor"),
    "unknown network": (
        lambda s, f: _rewritten(s, f, network_def={"_target_": "monai.networks.nets.UNet"}),
        "the bundle needs UNet; this import knows",
    ),
    "channels": (_two_channels, "takes 2 channels; a CT has one"),
    "classes": (_two_classes, "tells 2 classes"),
    "transform": (_normalised, "has NormalizeIntensity, which"),
    "weights": (_other_weights, "do not fit the network that the bundle describes: 1 tensors are"),
    "object": (_evil_weights, "cannot be read, or holds more than weights"),
    "pickle": (_evil_pickle, "cannot be read, or holds more than weights"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_wrong_bundle_is_refused_with_one_line_that_says_why(
    source: Path, tmp_path: Path, phoi: Callable[..., tuple[int, str]], broken: str
) -> None:
    make, why = BROKEN[broken]
    wrong = make(source, tmp_path / "source")

    status, printed = phoi(wrong, tmp_path / "bundle", "--threshold", "0.5")

    assert status == 1
    assert why in printed
    assert len(printed.splitlines()) == 1
    assert "EXECUTED" not in printed
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--threshold", "1.5"], "between 0 and 1"),
        (["--threshold", "low=0.1"], "without a name as well"),
        (["--threshold", "0.5", "--patch", "64"], "three numbers"),
        (["--threshold", "0.5", "--patch", "30,32,16"], "multiple of (16, 16, 8)"),
        (["--threshold", "0.5", "--name", "Übel"], "name: "),
    ],
)
def test_a_wrong_wish_is_refused(
    source: Path,
    tmp_path: Path,
    phoi: Callable[..., tuple[int, str]],
    options: list[str],
    why: str,
) -> None:
    status, printed = phoi(source, tmp_path / "bundle", *options)

    assert (status, why in printed) == (1, True)


def test_weights_are_read_from_torchscript_too(source: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    content = Configuration.of_bundle(source)
    filled, empty = (build_detector(content).network for _ in range(2))
    load_weights(filled, source)
    filled.use_list_output = True
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of everything it cannot follow
        image = torch.zeros(1, 1, *PATCH)
        traced = torch.jit.trace(filled, image, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(tmp_path / "models" / "model.ts")

    assert load_weights(empty, tmp_path).name == "model.ts"
    wanted = filled.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in empty.state_dict().items())


def test_a_bundle_that_names_no_patch_needs_one() -> None:
    content = Configuration(configuration(patch=PATCH))
    detector = build_detector(content)
    detector.inferer = None
    how = read_preprocessing(content)

    def made(patch: tuple[int, int, int] | None) -> AnchorBoxParameters:
        return parameters_of(
            detector, how, name="a", version="1", patch=patch, operating_points=POINTS
        )

    with pytest.raises(CannotImport, match="give --patch"):
        made(None)
    assert made((64, 48, 24)).patch_shape == (64, 48, 24)


def _plain(folder: Path, *, network: bytes = b"", **changes: Any) -> Path:
    """A plain ONNX of the blob network under names of its own, with its manifest."""
    folder.mkdir(exist_ok=True)
    model = onnx.load_from_string(network or blob_network())
    own = {"image": "ct", "heatmap": "score"}
    for node in model.graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
        node.output[:] = [own.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "ct", "score"
    (folder / "blobs.onnx").write_bytes(model.SerializeToString())
    (folder / "LICENCE.txt").write_text("MIT\n")
    section = blob_parameters(patch_shape=[48, 48, 48], spacing_mm=2.0)
    del section["operating_points"]
    manifest = {
        "model": "blobs.onnx",
        "licence": "LICENCE.txt",
        "description": "Bright blobs.",
        "input": "ct",
        "outputs": {"heatmap": "score"},
        "parameters": section,
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder / "manifest.json"


class _Original:
    """The blob network, as it was before its names changed."""

    def __init__(self) -> None:
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(blob_network(), providers=providers)

    def run(self, patches: agreement.Floats) -> tuple[agreement.Floats, ...]:
        return tuple(self._session.run(None, {"image": patches}))


def test_a_plain_onnx_is_imported_and_finds_the_same_nodules(
    tmp_path: Path, home: Home, phoi: Callable[..., tuple[int, str]]
) -> None:
    manifest = _plain(tmp_path / "source")

    status, printed = phoi(manifest, tmp_path / "bundle", "--threshold", "0.5", "--name", "blobs")

    assert (status, "there was no original to compare" in printed) == (0, True)
    bundle = Bundle.load(tmp_path / "bundle", TrustStore.load(home.trust))
    assert bundle.manifest.name == "blobs"
    assert (tmp_path / "bundle" / "LICENSE").read_text() == "MIT\n"
    chest = plain_chest([((60.0, 0.0, 0.0), 24.0)])
    own = OnnxHeads(bundle.onnx, CPU, bundle.parameters.outputs)
    found, wanted = (
        analyze_volume(chest, bundle.parameters, heads) for heads in (own, _Original())
    )
    assert wanted.findings
    assert [f.center_lps_mm for f in found.findings] == [f.center_lps_mm for f in wanted.findings]


def _unbounded() -> bytes:
    """Blobs scored by a logit instead of a score."""
    network = onnx.load_from_string(blob_network())
    (sigmoid,) = (node for node in network.graph.node if node.op_type == "Sigmoid")
    sigmoid.op_type = "Identity"
    content: bytes = network.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"licence": "nowhere.txt"}, 1, "there is no licence at nowhere.txt"),
        ({"input": "image"}, 1, "takes ct; it must take one image"),
        ({"outputs": {}}, 1, 'has no output "heatmap" for heatmap; it has diameter_mm'),
        ({"model": "manifest.json"}, 1, "is no readable ONNX model"),
        ({"model": "nowhere.onnx"}, 1, "is no readable ONNX model"),
        ({"surprise": 1}, 1, "manifest.json: surprise"),
        ({"parameters": {"kind": "other"}}, 1, "manifest.json: parameters"),
        ({"parameters": blob_parameters(patch_shape=[48, 48, 48], stride=8)}, 1, "has shape"),
        ({"network": _unbounded()}, 3, "end the network in a sigmoid"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_onnx_is_refused(
    tmp_path: Path,
    phoi: Callable[..., tuple[int, str]],
    changes: dict[str, Any],
    status: int,
    why: str,
) -> None:
    manifest = _plain(tmp_path / "source", **changes)

    ended, printed = phoi(manifest, tmp_path / "bundle", "--threshold", "0.5")

    assert (ended, why in printed) == (status, True), printed
    assert not (tmp_path / "bundle").exists()


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")

    with pytest.raises(CannotImport, match=r"manifest\.json"):
        plain_onnx.read_manifest(tmp_path / "manifest.json")


def test_a_key_is_needed_before_anything_else(
    tmp_path: Path, home: Home, phoi: Callable[..., tuple[int, str]]
) -> None:
    assert load_signing_key(home.signing_key) is not None
    home.signing_key.rename(home.signing_key.with_suffix(".away"))
    try:
        status, printed = phoi(_plain(tmp_path / "s"), tmp_path / "bundle", "--threshold", "0.5")
    finally:
        home.signing_key.with_suffix(".away").rename(home.signing_key)
    assert status == 1
    assert "phoi models init" in printed
