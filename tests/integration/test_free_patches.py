"""An exported network takes patches of any shape whose sides are the multiples it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from phoi_models.networks import SMALLEST_PATCH, CenterHeatmapNet, ExportedNet
from phoi_training.export import export_onnx
from phoi_training.train import untuned


def test_a_network_exported_on_one_shape_computes_the_same_on_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CenterHeatmapNet().eval()
    path = tmp_path / "model.onnx"
    assert untuned("0.0.1").patch_multiple == SMALLEST_PATCH
    export_onnx(network, path, (32, 32, 32), SMALLEST_PATCH)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 48, 32, 64), (3, 1, 32, 32, 32)):
        image = torch.rand(shape)
        with torch.inference_mode():
            wanted = ExportedNet(network)(image)
        got = session.run(["heatmap", "diameter_mm", "offset"], {"image": image.numpy()})
        for expected, output in zip(wanted, got, strict=True):
            np.testing.assert_allclose(output, expected.numpy(), atol=1e-3, rtol=1e-4)
