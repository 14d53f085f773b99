"""From the last slice sent to the SR in the archive, split by step.

For LIDC-IDRI-0001 as it is, compressed by JPEG 2000, and interpolated to 300 slices.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from phoi_edge_node.bootstrap import Storage, open_storage
from phoi_edge_node.cli.send import find_files, send
from phoi_edge_node.dicom.storage_scu import Peer
from phoi_edge_node.ports import DocumentKind
from phoi_edge_node.sample import default_cache, fetch_sample
from phoi_edge_node.stand_ins.hospital import Hospital, Ports, hospital
from phoi_edge_node.store import Delivery, StoredAnalysis
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.system import SystemClock
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid

from benchmarks.results import Result
from benchmarks.waiting import wait_for

QUIET_S = 2.0


def measure(runs: int) -> tuple[tuple[Result, ...], str]:
    """The results, and which model was measured."""
    folder = Path(tempfile.mkdtemp(prefix="phoi-bench-"))
    try:
        with hospital(folder / "site", default_cache(), Ports(), print, QUIET_S) as site:
            return _measure(site, folder, runs)
    finally:
        shutil.rmtree(folder)


def _measure(site: Hospital, folder: Path, runs: int) -> tuple[tuple[Result, ...], str]:
    sample = sorted(fetch_sample(default_cache(), print).rglob("*.dcm"))
    storage = open_storage(site.settings, SystemClock())
    results: list[Result] = []
    model = ""
    for case, make in _CASES.items():
        source = folder / (case or "as_it_is")
        source.mkdir()
        make(sample, source)
        seconds, model = _measure_case(site, storage, source, runs)
        results += _results(f"main_job{case and f'.{case}'}", seconds)
    storage.engine.dispose()
    for name, pid, limit in (
        ("edge", site.edge.pid, ""),
        ("worker", site.worker.pid, "limit of the issue: 1500 MB"),
    ):
        results.append(Result.of(f"main_job.peak_memory_{name}", [_peak_mb(pid)], "MB", limit))
    return tuple(results), model


def _measure_case(
    site: Hospital, storage: Storage, source: Path, runs: int
) -> tuple[Mapping[str, list[float]], str]:
    """Seconds by step, one a run, and the model."""
    seconds: dict[str, list[float]] = defaultdict(list)
    model = ""
    for run in range(runs + 1):
        images = source / f"run-{run}"
        uid = _copy_as_new_study(source, images)
        failed = send(find_files(images), Peer("PHOI", "127.0.0.1", site.ports.dicom, 30.0), "X")
        assert not failed, failed
        analysis, report = wait_for(partial(_delivered, storage, uid))
        steps = _steps(storage, analysis, report)
        for step, value in steps.items() if run else ():  # the first one warms up
            seconds[step].append(value)
        assert analysis.model is not None
        model = f"{analysis.model.name} {analysis.model.version}"
        print(f"{source.name} run {run} of {runs}: {steps}")
    return seconds, model


def _results(prefix: str, seconds: Mapping[str, list[float]]) -> list[Result]:
    ratio = median(
        all_of_it / alone
        for all_of_it, alone in zip(seconds["complete_to_sr"], seconds["inference"], strict=True)
    )
    alone = f"inference alone: {median(seconds['inference']):.3f} s, {ratio:.2f} times as long"
    beside = {"complete_to_sr": alone}
    return [
        Result.of(f"{prefix}.{step}", values, "s", beside.get(step, ""))
        for step, values in seconds.items()
    ]


def _as_it_is(sample: Sequence[Path], target: Path) -> None:
    for file in sample:
        shutil.copy(file, target)


def _by_jpeg_2000(sample: Sequence[Path], target: Path) -> None:
    for file in sample:
        dataset = dcmread(file)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(target / file.name)


def write_300_slices(sample: Sequence[Path], target: Path) -> None:
    """Interpolated along the patient, as many scanners would have reconstructed it."""
    datasets = sorted(map(dcmread, sample), key=lambda d: float(d.ImagePositionPatient[2]))
    stored = np.stack([dataset.pixel_array for dataset in datasets]).astype(np.float32)
    places = np.array([dataset.ImagePositionPatient for dataset in datasets], float)
    for number, place in enumerate(np.linspace(0, len(datasets) - 1, 300)):
        below = min(int(place), len(datasets) - 2)
        share = place - below
        dataset = deepcopy(datasets[below])
        pixels = stored[below] * (1 - share) + stored[below + 1] * share
        dataset.PixelData = np.rint(pixels).astype(datasets[below].pixel_array.dtype).tobytes()
        position = places[below] * (1 - share) + places[below + 1] * share
        dataset.ImagePositionPatient = [round(float(mm), 4) for mm in position]
        dataset.SliceThickness = "1.25"
        dataset.save_as(target / f"{number:03}.dcm")


_CASES: Mapping[str, Callable[[Sequence[Path], Path], None]] = {
    "": _as_it_is,
    "jpeg_2000": _by_jpeg_2000,
    "300_slices": write_300_slices,
}


def _copy_as_new_study(source: Path, target: Path) -> str:
    """The same images as another patient's study, so that nothing is a duplicate."""
    target.mkdir()
    study, series = generate_uid(), generate_uid()
    for file in source.glob("*.dcm"):
        dataset = dcmread(file)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(target / file.name)
    return str(study)


def _delivered(storage: Storage, uid: str) -> tuple[StoredAnalysis, Delivery] | None:
    report = next(
        (
            d
            for d in storage.store.deliveries(uid)
            if d.kind is DocumentKind.STRUCTURED_REPORT and d.state is DeliveryState.DELIVERED
        ),
        None,
    )
    return (storage.store.analyses(uid)[-1], report) if report else None


def _steps(storage: Storage, analysis: StoredAnalysis, report: Delivery) -> dict[str, float]:
    study = storage.store.study(analysis.study_instance_uid)
    assert study is not None
    assert analysis.started_at is not None
    assert analysis.finished_at is not None
    assert analysis.result is not None
    last, delivered = study.last_received_at, report.updated_at
    inference = dict(analysis.result.timing_s)
    steps = {
        "receive": (last - study.first_received_at).total_seconds(),
        "wait_for_completeness": (analysis.created_at - last).total_seconds(),
        "complete_to_sr": (delivered - analysis.created_at).total_seconds(),
        "inference": sum(inference.values()),
        "analysis_and_encoding": (analysis.finished_at - analysis.started_at).total_seconds(),
        "delivery_of_sr": (delivered - analysis.finished_at).total_seconds(),
        "last_slice_to_sr": (delivered - last).total_seconds(),
    }
    steps |= {f"inference.{step}": value for step, value in inference.items()}
    return steps


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
