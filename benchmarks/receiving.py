"""C-STORE of 300 CT slices into Phoi's receivers and into others, in turns, on one machine.

"Untouched" is DCMTK's storescu as it comes, with Nagle's algorithm, and receivers as they come.
"Tuned" has TCP_NODELAY everywhere and PDUs of 128 KiB. Every run starts with an empty store. Phoi's
receivers do all that they do in a hospital: header, digest, durable file, durable index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phoi_edge_node.sample import default_cache, fetch_sample
from pydicom import dcmread
from pydicom.uid import generate_uid

from benchmarks import raw_copy, store_latency
from benchmarks.receivers import Receiver, start
from benchmarks.results import Result

SLICES = 300


@dataclass(frozen=True)
class Run:
    """One receiver's round.

    Attributes:
        slices_per_s: from the start of the senders to the end of the last.
        cpu_ms: of the receiver, for each slice.
    """

    slices_per_s: float
    cpu_ms: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Case:
    """What is measured."""

    receiver: str
    tuned: bool
    associations: int

    @property
    def name(self) -> str:
        """For the list of results."""
        sender = "tuned" if self.tuned else "untouched"
        return f"{self.receiver}, {sender} sender, {self.associations} assoc."


UNTOUCHED = [Case(name, False, 1) for name in ("lean", "pynetdicom", "storescp", "Orthanc")]
TUNED = [
    Case(name, True, associations)
    for associations in (1, 4)
    for name in (
        "lean",
        "lean, not durable",
        "pynetdicom",
        "storescp tuned",
        "Orthanc tuned",
        "raw copy",
        "raw copy, durable",
    )
]


def measure(rounds: int) -> tuple[Result, ...]:
    """All cases in turns, ``rounds`` times, and the ratios of each round."""
    folder = Path(tempfile.mkdtemp(prefix="phoi-receiving-"))
    try:
        files = _slices(folder / "slices")
        runs: dict[Case, list[Run]] = defaultdict(list)
        for number in range(rounds):
            for case in (*UNTOUCHED, *TUNED):
                run = _run(case, files, folder)
                runs[case].append(run)
                print(
                    f"round {number + 1} of {rounds}: {case.name:48} "
                    f"{run.slices_per_s:7.1f} slices/s, {run.cpu_ms:.2f} ms CPU a slice, "
                    f"{run.peak_memory_mb:.0f} MB",
                    flush=True,
                )
        return (*_figures(runs), *_ratios(runs), *_latencies(files, folder, rounds))
    finally:
        shutil.rmtree(folder)


def where() -> Mapping[str, str]:
    """The disk that it was measured on, for which the ratios hold, and how busy the machine was."""
    command = ["findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "--target", tempfile.gettempdir()]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    source, kind, options = found[0], found[1], found[2]
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return {
        "device": Path(source).name,
        "file_system": kind,
        "options": options,
        "load_average_at_the_end": load,
    }


def _slices(folder: Path) -> list[Path]:
    """LIDC-IDRI-0001 over and over, to 300 instances of one series with UIDs of their own."""
    folder.mkdir()
    sources = sorted(fetch_sample(default_cache(), print).rglob("*.dcm"))
    study, series = generate_uid(), generate_uid()
    files = []
    for number in range(SLICES):
        dataset = dcmread(sources[number % len(sources)])
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        files.append(folder / f"{number:03}.dcm")
        dataset.save_as(files[-1])
    return files


def _run(case: Case, files: Sequence[Path], folder: Path) -> Run:
    parts = [files[first :: case.associations] for first in range(case.associations)]
    send = _copy if case.receiver.startswith("raw") else _storescu
    with _store(folder) as store, start(case.receiver, store) as receiver:
        cpu = receiver.cpu_s()
        began = time.perf_counter()
        send(receiver, parts, case.tuned)
        seconds = time.perf_counter() - began
        cpu = receiver.cpu_s() - cpu
        memory = receiver.peak_memory_mb()
    return Run(len(files) / seconds, cpu / len(files) * 1e3, memory)


@contextmanager
def _store(folder: Path) -> Iterator[Path]:
    """A folder that is yet to be made, for one run, which pays for nothing that others left.

    What lies in the page cache is written before. Afterwards files are emptied, not removed: ext4
    steps over every inode that was freed within some minutes, each time that it makes a file.
    """
    os.sync()
    store = Path(tempfile.mkdtemp(dir=folder)) / "store"
    try:
        yield store
    finally:
        for file in store.rglob("*"):
            if file.is_file():
                os.truncate(file, 0)


def _storescu(receiver: Receiver, parts: Sequence[Sequence[Path]], tuned: bool) -> None:  # noqa: FBT001
    environment = {**os.environ, **({"TCP_NODELAY": "1"} if tuned else {})}
    command = ["/usr/bin/storescu", "-aec", "PHOI", "127.0.0.1", str(receiver.port)]
    senders = [subprocess.Popen([*command, *map(str, part)], env=environment) for part in parts]
    failed = [sender.args for sender in senders if sender.wait() != 0]
    if failed:
        raise RuntimeError(f"a sender failed: {failed[0]!r}")


def _copy(receiver: Receiver, parts: Sequence[Sequence[Path]], _: bool) -> None:  # noqa: FBT001
    threads = [threading.Thread(target=raw_copy.send, args=(receiver.port, p)) for p in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _figures(runs: Mapping[Case, Sequence[Run]]) -> list[Result]:
    results = []
    for case, measured in runs.items():
        rates = [run.slices_per_s for run in measured]
        results.append(Result.of(f"receiving: {case.name}", rates, "slices/s"))
        cpu = [run.cpu_ms for run in measured]
        results.append(Result.of(f"receiving, CPU a slice: {case.name}", cpu, "ms"))
    for name in ("lean", "pynetdicom", "Orthanc tuned"):
        memory = [run.peak_memory_mb for run in runs[Case(name, True, 4)]]
        results.append(Result.of(f"receiving, peak memory: {name}, 4 assoc.", memory, "MB"))
    return results


def _ratios(runs: Mapping[Case, Sequence[Run]]) -> list[Result]:
    """Of runs of the same round, so that what else the machine did falls on both."""
    rate: Callable[[Run], float] = lambda run: run.slices_per_s  # noqa: E731
    cpu: Callable[[Run], float] = lambda run: run.cpu_ms  # noqa: E731
    wanted = [
        (f"lean / {other}, untouched", Case("lean", False, 1), Case(other, False, 1), rate, ">= 40")
        for other in ("Orthanc", "storescp")
    ]
    for n in (1, 4):
        lean = Case("lean", True, n)
        wanted += [
            (
                f"lean / Orthanc, tuned, {n} assoc.",
                lean,
                Case("Orthanc tuned", True, n),
                rate,
                ">= 4",
            ),
            (
                f"lean / storescp --fork, tuned, {n} assoc.",
                *(lean, Case("storescp tuned", True, n), rate, ">= 0.9"),
            ),
            (
                f"durable / not durable, {n} assoc.",
                *(lean, Case("lean, not durable", True, n), rate, ">= 0.7"),
            ),
            (f"lean / pynetdicom, {n} assoc.", lean, Case("pynetdicom", True, n), rate, ""),
            (
                f"lean / raw copy, durable, {n} assoc.",
                *(lean, Case("raw copy, durable", True, n), rate, ""),
            ),
            (
                f"CPU a slice: lean / Orthanc, tuned, {n} assoc.",
                *(lean, Case("Orthanc tuned", True, n), cpu, "<= 0.33"),
            ),
        ]
    return [
        Result.of(
            f"receiving, ratio: {name}",
            [figure(a) / figure(b) for a, b in zip(runs[ours], runs[theirs], strict=True)],
            "x",
            f"target {target}" if target else "",
        )
        for name, ours, theirs, figure, target in wanted
    ]


def _latencies(files: Sequence[Path], folder: Path, rounds: int) -> list[Result]:
    """Of one C-STORE, from its first byte sent to its response, by a sender that costs little."""
    percentiles: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for kind in ("lean", "pynetdicom", "storescp tuned", "Orthanc tuned"):
            with _store(folder) as store, start(kind, store) as receiver:
                taken = sorted(store_latency.measure(receiver.port, files))
            for share in (50, 99):
                value = taken[min(len(taken) * share // 100, len(taken) - 1)]
                percentiles[kind, f"p{share}"].append(value * 1e3)
    return [
        Result.of(f"receiving, C-STORE {share}: {kind}", values, "ms")
        for (kind, share), values in percentiles.items()
    ]
