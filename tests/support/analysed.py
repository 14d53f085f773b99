"""What ``phoi analyze`` makes of a CT, by the model that comes with Phoi."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from phoi_edge_node.cli.analyze import analyze
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus
from phoi_models.findings import Region
from phoi_models.phantom import chest_phantom
from phoi_models.volume import Volume

from support.dicom_phantom import write_series


def healthy_chest(folder: Path) -> Path:
    """DICOM files of a made chest in which there is no nodule, and the model finds none."""
    write_series(folder, chest_phantom(np.random.default_rng(102), (2.5, 1.4, 1.4)))
    return folder


def case_of(ct: Path, folder: Path) -> ReportedCase:
    """What is found in a folder of DICOM files, as a first, preliminary report would tell it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PHOI_HOME", str(folder / "home"))
        _phoi(["models", "init"], os.environ)
        case, result = analyze(ct, Region.LUNGS)
    return ReportedCase(
        study=case.instances[0].study,
        result=result,
        status=ReportStatus.PRELIMINARY,
        instances=case.instances,
        choice=case.choice,
        volume=case.content if isinstance(case.content, Volume) else None,
    )


def objects_of(ct: Path, folder: Path) -> Mapping[DocumentKind, Path]:
    """Run the command on a folder of DICOM files; the objects it writes, by kind."""
    environment = {**os.environ, "PHOI_HOME": str(folder / "home")}
    for command in (["models", "init"], ["analyze", str(ct), "--objects", str(folder / "objects")]):
        _phoi(command, environment)
    found = sorted((folder / "objects").iterdir())
    return {DocumentKind(path.stem): path for path in found}


def _phoi(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("phoi"), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
