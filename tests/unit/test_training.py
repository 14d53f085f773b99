"""Targets, matching, FROC, calibration, splits and weights: what training rests on."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from phoi_models.errors import NotAnalysable, NotAnalysableReason, PhoiError
from phoi_models.geometry import Geometry, Triple
from phoi_models.networks import CenterHeatmapNet
from phoi_models.planting import LungSpace
from phoi_models.shipped import SHIPPED
from phoi_models.volume import Volume
from phoi_training import patches
from phoi_training.dataset import Background, Mark, NoTrainingData, digest
from phoi_training.evaluation import (
    RATES,
    Prediction,
    ScanResult,
    by_size,
    calibrate,
    froc,
    threshold_at,
)
from phoi_training.export import check_replaceable
from phoi_training.fit import Recipe, losses, planters
from phoi_training.initial import (
    CHECKPOINT,
    UnusableWeights,
    earlier_folder,
    holds_networks,
    note_patients,
    trained_on,
)
from phoi_training.lidc import reader_marks
from phoi_training.patches import (
    Chest,
    Patch,
    PatchBank,
    PatchStream,
    augmented,
    chests,
    random_part,
    targets,
)
from phoi_training.ranks import Ranks
from phoi_training.train import Fold, Job, Trainer, by_experience, split, tuned, untuned

AXES = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
PARAMETERS = untuned("0.0.1")
NOWHERE = np.empty((0, 4))


def patch(*marks: tuple[float, float, float, float], complete: bool = True) -> Patch:
    """A patch of lung with a bright ball at each mark (z, y, x, diameter)."""
    z, y, x = np.indices((48, 48, 48))
    hu = np.full((48, 48, 48), -850, np.int16)
    for cz, cy, cx, diameter in marks:
        hu[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < (diameter / 2) ** 2] = 50
    return Patch(hu, np.array(marks).reshape(-1, 4), NOWHERE, complete)


coordinate = st.floats(8.0, 39.0)


@given(st.tuples(coordinate, coordinate, coordinate), st.floats(4.0, 30.0))
def test_targets_lead_back_to_the_nodule(center: Triple, diameter: float) -> None:
    made = targets(patch((*center, diameter)), PARAMETERS)
    (peak,) = np.argwhere(made["heat"][0] == 1.0)
    decoded = peak * 4 + 1.5 + made["offset"][:, *peak]
    np.testing.assert_allclose(decoded, center, atol=1e-3)
    assert made["diameter"][0][tuple(peak)] == pytest.approx(diameter)
    assert made["core"][0][tuple(peak)] == 1


@given(st.integers(0, 10_000))
def test_augmentation_moves_marks_with_their_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = augmented(patch((12.0, 30.0, 20.0, 16.0)), rng)
    z, y, x = made.marks[0, :3].round().astype(int)
    assert made.hu[z, y, x] > -300
    assert (made.hu > -300).sum() == pytest.approx(np.pi / 6 * 16**3, rel=0.5)


def test_no_loss_where_nobody_knows() -> None:
    uncertain = replace(patch(), uncertain=np.array([[24.0, 24.0, 24.0, 12.0]]))
    weight = targets(uncertain, PARAMETERS)["weight"][0]
    assert weight[6, 6, 6] == 0
    assert weight[0, 0, 0] == 1


def test_a_confident_mark_costs_only_where_all_nodules_are_known() -> None:
    def heat_loss(complete: bool) -> float:  # noqa: FBT001
        made = targets(patch(complete=complete), PARAMETERS)
        batch = {name: torch.from_numpy(value)[None] for name, value in made.items()}
        logit = torch.full((1, 1, 12, 12, 12), 3.0)
        outputs = (logit, torch.ones_like(logit), torch.zeros(1, 3, 12, 12, 12))
        return float(losses(outputs, batch)["heat"])

    assert heat_loss(complete=True) > 100
    assert heat_loss(complete=False) == 0


def result(
    nodules: int, marks: list[tuple[float, int | None]], *, complete: bool = True
) -> ScanResult:
    truths = tuple(Mark((float(20 * i), 0.0, 0.0), 8.0) for i in range(nodules))
    predictions = tuple(Prediction((0.0, 0.0, 0.0), 8.0, p, hit) for p, hit in marks)
    return ScanResult("scan", truths, predictions, complete, 1.0)


def test_froc_by_hand() -> None:
    # Two scans. By falling probability: hit, false, hit, false, false, hit; four nodules.
    results = [
        result(2, [(0.9, 0), (0.8, None), (0.5, None), (0.4, 1)]),
        replace(result(2, [(0.7, 1), (0.6, None)]), patient="another"),
    ]
    curve = froc(results, rng=np.random.default_rng(0), resamples=50)
    at = dict(zip(RATES, curve.sensitivities, strict=True))
    assert at == {0.125: 0.25, 0.25: 0.25, 0.5: 0.5, 1.0: 0.5, 2.0: 0.75, 4.0: 0.75, 8.0: 0.75}
    assert curve.cpm == pytest.approx(np.mean(list(at.values())))
    assert curve.interval is not None
    assert curve.interval[0] <= curve.cpm <= curve.interval[1]
    assert (curve.scans, curve.nodules) == (2, 4)


def test_scans_with_unknown_nodules_count_no_false_marks() -> None:
    results = [result(1, [(0.9, 0)]), result(1, [(0.95, None)] * 5, complete=False)]
    curve = froc(results, rng=np.random.default_rng(0), resamples=10)
    assert curve.sensitivities[0] == 1.0
    assert threshold_at(results, 1.0) <= 0.9


def test_threshold_allows_just_so_many_false_marks() -> None:
    results = [result(0, [(0.9, None), (0.3, None)]), result(0, [(0.6, None), (0.2, None)])]
    threshold = threshold_at(results, 1.0)
    assert sum(r.false_marks(threshold) for r in results) == 2
    assert 0.3 < threshold < 0.6


def test_sensitivity_by_size_counts_each_nodule_once() -> None:
    rows = by_size([result(3, [(0.9, 0), (0.8, 1), (0.1, 2)])], 0.5)
    assert rows[1] == ("6 to 10 mm", 2, 3)
    assert sum(total for _, _, total in rows) == 3


def test_calibrated_probability_is_the_share_of_hits() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.05, 0.95, 4000)
    truth = rng.random(4000) < scores**2  # raw scores promise too much
    marks = [(float(s), 0 if t else None) for s, t in zip(scores, truth, strict=True)]
    parameters, (rescaled,) = tuned(PARAMETERS, [result(1, marks)])
    assert calibrate([result(1, marks)]) == parameters.calibration
    assert calibrate([result(1, marks, complete=False)]).slope == 1.0
    probabilities = np.array([p.probability for p in rescaled.predictions])
    hits = np.array([p.nodule is not None for p in rescaled.predictions])
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)):
        within = (probabilities > low) & (probabilities < high)
        assert hits[within].mean() == pytest.approx(probabilities[within].mean(), abs=0.06)


def background(name: str, patient: str) -> Background:
    volume = Volume(
        np.full((2, 2, 2), -850, np.int16),
        Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), AXES),
    )
    lungs = LungSpace(np.ones((2, 2, 2), bool), (0.0, 0.0, 0.0), 1.0)
    return Background(name, patient, volume, lungs, (), complete=True)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_no_patient_is_on_both_sides(patients: list[int], seed: int) -> None:
    backgrounds = [background(str(i), str(patient)) for i, patient in enumerate(patients)]
    (fold,) = split(backgrounds, 1, (), seed)
    assert {b.name for b in (*fold.training, *fold.held_out)} == {b.name for b in backgrounds}
    assert not {b.patient for b in fold.training} & {b.patient for b in fold.held_out}
    assert fold.training
    assert bool(fold.held_out) == (len(set(patients)) > 1)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=20), st.integers(0, 99))
def test_every_patient_is_held_out_of_one_fold(patients: list[int], seed: int) -> None:
    backgrounds = [background(str(i), str(patient)) for i, patient in enumerate(patients)]
    if len(set(patients)) < 3:
        with pytest.raises(NoTrainingData, match="3 folds"):
            split(backgrounds, 3, (), seed)
        return
    folds = split(backgrounds, 3, (), seed)
    held_out = [b.name for fold in folds for b in fold.held_out]
    assert sorted(held_out) == sorted(b.name for b in backgrounds)
    for fold in folds:
        assert fold.held_out
        assert fold.training
        assert not {b.patient for b in fold.training} & {b.patient for b in fold.held_out}


def test_what_cannot_be_held_out_is_said() -> None:
    backgrounds = [background(name, name) for name in ("a1", "a2", "b1")]
    (fold,) = split(backgrounds, 1, ("a*",), 0)
    assert [b.name for b in fold.held_out] == ["a1", "a2"]
    with pytest.raises(NoTrainingData, match="no c1"):
        split(backgrounds, 1, ("a1", "c1"), 0)
    with pytest.raises(NoTrainingData, match="--hold-out"):
        split(backgrounds, 2, ("a1",), 0)


def test_patches_of_many_chests_are_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each chest's patches have their own attenuation; a run of patches must show many of them."""

    def flat(chest: Chest) -> list[Patch]:
        hu = np.full((32, 32, 32), -1000 + chest.number, np.int16)
        return [Patch(hu, NOWHERE, NOWHERE, complete=True) for _ in range(20)]

    bank = PatchBank(tmp_path, PARAMETERS, 32, seed=0)
    monkeypatch.setattr(bank, "patches", flat)
    monkeypatch.setattr(patches, "augmented", lambda patch, _: patch)
    wanted = [Chest(None, None, number) for number in range(1000)]
    stream = iter(PatchStream(bank, wanted, PARAMETERS, 32, seed=[0]))
    for _ in range(1500):
        next(stream)
    seen = [float(next(stream)["image"].mean()) for _ in range(64)]
    assert len(set(seen)) > 20


