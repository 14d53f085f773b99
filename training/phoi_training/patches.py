"""Patches to train on, and what the network shall answer.

Every patch comes from a chest with random nodules and distractors planted on its own grid, brought
to the canonical grid just as at inference. Arrays are (z, y, x) of the canonical grid, 1 mm.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phoi_models.bundle import DetectorParameters
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import cut_block
from phoi_models.errors import NotAnalysable
from phoi_models.files import write_atomically
from phoi_models.geometry import as_triple
from phoi_models.volume import Volume
from scipy import ndimage
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from phoi_training.dataset import Background, Mark, NoTrainingData, phantom_background, planted_copy

Floats = NDArray[np.float32]

PATCH_MARGIN = 16
"""Patches of the bank are so much wider than those trained on, voxels: room to cut at random."""
_NODULES, _DISTRACTORS, _ELSEWHERE = 20, 10, 10
_DIAMETERS_MM, _SMALL_MM = (3.5, 45.0), (4.0, 12.0)
_DISEASED = 0.4
_THICK_SLICES, _THICK_MM = 0.2, (2.0, 5.0)
_SHUFFLED = 600
_EMPTY_CHESTS = 500
_REACH = 25.0
"""A heat map falls to nothing so far beyond a nodule's edge, voxels."""
_MARKS = ("marks", "uncertain", "rejected")


@dataclass(frozen=True, eq=False)
class Patch:
    """A cube of the canonical grid.

    Attributes:
        hu: int16, axes (z, y, x).
        marks: (n, 4) centre (z, y, x) in voxels of the patch and diameter, mm, of every nodule.
        uncertain: as ``marks``, of what may be a nodule: no loss there.
        complete: no nodules but the marked ones.
        rejected: as ``marks``, of what is no nodule for certain.
    """

    hu: NDArray[np.int16]
    marks: NDArray[np.float64]
    uncertain: NDArray[np.float64]
    complete: bool
    rejected: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)))


@dataclass(frozen=True, eq=False)
class Chest:
    """One chest to make: which background, which planting, and whose real nodules go into it.

    Attributes:
        host: the background; None for a new phantom.
        donor: its real nodules are set into the host; None for none.
        number: tells apart the chests of one host.
    """

    host: Background | None
    donor: Background | None
    number: int

    @property
    def patients(self) -> frozenset[str]:
        """Everybody of whom something can be seen in it; no phantom is somebody."""
        return frozenset(b.patient for b in (self.host, self.donor) if b is not None)

    @property
    def name(self) -> str:
        """The same chest has the same name in every run."""
        names = ["phantom" if self.host is None else self.host.name]
        names += [] if self.donor is None else [self.donor.name]
        return hashlib.sha256(repr((names, self.number)).encode()).hexdigest()[:24]


def chests(
    backgrounds: Sequence[Background],
    variants: int,
    phantoms: int,
    shares: Sequence[Collection[str]] = (),
) -> list[Chest]:
    """All chests to make: ``variants`` of each background, and so many phantoms.

    Each gets real nodules of another background in turn, or of its own: from the same share of
    the patients, if one there has any, since a network that is trained without a host's share can
    then be trained on all other chests.

    Args:
        backgrounds: hosts and donors.
        variants: of each background.
        phantoms: how many.
        shares: the patients that are held out together.
    """
    donors = [background for background in backgrounds if background.nodules]
    hosts = [(b, v) for b in backgrounds for v in range(variants)]
    wanted = [*hosts, *((None, n) for n in range(phantoms))]
    return [
        Chest(host, _in_turn(_donors_for(host, donors, shares), turn), number)
        for turn, (host, number) in enumerate(wanted)
    ]


def _donors_for(
    host: Background | None, donors: Sequence[Background], shares: Sequence[Collection[str]]
) -> Sequence[Background]:
    """Those held out together with a host, or all."""
    if host is None:
        return donors
    together = {patient for share in shares if host.patient in share for patient in share}
    return [donor for donor in donors if donor.patient in together] or donors


def _in_turn(donors: Sequence[Background], turn: int) -> Background | None:
    return donors[turn % len(donors)] if donors else None


