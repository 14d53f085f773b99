"""Evaluate a model as it is shipped, through ONNX Runtime, and say how it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
from phoi_models.bundle import AnyParameters
from phoi_models.detector import Floats

from phoi_training.card import froc_lines, scan_table, size_table
from phoi_training.dataset import Background, planted_copy
from phoi_training.evaluation import ScanResult, as_rows, evaluate, froc

EXPERIMENT = "phoi-evaluation"
_NODULES = 10


class OnnxHeads:
    """A bundle's network in ONNX Runtime on the CPU."""

    def __init__(self, model: Path) -> None:
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(model), providers=providers)

    def run(self, patches: Floats) -> tuple[Floats, ...]:
        """See :class:`phoi_models.detector.Heads`; a bundle's file names its outputs in order."""
        return tuple(self._session.run(None, {"image": patches}))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results on chests as they are, and apart from them on planted copies."""

    parameters: AnyParameters
    real: tuple[ScanResult, ...]
    planted: tuple[ScanResult, ...]

    @property
    def threshold(self) -> float:
        """Probability at the default operating point."""
        return self.parameters.operating_points["default"].probability

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every mark and every miss."""
        return {"real": as_rows(self.real), "planted": as_rows(self.planted)}


def run_evaluation(
    model: Path,
    parameters: AnyParameters,
    chests: Sequence[Background],
    *,
    copies: int,
    seed: int,
) -> Evaluation:
    """Run a model file over chests and over ``copies`` planted copies of each."""
    rng = np.random.default_rng(seed)
    heads = OnnxHeads(model)
    real = evaluate(chests, parameters, heads)
    planted = []
    for chest in chests:
        for copy in range(copies):
            diameters = np.exp(rng.uniform(np.log(4), np.log(32), _NODULES))
            changed, _ = planted_copy(chest, rng, list(diameters))
            # Real nodules are counted apart: here they are neither found nor missed.
            known = tuple(replace(mark, certain=False) for mark in chest.marks)
            marks = (*known, *changed.marks[len(known) :])
            named = replace(changed, marks=marks, name=f"{chest.name}, planted {copy + 1}")
            planted += evaluate([named], parameters, heads)
    return Evaluation(parameters, tuple(real), tuple(planted))


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Markdown: by case, by size, FROC; real and planted nodules apart."""
    parameters = evaluation.parameters
    lines = [f"# {parameters.name} {parameters.version} at p >= {evaluation.threshold:.2f}", ""]
    for title, results in (("Real", evaluation.real), ("Planted", evaluation.planted)):
        if not results:
            continue
        seconds = np.mean([result.seconds for result in results])
        lines += [f"## {title} nodules, {seconds:.1f} s per scan", ""]
        lines += [*scan_table(results, evaluation.threshold), ""]
        lines += [*size_table(results, evaluation.threshold), "", *froc_lines(results), ""]
    return lines


def log_evaluation(evaluation: Evaluation, tracking_uri: str) -> None:
    """Tell MLflow: one run with metrics, all marks and the report."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run():
        mlflow.log_params(
            {
                "model": evaluation.parameters.name,
                "version": evaluation.parameters.version,
                "threshold": evaluation.threshold,
            }
        )
        for name, results in (("real", evaluation.real), ("planted", evaluation.planted)):
            mlflow.log_metrics(_metrics(name, results, evaluation.threshold))
        mlflow.log_dict(evaluation.rows(), "marks.json")
        mlflow.log_text("\n".join(evaluation_lines(evaluation)), "report.md")


def _metrics(name: str, results: Sequence[ScanResult], threshold: float) -> dict[str, float]:
    metrics = {}
    nodules = sum(len(result.nodules) for result in results)
    complete = [result for result in results if result.complete]
    if nodules:
        found = sum(result.found(threshold) for result in results)
        metrics[f"{name}_sensitivity"] = found / nodules
    if complete:
        false = [result.false_marks(threshold) for result in complete]
        metrics[f"{name}_false_per_scan"] = float(np.mean(false))
    if any(result.nodules for result in complete):
        metrics[f"{name}_cpm"] = froc(results, rng=np.random.default_rng(0)).cpm
    return metrics
