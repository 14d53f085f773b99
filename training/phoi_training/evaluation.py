"""How good a detector is: FROC and CPM by the rules of LUNA16, with intervals.

A mark hits a nodule when it lies within the nodule's radius; further marks on the same nodule
count for nothing (Setio et al., Med Image Anal 2017;42:1-13). The CPM is the mean sensitivity at
1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks per scan. Where LUNA16's script draws straight lines
between the points of the curve, the sensitivity here is one that a threshold reaches, so it is
never the higher of the two.

Intervals are bootstrapped over patients: planted copies of one chest share its anatomy and its
false marks, so scans of one patient are drawn together (cluster bootstrap, Field and Welsh,
J R Stat Soc B 2007;69:369-90).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from phoi_models.bundle import AnyParameters, Calibration
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import Candidate, Floats, Heads, calibrated, detect
from phoi_models.errors import NotAnalysable
from phoi_models.findings import LungCoverage, Region
from phoi_models.geometry import Triple
from phoi_models.lungs import LungMask, segment_lungs
from phoi_models.measure import measure
from phoi_models.networks import CenterHeatmapNet
from phoi_models.volume import Volume
from scipy import optimize

from phoi_training.background import Background, Mark

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
        measured_mm: mean diameter as an analysis measures it; None if it was not measured.
    """

    center_lps_mm: Triple
    diameter_mm: float
    probability: float
    nodule: int | None
    measured_mm: float | None = None


@dataclass(frozen=True)
class ScanResult:
    """All marks on one scan, most probable first, and what was to be found.

    Attributes:
        scan: name, for the table.
        nodules: what was to be found.
        predictions: marks that count, true or false.
        complete: unmatched marks are false; otherwise nobody knows.
        seconds: for resampling, lungs and network.
        steps_s: seconds of ``read`` (not in ``seconds``), ``resample``, ``lungs``, ``detect``.
        slice_mm: distance between slices, mm; None if not known.
        patient: the same for all scans of a patient; the scan's own name if "".
        further: marks on a nodule that has its mark already; they count neither way.
    """

    scan: str
    nodules: tuple[Mark, ...]
    predictions: tuple[Prediction, ...]
    complete: bool
    seconds: float
    steps_s: Mapping[str, float] = field(default_factory=dict)
    slice_mm: float | None = None
    patient: str = ""
    further: tuple[Prediction, ...] = ()

    @property
    def whose(self) -> str:
        """The patient, or the scan where none is named: what is drawn when resampling."""
        return self.patient or self.scan

    def hits(self, threshold: float) -> set[int]:
        """Indices of the nodules that have a mark of at least this probability."""
        return {
            p.nodule
            for p in self.predictions
            if p.nodule is not None and p.probability >= threshold
        }

    def found(self, threshold: float) -> int:
        """How many nodules have a mark of at least this probability."""
        return sum(p.nodule is not None and p.probability >= threshold for p in self.predictions)

    def false_marks(self, threshold: float) -> int:
        """How many marks of at least this probability hit no nodule."""
        return sum(p.nodule is None and p.probability >= threshold for p in self.predictions)

    def marks_on(self, nodule: int, threshold: float) -> int:
        """How many marks of at least this probability lie on one nodule, by its index."""
        every = (*self.predictions, *self.further)
        return sum(p.nodule == nodule and p.probability >= threshold for p in every)

    def of_at_least(self, least_mm: float) -> ScanResult:
        """Without the smaller nodules, and without the marks on them: they count neither way.

        Args:
            least_mm: least diameter of a nodule that counts, mm.
        """
        kept = [i for i, nodule in enumerate(self.nodules) if nodule.diameter_mm >= least_mm]
        number = {old: new for new, old in enumerate(kept)}

        def renumbered(marks: tuple[Prediction, ...]) -> tuple[Prediction, ...]:
            counted = (p for p in marks if p.nodule is None or p.nodule in number)
            return tuple(
                p if p.nodule is None else replace(p, nodule=number[p.nodule]) for p in counted
            )

        return replace(
            self,
            nodules=tuple(self.nodules[i] for i in kept),
            predictions=renumbered(self.predictions),
            further=renumbered(self.further),
        )


