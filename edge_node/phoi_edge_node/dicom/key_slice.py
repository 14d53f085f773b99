"""The slice on which a nodule is seen best, and how it is drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from phoi_models.geometry import Geometry
from phoi_models.volume import Volume
from PIL import Image, ImageDraw, ImageFont

from phoi_edge_node.reported import ReportedNodule

# Lung window: level and width, HU.
_LEVEL_HU, _WIDTH_HU = -600.0, 1500.0
_SCALE_MM = 50.0
_MARK = (255, 200, 0)
_LABEL = (255, 255, 255)
_MINIMUM_RADIUS_MM = 8.0

# The letters of PS3.3 C.7.6.1.1.1 for growing and for falling x, y, z (LPS).
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))


def key_slice(nodule: ReportedNodule, geometry: Geometry) -> int | None:
    """Index of the slice nearest to where the model measured it, else to its centre.

    None where nobody said where it lies.
    """
    if nodule.nodule and nodule.measured_by_model:
        points: ArrayLike = nodule.nodule.finding.long_axis_lps_mm
    elif nodule.center_lps_mm:
        points = [nodule.center_lps_mm]
    else:
        return None
    z = float(geometry.lps_to_index(points)[:, 0].mean())
    return int(np.clip(round(z), 0, geometry.shape[0] - 1))


def direction_letter(direction_lps: ArrayLike) -> str:
    """L, R, A, P, H or F: where a direction (x, y, z), LPS, mostly points."""
    direction = np.asarray(direction_lps, dtype=np.float64)
    axis = int(np.argmax(np.abs(direction)))
    return _LETTERS[axis][0 if direction[axis] > 0 else 1]


def draw_key_slice(
    nodule: ReportedNodule, volume: Volume, z: int, size: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """Slice ``z`` as the scanner stored it, in a square, with the nodule circled.

    The letters at its edges follow from the geometry, and so does the bar of 5 cm.

    Args:
        size: of the picture, pixels.
    """
    geometry = volume.geometry
    millimetres = np.array(geometry.shape[1:]) * geometry.spacing_mm[1:]  # height, width
    scale = size / float(millimetres.max())  # pixels of the picture per mm
    height, width = (round(mm * scale) for mm in millimetres)
    top, left = (size - height) // 2, (size - width) // 2
    grey = Image.fromarray(_window(volume.hu[z]))
    picture = Image.new("RGB", (size, size))
    picture.paste(grey.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    draw = ImageDraw.Draw(picture)
    if nodule.center_lps_mm:
        row, column = geometry.lps_to_index(nodule.center_lps_mm)[1:] + 0.5
        y = top + row * geometry.spacing_mm[1] * scale
        x = left + column * geometry.spacing_mm[2] * scale
        radius = max(nodule.mean_diameter_mm or 0.0, _MINIMUM_RADIUS_MM) * scale
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARK, width=3)
    _draw_letters(draw, geometry, size, font)
    _draw_scale(draw, size, scale, font)
    return picture


def _window(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    low = _LEVEL_HU - _WIDTH_HU / 2
    grey: NDArray[np.uint8] = np.clip((hu - low) * (255 / _WIDTH_HU), 0, 255).astype(np.uint8)
    return grey


def _draw_letters(
    draw: ImageDraw.ImageDraw, geometry: Geometry, size: int, font: ImageFont.FreeTypeFont
) -> None:
    down, right = np.asarray(geometry.axes_lps[1]), np.asarray(geometry.axes_lps[2])
    middle, margin = size / 2, 6
    for at, anchor, direction in (
        ((margin, middle), "lm", -right),
        ((size - margin, middle), "rm", right),
        ((middle, margin), "ma", -down),
        ((middle, size - margin), "md", down),
    ):
        draw.text(
            at,
            direction_letter(direction),
            fill=_LABEL,
            font=font,
            anchor=anchor,
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )


def _draw_scale(
    draw: ImageDraw.ImageDraw, size: int, scale: float, font: ImageFont.FreeTypeFont
) -> None:
    y, x = size - 14, size - 14
    start = x - _SCALE_MM * scale
    draw.line((start, y, x, y), fill=_LABEL, width=3)
    draw.text(((start + x) / 2, y - 6), "5 cm", fill=_LABEL, font=font, anchor="md")
