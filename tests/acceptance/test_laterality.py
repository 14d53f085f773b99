"""Laterality is sacred: left is left in every output, however the patient was scanned.

The phantom has one nodule, planted in the left lung. It is scanned head first and feet first,
supine and prone, with the slices numbered in reverse and with a tilted gantry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phoi_edge_node.accounts import Account, Role, hash_password
from phoi_edge_node.bootstrap import open_storage
from phoi_edge_node.stand_ins.hospital import Hospital
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.system import SystemClock
from phoi_models.phantom import chest_phantom
from phoi_models.planting import plant_at
from phoi_models.volume import Volume
from support.dicom_phantom import SeriesOptions, write_series
from support.outside import Page, send, wait_for_result
from support.seg_reader import read_segments

LEFT = (75.0, 20.0, 0.0)
SCANS = {
    "HFS": SeriesOptions(position="HFS"),
    "FFS": SeriesOptions(position="FFS"),
    "HFP": SeriesOptions(position="HFP"),
    "FFP": SeriesOptions(position="FFP"),
    "reversed": SeriesOptions(reversed_numbering=True),
    "tilted": SeriesOptions(gantry_tilt_degrees=15.0),
}

# SNOMED CT: Left, Right.
LEFT_CODE, RIGHT_CODE = "7771000", "24028007"


@pytest.fixture(scope="module")
def chest() -> Volume:
    rng = np.random.default_rng(11)
    volume, _ = plant_at(chest_phantom(rng, (2.5, 1.4, 1.4)), LEFT, 18.0, rng=rng)
    return volume


@pytest.fixture(scope="module")
def page(site: Hospital) -> Iterator[Page]:
    password = "phải hay là trái"
    storage = open_storage(site.settings, SystemClock())
    person = Account("bs.binh", "Bs. Bình", Role.REVIEWER)
    storage.store.put_account(StoredAccount(person, hash_password(password)))
    storage.engine.dispose()
    with Page(site, "bs.binh", password) as page:
        yield page


@pytest.mark.parametrize("name", SCANS)
def test_left_is_left_in_every_output(
    site: Hospital, page: Page, chest: Volume, tmp_path: Path, name: str
) -> None:
    scan = replace(SCANS[name], seed=f"laterality-{name}")
    write_series(tmp_path / "ct", chest, scan)
    uid = scan.study_instance_uid

    finding = _analyze(site, tmp_path)
    assert finding["side"] == "left"
    assert np.linalg.norm(np.subtract(finding["center_lps_mm"], LEFT)) < 9.0

    assert send(site, tmp_path / "ct")
    found = wait_for_result(site, uid)
    segments = read_segments(found.segmentations[0]).values()
    centres = [segment.points_lps_mm.mean(axis=0) for segment in segments]
    nearest = min(centres, key=lambda centre: float(np.linalg.norm(centre - LEFT)))
    assert np.linalg.norm(nearest - LEFT) < 9.0
    # LPS x grows to the patient's left. A false mark of the model may lie on the right.
    right_too = any(centre[0] < 0 for centre in centres)
    for output in (
        str(found.reports[0]),
        found.messages[0],
        json.dumps(found.observations),
    ):
        assert LEFT_CODE in output
        assert (RIGHT_CODE in output) == right_too
    shown = page.get(f"/studies/{uid}")
    assert "trái" in shown
    assert ("phổi phải" in shown.lower()) == right_too


def _analyze(site: Hospital, folder: Path) -> dict[str, Any]:
    """The finding of ``phoi analyze`` nearest to the planted nodule."""
    target = folder / "result.json"
    phoi = str(Path(sys.executable).with_name("phoi"))
    done = subprocess.run(
        [phoi, "analyze", str(folder / "ct"), "--json", str(target)],
        env={**os.environ, "PHOI_HOME": str(site.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings: list[dict[str, Any]] = json.loads(target.read_text())["findings"]
    assert findings
    return min(findings, key=lambda f: float(np.linalg.norm(np.subtract(f["center_lps_mm"], LEFT))))
