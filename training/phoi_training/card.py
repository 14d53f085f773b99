"""The model card of a bundle, in Markdown.

Parts of it are known only after the bundle is there: how the 8-bit networks compare, and how the
model does on anatomy that none of its networks saw. Each has its place between two comments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from phoi_models.bundle import DetectorParameters
from phoi_models.errors import PhoiError

from phoi_training.breakdown import (
    LEAST_RATED,
    Reliability,
    breakdown,
    calibration_error,
    reliability,
)
from phoi_training.cutouts import Cutout
from phoi_training.evaluation import (
    RATES,
    Froc,
    Interval,
    PairedCpm,
    ScanResult,
    by_size,
    cross_fitted,
    froc,
    has_froc,
)

MODEL_CARD = "docs/README.md"
_HASH_DIGITS = 16


class Part(StrEnum):
    """What is written into a card when the bundle is there already."""

    NOTES = "notes"
    INT8 = "int8"
    TARGETS = "targets"


def with_part(card: str, part: Part, lines: Sequence[str]) -> str:
    """A card with one of its later parts, in place of what stood there.

    Args:
        card: Markdown.
        part: which.
        lines: Markdown.

    Raises:
        PhoiError: the card has no place for it.
    """
    if not has_place(card, part):
        raise PhoiError(f"the model card has no place for {part}: it lacks {_opening(part)}")
    before, start, rest = card.partition(_opening(part))
    _, end, after = rest.partition(_closing(part))
    return "\n".join([before + start, *lines, end + after])


def has_place(card: str, part: Part) -> bool:
    """Whether a card can take one of its later parts; those of other people's models cannot."""
    return _opening(part) in card and _closing(part) in card


def _place(part: Part, *lines: str) -> list[str]:
    return [_opening(part), *lines, _closing(part), ""]


def _opening(part: Part) -> str:
    return f"<!-- {part} -->"


