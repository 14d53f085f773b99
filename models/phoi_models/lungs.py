"""Lung mask, sides and coverage from a CT on the canonical grid, without a learned model.

Air inside the body is found by threshold and connected components, the trachea and main bronchi
are the tube among it, the two lungs are parted by erosion, and a closing takes in vessels and
nodules that touch the pleura: the classic chain of Hu, Hoffman and Reinhardt (IEEE Trans Med
Imaging 2001;20:490-8), run on a grid of about 2 mm and refined on the canonical one.

What holds no air (consolidation, effusion) is not seen as lung where it is broader than the closing
of 10 mm on each side reaches: a known limit. Nor is a mass that broad on the chest wall.

The field of view may cut the lungs at their sides. Lung that reaches the side of the image is kept,
and told from the air around the body by the chest wall or, where that is cut away, by its density
and its vessels; the coverage says that it is cut.

Arrays have axes (z, y, x) of the canonical grid: z grows to the head, y to the back, x to the
patient's left. So sides come from patient coordinates, never from where the picture shows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import LungCoverage, Side

RIGHT = 1
LEFT = 2
UNKNOWN_HU = -1500
"""Below this a voxel was never measured: outside the scanned block or the scanner's field."""

_COARSE_MM = 2.0
_AIR_HU = -400.0
_BODY_HU = -300.0
_BOUNDARY_HU = -450.0
_GAS_HU = -945.0
_DARKER_THAN_LUNG_HU = 60.0
_CLOSING_MM = 10.0
_SMALLEST_LUNG_ML = 100.0
_SMALLEST_PART_ML = 2.0
_LARGE_PART_ML = 200.0
"""Gas of this volume is lung if it holds vessels, whatever its density: smaller parts are noise."""
_VESSEL_HU = -600.0
_LARGEST_VESSEL_MM2 = 160.0
_LEAST_VESSELS = 0.005
"""Of a lung's volume: 0.008 to 0.015 in 12 CT; in mats, clothes and bowel 0.002 and less."""
_MISSING_LUNG = 0.05
"""Of the other lung's volume."""
_CUT_SLICES = 0.5
_AIRWAY_WALL_MM = 2.0
_LUMEN_HU = -900.0
_LARGEST_AIRWAY_MM2 = 900.0
_AIRWAY_MM2 = (30.0, 400.0)
_SHORTEST_AIRWAY_MM = 30.0
_AIRWAY_RING_MM = 6.0
_AIRWAY_RING_HU = -600.0
_CUT_AREA_MM2 = 60.0
_BONE_HU = 200
_SPINE_WIDTH_MM = 42.0
_SPINE_DEPTH_MM = 16.0
"""Bone from front to back, on average over the slices: 19 to 46 at the spine of 14 CT, 13 and less
where only ribs are."""

_CROSS = ndimage.generate_binary_structure(3, 1)
_CUBE = ndimage.generate_binary_structure(3, 3)
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)

