"""Fit the network: loss, schedule, checkpoints. What surrounds it is in ``train.py``."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from phoi_models.bundle import DetectorParameters
from phoi_models.errors import PhoiError
from phoi_models.networks import CenterHeatmapNet
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from phoi_training.patches import BankFilling, Chest, PatchBank, PatchStream
from phoi_training.ranks import Ranks

_LOG_EVERY = 20
_SAVE_EVERY_S = 60.0
_WARM_UP = 0.03
_SMALLEST_MIXED = 64
_MOST_PLANTERS = 8
"""Each holds up to 4 GB, ten chests among them that all share."""
_FROM_A_CHEST = 40
"""About so many patches come from one: fewer steps than would see them all need no full bank."""


class Diverged(PhoiError):
    """The gradients are no numbers any more. The recipe's fault."""


@dataclass(frozen=True)
class Recipe:
    """How to fit. Ends at whichever of ``steps`` and ``minutes`` is reached first.

    Attributes:
        patch: edge of a training patch, voxels; a multiple of 16.
        workers: processes that load patches; 0 does it in this one. Before training at least so
            many plant nodules; see ``planters``.
        frozen_statistics: keep batch normalisation as it is: for fine-tuning on little data.
    """

    steps: int
    minutes: float
    batch: int = 8
    patch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    workers: int = 1
    seed: int = 0
    frozen_statistics: bool = False


def losses(outputs: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three losses of CenterNet: penalty-reduced focal, size, offset.

    Where a chest may hold nodules that nobody marked, a confident answer away from every mark is
    neither punished nor rewarded.
    """
    logit, diameter_mm, offset = (output.float() for output in outputs)
    heat, core = batch["heat"], batch["core"]
    score = torch.sigmoid(logit)
    peak = (heat == 1).float()
    unmarked = (batch["known"] == 0) & (heat < 0.1) & (score > 0.5)
    weight = batch["weight"] * (~unmarked).float()
    hit = -functional.logsigmoid(logit) * (1 - score) ** 2 * peak
    miss = -functional.logsigmoid(-logit) * score**2 * (1 - heat) ** 4 * (1 - peak)
    count = peak.sum().clamp(min=1)
    cores = core.sum().clamp(min=1)
    size = torch.log(diameter_mm) - torch.log(batch["diameter"])
    return {
        "heat": ((hit + miss) * weight).sum() / count,
        "size": (size.abs() * core).sum() / cores,
        "offset": ((offset - batch["offset"]).abs() * core).sum() / cores / 4,
    }


def planters(workers: int, processes: int, cores: int) -> int:
    """How many processes plant before training, when nothing else needs the cores.

    Args:
        workers: asked for while training; 0 keeps all in one process.
        processes: that train together on this machine, and plant at once.
        cores: of this machine.
    """
    return max(workers, min(cores // processes, _MOST_PLANTERS)) if workers else 0


def fill(bank: PatchBank, wanted: Sequence[Chest], workers: int, *, shown: bool = True) -> None:
    """Plant what is still missing, before training: it takes the time of many steps."""
    filling = BankFilling(bank, wanted)
    loader: DataLoader[int] = DataLoader(filling, batch_size=None, num_workers=workers)
    with _progress(shown=shown) as progress:
        bar = progress.add_task("plant", total=len(filling), loss="")
        for _ in loader:
            progress.advance(bar)


def fit(
    network: CenterHeatmapNet,
    bank: PatchBank,
    wanted: Sequence[Chest],
    parameters: DetectorParameters,
    recipe: Recipe,
    checkpoint: Path,
    *,
    ranks: Ranks,
    on_metrics: Callable[[int, dict[str, float]], None],
) -> CenterHeatmapNet:
    """Train until the recipe ends; continue from ``checkpoint`` if it is there.

    Args:
        network: starting point; trained in place.
        bank: holds the patches of the chests, or makes them on the way.
        wanted: the chests to train on.
        checkpoint: written every minute and at the end; whole or absent, never half.
        ranks: the processes that train together, each on patches of its own.
        on_metrics: told the step and the mean losses since the last call.

    Returns:
        The exponential moving average of the weights, in evaluation mode, on the CPU.

    Raises:
        Diverged: the gradients are no numbers any more.
    """
    device = ranks.device
    torch.manual_seed(recipe.seed)
    network = network.to(device, memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    moving = get_ema_multi_avg_fn(0.99)  # type: ignore[no-untyped-call]
    if recipe.frozen_statistics:
        _freeze_statistics(network)
    average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    state = TrainingState(network, average, optimiser)
    step, spent_s = state.load(checkpoint)
    forward = ranks.joined(network)
    if device.type == "cuda":
        forward.compile()
    # On a CPU, torch 2.13's bf16 weight gradients of maps only 2 voxels wide are garbage.
    mixed = device.type == "cuda" or recipe.patch >= _SMALLEST_MIXED
    unfinished = step < recipe.steps and spent_s < 60 * recipe.minutes
    if unfinished and recipe.steps * recipe.batch > _FROM_A_CHEST * len(wanted):
        workers = planters(recipe.workers, ranks.count, os.cpu_count() or 1)
        fill(bank, wanted[ranks.rank :: ranks.count], workers, shown=ranks.leads)
    batches = _batches(bank, wanted, parameters, recipe, [step, ranks.rank])
    began = saved = time.monotonic()
    means = _Means(on_metrics if ranks.leads else lambda _step, _means: None)
    with _progress(shown=ranks.leads) as progress:
        bar = progress.add_task("train", total=1.0, loss="")
        while True:
            elapsed_s = spent_s + time.monotonic() - began
            done = ranks.agreed(max(step / recipe.steps, elapsed_s / 60 / recipe.minutes))
            progress.update(bar, completed=min(done, 1.0), loss=means.shown)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(done)
            batch = {name: value.to(device) for name, value in next(batches).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                outputs = forward(batch["image"].to(memory_format=torch.channels_last_3d))
            parts = losses(outputs, batch)
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
            if not torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0).isfinite():
                raise Diverged(f"training diverged at step {step}: lower --learning-rate")
            optimiser.step()
            average.update_parameters(network)
            step += 1
            means.add(step, parts)
            if ranks.leads and time.monotonic() - saved > _SAVE_EVERY_S:
                state.save(checkpoint, step, elapsed_s)
                saved = time.monotonic()
    if ranks.leads:
        state.save(checkpoint, step, spent_s + time.monotonic() - began)
    return cast("CenterHeatmapNet", copy.deepcopy(average.module).cpu().eval())


class _Means:
    """The mean losses of the last steps, told every so many of them."""

    def __init__(self, tell: Callable[[int, dict[str, float]], None]) -> None:
        self._tell = tell
        self._sums: dict[str, float] = {}
        self.shown = ""

    def add(self, step: int, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) / _LOG_EVERY
        if step % _LOG_EVERY == 0:
            self._tell(step, self._sums)
            self.shown = f"heat {self._sums['heat']:.3f}"
            self._sums = {}


@dataclass(frozen=True)
class TrainingState:
    """All that a checkpoint holds, beside step and time."""

    network: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer

    def save(self, path: Path, step: int, elapsed_s: float) -> None:
        """Write the checkpoint, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": step,
            "elapsed_s": elapsed_s,
        }
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(path)

    def load(self, path: Path) -> tuple[int, float]:
        """Step and seconds already spent; zero if there is no checkpoint."""
        if not path.is_file():
            return 0, 0.0
        content: dict[str, Any] = torch.load(path, weights_only=True)
        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        return int(content["step"]), float(content["elapsed_s"])


