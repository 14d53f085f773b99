"""300 slices on disk to a volume in HU, beside pydicom decoding the same files one by one."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from phoi_edge_node.dicom.headers import instance_from_file
from phoi_edge_node.dicom.series_reader import DicomSeriesReader
from phoi_edge_node.sample import default_cache, fetch_sample
from pydicom import dcmread

from benchmarks.main_job import write_300_slices
from benchmarks.results import Result


def measure(runs: int) -> tuple[Result, ...]:
    """Choosing and reading, with warm files, in turn with what they are compared with."""
    sample = sorted(fetch_sample(default_cache(), print).rglob("*.dcm"))
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="phoi-bench-") as folder:
        write_300_slices(sample, Path(folder))
        for run in range(runs + 1):
            steps = _once(Path(folder))
            for name, took in steps.items() if run else ():  # the first one warms up
                seconds[name].append(took)
    ratio = median(b / a for a, b in zip(seconds["read"], seconds["pydicom"], strict=True))
    other = median(seconds["pydicom"])
    beside = {"read": f"pydicom's pixel_array: {other:.3f} s, {ratio:.1f} times as long"}
    return tuple(
        Result.of(f"reading.300_slices.{name}", seconds[name], "s", beside.get(name, ""))
        for name in ("choose", "read")
    )


def _once(folder: Path) -> Mapping[str, float]:
    instances = [instance_from_file(folder, path.name) for path in sorted(folder.glob("*.dcm"))]
    reader = DicomSeriesReader(folder)
    began = time.perf_counter()
    choice = reader.choose(instances)
    chosen = time.perf_counter()
    reader.read(choice)
    read = time.perf_counter()
    return {
        "choose": chosen - began,
        "read": read - chosen,
        "pydicom": _seconds(lambda: [dcmread(path).pixel_array for path in folder.glob("*.dcm")]),
    }


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
