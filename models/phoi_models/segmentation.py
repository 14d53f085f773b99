"""Outline one nodule with a small network.

The network sees a cube about a mark: HU and the lung mask, sampled along the patient's axes so that
the mark is always about as many samples wide. It says of each sample how much of it the nodule
fills, so that the border, where that is one half, lies between samples. It is a U-Net (Ronneberger
et al., MICCAI 2015), taught by ``scripts/train-segmentation`` on planted nodules, whose outline is
known exactly. It is the software's own part, the same for every detector, and always runs on one
core of the CPU, so that a measurement never depends on the machine's number of cores.

All arrays have axes (z, y, x) that grow to the head, the back and the patient's left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy import ndimage

from phoi_models.canonical import CanonicalGrid
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.lungs import LungMask
from phoi_models.volume import Volume

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

SHIPPED = Path(__file__).parent / "segmentation_network" / "model.onnx"
SAMPLES = 40
"""Along each edge of a cube."""
STEP_MM = (0.5, 3.0)
"""Samples are never nearer nor farther apart."""
_SAMPLES_ACROSS = 12
"""The mark."""
_WINDOW_HU = (-1000.0, 300.0)
_BRIGHTEST = 1.15
"""Of the window: calcium is told from soft tissue."""
_BLUR = 0.4


@dataclass(frozen=True, eq=False)
class Cube:
    """The surroundings of a mark as the network sees them.

    Attributes:
        hu: float32, [SAMPLES] * 3, HU; the outermost voxels go on beyond the scan.
        lung: bool, same shape: in a lung of the lung mask.
        center_lps_mm: of the cube, LPS, mm.
        step_mm: distance of samples along each axis, mm.
    """

    hu: Floats
    lung: Mask
    center_lps_mm: Triple
    step_mm: float

    @property
    def network_input(self) -> Floats:
        """[2, SAMPLES, SAMPLES, SAMPLES]: HU, 0 to 1.15, and the lung mask, 0 or 1."""
        low, high = _WINDOW_HU
        windowed = np.clip((self.hu - low) / (high - low), 0.0, _BRIGHTEST)
        return np.stack([windowed, self.lung]).astype(np.float32)

    def lps_to_index(self, lps_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Fractional indices (z, y, x) of LPS positions, mm; last axis is (x, y, z)."""
        offset = np.asarray(lps_mm, dtype=np.float64) - np.asarray(self.center_lps_mm)
        index: NDArray[np.float64] = offset[..., ::-1] / self.step_mm + (SAMPLES - 1) / 2
        return index

    def index_to_lps(self, index_zyx: NDArray[np.floating]) -> NDArray[np.float64]:
        """LPS positions (x, y, z), mm, of fractional indices; last axis is (z, y, x)."""
        offset = (np.asarray(index_zyx, dtype=np.float64) - (SAMPLES - 1) / 2) * self.step_mm
        lps: NDArray[np.float64] = offset[..., ::-1] + np.asarray(self.center_lps_mm)
        return lps


def cube_positions(center_lps_mm: Triple, step_mm: float) -> NDArray[np.float64]:
    """LPS positions, mm, of the samples of a cube: [SAMPLES, SAMPLES, SAMPLES, 3]."""
    line = (np.arange(SAMPLES) - (SAMPLES - 1) / 2) * step_mm
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    positions: NDArray[np.float64] = np.stack([x, y, z], axis=-1) + np.asarray(center_lps_mm)
    return positions


def cut_cube(
    volume: Volume,
    canonical: CanonicalGrid,
    lungs: LungMask,
    center_lps_mm: Triple,
    diameter_mm: float,
) -> Cube:
    """Sample the surroundings of a mark.

    Args:
        volume: as scanned, any orientation.
        canonical: the grid of ``lungs``.
        lungs: the lung mask.
        center_lps_mm: of the mark, LPS, mm.
        diameter_mm: of the mark, mm; samples lie a twelfth of it apart, 0.5 to 3 mm.
    """
    step = float(np.clip(diameter_mm / _SAMPLES_ACROSS, *STEP_MM))
    positions = cube_positions(center_lps_mm, step)
    at = np.rint(canonical.lps_to_index(positions)).astype(np.int32)
    at = np.clip(at, 0, np.array(lungs.labels.shape) - 1)
    lung = lungs.labels[at[..., 0], at[..., 1], at[..., 2]] > 0
    return Cube(_sampled(volume, positions, step), lung, as_triple(center_lps_mm), step)


def _sampled(volume: Volume, positions: NDArray[np.float64], step_mm: float) -> Floats:
    """HU at LPS positions, by linear interpolation of what is blurred to the samples' distance.

    Without the blur the noise of fine voxels would be as strong in samples that lie far apart.
    """
    geometry: Geometry = volume.geometry
    index = np.moveaxis(geometry.lps_to_index(positions), -1, 0)
    spacing = np.array(geometry.spacing_mm)
    reach = np.ceil(step_mm / spacing).astype(int) + 1
    flat = index.reshape(3, -1)
    last = np.array(geometry.shape) - 1
    low = np.clip(np.floor(flat.min(axis=1)).astype(int) - reach, 0, last)
    high = np.clip(np.ceil(flat.max(axis=1)).astype(int) + 1 + reach, low + 1, last + 1)
    part = volume.hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    wider = np.maximum((step_mm / spacing) ** 2 - 1, 0.0)
    smooth = ndimage.gaussian_filter(
        part.astype(np.float32), _BLUR * np.sqrt(wider), mode="nearest", truncate=2.5
    )
    sampled: Floats = ndimage.map_coordinates(
        smooth, index - low[:, None, None, None], order=1, mode="nearest"
    )
    return sampled


class Segmenter:
    """The network, ready to run."""

    def __init__(self, onnx: bytes) -> None:
        """Start it on one core of the CPU.

        Args:
            onnx: input [N, 2, SAMPLES, SAMPLES, SAMPLES]; output [N, 1, ...], 0 to 1.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"]
        )

    def filled(self, cube: Cube) -> Floats:
        """How much of each sample the nodule fills: [SAMPLES] * 3, 0 to 1."""
        (output,) = self._session.run(None, {"cube": cube.network_input[None]})
        filled: Floats = output[0, 0]
        return filled


@cache
def shipped_segmenter() -> Segmenter:
    """The network that comes with Phoi, started once."""
    return Segmenter(SHIPPED.read_bytes())
