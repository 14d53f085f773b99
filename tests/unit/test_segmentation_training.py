"""What the segmentation network is trained on, and that training and export work."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from phoi_models.geometry import Triple
from phoi_models.networks import ExportedSegmentationNet
from phoi_models.phantom import chest_phantom
from phoi_models.planting import LungSpace, NoduleKind, PlantedNodule, plant_at
from phoi_models.segmentation import SAMPLES, STEP_MM, Cube, Segmenter
from phoi_training.background import Background, Mark
from phoi_training.fit import Diverged
from phoi_training.segmentation import (
    VIEWS,
    Chest,
    Host,
    Recipe,
    Sample,
    Trained,
    augmented,
    chests,
    diameters,
    export,
    host_of,
    keep,
    kept,
    losses,
    mark,
    samples,
    thicker,
    train,
)

SIZES_MM = (22.0, 11.0, 6.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def host() -> Host:
    phantom = chest_phantom(rng(5), (2.5, 1.4, 1.4))
    return Host("phantom", phantom, LungSpace.of(phantom))


@pytest.fixture(scope="module")
def nodule(host: Host) -> PlantedNodule:
    return plant_at(host.volume, (62.0, 20.0, 40.0), 15.0, rng=rng(1), kind=NoduleKind())[1]


@pytest.fixture(scope="module")
def bank(host: Host) -> list[Sample]:
    return samples(host, SIZES_MM, rng(3))


def steep(steps: int) -> Recipe:
    """Learns something although the learning rate is still warming up."""
    return Recipe(steps=steps, minutes=1e6, seed=0, batch=3, learning_rate=0.05)


def quiet(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def trained(bank: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(bank, steep(12), checkpoint=tmp_path_factory.mktemp("work") / "c.pt", say=quiet)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_samples_hold_as_much_nodule_as_was_planted(bank: list[Sample]) -> None:
    assert len(bank) == VIEWS * len(SIZES_MM)
    for start, diameter in zip(range(0, len(bank), VIEWS), SIZES_MM, strict=True):
        views = bank[start : start + VIEWS]
        volumes = [view.filled.sum() / 255 * view.step_mm**3 for view in views]
        assert max(volumes) < 1.1 * min(volumes)
        assert 0.3 < np.mean(volumes) / (np.pi / 6 * diameter**3) < 1.6
        for view in views:
            assert view.lung[view.filled > 128].mean() > 0.5
            middle = view.filled[15:25, 15:25, 15:25]
            assert middle.max() == 255


def test_a_ball_fills_its_volume(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def balls(volume: object, *_: object, **__: object) -> object:
        planted, truth = plant_at(host.volume, (62.0, 20.0, 40.0), 15.0, rng=rng(1))
        assert volume is host.volume
        return planted, (truth,)

    monkeypatch.setattr("phoi_training.segmentation.plant_nodules", balls)
    for view in samples(host, [15.0], rng(2)):
        filled = view.filled.sum() / 255 * view.step_mm**3
        assert filled == pytest.approx(np.pi / 6 * 15**3, rel=0.03)
        assert view.hu[view.filled == 255].mean() > -60
        assert view.hu[(view.filled == 0) & view.lung].mean() < -500


def test_the_seed_decides(host: Host, bank: list[Sample]) -> None:
    again = samples(host, SIZES_MM, rng(3))
    for one, other in zip(bank, again, strict=True):
        assert one.center_lps_mm == other.center_lps_mm
        np.testing.assert_array_equal(one.hu, other.hu)
        np.testing.assert_array_equal(one.filled, other.filled)
    np.testing.assert_array_equal(augmented(bank[0], rng(1))[0], augmented(bank[0], rng(1))[0])
    assert not np.array_equal(augmented(bank[0], rng(1))[0], augmented(bank[0], rng(2))[0])


@given(seed=st.integers(0, 2**32))
def test_marks_are_off_but_not_far_off(seed: int, nodule: PlantedNodule) -> None:
    center, diameter = mark(nodule, rng(seed))
    true_mm = nodule.mean_diameter_mm
    away = np.linalg.norm(np.subtract(center, nodule.center_lps_mm))
    assert away <= 1 + 0.1 * true_mm
    assert np.exp(-0.5) - 1e-9 <= diameter / true_mm <= np.exp(0.5) + 1e-9


@given(seed=st.integers(0, 2**32))
def test_augmentation_moves_the_answer_with_the_voxels(seed: int) -> None:
    shape = (SAMPLES,) * 3
    filled = np.zeros(shape, np.uint8)
    filled[3:9, 20:22, 30:39] = 255
    hu = np.where(filled, 40, -850).astype(np.int16)
    sample = Sample(hu, filled > 0, filled, (0.0, 0.0, 0.0), 1.0)
    seen, answer = augmented(sample, rng(seed))
    assert seen.shape == (2, *shape)
    assert seen.dtype == answer.dtype == np.float32
    np.testing.assert_array_equal(answer[0], seen[1])
    assert answer.sum() == 6 * 2 * 9
    assert seen[0][answer[0] > 0].mean() > seen[0][answer[0] == 0].mean() + 0.5


def test_each_chest_gets_nodules_of_all_sizes_the_largest_first() -> None:
    drawn = diameters(rng())
    assert drawn == sorted(drawn, reverse=True)
    assert len(drawn) == 24
    assert [sum(low <= d < high for d in drawn) for low, high in ((3, 5), (5, 15), (15, 45))] == [
        3,
        14,
        7,
    ]


def test_what_is_kept_is_read_as_it_was(bank: list[Sample], tmp_path: Path) -> None:
    path = Chest(7, None).kept_in(tmp_path)
    keep(path, bank)
    for one, other in zip(bank, kept(path), strict=True):
        np.testing.assert_array_equal(one.hu, other.hu)
        np.testing.assert_array_equal(one.lung, other.lung)
        np.testing.assert_array_equal(one.filled, other.filled)
        assert (one.center_lps_mm, one.step_mm) == (other.center_lps_mm, other.step_mm)
        assert (str(other.hu.dtype), str(other.filled.dtype)) == ("int16", "uint8")
    keep(path, [])
    assert kept(path) == []
    assert list(tmp_path.iterdir()) == [path]


def test_each_round_takes_all_chests_and_new_phantoms() -> None:
    wanted = chests(["a", "b"], 1, 2)
    assert [chest.background for chest in wanted] == ["a", "b", None, "a", "b", None]
    drawn = {chest.rng(seed).random() for chest in wanted for seed in (1, 2)}
    assert len(drawn) == 12
    assert wanted[3].rng(1).random() == Chest(3, None).rng(1).random()


def test_a_chest_is_a_background_or_a_new_phantom(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    spacings: list[Triple] = []

    def phantom(_: np.random.Generator, spacing_mm: Triple) -> object:
        spacings.append(spacing_mm)
        return host.volume

    monkeypatch.setattr("phoi_training.segmentation.chest_phantom", phantom)
    real = Mark((62.0, 20.0, 40.0), 9.0)
    chest = Background("a chest", "somebody", host.volume, host.lungs, (real,), complete=True)
    backgrounds = {"a chest": chest, "another": chest}
    found = [host_of(one, backgrounds, one.rng(0)) for one in chests(["a chest"], 1, 1)]
    assert [one.name for one in found] == ["a chest", "phantom 1"]
    assert [one.avoid for one in found] == [(real.ball,), ()]
    assert len(spacings) == 1


def test_some_chests_come_in_thick_slices(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phoi_training.segmentation._THICK", 1.0)
    monkeypatch.setattr("phoi_training.segmentation._THICK_MM", (2.5, 5.0))
    chest = Background("a chest", "somebody", host.volume, host.lungs, (), complete=True)
    hosts = [host_of(Chest(0, "a chest"), {"a chest": chest}, rng(seed)) for seed in range(8)]
    found = {one.volume.geometry.spacing_mm[0]: one.name for one in hosts}
    assert found == {2.5: "a chest", 5.0: "a chest, 2 slices as one"}


def test_thick_slices_are_means_and_lie_where_theirs_lay(host: Host) -> None:
    thin = host.volume
    thick = thicker(thin, 3)
    assert thick.geometry.shape[0] == thin.geometry.shape[0] // 3
    np.testing.assert_allclose(thick.hu[4], thin.hu[12:15].mean(axis=0), atol=0.51)
    middle = thin.geometry.index_to_lps((13, 7, 9))
    np.testing.assert_allclose(thick.geometry.index_to_lps((4, 7, 9)), middle)


def test_the_weights_are_averaged(
    bank: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(decay: float, steps: int) -> torch.Tensor:
        monkeypatch.setattr("phoi_training.segmentation._DECAY", decay)
        checkpoint = tmp_path / f"{decay}-{steps}.pt"
        found = train(bank, steep(steps), checkpoint=checkpoint, say=quiet)
        return found.network.head.weight.detach()

    last, first, mean = head(0.0, 2), head(0.0, 1), head(0.25, 2)
    np.testing.assert_allclose(mean, 2 / 11 * first + 9 / 11 * last, rtol=1e-3, atol=1e-6)


def test_the_right_answer_costs_next_to_nothing() -> None:
    filled = torch.zeros(2, 1, 8, 8, 8)
    filled[:, :, 2:6, 2:6, 2:6] = 1
    right, wrong = losses(20 * (filled - 0.5), filled), losses(20 * (0.5 - filled), filled)
    assert float(right["cross_entropy"]) < 1e-4
    assert float(right["dice"]) < 1e-4
    assert float(wrong["cross_entropy"]) > 9
    assert float(wrong["dice"]) > 0.8


def test_training_makes_the_losses_fall(
    bank: list[Sample], trained: Trained, checkpoint: Path
) -> None:
    first = train(bank, steep(1), checkpoint=checkpoint, say=quiet)
    assert (first.steps, trained.steps) == (1, 12)
    assert trained.losses["cross_entropy"] < 0.95 * first.losses["cross_entropy"]
    assert trained.losses["dice"] < first.losses["dice"]
    assert not trained.network.training


class Clock:
    """A minute later each time that somebody looks."""

    def __init__(self) -> None:
        self._minutes = count()

    def __call__(self) -> float:
        return 60.0 * next(self._minutes)


def test_training_ends_with_its_time(bank: list[Sample], checkpoint: Path) -> None:
    told: list[str] = []
    recipe = Recipe(steps=1000, minutes=2, seed=0, batch=2)
    ended = train(bank, recipe, checkpoint=checkpoint, say=told.append, clock=Clock())
    assert ended.steps == 2
    assert told == []


def test_training_goes_on_where_it_stopped(
    bank: list[Sample], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(_line: str) -> None:
        raise Killed

    monkeypatch.setattr("phoi_training.segmentation._AVERAGED", 3)
    monkeypatch.setattr("phoi_training.segmentation._SAVE_EVERY_S", 59.0)
    recipe = Recipe(steps=4, minutes=100, seed=0, batch=2)
    with pytest.raises(Killed):
        train(bank, recipe, checkpoint=checkpoint, say=killed, clock=Clock())
    clock = Clock()
    ended = train(bank, recipe, checkpoint=checkpoint, say=quiet, clock=clock)
    assert (ended.steps, clock()) == (4, 2 * 60.0), "one step more"
    again = train(bank, recipe, checkpoint=checkpoint, say=killed)
    assert again.steps == 4
    for one, other in zip(
        ended.network.state_dict().values(), again.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_training_tells_every_fifty_steps_how_it_goes(
    bank: list[Sample], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phoi_training.segmentation._AVERAGED", 2)
    told: list[str] = []
    recipe = Recipe(steps=1000, minutes=4, seed=0, batch=2)
    train(bank, recipe, checkpoint=checkpoint, say=told.append, clock=Clock())
    assert [line.split(":")[0] for line in told] == ["step 2", "step 4"]
    assert [line.split(", ")[-1] for line in told] == [
        "about 2 minutes left",
        "about 0 minutes left",
    ]


def test_what_cannot_be_trained_is_refused(bank: list[Sample], checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="a batch takes 16 samples, and there are 15"):
        train(bank, replace(steep(1), batch=16), checkpoint=checkpoint, say=quiet)
    with pytest.raises(ValueError, match="at least one step"):
        Recipe(steps=0, minutes=1, seed=0)
    endless = replace(steep(9), learning_rate=float("inf"))
    with pytest.raises(Diverged, match="at step 1"):
        train(bank, endless, checkpoint=checkpoint, say=quiet)


def test_the_exported_file_says_what_torch_says(
    bank: list[Sample], trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    assert export(trained.network, path) < 1e-4
    assert list(tmp_path.iterdir()) == [path]
    assert str(Path.cwd()).encode() not in path.read_bytes()
    for sample in bank[::VIEWS]:
        hu = sample.hu.astype(np.float32)
        cube = Cube(hu, sample.lung, sample.center_lps_mm, sample.step_mm)
        filled = Segmenter(path.read_bytes()).filled(cube)
        with torch.inference_mode():
            exported = ExportedSegmentationNet(trained.network)
            wanted = exported(torch.from_numpy(cube.network_input[None]))
        np.testing.assert_allclose(filled, wanted[0, 0].numpy(), atol=1e-4)
        assert STEP_MM[0] <= cube.step_mm <= STEP_MM[1]
