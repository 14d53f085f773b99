"""The report of an evaluation: its files say the same, stand alone, and look the right way up."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from phoi_models.canonical import CanonicalGrid
from phoi_models.errors import BadBundle, NotAnalysable, NotAnalysableReason, PhoiError
from phoi_models.findings import Attenuation
from phoi_models.geometry import Triple
from phoi_models.phantom import chest_phantom, chest_with_lungs
from phoi_models.planting import plant_at
from phoi_models.planting_host import LungSpace
from phoi_models.sessions import FormChoice, Provider, SessionSettings
from phoi_models.shipped import SHIPPED
from phoi_models.transplant import Lesion
from phoi_training.background import Background, Mark, StoredBackground
from phoi_training.cli import evaluate_command
from phoi_training.cutouts import Kind, cutouts, picture, worst
from phoi_training.evaluation import Prediction, ScanResult
from phoi_training.publish import write_report
from phoi_training.report import (
    Detector,
    Evaluation,
    evaluation_lines,
    metrics,
    run_evaluation,
    summary,
)
from phoi_training.train import untuned
from PIL import Image
from support.commands import phoi

FOUND, FAINT, ABSENT = (
    Mark((x, 0.0, 0.0), 8.0, attenuation=Attenuation.SOLID) for x in (0.0, 20.0, -20.0)
)


def grid() -> CanonicalGrid:
    """Lung with a bright ball at each of the three places."""
    z, y, x = np.indices((60, 80, 100))
    hu = np.full(z.shape, -850, np.int16)
    for mark in (FOUND, FAINT, ABSENT):
        hu[(z - 30) ** 2 + (y - 40) ** 2 + (x - 50 - mark.center_lps_mm[0]) ** 2 < 16] = 40
    return CanonicalGrid(hu, (-50.0, -40.0, -30.0), 1.0)


def scan(name: str = "scan", *, complete: bool = True) -> ScanResult:
    """One nodule found, one with a faint mark, one with none; one false mark."""
    predictions = (
        Prediction((0.5, 0.0, 0.0), 8.0, 0.9, 0),
        Prediction((0.0, 30.0, 0.0), 6.0, 0.7, None),
        Prediction((20.0, 0.0, 0.0), 8.0, 0.2, 1),
    )
    steps = {"read": 0.1, "resample": 0.2, "lungs": 0.3, "detect": 1.5}
    return ScanResult(name, (FOUND, FAINT, ABSENT), predictions, complete, 2.0, steps, 2.5)


def evaluation(*results: ScanResult) -> Evaluation:
    pictures = [cutout for result in results for cutout in cutouts(result, grid(), 0.5)]
    reason = "3 of 100 slices are missing"
    return Evaluation(
        untuned("0.0.1"), "default", results, (), tuple(pictures), (("scan 3", reason),)
    )


def test_every_miss_and_every_false_mark_has_a_picture() -> None:
    shown = cutouts(scan(), grid(), 0.5)
    assert [(c.kind, c.center_lps_mm) for c in shown] == [
        (Kind.MISSED, FAINT.center_lps_mm),
        (Kind.MISSED, ABSENT.center_lps_mm),
        (Kind.FALSE, (0.0, 30.0, 0.0)),
    ]
    assert "p 0.20" in shown[0].caption
    assert "no mark" in shown[1].caption
    assert [c.kind for c in cutouts(scan(complete=False), grid(), 0.5)][-1] is Kind.UNKNOWN
    assert [c.kind for c in cutouts(scan(), grid(), 0.1)] == [Kind.MISSED, Kind.FALSE]


def brightest(center: Triple) -> tuple[float, float]:
    """Where (row, column), 0 to 1, a picture about a place is bright."""
    png = picture(grid(), center, 8.0, Kind.UNKNOWN)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float64)
    rows, columns = np.nonzero(pixels > 220)
    return float(rows.mean() / len(pixels)), float(columns.mean() / len(pixels))


def test_a_picture_shows_the_patients_left_on_the_right_and_the_back_below() -> None:
    assert brightest((-20.0, 0.0, 0.0))[1] > 0.5  # of balls at -20 and 0, one is to the left
    assert brightest((20.0, 0.0, 0.0))[1] < 0.5
    assert brightest((0.0, 15.0, 0.0))[0] < 0.4
    assert brightest((0.0, -15.0, 0.0))[0] > 0.6


def test_a_picture_may_reach_beyond_the_scan() -> None:
    assert picture(grid(), (49.0, 39.0, 29.0), 8.0, Kind.FALSE)
    assert picture(grid(), (500.0, 0.0, 0.0), 8.0, Kind.FALSE)


def test_all_files_of_a_report_say_the_same(tmp_path: Path) -> None:
    done = evaluation(scan("scan 1"), scan("scan 2", complete=False))
    write_report(done, tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["real"]["sensitivity"]["found"] == 2
    assert written["real"]["sensitivity"]["total"] == 6
    assert written["real"]["false_per_scan"] == 1.0
    assert written["left_out"] == [{"scan": "scan 3", "reason": "3 of 100 slices are missing"}]
    assert metrics(done)["real_cpm"] == written["real"]["froc"]["cpm"]
    assert metrics(done)["real_sensitivity_attenuation_solid"] == pytest.approx(1 / 3)

    with (tmp_path / "marks.csv").open(newline="") as file:
        outcomes = [(row["scan"], row["outcome"]) for row in csv.DictReader(file)]
    assert outcomes == [
        *[("scan 1", outcome) for outcome in ("hit", "false", "hit", "missed")],
        *[("scan 2", outcome) for outcome in ("hit", "unknown", "hit", "missed")],
    ]
    assert len(list((tmp_path / "cutouts").glob("missed-*.png"))) == 4
    for name in ("froc", "calibration", "sensitivity"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()

    page = (tmp_path / "report.html").read_text()
    assert "2 of 6" in page
    assert "3 of 100 slices are missing" in page
    assert page.count("<figure>") == 6
    (five, six) = written["real"]["froc_by_least_mm"]
    assert (five["least_mm"], six["least_mm"], six["nodules"]) == (5.0, 6.0, 3)
    assert metrics(done)["real_sensitivity_at_4_from_6_mm"] == six["sensitivities"][5]
    assert "real_cpm_low" not in metrics(done), "only one patient's nodules are all known"
    lines = "\n".join(evaluation_lines(done))
    assert "| solid | 2 | 6 | 0.10 to 0.70 |" in lines
    assert "- scan 2, (-20, 0, 0) LPS mm: 8 mm, solid, no mark" in lines
    assert "- scan 3: 3 of 100 slices are missing" in lines


def test_the_size_of_planted_nodules_is_compared_with_the_truth(tmp_path: Path) -> None:
    done = evaluation(scan())
    measured = tuple(replace(p, measured_mm=9.0) for p in scan().predictions)
    done = replace(done, planted=(replace(scan(), predictions=measured),))
    write_report(done, tmp_path)
    (every, *_) = json.loads((tmp_path / "summary.json").read_text())["planted"]["size_error_mm"]
    assert (every["name"], every["count"], every["bias"]) == ("all", 2, 1.0)
    assert metrics(done)["planted_size_error_mm_bias"] == 1.0
    assert "| all | 2 | +1.00 | +1.0 to +1.0 |" in evaluation_lines(done)
    assert "Size <span" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "sizes.png").exists()


def test_the_page_stands_alone_and_runs_nothing(tmp_path: Path) -> None:
    write_report(evaluation(scan("<script>alert(1)</script>")), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)


def test_the_page_of_one_patient_claims_no_interval(tmp_path: Path) -> None:
    write_report(evaluation(scan()), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "1 patient only" in page
    assert "no interval" in page
    lines = "\n".join(evaluation_lines(evaluation(scan())))
    assert "too few cases for an interval" in lines


def test_a_place_of_a_patient_is_shown_once() -> None:
    own = cutouts(replace(scan(), patient="a"), grid(), 0.5)
    copy = cutouts(replace(scan("scan, planted 1"), patient="a"), grid(), 0.5)
    other = cutouts(replace(scan("other"), patient="b"), grid(), 0.5)
    shown = worst([*own, *copy, *other], 10)
    assert [(c.kind, c.scan) for c in shown].count((Kind.FALSE, "scan, planted 1")) == 0
    assert len(shown) == len(own) + len(other)


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(evaluation(scan()), tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    write_report(evaluation(scan()), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == first
    write_report(evaluation(replace(scan(), nodules=(), predictions=())), tmp_path)
    assert list((tmp_path / "cutouts").iterdir()) == []


def test_without_a_complete_scan_there_is_no_froc(tmp_path: Path) -> None:
    done = evaluation(scan(complete=False))
    write_report(done, tmp_path)
    assert summary(done)["real"]["froc"] is None
    assert not (tmp_path / "froc.png").exists()
    assert "FROC</h2>" not in (tmp_path / "report.html").read_text()
    assert "real_cpm" not in metrics(done)


def test_the_form_that_hospitals_run_is_evaluated_and_named(tmp_path: Path) -> None:
    volume = chest_phantom(np.random.default_rng(0), (4.0, 4.0, 4.0))
    host = Background("host", "host", volume, LungSpace.of(volume), (FOUND,), complete=True)
    sessions = SessionSettings(Provider.CPU, form=FormChoice.INT8)
    detector = Detector.open(SHIPPED / "phoi-lung-nodule", sessions)
    done = run_evaluation(detector, [host], copies=0, seed=0)
    assert done.runtime == "CPUExecutionProvider int8"
    write_report(done, tmp_path)
    assert "Run by CPUExecutionProvider int8" in (tmp_path / "report.html").read_text()
    assert "Run by CPUExecutionProvider int8." in evaluation_lines(done)
    with pytest.raises(BadBundle, match="no networks in int8"):
        Detector.of(detector.parameters, _float32_only(tmp_path), sessions)


def _float32_only(folder: Path) -> Path:
    (folder / "models").mkdir()
    name = "models/model.onnx"
    (folder / name).write_bytes((SHIPPED / "phoi-lung-nodule" / name).read_bytes())
    return folder


def test_evaluating_tells_figures_and_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PhoiError, match="holds no data set"):
        phoi(evaluate_command, SHIPPED / "phoi-lung-nodule", SHIPPED)
    assert "session started" not in "".join(capsys.readouterr())


class Blind:
    """A network that sees nothing, and counts how often it was asked."""

    runs = 0

    def run(self, patches: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        self.runs += 1
        cells = tuple(n // 4 for n in patches.shape[2:])
        return tuple(np.zeros((len(patches), c, *cells), np.float32) for c in (1, 1, 3))


def test_copies_have_more_nodules_and_only_those_count() -> None:
    made = chest_with_lungs(np.random.default_rng(0), (4.0, 4.0, 4.0))
    volume, own = made.volume, Mark((60.0, 0.0, 0.0), 12.0)
    host = Background("host", "host", volume, made.space(), (own,), complete=True)
    ill, truth = plant_at(volume, own.center_lps_mm, 16.0, rng=np.random.default_rng(0))
    lesion = Lesion.cut(ill, host.lungs, truth.center_lps_mm, truth.mean_diameter_mm)
    detector = Detector(untuned("0.0.1"), Blind())
    done = run_evaluation(detector, [host], copies=1, seed=0, lesions=[lesion])
    (real,), (planted,), (moved,) = done.real, done.planted, done.transplanted
    assert [real.scan, planted.scan] == ["host", "host, planted 1"]
    assert real.nodules == (own,)
    assert len(moved.nodules) == 1
    assert own not in planted.nodules
    assert all(nodule.attenuation is not None for nodule in planted.nodules)
    assert all(nodule.lobe is not None for nodule in planted.nodules), "a phantom knows its lobes"
    missed = sum(len(result.nodules) for results in done.sets.values() for result in results)
    assert len(done.cutouts) == missed > 6


def test_a_scan_that_cannot_be_read_is_left_out_and_told() -> None:
    def read() -> None:
        raise NotAnalysable(NotAnalysableReason.MISSING_SLICES, "2 of 9 slices are missing")

    broken = StoredBackground.on_disk(
        "broken",
        "broken",
        read,  # type: ignore[arg-type]
        (FOUND,),
        sha256="0",
        source="",
    )
    done_with: list[None] = []
    blind = Blind()
    detector = Detector(untuned("0.0.1"), blind)
    done = run_evaluation(
        detector, [broken], copies=2, seed=0, on_scan=lambda: done_with.append(None)
    )
    assert done.left_out == (("broken", "missing_slices: 2 of 9 slices are missing"),)
    assert (len(done_with), blind.runs) == (1, 0)
    with pytest.raises(PhoiError, match="no operating point 'bold'; the model has default"):
        run_evaluation(detector, [], copies=0, seed=0, operating_point="bold")
    with pytest.raises(PhoiError, match="is no model bundle"):
        Detector.open(Path("/nonexistent"))