Mask = NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)
Hounsfield = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LungMask:
    """The two lungs on the canonical grid.

    Attributes:
        labels: uint8, axes (z, y, x): 0 outside, ``RIGHT`` (1) or ``LEFT`` (2), the patient's.
            Trachea and main bronchi are outside, vessels and nodules of the lung inside.
        spacing_mm: isotropic voxel size of the grid, mm.
        coverage: apex, base, sides and volume.
    """

    labels: NDArray[np.uint8]
    spacing_mm: float
    coverage: LungCoverage

    @property
    def inside(self) -> Mask:
        """Bool array, axes (z, y, x): either lung."""
        inside: Mask = self.labels > 0
        return inside

    @cached_property
    def box(self) -> tuple[slice, slice, slice]:
        """The smallest box, slices (z, y, x), that holds both lungs."""
        return _bounding_box(self.labels > 0)

    def nearest(self, index_zyx: ArrayLike) -> tuple[Side, float]:
        """Side of the lung nearest to a point, and the distance to that lung.

        Args:
            index_zyx: (fractional) index (z, y, x) on the canonical grid.

        Returns:
            The patient's side and the distance to the nearest lung voxel, mm; 0 inside.
        """
        point = np.asarray(index_zyx, dtype=np.float64)
        for radius in (8, 32):
            low = np.clip(np.floor(point).astype(int) - radius, 0, self.labels.shape)
            high = np.clip(np.ceil(point).astype(int) + radius + 1, 0, self.labels.shape)
            block = self.labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            voxels = np.argwhere(block) + low
            if len(voxels) == 0:
                continue
            distance = np.linalg.norm(voxels - point, axis=1)
            if distance.min() <= radius:
                return self._nearest(point, voxels[int(distance.argmin())])
        _, found = self._surface.query(point)
        return self._nearest(point, self._surface.data[found].astype(int))

    def _nearest(self, point: NDArray[np.float64], voxel: NDArray[np.int_]) -> tuple[Side, float]:
        side = Side.RIGHT if self.labels[tuple(voxel)] == RIGHT else Side.LEFT
        distance = float(np.linalg.norm(voxel - point))
        return side, max(0.0, distance - 0.87) * self.spacing_mm

    @cached_property
    def _surface(self) -> cKDTree:
        """Where the nearest lung voxel of any point far outside must be; built when first asked."""
        block = self.labels[self.box] > 0
        shell = block & ~ndimage.binary_erosion(block, _CROSS)
        return cKDTree(np.argwhere(shell) + [axis.start for axis in self.box])


def segment_lungs(hu_zyx: Hounsfield, spacing_mm: float) -> LungMask:
    """Segment both lungs of one CT.

    Args:
        hu_zyx: Hounsfield units, axes (z, y, x) of a canonical grid (head, back, left). Voxels
            below ``UNKNOWN_HU`` were not scanned.
        spacing_mm: isotropic voxel size, mm, at most about 3.

    Returns:
        The mask on the same grid.

    Raises:
        NotAnalysable: NO_LUNGS, when less than 100 ml of lung is found.
    """
    factor = max(1, round(_COARSE_MM / spacing_mm))
    size = factor * spacing_mm
    coarse = _block_mean(hu_zyx, factor)
    outside = _outside(coarse, size)
    gas = (coarse < _AIR_HU) & ~outside
    airway = _airway(coarse, gas, size)
    lungs = _lung_parts(coarse, gas & ~airway, size)
    sides = _sides(lungs, coarse, size)
    closed = _closed(sides, airway, coarse, size)
    labels = _refined(closed, sides, hu_zyx, factor)
    volume_ml = float(np.count_nonzero(labels)) * spacing_mm**3 / 1000
    if volume_ml < _SMALLEST_LUNG_ML:
        raise NotAnalysable(NotAnalysableReason.NO_LUNGS, f"only {volume_ml:.0f} ml of lung found")
    apex, base = _ends_shown(closed > 0, coarse > UNKNOWN_HU, size)
    shown = _sides_shown(closed, outside, size) and not _lung_left_out(closed, coarse)
    return LungMask(labels, spacing_mm, LungCoverage(apex, base, volume_ml, shown))