def test_a_chest_that_cannot_be_read_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreadable(*_: object) -> list[Patch]:
        raise NotAnalysable(NotAnalysableReason.NO_LUNGS, "no lungs are found")

    monkeypatch.setattr(patches, "chest_patches", unreadable)
    bank = PatchBank(tmp_path, PARAMETERS, 32, seed=0)
    chest = Chest(background("a", "A"), None, 0)
    with pytest.warns(UserWarning, match="not trained on"):
        assert bank.patches(chest) == []
    assert bank.has(chest), "it is not tried again"
    with pytest.raises(NoTrainingData):
        next(iter(PatchStream(bank, [chest], PARAMETERS, 32, seed=[0])))


def test_only_a_bundle_is_replaced(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new")
    with pytest.raises(PhoiError, match="no bundle"):
        check_replaceable(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    check_replaceable(tmp_path)


def test_a_chest_shows_its_host_and_its_donor() -> None:
    marked = replace(background("b", "B"), marks=(Mark((0.0, 0.0, 0.0), 5.0),))
    made = chests([background("a", "A"), marked], variants=2, phantoms=1)
    assert [sorted(chest.patients) for chest in made] == [["A", "B"]] * 2 + [["B"]] * 3
    assert len({chest.name for chest in made}) == 5


def test_the_network_that_saw_the_most_real_nodules_searches() -> None:
    bare = background("a", "A")
    marked = replace(background("b", "B"), marks=(Mark((0.0, 0.0, 0.0), 5.0),))
    folds = [Fold(0, (bare,), (marked,)), Fold(1, (marked,), (bare,)), Fold(2, (bare,), (marked,))]
    assert [fold.number for fold in by_experience(folds)] == [1, 0, 2]


def test_a_chest_gets_nodules_of_patients_who_are_held_out_with_it() -> None:
    mark = (Mark((0.0, 0.0, 0.0), 5.0),)
    donors = [replace(background(name, name), marks=mark) for name in "abc"]
    alone = background("d", "d")
    made = chests([*donors, alone], 3, 0, shares=[{"a", "b"}, {"c"}, {"d"}])
    for share in ({"a", "b"}, {"c"}):
        hosted = [c for c in made if c.host is not None and c.host.patient in share]
        assert all(chest.patients <= share for chest in hosted)
    (given, *_) = [c for c in made if c.host is alone]
    assert given.donor in donors, "a share without nodules of its own gets those of others"


def test_the_bank_gives_back_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    given_patches = [
        Patch(
            rng.integers(-1000, 400, (8, 8, 8)).astype(np.int16),
            marks=rng.uniform(0, 8, (count, 4)),
            uncertain=rng.uniform(0, 8, (1 - count % 2, 4)),
            complete=bool(count % 2),
        )
        for count in (0, 2, 1)
    ]
    monkeypatch.setattr(patches, "chest_patches", lambda *_: given_patches)
    bank = PatchBank(tmp_path, PARAMETERS, 8, seed=0)
    chest = Chest(background("a", "A"), None, 0)
    assert not bank.has(chest)
    bank.patches(chest)
    assert bank.has(chest)
    monkeypatch.delattr(patches, "chest_patches")  # now it must come from the disk
    for wanted, got in zip(given_patches, bank.patches(chest), strict=True):
        assert wanted.complete == got.complete
        for name in ("hu", "marks", "uncertain", "rejected"):
            np.testing.assert_array_equal(getattr(wanted, name), getattr(got, name))


@given(st.integers(0, 99))
def test_a_part_of_a_patch_takes_its_marks_along(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hu = np.arange(20**3, dtype=np.int16).reshape(20, 20, 20)
    at = rng.integers(6, 14, 3)
    part = random_part(Patch(hu, np.array([[*at, 5.0]]), np.empty((0, 4)), complete=True), 16, rng)
    assert part.hu.shape == (16, 16, 16)
    moved = part.marks[0, :3].astype(int)
    assert part.hu[tuple(moved)] == hu[tuple(at)]


def test_digest_tells_data_sets_apart() -> None:
    one = background("a", "a")
    marked = replace(one, marks=(Mark((0.0, 0.0, 0.0), 5.0),))
    assert digest([one]) == digest([background("a", "a")])
    assert len({digest([one]), digest([marked]), digest([one, one])}) == 3


def test_network_answers_one_cell_for_four_voxels() -> None:
    network = CenterHeatmapNet().eval()
    with torch.inference_mode():
        logit, diameter_mm, offset = network(torch.rand(2, 1, 32, 48, 64))
    assert logit.shape == diameter_mm.shape == (2, 1, 8, 12, 16)
    assert offset.shape == (2, 3, 8, 12, 16)
    assert (diameter_mm > 0).all()
    assert float(torch.sigmoid(logit).mean()) < 0.05
    assert sum(p.numel() for p in network.parameters()) < 1_000_000


def test_readers_outlines_become_marks(tmp_path: Path) -> None:
    readings = tmp_path / "readings.sqlite"
    with sqlite3.connect(readings) as database:
        database.executescript(
            "CREATE TABLE scans (id INTEGER, series_instance_uid VARCHAR);"
            "CREATE TABLE annotations (id INTEGER, scan_id INTEGER, texture INTEGER,"
            " spiculation INTEGER, malignancy INTEGER);"
            "CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN,"
            " image_z_position FLOAT, coords VARCHAR);"
            "INSERT INTO scans VALUES (1, '1.2.3'), (2, '1.2.4');"
        )
        # Reader 1 and 2 outline the same 10 x 10 pixel square, reader 3 something far away.
        for reader, (left, top) in enumerate([(100, 200), (101, 200), (300, 50)], start=1):
            database.execute("INSERT INTO annotations VALUES (?, 1, ?, 1, 3)", (reader, 3 + reader))
            corners = [(0, 0), (10, 0), (10, 10), (0, 10)]
            coords = "\n".join(f"{left + x},{top + y}" for x, y in corners)
            for z in (-50.0, -47.5, -45.0):
                database.execute(
                    "INSERT INTO contours VALUES (?, ?, 1, ?, ?)", (reader, reader, z, coords)
                )
        database.execute("INSERT INTO annotations VALUES (9, 2, 5, 1, 3)")
    database.close()
    both, alone = reader_marks(readings, "1.2.3", (-160.0, -170.0, -300.0), 0.5, 2.5)
    assert (both.readers, alone.readers) == (2, 1)
    assert (both.texture, both.malignancy) == (4.5, 3.0)
    np.testing.assert_allclose(both.center_lps_mm, (-160 + 52.75, -170 + 102.5, -47.5))
    assert both.diameter_mm == pytest.approx(np.cbrt(6 / np.pi * 25 * 7.5))


def earlier_checkpoint(work: Path, number: int, identity: str, bias: float) -> Path:
    """The folder of a trained network, told apart by the bias of its first normalisation."""
    network = CenterHeatmapNet()
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d))
    torch.nn.init.constant_(first.bias, bias)
    averaged = {f"module.{name}": value for name, value in network.state_dict().items()}
    folder = work / f"network-{number}-{identity}"
    folder.mkdir(parents=True)
    torch.save({"average": {"n_averaged": torch.tensor(1), **averaged}}, folder / CHECKPOINT)
    return folder


def bias_of(network: CenterHeatmapNet) -> float:
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d))
    return first.bias[0].item()