def evaluate(
    scans: Iterable[Background],
    parameters: AnyParameters,
    heads: Heads,
    *,
    second_look: Heads | None = None,
    batch_size: int = 1,
    on_scan: Callable[[ScanResult], None] = lambda _result: None,
) -> list[ScanResult]:
    """Run the detector on every scan and match its marks.

    Args:
        scans: read one by one.
        parameters, heads, second_look, batch_size: as of :func:`phoi_models.detector.detect`.
        on_scan: told each result.
    """
    results = []
    for scan in scans:
        result, _ = examine(scan, parameters, heads, second_look=second_look, batch_size=batch_size)
        results.append(result)
        on_scan(result)
    return results


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as any network of one grid looks at it.

    Attributes:
        scan: what is to be found, and where.
        volume: as read.
        grid: canonical.
        lungs: on the same grid.
        region: where marks are looked for.
        steps_s: seconds of ``read``, ``resample`` and ``lungs``.
    """

    scan: Background
    volume: Volume
    grid: CanonicalGrid
    lungs: LungMask
    region: Region
    steps_s: Mapping[str, float]

    @classmethod
    def of(
        cls,
        scan: Background,
        spacing_mm: float,
        *,
        region: Region = Region.LUNGS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Self:
        """Read, resample and find the lungs.

        Args:
            scan: read if it is not yet in memory.
            spacing_mm: of the grid, mm.
            region: ``WHOLE`` looks for no lungs; nor is there any where none can be found, as in
                a crop that is too small.
            clock: seconds, monotonic.

        Raises:
            NotAnalysable: the scan cannot be read.
        """
        times = [clock()]
        volume = scan.volume
        times.append(clock())
        grid = to_canonical(volume, spacing_mm)
        times.append(clock())
        lungs, searched = _lungs(grid, region)
        times.append(clock())
        steps = dict(zip(("read", "resample", "lungs"), np.diff(times).tolist(), strict=True))
        return cls(scan, volume, grid, lungs, searched, steps)


def examine(
    scan: Background | Prepared,
    parameters: AnyParameters,
    heads: Heads,
    *,
    second_look: Heads | None = None,
    batch_size: int = 1,
    measured_from: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[ScanResult, CanonicalGrid]:
    """Run the detector on one scan and match its marks.

    Args:
        scan: the scan, or what was made of it for a network of the same grid.
        parameters, heads, second_look, batch_size: as of :func:`phoi_models.detector.detect`.
        measured_from: least probability of a mark that is measured if it hits; None for no mark.
        clock: seconds, monotonic.

    Returns:
        The result, and the grid that the network saw.

    Raises:
        NotAnalysable: the scan cannot be read.
    """
    if isinstance(scan, Background):
        scan = Prepared.of(scan, parameters.spacing_mm, clock=clock)
    began = clock()
    candidates = detect(
        scan.grid,
        scan.lungs,
        parameters,
        heads,
        volume=scan.volume,
        second_look=second_look,
        region=scan.region,
        batch_size=batch_size,
    )
    steps = {**scan.steps_s, "detect": clock() - began}
    marks = [(c.center_lps_mm, c.diameter_mm, c.probability) for c in candidates]
    predictions, further = matched(marks, scan.scan)
    if measured_from is not None and scan.region is Region.LUNGS:
        predictions = tuple(_measured(p, measured_from, scan) for p in predictions)
    result = ScanResult(
        scan.scan.name,
        scan.scan.nodules,
        predictions,
        scan.scan.complete,
        sum(seconds for step, seconds in steps.items() if step != "read"),
        steps,
        scan.volume.geometry.spacing_mm[0],
        scan.scan.patient,
        further,
    )
    return result, scan.grid


def _measured(mark: Prediction, least: float, scan: Prepared) -> Prediction:
    """With its mean diameter, if it hits a nodule with at least so much probability."""
    if mark.nodule is None or mark.probability < least:
        return mark
    candidate = Candidate(mark.center_lps_mm, mark.diameter_mm, mark.probability)
    finding = measure(scan.volume, candidate, scan.grid, scan.lungs)
    return replace(mark, measured_mm=finding.mean_diameter_mm)


def _lungs(grid: CanonicalGrid, region: Region) -> tuple[LungMask, Region]:
    """The lungs, and where to look; a crop too small to segment is searched whole."""
    if region is Region.LUNGS:
        try:
            return segment_lungs(grid.hu, grid.spacing_mm), region
        except NotAnalysable:
            pass
    nowhere = np.zeros(grid.hu.shape, np.uint8)
    coverage = LungCoverage(apex=False, base=False, volume_ml=0.0)
    return LungMask(nowhere, grid.spacing_mm, coverage), Region.WHOLE


def matched(
    marks: Sequence[tuple[Triple, float, float]], scan: Background
) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Assign marks to nodules by the rules of LUNA16.

    Args:
        marks: centre, LPS, mm; diameter, mm; probability. Most probable first.
        scan: what is to be found.

    Returns:
        The marks that count, and further marks on a nodule that has one. Marks on what nobody
        knows are in neither.
    """
    found: set[int] = set()
    predictions, further = [], []
    uncertain = [mark for mark in scan.marks if not mark.certain]
    for center, diameter, probability in marks:
        hits = _hits(center, scan.nodules)
        new = next((hit for hit in hits if hit not in found), None)
        if new is not None:
            found.add(new)
            predictions.append(Prediction(center, diameter, probability, new))
        elif hits:
            further.append(Prediction(center, diameter, probability, hits[0]))
        elif not _hits(center, uncertain):
            predictions.append(Prediction(center, diameter, probability, None))
    return tuple(predictions), tuple(further)


