"""MONAI's 3D RetinaNet out of a MONAI bundle: built, filled with its weights, exported.

What the bundle's configuration asks for is built only if it is one of MONAI's own parts listed
here; weights are read as tensors, never as Python objects.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from phoi_models.bundle import AnchorBoxParameters, AnchorLevel, Calibration, OperatingPoint
from phoi_models.geometry import Index, Triple, as_triple
from pydantic import ValidationError
from torch import Tensor, nn

from phoi_training.export import to_onnx
from phoi_training.import_model.configuration import Call, Configuration
from phoi_training.import_model.errors import CannotImport
from phoi_training.import_model.monai_parts import (
    AnchorGenerator,
    AnchorGeneratorWithAnchorShape,
    RetinaNet,
    RetinaNetDetector,
    resnet,
    resnet_fpn_feature_extractor,
)

_KNOWN: Mapping[str, Callable[..., Any]] = {
    "AnchorGenerator": AnchorGenerator,
    "AnchorGeneratorWithAnchorShape": AnchorGeneratorWithAnchorShape,
    "RetinaNet": RetinaNet,
    "RetinaNetDetector": RetinaNetDetector,
    "resnet_fpn_feature_extractor": resnet_fpn_feature_extractor,
    **{f"resnet{n}": getattr(resnet, f"resnet{n}") for n in (10, 18, 34, 50, 101, 152, 200)},
}
_DOWNLOADS = ("pretrained", "pretrained_backbone")
"""Arguments that would fetch weights; here they come from the bundle."""
_OPERATIONS = frozenset(
    {"set_target_keys", "set_box_selector_parameters", "set_sliding_window_inferer"}
)
_READS = frozenset(
    {"LoadImage", "EnsureChannelFirst", "EnsureType", "DeleteItems", "Orientation", "Spacing"}
)
_WINDOW = "ScaleIntensityRange"


@dataclass(frozen=True)
class Preprocessing:
    """What a bundle does to a CT before its network sees it.

    Attributes:
        axes: where each axis grows to, as "RAS".
        spacing_mm: along these axes.
        window_hu: HU that become 0 and 1.
    """

    axes: str
    spacing_mm: Triple
    window_hu: tuple[float, float]


def build_detector(configuration: Configuration) -> RetinaNetDetector:
    """The detector that the configuration describes, with random weights.

    Raises:
        CannotImport: it is not a RetinaNet for one kind of finding in CT.
    """
    detector = _built(configuration.value("detector"))
    if not isinstance(detector, RetinaNetDetector):
        raise CannotImport('"detector" of the configuration is no RetinaNetDetector')
    for operation in configuration.value("detector_ops"):
        if not isinstance(operation, Call) or operation.name not in _OPERATIONS:
            raise CannotImport(f"detector_ops holds {operation}, which this import does not know")
        getattr(detector, operation.name)(*operation.arguments, **operation.keywords)
    first = next(m for m in detector.network.modules() if isinstance(m, nn.Conv3d | nn.Conv2d))
    if not isinstance(first, nn.Conv3d):
        raise CannotImport("the network is not three-dimensional")
    if first.in_channels != 1:
        raise CannotImport(f"the network takes {first.in_channels} channels; a CT has one")
    if detector.num_classes != 1:
        raise CannotImport(
            f"the network tells {detector.num_classes} classes; Phoi reads detectors of one: nodule"
        )
    detector.eval()
    return detector


def _built(value: Any) -> Any:
    """Build what calls name, innermost first."""
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, Call):
        return value
    if value.name not in _KNOWN:
        known = ", ".join(sorted(_KNOWN))
        raise CannotImport(f"the bundle needs {value.name}; this import knows {known}")
    arguments = [_built(argument) for argument in value.arguments]
    keywords = {name: _built(argument) for name, argument in value.keywords.items()}
    try:
        bound = inspect.signature(_KNOWN[value.name]).bind(*arguments, **keywords)
        for name in _DOWNLOADS:
            if name in bound.arguments:
                bound.arguments[name] = False
        return _KNOWN[value.name](*bound.args, **bound.kwargs)
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise CannotImport(f"{value.name} cannot be built as the bundle says: {error}") from None


def read_preprocessing(configuration: Configuration) -> Preprocessing:
    """What the transforms of the configuration come to.

    Raises:
        CannotImport: they do what Phoi's worker does not do, or leave something open.
    """
    pipeline = configuration.value("preprocessing")
    calls = pipeline.keywords.get("transforms") if isinstance(pipeline, Call) else None
    if not calls or not all(isinstance(call, Call) for call in calls):
        raise CannotImport('"preprocessing" of the configuration lists no transforms')
    transforms = {call.name.removesuffix("d"): call.keywords for call in calls}
    if unknown := sorted(transforms.keys() - _READS - {_WINDOW}):
        raise CannotImport(f"the preprocessing has {unknown[0]}, which Phoi's worker does not do")
    if missing := sorted({"Orientation", "Spacing", _WINDOW} - transforms.keys()):
        raise CannotImport(f"the preprocessing has no {missing[0]}")
    window = transforms[_WINDOW]
    if (window.get("b_min"), window.get("b_max"), window.get("clip")) != (0, 1, True):
        raise CannotImport(f"{_WINDOW} must map to 0 and 1 and clip")
    if transforms["Spacing"].get("mode", "bilinear") != "bilinear":
        raise CannotImport("Spacing must interpolate linearly")
    try:
        return Preprocessing(
            str(transforms["Orientation"]["axcodes"]),
            as_triple(transforms["Spacing"]["pixdim"]),
            (float(window["a_min"]), float(window["a_max"])),
        )
    except (KeyError, TypeError, ValueError):
        raise CannotImport(
            "the preprocessing lacks axcodes, three pixdim, or a_min and a_max"
        ) from None


def load_weights(network: nn.Module, folder: Path) -> Path:
    """Fill the network from ``models/model.pt`` or ``models/model.ts``.

    Returns:
        The file that was read.

    Raises:
        CannotImport: there is none, it holds more than weights, or another network's.
    """
    path = folder / "models" / "model.pt"
    if not path.is_file():
        path = path.with_suffix(".ts")
    if not path.is_file():
        raise CannotImport("the bundle has neither models/model.pt nor models/model.ts")
    stored = _stored_weights(path)
    wanted = network.state_dict()
    missing, odd = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    shaped = [n for n in wanted.keys() & stored.keys() if wanted[n].shape != stored[n].shape]
    if missing or odd or shaped:
        raise CannotImport(
            f"the weights of {path.name} do not fit the network that the bundle describes:"
            f" {len(missing)} tensors are missing, {len(odd)} are unknown to it,"
            f" {len(shaped)} have another shape"
        )
    network.load_state_dict(dict(stored))
    return path


def _stored_weights(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".pt":
            stored = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated, and still shipped
                stored = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except Exception:  # what torch's reader stumbles over has no common base
        raise CannotImport(f"{path.name} cannot be read, or holds more than weights") from None
    if isinstance(stored, Mapping) and len(stored) == 1:  # {"model": weights}
        (only,) = stored.values()
        stored = only if isinstance(only, Mapping) else stored
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise CannotImport(f"{path.name} holds no weights by name")
    return stored


def parameters_of(
    detector: RetinaNetDetector,
    preprocessing: Preprocessing,
    *,
    name: str,
    version: str,
    patch: Index | None,
    operating_points: Mapping[str, OperatingPoint],
) -> AnchorBoxParameters:
    """The bundle's section ``phoi``: what MONAI's detector is set to do.

    Args:
        detector: built and set.
        preprocessing: of its bundle.
        name, version: of the new bundle.
        patch: along the input's axes, voxels; None takes the bundle's own.
        operating_points: thresholds by name.

    Raises:
        CannotImport: it is set to do what Phoi's worker does not do, or a wish does not fit it.
    """
    inferer, selector = detector.inferer, detector.box_selector
    if inferer is not None and str(inferer.mode) != "constant":
        raise CannotImport(f"the bundle blends patches by {inferer.mode}; Phoi knows constant")
    if not selector.apply_sigmoid or any(weight != 1.0 for weight in detector.box_coder.weights):
        raise CannotImport("the bundle decodes boxes in a way that this import does not know")
    if patch is None and inferer is None:
        raise CannotImport("the bundle names no patch: give --patch")
    try:
        return AnchorBoxParameters(
            name=name,
            version=version,
            kind="anchor-box",
            axes=preprocessing.axes,
            input_spacing_mm=preprocessing.spacing_mm,
            window_hu=preprocessing.window_hu,
            patch_shape=patch or _three(inferer.roi_size),
            overlap=0.0 if inferer is None else float(np.max(inferer.overlap)),
            levels=_levels(detector),
            score_threshold=selector.score_thresh,
            top_k_per_level=selector.topk_candidates_per_level,
            nms_iou=selector.nms_thresh,
            most_boxes=selector.detections_per_img,
            calibration=Calibration(slope=1.0, intercept=0.0),
            operating_points=dict(operating_points),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CannotImport(f"{where or 'the bundle'}: {first['msg']}") from None


def _three(size: int | Sequence[int]) -> Index:
    x, y, z = (size,) * 3 if isinstance(size, int) else size
    return (x, y, z)


def _levels(detector: RetinaNetDetector) -> tuple[AnchorLevel, ...]:
    """Strides, as a small image shows them, and anchors."""
    size = detector.size_divisible
    with torch.inference_mode():
        maps = detector.network(torch.zeros(1, 1, *size))[detector.cls_key]
    anchors = detector.anchor_generator.cell_anchors
    if len(maps) != len(anchors):
        raise CannotImport(f"the network has {len(maps)} levels, its anchors {len(anchors)}")
    return tuple(
        AnchorLevel(
            stride=tuple(n // cells for n, cells in zip(size, level.shape[2:], strict=True)),
            anchors=tuple(as_triple(2 * high) for high in cell[:, 3:].numpy()),
        )
        for level, cell in zip(maps, anchors, strict=True)
    )


class _Exported(nn.Module):
    """The network with its outputs in the order of the bundle: all logits, then all boxes."""

    def __init__(self, detector: RetinaNetDetector) -> None:
        super().__init__()
        self.network = detector.network
        self.keys = (detector.cls_key, detector.box_reg_key)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See :class:`phoi_models.bundle.AnchorBoxParameters`."""
        outputs = self.network(image)
        return tuple(level for key in self.keys for level in outputs[key])


def export(detector: RetinaNetDetector, parameters: AnchorBoxParameters, path: Path) -> None:
    """Write the network as ONNX."""
    image = torch.zeros(2, 1, *parameters.patch_shape)
    to_onnx(_Exported(detector), path, image, list(parameters.outputs))
