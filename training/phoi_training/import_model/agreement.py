"""Does what was exported find what MONAI finds? From a CT to boxes in the patient, both ways."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from phoi_models.boxes import find_boxes, patch_step, to_input_grid
from phoi_models.bundle import AnchorBoxParameters
from phoi_models.geometry import Geometry, as_triple
from phoi_models.volume import Volume

from phoi_training.import_model.errors import OutputsDiffer
from phoi_training.import_model.monai_parts import (
    MetaTensor,
    Orientation,
    RetinaNetDetector,
    ScaleIntensityRange,
    Spacing,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Run = Callable[[Floats], tuple[Floats, ...]]
"""A network: from patches to its outputs."""

_COMPARED = 300
_MOST_LOGIT_DIFFERENCE = 0.01
"""Of the logits of scores: 0.0025 of a score of 0.5, one hundredth of a small one."""
_MOST_CORNER_DIFFERENCE_MM = 0.1
_AIR_HU = -1024
_PAIRS = ("LR", "PA", "SI")
_RAS_OF_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Agreement:
    """How MONAI in torch and Phoi in ONNX Runtime agreed on one volume.

    Attributes:
        boxes: compared, on both sides.
        score_difference: the largest, of scores from 0 to 1.
        corner_difference_mm: the largest of any corner along any axis.
    """

    boxes: int
    score_difference: float
    corner_difference_mm: float

    def sentence(self, on: str) -> str:
        """What was found, for people; ``on`` says on what volume."""
        return (
            f"{self.boxes} boxes of MONAI in torch and of Phoi in ONNX Runtime are the same on"
            f" {on}: scores within {self.score_difference:.1g}, corners within"
            f" {self.corner_difference_mm:.1g} mm"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes in the patient.

    Attributes:
        ends_lps_mm: [N, 2, 3], the low and the high corner along the input's axes, LPS, mm.
        scores: [N].
    """

    ends_lps_mm: Doubles
    scores: Doubles

    def clearly_above(self, score: float) -> Found:
        """Those whose equals on the other side are not below ``score``."""
        kept = _logit(self.scores) > _logit(np.array(score)) + _MOST_LOGIT_DIFFERENCE
        return Found(self.ends_lps_mm[kept], self.scores[kept])


def in_onnx_runtime(path: Path, parameters: AnchorBoxParameters) -> Run:
    """The exported network, on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda patches: tuple(session.run(list(parameters.outputs), {"image": patches}))


def compare(
    detector: RetinaNetDetector, parameters: AnchorBoxParameters, volume: Volume, run: Run
) -> Agreement:
    """Hold Phoi's way from a CT to boxes against MONAI's own.

    MONAI turns, resamples and scales the volume with its own transforms and finds boxes with its
    own detector; Phoi does all of it in numpy around ``run``. The score threshold is lowered to
    that of the 300th best anchor, so that an untrained or a quiet network is compared too.

    Args:
        detector: with the weights; its settings are changed.
        parameters: made from it.
        volume: see :func:`small_part`.
        run: the exported network.

    Raises:
        OutputsDiffer: a box has no equal on the other side.
    """
    grid = to_input_grid(volume, parameters.axes, parameters.input_spacing_mm)
    recorded = _Recorded(run)
    everything = {"score_threshold": 0.0, "nms_iou": 1.0, "most_boxes": _COMPARED}
    best = find_boxes(grid, parameters.model_copy(update=everything), recorded.run)
    if not best.scores.size or not np.isfinite(best.corners).all():
        raise OutputsDiffer("the exported network gives no box at all on the volume of the check")
    lowered = parameters.model_copy(update={"score_threshold": float(best.scores[-1])})
    boxes = find_boxes(grid, lowered, recorded.again())
    ends = [grid.index_to_lps(end) for end in np.split(boxes.corners, 2, axis=1)]
    own = Found(np.stack(ends, axis=1), boxes.scores)
    return _agreement(own, found_by_monai(detector, lowered, volume), lowered.score_threshold)


def found_by_monai(
    detector: RetinaNetDetector, parameters: AnchorBoxParameters, volume: Volume
) -> Found:
    """MONAI's transforms and detector, as its bundle runs them."""
    affine = np.eye(4)
    affine[:3, :3] = volume.geometry.matrix * _RAS_OF_LPS[:, None]
    affine[:3, 3] = np.asarray(volume.geometry.origin_lps_mm) * _RAS_OF_LPS
    low, high = parameters.window_hu
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of MONAI, about its own defaults
        image = MetaTensor(torch.from_numpy(volume.hu[None].astype(np.float32)), affine=affine)
        image = Orientation(axcodes=parameters.axes)(image)
        image = Spacing(pixdim=parameters.input_spacing_mm)(image)
        to_ras = image.affine.numpy()
        image = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(image)
        _set(detector, parameters)
        found = detector([image.as_tensor().float()], use_inferer=True)[0]
    corners = found[detector.target_box_key].numpy().astype(np.float64).reshape(-1, 2, 3)
    ends = (corners @ to_ras[:3, :3].T + to_ras[:3, 3]) * _RAS_OF_LPS
    return Found(ends, found[detector.pred_score_key].numpy().astype(np.float64))


