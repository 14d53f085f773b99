"""The model in the repository: whole, small, quiet on a healthy chest, and right about sides."""

from __future__ import annotations

import numpy as np
import pytest
from phoi_models.findings import Side, VolumeAnalysis
from phoi_models.phantom import chest_phantom
from phoi_models.pipeline import analyze_volume
from phoi_models.planting import plant_at
from phoi_models.shipped import SHIPPED
from phoi_models.volume import Volume
from phoi_training.report import Detector

BUNDLE = SHIPPED / "phoi-lung-nodule"
LEFT, RIGHT = (62.0, 10.0, 20.0), (-62.0, 10.0, 20.0)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.open(BUNDLE)


def analyze(volume: Volume, detector: Detector) -> VolumeAnalysis:
    return analyze_volume(
        volume, detector.parameters, detector.heads, second_look=detector.second_look
    )


def test_it_is_small_and_names_no_folder_of_the_machine_that_made_it() -> None:
    networks = sorted((BUNDLE / "models").iterdir())
    assert sum(network.stat().st_size for network in networks) < 16_000_000
    for network in networks:
        assert b"site-packages" not in network.read_bytes()
    card = (BUNDLE / "docs" / "README.md").read_text()
    assert "not a cleared medical device" in card
    trained_on = card.partition("## What it was trained on")[2].partition("<!-- notes -->")[0]
    assert "LIDC-IDRI-0005" in trained_on
    assert "LIDC-IDRI-0001" not in trained_on


@pytest.mark.parametrize("slices_mm", [1.25, 2.5, 5.0])
def test_a_healthy_phantom_stays_quiet(slices_mm: float, detector: Detector) -> None:
    rng = np.random.default_rng([102, round(100 * slices_mm)])
    healthy = chest_phantom(rng, (slices_mm, 1.2, 1.2))
    assert len(analyze(healthy, detector).findings) <= 1


def test_planted_nodules_are_found_once_each_on_their_side(detector: Detector) -> None:
    rng = np.random.default_rng(0)
    healthy = chest_phantom(np.random.default_rng(102))
    planted, left = plant_at(healthy, LEFT, 15.0, rng=rng)
    planted, right = plant_at(planted, RIGHT, 15.0, rng=rng)
    findings = {finding.side: finding for finding in analyze(planted, detector).findings}
    assert set(findings) == {Side.LEFT, Side.RIGHT}
    for truth, side in ((left, Side.LEFT), (right, Side.RIGHT)):
        found = findings[side]
        away = np.subtract(found.center_lps_mm, truth.center_lps_mm)
        assert np.linalg.norm(away) < 3
        assert found.mean_diameter_mm == pytest.approx(15.0, abs=1.5)
