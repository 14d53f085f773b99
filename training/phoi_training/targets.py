"""What the detector was to reach, what it reached, and on how many cases that rests.

A target is met when the figure is on the right side of it. Where the 95 % interval reaches to the
other side the verdict says so: the cases cannot tell. Targets that count given cases, as so many of
the crops, are met by the count; their interval tells what it says of other cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from phoi_models.bundle import CPM_TOLERANCE
from phoi_models.findings import Attenuation

from phoi_training.breakdown import (
    LEAST_RATED,
    Share,
    calibration_error,
    overall,
    reliability,
)
from phoi_training.card import counts, scan_table
from phoi_training.evaluation import (
    Froc,
    Interval,
    PairedCpm,
    ScanResult,
    froc,
    has_froc,
    paired_cpm,
)
from phoi_training.measurement import Measured, agreement, between

CPM_FROM_MM, CPM_LEAST = 5.0, 0.87
SENSITIVITY_FROM_MM, SENSITIVITY_LEAST, SENSITIVITY_RATE = 6.0, 0.95, 4.0
CROP_READERS, CROPS_LEAST = 3, 5
QUIET_MOST = 2.0
PHANTOM_MOST = 1.0
SIZES_MM, BIAS_MM, LIMIT_MM = (5.0, 15.0), 0.3, 1.5


@dataclass(frozen=True)
class CropResult:
    """How a cut-out nodule was looked at.

    Attributes:
        result: of the crop, with the one nodule.
        readers, diameter_mm, texture: as its readers said.
    """

    result: ScanResult
    readers: int
    diameter_mm: float
    texture: float

    @property
    def probability(self) -> float:
        """Of the mark on the nodule; 0 without one."""
        return max((p.probability for p in self.result.predictions if p.nodule == 0), default=0.0)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the targets are judged by.

    "Unseen" is what none of the networks was trained on.

    Attributes:
        threshold: default operating point of the model.
        one_nodule: by network, and last of all networks together, the scan of one known nodule.
        unseen: the model on real chests and phantoms without nodules, as they are.
        phantoms: of these, the phantoms.
        planted: the model on planted copies of the unseen chests.
        planted_int8: the same by the 8-bit networks; empty if there are none.
        alone: each training chest, as the one network saw it that was not trained on it.
        alone_planted: the same on planted copies.
        tumours, quiet: names of training chests with one outlined tumour, and without nodules.
        crops: real nodules, cut out.
        transplanted: the model on unseen chests with nodules of the crops.
        sizes: planted nodules in unseen chests, measured.
        unknown: by unseen chest, places of which nobody knows whether they are nodules.
    """

    threshold: float
    one_nodule: Mapping[str, ScanResult]
    unseen: Sequence[ScanResult]
    phantoms: Sequence[ScanResult]
    planted: Sequence[ScanResult]
    planted_int8: Sequence[ScanResult]
    alone: Sequence[ScanResult]
    alone_planted: Sequence[ScanResult]
    tumours: Sequence[str]
    quiet: Sequence[str]
    crops: Sequence[CropResult]
    transplanted: Sequence[ScanResult]
    sizes: Sequence[Measured]
    unknown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One target.

    Attributes:
        target: what was asked; of what nothing was asked, what is measured.
        reached: the figure.
        interval: of the figure, 95 %, in words.
        cases: on how much it rests.
        met: None where nothing was asked.
        sure: the interval lies on one side of the target.
    """

    target: str
    reached: str
    interval: str
    cases: str
    met: bool | None = None
    sure: bool = True

    @property
    def verdict(self) -> str:
        """In words."""
        if self.met is None:
            return "no target"
        doubt = "" if self.sure else "; the interval reaches to the other side"
        return ("met" if self.met else "not met") + doubt


def judged(evidence: Evidence) -> list[Row]:
    """One row for each target of which there is evidence."""
    return [
        *_planted_rows("the model, unseen anatomy", evidence.planted),
        *_planted_rows("single networks, patients held out", evidence.alone_planted),
        *_one_nodule_rows(evidence),
        *_crop_rows(evidence),
        *_tumour_rows(evidence),
        *_quiet_rows(evidence),
        *_size_rows(evidence.sizes),
        *_form_rows(evidence),
        *_transplanted_rows(evidence),
        *_calibration_rows(evidence),
    ]


def _planted_rows(who: str, results: Sequence[ScanResult]) -> list[Row]:
    """CPM, and sensitivity at four false marks per scan, of nodules of a least diameter."""
    rows = []
    if has_froc(results, CPM_FROM_MM):
        curve = _froc(results, CPM_FROM_MM)
        name = f"planted, {CPM_FROM_MM:g} mm and more, {who}: CPM"
        rows.append(_at_least(name, curve.cpm, CPM_LEAST, curve.interval, curve))
    if has_froc(results, SENSITIVITY_FROM_MM):
        curve = _froc(results, SENSITIVITY_FROM_MM)
        value, interval = curve.at(SENSITIVITY_RATE)
        name = (
            f"planted, {SENSITIVITY_FROM_MM:g} mm and more, {who}: sensitivity at"
            f" {SENSITIVITY_RATE:g} false marks per scan"
        )
        rows.append(_at_least(name, value, SENSITIVITY_LEAST, interval, curve))
    return rows


def _froc(results: Sequence[ScanResult], least_mm: float) -> Froc:
    return froc(results, rng=np.random.default_rng(0), resamples=1000, least_mm=least_mm)


def _at_least(name: str, value: float, least: float, interval: Interval | None, on: Froc) -> Row:
    sure = interval is not None and not interval[0] < least <= interval[1]
    told = _told(interval)
    return Row(f"{name} at least {least:g}", f"{value:.3f}", told, counts(on), value >= least, sure)


def _told(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "too few cases"
    return f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _one_nodule_rows(evidence: Evidence) -> list[Row]:
    """Found by each network alone, and by all together, with at most one false mark above it."""
    if not evidence.one_nodule:
        return []
    found = {name: _found_before(result) for name, result in evidence.one_nodule.items()}
    *single, together = found
    (scan,) = {result.scan for result in evidence.one_nodule.values()}
    share = sum(found[name] for name in single)
    rows = [
        Row(
            f"{scan}'s nodule at no more than 1 false mark, every network alone",
            f"{share} of {len(single)}",
            "-",
            f"1 nodule, {_number(len(single), 'network')}",
            share == len(single),
        )
    ]
    result = evidence.one_nodule[together]
    mark = max((p.probability for p in result.predictions if p.nodule is not None), default=0.0)
    reached = "found" if found[together] else "not found"
    false = result.false_marks(evidence.threshold)
    told = f"{reached}, p {mark:.2f}; {false} false at the default operating point"
    name = f"{scan}'s nodule at no more than 1 false mark, the model"
    return [*rows, Row(name, told, "-", "1 nodule", found[together])]


def _found_before(result: ScanResult) -> bool:
    """At most one false mark is as probable as the least probable of the marks on all nodules."""
    hits = [p.probability for p in result.predictions if p.nodule is not None]
    return len(hits) == len(result.nodules) > 0 and result.false_marks(min(hits)) <= 1


def _crop_rows(evidence: Evidence) -> list[Row]:
    rows = []
    for name, chosen, asked in (
        (
            f"crops that {CROP_READERS} readers or more marked: at least {CROPS_LEAST} of 7",
            [crop for crop in evidence.crops if crop.readers >= CROP_READERS],
            CROPS_LEAST,
        ),
        (
            "crops that fewer marked",
            [crop for crop in evidence.crops if crop.readers < CROP_READERS],
            None,
        ),
    ):
        found = sum(crop.probability >= evidence.threshold for crop in chosen)
        if chosen:
            patients = len({crop.result.whose for crop in chosen})
            cases = f"{_number(len(chosen), 'nodule')} of {_number(patients, 'patient')}"
            met = None if asked is None else found >= asked
            rows.append(_share_row(name, Share("", found, len(chosen)), cases, met=met))
    return rows


def _share_row(name: str, share: Share, cases: str, *, met: bool | None) -> Row:
    low, high = share.interval
    return Row(name, f"{share.found} of {share.total}", f"{low:.2f} to {high:.2f}", cases, met)


def _tumour_rows(evidence: Evidence) -> list[Row]:
    """Exactly one mark on each, at the default operating point."""
    chosen = [result for result in evidence.alone if result.scan in evidence.tumours]
    if not chosen:
        return []
    once = sum(result.marks_on(0, evidence.threshold) == 1 for result in chosen)
    share = Share("", once, len(chosen))
    name = "outlined tumours of patients held out: each as exactly one mark"
    return [_share_row(name, share, _number(len(chosen), "patient"), met=once == len(chosen))]


def _quiet_rows(evidence: Evidence) -> list[Row]:
    rows = []
    quiet = [result for result in evidence.alone if result.scan in evidence.quiet]
    if quiet:
        marks = [result.false_marks(evidence.threshold) for result in quiet]
        told = ", ".join(f"{r.scan} {n}" for r, n in zip(quiet, marks, strict=True))
        middle = float(np.median(marks))
        name = f"scans without nodules, patients held out: median of at most {QUIET_MOST:g} marks"
        cases = _number(len(quiet), "scan")
        rows.append(Row(name, f"{middle:g} ({told})", "-", cases, middle <= QUIET_MOST))
    if evidence.phantoms:
        marks = [result.false_marks(evidence.threshold) for result in evidence.phantoms]
        mean, share = np.mean(marks), np.mean([n <= PHANTOM_MOST for n in marks])
        rows.append(
            Row(
                f"phantoms without nodules, unseen: at most {PHANTOM_MOST:g} mark each",
                f"mean {mean:.2f}, {share:.0%} with at most {PHANTOM_MOST:g}, most {max(marks)}",
                "-",
                _number(len(marks), "phantom"),
                max(marks) <= PHANTOM_MOST,
            )
        )
    return rows


def _size_rows(sizes: Sequence[Measured]) -> list[Row]:
    solid = [m for m in between(sizes, *SIZES_MM) if m.attenuation is Attenuation.SOLID]
    if len(solid) <= 1:
        return []
    found = agreement([nodule.error_mm for nodule in solid])
    hosts = len({nodule.host for nodule in solid})
    cases = f"{found.count} nodules in {_number(hosts, 'scan')}"
    kind = f"mean diameter, planted solid nodules of {SIZES_MM[0]:g} to {SIZES_MM[1]:g} mm"
    within = bool(max(-found.lower, found.upper) <= LIMIT_MM)
    limits = f"{found.lower:+.2f} to {found.upper:+.2f} mm"
    error = found.spread / math.sqrt(found.count)
    told = f"{found.bias - error:+.2f} to {found.bias + error:+.2f} mm"
    sure = bool(abs(abs(found.bias) - BIAS_MM) > error)
    bias = bool(abs(found.bias) <= BIAS_MM)
    return [
        Row(f"{kind}: bias within {BIAS_MM} mm", f"{found.bias:+.2f} mm", told, cases, bias, sure),
        Row(f"{kind}: 95 % limits within {LIMIT_MM} mm", limits, "-", cases, within),
    ]


def _form_rows(evidence: Evidence) -> list[Row]:
    """8-bit integers lose at most the tolerance, on the same scans."""
    if not evidence.planted_int8 or not has_froc(evidence.planted):
        return []
    rng = np.random.default_rng(0)
    found = paired_cpm(evidence.planted_int8, evidence.planted, rng=rng, resamples=1000)
    told = f"{found.difference:+.3f} ({found.cpm:.3f} against {found.reference:.3f})"
    name = f"CPM in 8-bit integers against float32, unseen anatomy: at most {CPM_TOLERANCE} less"
    met = found.difference >= -CPM_TOLERANCE
    return [Row(name, told, _told(found.interval, "+"), counts(found), met, _one_sided(found))]


def _one_sided(found: PairedCpm) -> bool:
    if found.interval is None:
        return found.difference == 0
    low, high = found.interval
    return not low < -CPM_TOLERANCE <= high


def _transplanted_rows(evidence: Evidence) -> list[Row]:
    share = overall(evidence.transplanted, evidence.threshold)
    if share is None:
        return []
    cases = f"{share.total} nodules in {len(evidence.transplanted)} scans, several times each"
    name = "nodules of the crops transplanted into unseen chests: found at the default point"
    return [_share_row(name, share, cases, met=None)]


def _calibration_rows(evidence: Evidence) -> list[Row]:
    rows = reliability([*evidence.unseen, *evidence.planted], LEAST_RATED)
    error = calibration_error(rows)
    if error is None:
        return []
    marks = sum(row.hits.total for row in rows)
    name = f"calibration error of marks of at least {LEAST_RATED:g}, the model, unseen anatomy"
    return [Row(name, f"{error:.3f}", "-", f"{marks} marks, mostly on planted copies")]


def target_lines(evidence: Evidence, pictures: Mapping[str, str] | None = None) -> list[str]:
    """The part of the model card, Markdown: targets, real scans, crops one by one.

    Args:
        evidence: what was measured.
        pictures: file names beside the card, each with what it shows.
    """
    lines = [
        "| target | reached | 95 % interval | cases | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| {row.target} | {row.reached} | {row.interval} | {row.cases} | {row.verdict} |"
            for row in judged(evidence)
        ),
        "",
        f"At the default operating point, probability {evidence.threshold:.2f}, unless a rate is"
        " named. Marks on what nobody knows count neither way. Planted nodules come from the"
        " generator that training used. Shares have Wilson's interval, as if all nodules were"
        " independent; the rest is bootstrapped over patients.",
        "",
        *_scan_lines(evidence),
        *_crop_lines(evidence),
    ]
    for file, shown in (pictures or {}).items():
        lines += [f"![{shown.partition(',')[0]}]({file})", "", shown, ""]
    return lines


def _scan_lines(evidence: Evidence) -> list[str]:
    """Every unseen chest and every training chest as it is, and what was marked there."""
    lines = []
    for title, results in (
        ("The model on chests that none of its networks saw, as they are:", evidence.unseen),
        ("Each network alone on the patients held out from it:", evidence.alone),
    ):
        if results:
            lines += [title, "", *scan_table(results, evidence.threshold), ""]
    if told := ", ".join(f"{name} {n}" for name, n in evidence.unknown.items() if n):
        lines += [f"Places of which nobody knows, and which count neither way: {told}.", ""]
    return lines


def _crop_lines(evidence: Evidence) -> list[str]:
    if not evidence.crops:
        return []
    lines = ["| crop | outlines | diameter, mm | texture (5 is solid) | p | found |"]
    lines.append("|---|---|---|---|---|---|")
    for crop in evidence.crops:
        found = "yes" if crop.probability >= evidence.threshold else "no"
        lines.append(
            f"| {crop.result.scan} | {crop.readers} | {crop.diameter_mm:.1f} | {crop.texture:g} |"
            f" {crop.probability:.2f} | {found} |"
        )
    return [*lines, ""]


def as_json(evidence: Evidence) -> dict[str, Any]:
    """The rows, with their verdicts, for a file."""
    rows = [{**asdict(row), "verdict": row.verdict} for row in judged(evidence)]
    return {"threshold": evidence.threshold, "targets": rows}
