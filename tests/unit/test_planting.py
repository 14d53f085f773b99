"""Planted nodules have the size, place and substance that their truth says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phoi_models.findings import Attenuation
from phoi_models.geometry import Geometry, Triple
from phoi_models.phantom import chest_phantom, flipped
from phoi_models.planting import (
    LungSpace,
    Margin,
    NoduleKind,
    Place,
    PlantedNodule,
    plant_at,
    plant_nodules,
)
from phoi_models.volume import Volume

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def air(spacing_mm: Triple = (1.0, 1.0, 1.0), size_mm: float = 60.0) -> Volume:
    shape = tuple(round(size_mm / step) for step in spacing_mm)
    geometry = Geometry((shape[0], shape[1], shape[2]), spacing_mm, (-30.0, -30.0, -30.0), AXES)
    return Volume(np.full(geometry.shape, -850, np.int16), geometry)


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return chest_phantom(np.random.default_rng(5), (2.5, 1.4, 1.4))


@pytest.fixture(scope="module")
def lungs(phantom: Volume) -> LungSpace:
    return LungSpace.of(phantom)


@settings(max_examples=15, deadline=None)
@given(
    diameter=st.floats(4.0, 30.0),
    slice_mm=st.sampled_from([0.7, 1.25, 2.5]),
    center=st.tuples(*[st.floats(-3.0, 3.0)] * 3),
)
def test_a_ball_has_its_volume_and_its_contrast(
    diameter: float, slice_mm: float, center: Triple
) -> None:
    host = air((slice_mm, 0.8, 0.8))
    planted, truth = plant_at(host, center, diameter, rng=np.random.default_rng(0))
    ball = np.pi / 6 * diameter**3
    assert truth.volume_mm3 == pytest.approx(ball, rel=0.03)
    assert truth.mean_diameter_mm == pytest.approx(diameter, rel=0.03)
    np.testing.assert_allclose(truth.center_lps_mm, center, atol=0.1)
    added = (planted.hu.astype(float) + 850).sum() / 890 * host.geometry.voxel_volume_mm3
    assert added == pytest.approx(ball, rel=0.08)


@pytest.mark.parametrize("margin", list(Margin))
def test_irregular_shapes_keep_the_asked_diameter(margin: Margin) -> None:
    kind = NoduleKind(margin=margin, elongation=1.4)
    _, truth = plant_at(air(), (0.0, 0.0, 0.0), 20.0, rng=np.random.default_rng(3), kind=kind)
    assert truth.mean_diameter_mm == pytest.approx(20.0, abs=0.6)
    half_filled = truth.mask.voxels.sum()
    assert half_filled == pytest.approx(truth.volume_mm3, rel=0.1)


@pytest.mark.parametrize(
    ("attenuation", "low", "high"),
    [(Attenuation.SOLID, 10, 70), (Attenuation.NON_SOLID, -600, -500)],
)
def test_attenuation_classes_show_in_the_voxels(
    attenuation: Attenuation, low: int, high: int
) -> None:
    kind = NoduleKind(attenuation=attenuation)
    planted, _ = plant_at(air(), (0.0, 0.0, 0.0), 24.0, rng=np.random.default_rng(1), kind=kind)
    assert low <= planted.hu[25:36, 25:36, 25:36].mean() <= high


def test_a_part_solid_nodule_has_its_solid_core() -> None:
    kind = NoduleKind(attenuation=Attenuation.PART_SOLID, core_fraction=0.6)
    planted, truth = plant_at(air(), (0.0, 0.0, 0.0), 24.0, rng=np.random.default_rng(1), kind=kind)
    assert truth.solid_diameter_mm == pytest.approx(14.4)
    solid = (planted.hu > (40 - 550) / 2).sum()
    assert solid == pytest.approx(0.6**3 * truth.volume_mm3, rel=0.15)


def test_a_cavity_is_air_within_a_wall() -> None:
    kind = NoduleKind(cavity_fraction=0.5)
    planted, truth = plant_at(air(), (0.0, 0.0, 0.0), 24.0, rng=np.random.default_rng(1), kind=kind)
    assert planted.hu[30, 30, 30] < -700
    assert planted.hu[30, 30, 39] > -100
    assert truth.mask.voxels[tuple(n // 2 for n in truth.mask.voxels.shape)]


def test_the_host_is_not_changed_and_the_seed_decides(phantom: Volume, lungs: LungSpace) -> None:
    before = phantom.digest()
    sizes = [5.0, 9.0, 16.0]
    first, truth = plant_nodules(phantom, lungs, sizes, rng=np.random.default_rng(2))
    again, _ = plant_nodules(phantom, lungs, sizes, rng=np.random.default_rng(2))
    other, _ = plant_nodules(phantom, lungs, sizes, rng=np.random.default_rng(4))
    assert phantom.digest() == before
    assert first.digest() == again.digest() != other.digest()
    assert len(truth) == 3


def test_nodules_lie_in_the_lungs_apart_from_each_other_and_show(
    phantom: Volume, lungs: LungSpace
) -> None:
    sizes = [4.0, 6.0, 8.0, 12.0, 20.0, 28.0]
    planted, truth = plant_nodules(phantom, lungs, sizes, rng=np.random.default_rng(6))
    centres = np.array([nodule.center_lps_mm for nodule in truth])
    assert lungs.contains(centres).all()
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 1e3 * np.eye(len(truth))
    assert gaps.min() > 8
    for nodule in truth:
        where = tuple(
            slice(low, low + n)
            for low, n in zip(nodule.mask.offset, nodule.mask.voxels.shape, strict=True)
        )
        rise = planted.hu[where].astype(int) - phantom.hu[where]
        solid_enough = nodule.kind.cavity_fraction == 0
        assert rise[nodule.mask.voxels].mean() > 60 or not solid_enough


def test_a_nodule_at_the_pleura_counts_only_inside_the_lung(
    phantom: Volume, lungs: LungSpace
) -> None:
    rng = np.random.default_rng(11)
    _, truth = plant_nodules(phantom, lungs, [14.0] * 14, rng=rng)
    touching = [nodule for nodule in truth if nodule.place is Place.JUXTAPLEURAL]
    assert touching
    for nodule in touching:
        voxels = np.argwhere(nodule.mask.voxels) + nodule.mask.offset
        assert lungs.contains(phantom.geometry.index_to_lps(voxels)).mean() > 0.95


@pytest.mark.parametrize("margin", list(Margin))
def test_a_body_is_where_its_mask_is(margin: Margin) -> None:
    host = air()
    kind = NoduleKind(margin=margin, elongation=1.3)
    center = (3.2, -4.1, 1.7)
    _, truth = plant_at(host, center, 16.0, rng=np.random.default_rng(2), kind=kind)
    mask = np.zeros(host.geometry.shape, bool)
    where = zip(truth.mask.offset, truth.mask.voxels.shape, strict=True)
    mask[tuple(slice(low, low + n) for low, n in where)] = truth.mask.voxels
    positions = host.geometry.index_to_lps(np.moveaxis(np.indices(mask.shape), 0, -1))
    inside = truth.body.distance_mm(positions) < 0
    assert (inside != mask).sum() < 0.02 * mask.sum()
    assert truth.body.origin_lps_mm == center


def test_a_body_ends_at_the_lungs_if_its_truth_does(phantom: Volume, lungs: LungSpace) -> None:
    surface = lungs.draw(np.random.default_rng(4), 1, surface=True)[0]
    center = (float(surface[0]), float(surface[1]), float(surface[2]))
    kind = NoduleKind(elongation=1.2)

    def planted(within: LungSpace | None) -> PlantedNodule:
        rng = np.random.default_rng(7)
        return plant_at(phantom, center, 20.0, rng=rng, kind=kind, lungs=within)[1]

    whole, cut = planted(None), planted(lungs)
    around = surface + np.random.default_rng(0).uniform(-12, 12, (20_000, 3))
    distance = cut.body.distance_mm(around)
    in_lung = lungs.contains(around)
    assert np.isinf(distance[~in_lung]).all()
    np.testing.assert_array_equal(distance[in_lung], whole.body.distance_mm(around)[in_lung])
    assert (distance < 0).mean() * 24**3 == pytest.approx(cut.volume_mm3, rel=0.1)
    assert cut.volume_mm3 < 0.8 * whole.volume_mm3


def test_a_perifissural_nodule_is_flat_and_lies_on_a_line() -> None:
    host = air(size_mm=80.0)
    rng = np.random.default_rng(3)
    planted, truth = plant_at(host, (0.0, 0.0, 0.0), 10.0, rng=rng, place=Place.PERIFISSURAL)
    assert truth.place is Place.PERIFISSURAL
    assert truth.mean_diameter_mm == pytest.approx(10.0, abs=0.3)
    body = np.argwhere(truth.mask.voxels)
    spread = np.linalg.svd(body - body.mean(axis=0), compute_uv=False)
    assert spread[2] < 0.8 * spread[0]
    changed = np.argwhere(planted.hu > -800)
    away = np.linalg.norm(host.geometry.index_to_lps(changed), axis=1)
    assert ((away > 10) & (away < 33)).sum() > 500


def test_random_kinds_hold_what_is_rare_but_missed() -> None:
    rng = np.random.default_rng(0)
    wide = [NoduleKind.draw(rng, 20.0) for _ in range(400)]
    walls = [10.0 * (1 - kind.cavity_fraction) for kind in wide if kind.cavity_fraction]
    assert len(walls) > 20
    assert min(walls) < 2.0
    assert max(walls) > 4.0
    faint = [NoduleKind.draw(rng, 8.0) for _ in range(400)]
    vague = [kind for kind in faint if kind.attenuation is Attenuation.NON_SOLID]
    assert min(kind.ground_glass_hu for kind in vague) < -660
    tiny = [NoduleKind.draw(rng, 4.0) for _ in range(400)]
    assert 0.15 < np.mean([kind.solid_hu > 150 for kind in tiny]) < 0.35


def test_same_patient_place_whatever_the_scanning_direction(phantom: Volume) -> None:
    center = (62.0, 20.0, 40.0)
    truths = [
        plant_at(host, center, 15.0, rng=np.random.default_rng(1))[1]
        for host in (phantom, flipped(phantom, 0), flipped(phantom, 1, 2))
    ]
    for truth in truths:
        np.testing.assert_allclose(truth.center_lps_mm, center, atol=0.1)
        assert truth.mask.voxels.sum() == pytest.approx(truths[0].mask.voxels.sum(), rel=0.05)


@pytest.mark.parametrize(("center", "diameter"), [((500.0, 0.0, 0.0), 8.0), ((0.0, 0.0, 0.0), 2.0)])
def test_impossible_requests_are_refused(center: Triple, diameter: float) -> None:
    with pytest.raises(ValueError, match=r"outside|wide"):
        plant_at(air(), center, diameter, rng=np.random.default_rng(0))
