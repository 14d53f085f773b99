"""Edge and worker are killed before and after everything that they do for good; nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kill.campaign import Campaign, Report, campaign, cover, table, unmet
from kill.emr import ARCHIVE, Receipt
from kill.invariants import losses
from kill.job import Study, main_job
from kill.site import Deaths, Site
from kill.steps import When

SEED = 20261123
KILLS_PER_STUDY = 12
# Those of ``mkdir`` and ``unlink`` come up only in a certain first moment, and change nothing.
RECEIVING = ("dicom.lean_", "dicom.acceptor", "dicom.instance_files", "sql.indexing")
FOR_GOOD = ("commit", "fdatasync", "fsync", "link", "rename", "replace", "send")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with campaign(tmp_path_factory.mktemp("kill")) as running:
        yield running


def for_good(step: str) -> bool:
    return step.startswith(FOR_GOOD)


def receiving(step: str) -> bool:
    return for_good(step) and any(part in step for part in RECEIVING)


def of_a_life_without_deaths(
    reports: Sequence[Report], sides: Sequence[tuple[str, When]]
) -> list[tuple[str, When]]:
    """Others come up by chance, where a death falls at a certain moment: not every time."""
    steps = set(reports[0].steps)
    return [side for side in sides if side[0] in steps]


@pytest.mark.timeout(1200)
def test_nothing_is_lost_however_it_dies(runs: Campaign) -> None:
    reports = cover(runs, random.Random(SEED), KILLS_PER_STUDY, of=lambda _: True)
    sys.stdout.write(f"\n{table(reports)}\n")
    assert [report.lost for report in reports if report.lost] == []
    assert of_a_life_without_deaths(reports, unmet(reports, for_good)) == []
    assert len({place for report in reports for place in report.died}) >= 40


@pytest.mark.timeout(600)
def test_the_lean_receiver_loses_nothing_either(runs: Campaign) -> None:
    lean = replace(runs, receiver="lean")
    reports = cover(lean, random.Random(SEED), KILLS_PER_STUDY, of=receiving, times=2)
    sys.stdout.write(f"\n{table(reports)}\n")
    assert [report.lost for report in reports if report.lost] == []
    assert of_a_life_without_deaths(reports, unmet(reports, receiving)) == []
    assert any("lean_" in place for report in reports for place in report.died)


# --- would it be seen? ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(runs: Campaign) -> tuple[Site, Study]:
    """A study at its end, and a copy of its folder beside it."""
    site, study = runs.begin(Deaths())
    try:
        main_job(site, study)
    finally:
        site.end()
    assert losses(site, study) == []
    shutil.copytree(site.folder / "data", site.folder / "unharmed")
    return site, study


def in_database(statement: str) -> Callable[[Site], None]:
    def harm(site: Site) -> None:
        with closing(sqlite3.connect(site.database)) as connection:
            connection.execute(statement)
            connection.commit()

    return harm


def twice(table: str, columns: str) -> Callable[[Site], None]:
    return in_database(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}")


def first_file(site: Site) -> Path:
    return min((site.instances / "studies").rglob("*.dcm"))


def swap_two_files(site: Site) -> None:
    one, other, *_ = sorted((site.instances / "studies").rglob("*.dcm"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def came(number: int, digest: str = "") -> Callable[[Site], None]:
    """The archive gets a document once more, perhaps with other bytes."""

    def harm(site: Site) -> None:
        identities = site.rows(
            "SELECT identity FROM documents JOIN deliveries ON document_id = documents.id"
            " WHERE destination = 'pacs' ORDER BY documents.id"
        )
        (identity,) = identities[number]
        known = next(r for r in site.around.receipts if r.identity == identity)
        site.around.receipts.append(Receipt(ARCHIVE, identity, digest or known.digest))

    return harm


@pytest.mark.parametrize(
    ("harm", "seen"),
    [
        (lambda site: first_file(site).unlink(), "is gone"),
        (lambda site: os.truncate(first_file(site), 1000), "not what the index says"),
        (swap_two_files, "not what the index says"),
        (lambda site: (site.instances / "incoming" / "half").touch(), "left in incoming"),
        (in_database("DELETE FROM instances WHERE rowid = 1"), "does not hold the instances"),
        (in_database("UPDATE analyses SET state = 'succeeded'"), "analyses ended as"),
        (in_database("UPDATE analyses SET model = '{}'"), "another model"),
        (in_database("UPDATE documents SET identity = 'x' || identity"), "did not come to"),
        (in_database("UPDATE deliveries SET state = 'dead' WHERE id = 1"), "is dead"),
        (in_database("DELETE FROM deliveries WHERE destination = 'emr-fhir'"), "was forgotten"),
        (in_database("UPDATE reviews SET state = 'open'"), "reviews ended as"),
        (twice("dispositions", "analysis_id, reviewer, at, disposition"), "judgements"),
        (twice("audit", "at, username, action, detail"), "2 signatures"),
        (came(0), "after its successor"),
        (came(-1, digest="other bytes"), "came as 2 things"),
    ],
)
def test_a_loss_would_be_seen(
    finished: tuple[Site, Study], harm: Callable[[Site], None], seen: str
) -> None:
    site, study = finished
    shutil.rmtree(site.folder / "data")
    shutil.copytree(site.folder / "unharmed", site.folder / "data")
    receipts = list(site.around.receipts)
    harm(site)
    try:
        assert [loss for loss in losses(site, study) if seen in loss]
    finally:
        site.around.receipts[:] = receipts
