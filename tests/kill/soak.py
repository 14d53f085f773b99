"""``python -m kill.soak``: kills at random steps and times until there were so many.

What came of each study is appended to a file, so that a soak that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from kill.campaign import Report, at_random, campaign, table
from kill.site import Deaths

KILLS_PER_STUDY = 20


def main() -> None:
    """Exit status 1 where anything was lost; the folder of that study is kept and named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; read at the start")
    parser.add_argument("--receiver", default="pynetdicom", choices=["pynetdicom", "lean"])
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    reports = _soak(arguments.kills, arguments.results, arguments.receiver)
    _say(table(reports))
    lost = [loss for report in reports for loss in report.lost]
    for loss in lost:
        _say(f"LOST: {loss}")
    sys.exit(1 if lost else 0)


def _soak(kills: int, results: Path, receiver: str) -> list[Report]:
    reports = _earlier(results)
    rng = random.Random()
    with campaign(Path(tempfile.mkdtemp(prefix="phoi-soak-")), receiver) as runs:
        unharmed = runs.run(Deaths())
        assert not unharmed.lost, unharmed.lost
        steps = dict.fromkeys(unharmed.steps)
        while (died := sum(len(report.died) for report in reports)) < kills:
            report = at_random(runs, rng, list(steps), KILLS_PER_STUDY)
            steps.update(dict.fromkeys(report.steps))
            reports.append(report)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"died": report.died, "lost": report.lost}) + "\n")
            losses = sum(bool(report.lost) for report in reports)
            _say(f"{died + len(report.died)} of {kills} kills, {losses} studies with losses")
    return reports


def _earlier(results: Path) -> list[Report]:
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    values = [json.loads(line) for line in lines]
    return [Report(value["died"], value["lost"], lives=(), seconds=0.0) for value in values]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
