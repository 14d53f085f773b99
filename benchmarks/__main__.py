"""``make bench``."""

from __future__ import annotations

import argparse

from benchmarks import detection, main_job
from benchmarks.results import RESULTS, write_results


def main() -> None:
    """Measure everything; print and write the results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs (default 5)")
    runs = parser.parse_args().runs
    whole, model = main_job.measure(runs)
    results = (*whole, *detection.measure(runs))
    write_results(results, model)
    for result in results:
        spread = f"({result.lowest:g} to {result.highest:g}, {result.runs} runs)"
        print(
            f"{result.name:45} {result.value:9.3f} {result.unit:3} {spread} {result.compared_with}"
        )
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