def _hits(center: Triple, nodules: Sequence[Mark]) -> list[int]:
    """The nodules within whose radius a mark lies, nearest first."""
    if not nodules:
        return []
    away = np.linalg.norm(np.subtract([n.center_lps_mm for n in nodules], center), axis=1)
    within = away <= np.array([n.diameter_mm for n in nodules]) / 2
    return [int(index) for index in np.argsort(away) if within[index]]


Interval = tuple[float, float]


@dataclass(frozen=True)
class Froc:
    """Sensitivity at the seven rates of false marks per scan, and their mean.

    Attributes:
        sensitivities: at ``RATES``.
        cpm: their mean.
        interval: of the CPM, 95 %; None where resampling cannot tell: there is one patient, or
            whoever is drawn, the figure stays the same.
        scans, nodules, patients: how many.
        intervals: of each sensitivity, 95 %, or None.
        least_mm: smaller nodules, mm, count neither way.
    """

    sensitivities: tuple[float, ...]
    cpm: float
    interval: Interval | None
    scans: int
    nodules: int
    patients: int
    intervals: tuple[Interval | None, ...]
    least_mm: float = 0.0

    def at(self, rate: float) -> tuple[float, Interval | None]:
        """Sensitivity, and its interval, at one of ``RATES``."""
        number = RATES.index(rate)
        return self.sensitivities[number], self.intervals[number]


def froc(
    results: Sequence[ScanResult],
    *,
    rng: np.random.Generator,
    resamples: int = 300,
    least_mm: float = 0.0,
) -> Froc:
    """The FROC of complete scans.

    Args:
        results: of scans; those of which not all nodules are known are left out.
        rng: for the bootstrap.
        resamples: how many.
        least_mm: least diameter of a nodule that counts, mm; marks on smaller ones are neither
            hits nor false.

    Raises:
        ValueError: no complete scan, or none with a nodule of that size.
    """
    counted = [result.of_at_least(least_mm) for result in results if result.complete]
    nodules = sum(len(result.nodules) for result in counted)
    if nodules == 0:
        raise ValueError("FROC needs complete scans with nodules")
    sensitivities = _sensitivities(counted)
    drawn = _resampled(counted, rng, resamples)
    resampled = np.array([_sensitivities([counted[i] for i in chosen]) for chosen in drawn])
    return Froc(
        tuple(sensitivities),
        float(np.mean(sensitivities)),
        _interval(resampled.mean(axis=1) if len(resampled) else resampled),
        len(counted),
        nodules,
        len({result.whose for result in counted}),
        tuple(_interval(values) for values in resampled.T) or (None,) * len(RATES),
        least_mm,
    )


