"""Bad input gets a clear answer, and the study after it is not disturbed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.stand_ins.hospital import Hospital
from phoi_models.phantom import chest_phantom
from phoi_models.volume import Volume
from pydicom import dcmread
from pydicom.uid import MRImageStorage
from support import dcmtk
from support.dicom_phantom import SeriesOptions, write_series
from support.outside import Arrived, arrived, send, send_files, wait_for, wait_for_result


@pytest.fixture(scope="module")
def chest() -> Volume:
    return chest_phantom(np.random.default_rng(7), (5.0, 1.8, 1.8))


def options(name: str, **more: object) -> SeriesOptions:
    return SeriesOptions(seed=f"bad-input-{name}", **more)  # type: ignore[arg-type]


def outcome(found: Arrived) -> str:
    """What HL7 says of a study, in one word, after checking that FHIR says the same."""
    (said,) = re.findall(r"\|outcome\^[^|]*\|\|([a-z_]+)\^", found.messages[-1])
    in_words = {
        "positive": "LUNG NODULE FOUND",
        "negative": "NEGATIVE",
        "limited": "LIMITED",
        "not_analysable": "NOT ANALYSABLE",
        "failed": "AI FAILED",
    }
    assert in_words[said] in str(found.diagnostic_reports)
    assert ("NEGATIVE" in str(found.diagnostic_reports)) == (said == "negative")
    return str(said)


def healthy_study_passes(site: Hospital, chest: Volume, folder: Path, name: str) -> None:
    after = options(f"{name}-after")
    write_series(folder, chest, after)
    assert send(site, folder)
    found = wait_for_result(site, after.study_instance_uid, with_seg=False)
    assert outcome(found) in {"negative", "positive"}


def test_a_study_with_missing_slices_is_not_analysable_and_never_negative(
    site: Hospital, chest: Volume, tmp_path: Path
) -> None:
    gap = options("gap", missing=tuple(range(20, 26)))
    write_series(tmp_path / "gap", chest, gap)
    assert send(site, tmp_path / "gap")
    found = wait_for_result(site, gap.study_instance_uid, with_seg=False)
    assert outcome(found) == "not_analysable"
    assert "slices are missing" in found.messages[0]
    assert found.segmentations == ()
    assert "missing" in str(found.reports[0])
    healthy_study_passes(site, chest, tmp_path / "after", "gap")


def test_lungs_cut_off_are_limited_and_never_negative(site: Hospital, tmp_path: Path) -> None:
    whole = chest_phantom(np.random.default_rng(7), (5.0, 1.8, 1.8))
    cut = options("cut")
    paths = write_series(tmp_path / "cut", whole, cut)
    kept = [path for number, path in enumerate(paths) if 25 <= number < 50]
    assert send_files(site, kept)
    found = wait_for_result(site, cut.study_instance_uid, with_seg=False)
    assert outcome(found) != "negative"
    assert "CHƯA XÁC NHẬN ĐỦ HÌNH" in found.messages[0]
    assert "COMPLETENESS UNCONFIRMED" in found.diagnostic_reports[0]["conclusion"]
    assert "COMPLETENESS UNCONFIRMED" in str(found.reports[0])


def test_two_studies_mixed_in_one_association_are_two_results(
    site: Hospital, chest: Volume, tmp_path: Path
) -> None:
    one, two = options("mixed-1"), options("mixed-2", accession_number="ACC-2")
    first = write_series(tmp_path / "1", chest, one)
    second = write_series(tmp_path / "2", chest, two)
    mixed = [path for pair in zip(first, second, strict=True) for path in pair]
    assert send_files(site, mixed)
    for study in (one, two):
        found = wait_for_result(site, study.study_instance_uid, with_seg=False)
        of_nodules = {"SEG": 0, "KOS": 0}
        others = {"SR": 1, "SC": True, "ORU": 1, "FHIR": 1}
        assert found.counts | of_nodules == others | of_nodules
        assert found.reports[0].AccessionNumber == study.accession_number


def test_what_is_no_ct_is_refused_by_its_class(
    site: Hospital, chest: Volume, tmp_path: Path
) -> None:
    (path, *_) = write_series(tmp_path / "mr", chest, options("mr"))
    dataset = dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.Modality = "MR"
    dataset.save_as(path)
    assert not send_files(site, [path])
    healthy_study_passes(site, chest, tmp_path / "after", "mr")


def test_a_truncated_file_disturbs_nothing(site: Hospital, chest: Volume, tmp_path: Path) -> None:
    truncated = options("truncated")
    paths = write_series(tmp_path / "truncated", chest, truncated)
    whole = paths[30].read_bytes()
    paths[30].write_bytes(whole[: len(whole) // 2])
    assert not send_files(site, paths)
    found = wait_for_result(site, truncated.study_instance_uid, with_seg=False)
    assert outcome(found) != "negative"
    paths[30].write_bytes(whole)
    assert send_files(site, paths), "the PACS sends all of it again"
    wait_for("second revision", lambda: len(_told(site, truncated)) == 2)
    assert outcome(arrived(site, truncated.study_instance_uid)) in {"negative", "positive"}
    healthy_study_passes(site, chest, tmp_path / "after", "truncated")


def _told(site: Hospital, study: SeriesOptions) -> tuple[str, ...]:
    return arrived(site, study.study_instance_uid).messages


def test_a_calling_ae_title_that_is_not_allowed_is_rejected(
    site: Hospital, chest: Volume, tmp_path: Path
) -> None:
    stranger = options("stranger")
    write_series(tmp_path / "stranger", chest, stranger)
    settings = site.settings_file.read_text()
    allowed = settings.replace("[dicom]", '[dicom]\nallowed_calling_ae_titles = ["SCANNER"]')
    site.settings_file.write_text(allowed)
    try:
        site.edge.stop()
        site.edge.start()
        assert not send(site, tmp_path / "stranger", calling="STRANGER")
        assert not send(site, tmp_path / "stranger", called="OTHER")
        assert arrived(site, stranger.study_instance_uid).reports == ()
        assert send(site, tmp_path / "stranger", calling="SCANNER")
    finally:
        site.settings_file.write_text(settings)
        site.edge.stop()
        site.edge.start()
    wait_for_result(site, stranger.study_instance_uid, with_seg=False)


def test_other_content_under_a_known_uid_is_refused_and_kept_apart(
    site: Hospital, chest: Volume, tmp_path: Path
) -> None:
    known = options("conflict")
    (path, *_) = write_series(tmp_path / "known", chest, known)
    assert send_files(site, [path])
    shutil.copy(path, tmp_path / "other.dcm")
    dataset = dcmread(tmp_path / "other.dcm")
    dataset.PatientID = "SOMEBODY-ELSE"
    dataset.save_as(tmp_path / "other.dcm")
    quarantine = site.folder / "data" / "instances" / "quarantine"
    before = len(list(quarantine.iterdir()))
    answered = dcmtk.run(
        "storescu", "-d", "-aec", "PHOI", "127.0.0.1", site.ports.dicom, tmp_path / "other.dcm"
    )
    status = re.search(r"DIMSE Status\s*: (0x\w{4})", answered.stdout + answered.stderr)
    assert status, "no C-STORE response"
    assert status.group(1) == "0x0111", "Duplicate SOP Instance"
    assert len(list(quarantine.iterdir())) == before + 1
