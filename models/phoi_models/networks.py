"""The networks that are trained and exported. Need torch; nothing else in this package does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 4
SMALLEST_PATCH = 16
_WIDTHS = (24, 40, 64, 56)
_SEGMENTATION_WIDTHS = (8, 24, 48, 64)
_TYPICAL_DIAMETER_MM = 10.0


class CenterHeatmapNet(nn.Module):
    """A 3D CenterNet (Zhou et al., arXiv:1904.07850) of 0.95 million parameters for lung nodules.

    A pyramid of residual blocks at 1/2, 1/4, 1/8 and 1/16 of the resolution, joined again at 1/4.
    All strided convolutions are symmetric about the centre of the cell: no axis has a shift that
    the offset head would have to learn.
    """

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = _WIDTHS
        self.stem = nn.Sequential(_convolution(1, half, 4, 2), _convolution(half, half, 3))
        self.quarter = nn.Sequential(
            _convolution(half, quarter, 2, 2), _Residual(quarter), _Residual(quarter)
        )
        self.eighth = nn.Sequential(
            _convolution(quarter, eighth, 2, 2), _Residual(eighth), _Residual(eighth)
        )
        self.sixteenth = nn.Sequential(_convolution(eighth, sixteenth, 2, 2), _Residual(sixteenth))
        self.from_sixteenth = _convolution(sixteenth, eighth, 1)
        self.from_eighth = _convolution(eighth, quarter, 1)
        self.joined = _Residual(quarter)
        self.heads = nn.Conv3d(quarter, 5, 1)
        # Begin with a score of 1 % everywhere (Lin et al., ICCV 2017) and a common diameter.
        nn.init.normal_(self.heads.weight, std=0.01)
        bias = self.heads.get_parameter("bias")
        nn.init.constant_(bias, 0.0)
        nn.init.constant_(bias[:1], -4.6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run on patches.

        Args:
            image: float [N, 1, D, H, W], axes (z, y, x), 1 mm voxels, windowed to 0..1; sizes are
                multiples of 16.

        Returns:
            ``logit`` of the score [N, 1, D/4, H/4, W/4], ``diameter_mm`` of the same shape, and
            ``offset`` [N, 3, D/4, H/4, W/4]: centre of the nodule from the centre of the cell, in
            input voxels, order (z, y, x).
        """
        quarter = self.quarter(self.stem(image))
        eighth = self.eighth(quarter)
        eighth = eighth + _doubled(self.from_sixteenth(self.sixteenth(eighth)))
        features = self.joined(quarter + _doubled(self.from_eighth(eighth)))
        heads = self.heads(features)
        logit, size, offset = heads[:, :1], heads[:, 1:2], heads[:, 2:]
        return logit, _TYPICAL_DIAMETER_MM * torch.exp(size.clamp(-3.0, 3.0)), STRIDE * offset


class MeanNet(nn.Module):
    """Several networks as one: the mean of their logits, log diameters and offsets."""

    def __init__(self, networks: Sequence[CenterHeatmapNet]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`CenterHeatmapNet`."""
        outputs = [network(image) for network in self.networks]
        logits, diameters_mm, offsets = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        return logits.mean(dim=0), diameters_mm.log().mean(dim=0).exp(), offsets.mean(dim=0)


class ExportedNet(nn.Module):
    """The network with the outputs that the bundle promises: score instead of logit."""

    def __init__(self, network: CenterHeatmapNet | MeanNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`CenterHeatmapNet`, with ``heatmap`` in (0, 1) first."""
        logit, diameter_mm, offset = self.network(image)
        return torch.sigmoid(logit), diameter_mm, offset


class NoduleSegmentationNet(nn.Module):
    """A 3D U-Net (Çiçek et al., MICCAI 2016) of 0.42 million parameters that outlines one nodule.

    Convolutions at 1/1, 1/2, 1/4 and 1/8 of the resolution; what is joined is added, not
    concatenated, and the way up is as light as the way down is at full resolution, so that one core
    of a CPU outlines a nodule in a fraction of a second.
    """

    def __init__(self) -> None:
        super().__init__()
        full, half, quarter, eighth = _SEGMENTATION_WIDTHS
        self.at_full = _convolution(2, full, 3)
        self.at_half = nn.Sequential(_convolution(full, half, 2, 2), _convolution(half, half, 3))
        self.at_quarter = nn.Sequential(
            _convolution(half, quarter, 2, 2), _convolution(quarter, quarter, 3)
        )
        self.at_eighth = nn.Sequential(
            _convolution(quarter, eighth, 2, 2),
            _convolution(eighth, eighth, 3),
            _convolution(eighth, eighth, 3),
        )
        self.from_eighth = _convolution(eighth, quarter, 1)
        self.joined_quarter = _convolution(quarter, quarter, 3)
        self.from_quarter = _convolution(quarter, half, 1)
        self.joined_half = _convolution(half, half, 3)
        self.from_half = _convolution(half, full, 1)
        self.joined_full = _convolution(full, full, 3)
        self.head = nn.Conv3d(full, 1, 1)

    def forward(self, cube: Tensor) -> Tensor:
        """Run on cubes.

        Args:
            cube: float [N, 2, D, H, W], axes (z, y, x), as :class:`phoi_models.segmentation.Cube`
                has it for the network; sizes are multiples of 8.

        Returns:
            The logit of how much of each sample the nodule fills: [N, 1, D, H, W].
        """
        full = self.at_full(cube)
        half = self.at_half(full)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        quarter = self.joined_quarter(quarter + _doubled(self.from_eighth(eighth)))
        half = self.joined_half(half + _doubled(self.from_quarter(quarter)))
        full = self.joined_full(full + _doubled(self.from_half(half)))
        logit: Tensor = self.head(full)
        return logit


class ExportedSegmentationNet(nn.Module):
    """The segmentation network with the output that is promised: a share instead of its logit."""

    def __init__(self, network: NoduleSegmentationNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, cube: Tensor) -> Tensor:
        """As :class:`NoduleSegmentationNet`, in (0, 1)."""
        return torch.sigmoid(self.network(cube))


class _Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3)
        self.second = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1, bias=False), nn.BatchNorm3d(width)
        )

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.second(self.first(features)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, size, stride, padding=(size - 1) // 2, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(),
    )


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")
