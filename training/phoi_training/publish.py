"""An evaluation as a folder of files, a page among them, and as a run of MLflow."""

from __future__ import annotations

import base64
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from jinja2 import Environment, PackageLoader, StrictUndefined

from phoi_training.breakdown import LEAST_RATED, size_errors
from phoi_training.cutouts import TITLES, Cutout, Kind, worst
from phoi_training.plots import calibration_plot, drawn, froc_plot, groups_plot, sizes_plot
from phoi_training.report import EXPERIMENT, Evaluation, evaluation_lines, metrics, summary

_MOST_PICTURES = 48
_COLUMNS = (
    "set",
    "scan",
    "outcome",
    "x_lps_mm",
    "y_lps_mm",
    "z_lps_mm",
    "probability",
    "diameter_mm",
    "measured_mm",
    "true_diameter_mm",
    "attenuation",
    "margin",
    "place",
    "lobe",
)


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``report.html``, ``summary.json``, ``marks.csv``, the plots and ``cutouts/``.

    The page holds its pictures; nothing else of the folder is needed to read it.

    Args:
        evaluation: what was found.
        folder: made if absent; files of an earlier report in it are replaced.

    Returns:
        The folder.
    """
    (folder / "cutouts").mkdir(parents=True, exist_ok=True)
    for old in (folder / "cutouts").glob("*.png"):
        old.unlink()
    figures = summary(evaluation)
    (folder / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    _write_marks(evaluation, folder / "marks.csv")
    plots = _plots(evaluation, figures)
    for name, files in plots.items():
        for kind, content in files.items():
            (folder / f"{name}.{kind}").write_bytes(content)
    foremost = worst(evaluation.cutouts, _MOST_PICTURES)
    shown = {kind: [c for c in foremost if c.kind is kind] for kind in Kind}
    for kind, pictures in shown.items():
        for number, cutout in enumerate(pictures, start=1):
            (folder / "cutouts" / f"{kind}-{number:02d}.png").write_bytes(cutout.png)
    (folder / "report.html").write_text(_page(evaluation, figures, plots, shown), encoding="utf-8")
    return folder


def log_evaluation(evaluation: Evaluation, tracking_uri: str) -> None:
    """Tell MLflow: one run with metrics, all marks and the report."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(), tempfile.TemporaryDirectory() as scratch:
        mlflow.log_params(
            {
                "model": evaluation.parameters.name,
                "version": evaluation.parameters.version,
                "runtime": evaluation.runtime,
                "operating_point": evaluation.operating_point,
                "threshold": evaluation.threshold,
            }
        )
        mlflow.log_metrics(metrics(evaluation))
        mlflow.log_dict(evaluation.rows(), "marks.json")
        mlflow.log_text("\n".join(evaluation_lines(evaluation)), "report.md")
        mlflow.log_artifacts(str(write_report(evaluation, Path(scratch))), "report")


def _write_marks(evaluation: Evaluation, path: Path) -> None:
    """One row per mark, of whatever probability, and per nodule without one."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for name, rows in evaluation.rows().items():
            for row in rows:
                x, y, z = row["center_lps_mm"]
                place = {"x_lps_mm": x, "y_lps_mm": y, "z_lps_mm": z}
                writer.writerow({"set": name, **row, **place})


def _plots(evaluation: Evaluation, figures: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    names = list(evaluation.sets)
    plots = {
        "froc": froc_plot(evaluation.sets, figures),
        "calibration": calibration_plot(figures, names),
        "sensitivity": groups_plot(figures, names),
        "sizes": sizes_plot(size_errors(evaluation.planted)),
    }
    return {name: drawn(plot) for name, plot in plots.items() if plot is not None}


def _page(
    evaluation: Evaluation,
    figures: dict[str, Any],
    plots: dict[str, dict[str, bytes]],
    shown: dict[Kind, list[Cutout]],
) -> str:
    environment = Environment(
        loader=PackageLoader("phoi_training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    counts = {kind: sum(c.kind is kind for c in evaluation.cutouts) for kind in Kind}
    page: str = environment.get_template("report.html").render(
        evaluation=evaluation,
        figures=figures,
        sets={name: figures[name] for name in evaluation.sets},
        plots={name: files["svg"] for name, files in plots.items()},
        least_rated=LEAST_RATED,
        titles=TITLES,
        shown=shown,
        counts=counts,
    )
    return page


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
