"""The nodules of a result as a table in a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from phoi_edge_node.result import Nodule

ABOUT_SIZE_CLASSES = (
    "Size classes are provisional: by size and attenuation alone, as if this were a first CT"
    " (baseline screening)."
)


def nodule_table(nodules: Sequence[Nodule], title: str | None = None) -> Table:
    """One row per nodule. Nothing is cut: where the terminal is narrow, the centre is wrapped."""
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("No.", no_wrap=True)
    table.add_column("Side", no_wrap=True)
    table.add_column("Centre LPS\nmm", overflow="fold")
    table.add_column("Diameter\nmm", no_wrap=True, justify="right")
    table.add_column("Volume\nmm3", no_wrap=True, justify="right")
    table.add_column("Attenuation", no_wrap=True)
    table.add_column("Nodule\nprobability", no_wrap=True)
    table.add_column("Size class\n(provisional)", no_wrap=True)
    for nodule in nodules:
        finding = nodule.finding
        table.add_row(
            str(nodule.number),
            finding.side.value,
            ", ".join(f"{mm:.0f}" for mm in finding.center_lps_mm),
            f"{finding.mean_diameter_mm:.1f}",
            f"{finding.volume_mm3:.0f}",
            finding.attenuation.value.replace("_", "-"),
            f"{finding.probability:.2f}",
            _size_class(nodule),
        )
    return table


def _size_class(nodule: Nodule) -> str:
    """Both schemes; Fleischner has no size class of a subsolid nodule."""
    grade = nodule.size_class
    lines = [f"Lung-RADS {grade.lung_rads}"]
    if grade.fleischner is not None:
        lines.append(f"Fleischner {grade.fleischner}")
    return "\n".join(lines)
