"""The shipped model on one real nodule, however it was scanned and however the patient lay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.detector import Candidate
from phoi_models.geometry import Geometry, as_triple
from phoi_models.phantom import chest_phantom
from phoi_models.pipeline import analyze_volume
from phoi_models.planting import Margin, NoduleKind, plant_at
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from scipy import ndimage
from support.real_ct import NODULE_LPS_MM, lidc_idri_0001
from support.shipped_model import detector, marks_anywhere

_HALF_MM = 75.0


@cache
def around_the_nodule() -> Volume:
    """A cube of the real CT with its nodule in the middle; LPS is measured from the nodule."""
    volume, _ = read_volume(sorted(lidc_idri_0001().glob("*.dcm")))
    geometry = volume.geometry
    middle = geometry.lps_to_index(NODULE_LPS_MM)
    half = _HALF_MM / np.asarray(geometry.spacing_mm)
    low = np.maximum(np.rint(middle - half), 0).astype(int)
    high = np.minimum(np.rint(middle + half), geometry.shape).astype(int)
    hu = np.ascontiguousarray(volume.hu[tuple(map(slice, low, high))])
    origin = geometry.index_to_lps(low) - NODULE_LPS_MM
    return Volume(hu, replace(geometry, shape=hu.shape, origin_lps_mm=as_triple(origin)))


def on_the_nodule(volume: Volume) -> list[Candidate]:
    """Marks at the default operating point within the nodule's radius."""
    found = marks_anywhere(volume)
    return [mark for mark in found if np.linalg.norm(mark.center_lps_mm) <= 14.0]


def _with_hu(volume: Volume, hu: NDArray[np.floating]) -> Volume:
    return Volume(_whole_hu(hu), volume.geometry)


def _whole_hu(hu: NDArray[np.floating]) -> NDArray[np.int16]:
    whole: NDArray[np.int16] = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return whole


def _noisy(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(size=volume.hu.shape)
    fine = ndimage.gaussian_filter(noise, 0.6)
    return _with_hu(volume, volume.hu + fine * (40 / fine.std()))


def _sharp(volume: Volume) -> Volume:
    hu = volume.hu.astype(float)
    return _with_hu(volume, hu + 1.2 * (hu - ndimage.gaussian_filter(hu, (0.0, 1.2, 1.2))))


def _smooth(volume: Volume) -> Volume:
    return _with_hu(volume, ndimage.gaussian_filter(volume.hu.astype(float), (0.0, 1.2, 1.2)))


def _shifted(volume: Volume) -> Volume:
    return _with_hu(volume, volume.hu.astype(float) + 25)


def _resliced(volume: Volume, spacing_mm: float) -> Volume:
    """Slices of another thickness: averaged when thicker, interpolated when thinner."""
    geometry = volume.geometry
    factor = geometry.spacing_mm[0] / spacing_mm
    hu = volume.hu.astype(float)
    if factor < 1:
        hu = ndimage.uniform_filter1d(hu, round(1 / factor), axis=0)
    count = int((hu.shape[0] - 1) * factor) + 1
    at = np.indices((count, *hu.shape[1:]), dtype=np.float32)
    at[0] /= factor
    resliced = ndimage.map_coordinates(hu, at, order=1)
    spacing = (spacing_mm, *geometry.spacing_mm[1:])
    new = replace(geometry, shape=resliced.shape, spacing_mm=as_triple(spacing))
    return Volume(_whole_hu(resliced), new)


def _mirrored(axis: int) -> Callable[[Volume], Volume]:
    """The mirror image of the patient; the nodule stays at the origin."""

    def mirror(volume: Volume) -> Volume:
        geometry = volume.geometry
        corner = np.asarray(geometry.origin_lps_mm)
        step = np.asarray(geometry.axes_lps[axis]) * geometry.spacing_mm[axis]
        along = np.asarray(geometry.axes_lps[axis])
        last = corner + step * (geometry.shape[axis] - 1)
        moved = corner + along * (-(last @ along) - corner @ along)
        hu = np.ascontiguousarray(np.flip(volume.hu, axis))
        return Volume(hu, replace(geometry, origin_lps_mm=as_triple(moved)))

    return mirror


def _stored_feet_first(volume: Volume) -> Volume:
    """The same patient, the slices stored from the other end."""
    geometry: Geometry = volume.geometry
    last = geometry.index_to_lps((geometry.shape[0] - 1, 0, 0))
    away = tuple(-part for part in geometry.axes_lps[0])
    axes = (as_triple(away), *geometry.axes_lps[1:])
    hu = np.ascontiguousarray(volume.hu[::-1])
    return Volume(hu, replace(geometry, origin_lps_mm=as_triple(last), axes_lps=axes))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda volume: volume, id="as scanned"),
        pytest.param(_noisy, id="low dose"),
        pytest.param(_sharp, id="sharp kernel"),
        pytest.param(_smooth, id="smooth kernel"),
        pytest.param(_shifted, id="25 HU off"),
        pytest.param(lambda volume: _resliced(volume, 5.0), id="5 mm slices"),
        pytest.param(lambda volume: _resliced(volume, 0.625), id="0.625 mm slices"),
        pytest.param(_mirrored(0), id="upside down"),
        pytest.param(_mirrored(1), id="prone"),
        pytest.param(_mirrored(2), id="left is right"),
        pytest.param(_stored_feet_first, id="feet first"),
    ],
)
def test_the_nodule_is_found_once(change: Callable[[Volume], Volume]) -> None:
    assert len(on_the_nodule(change(around_the_nodule()))) == 1


@pytest.mark.parametrize("slices_mm", [1.5, 5.0])
def test_a_mass_of_40_mm_is_one_mark(slices_mm: float) -> None:
    chest = chest_phantom(np.random.default_rng(7), (slices_mm, 1.2, 1.2))
    kind = NoduleKind(margin=Margin.SPICULATED, elongation=1.3)
    rng = np.random.default_rng(1)
    chest, mass = plant_at(chest, (65.0, 15.0, 10.0), 40.0, rng=rng, kind=kind)
    model = detector()
    findings = analyze_volume(
        chest, model.parameters, model.heads, second_look=model.second_look
    ).findings
    near = [
        finding
        for finding in findings
        if np.linalg.norm(np.subtract(finding.center_lps_mm, mass.center_lps_mm)) < 35
    ]
    assert len(near) == 1
    assert np.linalg.norm(np.subtract(near[0].center_lps_mm, mass.center_lps_mm)) < 8