def _bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box, slices (z, y, x), that holds all True voxels; there must be one."""
    z, y, x = ndimage.find_objects(mask.view(np.uint8))[0]
    return (z, y, x)


def _block_mean(hu: Hounsfield, factor: int) -> NDArray[np.float32]:
    """Mean over cubes of ``factor`` voxels; a last incomplete cube repeats its edge voxels."""
    rest = [(0, -n % factor) for n in hu.shape]
    padded = np.pad(hu, rest, mode="edge") if any(after for _, after in rest) else hu
    total = np.zeros([n // factor for n in padded.shape], dtype=np.float32)
    for z in range(factor):
        for y in range(factor):
            for x in range(factor):
                total += padded[z::factor, y::factor, x::factor].astype(np.float32)
    total /= factor**3
    return total


def _outside(hu: NDArray[np.float32], size: float) -> Mask:
    """All but the body and what it encloses: the air around it, clothes, the table.

    On its slice it reaches a corner of the image. Lung that the field of view cuts reaches a side,
    between the chest wall before and behind it; where that is cut away too, lung is told by its
    density and its vessels.
    """
    tissue = ndimage.binary_opening(hu > _BODY_HU, structure=_IN_PLANE)
    outside = _holding_corners(~_largest(tissue))
    lung_like = outside & (hu < _AIR_HU) & (hu >= _GAS_HU)
    labels, _ = ndimage.label(ndimage.binary_opening(lung_like, structure=_CROSS), structure=_CROSS)
    volumes_ml = np.bincount(labels.ravel()) * size**3 / 1000
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == number
        if volumes_ml[number] >= _LARGE_PART_ML and _holds_vessels(part, hu[box], size):
            outside[box] &= ~part
    return outside


def _holds_vessels(part: Mask, hu: NDArray[np.float32], size: float) -> bool:
    """Whether small islands of tissue lie in a part of the gas, as vessels do in lung."""
    padded = np.pad(part, ((0, 0), (1, 1), (1, 1)))
    holes, _ = ndimage.label(~padded, structure=_IN_PLANE)
    holes = holes[:, 1:-1, 1:-1]
    small = np.bincount(holes.ravel()) * size**2 <= _LARGEST_VESSEL_MM2
    small[0] = False
    vessels = np.count_nonzero(small[holes] & (hu > _VESSEL_HU))
    return bool(vessels >= _LEAST_VESSELS * np.count_nonzero(part))


def _largest(mask: Mask) -> Mask:
    """The largest 6-connected component; an empty mask stays empty."""
    labels, count = ndimage.label(mask, structure=_CROSS)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == sizes.argmax()
    return largest


def _holding_corners(mask: Mask) -> Mask:
    """Those in-plane components that hold a corner of their slice."""
    labels, count = ndimage.label(mask, structure=_IN_PLANE)
    corner = np.zeros(count + 1, dtype=bool)
    corner[labels[:, :: max(1, labels.shape[1] - 1), :: max(1, labels.shape[2] - 1)]] = True
    corner[0] = False
    holding: Mask = corner[labels]
    return holding


def _airway(hu: NDArray[np.float32], gas: Mask, size: float) -> Mask:
    """Trachea and main bronchi with their walls: the longest slender tube among the gas.

    On the slices of the neck and the mediastinum the airway is a small island of gas within
    tissue; from the hilum on it runs into the lung and ends. Where the lung lies against the
    trachea, only the darker gas of the lumen is an island. Bowel ends below the lungs' middle.
    """
    islands = _islands(hu, ndimage.binary_erosion(gas, structure=_IN_PLANE), size)
    islands |= _islands(hu, gas & (hu < _LUMEN_HU), size)
    tubes, _ = ndimage.label(islands, structure=_CUBE)
    middle = float(np.argwhere(_largest(gas).any(axis=(1, 2))).mean()) if gas.any() else 0.0
    best, longest = 0, _SHORTEST_AIRWAY_MM
    for number, box in enumerate(ndimage.find_objects(tubes), start=1):
        length = (box[0].stop - box[0].start) * size
        area = np.count_nonzero(tubes[box] == number) * size**3 / length
        if length > longest and box[0].stop > middle and _AIRWAY_MM2[0] < area < _AIRWAY_MM2[1]:
            best, longest = number, length
    if best == 0:
        return np.zeros_like(gas)
    # One step regains the rim of the lumen, the others cover the wall.
    steps = 1 + round(_AIRWAY_WALL_MM / size)
    airway: Mask = ndimage.binary_dilation(tubes == best, structure=_CROSS, iterations=steps)
    return airway


def _islands(hu: NDArray[np.float32], gas: Mask, size: float) -> Mask:
    """The in-plane components of the size of an airway that lie within tissue, not within lung."""
    labels, _ = ndimage.label(gas, structure=_IN_PLANE)
    area = np.bincount(labels.ravel()) * size**2
    small = (area >= 4 * size**2) & (area <= _LARGEST_AIRWAY_MM2)
    small[0] = False
    labels = np.where(small, np.arange(len(area), dtype=labels.dtype), 0)[labels]
    reach = 2 * round(_AIRWAY_RING_MM / size) + 1
    ring = ndimage.maximum_filter(labels, size=(1, reach, reach))
    in_ring = (ring > 0) & ~gas
    numbers = ring[in_ring]
    count = np.maximum(np.bincount(numbers, minlength=len(area)), 1)
    around = np.bincount(numbers, weights=hu[in_ring], minlength=len(area)) / count
    enclosed: Mask = (small & (around > _AIRWAY_RING_HU))[labels]
    return enclosed


def _lung_parts(hu: NDArray[np.float32], gas: Mask, size: float) -> Mask:
    """The components of ``gas`` that are lung: large enough, and neither bowel nor stomach gas.

    A large part as dark as pure gas is lung if it holds vessels: severe emphysema.
    """
    labels, count = ndimage.label(gas, structure=_CROSS)
    boxes = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * size**3 / 1000
    sizes[0] = 0.0  # what is no gas
    core = ndimage.binary_erosion(gas, structure=_CROSS)
    inner = np.bincount(labels[core], minlength=count + 1)
    pure = np.bincount(labels[core & (hu < _GAS_HU)], minlength=count + 1)
    dark = pure > 0.65 * np.maximum(inner, 1)
    for number in np.flatnonzero(dark & (sizes >= _LARGE_PART_ML)):
        box = boxes[number - 1]
        dark[number] = not _holds_vessels(labels[box] == number, hu[box], size)
    lung = ~dark & (sizes >= _SMALLEST_PART_ML)
    if lung.any():
        # Parts far below the size of a lung are kept only where a lung lies near, and only if
        # they are no darker than it: a loop of bowel below the diaphragm is.
        main = lung & (sizes >= 0.1 * sizes[lung].max())
        near = ndimage.binary_dilation(main[labels], structure=_CROSS, iterations=round(8 / size))
        small = np.intersect1d(np.flatnonzero(lung & ~main), labels[near])
        darkest = _median(hu[core & main[labels]]) - _DARKER_THAN_LUNG_HU
        lung = main
        for number in small:
            box = boxes[number - 1]
            lung[number] = _median(hu[box][core[box] & (labels[box] == number)]) >= darkest
    parts: Mask = lung[labels]
    return parts


def _median(values: NDArray[np.float32]) -> float:
    """The median; NaN of nothing, which compares with nothing."""
    return float(np.median(values)) if values.size else math.nan


def _sides(lungs: Mask, hu: NDArray[np.float32], size: float) -> NDArray[np.uint8]:
    """Label each lung voxel ``RIGHT`` or ``LEFT``.

    Lungs that touch (anterior or posterior junction) are parted by the smallest erosion that
    leaves two large cores, and each voxel goes to its nearest core.
    """
    if not lungs.any():
        return np.zeros(lungs.shape, dtype=np.uint8)
    box = _bounding_box(lungs)
    inside = lungs[box]
    core = inside
    for _ in range(round(14 / size)):
        cores = _two_cores(core, size)
        if cores is not None:
            break
        core = ndimage.binary_erosion(core, structure=_CROSS)
    else:
        cores = _one_core(inside, _body_middle(hu, lungs, size) - box[2].start)
    sides = np.zeros(lungs.shape, dtype=np.uint8)
    sides[box] = _nearest_label(cores, inside)
    return sides


def _body_middle(hu: NDArray[np.float32], lungs: Mask, size: float) -> float:
    """Index x of the middle of the body: the spine, which no collapse of a lung shifts.

    Where the field of view leaves out the spine, it lies beyond the side that cuts the lungs.
    """
    bone = np.count_nonzero(hu > _BONE_HU, axis=(0, 1))
    width = round(_SPINE_WIDTH_MM / size)
    depth = ndimage.uniform_filter1d(bone * size / len(hu), width, mode="nearest")
    if depth.max() > _SPINE_DEPTH_MM:
        return float(depth.argmax())
    cut = [np.count_nonzero(lungs[:, :, face]) * size**2 for face in (0, -1)]
    if max(cut) >= _CUT_AREA_MM2:
        return -1.0 if cut[0] > cut[1] else float(hu.shape[2])
    weight = bone if bone.sum() > 100 else np.count_nonzero(hu > _BODY_HU, axis=(0, 1))
    cumulative = np.cumsum(weight)
    return float(np.searchsorted(cumulative, cumulative[-1] / 2))


def _two_cores(core: Mask, size: float) -> NDArray[np.uint8] | None:
    """Two large components beside each other, labelled by side; None when there are none."""
    labels, count = ndimage.label(core, structure=_CROSS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * size**3 / 1000
    sizes[0] = 0
    large = [n for n in np.argsort(sizes)[::-1][:6] if sizes[n] >= max(20.0, 0.08 * sizes.max())]
    if len(large) < 2:
        return None
    center = {n: ndimage.center_of_mass(labels == n)[2] for n in large}
    left = max(large, key=lambda n: center[n])
    right = min(large, key=lambda n: center[n])
    if (center[left] - center[right]) * size < 40.0:
        return None
    cores = np.zeros(core.shape, dtype=np.uint8)
    divide = (center[left] + center[right]) / 2
    for n in large:
        cores[labels == n] = LEFT if center[n] > divide else RIGHT
    return cores


def _one_core(lungs: Mask, middle: float) -> NDArray[np.uint8]:
    """A single lung lies on one side of the body's middle; lungs that never part are cut there."""
    x = np.arange(lungs.shape[2])
    left = np.count_nonzero(lungs[:, :, x > middle]) / np.count_nonzero(lungs)
    if left > 0.85:
        return (lungs * np.uint8(LEFT)).astype(np.uint8)
    if left < 0.15:
        return (lungs * np.uint8(RIGHT)).astype(np.uint8)
    return np.where(x > middle, LEFT, RIGHT).astype(np.uint8) * lungs


