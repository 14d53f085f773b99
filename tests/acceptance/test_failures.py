"""Things that die in the middle: each study still ends as one result, everywhere once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.stand_ins.hospital import Hospital
from phoi_models.phantom import chest_phantom
from phoi_models.planting import plant_at
from phoi_models.volume import Volume
from pydicom import dcmread
from support.dicom_phantom import SeriesOptions, write_series
from support.outside import (
    PATIENCE_S,
    SEG,
    Arrived,
    arrived,
    metric,
    send,
    settle,
    wait_for,
    wait_for_result,
)

ONCE = {"SR": 1, "SEG": 1, "SC": True, "KOS": 1, "ORU": 1, "FHIR": 1}


LEFT_LUNG_LPS_MM = (75.0, 20.0, 0.0)


@pytest.fixture(scope="module")
def chest() -> Volume:
    rng = np.random.default_rng(5)
    volume, _ = plant_at(chest_phantom(rng, (2.5, 1.4, 1.4)), LEFT_LUNG_LPS_MM, 18.0, rng=rng)
    return volume


@pytest.fixture
def study(chest: Volume, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A study of its own for each test: its folder and UID."""
    options = SeriesOptions(seed=request.node.name)
    write_series(tmp_path / "ct", chest, options)
    return tmp_path / "ct", options.study_instance_uid


@pytest.fixture(autouse=True)
def all_runs(site: Hospital) -> Iterator[None]:
    yield
    for program in (site.archive, site.worker, site.edge):
        program.stop()
    for program in (site.archive, site.worker, site.edge):
        program.start()


def one_result(site: Hospital, uid: str) -> Arrived:
    wait_for_result(site, uid)
    settle(site)
    found = arrived(site, uid)
    assert found.counts == ONCE
    return found


def while_analysing(site: Hospital) -> None:
    wait_for("running analysis", lambda: metric(site, "phoi_analyses", state="running") >= 1)


def test_the_worker_is_killed_in_the_middle_of_a_study(
    site: Hospital, study: tuple[Path, str]
) -> None:
    folder, uid = study
    assert send(site, folder)
    while_analysing(site)
    site.worker.kill()
    time.sleep(1)
    site.worker.start()
    one_result(site, uid)


def test_the_edge_is_killed_in_the_middle_of_an_analysis(
    site: Hospital, study: tuple[Path, str]
) -> None:
    folder, uid = study
    assert send(site, folder)
    while_analysing(site)
    site.edge.kill()
    site.edge.start()
    one_result(site, uid)


def test_the_edge_is_killed_while_it_receives(site: Hospital, study: tuple[Path, str]) -> None:
    folder, uid = study
    outcome: list[bool] = []
    sender = threading.Thread(target=lambda: outcome.append(send(site, folder)))
    stored = _stored(site)
    sender.start()
    wait_for("first slices", lambda: _stored(site) > stored + 5, 30)
    site.edge.kill()
    sender.join(60)
    assert outcome == [False], "the sender was told that not all is safe"
    site.edge.start()
    assert send(site, folder), "the PACS sends it again"
    one_result(site, uid)


def _stored(site: Hospital) -> int:
    return len(list((site.folder / "data" / "instances" / "studies").rglob("*.dcm")))


@pytest.mark.parametrize("kills", [3])
def test_the_edge_is_killed_again_and_again(
    site: Hospital, study: tuple[Path, str], kills: int
) -> None:
    folder, uid = study
    assert send(site, folder)
    for pause_s in np.linspace(0.5, 3.5, kills):
        time.sleep(float(pause_s))
        site.edge.kill()
        site.edge.start()
    one_result(site, uid)


def test_the_archive_is_away_when_the_result_is_ready(
    site: Hospital, study: tuple[Path, str]
) -> None:
    folder, uid = study
    site.archive.kill()
    assert send(site, folder)
    others = wait_for("HL7 and FHIR meanwhile", lambda: _emr_has(site, uid))
    assert others.reports == ()
    site.archive.start()
    one_result(site, uid)


def test_the_archive_is_killed_when_it_holds_the_first_object_and_not_the_rest(
    site: Hospital, study: tuple[Path, str]
) -> None:
    folder, uid = study
    before = _archive_files(site)
    assert send(site, folder)
    (first, *_) = _new_files(site, before)
    site.archive.kill()
    kept = dcmread(site.folder / "archive" / first)
    assert (kept.StudyInstanceUID, kept.SOPClassUID) == (uid, SEG)
    wait_for("HL7 and FHIR meanwhile", lambda: _emr_has(site, uid))
    site.archive.start()
    final = one_result(site, uid)
    assert final.segmentations[0].SOPInstanceUID == kept.SOPInstanceUID


def _archive_files(site: Hospital) -> frozenset[str]:
    return frozenset(file.name for file in (site.folder / "archive").glob("*.dcm"))


def _new_files(site: Hospital, before: frozenset[str]) -> list[str]:
    """The files that came, as soon as there is one: looks far more often than ``wait_for``."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if came := _archive_files(site) - before:
            return sorted(came)
        time.sleep(0.002)
    raise AssertionError("nothing came to the archive")


def _emr_has(site: Hospital, uid: str) -> Arrived | None:
    found = arrived(site, uid)
    return found if found.messages and found.diagnostic_reports else None


@pytest.mark.parametrize("program", ["edge", "worker"])
def test_both_stop_within_ten_seconds_of_sigterm(site: Hospital, program: str) -> None:
    stop: Callable[[], int | None] = getattr(site, program).stop
    started = time.monotonic()
    assert stop() == 0
    assert time.monotonic() - started < 10
