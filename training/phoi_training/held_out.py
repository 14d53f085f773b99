"""What a model is judged on that none of its networks saw, and its networks one by one.

Positions are LPS, mm; arrays (z, y, x).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from phoi_models.bundle import AnyParameters, DetectorParameters
from phoi_models.canonical import to_canonical
from phoi_models.geometry import Geometry, as_triple
from phoi_models.planting_host import LungSpace
from phoi_models.reading.dicom_series import is_dicom, read_volume
from phoi_models.reading.files import read_volume_file
from phoi_models.volume import Volume
from scipy import ndimage

from phoi_training.background import Background, Mark
from phoi_training.dataset import NoTrainingData, marks_of, read_entries
from phoi_training.evaluation import TorchHeads
from phoi_training.fit import load_averaged
from phoi_training.initial import CHECKPOINT, trained_on
from phoi_training.report import Detector

_AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
_SLICES_BEFORE = 30
"""A crop begins so many slices below its nodule, or where the scan begins."""
_SURELY_WITHIN_MM = 3.5
_LUNG_BELOW_HU = -500
_CLOSED_MM = 9
"""Half of the widest nodule that the lung of a crop is closed over."""


def unseen_chest(name: str, source: Path, marks: Path) -> Background:
    """A chest to judge a model on.

    Args:
        name: of the chest and of its patient.
        source: folder with one CT series in DICOM, in any nesting, or a volume's file.
        marks: JSON file: by name, ``complete`` and ``marks`` as in ``volumes.json``.

    Raises:
        NoTrainingData: the marks name no such chest, or they or one of them are malformed.
        NotAnalysable: it cannot be read, or shows no lungs.
    """
    entries = read_entries(marks)
    if name not in entries:
        raise NoTrainingData(f"{marks} says nothing of {name}, only of {', '.join(entries)}")
    if source.is_dir():
        volume, _ = read_volume([path for path in sorted(source.rglob("*")) if is_dicom(path)])
    else:
        volume = read_volume_file(source)
    known, _ = marks_of(entries[name].get("marks", []))
    complete = bool(entries[name].get("complete", False))
    return Background(name, name, volume, LungSpace.of(volume), known, complete=complete)


@dataclass(frozen=True, eq=False)
class Crop:
    """A nodule of LIDC-IDRI, cut out with what surrounds it, and what its readers said.

    Attributes:
        chest: the crop with its one nodule, which is not all that it shows.
        readers: so many outlines; of one reader there may be two.
        diameter_mm: their mean.
        texture: their mean, from 1 (non-solid) to 5 (solid).
    """

    chest: Background
    readers: int
    diameter_mm: float
    texture: float

    @classmethod
    def of(cls, row: dict[str, str], values: np.ndarray) -> Self:
        """One row of ``crops.csv`` and its voxels: two axes in the plane, then slices; HU."""
        hu = np.ascontiguousarray(values.transpose(2, 1, 0)).clip(-1024, 3071).astype(np.int16)
        in_plane = float(row["PixelSpacing"])
        spacing = (float(row["SliceSpacing"]), in_plane, in_plane)
        volume = Volume(hu, Geometry(hu.shape, spacing, (0.0, 0.0, 0.0), _AXES))
        middle = (int(row["z_start"]) + int(row["z_stop"])) / 2
        depth = middle - max(0.0, middle - _SLICES_BEFORE)
        center = volume.geometry.index_to_lps([depth, *((n - 1) / 2 for n in hu.shape[1:])])
        diameter = float(row["Diameter"])
        # Its place is known to a slice and a pixel: the middle of a box about its outlines.
        mark = Mark(as_triple(center), max(diameter, 2 * _SURELY_WITHIN_MM))
        name = f"{row['PatientID']}, nodule {row['NoduleID']}"
        patient = row["PatientID"]
        chest = Background(name, patient, volume, _lung_of(volume), (mark,), complete=False)
        return cls(chest, int(row["NumAnnotations"]), diameter, float(row["Texture"]))


def read_crops(folder: Path) -> list[Crop]:
    """All nodules of a folder with ``crops.csv`` and ``crops.npz``.

    Raises:
        NoTrainingData: a file is missing.
    """
    table, voxels = folder / "crops.csv", folder / "crops.npz"
    if not table.is_file() or not voxels.is_file():
        raise NoTrainingData(f"{folder} lacks crops.csv or crops.npz")
    with table.open(newline="") as file, np.load(voxels) as arrays:
        return [
            Crop.of(row, arrays[f"{row['PatientID']}_{row['NoduleID']}"])
            for row in csv.DictReader(file)
        ]


def _lung_of(volume: Volume) -> LungSpace:
    """The lung of a crop: all air, closed over nodules and vessels, without the chest wall."""
    grid = to_canonical(volume, 1.0)
    air = np.pad(grid.hu < _LUNG_BELOW_HU, _CLOSED_MM, mode="edge")
    octahedron = ndimage.generate_binary_structure(3, 1)
    closed = ndimage.binary_closing(air, octahedron, iterations=_CLOSED_MM)
    inner = (slice(_CLOSED_MM, -_CLOSED_MM),) * 3
    filled = ndimage.binary_fill_holes(closed)[inner]
    return LungSpace(filled, grid.origin_lps_mm, grid.spacing_mm)


@dataclass(frozen=True, eq=False)
class Single:
    """One network of a model, with the model's own calibration and thresholds.

    Attributes:
        name: for tables.
        detector: the network alone.
        patients: whom it was trained on.
    """

    name: str
    detector: Detector
    patients: frozenset[str]


def single_networks(work: Path, parameters: AnyParameters) -> list[Single]:
    """The networks of a training run, each alone.

    Args:
        work: the run's ``--work`` folder.
        parameters: of the model that they became.

    Raises:
        NoTrainingData: there are none, or it is not known whom one was trained on.
    """
    if not isinstance(parameters, DetectorParameters):
        raise NoTrainingData("only networks that Phoi trained can be run one by one")
    alone = parameters.model_copy(update={"second_look": None, "int8": None})
    folders = sorted(path.parent for path in work.glob(f"network-*/{CHECKPOINT}"))
    if not folders:
        raise NoTrainingData(f"{work} holds no networks: give the --work folder of the training")
    device = torch.device("cpu")
    return [
        Single(
            f"network {folder.name.split('-')[1]}",
            Detector(alone, TorchHeads(load_averaged(folder / CHECKPOINT), device)),
            trained_on(folder),
        )
        for folder in folders
    ]


def unseen_by(single: Single, chests: Sequence[Background]) -> list[Background]:
    """The chests of patients whom a network was not trained on."""
    return [chest for chest in chests if chest.patient not in single.patients]
