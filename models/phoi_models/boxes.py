"""Run a detector with anchor boxes over a chest and read its boxes: RetinaNet without torch.

The input is the CT resampled along its own axes, turned to the axes that the network was trained
with. Overlapping patches are averaged before anything is decoded; boxes of a lower score that
overlap a better one are dropped (Lin et al., ICCV 2017; in 3D: MONAI's ``RetinaNetDetector``, whose
results these are). A box is six numbers: the low, then the high ends along the input's three axes,
in voxels, where 0 is the centre of the first voxel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phoi_models.bundle import AnchorBoxParameters, AnchorLevel
from phoi_models.errors import Cancelled
from phoi_models.geometry import Index, Triple, as_triple
from phoi_models.volume import Volume

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_LPS_OF_LETTER = {
    "L": (1, 0, 0),
    "R": (-1, 0, 0),
    "P": (0, 1, 0),
    "A": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}
_LARGEST_GROWTH = math.log(1000 / 16)
"""A box is at most this much larger than its anchor: the clip of torchvision and MONAI."""
_SMALLEST_BOX = 1.0


@dataclass(frozen=True, eq=False)
class InputGrid:
    """A CT in the voxels and along the axes that a network wants.

    Attributes:
        hu: float32 HU.
        origin_lps_mm: LPS position of the centre of voxel (0, 0, 0), mm.
        steps_lps_mm: [3, 3], for each axis the LPS step from one voxel to the next, mm.
    """

    hu: Floats
    origin_lps_mm: Triple
    steps_lps_mm: Doubles

    def index_to_lps(self, index: ArrayLike) -> Doubles:
        """LPS positions, mm, of (fractional) indices along this grid's axes."""
        lps: Doubles = np.asarray(index, np.float64) @ self.steps_lps_mm + self.origin_lps_mm
        return lps

    def lps_to_index(self, lps_mm: ArrayLike) -> Doubles:
        """Fractional indices along this grid's axes of LPS positions, mm."""
        offset = np.asarray(lps_mm, np.float64) - self.origin_lps_mm
        index: Doubles = offset @ np.linalg.inv(self.steps_lps_mm)
        return index


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a network found on an input grid, best first.

    Attributes:
        corners: [N, 6], low and high ends along the grid's axes, voxels.
        scores: [N], 0 to 1.
    """

    corners: Doubles
    scores: Doubles

    def centers_lps_mm(self, grid: InputGrid) -> Doubles:
        """[N, 3] LPS, mm."""
        return grid.index_to_lps((self.corners[:, :3] + self.corners[:, 3:]) / 2)

    def diameters_mm(self, grid: InputGrid) -> Doubles:
        """[N] means of the three extents, mm: a nodule's box is as large as its diameter."""
        voxel_mm = np.linalg.norm(grid.steps_lps_mm, axis=1)
        extents = (self.corners[:, 3:] - self.corners[:, :3]) * voxel_mm
        means: Doubles = extents.mean(axis=1)
        return means


def to_input_grid(volume: Volume, axes: str, spacing_mm: Triple) -> InputGrid:
    """Turn a volume to ``axes`` and resample it linearly along each of them.

    The first voxel stays where it is, and an oblique block stays oblique: the ``Orientation`` and
    ``Spacing`` of MONAI, with which such networks are trained.

    Args:
        volume: any orientation; axes may lean.
        axes: three letters, where each axis of the new grid grows to: "RAS".
        spacing_mm: voxel size along the new axes, mm.
    """
    geometry = volume.geometry
    order, flipped = _turn(np.asarray(geometry.axes_lps), axes)
    hu = volume.hu.transpose(order)
    steps = (
        np.asarray(geometry.axes_lps)[list(order)]
        * np.asarray(geometry.spacing_mm)[list(order), None]
    )
    origin = np.asarray(geometry.origin_lps_mm, dtype=np.float64)
    for axis, flip in enumerate(flipped):
        if flip:
            hu = np.flip(hu, axis)
            origin = origin + steps[axis] * (hu.shape[axis] - 1)
            steps[axis] *= -1
    resampled = hu.astype(np.float32)
    for axis, new in enumerate(spacing_mm):
        old = float(np.linalg.norm(steps[axis]))
        resampled = _resampled(resampled, axis, new / old)
        steps[axis] *= new / old
    return InputGrid(resampled, as_triple(origin), steps)


def _turn(axes_lps: Doubles, axes: str) -> tuple[Index, tuple[bool, ...]]:
    """Which array axis comes nearest to each wanted direction, and whether it has to be turned."""
    wanted = np.array([_LPS_OF_LETTER[letter] for letter in axes], dtype=np.float64)
    along = wanted @ axes_lps.T  # cosines: wanted direction, array axis
    order = max(
        itertools.permutations(range(3)),
        key=lambda some: sum(abs(along[axis, some[axis]]) for axis in range(3)),
    )
    return (order[0], order[1], order[2]), tuple(along[i, order[i]] < 0 for i in range(3))


