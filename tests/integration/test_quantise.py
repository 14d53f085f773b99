"""The shipped network in 8-bit integers: what stays in float32, what it loses, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import phoi_models
import pytest
from numpy.typing import NDArray
from phoi_models.bundle import (
    METADATA,
    MODEL,
    REQUIRED_FILES,
    DetectorParameters,
    Form,
    form_file,
    network_files,
    parse_parameters,
)
from phoi_models.phantom import chest_phantom
from phoi_models.planting import LungSpace
from phoi_training import quantise as module
from phoi_training.background import Background
from phoi_training.card import MODEL_CARD
from phoi_training.quantise import (
    CannotQuantise,
    Comparison,
    calibration_patches,
    quantise,
    quantise_bundle,
)

SHIPPED = Path(phoi_models.__file__).parent / "bundles" / "phoi-lung-nodule"
Floats = NDArray[np.float32]


def parameters_of(bundle: Path) -> DetectorParameters:
    parameters = parse_parameters((bundle / METADATA).read_bytes())
    assert isinstance(parameters, DetectorParameters)
    return parameters


def background(seed: int) -> Background:
    rng = np.random.default_rng(seed)
    volume = chest_phantom(rng, (3.0, 1.6, 1.6), cut_apex=True, cut_base=True)
    return Background("phantom", "phantom", volume, LungSpace.of(volume), (), complete=True)


@pytest.fixture(scope="module")
def chests() -> list[Background]:
    return [background(seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def patches(chests: list[Background]) -> Floats:
    """Twelve about planted nodules, then three elsewhere."""
    parameters = parameters_of(SHIPPED)
    rng = np.random.default_rng(0)
    return calibration_patches(chests[:1], parameters.patch_shape, parameters, rng)


@pytest.fixture(scope="module")
def quantised(patches: Floats, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "model.int8.onnx"
    quantise(SHIPPED / MODEL, path, patches)
    return path


def logits(network: Path, patches: Floats) -> Floats:
    """The greatest of each patch's middle."""
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    heat = np.concatenate([session.run(["heatmap"], {"image": p[None]})[0] for p in patches])
    middle = heat[:, 0, 9:15, 9:15, 9:15].max(axis=(1, 2, 3))
    scores: Floats = np.log(middle / (1 - middle))
    return scores


def test_all_but_the_outermost_convolutions_take_8_bit_integers(quantised: Path) -> None:
    graph = onnx.load(str(quantised)).graph
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    in_float32 = [
        node
        for node in convolutions
        if node.input[1] not in made_by or made_by[node.input[1]].op_type != "DequantizeLinear"
    ]
    assert len(convolutions) == 20
    assert [node.input[0] == "image" for node in in_float32] == [True, False]
    assert (
        onnx.numpy_helper.to_array(
            next(w for w in graph.initializer if w.name == in_float32[1].input[1])
        ).shape[0]
        == 5
    )
    assert b"site-packages" not in quantised.read_bytes()
    assert quantised.stat().st_size < 0.4 * (SHIPPED / MODEL).stat().st_size


def test_scores_hardly_change(quantised: Path, chests: list[Background]) -> None:
    """On nodules in another chest than the one it was calibrated on."""
    parameters = parameters_of(SHIPPED)
    rng = np.random.default_rng(5)
    fresh = calibration_patches(chests[1:], parameters.patch_shape, parameters, rng)
    change = logits(quantised, fresh) - logits(SHIPPED / MODEL, fresh)
    assert abs(change.mean()) < 0.1
    assert change.std() < 0.2


def test_ranges_from_planted_nodules_keep_the_scores_of_nodules(
    quantised: Path, patches: Floats
) -> None:
    nodules = patches[:12]
    change = np.abs(logits(quantised, nodules) - logits(SHIPPED / MODEL, nodules)).mean()
    assert change < 0.1, "of a logit: 0.03 when it was written"


def test_an_accepted_form_goes_into_the_bundle(tmp_path: Path, chests: list[Background]) -> None:
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    card = bundle / MODEL_CARD
    card.write_text("<!-- int8 -->\nnot known\n<!-- end of int8 -->\n")
    comparison = quantise_bundle(bundle, chests[:1], chests[1:], copies=1, seed=3)
    assert comparison.accepted
    assert "not known" not in card.read_text()
    assert f"in float32 {comparison.measured.reference:.3f}; difference" in card.read_text()
    assert "of 1 patient, the same for both" in card.read_text()
    parameters = parameters_of(bundle)
    assert parameters.int8 is not None
    assert parameters.int8.cpm == comparison.measured.cpm
    assert parameters.int8.nodules == 10
    for name in network_files(parameters):
        assert (bundle / form_file(name, Form.INT8)).is_file()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(CannotQuantise, match="sign the bundle again"):
        quantise_bundle(bundle, chests[:1], chests[1:], copies=1, seed=3)


def test_a_form_that_finds_too_little_leaves_the_bundle_as_it_was(
    tmp_path: Path, chests: list[Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_too_bright(_: object, shape: tuple[int, int, int], *__: object) -> Floats:
        """Ranges so wide that all of a real patch falls into one step of the integers."""
        return np.random.default_rng(0).uniform(0, 3000, (1, 1, *shape)).astype(np.float32)

    monkeypatch.setattr(module, "calibration_patches", far_too_bright)
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    comparison: Comparison = quantise_bundle(bundle, chests[:1], chests[1:], copies=1, seed=3)
    assert comparison.measured.difference < -0.01
    assert not comparison.accepted
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("lacking", REQUIRED_FILES)
def test_a_bundle_that_lacks_a_file_is_refused_before_anything_is_done(
    tmp_path: Path, lacking: str
) -> None:
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    (bundle / lacking).unlink()
    with pytest.raises(CannotQuantise, match=f"it lacks {lacking}"):
        quantise_bundle(bundle, [], [], copies=1, seed=0)


def test_what_was_imported_is_not_quantised(tmp_path: Path) -> None:
    parameters = {
        "kind": "anchor-box",
        "name": "imported",
        "version": "1.0.0",
        "axes": "LPS",
        "input_spacing_mm": [0.7, 0.7, 1.25],
        "window_hu": [-1024, 300],
        "patch_shape": [64, 64, 32],
        "overlap": 0.25,
        "levels": [{"stride": [4, 4, 2], "anchors": [[6, 6, 4]]}],
        "score_threshold": 0.02,
        "top_k_per_level": 100,
        "nms_iou": 0.2,
        "most_boxes": 100,
        "calibration": {"slope": 1.0, "intercept": 0.0},
        "operating_points": {"default": {"probability": 0.5}},
    }
    for name in REQUIRED_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / METADATA).write_text(json.dumps({"phoi": parameters}))
    with pytest.raises(CannotQuantise, match="only networks that Phoi trained"):
        quantise_bundle(tmp_path, [], [], copies=1, seed=0)
