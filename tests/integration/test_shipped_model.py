"""The model in the repository: whole, small, quiet on a healthy chest, and right about sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phoi_models
import pytest
from phoi_models.bundle import parse_parameters
from phoi_models.detector import Heads
from phoi_models.findings import Side, VolumeAnalysis
from phoi_models.phantom import chest_phantom
from phoi_models.pipeline import analyze_volume
from phoi_models.planting import plant_at
from phoi_models.volume import Volume
from phoi_training.report import OnnxHeads

BUNDLE = Path(phoi_models.__file__).parent / "bundles" / "phoi-lung-nodule"
PARAMETERS = parse_parameters((BUNDLE / "configs" / "metadata.json").read_bytes())
LEFT, RIGHT = (62.0, 10.0, 20.0), (-62.0, 10.0, 20.0)


@pytest.fixture(scope="module")
def heads() -> Heads:
    return OnnxHeads(BUNDLE / "models" / "model.onnx")


@pytest.fixture(scope="module")
def healthy() -> Volume:
    return chest_phantom(np.random.default_rng(102))


def analyze(volume: Volume, heads: Heads) -> VolumeAnalysis:
    return analyze_volume(volume, PARAMETERS, heads, operating_point="default")


def test_it_is_small_and_names_no_folder_of_the_machine_that_made_it() -> None:
    model = (BUNDLE / "models" / "model.onnx").read_bytes()
    assert len(model) < 4_000_000
    assert b"site-packages" not in model
    card = (BUNDLE / "docs" / "README.md").read_text()
    assert "not a cleared medical device" in card
    assert "LIDC-IDRI-0001" not in card.partition("## Validation")[0]


def test_a_healthy_phantom_stays_quiet(healthy: Volume, heads: Heads) -> None:
    assert analyze(healthy, heads).findings == ()


def test_planted_nodules_are_found_once_each_on_their_side(healthy: Volume, heads: Heads) -> None:
    rng = np.random.default_rng(0)
    planted, left = plant_at(healthy, LEFT, 15.0, rng=rng)
    planted, right = plant_at(planted, RIGHT, 15.0, rng=rng)
    findings = {finding.side: finding for finding in analyze(planted, heads).findings}
    assert set(findings) == {Side.LEFT, Side.RIGHT}
    for truth, side in ((left, Side.LEFT), (right, Side.RIGHT)):
        found = findings[side]
        away = np.subtract(found.center_lps_mm, truth.center_lps_mm)
        assert np.linalg.norm(away) < 3
        assert found.mean_diameter_mm == pytest.approx(15.0, abs=1.5)
