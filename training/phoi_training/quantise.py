"""The networks of a bundle in 8-bit integers, and whether they may run in place of float32.

Static quantisation: the range of each activation is fixed beforehand, as the least and the greatest
value that it takes on calibration patches, and each channel of a weight has its own scale (Jacob
et al., CVPR 2018, arXiv:1712.05877). The patches show nodules, since nodules cause the rare large
activations by which they are told apart: ranges from ordinary lung cut these off. The first
convolution, which reads the image, and the last, which writes the outputs, stay in float32.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from phoi_models.bundle import (
    CPM_TOLERANCE,
    METADATA,
    MODEL,
    REQUIRED_FILES,
    DetectorParameters,
    Form,
    Int8Form,
    form_file,
    network_files,
    parse_parameters,
)
from phoi_models.canonical import to_canonical
from phoi_models.detector import cut_patch
from phoi_models.errors import PhoiError
from phoi_models.geometry import Index, as_triple
from phoi_models.sessions import FormChoice, Provider, SessionSettings
from phoi_models.signing import MANIFEST_NAME

from phoi_training.background import Background
from phoi_training.card import MODEL_CARD, Part, has_place, int8_lines, with_part
from phoi_training.dataset import planted_copy
from phoi_training.evaluation import PairedCpm, ScanResult, has_froc, paired_cpm
from phoi_training.report import Detector, run_evaluation

Floats = NDArray[np.float32]

_DIAMETERS_MM = (3.5, 45.0)
_NODULES, _ELSEWHERE = 12, 3
_QUANTISED = ["Conv", "Add", "Relu", "Resize"]


class CannotQuantise(PhoiError):
    """The bundle cannot be quantised as it is."""


@dataclass(frozen=True)
class Comparison:
    """The 8-bit networks beside those in float32, on the same chests."""

    measured: PairedCpm

    @property
    def accepted(self) -> bool:
        """The 8-bit networks find as much as those in float32, but for ``CPM_TOLERANCE``."""
        return self.measured.cpm >= self.measured.reference - CPM_TOLERANCE


def quantise_bundle(
    bundle: Path,
    calibration: Sequence[Background],
    validation: Sequence[Background],
    *,
    copies: int,
    seed: int,
) -> Comparison:
    """Write the 8-bit networks of a bundle beside those in float32 if they find as much.

    Args:
        bundle: folder, not yet signed. Unless the 8-bit networks are accepted it is left as it is.
        calibration: chests to plant nodules into; the ranges of the activations come from there.
        validation: chests to compare both forms on, as they are and planted.
        copies: planted copies of each chest of ``validation``.
        seed: of all that is planted.

    Raises:
        CannotQuantise: the bundle lacks a file or is signed already, its network is of a kind that
            was imported, or false marks cannot be counted on any chest of ``validation``.
    """
    if missing := [name for name in REQUIRED_FILES if not (bundle / name).is_file()]:
        raise CannotQuantise(f"{bundle} is no model bundle: it lacks {missing[0]}")
    if (bundle / MANIFEST_NAME).exists():
        raise CannotQuantise(f"remove {MANIFEST_NAME} first, and sign the bundle again afterwards")
    parameters = parse_parameters((bundle / METADATA).read_bytes())
    if not isinstance(parameters, DetectorParameters):
        raise CannotQuantise("only networks that Phoi trained can be quantised")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        for name in network_files(parameters):
            patches = calibration_patches(calibration, _shape(name, parameters), parameters, rng)
            quantise(bundle / name, Path(scratch) / form_file(name, Form.INT8), patches)
        comparison = Comparison(
            paired_cpm(
                _results(parameters, Path(scratch), Form.INT8, validation, copies, seed),
                _results(parameters, bundle, Form.FLOAT32, validation, copies, seed),
                rng=np.random.default_rng(seed),
            )
        )
        if comparison.accepted:
            _accept(bundle, Path(scratch), parameters, comparison)
    return comparison


def quantise(network: Path, quantised: Path, patches: Floats) -> None:
    """Write a network in 8-bit integers (ONNX, quantise and dequantise nodes).

    Args:
        network: ONNX file in float32 with the input ``image``.
        quantised: file to write.
        patches: to calibrate on, [N, 1, D, H, W], windowed to 0..1.
    """
    quantised.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / network.name
        quant_pre_process(str(network), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantised),
            _Patches(patches),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_outermost(onnx.load(str(prepared)).graph),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )


class _Patches(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands the patches over one by one."""

    def __init__(self, patches: Floats) -> None:
        self._rest: Iterator[Floats] = iter(patches)

    def get_next(self) -> dict[str, Floats] | None:
        """The next input of the network; None after the last."""
        patch = next(self._rest, None)
        return None if patch is None else {"image": patch[None]}