def has_froc(results: Sequence[ScanResult], least_mm: float = 0.0) -> bool:
    """Whether there is a complete scan with a nodule of at least this diameter, mm."""
    every = (n for r in results if r.complete for n in r.nodules)
    return any(nodule.diameter_mm >= least_mm for nodule in every)


def _resampled(
    results: Sequence[ScanResult], rng: np.random.Generator, resamples: int
) -> list[list[int]]:
    """Indices of results, drawn patient by patient; no draw of one patient, or without a nodule."""
    scans: dict[str, list[int]] = {}
    for number, result in enumerate(results):
        scans.setdefault(result.whose, []).append(number)
    groups = list(scans.values())
    if len(groups) == 1:
        return []
    draws = (rng.integers(len(groups), size=len(groups)) for _ in range(resamples))
    chosen = ([i for group in draw for i in groups[group]] for draw in draws)
    return [draw for draw in chosen if any(results[i].nodules for i in draw)]


def _interval(values: NDArray[np.float64]) -> Interval | None:
    """95 % of them; None where there are none, or all are alike."""
    if not values.size or np.ptp(values) == 0:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedCpm:
    """Two detectors on the same scans.

    Attributes:
        cpm, reference: CPM of the one, and of the other that it is compared with.
        interval: of their difference, 95 %; None where resampling cannot tell.
        scans, nodules, patients: how many.
    """

    cpm: float
    reference: float
    interval: Interval | None
    scans: int
    nodules: int
    patients: int

    @property
    def difference(self) -> float:
        """How much more the one finds."""
        return self.cpm - self.reference


def paired_cpm(
    results: Sequence[ScanResult],
    reference: Sequence[ScanResult],
    *,
    rng: np.random.Generator,
    resamples: int = 300,
) -> PairedCpm:
    """The difference of the CPM of two detectors, the same patients drawn for both.

    Raises:
        ValueError: they are not of the same scans with the same nodules, or no scan is complete
            and has a nodule.
    """
    if [(r.scan, r.nodules) for r in results] != [(r.scan, r.nodules) for r in reference]:
        raise ValueError("only results of the same scans can be compared")
    first = [result for result in results if result.complete]
    second = [result for result in reference if result.complete]
    nodules = sum(len(result.nodules) for result in first)
    if nodules == 0:
        raise ValueError("a comparison needs complete scans with nodules")
    differences = [
        np.mean(_sensitivities([first[i] for i in drawn]))
        - np.mean(_sensitivities([second[i] for i in drawn]))
        for drawn in _resampled(first, rng, resamples)
    ]
    return PairedCpm(
        float(np.mean(_sensitivities(first))),
        float(np.mean(_sensitivities(second))),
        _interval(np.array(differences)),
        len(first),
        nodules,
        len({result.whose for result in first}),
    )