def test_only_a_work_folder_with_networks_is_gone_on_with(tmp_path: Path) -> None:
    assert not holds_networks(None)
    assert not holds_networks(tmp_path)
    (tmp_path / "network-1-a").mkdir()
    assert not holds_networks(tmp_path), "a run that was stopped before its first checkpoint"
    earlier_checkpoint(tmp_path, 2, "b", 0.0)
    assert holds_networks(tmp_path)


def test_a_network_goes_on_only_without_the_patients_it_is_validated_on(tmp_path: Path) -> None:
    note_patients(earlier_checkpoint(tmp_path, 1, "a", 1.0), ["ann", "bob"])
    note_patients(earlier_checkpoint(tmp_path, 1, "b", 2.0), ["bob", "cid"])
    note_patients(earlier_checkpoint(tmp_path, 2, "a", 3.0), ["ann", "cid"])
    assert earlier_folder(tmp_path, 1, ["cid"]).name == "network-1-a"
    assert earlier_folder(tmp_path, 1, ["ann", "dan"]).name == "network-1-b"
    assert earlier_folder(tmp_path, 2, ["bob"]).name == "network-2-a"
    with pytest.raises(UnusableWeights, match="no network 1 that never saw"):
        earlier_folder(tmp_path, 1, ["bob"])
    with pytest.raises(UnusableWeights, match="no network 3"):
        earlier_folder(tmp_path, 3, [])


