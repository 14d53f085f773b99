"""Small model bundles for tests.

The network here is a test model: it marks bright blobs and knows nothing of nodules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDE = 4
_WIDTH = 8


def blob_network(*, slow: bool = False) -> bytes:
    """An ONNX network with the contract's inputs and outputs that scores local brightness.

    Score: sigmoid(30 * (mean of the cell - mean of 9x9x9 cells) - 12); diameter: 15 mm; offset: 0.

    Args:
        slow: smooth the image first, in the slowest way, so that an analysis can be interrupted.
    """
    constants = {
        "gain": 30.0,
        "threshold": 12.0,
        "zero": 0.0,
        "fifteen": 15.0,
    }
    pool: dict[str, Any] = {"kernel_shape": [STRIDE] * 3, "strides": [STRIDE] * 3}
    around: dict[str, Any] = {"kernel_shape": [9] * 3, "strides": [1] * 3, "pads": [4] * 6}
    image = "smooth" if slow else "image"
    nodes = [
        *(_drag() if slow else []),
        helper.make_node("AveragePool", [image], ["cells"], **pool),
        helper.make_node("AveragePool", ["cells"], ["around"], **around),
        helper.make_node("Sub", ["cells", "around"], ["contrast"]),
        helper.make_node("Mul", ["contrast", "gain"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "threshold"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["heatmap"]),
        helper.make_node("Mul", ["cells", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "fifteen"], ["diameter_mm"]),
        helper.make_node("Concat", ["nothing"] * 3, ["offset"], axis=1),
    ]
    weights = {name: np.array(value, np.float32) for name, value in constants.items()}
    if slow:
        weights["spread"] = np.full((_WIDTH, 1, 5, 5, 5), 1 / 5**3, np.float32)
        weights["gather"] = np.full((1, _WIDTH, 5, 5, 5), 1 / 5**3 / _WIDTH, np.float32)
    graph = helper.make_graph(
        nodes,
        "bright-blobs",
        [_tensor("image", 1)],
        [_tensor("heatmap", 1), _tensor("diameter_mm", 1), _tensor("offset", 3)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _drag() -> list[Any]:
    """Smooths the image by two dense convolutions: half a GFLOP for a patch of 48x48x48."""
    same: dict[str, Any] = {"pads": [2] * 6}
    return [
        helper.make_node("Conv", ["image", "spread"], ["many"], **same),
        helper.make_node("Conv", ["many", "gather"], ["smooth"], **same),
    ]


def _tensor(name: str, channels: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, None, None, None])


def parameters(**changes: Any) -> dict[str, Any]:
    """Section ``phoi`` of a test bundle's metadata."""
    values: Mapping[str, Any] = {
        "name": "test-blobs",
        "version": "1.0.0",
        "kind": "center-heatmap",
        "spacing_mm": 1.0,
        "window_hu": [-1000.0, 400.0],
        "patch_shape": [96, 96, 96],
        "stride": STRIDE,
        "margin": 8,
        "calibration": {"slope": 1.0, "intercept": 0.0},
        "operating_points": {"default": {"probability": 0.5}, "sensitive": {"probability": 0.2}},
    }
    return {**values, **changes}


def write_bundle(folder: Path, *, slow: bool = False, **changes: Any) -> Path:
    """Write an unsigned test bundle into ``folder``; ``changes`` go to its parameters.

    With ``int8`` among them the same network stands for the one in 8-bit integers.
    """
    metadata = {"version": "1.0.0", "task": "tests", "phoi": parameters(**changes)}
    contents = {
        "configs/metadata.json": json.dumps(metadata).encode(),
        "models/model.onnx": blob_network(slow=slow),
        "docs/README.md": b"A test model. It marks bright blobs.\n",
        "LICENSE": b"Apache-2.0\n",
    }
    if "int8" in changes:
        contents["models/model.int8.onnx"] = contents["models/model.onnx"]
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