def froc_curve(
    results: Sequence[ScanResult],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False marks per scan and sensitivity at every threshold, both rising.

    Args:
        results: of complete scans, among them one with a nodule.
    """
    total = sum(len(result.nodules) for result in results)
    marks = [p for result in results for p in result.predictions]
    probability = np.array([p.probability for p in marks])
    hit = np.array([p.nodule is not None for p in marks], dtype=bool)
    order = np.argsort(-probability, kind="stable")
    # A threshold takes all marks of one probability, or none.
    last = np.append(np.diff(probability[order]) != 0, True)[: len(marks)]
    false, true = np.cumsum(~hit[order])[last], np.cumsum(hit[order])[last]
    return np.append(0.0, false / len(results)), np.append(0.0, true / total)


def _sensitivities(results: Sequence[ScanResult]) -> list[float]:
    false_per_scan, sensitivity = froc_curve(results)
    return [float(sensitivity[false_per_scan <= rate].max()) for rate in RATES]


Group = Callable[[ScanResult, Mark], str | None]
"""Names the group that a nodule of a scan belongs to; None where it is not known."""


def found_by(
    results: Sequence[ScanResult], threshold: float, group: Group
) -> dict[str, tuple[int, int]]:
    """How many nodules of each group were found at a threshold, of how many."""
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for result in results:
        hits = result.hits(threshold)
        for index, nodule in enumerate(result.nodules):
            if (name := group(result, nodule)) is not None:
                total[name] += 1
                found[name] += index in hits
    return {name: (found[name], count) for name, count in total.items()}


def by_size(results: Sequence[ScanResult], threshold: float) -> list[tuple[str, int, int]]:
    """Sizes, mm, with how many nodules were found at a threshold, of how many."""
    counts = found_by(results, threshold, lambda _, nodule: size_of(nodule))
    return [(name, *counts.get(name, (0, 0))) for name in SIZE_NAMES]


def size_of(nodule: Mark) -> str:
    """Name of the size of a nodule."""
    return SIZE_NAMES[int(np.digitize(nodule.diameter_mm, SIZES_MM[1:-1]))]


def _size_name(low: float, high: float) -> str:
    return f"{low:g} to {high:g} mm" if np.isfinite(high) else f"{low:g} mm and more"


SIZE_NAMES = tuple(_size_name(low, high) for low, high in itertools.pairwise(SIZES_MM))


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


def recalibrated(result: ScanResult, calibration: Calibration) -> ScanResult:
    """The same marks, their probabilities taken for scores and calibrated."""

    def rated(marks: tuple[Prediction, ...]) -> tuple[Prediction, ...]:
        scores = np.array([p.probability for p in marks], np.float32)
        ratings = calibrated(scores, calibration)
        return tuple(replace(p, probability=float(q)) for p, q in zip(marks, ratings, strict=True))

    return replace(result, predictions=rated(result.predictions), further=rated(result.further))


def cross_fitted(results: Sequence[ScanResult]) -> list[ScanResult]:
    """Each patient's scores, calibrated on all other patients.

    A calibration that is judged on the marks that it was fitted to looks better than it is.

    Args:
        results: with scores, or with probabilities that one Platt scaling has made of them: the
            outcome is the same.

    Returns:
        One result for each, in the same order; none where a calibration takes the marks of fewer
        than two patients, so that nothing is left to calibrate one of them on.
    """
    rated = {result.whose for result in results if result.complete and result.predictions}
    if len(rated) < 2:
        return []
    patients = {result.whose for result in results}
    fitted = {p: calibrate([r for r in results if r.whose != p]) for p in patients}
    return [recalibrated(result, fitted[result.whose]) for result in results]


def as_rows(results: Sequence[ScanResult]) -> list[dict[str, Any]]:
    """One row per mark and per missed nodule, for a per-case artefact.

    ``outcome`` is ``hit``, ``false``, ``missed``, or ``unknown`` for a mark on a scan of which
    not all nodules are known.
    """
    rows = []
    for result in results:
        found = {p.nodule for p in result.predictions}
        for p in result.predictions:
            nodule = None if p.nodule is None else result.nodules[p.nodule]
            rows.append(_row(result, p, nodule))
        rows += [
            _row(result, None, nodule)
            for index, nodule in enumerate(result.nodules)
            if index not in found
        ]
    return rows


def _row(result: ScanResult, prediction: Prediction | None, nodule: Mark | None) -> dict[str, Any]:
    """A mark, a nodule, or a mark on a nodule."""
    place = prediction or nodule
    if place is None:
        raise ValueError("a row is about a mark or a nodule")
    return {
        "scan": result.scan,
        "center_lps_mm": [round(v, 1) for v in place.center_lps_mm],
        "probability": None if prediction is None else round(prediction.probability, 4),
        "diameter_mm": None if prediction is None else round(prediction.diameter_mm, 1),
        "hit": prediction is not None and nodule is not None,
        "outcome": _outcome(result, prediction, nodule),
        "measured_mm": None if prediction is None else prediction.measured_mm,
        "true_diameter_mm": None if nodule is None else nodule.diameter_mm,
        "attenuation": None if nodule is None else nodule.attenuation,
        "margin": None if nodule is None else nodule.margin,
        "place": None if nodule is None else nodule.place,
        "lobe": None if nodule is None else nodule.lobe,
    }


def _outcome(result: ScanResult, prediction: Prediction | None, nodule: Mark | None) -> str:
    if nodule is not None:
        return "missed" if prediction is None else "hit"
    return "false" if result.complete else "unknown"