def test_a_network_that_does_not_say_whom_it_saw_is_not_gone_on_with(tmp_path: Path) -> None:
    earlier_checkpoint(tmp_path, 1, "a", 1.0)
    with pytest.raises(UnusableWeights, match="never saw"):
        earlier_folder(tmp_path, 1, ["ann"])
    note_patients(tmp_path / "network-1-a", None)
    with pytest.raises(UnusableWeights, match="or it is not known"):
        earlier_folder(tmp_path, 1, ["ann"])


def fitted_from(init: Path | None, work: Path) -> tuple[float, Path]:
    """The bias of a network that bob is to train and cid to validate, and its folder."""
    job = Job(
        data=work,
        bundle=work / "bundle",
        work=work / "new",
        recipe=Recipe(steps=1, minutes=1.0),
        tracking_uri="",
        licence=work / "LICENSE",
        init=init,
    )
    bank = PatchBank(work / "bank", PARAMETERS, 48, seed=0)
    trainer = Trainer(bank, (), Ranks.of_environment(), "")
    fold = Fold(0, (background("b", "bob"),), (background("c", "cid"),))
    return bias_of(trainer.fit(job, fold)), trainer.folder(job, fold)


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phoi_training.train.fit", lambda network, *_, **__: network)


@pytest.mark.parametrize("init", ["old", f"old/network-1-a/{CHECKPOINT}"])
def test_a_network_that_goes_on_has_seen_also_whom_its_weights_have_seen(
    tmp_path: Path, no_steps: None, init: str
) -> None:
    note_patients(earlier_checkpoint(tmp_path / "old", 1, "a", 2.0), ["ann", "bob"])
    bias, folder = fitted_from(tmp_path / init, tmp_path)
    assert bias == 2.0
    assert trained_on(folder) == {"ann", "bob"}


def test_random_weights_have_seen_nobody(tmp_path: Path, no_steps: None) -> None:
    assert trained_on(fitted_from(None, tmp_path)[1]) == {"bob"}


def test_of_weights_without_a_note_it_is_not_known_whom_they_have_seen(
    tmp_path: Path, no_steps: None
) -> None:
    lone = earlier_checkpoint(tmp_path, 1, "a", 2.0) / CHECKPOINT
    for init in (lone, SHIPPED / "phoi-lung-nodule"):
        with pytest.raises(UnusableWeights, match="no patient is surely new to it: train from"):
            trained_on(fitted_from(init, tmp_path)[1])


@pytest.mark.parametrize(
    ("workers", "processes", "cores", "planting"),
    [(1, 1, 2, 2), (4, 1, 2, 4), (0, 1, 16, 0), (1, 1, 64, 8), (8, 4, 64, 8), (1, 4, 2, 1)],
)
def test_all_cores_plant_before_training(
    workers: int, processes: int, cores: int, planting: int
) -> None:
    assert planters(workers, processes, cores) == planting
