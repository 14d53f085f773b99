"""Train the network that outlines nodules, on planted ones, of which the outline is exact.

Each nodule is seen from several marks that are off as a detector's marks are. What the network is
to answer of a sample is how much of it the nodule's body fills. Positions are LPS, mm; arrays
(z, y, x).
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from phoi_models.canonical import to_canonical
from phoi_models.files import write_atomically
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import segment_lungs
from phoi_models.networks import ExportedSegmentationNet, NoduleSegmentationNet
from phoi_models.phantom import chest_phantom
from phoi_models.planting import PlantedNodule, plant_nodules
from phoi_models.planting_host import Ball, LungSpace, directions
from phoi_models.segmentation import SAMPLES, Cube, cube_positions, cut_cube
from phoi_models.volume import Volume
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from phoi_training.background import Background
from phoi_training.export import compare, folded, to_onnx
from phoi_training.fit import Diverged, TrainingState
from phoi_training.measurement import draw_diameters

Floats = NDArray[np.float32]

VIEWS = 5
"""So many marks of each nodule."""
_NODULES = {(3.0, 5.0): 3, (5.0, 8.0): 7, (8.0, 15.0): 7, (15.0, 30.0): 5, (30.0, 45.0): 2}
"""How many nodules of which mean diameters, mm, are planted into one chest."""
_SLICES_MM = (0.8, 1.25, 2.0, 2.5, 3.0, 5.0)
_THICK = 0.3
_THICK_MM = (2.5, 5.0)
_GRID_MM = 1.0
_SHIFT_HU = 15.0
_MOST_NOISE_HU = 40.0
_NOISY = 0.4
"""Of the samples."""
_CROSS_ENTROPY_WEIGHT = 3.0
_DICE_SMOOTH = 50.0
_WARM_UP_STEPS = 60
_DECAY = 0.998
_AVERAGED = 50
"""Steps, of which the mean losses are told."""
_SAVE_EVERY_S = 60.0
_TOLERANCE = {"filled": 1e-4}
_SHAPE = (SAMPLES,) * 3


@dataclass(frozen=True, eq=False)
class Sample:
    """One mark of a planted nodule, as it is kept in memory: 256 kB.

    Attributes:
        hu: int16, [SAMPLES] * 3, HU.
        lung: bool, same shape: in the lung mask.
        filled: uint8, same shape: how much of each sample the nodule fills, in 255ths.
        center_lps_mm: of the cube, LPS, mm.
        step_mm: distance of samples, mm.
    """

    hu: NDArray[np.int16]
    lung: NDArray[np.bool_]
    filled: NDArray[np.uint8]
    center_lps_mm: Triple
    step_mm: float


@dataclass(frozen=True)
class Chest:
    """What nodules are planted into at once.

    Attributes:
        number: counts all; with a seed it decides all that is random about the chest.
        background: name of a real one; None for a new procedural chest.
    """

    number: int
    background: str | None

    def rng(self, seed: int) -> np.random.Generator:
        """Everything random about the chest."""
        return np.random.default_rng([seed, self.number])

    def kept_in(self, folder: Path) -> Path:
        """Where what is planted into it is kept."""
        return folder / f"chest-{self.number:04d}.npz"


@dataclass(frozen=True)
class Host:
    """A chest to plant nodules into.

    Attributes:
        name: for the record.
        volume: the CT.
        lungs: where to plant.
        avoid: LPS centres, mm, and diameters, mm, of real nodules, which nobody outlined.
    """

    name: str
    volume: Volume
    lungs: LungSpace
    avoid: tuple[Ball, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How to train. Ends at whichever of ``steps`` and ``minutes`` is reached first.

    Raises:
        ValueError: it would end before it begins.
    """

    steps: int
    minutes: float
    seed: int
    batch: int = 12
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.minutes <= 0:
            raise ValueError("training takes at least one step, and some time")

    def done(self, step: int, spent_s: float) -> float:
        """Share of the training that is behind, 1 or more at its end."""
        return max(step / self.steps, spent_s / 60 / self.minutes)


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        network: with the moving average of the weights, in evaluation mode.
        steps: how many were made.
        losses: by name, the mean of the last fifty steps.
    """

    network: NoduleSegmentationNet
    steps: int
    losses: Mapping[str, float]


def chests(backgrounds: Sequence[str], phantoms: int, rounds: int) -> list[Chest]:
    """In each round all backgrounds, by name, and so many new procedural chests."""
    each: list[str | None] = [*backgrounds, *[None] * phantoms]
    return [Chest(number, name) for number, name in enumerate(each * rounds)]


def host_of(chest: Chest, backgrounds: Mapping[str, Background], rng: np.random.Generator) -> Host:
    """A background, three in ten in slices of 2.5 or 5 mm if its own are thinner; or a phantom.

    Args:
        chest: which.
        backgrounds: by name.
        rng: everything random.
    """
    if chest.background is not None:
        return _background_host(backgrounds[chest.background], rng)
    phantom = chest_phantom(rng, (float(rng.choice(_SLICES_MM)), 0.75, 0.75))
    return Host(f"phantom {chest.number}", phantom, LungSpace.of(phantom))


def _background_host(background: Background, rng: np.random.Generator) -> Host:
    avoid = tuple(mark.ball for mark in background.marks)
    distance_mm = float(rng.choice(_THICK_MM)) if rng.random() < _THICK else 0.0
    slices = round(distance_mm / background.volume.geometry.spacing_mm[0])
    if slices < 2:
        return Host(background.name, background.volume, background.lungs, avoid)
    thick = thicker(background.volume, slices)
    return Host(f"{background.name}, {slices} slices as one", thick, LungSpace.of(thick), avoid)


def thicker(volume: Volume, slices: int) -> Volume:
    """The mean of so many slices as one; what is left over at the end is left out."""
    old = volume.geometry
    count = old.shape[0] // slices
    groups = volume.hu[: count * slices].reshape(count, slices, *old.shape[1:])
    geometry = Geometry(
        (count, *old.shape[1:]),
        (slices * old.spacing_mm[0], *old.spacing_mm[1:]),
        as_triple(old.index_to_lps(((slices - 1) / 2, 0, 0))),
        old.axes_lps,
    )
    return Volume(np.rint(groups.mean(axis=1)).astype(np.int16), geometry)


def diameters(rng: np.random.Generator) -> list[float]:
    """Mean diameters, mm, of what is planted into one chest, the largest first."""
    return draw_diameters(_NODULES, rng)


def samples(host: Host, diameters_mm: Sequence[float], rng: np.random.Generator) -> list[Sample]:
    """Plant nodules of these mean diameters, mm, and see each from ``VIEWS`` marks.

    A nodule for which no place is found is left out.
    """
    planted, nodules = plant_nodules(
        host.volume, host.lungs, diameters_mm, rng=rng, avoid=host.avoid
    )
    grid = to_canonical(planted, _GRID_MM)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    return [
        _sample(cut_cube(planted, grid, lungs, *mark(nodule, rng)), nodule)
        for nodule in nodules
        for _ in range(VIEWS)
    ]


def mark(nodule: PlantedNodule, rng: np.random.Generator) -> tuple[Triple, float]:
    """Centre, LPS, mm, and diameter, mm, as far off as a detector's and what else may be asked.

    The centre lies up to 1 mm and a tenth of the diameter off, at most 3 mm; the diameter is wrong
    by a factor between exp(-0.5) and exp(0.5).
    """
    diameter = nodule.mean_diameter_mm
    away = directions(rng, 1)[0] * rng.uniform(0, min(1 + 0.1 * diameter, 3.0))
    factor = np.exp(np.clip(rng.normal(0, 0.22), -0.5, 0.5))
    return as_triple(nodule.center_lps_mm + away), float(diameter * factor)


def _sample(cube: Cube, nodule: PlantedNodule) -> Sample:
    distance = nodule.body.distance_mm(cube_positions(cube.center_lps_mm, cube.step_mm))
    filled = np.clip(0.5 - distance / cube.step_mm, 0, 1)
    return Sample(
        np.rint(cube.hu).astype(np.int16),
        cube.lung,
        np.rint(255 * filled).astype(np.uint8),
        cube.center_lps_mm,
        cube.step_mm,
    )


def keep(path: Path, kept: Sequence[Sample]) -> None:
    """Write samples, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        hu=np.array([sample.hu for sample in kept]).reshape(-1, *_SHAPE),
        lung=np.array([sample.lung for sample in kept]).reshape(-1, *_SHAPE),
        filled=np.array([sample.filled for sample in kept]).reshape(-1, *_SHAPE),
        center_lps_mm=np.array([sample.center_lps_mm for sample in kept]).reshape(-1, 3),
        step_mm=np.array([sample.step_mm for sample in kept]),
    )
    write_atomically(path, content.getvalue())


