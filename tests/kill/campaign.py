"""Many deaths, spread over the lives of a few studies; what each step's deaths lost."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from support.inference import QUICK, install, new_home

from kill.emr import Outside, outside
from kill.invariants import losses
from kill.job import Study, main_job, make_study
from kill.launcher import Launcher
from kill.site import Deaths, Site
from kill.steps import KillPoint, When, death_in, steps_in

_SHARE_OF_TIMES = 0.25
_TRIES = 8  # then a step that is hard to meet is let go
COARSE = {**QUICK, "spacing_mm": 3.0}


@dataclass(frozen=True)
class Life:
    """One life of the edge.

    Attributes:
        steps: that it took, in order.
        ended_at: None where it was killed from outside.
    """

    steps: Sequence[str]
    ended_at: KillPoint | None


@dataclass(frozen=True)
class Report:
    """One study's way through its deaths.

    Attributes:
        died: places of all deaths, in order.
        lost: what did not hold at the end.
        lives: of the edge, in order.
    """

    died: Sequence[str]
    lost: Sequence[str]
    lives: Sequence[Life]
    seconds: float

    @property
    def steps(self) -> list[str]:
        """All that were taken."""
        return [step for life in self.lives for step in life.steps]


@dataclass(frozen=True)
class Campaign:
    """Takes studies through their deaths, one after another.

    Attributes:
        folder: of all studies; what a study left is kept where something was lost.
        models: that take turns in being the current one.
        receiver: ``dicom.receiver`` of the settings.
        numbers: of the studies.
    """

    folder: Path
    launcher: Launcher
    home: Home
    around: Outside
    models: Sequence[ModelIdentity]
    receiver: str
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def begin(self, deaths: Deaths, data: Path | None = None) -> tuple[Site, Study]:
        """A folder of its own for the next study, and the study.

        Args:
            data: the data folder of the edge, where that lies elsewhere.
        """
        number = next(self.numbers)
        site = Site(
            self.folder / f"study-{number}",
            self.launcher,
            self.home,
            self.around,
            self.models,
            deaths,
            self.receiver,
            data,
        )
        return site, make_study(f"killed-{number}")

    def run(self, deaths: Deaths) -> Report:
        """Take one study all the way."""
        began = time.monotonic()
        site, study = self.begin(deaths)
        try:
            try:
                main_job(site, study)
            finally:
                site.end()
            lost = losses(site, study)
        except AssertionError as error:  # it stands still: nothing can be said of the rest
            lost = [str(error), *site.losses]
        lives = [Life(steps_in(journal), death_in(journal)) for journal in site.journals]
        if not lost:
            shutil.rmtree(site.folder)
        return Report(
            died=tuple(deaths.died),
            lost=tuple(lost),
            lives=tuple(lives),
            seconds=time.monotonic() - began,
        )


@contextmanager
def campaign(folder: Path, receiver: str = "pynetdicom") -> Iterator[Campaign]:
    """Start what all studies share."""
    home = new_home(folder / "home")
    versions = ("1.0.0", "1.1.0")
    models = [install(home, folder / f"model-{v}", **COARSE, version=v) for v in versions]
    with ExitStack() as stack:
        around = stack.enter_context(outside(folder / "fhir"))
        launcher = stack.enter_context(Launcher(folder / "launcher.log"))
        yield Campaign(folder, launcher, home, around, models, receiver)


def unmet(
    reports: Sequence[Report], of: Callable[[str], bool], times: int = 1
) -> list[tuple[str, When]]:
    """Sides of known steps, ``of`` those wanted, at which fewer than so many ``times`` one died."""
    died = Counter(place for report in reports for place in report.died)
    known = dict.fromkeys(step for report in reports for step in report.steps if of(step))
    sides = [(step, when) for step in known for when in When]
    return [side for side in sides if died[KillPoint(*side).place] < times]


def cover(
    runs: Campaign,
    rng: random.Random,
    kills_per_study: int,
    of: Callable[[str], bool],
    times: int = 1,
) -> list[Report]:
    """Kill before and after each step that any life takes, at least ``times``; ends by itself.

    The steps are found on the way: those of a life without deaths first, then those that only
    come up after a death.

    Args:
        of: the steps that are wanted.
    """
    reports = [runs.run(Deaths())]
    tries: Counter[tuple[str, When]] = Counter()
    worker_died_in: set[str] = set()
    while todo := [side for side in unmet(reports, of, times) if tries[side] < _TRIES * times]:
        chosen = rng.sample(todo, min(kills_per_study, len(todo)))
        points = {
            KillPoint(*side, _occurrence(reports[0], *side, tries, rng), power=rng.random() < 0.5)
            for side in chosen
        }
        points |= {point for step, _ in chosen if (point := _brought_up_by(step, reports))}
        tries.update(chosen)
        deaths = Deaths(sorted(points, key=str), of_worker=1, worker_died_in=worker_died_in)
        reports.append(runs.run(deaths))
        if deaths.of_worker:  # it has died in every step: once more in each
            worker_died_in.clear()
    return reports


def _brought_up_by(step: str, reports: Sequence[Report]) -> KillPoint | None:
    """The death after which a step was first seen; None for a step that needs none."""
    for report in reports:
        if step in report.lives[0].steps:
            return None
        for life, following in pairwise(report.lives):
            if step in following.steps:
                return life.ended_at
    return None


def _occurrence(
    unharmed: Report, step: str, when: When, tries: Counter[tuple[str, When]], rng: random.Random
) -> int:
    """Any time that the step is taken; the first one at every other try, which is met for sure."""
    if tries[step, when] % 2:
        return 1
    return rng.randint(1, max(1, unharmed.steps.count(step) // 2))


def at_random(
    runs: Campaign, rng: random.Random, steps: Sequence[str], kills_per_study: int
) -> Report:
    """One study with deaths at steps drawn at random, or at random times; and of the worker."""
    if rng.random() < _SHARE_OF_TIMES:
        after_s = [rng.uniform(0.1, 2.0) for _ in range(kills_per_study)]
        return runs.run(Deaths(after_s=after_s, of_worker=1))
    points = {
        KillPoint(
            rng.choice(steps),
            rng.choice(list(When)),
            occurrence=rng.choice((1, 1, 2, 3, 5, 8, 13)),
            power=rng.random() < 0.5,
        )
        for _ in range(kills_per_study)
    }
    return runs.run(Deaths(sorted(points, key=str), of_worker=1))


def table(reports: Sequence[Report]) -> str:
    """Every place of death: how often, and how often something was lost; plain text."""
    trials = Counter(place for report in reports for place in report.died)
    lost = Counter(place for report in reports if report.lost for place in report.died)
    width = max((len(place) for place in trials), default=0)
    lines = [f"{'killed':{width}}  trials  losses"]
    lines += [f"{place:{width}}  {trials[place]:6}  {lost[place]:6}" for place in sorted(trials)]
    lines.append(
        f"{'together':{width}}  {trials.total():6}  {sum(bool(r.lost) for r in reports):6}"
    )
    return "\n".join(lines)
