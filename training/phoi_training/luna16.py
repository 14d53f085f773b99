"""LUNA16: 888 scans of LIDC-IDRI in MetaImage files, with its reference marks in CSV files.

``annotations.csv`` holds what at least three of four readers took for a nodule of 3 mm or more,
``annotations_excluded.csv`` of the evaluation script all other marks, which count neither way
(Setio et al., Med Image Anal 2017;42:1-13). Coordinates in both are ITK's, so LPS, mm.
"""

from __future__ import annotations

import csv
import hashlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from phoi_models.errors import PhoiError
from phoi_models.reading.files import read_volume_file

from phoi_training.background import Mark, StoredBackground

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"
SOURCE = "LUNA16 (Setio et al.), of LIDC-IDRI, The Cancer Imaging Archive, CC BY 3.0"

_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_UNMEASURED_MM = 10.0
"""What LUNA16's evaluation takes for the diameter of an excluded mark that has none (-1)."""


class BadAnnotations(PhoiError):
    """A CSV file of LUNA16 is not as its organisers published it."""


def annotations_below(folder: Path) -> Path | None:
    """``annotations.csv``, wherever it lies below a folder; None if nowhere."""
    return _first(folder, ANNOTATIONS)


def luna16_backgrounds(
    folder: Path, *, say: Callable[[str], None] = warnings.warn
) -> list[StoredBackground]:
    """The scans below a folder, in ``subset0`` to ``subset9``; each is read when it is asked for.

    Args:
        folder: the scans with ``annotations.csv`` and, if it is there, ``annotations_excluded.csv``
            anywhere below it.
        say: told what is missing.

    Returns:
        Backgrounds named ``subsetN/SERIESUID``, in which every nodule of 3 mm or more is marked.

    Raises:
        BadAnnotations: no ``annotations.csv``, or a table that is not LUNA16's.
    """
    annotations = annotations_below(folder)
    if annotations is None:
        raise BadAnnotations(f"{folder} holds no {ANNOTATIONS}")
    excluded = _first(folder, EXCLUDED)
    marks: dict[str, list[Mark]] = defaultdict(list)
    for uid, mark in _marks(annotations, certain=True):
        marks[uid].append(mark)
    if excluded is None:
        say(f"no {EXCLUDED}: marks on findings that LUNA16 leaves out will count as false")
    else:
        for uid, mark in _marks(excluded, certain=False):
            marks[uid].append(mark)
    return [_background(path, tuple(marks[path.stem])) for path in _scans(folder)]


def _first(folder: Path, name: str) -> Path | None:
    return min(folder.rglob(name), default=None, key=lambda path: (len(path.parts), path))


def _scans(folder: Path) -> list[Path]:
    """The scans, but not the lung masks, which bear the same names in another folder."""
    return sorted(p for p in folder.rglob("*.mhd") if p.parent.name.startswith("subset"))


def _marks(table: Path, *, certain: bool) -> Iterator[tuple[str, Mark]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := set(_COLUMNS) - set(rows.fieldnames or ()):
            raise BadAnnotations(f"{table.name} lacks the column {min(missing)}")
        for row in rows:
            uid, *numbers = (row[name] for name in _COLUMNS)
            try:
                x, y, z, diameter = (_finite(number) for number in numbers)
            except (TypeError, ValueError):
                raise BadAnnotations(
                    f"{table.name}, line {rows.line_num}: a coordinate is no number"
                ) from None
            width = diameter if diameter > 0 else _UNMEASURED_MM
            yield uid, Mark((x, y, z), width, certain)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("neither infinite nor NaN")
    return number


def _background(path: Path, marks: tuple[Mark, ...]) -> StoredBackground:
    # The series' UID, which names the file, stands for the voxels.
    sha256 = hashlib.sha256(path.stem.encode() + path.read_bytes()).hexdigest()
    return StoredBackground.on_disk(
        f"{path.parent.name}/{path.stem}",
        path.stem,
        partial(read_volume_file, path),
        marks,
        sha256=sha256,
        source=SOURCE,
    )