def kept(path: Path) -> list[Sample]:
    """The samples that :func:`keep` wrote."""
    with np.load(path) as file:
        parts = [file[name] for name in ("hu", "lung", "filled", "center_lps_mm", "step_mm")]
    return [
        Sample(hu, lung, filled, as_triple(center), float(step))
        for hu, lung, filled, center, step in zip(*parts, strict=True)
    ]


def augmented(sample: Sample, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Another HU offset, perhaps noise, and any flip; y and x may be swapped.

    Returns:
        The network's input, [2, SAMPLES, SAMPLES, SAMPLES], and what it is to answer,
        [1, SAMPLES, SAMPLES, SAMPLES], 0 to 1.
    """
    hu = sample.hu.astype(np.float32) + np.float32(rng.normal(0, _SHIFT_HU))
    if rng.random() < _NOISY:
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        hu += np.float32(rng.uniform(0, _MOST_NOISE_HU)) * noise
    seen = Cube(hu, sample.lung, sample.center_lps_mm, sample.step_mm).network_input
    both = np.concatenate([seen, sample.filled[None].astype(np.float32) / 255])
    both = np.flip(both, tuple(axis for axis in (1, 2, 3) if rng.random() < 0.5))
    if rng.random() < 0.5:
        both = both.swapaxes(2, 3)
    return both[:2], both[2:]


def losses(logit: Tensor, filled: Tensor) -> dict[str, Tensor]:
    """Cross-entropy, and one minus the soft Dice coefficient (Milletari et al., 3DV 2016).

    Args:
        logit: [N, 1, D, H, W].
        filled: what the network is to answer, 0 to 1, same shape.
    """
    share = torch.sigmoid(logit)
    each = (1, 2, 3, 4)
    overlap = 2 * (share * filled).sum(each) + _DICE_SMOOTH
    dice = overlap / ((share**2).sum(each) + (filled**2).sum(each) + _DICE_SMOOTH)
    return {
        "cross_entropy": functional.binary_cross_entropy_with_logits(logit, filled),
        "dice": 1 - dice.mean(),
    }


def train(
    bank: Sequence[Sample],
    recipe: Recipe,
    *,
    checkpoint: Path,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train a network on what :func:`samples` made, a new one or that of ``checkpoint``.

    Args:
        bank: all samples.
        recipe: how, and how long.
        checkpoint: goes on from it if it is there; written every minute and at the end, whole or
            not at all.
        say: told every fifty steps how it goes.
        clock: seconds.

    Raises:
        ValueError: there are fewer samples than a batch takes.
        Diverged: the loss is no number any more.
    """
    if len(bank) < recipe.batch:
        raise ValueError(f"a batch takes {recipe.batch} samples, and there are {len(bank)}")
    torch.manual_seed(recipe.seed)
    network = NoduleSegmentationNet().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = AveragedModel(network, avg_fn=_moving, use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    state = TrainingState(network, average, optimiser)
    step, before_s = state.load(checkpoint)
    batches = _batches(bank, recipe.batch, np.random.default_rng([recipe.seed, step]))
    recent: deque[dict[str, float]] = deque(maxlen=_AVERAGED)
    began = saved = clock()
    spent_s = before_s
    while (done := recipe.done(step, spent_s)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, done)
        cubes, filled = next(batches)
        parts = losses(network(cubes.to(memory_format=torch.channels_last_3d)), filled)
        loss = _CROSS_ENTROPY_WEIGHT * parts["cross_entropy"] + parts["dice"]
        if not loss.isfinite():
            raise Diverged(f"training diverged at step {step}: take another seed")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        average.update_parameters(network)
        recent.append({name: float(part.detach()) for name, part in parts.items()})
        step += 1
        now = clock()
        spent_s = before_s + now - began
        if now - saved > _SAVE_EVERY_S:
            state.save(checkpoint, step, spent_s)
            saved = now
        if step % _AVERAGED == 0:
            left_s = spent_s * max(1 / recipe.done(step, spent_s) - 1, 0.0)
            say(f"step {step}: losses {_means(recent)}, about {left_s / 60:.0f} minutes left")
    state.save(checkpoint, step, spent_s)
    averaged = cast("NoduleSegmentationNet", average.module)
    return Trained(averaged.eval(), step, _means(recent))


def _moving(average: Tensor, new: Tensor, averaged: Tensor | int) -> Tensor:
    """Exponential moving average, that forgets the first weights soon."""
    decay = min(_DECAY, (int(averaged) + 1) / (int(averaged) + 10))
    return decay * average + (1 - decay) * new


def _means(recent: Collection[Mapping[str, float]]) -> dict[str, float]:
    names = next(iter(recent), {})
    return {name: round(float(np.mean([one[name] for one in recent])), 5) for name in names}


def _schedule(step: int, done: float) -> float:
    """Of the learning rate: linear warm-up, and half a cosine down to next to nothing."""
    warm = min(1.0, step / _WARM_UP_STEPS + 0.02)
    return warm * 0.5 * (1 + float(np.cos(np.pi * done))) + 0.003


def _batches(
    bank: Sequence[Sample], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: all samples in a random order, then all in another one."""
    order: list[int] = []
    while True:
        if len(order) < size:
            order = rng.permutation(len(bank)).tolist()
        drawn = [augmented(bank[order.pop()], rng) for _ in range(size)]
        seen, filled = (np.stack(parts) for parts in zip(*drawn, strict=True))
        yield torch.from_numpy(seen), torch.from_numpy(filled)


def export(network: NoduleSegmentationNet, path: Path) -> float:
    """Write the network as ONNX, whole or not at all, and compare it with torch on noise.

    Args:
        network: trained, in evaluation mode.
        path: of the file that :class:`phoi_models.segmentation.Segmenter` takes.

    Returns:
        The largest absolute difference of an output between torch and ONNX Runtime.

    Raises:
        ExportMismatch: it is more than 1e-4.
    """
    shape = (2, 2, SAMPLES, SAMPLES, SAMPLES)
    cube = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    partial = path.with_suffix(".partial")
    to_onnx(
        ExportedSegmentationNet(folded(network)),
        partial,
        cube,
        list(_TOLERANCE),
        input_name="cube",
    )
    exported = ExportedSegmentationNet(network)
    difference = compare(exported, partial, cube, _TOLERANCE, input_name="cube")["filled"]
    partial.replace(path)
    return difference
