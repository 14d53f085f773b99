"""MONAI bundles of the public lung nodule detector's layout, with random weights.

The architecture and the settings are those of ``lung_nodule_ct_detection`` in MONAI's model zoo;
its trained weights are not here, so what these networks find means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from phoi_training.import_model.configuration import Configuration
from phoi_training.import_model.retinanet import build_detector


def configuration(
    *, depth: int = 10, patch: tuple[int, int, int] = (64, 64, 32), **changes: Any
) -> dict[str, Any]:
    """What ``configs/inference.json`` says; ``changes`` replace what stands at a key."""
    backbone = (
        f"$monai.networks.nets.resnet.resnet{depth}(spatial_dims=3,n_input_channels=1,"
        "conv1_t_stride=[2,2,1],conv1_t_size=[7,7,7])"
    )
    pyramid = "monai.apps.detection.networks.retinanet_network.resnet_fpn_feature_extractor"
    anchors = "monai.apps.detection.utils.anchor_utils.AnchorGeneratorWithAnchorShape"
    window = {"a_min": -1024.0, "a_max": 300.0, "b_min": 0.0, "b_max": 1.0, "clip": True}
    content = {
        "imports": ["$import os"],
        "bundle_root": ".",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "whether_raw": False,
        "patch_size": list(patch),
        "anchor_generator": {
            "_target_": anchors,
            "feature_map_scales": [1, 2, 4],
            "base_anchor_shapes": [[6, 8, 4], [8, 6, 5], [10, 10, 6]],
        },
        "backbone": backbone,
        "feature_extractor": f"${pyramid}(@backbone,3,False,[1,2],None)",
        "network_def": {
            "_target_": "RetinaNet",
            "spatial_dims": 3,
            "num_classes": 1,
            "num_anchors": 3,
            "feature_extractor": "@feature_extractor",
            "size_divisible": [16, 16, 8],
        },
        "network": "$@network_def.to(@device)",
        "detector": {
            "_target_": "RetinaNetDetector",
            "network": "@network",
            "anchor_generator": "@anchor_generator",
        },
        "detector_ops": [
            "$@detector.set_target_keys(box_key='box', label_key='label')",
            "$@detector.set_box_selector_parameters(score_thresh=0.02,"
            "topk_candidates_per_level=1000,nms_thresh=0.22,detections_per_img=300)",
            "$@detector.set_sliding_window_inferer(roi_size=@patch_size,overlap=0.25,"
            "sw_batch_size=1,mode='constant',device='cpu')",
        ],
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "_disabled_": "@whether_raw"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [0.703125, 0.703125, 1.25]},
                {"_target_": "ScaleIntensityRanged", "keys": "image", **window},
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
    }
    return {**content, **changes}


METADATA = {
    "name": "Lung nodule CT detection",
    "version": "0.6.9",
    "task": "CT lung nodule detection",
    "description": "Random weights, for tests.",
    "authors": "Nobody",
    "copyright": "Nobody",
    "intended_use": "Tests",
    "network_data_format": {"inputs": {"image": {"num_channels": 1, "modality": "CT"}}},
}


def write_monai_bundle(
    folder: Path, content: dict[str, Any] | None = None, *, seed: int = 0, torchscript: bool = False
) -> Path:
    """Write a bundle whose weights are drawn from ``seed``."""
    content = content or configuration()
    files = {
        "configs/inference.json": json.dumps(content, indent=1),
        "configs/metadata.json": json.dumps(METADATA, indent=1),
        "docs/README.md": "# Lung nodules\n\nOf random weights.\n",
        "LICENSE": "Apache License, Version 2.0\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "models").mkdir()
    detector = build_detector(Configuration(content))
    draw_weights(detector.network, seed)
    torch.save(detector.network.state_dict(), folder / "models" / "model.pt")
    return folder


def draw_weights(network: torch.nn.Module, seed: int) -> None:
    """Random weights under which scores differ from place to place, and boxes from their anchors.

    MONAI draws its heads so small that every anchor would score 1 %.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and parameter.ndim == 5:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith("bbox_reg.weight"):
                parameter.mul_(0.3)
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-3.0)
