"""Workers for tests: real ones, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phoi_models.bundle import sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from phoi_models.signing import TrustStore, create_signing_key, load_signing_key

from support.bundles import write_bundle

# A coarse grid: an analysis of `plain_chest` takes about a second.
QUICK = {"spacing_mm": 2.0, "patch_shape": [48, 48, 48], "margin": 8}
# A slow network on patches that overlap a lot: takes a minute, unless cancelled.
SLOW = {**QUICK, "name": "test-slow", "margin": 20, "slow": True}


def new_home(root: Path) -> Home:
    """A data folder with a key of its own, trusted."""
    home = Home(root)
    key = create_signing_key(home.signing_key)
    TrustStore.of([key.public_key()]).save(home.trust)
    return home


def install(home: Home, scratch: Path, **parameters: Any) -> ModelIdentity:
    """Sign a test bundle with the home's key and install it there."""
    folder = write_bundle(scratch, **parameters)
    sign_bundle(folder, load_signing_key(home.signing_key))
    store = BundleStore(home.models)
    return store.install(folder, TrustStore.load(home.trust)).identity()


@dataclass(eq=False)
class WorkerProcess:
    """A running `phoi worker`.

    Attributes:
        process: the process.
        addresses: where it listens.
        log: its log so far, one record a line.
    """

    process: subprocess.Popen[str]
    addresses: list[str] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def running_worker(home: Home, *options: object) -> Iterator[WorkerProcess]:
    """`phoi worker`, on a free port of 127.0.0.1 unless told otherwise, until the context ends."""
    arguments = [str(option) for option in options]
    if "--listen" not in arguments:
        arguments += ["--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("phoi"), "worker", "--threads", "1", *arguments],
        env={**os.environ, "PHOI_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = WorkerProcess(process)
    ready = threading.Event()
    reader = threading.Thread(target=_follow, args=(worker, ready), daemon=True)
    reader.start()
    try:
        assert ready.wait(60), "the worker did not start"
        assert worker.addresses, f"the worker ended: {worker.log}"
        yield worker
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def _follow(worker: WorkerProcess, ready: threading.Event) -> None:
    assert worker.process.stderr is not None
    for line in worker.process.stderr:
        try:
            record = json.loads(line)
        except ValueError:
            record = {"event": line.rstrip()}
        worker.log.append(record)
        if record["event"] == "worker ready":
            worker.addresses = record["addresses"]
            ready.set()
    ready.set()
