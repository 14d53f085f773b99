"""A lesion set into another chest lies where it is said to, is as large, and changes no more."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from phoi_models.findings import Attenuation
from phoi_models.geometry import Geometry, Triple
from phoi_models.planting import NoduleKind, plant_at
from phoi_models.planting_host import LungSpace
from phoi_models.transplant import Lesion, NotTransplantable, transplant
from phoi_models.volume import Volume

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
UPSIDE_DOWN = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
SOLID = NoduleKind(solid_hu=30.0, elongation=1.2)
GROUND_GLASS = NoduleKind(attenuation=Attenuation.NON_SOLID, ground_glass_hu=-550.0)
MIDDLE = (3.0, -2.0, 4.0)


def lung(
    spacing_mm: Triple = (1.25, 0.8, 0.8),
    *,
    hu: int = -850,
    size_mm: float = 70.0,
    axes: tuple[Triple, Triple, Triple] = AXES,
) -> tuple[Volume, LungSpace]:
    """A cube about the origin, all lung, with a little noise."""
    z, y, x = (round(size_mm / step) for step in spacing_mm)
    half = np.array([z - 1, y - 1, x - 1]) / 2 * spacing_mm @ np.asarray(axes)
    origin = (-float(half[0]), -float(half[1]), -float(half[2]))
    geometry = Geometry((z, y, x), spacing_mm, origin, axes)
    noise = np.random.default_rng(9).normal(0, 8, geometry.shape)
    voxels = np.ones((round(size_mm),) * 3, dtype=bool)
    corner = -(size_mm - 1) / 2
    space = LungSpace(voxels, (corner, corner, corner), 1.0)
    return Volume((hu + noise).astype(np.int16), geometry), space


@cache
def nodule(
    diameter_mm: float = 12.0, kind: NoduleKind = SOLID, spacing_mm: Triple = (1.25, 0.8, 0.8)
) -> Lesion:
    """A lesion cut out of a source in which it was planted."""
    source, lungs = lung(spacing_mm)
    rng = np.random.default_rng(1)
    source, truth = plant_at(source, MIDDLE, diameter_mm, rng=rng, kind=kind)
    return Lesion.cut(source, lungs, truth.center_lps_mm, diameter_mm)


def within_mm(geometry: Geometry, center_lps_mm: Triple, radius_mm: float) -> NDArray[np.bool_]:
    """Voxels (z, y, x) within a ball."""
    places = geometry.index_to_lps(np.indices(geometry.shape).reshape(3, -1).T)
    away = np.linalg.norm(places - center_lps_mm, axis=1)
    inside: NDArray[np.bool_] = (away < radius_mm).reshape(geometry.shape)
    return inside


@pytest.mark.parametrize("kind", [SOLID, GROUND_GLASS])
@pytest.mark.parametrize("diameter", [6.0, 12.0, 24.0])
def test_a_lesion_is_cut_whole_and_without_its_patient(kind: NoduleKind, diameter: float) -> None:
    lesion = nodule(diameter, kind)
    assert lesion.diameter_mm == pytest.approx(diameter, rel=0.15)
    assert lesion.background_hu == pytest.approx(-850, abs=8)
    middle = lesion.geometry.index_to_lps(np.argwhere(lesion.body).mean(axis=0))
    np.testing.assert_allclose(middle, 0, atol=1e-6)
    assert (lesion.soft[lesion.body] == 1).all()
    inner = lesion.soft[1:-1, 1:-1, 1:-1]
    assert np.count_nonzero(lesion.soft) == np.count_nonzero(inner) > lesion.body.sum()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    diameter=st.sampled_from([6.0, 11.0, 18.0]),
    slice_mm=st.sampled_from([1.0, 2.0, 3.0]),
    axes=st.sampled_from([AXES, UPSIDE_DOWN]),
)
@example(seed=148, diameter=6.0, slice_mm=3.0, axes=AXES)  # a lung that ends beyond the scan
@example(seed=150, diameter=6.0, slice_mm=2.0, axes=AXES)  # the half of a lesion, at an edge
def test_place_and_size_are_what_is_returned(
    seed: int, diameter: float, slice_mm: float, axes: tuple[Triple, Triple, Triple]
) -> None:
    host, lungs = lung((slice_mm, 0.7, 0.7), axes=axes)
    lesion = nodule(diameter)
    result = transplant(host, lungs, lesion, rng=np.random.default_rng(seed))
    assert result is not None
    changed, center, size = result
    rise = changed.hu.astype(float) - host.hu
    dense = changed.hu > -400
    places = host.geometry.index_to_lps(np.argwhere(dense))
    assert np.linalg.norm(places.mean(axis=0) - center) < 1
    # By what was added: of what is left of a lesion at an edge, whole voxels tell too little.
    volume = rise.sum() / (SOLID.solid_hu + 850) * host.geometry.voxel_volume_mm3
    assert np.cbrt(6 * volume / np.pi) == pytest.approx(size, rel=0.1)
    away = host.geometry.index_to_lps(np.argwhere(rise != 0)) - center
    assert np.linalg.norm(away, axis=1).max() < 0.8 * size + 6


def test_size_follows_the_zoom() -> None:
    lesion = nodule()
    host, lungs = lung()
    sizes = []
    for zoom in (0.7, 1.0, 1.4):
        rng = np.random.default_rng(2)
        result = transplant(host, lungs, lesion, rng=rng, zoom=(zoom, zoom))
        assert result is not None
        sizes.append(result[2] / lesion.diameter_mm)
    np.testing.assert_allclose(sizes, [0.7, 1.0, 1.4], rtol=0.05)


def test_the_host_is_not_changed_and_the_seed_decides() -> None:
    host, lungs = lung()
    lesion = nodule()
    before = host.digest()
    results = [
        transplant(host, lungs, lesion, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    ]
    digests = [result[0].digest() for result in results if result is not None]
    assert host.digest() == before
    assert digests[0] == digests[1] != digests[2]


def test_it_keeps_away_from_what_it_is_told() -> None:
    host, lungs = lung()
    lesion = nodule(8.0)
    for seed in range(6):
        result = transplant(
            host,
            lungs,
            lesion,
            rng=np.random.default_rng(seed),
            avoid=[((0.0, 0.0, 0.0), 20.0)],
        )
        assert result is not None
        assert np.linalg.norm(result[1]) > (20 + result[2]) / 2


def test_ground_glass_adapts_to_the_lung_around_it() -> None:
    lesion = nodule(16.0, GROUND_GLASS)
    own = lesion.opacity[within_mm(lesion.geometry, (0.0, 0.0, 0.0), 4.0)].mean()
    assert 0.2 < own < 0.5
    for hu in (-930, -800):
        host, lungs = lung(hu=hu)
        result = transplant(host, lungs, lesion, rng=np.random.default_rng(5), zoom=(1.0, 1.0))
        assert result is not None
        level = result[0].hu[within_mm(host.geometry, result[1], 4.0)].mean()
        assert (level - hu) / (50 - hu) == pytest.approx(own, rel=0.05)


def test_what_is_denser_in_the_host_shows_through() -> None:
    host, lungs = lung()
    ribs = np.zeros(host.hu.shape, dtype=bool)
    for row in range(4):
        ribs[:, row::12, :] = True
    bony = Volume(np.where(ribs, 600, host.hu).astype(np.int16), host.geometry)
    result = transplant(bony, lungs, nodule(), rng=np.random.default_rng(0))
    assert result is not None
    assert result[0].hu[ribs].min() > 500
    assert result[0].hu[~ribs].max() > -50


def test_a_noisier_host_lends_its_noise() -> None:
    quiet, lungs = lung()
    noise = np.random.default_rng(3).normal(0, 60, quiet.hu.shape)
    noisy = Volume((quiet.hu + noise).astype(np.int16), quiet.geometry)
    lesion = nodule(20.0)
    spreads = []
    for host in (quiet, noisy):
        result = transplant(host, lungs, lesion, rng=np.random.default_rng(1), zoom=(1.0, 1.0))
        assert result is not None
        spreads.append(float(result[0].hu[within_mm(host.geometry, result[1], 5.0)].std()))
    assert spreads[0] < 25
    assert 35 < spreads[1] < 80


def test_thick_slices_do_not_go_into_thin_ones() -> None:
    lesion = nodule(16.0, spacing_mm=(5.0, 0.8, 0.8))
    thin, lungs = lung((1.0, 0.8, 0.8))
    thick, _ = lung((4.0, 0.8, 0.8))
    assert transplant(thin, lungs, lesion, rng=np.random.default_rng(0)) is None
    assert transplant(thick, lungs, lesion, rng=np.random.default_rng(0)) is not None


def test_without_a_free_place_there_is_nothing() -> None:
    host, lungs = lung()
    everywhere = [((0.0, 0.0, 0.0), 300.0)]
    rng = np.random.default_rng(0)
    assert transplant(host, lungs, nodule(), rng=rng, avoid=everywhere) is None


def test_the_chest_wall_stays_behind() -> None:
    source, lungs = lung()
    source, _ = plant_at(source, (0.0, 0.0, 0.0), 14.0, rng=np.random.default_rng(1), kind=SOLID)
    x = source.geometry.index_to_lps(np.indices(source.hu.shape).reshape(3, -1).T)[:, 0]
    wall = (x > 5).reshape(source.hu.shape)
    touching = Volume(np.where(wall, 40, source.hu).astype(np.int16), source.geometry)
    columns = np.arange(lungs.inside.shape[2]) + lungs.origin_lps_mm[0]
    within = LungSpace(lungs.inside & (columns <= 5), lungs.origin_lps_mm, lungs.spacing_mm)
    lesion = Lesion.cut(touching, within, (0.0, 0.0, 0.0), 14.0)
    right = lesion.geometry.index_to_lps(np.argwhere(lesion.soft > 0))[:, 0].max()
    left = lesion.geometry.index_to_lps(np.argwhere(lesion.soft > 0))[:, 0].min()
    assert right < 7.5 < 9 < -left


def test_lesions_that_cannot_be_cut_free_are_refused() -> None:
    source, lungs = lung()
    rng = np.random.default_rng(1)
    planted, _ = plant_at(source, (0.0, 0.0, 0.0), 10.0, rng=rng, kind=SOLID)
    buried = planted.hu.copy()
    buried[:, :, : buried.shape[2] // 2] = 40
    with pytest.raises(NotTransplantable, match=r"only .* is lung"):
        Lesion.cut(Volume(buried, planted.geometry), lungs, (0.0, 0.0, 0.0), 10.0)
    with pytest.raises(NotTransplantable, match="hardly differs"):
        Lesion.cut(source, lungs, (0.0, 0.0, 0.0), 10.0)
    with pytest.raises(NotTransplantable, match="outside the volume"):
        Lesion.cut(planted, lungs, (200.0, 0.0, 0.0), 10.0)
    nowhere = LungSpace(np.zeros_like(lungs.inside), lungs.origin_lps_mm, 1.0)
    with pytest.raises(NotTransplantable, match="no lung"):
        Lesion.cut(planted, nowhere, (0.0, 0.0, 0.0), 10.0)
    half = Volume(
        np.ascontiguousarray(planted.hu[: len(planted.hu) // 2]),
        Geometry(
            (len(planted.hu) // 2, *planted.geometry.shape[1:]),
            planted.geometry.spacing_mm,
            planted.geometry.origin_lps_mm,
            AXES,
        ),
    )
    with pytest.raises(NotTransplantable, match="border"):
        Lesion.cut(half, lungs, (0.0, 0.0, -1.0), 10.0)