def _nearest_label(cores: NDArray[np.uint8], inside: Mask) -> NDArray[np.uint8]:
    """Label the voxels inside a mask as the core nearest to them."""
    free = inside & (cores == 0)
    if not free.any():
        return cores
    nearest = ndimage.distance_transform_edt(
        cores == 0, return_distances=False, return_indices=True
    )
    labels = cores.copy()
    labels[free] = cores[tuple(nearest[:, free])]
    return labels


def _closed(
    sides: NDArray[np.uint8], airway: Mask, hu: NDArray[np.float32], size: float
) -> NDArray[np.uint8]:
    """Each lung closed by a ball, so that vessels and juxtapleural nodules are inside."""
    closed = sides.copy()
    radius = round(_CLOSING_MM / size)
    free = ~airway & (hu > UNKNOWN_HU)
    for side in (RIGHT, LEFT):
        lung = sides == side
        if not lung.any():
            continue
        box = _bounding_box(lung)
        grown = np.pad(lung[box], radius, mode="constant")
        grown = _eroded(_dilated(grown, radius), radius)
        inner = (slice(radius, -radius),) * 3
        filled = ndimage.binary_fill_holes(grown[inner], structure=_CROSS)
        view = closed[box]
        view[filled & (view == 0) & free[box]] = side
    return closed


