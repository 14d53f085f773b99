"""The table of `phoi analyze`: everything in it can be read in a narrow terminal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from phoi_edge_node.cli.nodule_table import nodule_table
from phoi_edge_node.result import Nodule
from phoi_models.findings import Attenuation, Side
from phoi_models.size_class import size_class
from rich.console import Console
from support.cases import nodule


def part_solid(number: int) -> Nodule:
    """One whose every word and number is as long as they come."""
    finding = replace(
        nodule(number, Side.RIGHT).finding,
        center_lps_mm=(-156.4, -186.2, -1116.0),
        attenuation=Attenuation.PART_SOLID,
        volume_mm3=115_781.0,
        mean_diameter_mm=60.5,
    )
    return replace(nodule(number), finding=finding, size_class=size_class(finding))


def printed(width: int, *nodules: Nodule) -> list[str]:
    shown = StringIO()
    Console(width=width, file=shown).print(nodule_table(nodules))
    return shown.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_cut(width: int) -> None:
    lines = printed(width, nodule(1, diameter_mm=12.3), nodule(2, diameter_mm=7.0), part_solid(12))
    assert max(map(len, lines)) <= width
    said = " ".join(lines)
    words = "No. Side Centre LPS Diameter Volume Attenuation probability (provisional) mm3"
    found = "left 56, -116 12.3 solid right -156, -1116 60.5 115781 part-solid 0.93"
    for word in f"{words} {found}".split():
        assert word in said.split(), word
    for text in ("Size class", "Lung-RADS 4A", "Fleischner >8 mm", "Fleischner 6-8 mm"):
        assert text in said
    assert "…" not in said


def test_a_usual_nodule_takes_two_lines_of_80_columns() -> None:
    lines = printed(80, nodule(1))
    assert "56, 86, -116" in lines[2]
    assert len(lines) == 4, "two of headings, Lung-RADS and Fleischner"


def test_a_subsolid_nodule_has_no_size_class_of_fleischner() -> None:
    assert "Fleischner" not in " ".join(printed(80, part_solid(1)))
