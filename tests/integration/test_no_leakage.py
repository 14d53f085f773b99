"""The shipped model sees planted nodules by their contrast, not by the generator's traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.bundle import DetectorParameters
from phoi_models.canonical import to_canonical
from phoi_models.detector import cut_patch
from phoi_models.findings import Attenuation
from phoi_models.geometry import Triple, as_triple
from phoi_models.phantom import chest_phantom
from phoi_models.planting import LungSpace, NoduleKind, plant_at
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from support.real_ct import lidc_idri_0001
from support.shipped_model import detector, marks_anywhere

_HALF_MM, _DIAMETERS_MM = 60.0, (6.0, 9.0, 14.0)
_PLACES, _APART_MM = 12, 22.0
_PATCH = 64


def cube(volume: Volume, center_lps_mm: Triple) -> Volume:
    geometry = volume.geometry
    half = _HALF_MM / np.asarray(geometry.spacing_mm)
    middle = geometry.lps_to_index(center_lps_mm)
    low = np.maximum(np.rint(middle - half), 0).astype(int)
    high = np.minimum(np.rint(middle + half), geometry.shape).astype(int)
    hu = np.ascontiguousarray(volume.hu[tuple(map(slice, low, high))])
    origin = as_triple(geometry.index_to_lps(low))
    return Volume(hu, replace(geometry, shape=hu.shape, origin_lps_mm=origin))


@cache
def host(name: str) -> tuple[Volume, tuple[Triple, ...]]:
    """A cube of a lung and places of lung in it, apart from each other and from its faces."""
    if name == "phantom":
        volume = chest_phantom(np.random.default_rng(41), (2.5, 1.0, 1.0))
    else:
        volume, _ = read_volume(sorted(lidc_idri_0001().glob("*.dcm")))
    lungs = LungSpace.of(volume)
    rng = np.random.default_rng(1)
    middle = min(lungs.draw(rng, 500), key=lambda lps: abs(lungs.depth(lps[None])[0] - 30))
    places: list[NDArray[np.float64]] = []
    for place in lungs.draw(rng, 2000):
        inside = np.abs(place - middle).max() < _HALF_MM - 15
        alone = all(np.linalg.norm(place - other) > _APART_MM for other in places)
        if inside and alone and lungs.depth(place[None])[0] > 8 and len(places) < _PLACES:
            places.append(place)
    assert len(places) >= 6
    return cube(volume, as_triple(middle)), tuple(as_triple(place) for place in places)


def marks(volume: Volume) -> NDArray[np.float64]:
    """LPS centres, mm, (n, 3), of the marks at the default operating point."""
    return np.array([mark.center_lps_mm for mark in marks_anywhere(volume)]).reshape(-1, 3)


def around(volume: Volume, place: Triple, diameter_mm: float) -> float:
    """What is there: the median HU in a cube of this size."""
    geometry = volume.geometry
    reach = np.ceil(diameter_mm / 2 / np.asarray(geometry.spacing_mm)).astype(int)
    middle = np.rint(geometry.lps_to_index(place)).astype(int)
    block = volume.hu[tuple(map(slice, middle - reach, middle + reach + 1))]
    return float(np.median(block))


def planted(name: str, contrast_hu: float, attenuation: Attenuation) -> Volume:
    volume, places = host(name)
    for number, place in enumerate(places):
        diameter = _DIAMETERS_MM[number % len(_DIAMETERS_MM)]
        hu = around(host(name)[0], place, diameter) + contrast_hu
        kind = NoduleKind(attenuation=attenuation, solid_hu=hu, ground_glass_hu=hu, elongation=1.2)
        rng = np.random.default_rng(number)
        volume, _ = plant_at(volume, place, diameter, rng=rng, kind=kind)
    return volume


def logits(volume: Volume, places: Sequence[Triple]) -> NDArray[np.float64]:
    """What the heat map says at each place: the logit of its highest score within 7 mm."""
    parameters = detector().parameters
    assert isinstance(parameters, DetectorParameters)
    grid = to_canonical(volume, parameters.spacing_mm)
    scores = []
    for place in places:
        middle = grid.lps_to_index(place)
        z, y, x = np.rint(middle - _PATCH / 2).astype(int)
        patch = cut_patch(grid.hu, (int(z), int(y), int(x)), (_PATCH,) * 3, parameters)
        heat = detector().heads.run(patch[None, None])[0][0, 0]
        cells = np.indices(heat.shape).reshape(3, -1).T * parameters.stride
        centres = (z, y, x) + cells + (parameters.stride - 1) / 2
        near = np.linalg.norm(centres - middle, axis=1) <= max(_DIAMETERS_MM) / 2
        scores.append(float(heat.ravel()[near].max()))
    score = np.clip(scores, 1e-6, 1 - 1e-6)
    logit: NDArray[np.float64] = np.log(score / (1 - score))
    return logit


def hits(name: str, found: NDArray[np.float64]) -> int:
    """At how many of the places there is a mark."""
    places = np.array(host(name)[1])
    if not len(found):
        return 0
    apart = np.linalg.norm(places[:, None] - found[None], axis=2)
    return int((apart.min(axis=1) < max(_DIAMETERS_MM) / 2).sum())


@pytest.mark.parametrize("name", ["phantom", "LIDC-IDRI-0001"])
@pytest.mark.parametrize("attenuation", [Attenuation.SOLID, Attenuation.NON_SOLID])
def test_the_heat_map_hardly_rises_where_a_nodule_without_contrast_is_planted(
    name: str, attenuation: Attenuation
) -> None:
    """Place by place, also far below any threshold: what leaks would show there first."""
    rise = logits(planted(name, 0.0, attenuation), host(name)[1]) - as_it_is(name)
    assert rise.mean() < 0.2 * with_contrast(name).mean()
    assert np.median(rise) < 0.1 * np.median(with_contrast(name))


@cache
def as_it_is(name: str) -> NDArray[np.float64]:
    return logits(*host(name))


@cache
def with_contrast(name: str) -> NDArray[np.float64]:
    """How much the heat map rises where nodules can be seen."""
    return logits(planted(name, 850.0, Attenuation.SOLID), host(name)[1]) - as_it_is(name)


@pytest.mark.parametrize("name", ["phantom", "LIDC-IDRI-0001"])
def test_a_nodule_without_contrast_makes_no_new_mark(name: str) -> None:
    before = hits(name, marks(host(name)[0]))
    for attenuation in (Attenuation.SOLID, Attenuation.NON_SOLID):
        changed = planted(name, 0.0, attenuation)
        assert changed.digest() != host(name)[0].digest()
        assert hits(name, marks(changed)) <= before


def test_the_same_nodules_with_contrast_are_marked() -> None:
    found = hits("phantom", marks(planted("phantom", 850.0, Attenuation.SOLID)))
    assert found >= 0.8 * len(host("phantom")[1])
