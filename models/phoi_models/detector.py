"""Run a centre-heatmap network over a chest and read its marks.

The network sees overlapping patches; only the inner part of each is kept where another patch
covers its border (overlap-tile, Ronneberger et al., MICCAI 2015), so the stitched heat map has no
seams. Marks are its local maxima (CenterNet, Zhou et al., arXiv:1904.07850), merged so that one
lesion is one mark. A second network may look again at each of them. All arrays have axes (z, y, x)
of the canonical grid. Networks with anchor boxes are run by ``phoi_models.boxes``; their boxes
become marks here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.boxes import find_boxes, to_input_grid
from phoi_models.bundle import (
    AnchorBoxParameters,
    AnyParameters,
    Calibration,
    DetectorParameters,
    SecondLook,
)
from phoi_models.canonical import CanonicalGrid
from phoi_models.errors import Cancelled as Cancelled
from phoi_models.findings import Region
from phoi_models.geometry import Index, Triple, as_triple
from phoi_models.lungs import LungMask
from phoi_models.volume import Volume

Floats = NDArray[np.float32]
_Box = tuple[slice, slice, slice]

_LEAST_SCORE = 0.02
_MOST_CANDIDATES = 500
_DIAMETERS_MM = (2.0, 80.0)
_OUTSIDE_MM = 3.0
_LEAST_INSIDE = 0.15
"""Of a mark that is wider by ``_OUTSIDE_MM`` on all sides: 0.29 of the mark of a 45 mm tumour on
the diaphragm lies in the lung mask, 0.58 and more of what was planted on the pleura of ten CT; of
38 mm in the mediastinum, 15 mm from a lung, 0.03 to 0.1."""
_SEARCHED_OUTSIDE_MM = 8.0
_SPARSE = 4
_LARGEST_PATCH = 3_000_000
"""Voxels of a patch whose shape is free: it bounds the memory, and how long a cancel waits."""
_MOST_PATCHES_ALONG = 5
_LEAST_APART_MM = 4.0
_SECOND_LOOK_SHARE = 0.25
"""Of the time, for the progress."""
_SECOND_LOOK_MM = 5.0
"""How far from a small mark the second network may see it."""


class Heads(Protocol):
    """A network ready to run, whatever runs it."""

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        """Run the network on a batch.

        Args:
            patches: [N, 1, D, H, W], windowed to 0..1.

        Returns:
            What ``outputs`` of its parameters names, in that order.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A mark of the detector, not yet measured.

    Attributes:
        center_lps_mm: LPS, mm.
        diameter_mm: as the network estimates it.
        probability: calibrated, 0 to 1, that it is a nodule.
    """

    center_lps_mm: Triple
    diameter_mm: float
    probability: float


def detect(
    canonical: CanonicalGrid,
    lungs: LungMask,
    parameters: AnyParameters,
    heads: Heads,
    *,
    volume: Volume | None = None,
    second_look: Heads | None = None,
    region: Region = Region.LUNGS,
    batch_size: int = 1,
    on_progress: Callable[[float], None] = lambda _fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Candidate, ...]:
    """Find nodule candidates down to very low probability; thresholds are the caller's.

    Args:
        canonical: grid of ``parameters.spacing_mm``.
        lungs: mask on the same grid.
        parameters: how to feed and read the network.
        heads: the network.
        volume: what the grid was made of; networks with anchor boxes resample it for themselves.
        second_look: the network that ``parameters.second_look`` describes.
        region: ``LUNGS`` runs patches that touch the lungs and keeps marks in them or at their
            border; ``WHOLE`` does neither.
        batch_size: patches given to the network at once.
        on_progress: told the fraction of patches done, 0 to 1.
        cancelled: asked before each batch.

    Returns:
        One candidate per lesion, most probable first.

    Raises:
        ValueError: the grid's spacing is not that of the parameters, or the network for the second
            look or the volume is missing.
        Cancelled: ``cancelled`` returned True.
    """
    if (parameters.second_look is None) != (second_look is None):
        raise ValueError("the parameters and the networks disagree on a second look")
    if canonical.spacing_mm != parameters.spacing_mm:
        raise ValueError(
            f"the network needs a grid of {parameters.spacing_mm} mm, got {canonical.spacing_mm} mm"
        )
    searched = _searched(canonical, lungs, region)
    runner = _Runner(heads, batch_size, on_progress, cancelled)
    if isinstance(parameters, AnchorBoxParameters):
        if volume is None:
            raise ValueError("a network with anchor boxes needs the volume")
        marks = _boxed(volume, canonical, searched, parameters, runner)
    else:
        share = 1.0 if second_look is None else 1.0 - _SECOND_LOOK_SHARE
        maps = _run(canonical, searched, parameters, runner, share)
        marks = _peaks(maps, canonical, parameters.stride)
    if region is Region.LUNGS:
        marks = [mark for mark in marks if _belongs(mark, canonical, lungs)]
    marks = list(merged(marks))
    if parameters.second_look is not None and second_look is not None:
        again = replace(runner, heads=second_look)
        marks = _looked_at_again(marks, canonical, parameters, again, parameters.second_look)
        marks = list(merged(marks))
    return _with_probabilities(marks, parameters.calibration)


@dataclass(frozen=True)
class _Runner:
    """A network, and how it is run."""

    heads: Heads
    batch_size: int
    on_progress: Callable[[float], None]
    cancelled: Callable[[], bool]


def _boxed(
    volume: Volume,
    canonical: CanonicalGrid,
    searched: NDArray[np.bool_],
    parameters: AnchorBoxParameters,
    runner: _Runner,
) -> list[Candidate]:
    """The boxes of a network with anchors, as marks; scores, not yet probabilities."""
    grid = to_input_grid(volume, parameters.axes, parameters.input_spacing_mm)
    whole = bool(searched.all())
    boxes = find_boxes(
        grid,
        parameters,
        runner.heads.run,
        near_lps_mm=None if whole else canonical.index_to_lps(np.argwhere(searched) * _SPARSE),
        batch_size=runner.batch_size,
        on_progress=runner.on_progress,
        cancelled=runner.cancelled,
    )
    diameters = np.clip(boxes.diameters_mm(grid), *_DIAMETERS_MM)
    return [
        Candidate(as_triple(center), float(diameter), float(score))
        for center, diameter, score in zip(
            boxes.centers_lps_mm(grid), diameters, boxes.scores, strict=True
        )
    ]


def _run(
    canonical: CanonicalGrid,
    searched: NDArray[np.bool_],
    parameters: DetectorParameters,
    runner: _Runner,
    share: float,
) -> _Maps:
    """The outputs of a centre-heatmap network; this is ``share`` of the progress."""
    shape = _patch_shape(searched, parameters)
    tiles = _tiles(searched, _box(searched), shape, parameters)
    maps = _Maps.empty(canonical.hu.shape, parameters.stride)
    for first in range(0, len(tiles), runner.batch_size):
        if runner.cancelled():
            raise Cancelled("the analysis was cancelled")
        batch = tiles[first : first + runner.batch_size]
        patches = np.stack(
            [cut_patch(canonical.hu, tile.start, shape, parameters) for tile in batch]
        )
        maps.put(batch, runner.heads.run(patches[:, None]))
        runner.on_progress(share * (first + len(batch)) / len(tiles))
    return maps


@dataclass(frozen=True)
class _Tile:
    """One patch of the plan.

    Attributes:
        start: index (z, y, x) of its first voxel on the grid; may lie outside.
        kept: which of its cells, per axis, are kept.
    """

    start: Index
    kept: tuple[slice, slice, slice]


def _searched(canonical: CanonicalGrid, lungs: LungMask, region: Region) -> NDArray[np.bool_]:
    """Bool array, axes (z, y, x): at one voxel in ``_SPARSE``, where marks are looked for."""
    sparse = (slice(None, None, _SPARSE),) * 3
    if region is Region.WHOLE:
        return np.ones_like(canonical.hu[sparse], dtype=bool)
    reach = round(_SEARCHED_OUTSIDE_MM / canonical.spacing_mm / _SPARSE)
    cube = ndimage.generate_binary_structure(3, 3)
    near: NDArray[np.bool_] = ndimage.binary_dilation(
        lungs.inside[sparse], structure=cube, iterations=max(1, reach)
    )
    return near


def _patch_shape(searched: NDArray[np.bool_], parameters: DetectorParameters) -> Index:
    """The shape of patch with which the network sees the fewest voxels.

    Few large patches overlap less than many small ones, and fit the lungs better: of one shape for
    all lungs nearly half the voxels were seen twice or lay outside.
    """
    if parameters.patch_multiple is None:
        return parameters.patch_shape
    box = _box(searched)
    z, y, x = (_patches_along(part, parameters.patch_multiple, parameters) for part in box)
    choices = itertools.product(z, y, x)
    fitting = [shape for shape in choices if math.prod(shape) <= _LARGEST_PATCH]
    return min(
        [parameters.patch_shape, *fitting],
        key=lambda shape: len(_tiles(searched, box, shape, parameters)) * math.prod(shape),
    )


def _patches_along(part: slice, multiple: int, parameters: DetectorParameters) -> list[int]:
    """The lengths of patch that cover one axis with one, two and more of them, voxels."""
    border = 2 * math.ceil(parameters.margin / parameters.stride) * parameters.stride
    length = _extent(part, parameters.stride) * parameters.stride
    lengths = {
        math.ceil((math.ceil(length / count) + border) / multiple) * multiple
        for count in range(1, _MOST_PATCHES_ALONG + 1)
    }
    return sorted(lengths)


def _extent(part: slice, stride: int) -> int:
    """Cells that hold ``part``, which counts in steps of ``_SPARSE`` voxels."""
    low, high = int(part.start) * _SPARSE, int(part.stop) * _SPARSE
    return -(-high // stride) - low // stride


def _box(searched: NDArray[np.bool_]) -> _Box:
    """The smallest box that holds all that is searched."""
    z, y, x = ndimage.find_objects(searched.view(np.uint8))[0]
    return (z, y, x)


def _tiles(
    searched: NDArray[np.bool_], box: _Box, shape: Index, parameters: DetectorParameters
) -> list[_Tile]:
    """The patches of a shape whose kept part touches what is searched."""
    plans = [
        list(_tiles_along(part, patch, parameters.stride, parameters.margin))
        for part, patch in zip(box, shape, strict=True)
    ]
    tiles = []
    for z, y, x in itertools.product(*plans):
        tile = _Tile((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        low = [a + k.start * parameters.stride for a, k in zip(tile.start, tile.kept, strict=True)]
        high = [a + k.stop * parameters.stride for a, k in zip(tile.start, tile.kept, strict=True)]
        inner = tuple(
            slice(max(0, a) // _SPARSE, -(-max(0, b) // _SPARSE))
            for a, b in zip(low, high, strict=True)
        )
        if searched[inner].any():
            tiles.append(tile)
    return tiles


def _tiles_along(part: slice, patch: int, stride: int, margin: int) -> Iterator[tuple[int, slice]]:
    """First voxel and kept cells of each patch along one axis.

    ``part`` counts in steps of ``_SPARSE`` voxels. Patches start at multiples of the stride, so
    that their cells lie on one common lattice, and share out what they cover beyond the part.
    """
    cells = patch // stride
    border = -(-margin // stride)
    step = cells - 2 * border
    extent = _extent(part, stride)
    count = -(-extent // step)
    first = part.start * _SPARSE // stride - (count * step - extent) // 2 - border
    for number in range(count):
        yield (first + number * step) * stride, slice(border, cells - border)


def cut_block(
    hu: NDArray[np.int16], start: Sequence[int] | NDArray[np.int_], shape: Index
) -> NDArray[np.int16]:
    """A block of a volume, which may reach beyond it: there the outermost voxels go on.

    Air there would end every vessel that the scan cuts in what looks like a nodule.

    Args:
        hu: axes (z, y, x).
        start: index (z, y, x) of the block's first voxel; may lie outside.
        shape: of the block (z, y, x), voxels.
    """
    inside = [
        np.clip(np.arange(first, first + length), 0, size - 1)
        for first, length, size in zip(start, shape, hu.shape, strict=True)
    ]
    block: NDArray[np.int16] = hu[np.ix_(*inside)]
    return block


def cut_patch(
    hu: NDArray[np.int16], start: Index, shape: Index, parameters: DetectorParameters
) -> Floats:
    """One patch as the network wants it.

    Args:
        hu: int16, axes (z, y, x).
        start: index (z, y, x) of the patch's first voxel; may lie outside.
        shape: of the patch (z, y, x), voxels.
        parameters: give the window.

    Returns:
        float32 of ``shape``, windowed to 0..1.
    """
    low, high = parameters.window_hu
    patch = cut_block(hu, start, shape).astype(np.float32)
    patch -= low
    patch /= high - low
    return np.clip(patch, 0.0, 1.0, out=patch)


@dataclass(frozen=True, eq=False)
class _Maps:
    """The stitched outputs of the network: cells (z, y, x), ``offset`` with (z, y, x) first."""

    heat: Floats
    diameter: Floats
    offset: Floats
    stride: int

    @classmethod
    def empty(cls, shape: tuple[int, ...], stride: int) -> _Maps:
        """Maps that hold no mark."""
        cells = tuple(-(-n // stride) for n in shape)
        zeros = np.zeros(cells, dtype=np.float32)
        return cls(zeros, zeros.copy(), np.zeros((3, *cells), dtype=np.float32), stride)

    def put(self, tiles: Sequence[_Tile], outputs: tuple[Floats, ...]) -> None:
        """Write the kept cells of a batch."""
        for tile, heat, diameter, offset in zip(tiles, *outputs, strict=True):
            source: list[slice] = []
            target: list[slice] = []
            for start, kept, count in zip(tile.start, tile.kept, self.heat.shape, strict=True):
                shift = start // self.stride
                low, high = max(0, shift + kept.start), min(count, shift + kept.stop)
                target.append(slice(low, max(low, high)))
                source.append(slice(low - shift, max(low, high) - shift))
            inner, outer = tuple(source), tuple(target)
            self.heat[outer] = heat[0][inner]
            self.diameter[outer] = diameter[0][inner]
            self.offset[:, *outer] = offset[:, *inner]


def _peaks(maps: _Maps, canonical: CanonicalGrid, stride: int) -> list[Candidate]:
    """The local maxima of the heat map, most probable first; scores, not yet probabilities."""
    highest = ndimage.maximum_filter(maps.heat, size=3, mode="constant")
    cells = np.argwhere((maps.heat >= _LEAST_SCORE) & (maps.heat == highest))
    scores = maps.heat[tuple(cells.T)]
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    cells, scores = cells[order], scores[order]
    at = tuple(cells.T)
    offset = np.clip(np.moveaxis(maps.offset, 0, -1)[at], -stride, stride)
    places = cells * stride + (stride - 1) / 2 + offset
    centers = _scanned_lps(canonical, places)
    diameters = np.clip(maps.diameter[at], *_DIAMETERS_MM)
    return [
        Candidate(as_triple(center), float(diameter), float(score))
        for center, diameter, score in zip(centers, diameters, scores, strict=True)
    ]


def _looked_at_again(
    marks: Sequence[Candidate],
    canonical: CanonicalGrid,
    parameters: DetectorParameters,
    runner: _Runner,
    how: SecondLook,
) -> list[Candidate]:
    """The same marks, the foremost of them with the joint score of both networks."""
    again = [mark for mark in marks[: how.most] if mark.probability >= how.least_score]
    joined: list[Candidate] = []
    for first in range(0, len(again), runner.batch_size):
        if runner.cancelled():
            raise Cancelled("the analysis was cancelled")
        batch = again[first : first + runner.batch_size]
        opinions = _second_opinions(batch, canonical, parameters, runner.heads, how.patch_shape)
        joined += [_joined(mark, second, how.weight) for mark, second in opinions]
        runner.on_progress(1 - _SECOND_LOOK_SHARE * (1 - len(joined) / len(again)))
    runner.on_progress(1.0)
    return [*joined, *marks[len(again) :]]


def _second_opinions(
    marks: Sequence[Candidate],
    canonical: CanonicalGrid,
    parameters: DetectorParameters,
    heads: Heads,
    shape: Index,
) -> Iterator[tuple[Candidate, Candidate]]:
    """Each mark, and what a network says of it in the middle of its patch."""
    starts: list[Index] = []
    for mark in marks:
        middle = canonical.lps_to_index(mark.center_lps_mm)
        z, y, x = (round(m) - n // 2 for m, n in zip(middle, shape, strict=True))
        starts.append((z, y, x))
    patches = np.stack([cut_patch(canonical.hu, start, shape, parameters) for start in starts])
    outputs = heads.run(patches[:, None])
    for mark, start, heat, diameter, offset in zip(marks, starts, *outputs, strict=True):
        maps = _Maps(heat[0], diameter[0], offset, parameters.stride)
        yield mark, _best_of_the_lesion(mark, canonical, start, maps)


def _best_of_the_lesion(
    mark: Candidate, canonical: CanonicalGrid, start: Index, maps: _Maps
) -> Candidate:
    """The highest score of a patch that lies on the lesion; the patch begins at ``start``."""
    stride = maps.stride
    cells = np.moveaxis(np.indices(maps.heat.shape), 0, -1)
    places = start + cells * stride + (stride - 1) / 2
    middle = canonical.lps_to_index(mark.center_lps_mm)
    away = np.linalg.norm(places - middle, axis=-1) * canonical.spacing_mm
    to_a_cell = math.sqrt(3) / 2 * stride * canonical.spacing_mm
    own = away <= max(mark.diameter_mm / 2, _SECOND_LOOK_MM, to_a_cell)
    best = np.unravel_index(int(np.argmax(np.where(own, maps.heat, -1.0))), own.shape)
    place = places[best] + np.clip(np.moveaxis(maps.offset, 0, -1)[best], -stride, stride)
    return Candidate(
        as_triple(_scanned_lps(canonical, place)),
        float(np.clip(maps.diameter[best], *_DIAMETERS_MM)),
        float(maps.heat[best]),
    )


def _scanned_lps(canonical: CanonicalGrid, index: NDArray[np.floating]) -> NDArray[np.float64]:
    """LPS, mm, of indices; of the nearest voxel for those beyond the grid."""
    last = np.array(canonical.hu.shape) - 1
    return canonical.index_to_lps(np.clip(index, 0, last))


def _joined(first: Candidate, second: Candidate, weight: float) -> Candidate:
    """What two networks say of one lesion: weighted means of place, log diameter and logit."""
    shares = np.array([1 - weight, weight])
    scores = np.clip([first.probability, second.probability], 1e-6, 1 - 1e-6)
    logit = float(shares @ np.log(scores / (1 - scores)))
    return Candidate(
        as_triple(shares @ np.array([first.center_lps_mm, second.center_lps_mm])),
        float(np.exp(shares @ np.log([first.diameter_mm, second.diameter_mm]))),
        1 / (1 + math.exp(-logit)),
    )


def _with_probabilities(
    marks: Sequence[Candidate], calibration: Calibration
) -> tuple[Candidate, ...]:
    """Calibrated, most probable first."""
    probabilities = calibrated(np.array([mark.probability for mark in marks]), calibration)
    rated = [
        replace(mark, probability=float(p)) for mark, p in zip(marks, probabilities, strict=True)
    ]
    return tuple(sorted(rated, key=lambda mark: -mark.probability))


def calibrated(scores: Floats, calibration: Calibration) -> NDArray[np.float64]:
    """Probability = sigmoid(slope * logit(score) + intercept) (Platt scaling)."""
    inside = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    logit = np.log(inside / (1 - inside))
    probability: NDArray[np.float64] = 1 / (
        1 + np.exp(-(calibration.slope * logit + calibration.intercept))
    )
    return probability


def _belongs(candidate: Candidate, canonical: CanonicalGrid, lungs: LungMask) -> bool:
    """Whether the mark's middle lies in a lung, or a good part of it, widened a little.

    The lung mask leaves out most of a mass that lies broadly on the chest wall or the diaphragm;
    a mark of the same size in the mediastinum reaches no lung, though one is no farther from it.
    """
    middle = canonical.lps_to_index(candidate.center_lps_mm)
    if lungs.nearest(middle)[1] == 0.0:
        return True
    radius = (candidate.diameter_mm / 2 + _OUTSIDE_MM) / canonical.spacing_mm
    low = np.maximum(np.ceil(middle - radius), 0).astype(int)
    high = np.minimum(np.floor(middle + radius) + 1, lungs.labels.shape).astype(int)
    block = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
    away = sum((place - m) ** 2 for place, m in zip(np.ogrid[block], middle, strict=True))
    ball = lungs.labels[block][away <= radius**2]
    return bool(np.count_nonzero(ball) >= _LEAST_INSIDE * max(1, ball.size))


def merged(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Keep the most probable mark of each lesion.

    Two marks are one lesion when the centre of one lies inside the other, as large as the
    network says it is, or when they are too near for two lesions to be told apart.
    """
    ranked = sorted(candidates, key=lambda c: -c.probability)
    kept: list[Candidate] = []
    for candidate in ranked:
        center = np.asarray(candidate.center_lps_mm)
        if not any(
            np.linalg.norm(center - other.center_lps_mm)
            < max(candidate.diameter_mm / 2, other.diameter_mm / 2, _LEAST_APART_MM)
            for other in kept
        ):
            kept.append(candidate)
    return tuple(kept)
