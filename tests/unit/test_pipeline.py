"""The steps of an analysis, joined, on a phantom with a stand-in for the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from phoi_models.bundle import Calibration, DetectorParameters, OperatingPoint
from phoi_models.detector import Floats
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import Side
from phoi_models.geometry import Triple
from phoi_models.phantom import chest_phantom, flipped, gantry_tilted
from phoi_models.pipeline import Cancelled, analyze_volume
from phoi_models.planting import plant_at
from phoi_models.volume import Volume
from scipy import ndimage

STRIDE, PATCH = 4, 64
# Two on the left and one on the right, so that a mirrored answer cannot pass.
PLACES: dict[tuple[Side, int], Triple] = {
    (Side.LEFT, 1): (75.0, 20.0, 10.0),
    (Side.LEFT, 2): (70.0, 5.0, 50.0),
    (Side.RIGHT, 1): (-75.0, 20.0, 10.0),
}

PARAMETERS = DetectorParameters(
    name="ball-filter",
    version="1.0.0",
    kind="center-heatmap",
    spacing_mm=2.0,
    window_hu=(-1000.0, 400.0),
    patch_shape=(PATCH, PATCH, PATCH),
    stride=STRIDE,
    margin=12,
    calibration=Calibration(slope=1.0, intercept=0.0),
    operating_points={
        "default": OperatingPoint(probability=0.9),
        "sensitive": OperatingPoint(probability=0.6),
    },
)


class BallFilter:
    """Scores each place by a bright middle inside a dark shell: a ball of 16 to 18 mm in lung."""

    def run(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        heats = []
        for patch in patches[:, 0]:
            dense = (patch > 0.6).astype(np.float32)
            middle, inner, outer = (ndimage.uniform_filter(dense, n) for n in (5, 9, 15))
            shell = (outer * 15**3 - inner * 9**3) / (15**3 - 9**3)
            score = np.clip(middle * np.clip((0.4 - shell) / 0.3, 0, 1), 0.001, 0.99)
            z, y, x = (n // STRIDE for n in patch.shape)
            heats.append(score.reshape(z, STRIDE, y, STRIDE, x, STRIDE).max(axis=(1, 3, 5)))
        heat = np.array(heats, np.float32)[:, None]
        return heat, np.full_like(heat, 16.0), np.zeros((len(heat), 3, *heat.shape[2:]), np.float32)


@cache
def clean() -> Volume:
    return chest_phantom(np.random.default_rng(3), (2.5, 2.0, 2.0))


@cache
def planted() -> Volume:
    rng = np.random.default_rng(4)
    volume = clean()
    for place in PLACES.values():
        volume, _ = plant_at(volume, place, 18.0, rng=rng)
    return volume


TURNS: dict[str, Callable[[Volume], Volume]] = {
    "as scanned": lambda v: v,
    "slices reversed": lambda v: flipped(v, 0),
    "prone": lambda v: flipped(v, 1, 2),
    "feet first": lambda v: flipped(v, 0, 2),
    "feet first prone": lambda v: flipped(v, 0, 1),
    "gantry tilted": lambda v: gantry_tilted(v, 15.0),
}


@pytest.mark.parametrize("turn", TURNS)
def test_nodules_are_found_on_their_sides_however_the_patient_was_scanned(turn: str) -> None:
    analysis = analyze_volume(TURNS[turn](planted()), PARAMETERS, BallFilter())
    assert len(analysis.findings) == len(PLACES)
    for (side, _), place in PLACES.items():
        found = min(
            analysis.findings, key=lambda f: np.linalg.norm(np.subtract(f.center_lps_mm, place))
        )
        assert found.center_lps_mm == pytest.approx(place, abs=2.0)
        assert found.side is side
        assert found.mean_diameter_mm == pytest.approx(18, abs=2.0)
        assert found.probability >= 0.9


def test_a_phantom_without_nodules_has_no_finding_and_is_covered() -> None:
    analysis = analyze_volume(clean(), PARAMETERS, BallFilter())
    assert analysis.findings == ()
    assert analysis.coverage.complete


def test_steps_are_told_and_timed() -> None:
    told: list[tuple[str, float]] = []
    analysis = analyze_volume(
        planted(),
        PARAMETERS,
        BallFilter(),
        operating_point="sensitive",
        on_progress=lambda step, fraction: told.append((step, fraction)),
    )
    assert list(dict.fromkeys(step for step, _ in told)) == ["volume", "lungs", "detect", "measure"]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert set(analysis.timing_s) == {"volume", "lungs", "detect", "measure"}
    assert all(seconds > 0 for seconds in analysis.timing_s.values())
    probabilities = [f.probability for f in analysis.findings]
    assert probabilities == sorted(probabilities, reverse=True)


def test_an_analysis_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        analyze_volume(planted(), PARAMETERS, BallFilter(), cancelled=lambda: True)


def test_an_unknown_operating_point_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="default, sensitive"):
        analyze_volume(planted(), PARAMETERS, BallFilter(), operating_point="best")


def test_values_that_are_not_hounsfield_units_are_refused() -> None:
    volume = planted()
    moved = Volume(volume.hu + np.int16(200), volume.geometry)
    with pytest.raises(NotAnalysable, match="not Hounsfield units") as refusal:
        analyze_volume(moved, PARAMETERS, BallFilter())
    assert refusal.value.reason is NotAnalysableReason.NOT_HOUNSFIELD


def test_a_scan_without_lungs_is_refused() -> None:
    volume = planted()
    hu = np.where(np.abs(np.indices(volume.hu.shape)[2] - 90) < 60, 40, -1000).astype(np.int16)
    with pytest.raises(NotAnalysable) as refusal:
        analyze_volume(Volume(hu, volume.geometry), PARAMETERS, BallFilter())
    assert refusal.value.reason is NotAnalysableReason.NO_LUNGS
