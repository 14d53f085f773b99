"""The model card of a bundle, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from phoi_models.bundle import DetectorParameters

from phoi_training.breakdown import breakdown, calibration_error, reliability
from phoi_training.cutouts import Cutout
from phoi_training.evaluation import RATES, ScanResult, by_size, froc

_HASH_DIGITS = 16


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
    """

    trained_on: Mapping[str, str]
    held_out: Mapping[str, str]
    folds: Sequence[Sequence[str]]
    sources: Sequence[str]
    phantoms: int
    data_sha256: str
    seed: int
    started_from: str | None


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
        validation: on patients held out, at calibrated probabilities.
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
            *froc_lines(validation),
            "",
            *_calibration_lines(validation),
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

_LIMITS = (
    "## Limits",
    "",
    "- Few real nodules were trained on; most were planted.",
    "- Ground glass below 6 mm, nodules below 4 mm, hilar masses and nodules inside a consolidation"
    " are likely to be missed.",
    "- Branching vessels, scars and pleural plaques cause most false marks. Diffuse disease was"
    " planted, not real.",
    "- Slices thicker than 5 mm, children, and lungs after surgery were not tried.",
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
            " together: its scores spread less, and none of these patients is new to all of them.",
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
    return [*lines, "", f"Expected calibration error {error:.3f}.", ""]


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
    if provenance.started_from is not None:
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


def froc_lines(results: Sequence[ScanResult]) -> list[str]:
    """Sensitivity at the LUNA16 rates and the CPM, or why there is none."""
    if not any(result.complete and result.nodules for result in results):
        return ["No scan here has all its nodules known, so there is no FROC."]
    curve = froc(results, rng=np.random.default_rng(0))
    low, high = curve.interval
    rates = " | ".join(f"{rate:g}" for rate in RATES)
    values = " | ".join(f"{value:.2f}" for value in curve.sensitivities)
    return [
        f"| false marks per scan | {rates} |",
        "|---" * (len(RATES) + 1) + "|",
        f"| sensitivity | {values} |",
        "",
        f"CPM {curve.cpm:.3f} (95 % interval {low:.3f} to {high:.3f}; {curve.nodules} nodules in"
        f" {curve.scans} scans).",
    ]
