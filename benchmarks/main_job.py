"""From the last slice sent to the SR in the archive, for LIDC-IDRI-0001, split by step."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

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
from pydicom.uid import generate_uid

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
    sample = fetch_sample(default_cache(), print)
    storage = open_storage(site.settings, SystemClock())
    seconds: dict[str, list[float]] = defaultdict(list)
    model = ""
    for run in range(runs + 1):
        images = folder / f"run-{run}"
        uid = _copy_as_new_study(sample, images)
        failed = send(find_files(images), Peer("PHOI", "127.0.0.1", site.ports.dicom, 30.0), "X")
        assert not failed, failed
        analysis, report = wait_for(partial(_delivered, storage, uid))
        if run:  # the first one warms up
            for step, value in _steps(storage, analysis, report).items():
                seconds[step].append(value)
        assert analysis.model is not None
        model = f"{analysis.model.name} {analysis.model.version}"
        print(f"run {run} of {runs}: {_steps(storage, analysis, report)}")
    storage.engine.dispose()
    alone = sorted(seconds["main_job.inference"])[runs // 2]
    beside = {"main_job.complete_to_sr": f"inference alone: {alone:.3f} s"}
    timed = [Result.of(k, v, "s", beside.get(k, "")) for k, v in seconds.items()]
    memory = [
        Result.of(f"main_job.peak_memory_{name}", [_peak_mb(pid)], "MB", limit)
        for name, pid, limit in (
            ("edge", site.edge.pid, ""),
            ("worker", site.worker.pid, "limit of the issue: 1500 MB"),
        )
    ]
    return (*timed, *memory), model


def _copy_as_new_study(source: Path, target: Path) -> str:
    """The same images as another patient's study, so that nothing is a duplicate."""
    target.mkdir()
    study, series = generate_uid(), generate_uid()
    for file in source.rglob("*.dcm"):
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
        "wait_for_completeness": (analysis.started_at - last).total_seconds(),
        "complete_to_sr": (delivered - analysis.started_at).total_seconds(),
        "inference": sum(inference.values()),
        "analysis_and_encoding": (analysis.finished_at - analysis.started_at).total_seconds(),
        "delivery_of_sr": (delivered - analysis.finished_at).total_seconds(),
        "last_slice_to_sr": (delivered - last).total_seconds(),
    }
    steps |= {f"inference.{step}": value for step, value in inference.items()}
    return {f"main_job.{name}": value for name, value in steps.items()}


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
