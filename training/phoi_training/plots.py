"""The plots of an evaluation, drawn from its summary; without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from phoi_models.findings import Attenuation

from phoi_training.breakdown import SizeError, rank
from phoi_training.evaluation import RATES, ScanResult, froc_curve

_COLOURS = {"real": "#0b6e99", "planted": "#d9730d", "transplanted": "#5b8c3e"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "svg.hashsalt": "phoi",  # the same report twice is the same file
}
_FIRST_RATE = 0.0625


def drawn(figure: Figure) -> dict[str, bytes]:
    """A figure as ``png`` and ``svg``."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        file = io.BytesIO()
        with mpl.rc_context(_STYLE):
            figure.savefig(file, format=kind, dpi=150, metadata=metadata, bbox_inches="tight")
        files[kind] = file.getvalue()
    return files


def froc_plot(
    sets: Mapping[str, Sequence[ScanResult]], figures: Mapping[str, Any]
) -> Figure | None:
    """Sensitivity against false marks per scan, with 95 % intervals at LUNA16's rates.

    Args:
        sets: results by what was to be found.
        figures: :func:`phoi_training.report.summary` of them.

    Returns:
        The plot; None if no scan has all its nodules known.
    """
    shown = [name for name in sets if figures[name]["froc"]]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.subplots()
        for name in shown:
            curve = figures[name]["froc"]
            counted = [result for result in sets[name] if result.complete]
            false_per_scan, sensitivity = froc_curve(counted)
            low, high = _band(curve)
            axes.fill_between(RATES, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
            axes.step(
                [*np.maximum(false_per_scan, _FIRST_RATE / 2), 2 * RATES[-1]],
                [*sensitivity, sensitivity[-1]],
                where="post",
                color=_COLOURS[name],
                label=f"{name}: CPM {curve['cpm']:.3f}, {curve['nodules']} nodules"
                f" in {curve['scans']} scans",
            )
            axes.plot(RATES, curve["sensitivities"], "o", markersize=4, color=_COLOURS[name])
        axes.set_xscale("log", base=2)
        axes.set_xlim(_FIRST_RATE, RATES[-1] * 1.4)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_locator(FixedLocator(list(RATES)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.set_xlabel("false marks per scan")
        axes.set_ylabel("sensitivity")
        axes.grid(visible=True)
        axes.legend(loc="lower right", frameon=False)
    return figure


def _band(curve: Mapping[str, Any]) -> list[list[float]]:
    """Lower and upper bound at each rate; the sensitivity itself where there is no interval."""
    values = zip(curve["intervals"], curve["sensitivities"], strict=True)
    bounds = [interval or (value, value) for interval, value in values]
    return [[low for low, _ in bounds], [high for _, high in bounds]]


def calibration_plot(figures: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """Share of marks that are nodules against their probability; None without any mark."""
    shown = [name for name in names if figures[name]["calibration"]]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 3.8))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        for name in shown:
            bins = figures[name]["calibration"]
            axes.errorbar(
                [row["predicted"] for row in bins],
                [row["value"] for row in bins],
                yerr=_reach(bins),
                fmt="o-",
                markersize=4,
                linewidth=1,
                capsize=2,
                color=_COLOURS[name],
                label=f"{name}: calibration error {figures[name]['calibration_error']:.3f}",
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("probability of the marks")
        axes.set_ylabel("share that are nodules")
        axes.grid(visible=True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def groups_plot(figures: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """Sensitivity by group with 95 % intervals, real and planted side by side."""
    rows = _group_rows(figures, names)
    if not rows:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.6 + 0.26 * len(rows)))
        axes = figure.subplots()
        for number, name in enumerate(names):
            points = [(y, shares[name]) for y, (_, shares) in enumerate(rows) if name in shares]
            if not points:
                continue
            found = [share for _, share in points]
            axes.errorbar(
                [share["value"] for share in found],
                [y + 0.18 * (number - (len(names) - 1) / 2) for y, _ in points],
                xerr=_reach(found),
                fmt="o",
                markersize=4,
                linewidth=1.2,
                color=_COLOURS[name],
                label=name,
            )
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        for tick, (_, shares) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("normal" if shares else "bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("sensitivity at the operating point")
        axes.grid(visible=True, axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names), frameon=False)
    return figure


def sizes_plot(groups: Sequence[SizeError]) -> Figure | None:
    """Error of the mean diameter against the truth, with bias and limits; None without any.

    Args:
        groups: all nodules first, as of :func:`phoi_training.breakdown.size_errors`.
    """
    if not groups:
        return None
    every = groups[0].agreement
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.2))
        axes = figure.subplots()
        for level, style in ((every.bias, "-"), (every.lower, "--"), (every.upper, "--")):
            axes.axhline(level, color="#888888", linestyle=style, linewidth=1)
            axes.annotate(f"{level:+.1f}", (1.01, level), xycoords=("axes fraction", "data"))
        kinds = [group for group in groups if group.name in set(Attenuation)]
        for group, marker in zip(kinds, "os^", strict=False):
            axes.plot(
                group.true_mm, group.errors_mm, marker, markersize=4, alpha=0.8, label=group.name
            )
        axes.set_xlabel("true mean diameter, mm")
        axes.set_ylabel("measured minus true, mm")
        axes.grid(visible=True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _group_rows(
    figures: Mapping[str, Any], names: Sequence[str]
) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Label and shares by set, top to bottom; a title has no shares."""
    rows: list[tuple[str, dict[str, dict[str, Any]]]] = []
    titles = {title for name in names for title in figures[name]["sensitivity_by"]}
    for title in sorted(titles, key=rank):
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for name in names:
            for share in figures[name]["sensitivity_by"].get(title, []):
                groups.setdefault(share["name"], {})[name] = share
        rows.append((title, {}))
        rows += sorted(groups.items(), key=lambda group: rank(group[0]))
    return rows


def _reach(shares: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far each interval reaches to both sides of its value."""
    low = [max(0.0, share["value"] - share["interval"][0]) for share in shares]
    high = [max(0.0, share["interval"][1] - share["value"]) for share in shares]
    return [low, high]
