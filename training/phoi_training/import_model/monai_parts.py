"""The parts of MONAI that are used, imported after torchvision: MONAI looks for it only once."""

# ruff: noqa: E402
from __future__ import annotations

from phoi_training.import_model.torchvision_python import import_torchvision

import_torchvision()

from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.apps.detection.utils.anchor_utils import AnchorGenerator, AnchorGeneratorWithAnchorShape
from monai.data import MetaTensor
from monai.networks.nets import resnet
from monai.transforms import Orientation, ScaleIntensityRange, Spacing

__all__ = [
    "AnchorGenerator",
    "AnchorGeneratorWithAnchorShape",
    "MetaTensor",
    "Orientation",
    "RetinaNet",
    "RetinaNetDetector",
    "ScaleIntensityRange",
    "Spacing",
    "resnet",
    "resnet_fpn_feature_extractor",
]