def _freeze_statistics(network: CenterHeatmapNet) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def load_averaged(checkpoint: Path) -> CenterHeatmapNet:
    """The averaged weights of a checkpoint, ready for evaluation."""
    network = CenterHeatmapNet()
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    prefix = "module."
    weights = {
        name.removeprefix(prefix): value
        for name, value in content["average"].items()
        if name.startswith(prefix)
    }
    network.load_state_dict(weights)
    return network.eval()


def _schedule(done: float) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if done < _WARM_UP:
        return max(done / _WARM_UP, 0.05)
    return 0.5 * (1 + float(np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP))))


def _batches(
    bank: PatchBank,
    wanted: Sequence[Chest],
    parameters: DetectorParameters,
    recipe: Recipe,
    drawn: Sequence[int],
) -> Iterator[dict[str, Tensor]]:
    """Batches without end; a resumed run, and each rank, sees others: ``drawn`` joins the seed."""
    seed = [recipe.seed, *drawn]
    stream = PatchStream(bank, wanted, parameters, recipe.patch, seed=seed)
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        stream,  # type: ignore[arg-type]  # collated from numpy to tensors
        batch_size=recipe.batch,
        num_workers=recipe.workers,
        prefetch_factor=4 if recipe.workers else None,
    )
    return iter(loader)


@contextlib.contextmanager
def _progress(*, shown: bool = True) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, disable=not shown) as progress:
        yield progress