def _ball_steps(radius: int) -> tuple[tuple[Mask, int], ...]:
    """Cross and cube steps whose sum is nearly a ball of ``radius`` voxels (they commute)."""
    cubes = radius // 3
    steps = ((_CROSS, radius - cubes), (_CUBE, cubes))
    return tuple((structure, count) for structure, count in steps if count)


def _dilated(mask: Mask, radius: int) -> Mask:
    """Dilation by nearly a ball."""
    for structure, count in _ball_steps(radius):
        mask = ndimage.binary_dilation(mask, structure=structure, iterations=count)
    return mask


def _eroded(mask: Mask, radius: int) -> Mask:
    """Erosion by the same body as ``_dilated``; nothing is eroded from the array's edge."""
    for structure, count in _ball_steps(radius):
        mask = ndimage.binary_erosion(mask, structure=structure, iterations=count, border_value=1)
    return mask


def _refined(
    closed: NDArray[np.uint8], sides: NDArray[np.uint8], hu: Hounsfield, factor: int
) -> NDArray[np.uint8]:
    """Bring the coarse labels to the fine grid; at air-tissue borders the fine HU decide."""
    if factor == 1:
        return closed
    inside = closed > 0
    grown = ndimage.grey_dilation(closed, footprint=_CROSS)
    # Only the border between air and what lies outside is unsure, not the border of a nodule
    # that the closing took in.
    border = ndimage.binary_dilation(~inside, structure=_CUBE) & (sides > 0)
    unsure = border | ((grown > 0) & ~inside)
    labels = _repeated(np.where(inside, closed, grown).astype(np.uint8), factor, hu.shape)
    tissue = hu >= _BOUNDARY_HU
    labels[_repeated(unsure, factor, hu.shape) & tissue] = 0
    return labels