def _outermost(graph: onnx.GraphProto) -> list[str]:
    """The convolutions that read the image, and those that no other convolution follows."""
    images = {value.name for value in graph.input}
    before_convolution: set[str] = set()
    outermost = []
    for node in reversed(graph.node):
        leads_on = not before_convolution.isdisjoint(node.output)
        if node.op_type == "Conv" and (not leads_on or node.input[0] in images):
            outermost.append(node.name)
        if node.op_type == "Conv" or leads_on:
            before_convolution.update(node.input)
    return outermost


def calibration_patches(
    chests: Sequence[Background],
    shape: Index,
    parameters: DetectorParameters,
    rng: np.random.Generator,
) -> Floats:
    """Patches about planted nodules of all sizes, about known ones, and elsewhere in the lungs.

    Args:
        chests: each is planted once.
        shape: of a patch (z, y, x), voxels.
        parameters: give grid and window.
        rng: decides where and what.

    Returns:
        [N, 1, D, H, W], windowed to 0..1.
    """
    low, high = np.log(_DIAMETERS_MM)
    patches = []
    for chest in chests:
        planted, _ = planted_copy(chest, rng, list(np.exp(rng.uniform(low, high, _NODULES))))
        grid = to_canonical(planted.volume, parameters.spacing_mm)
        centers = [mark.center_lps_mm for mark in planted.marks]
        if planted.lungs.inside.any():  # not on a crop without lung
            centers += [as_triple(center) for center in planted.lungs.draw(rng, _ELSEWHERE)]
        for center in centers:
            z, y, x = np.rint(grid.lps_to_index(center) - np.asarray(shape) / 2).astype(int)
            patches.append(cut_patch(grid.hu, (int(z), int(y), int(x)), shape, parameters))
    return np.stack(patches)[:, None]


def _shape(name: str, parameters: DetectorParameters) -> Index:
    """Of the patches of one network."""
    if name == MODEL or parameters.second_look is None:
        return parameters.patch_shape
    return parameters.second_look.patch_shape


def _results(
    parameters: DetectorParameters,
    folder: Path,
    form: Form,
    chests: Sequence[Background],
    copies: int,
    seed: int,
) -> list[ScanResult]:
    sessions = SessionSettings(Provider.CPU, form=FormChoice(form))
    detector = Detector.of(parameters, folder, sessions)
    done = run_evaluation(detector, chests, copies=copies, seed=seed)
    results = [*done.real, *done.planted]
    if not has_froc(results):
        raise CannotQuantise("compare on chests whose nodules are all known, or on more --phantoms")
    return results


def _accept(
    bundle: Path, quantised: Path, parameters: DetectorParameters, comparison: Comparison
) -> None:
    """Put the 8-bit networks into the bundle, and what was measured into its metadata."""
    measured = Int8Form(
        cpm=comparison.measured.cpm,
        fp32_cpm=comparison.measured.reference,
        scans=comparison.measured.scans,
        nodules=comparison.measured.nodules,
    )
    metadata: dict[str, Any] = json.loads((bundle / METADATA).read_text())
    metadata["phoi"]["int8"] = measured.model_dump(mode="json")
    card = (bundle / MODEL_CARD).read_text()
    if has_place(card, Part.INT8):
        card = with_part(card, Part.INT8, int8_lines(comparison.measured))
    for name in network_files(parameters):
        file = form_file(name, Form.INT8)
        shutil.copyfile(quantised / file, bundle / file)
    (bundle / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
    (bundle / MODEL_CARD).write_text(card)