def _closing(part: Part) -> str:
    return f"<!-- end of {part} -->"


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from.

    Attributes:
        trained_on, held_out: names of chests, each with the SHA-256 of its volume.
        folds: names of the chests that each network did not see; empty for a single network.
        sources: collections that the chests come from, with their licences; as the data set says.
        phantoms: number of procedural chests among the training backgrounds.
        data_sha256: of all voxels and marks.
        seed: of everything random.
        started_from: file name of the weights that training began with.
        of_earlier_run: these are networks of an earlier run, each of which never saw the patients
            that it is validated on.
    """

    trained_on: Mapping[str, str]
    held_out: Mapping[str, str]
    folds: Sequence[Sequence[str]]
    sources: Sequence[str]
    phantoms: int
    data_sha256: str
    seed: int
    started_from: str | None
    of_earlier_run: bool = False


def model_card(
    parameters: DetectorParameters,
    provenance: Provenance,
    validation: Sequence[ScanResult],
    failures: Sequence[Cutout] = (),
) -> str:
    """What a person must know before trusting the model.

    Args:
        parameters: of the model.
        provenance: where it comes from.
        validation: on patients held out, at calibrated probabilities. Intervals are bootstrapped
            over their patients.
        failures: what ``failures.png`` beside the card shows, row by row, at a raw score of 0.5.
    """
    threshold = parameters.operating_points["default"].probability
    return "\n".join(
        [
            f"# {parameters.name} {parameters.version}",
            "",
            *_INTENDED_USE,
            "## What it was trained on",
            "",
            *_training_lines(provenance),
            "",
            *_place(Part.NOTES),
            "## Data and licences",
            "",
            *_source_lines(provenance),
            "",
            "Training cases by hash, `name: SHA-256` of voxels and geometry, first 16 digits:",
            "",
            *_hash_lines(provenance.trained_on),
            "",
            *_held_out_lines(provenance.held_out),
            "## Validation, on anatomy held out from training",
            "",
            *_validation_lines(provenance),
            f"Default operating point: probability {threshold:.2f}.",
            "",
            *scan_table(validation, threshold),
            "",
            *size_table(validation, threshold),
            "",
            *group_lines(validation, threshold),
            *froc_lines(validation, LEAST_MM),
            "",
            *_calibration_lines(validation),
            *_place(Part.INT8, "The networks are in float32 only."),
            "## On anatomy that none of its networks saw",
            "",
            *_place(Part.TARGETS, "Not tried yet."),
            *_failure_lines(failures),
            *_LIMITS,
        ]
    )


_INTENDED_USE = (
    "For research and evaluation: **not a cleared medical device**.",
    "",
    "## Intended use",
    "",
    "Finds suspected lung nodules and masses of 4 to 45 mm in chest CT of adults, so that studies"
    " can be put in order and no mark is overlooked. It marks; a radiologist looks at every study"
    " and decides. Its probability is that of a mark being a nodule, not of cancer. No finding does"
    " not mean a healthy lung: it looks for nothing else.",
    "",
)

LEAST_MM = (5.0, 6.0)
"""The FROC is told of all nodules, and of those of at least so many mm."""

_LIMITS = (
    "## Limits",
    "",
    "- Few real nodules were trained on; most were planted.",
    "- Ground glass below 6 mm, nodules below 4 mm, hilar masses and nodules inside a consolidation"
    " are likely to be missed.",
    "- Branching vessels, scars and pleural plaques cause most false marks. Diffuse disease was"
    " planted, not real.",
    "- Slices thicker than 5 mm, children, and lungs after surgery were not tried.",
    "- No score of malignancy is given: the readers' ratings at hand (13 nodules of three patients)"
    " are too few to validate one. Size classes are by size and attenuation alone: benign"
    " calcification and the juxtapleural rule of Lung-RADS are not applied.",
    "",
)


def _validation_lines(provenance: Provenance) -> list[str]:
    lines = [
        "Thresholds and calibration were set on these same scans, so the figures flatter. Planted"
        " nodules come from the generator that training used, so their figures flatter too: judge"
        " by real nodules.",
        "",
    ]
    if provenance.folds:
        lines += [
            "Each scan was seen by the one network that had not been trained on its patient, and"
            " thresholds and calibration are those of single networks. The model is all of them"
            " together: its scores spread less, and none of these patients is new to all of them."
            " What it does as a whole stands below, on anatomy that none of its networks saw.",
            "",
        ]
    return lines


def _calibration_lines(results: Sequence[ScanResult]) -> list[str]:
    rows = reliability(results)
    error = calibration_error(rows)
    if error is None:
        return []
    lines = ["| probability | mean | share of nodules | marks |", "|---|---|---|---|"]
    lines += [
        f"| {row.hits.name} | {row.predicted:.2f} | {row.hits.value:.2f} | {row.hits.total} |"
        for row in rows
    ]
    fitted = reliability(cross_fitted(results), LEAST_RATED)
    return [
        *lines,
        "",
        f"Expected calibration error of all marks {error:.3f}, most of which have almost no"
        f" probability. Of marks of at least {LEAST_RATED:g}:"
        f" {_error(reliability(results, LEAST_RATED))};"
        f" with each patient's marks calibrated on the other patients: {_error(fitted)}. It holds"
        " for scans with as many nodules as these, planted ones among them; where nodules are"
        " rarer, fewer marks are nodules than their probabilities say.",
        "",
    ]


def _error(rows: Sequence[Reliability]) -> str:
    error, marks = calibration_error(rows), sum(row.hits.total for row in rows)
    return "not known" if error is None else f"{error:.3f} ({marks} marks)"


def int8_lines(measured: PairedCpm) -> list[str]:
    """How the 8-bit networks compare with those in float32, Markdown."""
    return [
        f"Networks in 8-bit integers: CPM {measured.cpm:.3f}, in float32 {measured.reference:.3f};"
        f" difference {measured.difference:+.3f} ({interval_text(measured.interval, sign='+')};"
        f" {counts(measured)}, the same for both). Training has seen most of these patients, so"
        " only the difference tells anything.",
    ]


def interval_text(interval: Interval | None, sign: str = "") -> str:
    """A 95 % interval in words; says so where there is none."""
    if interval is None:
        return "too few cases for an interval"
    low, high = interval
    return f"95 % interval {low:{sign}.3f} to {high:{sign}.3f}"


def counts(measured: Froc | PairedCpm) -> str:
    """On how much a figure rests."""
    patients = f"{measured.patients} patient{'' if measured.patients == 1 else 's'}"
    return f"{measured.nodules} nodules in {measured.scans} scans of {patients}"


def _failure_lines(failures: Sequence[Cutout]) -> list[str]:
    if not failures:
        return []
    lines = ["## Failures", "", "![Missed nodules and false marks](failures.png)", ""]
    lines += ["At a score of 0.5, before calibration. Row by row:", ""]
    for number, failure in enumerate(failures, 1):
        lines.append(f"{number}. {failure.kind}: {failure.scan}, {failure.caption}")
    return [*lines, ""]


def _training_lines(provenance: Provenance) -> list[str]:
    lines = [
        f"- CT backgrounds with planted and marked nodules: {', '.join(provenance.trained_on)}",
        f"- procedural phantoms: {provenance.phantoms}",
        *_fold_lines(provenance),
        f"- SHA-256 of the data: `{provenance.data_sha256}`, seed {provenance.seed}",
    ]
    if provenance.of_earlier_run:
        lines.append(
            f"- each goes on from its network of an earlier run, `{provenance.started_from}`, which"
            " never saw the patients that it is validated on either"
        )
    elif provenance.started_from is not None:
        lines.append(
            f"- fine-tuned from `{provenance.started_from}`, which may have been trained on what is"
            " held out here"
        )
    return lines


def _fold_lines(provenance: Provenance) -> list[str]:
    if not provenance.folds:
        return [f"- held out: {', '.join(provenance.held_out) or 'none but phantoms'}"]
    lines = [
        f"- {len(provenance.folds)} networks, each trained without its share of the patients and"
        " validated on them; the first finds the marks, the others look again at them:"
    ]
    return lines + [
        f"  - network {number} did not see {', '.join(names)}"
        for number, names in enumerate(provenance.folds, 1)
    ]


def _source_lines(provenance: Provenance) -> list[str]:
    if not provenance.sources:
        return ["The data set names no collection and no licence."]
    return [f"- {source}" for source in provenance.sources]


def _hash_lines(digests: Mapping[str, str]) -> list[str]:
    return [f"- `{name}: {digest[:_HASH_DIGITS]}`" for name, digest in digests.items()]


def _held_out_lines(digests: Mapping[str, str]) -> list[str]:
    return ["Held out:", "", *_hash_lines(digests), ""] if digests else []


def scan_table(results: Sequence[ScanResult], threshold: float) -> list[str]:
    """One row per scan, at a threshold."""
    rows = ["| scan | nodules | found | other marks |", "|---|---|---|---|"]
    for result in results:
        other = str(result.false_marks(threshold))
        if not result.complete:
            other += " (not all nodules of this scan are known)"
        rows.append(
            f"| {result.scan} | {len(result.nodules)} | {result.found(threshold)} | {other} |"
        )
    return rows


def size_table(results: Sequence[ScanResult], threshold: float) -> list[str]:
    """Found nodules by size, at a threshold."""
    rows = ["| mean diameter | found | of |", "|---|---|---|"]
    sizes = by_size(results, threshold)
    return rows + [f"| {name} | {found} | {total} |" for name, found, total in sizes]


def group_lines(results: Sequence[ScanResult], threshold: float) -> list[str]:
    """Found nodules by attenuation, margin, place and slice spacing, at a threshold."""
    lines = []
    for title, groups in breakdown(results, threshold).items():
        if title == "size":
            continue
        lines += [f"| {title} | found | of | 95 % interval |", "|---|---|---|---|"]
        for group in groups:
            low, high = group.interval
            interval = f"{low:.2f} to {high:.2f}"
            lines.append(f"| {group.name} | {group.found} | {group.total} | {interval} |")
        lines.append("")
    return lines


def froc_lines(results: Sequence[ScanResult], least_mm: Sequence[float] = ()) -> list[str]:
    """Sensitivity at the LUNA16 rates and the CPM, or why there is none.

    Args:
        results: scans.
        least_mm: also of the nodules of at least these diameters, mm.
    """
    if not has_froc(results):
        return ["No scan here has all its nodules known, so there is no FROC."]
    sizes = [0.0, *(size for size in least_mm if has_froc(results, size))]
    curves = [froc(results, rng=np.random.default_rng(0), least_mm=size) for size in sizes]
    rates = " | ".join(f"{rate:g}" for rate in RATES)
    lines = [f"| false marks per scan | {rates} |", "|---" * (len(RATES) + 1) + "|"]
    for curve in curves:
        values = " | ".join(f"{value:.2f}" for value in curve.sensitivities)
        lines.append(f"| sensitivity, {_of_size(curve)} | {values} |")
    lines += [
        "",
        "Smaller nodules count neither way. Intervals are bootstrapped over patients.",
        "",
    ]
    return lines + [_froc_line(curve) for curve in curves]


def _of_size(curve: Froc) -> str:
    return f"{curve.least_mm:g} mm and more" if curve.least_mm else "all sizes"


def _froc_line(curve: Froc) -> str:
    at_4, interval = curve.at(4.0)
    return (
        f"- {_of_size(curve)}: CPM {curve.cpm:.3f} ({interval_text(curve.interval)}), sensitivity"
        f" at 4 false marks per scan {at_4:.3f} ({interval_text(interval)}); {counts(curve)}."
    )