def _repeated(coarse: NDArray[_Scalar], factor: int, shape: tuple[int, ...]) -> NDArray[_Scalar]:
    """Each voxel repeated along all axes, cut to ``shape``."""
    for axis in range(3):
        coarse = np.repeat(coarse, factor, axis=axis)
    return coarse[: shape[0], : shape[1], : shape[2]]


def _ends_shown(lungs: Mask, known: Mask, size: float) -> tuple[bool, bool]:
    """Whether no lung is cut at its top (apex), and none at its bottom (base).

    A lung is cut where it meets a slice end of the scanned block, or voxels never scanned.
    """
    above = np.ones_like(known)
    above[:-1] = ~known[1:]
    below = np.ones_like(known)
    below[1:] = ~known[:-1]
    top = np.count_nonzero(lungs & above) * size**2
    bottom = np.count_nonzero(lungs & below) * size**2
    return bool(top < _CUT_AREA_MM2), bool(bottom < _CUT_AREA_MM2)


def _sides_shown(closed: NDArray[np.uint8], outside: Mask, size: float) -> bool:
    """Whether no lung meets a side of the image, or what lies outside the body, without a wall."""
    beyond = np.pad(outside, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    beside = ndimage.binary_dilation(beyond, structure=_IN_PLANE)[:, 1:-1, 1:-1]
    return bool(np.count_nonzero((closed > 0) & beside) * size**2 < _CUT_AREA_MM2)


def _lung_left_out(closed: NDArray[np.uint8], hu: NDArray[np.float32]) -> bool:
    """Whether only one lung is found, and the image ends within the body where the other may lie.

    A lung that was removed cannot be told from one beyond the field of view in such an image.
    """
    counts = np.bincount(closed.ravel(), minlength=LEFT + 1)
    for missing, kept, face in ((RIGHT, LEFT, 0), (LEFT, RIGHT, -1)):
        if counts[missing] < _MISSING_LUNG * counts[kept]:
            slices = (closed == kept).any(axis=(1, 2))
            cut = (hu[slices, :, face] > _BODY_HU).any(axis=1)
            return bool(np.mean(cut) > _CUT_SLICES)
    return False