def _set(detector: RetinaNetDetector, parameters: AnchorBoxParameters) -> None:
    """Patches at the same steps, and the same choice of boxes."""
    steps = _steps(parameters)
    overlap = [
        max(0.0, (n - step - 0.5) / n)  # MONAI rounds the step down
        for n, step in zip(parameters.patch_shape, steps, strict=True)
    ]
    detector.set_sliding_window_inferer(parameters.patch_shape, 1, overlap, mode="constant")
    detector.set_box_selector_parameters(
        score_thresh=parameters.score_threshold,
        topk_candidates_per_level=parameters.top_k_per_level,
        nms_thresh=parameters.nms_iou,
        detections_per_img=parameters.most_boxes,
    )


def _steps(parameters: AnchorBoxParameters) -> list[int]:
    axes = zip(parameters.patch_shape, parameters.lattice, strict=True)
    return [patch_step(patch, lattice, parameters.overlap) for patch, lattice in axes]


def _agreement(own: Found, theirs: Found, threshold: float) -> Agreement:
    """The largest differences between each box and its equal on the other side."""
    pairs = [
        _to_nearest(own.clearly_above(threshold), theirs),
        _to_nearest(theirs.clearly_above(threshold), own),
    ]
    corner, logit, score = (np.concatenate(column) for column in zip(*pairs, strict=True))
    apart = (corner > _MOST_CORNER_DIFFERENCE_MM) | (logit > _MOST_LOGIT_DIFFERENCE)
    if not corner.size or apart.any():
        raise OutputsDiffer(
            f"MONAI in torch and ONNX Runtime disagree: {np.count_nonzero(apart)} of {corner.size}"
            " boxes have no equal on the other side, so the model is not imported"
        )
    return Agreement(len(own.scores), float(score.max()), float(corner.max()))


def _to_nearest(boxes: Found, others: Found) -> tuple[Doubles, Doubles, Doubles]:
    """From each box to its nearest: the farthest corner, mm; differences of logit and score."""
    if not others.scores.size:
        infinite = np.full(boxes.scores.shape, np.inf)
        return infinite, infinite, infinite
    away = np.abs(boxes.ends_lps_mm[:, None] - others.ends_lps_mm[None]).max(axis=(2, 3))
    scores = others.scores[away.argmin(axis=1)]
    logits = np.abs(_logit(boxes.scores) - _logit(scores))
    return away.min(axis=1), logits, np.abs(boxes.scores - scores)


def _logit(scores: Doubles) -> Doubles:
    inside = np.clip(scores, 1e-9, 1 - 1e-5)  # nearer to 1, float32 has too few digits
    logit: Doubles = np.log(inside / (1 - inside))
    return logit


def small_part(volume: Volume, parameters: AnchorBoxParameters) -> Volume:
    """The middle of a volume, as large as two patches that overlap along the last axis.

    Where the volume is smaller, air is added: MONAI would add it on both sides, which moves its
    anchors off their cells.
    """
    voxels = np.array(parameters.patch_shape)
    voxels[2] += _steps(parameters)[2]
    letters = [max(range(3), key=lambda i: abs(axis[i])) for axis in volume.geometry.axes_lps]
    hu, origin = volume.hu, np.asarray(volume.geometry.origin_lps_mm)
    for axis, lps in enumerate(letters):
        along = next(i for i, letter in enumerate(parameters.axes) if letter in _PAIRS[lps])
        size = parameters.input_spacing_mm[along] / volume.geometry.spacing_mm[axis]
        count = math.floor((voxels[along] - 1) * size) + 1
        first = (hu.shape[axis] - count) // 2
        hu = _part(hu, axis, first, count)
        origin = origin + volume.geometry.matrix[:, axis] * first
    geometry = volume.geometry
    cut = Geometry(
        (hu.shape[0], hu.shape[1], hu.shape[2]),
        geometry.spacing_mm,
        as_triple(origin),
        geometry.axes_lps,
    )
    return Volume(np.ascontiguousarray(hu), cut)


def _part(hu: NDArray[np.int16], axis: int, first: int, count: int) -> NDArray[np.int16]:
    """``count`` voxels along an axis from ``first`` on, which may lie outside."""
    before, after = max(0, -first), max(0, first + count - hu.shape[axis])
    padding = [(0, 0)] * 3
    padding[axis] = (before, after)
    padded = np.pad(hu, padding, constant_values=_AIR_HU)
    return padded.take(range(first + before, first + before + count), axis)


class _Recorded:
    """A network whose outputs can be had again without running it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._outputs: list[tuple[Floats, ...]] = []

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        """Run it."""
        self._outputs.append(self._run(patches))
        return self._outputs[-1]

    def again(self) -> Run:
        """Gives the same outputs in the same order, whatever it is given."""
        outputs = iter(self._outputs)
        return lambda _patches: next(outputs)
