"""Where training begins: random weights, a checkpoint, a bundle, or an earlier run's networks."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from phoi_models.errors import PhoiError
from phoi_models.networks import CenterHeatmapNet
from torch import nn

from phoi_training.fit import load_averaged

CHECKPOINT = "checkpoint.pt"
_PATIENTS = "trained_on.json"
_PREFIX = "network."


class UnusableWeights(PhoiError):
    """The file does not hold the weights of this network."""


def note_patients(folder: Path, patients: Collection[str] | None) -> None:
    """Say beside a network's checkpoint whom it is trained on; None if that is not known."""
    folder.mkdir(parents=True, exist_ok=True)
    noted = None if patients is None else sorted(patients)
    (folder / _PATIENTS).write_text(json.dumps(noted) + "\n")


def patients_of(source: Path | None) -> frozenset[str] | None:
    """Whom weights have seen that training begins with.

    Args:
        source: checkpoint, ONNX file, or folder of a checkpoint or of a bundle, which has no such
            note; None for random weights, which have seen nobody.

    Returns:
        The patients of the note that lies there; None if it is not known.
    """
    if source is None:
        return frozenset()
    noted = (source if source.is_dir() else source.parent) / _PATIENTS
    patients = json.loads(noted.read_text()) if noted.is_file() else None
    return None if patients is None else frozenset(patients)


def trained_on(folder: Path) -> frozenset[str]:
    """Whom the network in a folder is trained on.

    Raises:
        UnusableWeights: nobody noted it, or it began with weights of which it is not known.
    """
    patients = patients_of(folder)
    if patients is None:
        raise UnusableWeights(
            f"it is not known whom the network in {folder} was trained on, so no patient is surely"
            f" new to it: train from random weights, or --init from a checkpoint with {_PATIENTS}"
            " beside it"
        )
    return patients


def holds_networks(source: Path | None) -> bool:
    """Whether it is the ``--work`` folder of an earlier run."""
    return source is not None and any(source.glob(f"network-*/{CHECKPOINT}"))


def earlier_folder(work: Path, number: int, unseen: Collection[str]) -> Path:
    """The folder of the network of an earlier run to go on with.

    Args:
        work: folder of that run.
        number: of the network, from 1.
        unseen: patients that it must not have been trained on.

    Raises:
        UnusableWeights: there is no such network, it saw one of them, or whom it saw is not known.
    """
    for folder in sorted(work.glob(f"network-{number}-*")):
        seen = patients_of(folder)
        if (folder / CHECKPOINT).is_file() and seen is not None and seen.isdisjoint(unseen):
            return folder
    raise UnusableWeights(
        f"{work} holds no network {number} that never saw the patients it is to be validated on, or"
        " it is not known: take as many --folds, the same --seed and the same patients as there, or"
        " begin with one of its checkpoints"
    )


def initial_network(source: Path | None) -> CenterHeatmapNet:
    """The network to begin with.

    Args:
        source: checkpoint (``.pt``), ONNX file, or folder of a bundle; None for random weights.

    Raises:
        UnusableWeights: another network's weights, or no such file.
    """
    if source is None:
        return CenterHeatmapNet()
    if source.is_dir():
        source = source / "models" / "model.onnx"
    if not source.is_file():
        raise UnusableWeights(f"there are no weights at {source}")
    try:
        return load_averaged(source) if source.suffix == ".pt" else _from_onnx(source)
    except (KeyError, RuntimeError) as error:
        raise UnusableWeights(f"{source.name} holds another network's weights") from error


def _from_onnx(path: Path) -> CenterHeatmapNet:
    """Undo the folding: convolutions keep the folded weights, normalisations only their shift.

    The result computes the same in evaluation mode; its batch statistics are placeholders, so
    train it with ``frozen_statistics``.
    """
    stored = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(str(path)).graph.initializer
    }
    network = CenterHeatmapNet()
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d):
                module.weight.copy_(stored[f"{_PREFIX}{name}.weight"])
                if module.bias is not None:
                    module.bias.copy_(stored[f"{_PREFIX}{name}.bias"])
            if isinstance(module, nn.BatchNorm3d):
                parent, _, index = name.rpartition(".")
                module.bias.copy_(stored[f"{_PREFIX}{parent}.{int(index) - 1}.bias"])
                module.weight.fill_(1.0)
                module.running_mean = torch.zeros_like(module.weight)
                module.running_var = torch.ones_like(module.weight) - module.eps
    return network