class PatchBank:
    """Patches of planted chests, kept on disk: made once, used by every fold and after every stop.

    A file holds the patches of one chest; it is whole or absent.
    """

    def __init__(
        self, folder: Path, parameters: DetectorParameters, edge: int, *, seed: int
    ) -> None:
        """Use or begin a bank.

        Args:
            folder: of one data set, one ``edge`` and one seed.
            parameters: grid of the patches.
            edge: of a patch, voxels.
            seed: of everything random.
        """
        self._folder = folder
        self._parameters = parameters
        self._edge = edge
        self._seed = seed

    def has(self, chest: Chest) -> bool:
        """Whether the patches of a chest have been made."""
        return self._path(chest).is_file()

    def patches(self, chest: Chest) -> list[Patch]:
        """The patches of a chest; made if need be."""
        path = self._path(chest)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                patches = chest_patches(chest, self._parameters, self._edge, self._rng(chest))
            except NotAnalysable as error:
                # One CT of hundreds that cannot be read must not end a long training.
                warnings.warn(f"a chest is not trained on: {error}", stacklevel=2)
                patches = []
            write_atomically(path, _packed(patches))
        return _unpacked(path)

    def _path(self, chest: Chest) -> Path:
        return self._folder / f"{chest.name}.npz"

    def _rng(self, chest: Chest) -> np.random.Generator:
        return np.random.default_rng([self._seed, int(chest.name, 16)])


class BankFilling(Dataset[int]):
    """Makes the missing chests of a bank, one an item; for a ``DataLoader`` with workers."""

    def __init__(self, bank: PatchBank, wanted: Sequence[Chest]) -> None:
        self._bank = bank
        self._missing = [chest for chest in wanted if not bank.has(chest)]

    def __len__(self) -> int:
        return len(self._missing)

    def __getitem__(self, index: int) -> int:
        """Make one chest; how many patches it gave."""
        return len(self._bank.patches(self._missing[index]))


