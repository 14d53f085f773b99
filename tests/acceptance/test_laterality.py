"""Laterality is sacred: left is left in every output, however the patient was scanned.

The phantom has one nodule, planted in the left lung. It is scanned head first and feet first,
supine and prone, with the slices numbered in reverse and with a tilted gantry.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
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
from pydicom import Dataset
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

# SNOMED CT: Laterality, Left, Right.
LATERALITY = "272741003"
LEFT_SIDE, RIGHT_SIDE = ("7771000", "phổi trái"), ("24028007", "phổi phải")


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
    centres = {s.tracking_uid: s.points_lps_mm.mean(axis=0) for s in segments}
    planted = min(centres, key=lambda uid: float(np.linalg.norm(centres[uid] - LEFT)))
    assert np.linalg.norm(centres[planted] - LEFT) < 9.0
    shown = page.get(f"/studies/{uid}")
    # LPS x grows to the patient's left. A false mark of the model may lie on the right.
    for tracking_uid, centre in centres.items():
        code, words = LEFT_SIDE if centre[0] > 0 else RIGHT_SIDE
        assert _sides_in_report(found.reports[0], tracking_uid) == {code}
        assert _sides_in_message(found.messages[0], tracking_uid) == {code}
        assert _sides_in_observations(found.observations, tracking_uid) == {code}
        assert _sides_on_page(shown, tracking_uid) == {words}


def _sides_in_report(report: Dataset, tracking_uid: str) -> set[str]:
    """Codes of Laterality in the measurement groups with this Tracking UID."""

    def groups(item: Dataset) -> Iterator[Dataset]:
        for child in item.get("ContentSequence", []):
            if child.get("UID") == tracking_uid:
                yield item
            yield from groups(child)

    def sides(item: Dataset) -> Iterator[str]:
        for child in item.get("ContentSequence", []):
            if child.ConceptNameCodeSequence[0].CodeValue == LATERALITY:
                yield str(child.ConceptCodeSequence[0].CodeValue)
            yield from sides(child)

    return {side for group in groups(report) for side in sides(group)}


def _sides_in_message(message: str, tracking_uid: str) -> set[str]:
    """Codes of Laterality in the OBX with the sub-ID (OBX-4) of this Tracking UID."""
    rows = [s.split("|") for s in message.split("\r") if s.startswith("OBX|")]
    (number,) = {row[4] for row in rows if row[5] == tracking_uid}
    assert number
    return {
        row[5].split("^")[0]
        for row in rows
        if row[4] == number and row[3].startswith(f"{LATERALITY}^")
    }


def _sides_in_observations(
    observations: Iterable[Mapping[str, Any]], tracking_uid: str
) -> set[str]:
    """Codes of Laterality in the Observation that this Tracking UID identifies."""
    named = {"system": "urn:dicom:uid", "value": f"urn:oid:{tracking_uid}"}
    (observation,) = [o for o in observations if named in o["identifier"]]
    return {
        coding["code"]
        for component in observation["component"]
        if component["code"]["coding"][0]["code"] == LATERALITY
        for coding in component["valueCodeableConcept"]["coding"]
    }


def _sides_on_page(shown: str, tracking_uid: str) -> set[str]:
    """The lungs that the list item of this mark names."""
    (item,) = re.findall(
        rf'<li [^>]*data-tracking-uid="{re.escape(tracking_uid)}".*?</li>', shown, re.DOTALL
    )
    return set(re.findall(r"phổi (?:trái|phải)", item.lower()))


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
