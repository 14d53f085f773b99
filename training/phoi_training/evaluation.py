"""How good a detector is: FROC and CPM by the rules of LUNA16, with intervals.

A mark hits a nodule when it lies within the nodule's radius; further marks on the same nodule
count for nothing (Setio et al., Med Image Anal 2017;42:1-13). The CPM is the mean sensitivity at
1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks per scan. Intervals are bootstrapped over scans.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phoi_models.bundle import Calibration, DetectorParameters
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import Floats, Heads, detect
from phoi_models.errors import NotAnalysable
from phoi_models.findings import LungCoverage, Region
from phoi_models.geometry import Triple
from phoi_models.lungs import LungMask, segment_lungs
from phoi_models.networks import CenterHeatmapNet
from scipy import optimize

from phoi_training.dataset import Background, Mark

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIZES_MM = (0.0, 6.0, 10.0, 20.0, np.inf)


class TorchHeads:
    """A network in memory, as the detector wants it."""

    def __init__(self, network: CenterHeatmapNet, device: torch.device) -> None:
        self._network = network.to(device).eval()
        self._device = device

    def run(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        """See :class:`phoi_models.detector.Heads`."""
        with torch.inference_mode():
            image = torch.from_numpy(patches).to(self._device)
            logit, diameter_mm, offset = self._network(image)
        heat, diameters, offsets = (
            output.cpu().numpy() for output in (torch.sigmoid(logit), diameter_mm, offset)
        )
        return heat, diameters, offsets


@dataclass(frozen=True)
class Prediction:
    """One mark of the detector on one scan.

    Attributes:
        center_lps_mm: LPS, mm.
        diameter_mm: as the network estimates it.
        probability: calibrated.
        nodule: index of the nodule that it is the first to hit; None for a false mark.
    """

    center_lps_mm: Triple
    diameter_mm: float
    probability: float
    nodule: int | None


@dataclass(frozen=True)
class ScanResult:
    """All marks on one scan, most probable first, and what was to be found.

    Attributes:
        scan: name, for the table.
        nodules: what was to be found.
        predictions: marks that count, true or false.
        complete: unmatched marks are false; otherwise nobody knows.
        seconds: for resampling, lungs and network.
    """

    scan: str
    nodules: tuple[Mark, ...]
    predictions: tuple[Prediction, ...]
    complete: bool
    seconds: float

    def found(self, threshold: float) -> int:
        """How many nodules have a mark of at least this probability."""
        return sum(p.nodule is not None and p.probability >= threshold for p in self.predictions)

    def false_marks(self, threshold: float) -> int:
        """How many marks of at least this probability hit no nodule."""
        return sum(p.nodule is None and p.probability >= threshold for p in self.predictions)


def evaluate(
    scans: Iterable[Background],
    parameters: DetectorParameters,
    heads: Heads,
    *,
    on_scan: Callable[[ScanResult], None] = lambda _result: None,
) -> list[ScanResult]:
    """Run the detector on every scan and match its marks."""
    results = []
    for scan in scans:
        began = time.monotonic()
        grid = to_canonical(scan.volume, parameters.spacing_mm)
        lungs, region = _lungs(grid)
        candidates = detect(grid, lungs, parameters, heads, region=region)
        seconds = time.monotonic() - began
        marks = [(c.center_lps_mm, c.diameter_mm, c.probability) for c in candidates]
        results.append(
            ScanResult(scan.name, scan.nodules, _matched(marks, scan), scan.complete, seconds)
        )
        on_scan(results[-1])
    return results


def _lungs(grid: CanonicalGrid) -> tuple[LungMask, Region]:
    """The lungs; a crop too small to segment is searched whole."""
    try:
        return segment_lungs(grid.hu, grid.spacing_mm), Region.LUNGS
    except NotAnalysable:
        nowhere = np.zeros(grid.hu.shape, np.uint8)
        coverage = LungCoverage(apex=False, base=False, volume_ml=0.0)
        return LungMask(nowhere, grid.spacing_mm, coverage), Region.WHOLE


def _matched(
    marks: Sequence[tuple[Triple, float, float]], scan: Background
) -> tuple[Prediction, ...]:
    """Assign marks, most probable first, to nodules."""
    found: set[int] = set()
    predictions = []
    for center, diameter, probability in marks:
        hit = _hit(center, scan.nodules)
        if hit is None and _hit(center, [m for m in scan.marks if not m.certain]) is not None:
            continue  # nobody knows
        if hit in found:
            continue
        if hit is not None:
            found.add(hit)
        predictions.append(Prediction(center, diameter, probability, hit))
    return tuple(predictions)


def _hit(center: Triple, nodules: Sequence[Mark]) -> int | None:
    """The nearest nodule within whose radius a mark lies."""
    if not nodules:
        return None
    away = np.linalg.norm(np.subtract([n.center_lps_mm for n in nodules], center), axis=1)
    nearest = int(np.argmin(away))
    radius = nodules[nearest].diameter_mm / 2
    return nearest if away[nearest] <= radius else None


@dataclass(frozen=True)
class Froc:
    """Sensitivity at the seven rates of false marks per scan; their mean with its 95 % interval."""

    sensitivities: tuple[float, ...]
    cpm: float
    interval: tuple[float, float]
    scans: int
    nodules: int


def froc(results: Sequence[ScanResult], *, rng: np.random.Generator, resamples: int = 300) -> Froc:
    """The FROC of complete scans.

    Raises:
        ValueError: no complete scan, or none with a nodule.
    """
    counted = [result for result in results if result.complete]
    nodules = sum(len(result.nodules) for result in counted)
    if nodules == 0:
        raise ValueError("FROC needs complete scans with nodules")
    sensitivities = _sensitivities(counted)
    cpms = []
    for _ in range(resamples):
        drawn = [counted[i] for i in rng.integers(len(counted), size=len(counted))]
        if any(result.nodules for result in drawn):
            cpms.append(float(np.mean(_sensitivities(drawn))))
    low, high = np.percentile(cpms, [2.5, 97.5])
    return Froc(
        tuple(sensitivities),
        float(np.mean(sensitivities)),
        (float(low), float(high)),
        len(counted),
        nodules,
    )


def _sensitivities(results: Sequence[ScanResult]) -> list[float]:
    total = sum(len(result.nodules) for result in results)
    marks = [(p.probability, p.nodule is not None) for r in results for p in r.predictions]
    marks.sort(key=lambda mark: -mark[0])
    true = np.cumsum([hit for _, hit in marks])
    false = np.cumsum([not hit for _, hit in marks])
    return [
        float(true[allowed].max()) / total if (allowed := false <= rate * len(results)).any() else 0
        for rate in RATES
    ]


def by_size(results: Sequence[ScanResult], threshold: float) -> list[tuple[str, int, int]]:
    """Sizes, mm, with how many nodules were found at a threshold, of how many."""
    rows = []
    for low, high in itertools.pairwise(SIZES_MM):
        found = total = 0
        for result in results:
            hits = {p.nodule for p in result.predictions if p.probability >= threshold}
            for index, nodule in enumerate(result.nodules):
                if low <= nodule.diameter_mm < high:
                    total += 1
                    found += index in hits
        name = f"{low:g} to {high:g} mm" if np.isfinite(high) else f"{low:g} mm and more"
        rows.append((name, found, total))
    return rows


def threshold_at(results: Sequence[ScanResult], false_per_scan: float) -> float:
    """The lowest probability with at most so many false marks per complete scan."""
    counted = [result for result in results if result.complete]
    false = sorted(
        (p.probability for r in counted for p in r.predictions if p.nodule is None), reverse=True
    )
    allowed = int(false_per_scan * len(counted))
    if allowed >= len(false):
        return min(false, default=0.5)
    return float(np.nextafter(false[allowed], 1.0))


def calibrate(results: Sequence[ScanResult]) -> Calibration:
    """Platt scaling (1999) of scores, so that a probability is the share of true marks.

    Args:
        results: with ``probability`` still the raw score; only complete scans count. Without any
            mark on such a scan the scores stay as they are.
    """
    marks = [p for r in results if r.complete for p in r.predictions]
    if not marks:
        return Calibration(slope=1.0, intercept=0.0)
    score = np.clip([p.probability for p in marks], 1e-6, 1 - 1e-6)
    logit = np.log(score / (1 - score))
    hits = np.array([p.nodule is not None for p in marks], dtype=np.float64)
    # Platt's smoothed targets keep the slope finite when the classes part completely.
    target = np.where(hits == 1, (hits.sum() + 1) / (hits.sum() + 2), 1 / ((1 - hits).sum() + 2))

    def loss(coefficients: NDArray[np.float64]) -> float:
        z = np.exp(coefficients[0]) * logit + coefficients[1]
        return float(np.mean(np.logaddexp(0, z) - target * z))

    found = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead")
    return Calibration(slope=float(np.exp(found.x[0])), intercept=float(found.x[1]))


def as_rows(results: Sequence[ScanResult]) -> list[dict[str, Any]]:
    """One row per mark and per missed nodule, for a per-case artefact."""
    rows: list[dict[str, Any]] = []
    for result in results:
        found = {p.nodule for p in result.predictions}
        for p in result.predictions:
            truth = None if p.nodule is None else result.nodules[p.nodule].diameter_mm
            rows.append(
                {
                    "scan": result.scan,
                    "center_lps_mm": [round(v, 1) for v in p.center_lps_mm],
                    "probability": round(p.probability, 4),
                    "diameter_mm": round(p.diameter_mm, 1),
                    "hit": p.nodule is not None,
                    "true_diameter_mm": truth,
                }
            )
        rows += [
            {
                "scan": result.scan,
                "center_lps_mm": [round(v, 1) for v in nodule.center_lps_mm],
                "probability": None,
                "diameter_mm": None,
                "hit": False,
                "true_diameter_mm": nodule.diameter_mm,
            }
            for index, nodule in enumerate(result.nodules)
            if index not in found
        ]
    return rows
