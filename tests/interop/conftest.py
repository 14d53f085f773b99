"""Programs by others that ``make interop`` installs: npm packages and the DICOM viewer OHIF.

``make test`` does without them. What is missing fails, with the command that installs it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from phoi_edge_node.stand_ins.program import process
from support.real_ct import lidc_idri_0001

HERE = Path(__file__).parent
START_S = 60.0

NodeProgram = Callable[..., AbstractContextManager[dict[str, Any]]]


@pytest.fixture(scope="session")
def ct_folder() -> Path:
    """The CT that all is tried with: ``make interop CT=DIR``, else LIDC-IDRI-0001."""
    named = os.environ.get("PHOI_INTEROP_CT")
    folder = Path(named) if named else lidc_idri_0001()
    assert folder.is_dir(), f"CT={folder} is no folder: give one that holds the files of one CT"
    return folder


@pytest.fixture(scope="session")
def ohif_folder() -> Path:
    """OHIF as its makers built it."""
    found = sorted(HERE.parents[1].glob(".cache/ohif-*/index.html"))
    assert found, "OHIF is not installed: run scripts/install-interop-tools"
    return found[-1].parent


@pytest.fixture(scope="session")
def node_program(tmp_path_factory: pytest.TempPathFactory) -> NodeProgram:
    """Runs a script of this folder by Node.js as long as a ``with`` block lasts.

    ``node_program("server.mjs", "--strict")`` yields what the script says of itself: the JSON
    object on the first line of its standard output, such as ``{"port": 8080}``.
    """
    assert (HERE / "node_modules").is_dir(), "run scripts/install-interop-tools first"
    logs = tmp_path_factory.mktemp("node")

    @contextmanager
    def run(script: str, *arguments: object) -> Iterator[dict[str, Any]]:
        command = ["node", str(HERE / script), *map(str, arguments)]
        log = logs / f"{script}.log"
        with (
            log.open("ab") as stderr,
            process(command, stderr.fileno(), subprocess.PIPE) as started,
        ):
            assert started.stdout is not None
            ready = select.select([started.stdout], [], [], START_S)[0]
            line = started.stdout.readline() if ready else b""
            assert line, f"{script} does not start: {log.read_text(errors='replace')[-2000:]}"
            yield json.loads(line)

    return run