def _resampled(values: Floats, axis: int, step: float) -> Floats:
    """Linear interpolation along one axis at every ``step`` voxels, from the first voxel on."""
    count = values.shape[axis]
    new = round((count - 1) / step + 1)
    if new == count and math.isclose(step, 1.0, rel_tol=1e-6):
        return values
    at = np.minimum(np.arange(new) * step, count - 1)
    low = np.minimum(at.astype(int), max(0, count - 2))
    shape = [1, 1, 1]
    shape[axis] = new
    part = (at - low).astype(np.float32).reshape(shape)
    lower: Floats = values.take(low, axis)
    upper = values.take(np.minimum(low + 1, count - 1), axis)
    upper -= lower
    upper *= part
    lower += upper
    return lower


def find_boxes(
    grid: InputGrid,
    parameters: AnchorBoxParameters,
    run: Callable[[Floats], Sequence[Floats]],
    *,
    near_lps_mm: Doubles | None = None,
    batch_size: int = 1,
    on_progress: Callable[[float], None] = lambda _fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Boxes:
    """Run the network and read its boxes, down to its own score threshold.

    Args:
        grid: of the axes and voxels that ``parameters`` name.
        parameters: how to feed and read the network.
        run: the network, from patches [N, 1, ...] to its outputs in the order of
            ``parameters.outputs``.
        near_lps_mm: [N, 3], mm; only patches that hold one of these points are run. None: all.
        batch_size: patches given to the network at once.
        on_progress: told the fraction of patches done, 0 to 1.
        cancelled: asked before each batch.

    Raises:
        Cancelled: ``cancelled`` returned True.
    """
    image = _windowed(grid.hu, parameters)
    starts = _patches(image.shape, parameters, grid, near_lps_mm)
    maps = [_Maps.empty(image.shape, level) for level in parameters.levels]
    for first in range(0, len(starts), batch_size):
        if cancelled():
            raise Cancelled("the analysis was cancelled")
        batch = starts[first : first + batch_size]
        patches = np.stack([_patch(image, start, parameters.patch_shape) for start in batch])
        outputs = run(patches[:, None])
        logits, boxes = outputs[: len(maps)], outputs[len(maps) :]
        for level, level_logits, level_boxes in zip(maps, logits, boxes, strict=True):
            level.add(batch, level_logits, level_boxes)
        on_progress((first + len(batch)) / len(starts))
    found = [_decoded(level, parameters) for level in maps]
    corners = np.concatenate([boxes.corners for boxes in found])
    scores = np.concatenate([boxes.scores for boxes in found])
    return suppressed(clipped(Boxes(corners, scores), grid.hu.shape), parameters)


def _windowed(hu: Floats, parameters: AnchorBoxParameters) -> Floats:
    """0 to 1, with as much of 0 behind the ends as makes whole cells and at least one patch."""
    low, high = parameters.window_hu
    shape = [
        max(patch, -(-n // cells) * cells)
        for n, patch, cells in zip(
            hu.shape, parameters.patch_shape, parameters.lattice, strict=True
        )
    ]
    image = np.zeros(shape, dtype=np.float32)
    inside = image[tuple(slice(n) for n in hu.shape)]
    np.subtract(hu, low, out=inside)
    inside /= high - low
    np.clip(inside, 0.0, 1.0, out=inside)
    return image


def _patches(
    shape: tuple[int, ...],
    parameters: AnchorBoxParameters,
    grid: InputGrid,
    near_lps_mm: Doubles | None,
) -> list[Index]:
    """The first voxels of the patches; all lie on the lattice and inside the image."""
    points = None
    low, high = np.zeros(3), np.asarray(shape, dtype=np.float64)
    if near_lps_mm is not None:
        points = grid.lps_to_index(near_lps_mm)
        low, high = np.maximum(low, points.min(axis=0)), np.minimum(high, points.max(axis=0) + 1)
    along = [
        starts_along((low[axis], high[axis]), shape[axis], patch, lattice, parameters.overlap)
        for axis, (patch, lattice) in enumerate(
            zip(parameters.patch_shape, parameters.lattice, strict=True)
        )
    ]
    starts = [(x, y, z) for x, y, z in itertools.product(*along)]
    if points is None:
        return starts
    return [start for start in starts if _holds(start, parameters.patch_shape, points)]


def starts_along(
    part: tuple[float, float], size: int, patch: int, lattice: int, overlap: float
) -> list[int]:
    """First voxels of the patches that cover ``part`` of one axis.

    Args:
        part: from and to, voxels.
        size: of the image; it, ``patch`` and all starts are multiples of ``lattice``.
        patch: size of a patch.
        lattice: voxels that hold whole cells.
        overlap: of neighbours, at least, as a part of the patch.
    """
    step = patch_step(patch, lattice, overlap)
    first = min(max(0, math.floor(part[0] / lattice) * lattice), size - patch)
    last = min(max(first, math.ceil(part[1] / lattice) * lattice - patch), size - patch)
    return [*range(first, last, step), last]


def patch_step(patch: int, lattice: int, overlap: float) -> int:
    """Voxels from one patch to the next, whole cells."""
    return max(1, int(patch * (1 - overlap)) // lattice) * lattice


def _holds(start: Index, shape: Index, points: Doubles) -> bool:
    inside = (points >= start) & (points < np.add(start, shape))
    return bool(inside.all(axis=1).any())


def _patch(image: Floats, start: Index, shape: Index) -> Floats:
    patch: Floats = image[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    return patch


@dataclass(frozen=True, eq=False)
class _Maps:
    """The summed outputs of one level: cells along the grid's axes, channels first."""

    level: AnchorLevel
    logits: Floats
    boxes: Floats
    patches: NDArray[np.int32]

    @classmethod
    def empty(cls, shape: tuple[int, ...], level: AnchorLevel) -> _Maps:
        cells = tuple(n // s for n, s in zip(shape, level.stride, strict=True))
        anchors = len(level.anchors)
        return cls(
            level,
            np.zeros((anchors, *cells), np.float32),
            np.zeros((6 * anchors, *cells), np.float32),
            np.zeros(cells, np.int32),
        )

    def add(self, starts: Sequence[Index], logits: Floats, boxes: Floats) -> None:
        """Add the outputs of a batch."""
        for start, patch_logits, patch_boxes in zip(starts, logits, boxes, strict=True):
            at = tuple(
                slice(first // s, first // s + n)
                for first, s, n in zip(
                    start, self.level.stride, patch_logits.shape[1:], strict=True
                )
            )
            self.logits[:, *at] += patch_logits
            self.boxes[:, *at] += patch_boxes
            self.patches[at] += 1


def _decoded(maps: _Maps, parameters: AnchorBoxParameters) -> Boxes:
    """The best boxes of a level."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scores = 1 / (1 + np.exp(-(maps.logits / maps.patches).astype(np.float64)))
    above = np.argwhere(scores > parameters.score_threshold)  # not where no patch was run: nan
    values = scores[tuple(above.T)]
    best = np.argsort(-values, kind="stable")[: parameters.top_k_per_level]
    anchor, cells = above[best, 0], above[best, 1:]
    at = tuple(cells.T)
    each = maps.boxes.reshape(len(maps.level.anchors), 6, *maps.patches.shape)
    codes = each[anchor, :, *at] / maps.patches[at][:, None]
    corners = decode(codes.astype(np.float64), cells, anchor, maps.level)
    return Boxes(corners, values[best])


def decode(
    codes: Doubles, cells: NDArray[np.int64], anchor: NDArray[np.int64], level: AnchorLevel
) -> Doubles:
    """Boxes [N, 6] from what the network says of anchors (Girshick et al., CVPR 2014).

    Args:
        codes: [N, 6]: shift of the centre in parts of the anchor's extents, and the logarithm of
            the extents in parts of the anchor's.
        cells: [N, 3], in which each anchor lies.
        anchor: [N], which of the level's anchors it is.
        level: its strides and anchors.
    """
    stride = np.asarray(level.stride)
    extents = np.asarray(level.anchors, dtype=np.float64)[anchor]
    centers = cells * stride + stride // 2 + codes[:, :3] * extents
    halves = np.exp(np.minimum(codes[:, 3:], _LARGEST_GROWTH)) * extents / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def clipped(boxes: Boxes, shape: tuple[int, ...]) -> Boxes:
    """Cut to the image; what is then thinner than a voxel is dropped."""
    corners = np.clip(boxes.corners, 0.0, np.tile(shape, 2))
    kept = (corners[:, 3:] - corners[:, :3] >= _SMALLEST_BOX).all(axis=1)
    return Boxes(corners[kept], boxes.scores[kept])


def suppressed(boxes: Boxes, parameters: AnchorBoxParameters) -> Boxes:
    """Non-maximum suppression: best first, without what overlaps a better one."""
    left = np.argsort(-boxes.scores, kind="stable")
    kept: list[int] = []
    while left.size and len(kept) < parameters.most_boxes:
        best, left = left[0], left[1:]
        kept.append(int(best))
        overlap = intersection_over_union(boxes.corners[best], boxes.corners[left])
        left = left[overlap <= parameters.nms_iou]
    return Boxes(boxes.corners[kept], boxes.scores[kept])


def intersection_over_union(box: Doubles, others: Doubles) -> Doubles:
    """Of one box [6] with each of [N, 6]."""
    low, high = np.maximum(box[:3], others[:, :3]), np.minimum(box[3:], others[:, 3:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    volumes = np.prod(others[:, 3:] - others[:, :3], axis=1)
    union: Doubles = shared / (np.prod(box[3:] - box[:3]) + volumes - shared)
    return union
