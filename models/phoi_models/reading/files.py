"""NIfTI, NRRD and MetaImage files into a ``Volume``, through SimpleITK (extra ``files``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from phoi_models.errors import NotAnalysable, NotAnalysableReason, PhoiError
from phoi_models.geometry import Geometry, as_triple
from phoi_models.reading.pixels import AIR_HU
from phoi_models.reading.slice_order import require_thin
from phoi_models.volume import Volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Names of the files that are read, lower case."""


def is_volume_file(path: Path) -> bool:
    """The name is that of a file format which ``read_volume_file`` knows."""
    return path.name.lower().endswith(SUFFIXES)


def read_volume_file(path: Path) -> Volume:
    """Read one volume; its values are taken as HU.

    SimpleITK gives all three formats in ITK's physical space, which is LPS in mm.

    Raises:
        PhoiError: the extra ``files`` is not installed.
        NotAnalysable: the file cannot be read, is no three-dimensional grey image, or
            has slices that are too thick.
    """
    try:
        import SimpleITK
    except ImportError:
        raise PhoiError(
            "NIfTI, NRRD and MetaImage files need SimpleITK: pip install 'phoi[files]'"
        ) from None
    try:
        image: Any = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        raise NotAnalysable(
            NotAnalysableReason.UNREADABLE_PIXELS, f"{path.name} cannot be read"
        ) from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise NotAnalysable(
            NotAnalysableReason.NOT_HOUNSFIELD, f"{path.name} is no three-dimensional CT"
        )
    values = np.nan_to_num(SimpleITK.GetArrayViewFromImage(image), nan=AIR_HU)
    hu = np.clip(np.rint(values), AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    geometry = _geometry(image)
    require_thin(max(geometry.spacing_mm))
    return Volume(hu, geometry)


def _geometry(image: Any) -> Geometry:
    """ITK orders axes (x, y, z), its arrays (z, y, x); direction columns are the axes."""
    direction = np.asarray(image.GetDirection(), dtype=np.float64).reshape(3, 3)
    x, y, z = (as_triple(direction[:, axis]) for axis in range(3))
    columns, rows, slices = image.GetSize()
    return Geometry(
        shape=(slices, rows, columns),
        spacing_mm=as_triple(image.GetSpacing()[::-1]),
        origin_lps_mm=as_triple(image.GetOrigin()),
        axes_lps=(z, y, x),
    )
