"""NIfTI, NRRD and MetaImage files keep their place in the patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.reading.files import is_volume_file, read_volume_file


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd", "CT.NRRD"])
@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, 1, 0, 0, 0, -1)])
def test_a_voxel_is_where_itk_says(tmp_path: Path, name: str, direction: tuple[float, ...]) -> None:
    hu = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    image: Any = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.0))
    image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(tmp_path / name))

    volume = read_volume_file(tmp_path / name)

    assert is_volume_file(tmp_path / name)
    assert np.array_equal(volume.hu, hu)
    place = image.TransformIndexToPhysicalPoint((5, 1, 3))
    assert np.allclose(volume.geometry.index_to_lps((3, 1, 5)), place, atol=1e-4)


def test_values_that_no_tissue_has_are_clipped(tmp_path: Path) -> None:
    values = np.array([[[-3024.0, float("nan")], [99999.0, 40.4]]], dtype=np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / "ct.nrrd"))
    read = read_volume_file(tmp_path / "ct.nrrd").hu
    assert read.tolist() == [[[-1024, -1024], [32767, 40]]]


def test_thick_slices_are_refused(tmp_path: Path) -> None:
    image: Any = SimpleITK.GetImageFromArray(np.zeros((4, 4, 4), np.int16))
    image.SetSpacing((0.7, 0.7, 10.0))
    SimpleITK.WriteImage(image, str(tmp_path / "ct.mha"))
    with pytest.raises(NotAnalysable) as caught:
        read_volume_file(tmp_path / "ct.mha")
    assert caught.value.reason is NotAnalysableReason.SLICES_TOO_THICK


@pytest.mark.parametrize("channels", [2, 3])
def test_what_is_no_grey_volume_is_refused(tmp_path: Path, channels: int) -> None:
    values = np.zeros((4, 4, 4, channels), np.int16)
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(values, isVector=True), str(tmp_path / "c.mha")
    )
    with pytest.raises(NotAnalysable) as caught:
        read_volume_file(tmp_path / "c.mha")
    assert caught.value.reason is NotAnalysableReason.NOT_HOUNSFIELD


def test_a_damaged_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(b"no NIfTI")
    with pytest.raises(NotAnalysable) as caught:
        read_volume_file(tmp_path / "ct.nii")
    assert caught.value.reason is NotAnalysableReason.UNREADABLE_PIXELS
