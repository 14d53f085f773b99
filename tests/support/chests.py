"""The simplest volume that is analysed like a chest: two lungs of air in a body of water."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from phoi_models.geometry import Geometry, Triple
from phoi_models.volume import Volume

LUNG_HU, TISSUE_HU, OUTSIDE_HU = -850, 40, -1000
RIGHT_LUNG_LPS_MM: Triple = (-70.0, 0.0, 0.0)
LEFT_LUNG_LPS_MM: Triple = (70.0, 0.0, 0.0)


def plain_chest(
    nodules: Iterable[tuple[Triple, float]] = (), spacing_mm: Triple = (4.0, 3.0, 3.0)
) -> Volume:
    """A supine head-first chest, about 320 mm high, origin at its middle.

    Args:
        nodules: centre (LPS, mm) and diameter (mm) of balls of soft tissue.
        spacing_mm: along (z, y, x).
    """
    shape = (int(320 / spacing_mm[0]), int(300 / spacing_mm[1]), int(390 / spacing_mm[2]))
    grid = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*grid, indexing="ij", sparse=True)
    hu = np.full(shape, OUTSIDE_HU, np.int16)
    hu[np.broadcast_to((x / 170) ** 2 + (y / 125) ** 2 < 1, shape)] = TISSUE_HU
    for cx, cy, cz in (RIGHT_LUNG_LPS_MM, LEFT_LUNG_LPS_MM):
        lung = ((x - cx) / 50) ** 2 + ((y - cy) / 80) ** 2 + ((z - cz) / 120) ** 2 < 1
        hu[lung] = LUNG_HU
    for (cx, cy, cz), diameter in nodules:
        hu[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < (diameter / 2) ** 2] = TISSUE_HU
    axes = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    origin = (float(x.flat[0]), float(y.flat[0]), float(z.flat[0]))
    return Volume(hu, Geometry(shape, spacing_mm, origin, axes))
