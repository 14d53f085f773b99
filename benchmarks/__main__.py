"""``make bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from benchmarks import day, detection, main_job, reading, receiving
from benchmarks.results import RESULTS, Section, write_section


def _main_job(runs: int) -> Section:
    results, model = main_job.measure(runs)
    return Section(results, {"model": model})


def _detection(runs: int) -> Section:
    return Section(detection.measure(runs), detection.circumstances())


def _receiving(runs: int) -> Section:
    return Section(receiving.measure(runs), receiving.where())


def _reading(runs: int) -> Section:
    return Section(reading.measure(runs), {})


def _day(runs: int) -> Section:
    return Section(day.measure(runs), day.circumstances())


SECTIONS: Mapping[str, Callable[[int], Section]] = {
    "main_job": _main_job,
    "detection": _detection,
    "reading": _reading,
    "receiving": _receiving,
    "day": _day,
}


def main() -> None:
    """Measure all sections, or those that are named; print and write the results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--runs", type=int, default=5, help="counted runs (default 5)")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    for name in arguments.sections or SECTIONS:
        section = SECTIONS[name](arguments.runs)
        write_section(name, section)
        for result in section.results:
            spread = f"({result.lowest:g} to {result.highest:g}, {result.runs} runs)"
            value = f"{result.value:9.3f} {result.unit:8}"
            print(f"{result.name:64} {value} {spread} {result.compared_with}")
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
