"""From a trained network to a model bundle: ONNX, metadata, model card, licence."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from phoi_models.bundle import METADATA, MODEL, SECOND_LOOK, DetectorParameters
from phoi_models.errors import PhoiError
from phoi_models.networks import CenterHeatmapNet, ExportedNet, MeanNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_OPSET = 18
_TOLERANCE = {"heatmap": 1e-4, "diameter_mm": 1e-2, "offset": 1e-3}
_Network = TypeVar("_Network", bound=nn.Module)


class ExportMismatch(PhoiError):
    """ONNX Runtime does not compute what torch computes: do not ship this file."""


def export_onnx(
    network: CenterHeatmapNet | MeanNet,
    path: Path,
    patch_shape: tuple[int, int, int],
    patch_multiple: int | None = None,
) -> float:
    """Write ``path`` and compare it with torch on noise.

    Args:
        network: trained, in evaluation mode.
        path: of the ONNX file; batch normalisation is folded into the convolutions.
        patch_shape: input shape (z, y, x) to compare on; the batch axis stays free.
        patch_multiple: of which the sides of a patch are free multiples; None: they are fixed.

    Returns:
        The largest absolute difference of the heat map between torch and ONNX Runtime.

    Raises:
        ExportMismatch: an output differs by more than its tolerance.
    """
    image = torch.rand(2, 1, *patch_shape, generator=torch.Generator().manual_seed(0))
    to_onnx(ExportedNet(folded(network)), path, image, list(_TOLERANCE), patch_multiple)
    return compare(ExportedNet(network), path, image, _TOLERANCE)["heatmap"]


def to_onnx(
    network: nn.Module,
    path: Path,
    image: torch.Tensor,
    outputs: list[str],
    patch_multiple: int | None = None,
    *,
    input_name: str = "image",
) -> None:
    """Write ``path``, without traces of this machine.

    Args:
        network: takes one tensor, gives a tuple or one tensor.
        path: of the ONNX file.
        image: [2, channels, ...]; its shape is fixed, but for the batch axis, which stays free.
        outputs: their names.
        patch_multiple: of which the sides of a patch are free multiples; None: they are fixed.
        input_name: of the input, as of the parameter of the network's ``forward``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            network.eval(),
            (image,),
            str(path),
            input_names=[input_name],
            output_names=outputs,
            dynamic_shapes={input_name: _free_axes(patch_multiple)},
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _strip_traces(path)


def _free_axes(patch_multiple: int | None) -> dict[int, Any]:
    """What the exporter is to leave open, by axis of [N, 1, D, H, W]."""
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=64)}
    if patch_multiple is not None:
        for axis, name in enumerate(("depth", "height", "width"), start=2):
            free[axis] = patch_multiple * torch.export.Dim(name, min=2, max=64)
    return free


def _strip_traces(path: Path) -> None:
    """Remove what the exporter noted about its own run: it names folders of this machine."""
    model = onnx.load(str(path))
    graph = model.graph
    parts: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.value_info, graph, model]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, str(path))


def folded(network: _Network) -> _Network:
    """A copy in evaluation mode, each batch normalisation folded into the convolution before it."""
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        if not isinstance(module, nn.Sequential) or len(module) < 2:
            continue
        convolution, normalisation = module[0], module[1]
        if isinstance(convolution, nn.Conv3d) and isinstance(normalisation, nn.BatchNorm3d):
            module[0] = fuse_conv_bn_eval(convolution, normalisation)
            module[1] = nn.Identity()
    return copied


def compare(
    network: nn.Module,
    path: Path,
    image: torch.Tensor,
    tolerance: Mapping[str, float],
    *,
    input_name: str = "image",
) -> dict[str, float]:
    """The largest absolute difference of each output between torch and ONNX Runtime.

    Args:
        network: in evaluation mode; takes ``image``, gives a tuple or one tensor.
        path: of the ONNX file.
        image: input of both, as float32.
        tolerance: by name of the output.
        input_name: in the ONNX file.

    Raises:
        ExportMismatch: an output differs by more than its tolerance.
    """
    with torch.inference_mode():
        outputs = network(image)
    wanted = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(list(tolerance), {input_name: image.numpy()})
    differences = {
        name: float(np.abs(a.numpy() - b).max())
        for name, a, b in zip(tolerance, wanted, got, strict=True)
    }
    for name, most in tolerance.items():
        if not differences[name] <= most:  # also when it is no number
            raise ExportMismatch(
                f"{name} differs by {differences[name]:.2g} between torch and ONNX"
            )
    return differences


def check_replaceable(folder: Path) -> None:
    """A bundle may be written to this folder.

    Raises:
        PhoiError: something else than a bundle is there.
    """
    if folder.exists() and not (folder / METADATA).is_file():
        raise PhoiError(f"{folder} is there and is no bundle: name another folder for the bundle")


def write_bundle(
    folder: Path,
    networks: Sequence[CenterHeatmapNet],
    parameters: DetectorParameters,
    *,
    card: str,
    licence: Path,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Write a whole, unsigned bundle in MONAI Bundle layout; an old one there is replaced.

    Args:
        folder: of the bundle.
        networks: the first finds the marks, the mean of the others looks again at them.
        parameters: with ``second_look`` if there are several networks.
        card: the model card, Markdown.
        licence: file to copy.
        pictures: PNG files of the card, by their names inside the bundle.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        new = Path(scratch) / "bundle"
        first, *others = networks
        export_onnx(first, new / MODEL, parameters.patch_shape, parameters.patch_multiple)
        if parameters.second_look is not None:
            export_onnx(MeanNet(others), new / SECOND_LOOK, parameters.second_look.patch_shape)
        for name in ("configs", "docs"):
            (new / name).mkdir()
        metadata = json.dumps(_metadata(parameters), indent=2) + "\n"
        (new / "configs" / "metadata.json").write_text(metadata)
        (new / "docs" / "README.md").write_text(card)
        for name, png in (pictures or {}).items():
            (new / name).write_bytes(png)
        shutil.copyfile(licence, new / "LICENSE")
        check_replaceable(folder)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)


def _metadata(parameters: DetectorParameters) -> dict[str, Any]:
    """MONAI bundle metadata with our section ``phoi``."""
    cells = [n // parameters.stride for n in parameters.patch_shape]

    def output(kind: str, channels: int, low: float, high: float) -> dict[str, Any]:
        return {
            "type": "probabilities" if kind == "score" else "regression",
            "format": kind,
            "num_channels": channels,
            "spatial_shape": cells,
            "dtype": "float32",
            "value_range": [low, high],
        }

    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
        "0.8.1/meta_schema_20220324.json",
        "version": parameters.version,
        "changelog": {
            parameters.version: "Trained anew; docs/README.md says on what, and how it does."
        },
        "monai_version": "1.4.0",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.0.0",
        "optional_packages_version": {"onnxruntime": "1.20.0"},
        "name": parameters.name,
        "task": "Lung nodule detection in chest CT",
        "description": "A small 3D centre-heatmap network, trained on nodules planted into CT.",
        "authors": "Phoi maintainers",
        "copyright": "Phoi maintainers",
        "intended_use": "Research and evaluation. Not a cleared medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": list(parameters.patch_shape),
                    "dtype": "float32",
                    "value_range": [0.0, 1.0],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "heatmap": output("score", 1, 0.0, 1.0),
                "diameter_mm": output("diameter_mm", 1, 0.0, 200.0),
                "offset": output("offset_voxels", 3, -200.0, 200.0),
            },
        },
        "phoi": parameters.model_dump(mode="json"),
    }
