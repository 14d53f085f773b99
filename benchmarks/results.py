"""One measured number, and the file of all of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Result:
    """A median of repeated measurements.

    Attributes:
        compared_with: what stands beside it, with its value in the same unit; "" for none.
    """

    name: str
    value: float
    unit: str
    runs: int
    lowest: float
    highest: float
    compared_with: str = ""

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str, compared_with: str = "") -> Result:
        """The median of ``values``."""
        rounded = [round(v, 3) for v in (median(values), min(values), max(values))]
        return cls(name, rounded[0], unit, len(values), rounded[1], rounded[2], compared_with)


@dataclass(frozen=True)
class Section:
    """What one benchmark measured.

    Attributes:
        circumstances: what the figures depend on: a model, a disk.
    """

    results: Sequence[Result]
    circumstances: Mapping[str, str]


def write_section(name: str, section: Section) -> None:
    """Write one section of benchmarks/results.json; the others stay as they are."""
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    content[name] = {
        "measured_on": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            **section.circumstances,
        },
        "results": [asdict(result) for result in section.results],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