class PatchStream(IterableDataset[dict[str, Floats]]):
    """An endless, shuffled stream of augmented patches with targets; each worker has its own seed.

    Args:
        patch: edge, voxels; a random part of this size is cut out of each patch of the bank.
    """

    def __init__(
        self,
        bank: PatchBank,
        wanted: Sequence[Chest],
        parameters: DetectorParameters,
        patch: int,
        *,
        seed: Sequence[int],
    ) -> None:
        super().__init__()
        self._bank = bank
        self._chests = list(wanted)
        self._parameters = parameters
        self._patch = patch
        self._seed = tuple(seed)

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self._seed, 0 if worker is None else worker.id])
        waiting: list[Patch] = []
        empty = 0
        while True:
            fresh = self._bank.patches(self._chests[rng.integers(len(self._chests))])
            empty = 0 if fresh else empty + 1
            if empty > _EMPTY_CHESTS:
                raise NoTrainingData("none of the chests can be trained on")
            waiting.extend(fresh)
            rng.shuffle(waiting)
            keep = min(_SHUFFLED, len(waiting) - len(fresh) // 2)
            for patch in waiting[keep:]:
                part = random_part(patch, self._patch, rng)
                yield targets(augmented(part, rng), self._parameters)
            del waiting[keep:]


def chest_patches(
    chest: Chest, parameters: DetectorParameters, edge: int, rng: np.random.Generator
) -> list[Patch]:
    """Make one chest and cut out what is worth seeing in it.

    Patches about its nodules, its distractors, and elsewhere, each a little off the middle.
    """
    host = chest.host or phantom_background(rng)
    planted, distractors = planted_copy(
        host,
        rng,
        _diameters(rng),
        distractors=_DISTRACTORS,
        donor=chest.donor,
        diseased=rng.random() < _DISEASED,
    )
    zoom = rng.uniform(0.9, 1.12)
    grid = to_canonical(_zoomed(planted.volume, zoom), parameters.spacing_mm)
    marks = planted.marks
    certain = _in_grid(grid, [mark for mark in marks if mark.certain], zoom)
    uncertain = _in_grid(grid, [mark for mark in marks if not mark.certain], zoom)
    rejected = _in_grid(grid, host.rejected, zoom)
    new = [mark.center_lps_mm for mark in marks[len(host.marks) :]]
    judged = [mark.center_lps_mm for mark in (*host.nodules, *host.rejected)]
    patches = []
    for centre in (*new, *judged, *judged, *distractors, *_elsewhere(host, rng)):
        middle = grid.lps_to_index(np.asarray(centre) * zoom)
        start = np.rint(middle + rng.uniform(-0.22, 0.22, 3) * edge - edge / 2).astype(int)
        moved = np.array([*start, 0.0])
        near = [_reaching(rows - moved, edge) for rows in (certain, uncertain, rejected)]
        patches.append(
            Patch(cut_block(grid.hu, start, (edge,) * 3), near[0], near[1], host.complete, near[2])
        )
    return patches


def _diameters(rng: np.random.Generator) -> list[float]:
    """Half of all sizes, half small: most real nodules are, and they are the ones missed, mm."""
    spans = [_DIAMETERS_MM, _SMALL_MM] * (_NODULES // 2)
    return [float(np.exp(rng.uniform(*np.log(span)))) for span in spans]


def _reaching(rows: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    """Those marks, (n, 4), that reach into a patch."""
    reach = rows[:, 3:] / 2 + _REACH
    inside = ((rows[:, :3] > -reach) & (rows[:, :3] < edge + reach)).all(axis=1)
    return rows[inside]


def _packed(patches: Sequence[Patch]) -> bytes:
    """All patches of a chest as one uncompressed npz."""
    packed = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {
        "hu": np.array([patch.hu for patch in patches]),
        "complete": np.array([patch.complete for patch in patches]),
    }
    for name in _MARKS:
        rows = [getattr(patch, name) for patch in patches]
        arrays[name] = np.concatenate([np.empty((0, 4)), *rows])
        arrays[f"{name}_of"] = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # mypy takes the names for allow_pickle
    return packed.getvalue()


def _unpacked(path: Path) -> list[Patch]:
    with np.load(path) as arrays:
        content = dict(arrays.items())
    return [
        Patch(
            hu=hu,
            complete=bool(content["complete"][number]),
            **{name: content[name][content[f"{name}_of"] == number] for name in _MARKS},
        )
        for number, hu in enumerate(content["hu"])
    ]


def random_part(patch: Patch, edge: int, rng: np.random.Generator) -> Patch:
    """A cube of this edge, voxels, somewhere in a larger patch."""
    start = rng.integers(0, patch.hu.shape[0] - edge + 1, 3)
    where = tuple(slice(a, a + edge) for a in start)
    moved = np.array([*start, 0.0])
    places = {name: getattr(patch, name) - moved for name in _MARKS}
    return Patch(hu=patch.hu[where], complete=patch.complete, **places)


def _elsewhere(background: Background, rng: np.random.Generator) -> NDArray[np.float64]:
    """LPS positions, mm, (n, 3), in the lungs; the middle of a crop that shows no lung."""
    if background.lungs.inside.any():
        return background.lungs.draw(rng, _ELSEWHERE)
    geometry = background.volume.geometry
    return geometry.index_to_lps([[(n - 1) / 2 for n in geometry.shape]])


def _zoomed(volume: Volume, factor: float) -> Volume:
    """The same voxels, farther apart."""
    geometry = volume.geometry
    larger = replace(
        geometry,
        spacing_mm=as_triple(np.asarray(geometry.spacing_mm) * factor),
        origin_lps_mm=as_triple(np.asarray(geometry.origin_lps_mm) * factor),
    )
    return Volume(volume.hu, larger)


def _in_grid(grid: CanonicalGrid, marks: Sequence[Mark], zoom: float) -> NDArray[np.float64]:
    """(n, 4): index (z, y, x) and diameter, mm, in the zoomed chest."""
    rows = [
        [*grid.lps_to_index(np.asarray(mark.center_lps_mm) * zoom), mark.diameter_mm * zoom]
        for mark in marks
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def augmented(patch: Patch, rng: np.random.Generator) -> Patch:
    """Mirror, turn about z, thicken slices, change kernel, noise and the HU scale."""
    hu = patch.hu.astype(np.float32)
    places = [patch.marks.copy(), patch.uncertain.copy(), patch.rejected.copy()]
    last = hu.shape[0] - 1
    for axis in range(3):
        if rng.random() < 0.5:
            hu = np.flip(hu, axis)
            for place in places:
                place[:, axis] = last - place[:, axis]
    if rng.random() < 0.5:
        hu = hu.transpose(0, 2, 1)
        places = [place[:, [0, 2, 1, 3]] for place in places]
    if rng.random() < _THICK_SLICES:
        hu = _thick_slices(hu, rng.uniform(*_THICK_MM), places[0])
    kernel = rng.random()
    if kernel < 0.3:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.3, 0.8))
    elif kernel < 0.55:
        hu = hu + rng.uniform(0.3, 1.2) * (hu - ndimage.gaussian_filter(hu, 1.0))
    if rng.random() < 0.5:
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, rng.uniform(0.3, 0.9))
        hu = hu + noise * np.float32(rng.uniform(5, 45) / noise.std())
    hu = (hu + 1000) * np.float32(rng.normal(1, 0.02)) - 1000 + np.float32(rng.normal(0, 10))
    voxels = np.ascontiguousarray(np.clip(np.rint(hu), -1100, 3000).astype(np.int16))
    marks, uncertain, rejected = places
    return Patch(voxels, marks, uncertain, patch.complete, rejected)


def _thick_slices(hu: Floats, thickness: float, marks: NDArray[np.float64]) -> Floats:
    """As scanned in slices of this many voxels; not where a nodule would vanish in them."""
    if len(marks) and marks[:, 3].min() < 1.3 * thickness:
        return hu
    averaged = ndimage.uniform_filter1d(hu, round(thickness), axis=0)
    slices = np.arange(0, hu.shape[0] - 1, thickness)
    between = np.interp(np.arange(hu.shape[0]), slices, np.arange(len(slices)))
    sampled = averaged[np.rint(slices).astype(int)]
    below = np.minimum(between.astype(int), len(slices) - 2)
    share = (between - below).astype(np.float32)[:, None, None]
    thick: Floats = (1 - share) * sampled[below] + share * sampled[below + 1]
    return thick


def windowed(hu: NDArray[np.int16], parameters: DetectorParameters) -> Floats:
    """HU mapped linearly to 0..1 and clipped, as at inference."""
    low, high = parameters.window_hu
    scaled: Floats = np.clip((hu.astype(np.float32) - low) / np.float32(high - low), 0, 1)
    return scaled


def targets(patch: Patch, parameters: DetectorParameters) -> dict[str, Floats]:
    """What the network shall answer (CenterNet, Zhou et al., arXiv:1904.07850).

    Returns:
        ``image`` [1, D, H, W]; ``heat`` 1 at the cell of each centre, falling off as a Gaussian as
        wide as the nodule; ``weight`` of the heat loss; ``diameter`` and ``offset`` with ``core``,
        the cells at which they count; ``known`` where a mark that is no nodule is a false one.
        All of the latter [C, D/4, H/4, W/4].
    """
    stride = parameters.stride
    cells = tuple(n // stride for n in patch.hu.shape)
    positions = np.indices(cells).astype(np.float32) * stride + (stride - 1) / 2
    heat = np.zeros(cells, np.float32)
    core = np.zeros(cells, bool)
    diameter = np.ones(cells, np.float32)
    offset = np.zeros((3, *cells), np.float32)
    weight = np.ones(cells, np.float32)
    nearest = np.full(cells, np.inf, np.float32)
    for *centre, size in patch.uncertain:
        away = np.asarray(centre, np.float32)[:, None, None, None] - positions
        weight[np.sqrt((away**2).sum(axis=0)) < size / 2 + stride] = 0
    for *centre, size in patch.marks:
        away = np.asarray(centre, np.float32)[:, None, None, None] - positions
        distance = np.sqrt((away**2).sum(axis=0))
        width = np.clip(size / 6, 2.0, 7.0)
        heat = np.maximum(heat, np.exp(-(distance**2) / (2 * width**2)).astype(np.float32))
        own = (distance < max(0.9 * stride, 0.15 * size)) & (distance < nearest)
        nearest[own] = distance[own]
        core |= own
        diameter[own] = size
        offset[:, own] = away[:, own]
        peak = tuple(int(c // stride) for c in np.asarray(centre) + 0.5)
        if all(0 <= p < n for p, n in zip(peak, cells, strict=True)):
            heat[peak] = 1.0
    return {
        "image": windowed(patch.hu, parameters)[None],
        "heat": heat[None],
        "weight": weight[None],
        "core": core[None].astype(np.float32),
        "diameter": diameter[None],
        "offset": offset,
        "known": _known(patch, positions, stride)[None].astype(np.float32),
    }


def _known(patch: Patch, positions: Floats, stride: int) -> NDArray[np.bool_]:
    """Cells of which it is known whether they hold a nodule: all, or those that were rejected."""
    known = np.full(positions.shape[1:], patch.complete)
    for *centre, size in patch.rejected:
        away = np.asarray(centre, np.float32)[:, None, None, None] - positions
        known |= np.sqrt((away**2).sum(axis=0)) < size / 2 + stride
    return known
