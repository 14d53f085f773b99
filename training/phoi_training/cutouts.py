"""Small pictures of what a detector missed or marked in vain.

Axial, from the canonical grid, so with nothing burnt into them and nothing of a header: pictures
show lung and no name. Left in the picture is the patient's right, as radiologists look at it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from phoi_models.canonical import CanonicalGrid
from phoi_models.geometry import Triple
from PIL import Image, ImageDraw

from phoi_training.background import Mark
from phoi_training.evaluation import Prediction, ScanResult

_SIDE_MM = 64
_PIXELS_PER_MM = 3
_GAP = 4
_ONE_PLACE_MM = 8.0
_WINDOW_HU = (-1350.0, 150.0)
_COLOURS = {"missed": "#ff9f40", "false": "#4fc3f7", "unknown": "#d0d0d0"}


class Kind(StrEnum):
    """What a cut-out shows."""

    MISSED = "missed"
    FALSE = "false"
    UNKNOWN = "unknown"  # a mark on a scan of which not all nodules are known


TITLES = {
    Kind.MISSED: "Missed nodules",
    Kind.FALSE: "False marks",
    Kind.UNKNOWN: "Marks on scans of which not all nodules are known",
}


@dataclass(frozen=True, eq=False)
class Cutout:
    """One picture.

    Attributes:
        kind: why it is shown.
        scan: name of the scan.
        center_lps_mm: of what is shown, LPS, mm.
        caption: what is known of it.
        weight: the greater, the more it deserves to be looked at.
        png: 192 x 192 pixels.
        patient: whose scan it is.
    """

    kind: Kind
    scan: str
    center_lps_mm: Triple
    caption: str
    weight: float
    png: bytes
    patient: str

    @property
    def where(self) -> str:
        """Its place, in words."""
        x, y, z = self.center_lps_mm
        return f"({x:.0f}, {y:.0f}, {z:.0f}) LPS mm"


def cutouts(result: ScanResult, grid: CanonicalGrid, threshold: float) -> list[Cutout]:
    """Every nodule without a mark at a threshold, and every mark on none.

    Args:
        result: of one scan.
        grid: what the network saw of it.
        threshold: least probability of a mark that is shown.
    """
    hits = result.hits(threshold)
    missed = [
        Cutout(
            Kind.MISSED,
            result.scan,
            nodule.center_lps_mm,
            _missed_caption(nodule, _best(result, index)),
            nodule.diameter_mm,
            picture(grid, nodule.center_lps_mm, nodule.diameter_mm, Kind.MISSED),
            result.whose,
        )
        for index, nodule in enumerate(result.nodules)
        if index not in hits
    ]
    kind = Kind.FALSE if result.complete else Kind.UNKNOWN
    others = [
        Cutout(
            kind,
            result.scan,
            mark.center_lps_mm,
            f"p {mark.probability:.2f}, {mark.diameter_mm:.0f} mm",
            mark.probability,
            picture(grid, mark.center_lps_mm, mark.diameter_mm, kind),
            result.whose,
        )
        for mark in result.predictions
        if mark.nodule is None and mark.probability >= threshold
    ]
    return [*missed, *others]


def worst(failures: Sequence[Cutout], most: int) -> list[Cutout]:
    """Of each kind the ``most`` that deserve most to be looked at, kind by kind.

    Of several at one place of one patient, as a chest's own false mark is again that of its planted
    copies, the foremost is shown.
    """
    apart: list[Cutout] = []
    for failure in sorted(failures, key=lambda failure: -failure.weight):
        if not any(_same_place(failure, other) for other in apart):
            apart.append(failure)
    return [f for kind in Kind for f in [f for f in apart if f.kind is kind][:most]]


def _same_place(one: Cutout, other: Cutout) -> bool:
    alike = (one.kind, one.patient) == (other.kind, other.patient)
    return alike and math.dist(one.center_lps_mm, other.center_lps_mm) < _ONE_PLACE_MM


def contact_sheet(shown: Sequence[Cutout], columns: int = 4) -> bytes:
    """One PNG of several cut-outs, row by row.

    Raises:
        ValueError: there is nothing to show.
    """
    if not shown:
        raise ValueError("a contact sheet needs a picture")
    side = _SIDE_MM * _PIXELS_PER_MM
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (side + _GAP) - _GAP, rows * (side + _GAP) - _GAP))
    for number, cutout in enumerate(shown):
        at = (number % columns * (side + _GAP), number // columns * (side + _GAP))
        sheet.paste(Image.open(io.BytesIO(cutout.png)), at)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _best(result: ScanResult, nodule: int) -> Prediction | None:
    return next((p for p in result.predictions if p.nodule == nodule), None)


def _missed_caption(nodule: Mark, best: Prediction | None) -> str:
    known = [str(v) for v in (nodule.attenuation, nodule.margin, nodule.place) if v is not None]
    seen = "no mark" if best is None else f"p {best.probability:.2f}"
    return ", ".join([f"{nodule.diameter_mm:.0f} mm", *known, seen])


def picture(grid: CanonicalGrid, center_lps_mm: Triple, diameter_mm: float, kind: Kind) -> bytes:
    """PNG of 64 x 64 mm about a place, in a lung window, with a circle of the diameter."""
    pixels = _windowed(_slice(grid, center_lps_mm))
    side = _SIDE_MM * _PIXELS_PER_MM
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    reach = min(max(diameter_mm / 2 + 2, 5.0) * _PIXELS_PER_MM, side / 2 - 2)
    box = (side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach)
    ImageDraw.Draw(image).ellipse(box, outline=_COLOURS[kind], width=1)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _slice(grid: CanonicalGrid, center_lps_mm: Triple) -> NDArray[np.int16]:
    """Axial HU around a place; air beyond the grid. Rows grow to the back, columns to the left."""
    z, y, x = (round(v) for v in grid.lps_to_index(np.asarray(center_lps_mm)))
    half = round(_SIDE_MM / grid.spacing_mm / 2)
    out = np.full((2 * half, 2 * half), -1000, np.int16)
    depth, rows, columns = grid.hu.shape
    top, left = max(0, y - half), max(0, x - half)
    bottom, right = min(rows, y + half), min(columns, x + half)
    if 0 <= z < depth and top < bottom and left < right:
        part = grid.hu[z, top:bottom, left:right]
        out[top - y + half : bottom - y + half, left - x + half : right - x + half] = part
    return out


def _windowed(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    low, high = _WINDOW_HU
    scaled: NDArray[np.uint8] = np.clip((hu - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return scaled
