"""The model that comes with Phoi, run on any part of a chest."""

from __future__ import annotations

from functools import cache

import numpy as np
from phoi_models.canonical import to_canonical
from phoi_models.detector import Candidate, detect
from phoi_models.findings import LungCoverage, Region
from phoi_models.lungs import LungMask
from phoi_models.shipped import SHIPPED
from phoi_models.volume import Volume
from phoi_training.report import Detector


@cache
def detector() -> Detector:
    return Detector.open(SHIPPED / "phoi-lung-nodule")


def marks_anywhere(volume: Volume) -> list[Candidate]:
    """Marks at the default operating point, in a part too small to find lungs in it."""
    parameters = detector().parameters
    grid = to_canonical(volume, parameters.spacing_mm)
    nowhere = np.zeros(grid.hu.shape, np.uint8)
    lungs = LungMask(nowhere, grid.spacing_mm, LungCoverage(apex=False, base=False, volume_ml=0.0))
    found = detect(
        grid,
        lungs,
        parameters,
        detector().heads,
        second_look=detector().second_look,
        region=Region.WHOLE,
    )
    least = parameters.operating_points["default"].probability
    return [candidate for candidate in found if candidate.probability >= least]
