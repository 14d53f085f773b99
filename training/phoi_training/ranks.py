"""Several GPUs: the processes that ``torchrun`` starts, one for each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=12)
"""The leading process validates alone, on many scans, before it trains the next network."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; alone unless ``torchrun`` started it.

    Attributes:
        rank: 0 for the one that saves, logs and reports.
        count: number of processes.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def of_environment(cls) -> Ranks:
        """As ``torchrun`` says; the first call of several processes joins them."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        if count > 1 and not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)
        return cls(int(os.environ.get("RANK", "0")), count, device)

    @property
    def leads(self) -> bool:
        """Whether this process saves, logs and reports."""
        return self.rank == 0

    def joined(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network with gradients averaged over all processes."""
        return network if self.count == 1 else DistributedDataParallel(network)

    def agreed(self, value: float) -> float:
        """What the leading process has."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def leave(self) -> None:
        """End the group."""
        if distributed.is_initialized():
            distributed.destroy_process_group()
