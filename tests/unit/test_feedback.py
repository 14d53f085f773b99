"""From signed reviews to a data set that names nobody, and back to voxels and labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.feedback import Pseudonyms, ReviewedCase, reviewed_cases, write_feedback
from phoi_edge_node.result import (
    Correction,
    Disposition,
    Nodule,
    Outcome,
    Patient,
    Priority,
    ResultIdentity,
    SignedReview,
    TriageResult,
    Verdict,
)
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.study import AnalysisEvent
from phoi_edge_node.testing import FakeClock, FakeSeriesReader
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.feedback import BadDataset, Case, FeedbackDataset
from phoi_models.findings import Attenuation, Finding, NoduleMask, Side
from phoi_models.geometry import Geometry, Index, Triple, as_triple
from phoi_models.identity import ModelIdentity
from phoi_models.size_class import size_class
from phoi_models.volume import Volume
from support import values

AT = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
PSEUDONYMS = Pseudonyms(bytes(range(32)))
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SECRETS = (
    "NGUYEN",
    "Nguyễn",
    "P-4711",
    "BVA",
    STUDY_UID,
    "1.2.826.0.1.3680043.8.498.2",
    "2.25.7",
    "bs.lan",
    "Bác sĩ Lan",
    "vessel of Mr An",
    "hospital-a",
    "2026-",
    "20260301",
    "1950-",
    "-321.5",
)


def volume(spacing: Triple = (2.5, 0.8, 0.8)) -> Volume:
    """A leaning grid far from the origin; each voxel tells its own index."""
    shape = (60, 120, 110)
    z, y, x = np.indices(shape)
    hu = (z * 100 + y * 7 + x).astype(np.int16)
    axes = ((0.0, 0.2, 0.98), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    unit = as_triple(np.array(axes[0]) / np.linalg.norm(axes[0]))
    return Volume(hu, Geometry(shape, spacing, (-100.0, -120.0, -321.5), (unit, *axes[1:])))


def finding(center: Triple, diameter_mm: float) -> Finding:
    return Finding(
        center_lps_mm=center,
        probability=0.83,
        long_axis_mm=diameter_mm,
        short_axis_mm=diameter_mm,
        mean_diameter_mm=diameter_mm,
        volume_mm3=diameter_mm**3,
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=20.0,
        side=Side.LEFT,
        lobe=None,
        long_axis_lps_mm=(center, center),
        short_axis_lps_mm=(center, center),
        mask=NoduleMask((0, 0, 0), np.ones((1, 1, 1), bool)),
    )


def place(index: Triple) -> Triple:
    return as_triple(volume().geometry.index_to_lps(index))


A, B, MISSED = place((30, 60, 50)), place((36, 64, 50)), place((4, 5, 100))


def disposition(uid: str, verdict: Verdict, correction: Correction | None = None) -> Disposition:
    return Disposition(uid, verdict, "bs.lan", AT, "vessel of Mr An", correction or Correction())


def reviewed() -> ReviewedCase:
    nodules = tuple(
        Nodule(n, f"2.25.7{n}", f, size_class(f))
        for n, f in enumerate((finding(A, 12.0), finding(B, 6.0)), start=1)
    )
    model = ModelIdentity("phoi-lung-nodule", "1.0.0", "ab" * 32)
    identity = ResultIdentity(STUDY_UID, "1.2.826.0.1.3680043.8.498.2", "cd" * 32, model, 1)
    result = TriageResult(
        identity=identity,
        outcome=Outcome.POSITIVE,
        nodules=nodules,
        suggested_priority=Priority.URGENT,
        coverage=None,
        reason=None,
        detail="",
        series_reason="",
        analysed_at=AT,
    )
    review = SignedReview(
        "bs.lan",
        "Bác sĩ Lan",
        AT,
        (
            disposition("2.25.71", Verdict.MODIFIED, Correction(mean_diameter_mm=14.0)),
            disposition("2.25.72", Verdict.REJECTED),
            disposition("2.25.79", Verdict.MISSED, Correction(center_lps_mm=MISSED)),
        ),
    )
    patient = Patient("P-4711", "BVA", "NGUYEN^VAN AN=Nguyễn^Văn An", date(1950, 1, 1), "M")
    return ReviewedCase(patient, result, review, volume(), "reviewer")


@pytest.fixture
def dataset(tmp_path: Path) -> FeedbackDataset:
    write_feedback([reviewed()], tmp_path / "set", "hospital-a", PSEUDONYMS)
    return FeedbackDataset.open(tmp_path / "set")


def by_first_verdict(dataset: FeedbackDataset, verdict: str, diameter: float | None) -> Case:
    """The case with such a label, smallest first: a missed nodule lies alone in its crop."""
    found = [
        case
        for case in dataset.index.cases
        if any((x.verdict, x.diameter_mm) == (verdict, diameter) for x in case.labels)
    ]
    return min(found, key=lambda case: len(case.labels))


def test_each_mark_gets_a_crop_with_every_judged_mark_inside(dataset: FeedbackDataset) -> None:
    assert sorted(
        tuple(sorted((x.verdict, x.diameter_mm, x.probability) for x in case.labels))
        for case in dataset.index.cases
    ) == [
        (("missed", None, None),),
        (("modified", 14.0, 0.83), ("rejected", 6.0, 0.83)),
        (("modified", 14.0, 0.83), ("rejected", 6.0, 0.83)),
    ]
    nodules = {x.verdict for case in dataset.index.cases for x in case.labels if x.is_nodule}
    assert nodules == {"missed", "modified"}


def test_a_label_points_at_the_voxel_that_the_reviewer_meant(dataset: FeedbackDataset) -> None:
    missed = by_first_verdict(dataset, "missed", None)
    (label,) = missed.labels
    z, y, x = (round(v) for v in label.center_zyx)
    assert dataset.crop(missed).hu[z, y, x] == volume().hu[4, 5, 100]


def test_the_crop_keeps_grid_and_directions_but_not_its_place(dataset: FeedbackDataset) -> None:
    case = by_first_verdict(dataset, "modified", 14.0)
    crop, whole = dataset.crop(case), volume()
    assert crop.geometry.spacing_mm == whole.geometry.spacing_mm
    assert crop.geometry.axes_lps == whole.geometry.axes_lps
    assert crop.geometry.origin_lps_mm == (0.0, 0.0, 0.0)
    first, second = case.labels
    between = crop.geometry.index_to_lps(second.center_zyx) - crop.geometry.index_to_lps(
        first.center_zyx
    )
    assert between == pytest.approx(np.subtract(B, A), abs=0.05)
    for n, spacing in zip(case.shape, case.spacing_mm, strict=True):
        assert 60 < n * spacing < 72


def test_nothing_names_a_patient_a_person_or_the_site(dataset: FeedbackDataset) -> None:
    files = [path for path in dataset.folder.rglob("*") if path.is_file()]
    assert len(files) == 4
    names = "\n".join(str(path.relative_to(dataset.folder)) for path in files)
    text = names + (dataset.folder / "dataset.json").read_text()
    for secret in SECRETS:
        assert secret not in text
    for case in dataset.index.cases:
        with np.load(dataset.folder / case.file) as arrays:
            assert arrays.files == ["hu"]


def test_crops_of_one_patient_stay_together_at_one_site_only(tmp_path: Path) -> None:
    first = reviewed()
    other_study = replace(first.result.identity, study_instance_uid="1.2.3")
    second = replace(first, result=replace(first.result, identity=other_study))
    stranger = replace(first, patient=replace(first.patient, patient_id="P-4712"))
    nameless = replace(first, patient=replace(first.patient, patient_id=""))

    def patients(*cases: ReviewedCase, key: Pseudonyms = PSEUDONYMS) -> set[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return {c.patient for c in write_feedback(cases, folder, "hospital-a", key).cases}

    assert patients(first) == patients(second) == patients(first, second)
    assert patients(first).isdisjoint(patients(stranger))
    assert patients(first).isdisjoint(patients(nameless))
    assert patients(first).isdisjoint(patients(first, key=Pseudonyms(bytes(32))))


def test_the_same_reviews_make_the_same_data_set(tmp_path: Path) -> None:
    indexes = [
        write_feedback([reviewed()], tmp_path / name, "hospital-a", PSEUDONYMS)
        for name in ("a", "b")
    ]
    assert indexes[0] == indexes[1]
    for case in indexes[0].cases:
        assert (tmp_path / "a" / case.file).read_bytes() == (
            tmp_path / "b" / case.file
        ).read_bytes()


def test_a_folder_that_exists_is_never_mixed_with_another(dataset: FeedbackDataset) -> None:
    with pytest.raises(EdgeError, match="exists already"):
        write_feedback([reviewed()], dataset.folder, "hospital-a", PSEUDONYMS)


@given(index=st.tuples(st.integers(0, 59), st.integers(0, 119), st.integers(0, 109)))
def test_a_mark_at_any_place_of_the_volume_is_found_again_in_its_crop(
    tmp_path_factory: pytest.TempPathFactory, index: Index
) -> None:
    correction = Correction(center_lps_mm=place(index), mean_diameter_mm=40.0)
    only = disposition("2.25.79", Verdict.MISSED, correction)
    case = replace(reviewed(), review=replace(reviewed().review, dispositions=(only,)))
    folder = tmp_path_factory.mktemp("crop") / "set"
    write_feedback([case], folder, "hospital-a", PSEUDONYMS)
    dataset = FeedbackDataset.open(folder)
    (entry,) = dataset.index.cases
    z, y, x = (round(v) for v in entry.labels[0].center_zyx)
    assert dataset.crop(entry).hu[z, y, x] == volume().hu[index]


def read_all(folder: Path) -> None:
    opened = FeedbackDataset.open(folder)
    for case in opened.index.cases:
        opened.crop(case)


def spoil_index(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["cases"][0]["labels"][0]["verdict"] = "accepted"
    (folder / "dataset.json").write_text(json.dumps(content))


def spoil_format(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("phoi-feedback/1", "phoi-feedback/9"))


def lose_index(folder: Path) -> None:
    (folder / "dataset.json").unlink()


def spoil_crop(folder: Path) -> None:
    for path in (folder / "cases").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def lose_crop(folder: Path) -> None:
    for path in (folder / "cases").iterdir():
        path.unlink()


@pytest.mark.parametrize("spoil", [spoil_index, spoil_format, lose_index, spoil_crop, lose_crop])
def test_a_damaged_data_set_is_never_learned_from(
    dataset: FeedbackDataset, spoil: Callable[[Path], None]
) -> None:
    spoil(dataset.folder)
    with pytest.raises(BadDataset):
        read_all(dataset.folder)


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonyms.key"
    made = Pseudonyms.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Pseudonyms.load(path, random=lambda n: bytes(n)) == made
    path.chmod(0o644)
    with pytest.raises(EdgeError, match="chmod 600"):
        Pseudonyms.load(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(EdgeError, match="damaged"):
        Pseudonyms.load(path)


def test_borders_between_the_parts_of_a_name_count() -> None:
    assert PSEUDONYMS.of("patient", "A", "B1") != PSEUDONYMS.of("patient", "AB", "1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    yield SqlStore(engine, FakeClock())
    engine.dispose()


def add_review(store: SqlStore, uid: str, input_digest: str, *, signed: bool) -> None:
    """A study with one nodule, judged by bs.lan."""
    store.add_instance(values.instance(1, uid))
    analysis_id = store.complete_study(uid, Priority.ROUTINE)
    assert analysis_id is not None
    assert store.claim_analysis() is not None
    result = values.result(uid)
    result = replace(result, identity=replace(result.identity, input_digest=input_digest))
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, result, [])
    mark = result.nodules[0].tracking_uid
    store.decide(analysis_id, mark, Verdict.ACCEPTED, "bs.lan", "", Correction())
    if signed:
        standing = tuple(store.review(analysis_id).current.values())
        store.sign(analysis_id, SignedReview("bs.lan", "Bác sĩ Lan", AT, standing), [])


def test_only_signed_reviews_of_unchanged_images_are_taken(store: SqlStore) -> None:
    account = Account("bs.lan", "Bác sĩ Lan", Role.REVIEWER)
    store.put_account(StoredAccount(account, "hash"))
    reader = FakeSeriesReader(values.small_volume())
    unchanged = values.small_volume().digest()
    add_review(store, "1.2.1", unchanged, signed=True)
    add_review(store, "1.2.2", unchanged, signed=False)
    add_review(store, "1.2.3", "ee" * 32, signed=True)
    (case,) = reviewed_cases(store, reader)
    assert case.result.identity.study_instance_uid == "1.2.1"
    assert case.reviewer_role == "reviewer"
    assert case.patient == values.PATIENT
    unreadable = FakeSeriesReader(
        values.small_volume(), NotAnalysable(NotAnalysableReason.MISSING_SLICES, "one is missing")
    )
    assert list(reviewed_cases(store, unreadable)) == []
