"""What ``phoi analyze`` makes of a CT, by the model that comes with Phoi."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from phoi_edge_node.ports import DocumentKind


def objects_of(ct: Path, folder: Path) -> Mapping[DocumentKind, Path]:
    """Run the command on a folder of DICOM files; the objects it writes, by kind."""
    environment = {**os.environ, "PHOI_HOME": str(folder / "home")}
    phoi = Path(sys.executable).with_name("phoi")
    for command in (["models", "init"], ["analyze", str(ct), "--objects", str(folder / "objects")]):
        done = subprocess.run(
            [phoi, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = sorted((folder / "objects").iterdir())
    return {DocumentKind(path.stem): path for path in found}
