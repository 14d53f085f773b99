"""From a volume to measured findings: the steps of one analysis, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from phoi_models.bundle import AnyParameters
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import Cancelled, Candidate, Heads, detect
from phoi_models.findings import Finding, Region, VolumeAnalysis
from phoi_models.hounsfield import check_hounsfield
from phoi_models.lungs import LungMask, segment_lungs
from phoi_models.measure import measure
from phoi_models.volume import Volume

__all__ = ["Cancelled", "Progress", "analyze_volume"]

_SHARE = {"volume": 0.05, "lungs": 0.10, "detect": 0.75, "measure": 0.10}
_OVERLAP = 0.3


class Progress(Protocol):
    """Told how far an analysis is."""

    def __call__(self, step: str, fraction: float) -> None:
        """Take note.

        Args:
            step: ``volume``, ``lungs``, ``detect`` or ``measure``.
            fraction: 0 to 1 of the whole analysis; never falls.
        """
        ...


def analyze_volume(
    volume: Volume,
    parameters: AnyParameters,
    heads: Heads,
    *,
    second_look: Heads | None = None,
    operating_point: str = "default",
    region: Region = Region.LUNGS,
    batch_size: int = 1,
    on_progress: Progress = lambda _step, _fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> VolumeAnalysis:
    """Find and measure the nodules of one CT volume.

    Args:
        volume: int16 HU with its geometry, any orientation.
        parameters: of the model's bundle.
        heads: the model, ready to run.
        second_look: its network for the second look, if it has one.
        operating_point: name of the threshold in ``parameters``.
        region: whether marks outside the lungs are wanted.
        batch_size: patches given to the network at once.
        on_progress: told the step and the fraction of the whole.
        cancelled: asked before each batch and each measurement.
        clock: seconds, monotonic.

    Returns:
        Findings at or above the operating point, most probable first, the lung coverage, and
        seconds by step (``volume``, ``lungs``, ``detect``, ``measure``).

    Raises:
        NotAnalysable: NOT_HOUNSFIELD or NO_LUNGS.
        Cancelled: ``cancelled`` returned True.
        ValueError: the parameters have no such operating point.
    """
    if operating_point not in parameters.operating_points:
        known = ", ".join(sorted(parameters.operating_points))
        raise ValueError(f"no operating point {operating_point!r}; the model has {known}")
    least = parameters.operating_points[operating_point].probability
    steps = _Steps(on_progress, clock)
    with steps.step("volume"):
        check_hounsfield(volume.hu)
        canonical = to_canonical(volume, parameters.spacing_mm)
    with steps.step("lungs"):
        lungs = segment_lungs(canonical.hu, canonical.spacing_mm)
    with steps.step("detect"):
        candidates = detect(
            canonical,
            lungs,
            parameters,
            heads,
            volume=volume,
            second_look=second_look,
            region=region,
            batch_size=batch_size,
            on_progress=steps.advance,
            cancelled=cancelled,
        )
    with steps.step("measure"):
        shown = [c for c in candidates if c.probability >= least]
        findings = _measured(volume, shown, canonical, lungs, steps.advance, cancelled)
    return VolumeAnalysis(findings, lungs.coverage, steps.seconds)


class _Steps:
    """Progress and seconds of the named steps."""

    def __init__(self, on_progress: Progress, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._clock = clock
        self._done = 0.0
        self._name = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, and tell its begin and its end."""
        self._name = name
        begin = self._clock()
        self.advance(0.0)
        yield
        self.seconds[name] = self._clock() - begin
        self.advance(1.0)
        self._done += _SHARE[name]

    def advance(self, fraction: float) -> None:
        """Tell how much of the present step is done, 0 to 1."""
        share = _SHARE[self._name]
        self._on_progress(self._name, min(1.0, self._done + share * fraction))


def _measured(
    volume: Volume,
    candidates: list[Candidate],
    canonical: CanonicalGrid,
    lungs: LungMask,
    on_progress: Callable[[float], None],
    cancelled: Callable[[], bool],
) -> tuple[Finding, ...]:
    """Measure candidates, most probable first; two that turn out to be one lesion are one."""
    findings: list[Finding] = []
    for number, candidate in enumerate(candidates, start=1):
        if cancelled():
            raise Cancelled("the analysis was cancelled")
        finding = measure(volume, candidate, canonical, lungs)
        if not any(_same_lesion(finding, other) for other in findings):
            findings.append(finding)
        on_progress(number / len(candidates))
    return tuple(findings)


def _same_lesion(a: Finding, b: Finding) -> bool:
    """The masks share a good part of the smaller one."""
    low = np.maximum(a.mask.offset, b.mask.offset)
    high = np.minimum(
        np.add(a.mask.offset, a.mask.voxels.shape), np.add(b.mask.offset, b.mask.voxels.shape)
    )
    if np.any(high <= low):
        return False
    part = [
        f.mask.voxels[
            tuple(slice(p - o, q - o) for p, q, o in zip(low, high, f.mask.offset, strict=True))
        ]
        for f in (a, b)
    ]
    shared = np.count_nonzero(part[0] & part[1])
    smaller = min(np.count_nonzero(a.mask.voxels), np.count_nonzero(b.mask.voxels))
    return bool(shared > _OVERLAP * smaller)
