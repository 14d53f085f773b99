"""Quiet studies are counted by archives that lag, lie low, hold more, or hold less."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from phoi_edge_node.counting import StudyCounter
from phoi_edge_node.desk import LinkState
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.links import Links
from phoi_edge_node.ports import ArchivedSeries
from phoi_edge_node.result import Completeness
from phoi_edge_node.settings import CompletenessSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import StoredAnalysis
from phoi_edge_node.study import AnalysisEvent, AnalysisState, StudyState
from phoi_edge_node.testing import FakeClock, FakeImageSource, FakeInference
from support import values

UID, SERIES = "1.2.3", "1.2.3.9"
SETTINGS = CompletenessSettings(ask_every_s=10, limit_s=300)
QUIET_S = 30.0


class Edge:
    """Intake and counter around one archive that the test plays."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.archive = FakeImageSource(UID, {SERIES: [f"{SERIES}.{n}" for n in (1, 2, 3)]})
        self.sources = [self.archive]
        self.restart()

    def restart(self) -> None:
        self.intake = StudyIntake(
            self.store, self.clock, QUIET_S, completeness=SETTINGS, counted=True
        )
        self.counter = StudyCounter(self.store, self.sources, self.intake, self.clock, SETTINGS)

    def archive_sends(self) -> None:
        """From now on images can be fetched: they come on an association of their own."""
        self.archive = FakeImageSource(UID, self.archive.series_held, send=self.receive_one)
        self.sources = [self.archive]
        self.restart()

    def receive_one(self, sop_instance_uid: str) -> None:
        self.receive(int(sop_instance_uid.rsplit(".", 1)[1]))

    def receive(self, *numbers: int, study: str = UID) -> None:
        for number in numbers:
            self.intake.instance_received(values.instance(number, study), "a1")
        self.intake.association_released("a1")

    def pass_time(self, seconds: float) -> None:
        """In steps as the loops take them."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.intake.complete_quiet_studies()
            self.counter.ask_next()
            self.counter.fetch_next()
            self.counter.settle()

    def analyses(self, study: str = UID) -> Sequence[StoredAnalysis]:
        return self.store.analyses(study)

    def how(self) -> list[Completeness | None]:
        return [analysis.completeness for analysis in self.analyses()]

    def state(self) -> StudyState:
        study = self.store.study(UID)
        assert study is not None
        return study.state


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path)
    yield edge
    edge.engine.dispose()


def test_a_whole_study_is_confirmed_by_two_equal_counts(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(QUIET_S + 5)
    assert edge.state() is StudyState.COUNTING
    assert edge.archive.asked == 1
    edge.pass_time(10)
    assert edge.archive.asked == 2
    assert edge.how() == [Completeness.CONFIRMED]


def test_a_study_is_not_cut_while_the_archive_is_still_filled(edge: Edge) -> None:
    held = edge.archive.series_held[SERIES]
    edge.receive(1, 2, 3)
    for number in range(4, 10):
        edge.pass_time(20)
        held.append(f"{SERIES}.{number}")
        edge.receive(number)
        assert not edge.analyses()
    edge.pass_time(60)
    assert edge.how() == [Completeness.CONFIRMED]


def test_missing_images_are_waited_for_up_to_the_limit_and_then_said(edge: Edge) -> None:
    edge.receive(1, 2)
    edge.pass_time(290)
    assert not edge.analyses()
    edge.pass_time(15)
    assert edge.how() == [Completeness.UNCONFIRMED]


def test_missing_images_are_fetched(edge: Edge) -> None:
    edge.archive_sends()
    edge.receive(1)
    edge.pass_time(120)
    assert edge.how() == [Completeness.CONFIRMED]
    assert len(edge.store.instances(UID)) == 3


def test_a_series_that_the_archive_did_not_route_is_not_missing(edge: Edge) -> None:
    edge.archive.series_held["1.2.3.8"] = ["1.2.3.8.1", "1.2.3.8.2"]
    edge.receive(1, 2, 3)
    edge.pass_time(60)
    assert edge.how() == [Completeness.CONFIRMED]


def test_an_archive_that_knows_less_leaves_it_to_geometry(edge: Edge) -> None:
    edge.archive.series_held.clear()
    edge.receive(1, 2, 3)
    edge.pass_time(60)
    assert edge.how() == [Completeness.BY_GEOMETRY]


def test_a_silent_archive_is_asked_until_it_answers(edge: Edge) -> None:
    edge.archive.silent = True
    edge.receive(1, 2, 3)
    edge.pass_time(100)
    assert not edge.analyses()
    assert edge.archive.asked >= 3
    edge.archive.silent = False
    edge.pass_time(35)
    assert edge.how() == [Completeness.CONFIRMED]


def test_what_an_archive_last_answered_is_told_with_what_waits_for_it(edge: Edge) -> None:
    inference = FakeInference(values.MODEL, values.volume_analysis())
    links = Links([], inference, edge.clock, edge.counter.heard)

    def told() -> tuple[str, LinkState, int]:
        _, view = links.views(edge.store.counts())
        return view.name, view.state, view.waiting

    assert told() == ("fake-query", LinkState.UNKNOWN, 0)
    edge.archive.silent = True
    edge.receive(1, 2, 3)
    edge.pass_time(40)
    assert told() == ("fake-query", LinkState.DOWN, 1)
    edge.archive.silent = False
    edge.pass_time(40)
    assert told() == ("fake-query", LinkState.UP, 0)


def test_many_studies_make_a_silent_archive_no_slower(edge: Edge) -> None:
    edge.archive.silent = True
    for number in range(20):
        edge.receive(1, study=f"1.2.{number}")
    edge.pass_time(100)
    assert edge.archive.asked <= 100 / SETTINGS.ask_every_s + 1


class Hanging(FakeImageSource):
    """An archive that answers one day, or never."""

    def __init__(self) -> None:
        super().__init__(UID, {})
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        self.is_asked.set()
        self.may_answer.wait(60)
        return super().series(study_instance_uid)


def test_an_archive_that_hangs_holds_up_nothing_beyond_the_limit(edge: Edge) -> None:
    archive = Hanging()
    edge.sources = [archive]
    edge.restart()
    edge.receive(1, 2, 3)
    edge.clock.advance(QUIET_S)
    edge.intake.complete_quiet_studies()
    asking = threading.Thread(target=edge.counter.ask_next)
    asking.start()
    try:
        assert archive.is_asked.wait(30)
        edge.receive(1, study="1.2.4")
        edge.clock.advance(SETTINGS.limit_s - 10)
        edge.intake.complete_quiet_studies()
        assert edge.counter.settle() == 1
        edge.clock.advance(10)
        assert edge.counter.settle() == 1
    finally:
        archive.may_answer.set()
        asking.join()
    assert [len(edge.analyses(study)) for study in (UID, "1.2.4")] == [1, 1]


@pytest.mark.parametrize("step", ["quiet_study", "complete_study"])
def test_one_study_that_cannot_be_completed_holds_up_no_other(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ended = getattr(edge.store, step)

    def fail(study: str, *rest: object) -> object:
        if study == "1.1":
            raise RuntimeError
        return ended(study, *rest)

    edge.receive(1, study="1.1")
    edge.receive(1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(edge.store, step, fail)
        edge.pass_time(QUIET_S + 15)
        assert edge.how() == [Completeness.CONFIRMED]
        assert not edge.analyses("1.1")
    edge.pass_time(20)
    assert len(edge.analyses("1.1")) == 1  # once nothing is wrong with it


def test_a_late_image_makes_earlier_answers_worthless(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(QUIET_S + 5)
    edge.receive(4)
    assert edge.state() is StudyState.RECEIVING
    edge.pass_time(10)
    assert not edge.analyses()


def test_an_image_after_completion_makes_the_next_revision(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(60)
    edge.archive.series_held[SERIES].append(f"{SERIES}.4")
    edge.receive(4)
    edge.pass_time(60)
    assert [analysis.revision for analysis in edge.analyses()] == [1, 2]


def test_nothing_is_complete_while_an_association_brings_it_again(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(QUIET_S + 5)
    edge.intake.instance_received(values.instance(1), "a2")  # known: the rest may be new
    edge.pass_time(100)
    assert not edge.analyses()
    edge.intake.association_released("a2")
    edge.pass_time(20)
    assert edge.how() == [Completeness.CONFIRMED]


def test_but_not_for_ever(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(QUIET_S + 5)
    edge.intake.instance_received(values.instance(1), "a2")
    edge.pass_time(SETTINGS.limit_s)
    assert edge.how() == [Completeness.UNCONFIRMED]


def test_looking_again_neither_restarts_nor_forgets_a_study(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    for _ in range(50):
        edge.pass_time(1)
        edge.intake.look_again(UID)
    assert edge.how() == [Completeness.CONFIRMED], "it went on being counted all the while"
    edge.store.add_instance(values.instance(4))  # and the intake never heard of it
    edge.pass_time(60)
    assert edge.state() is StudyState.RECEIVING
    edge.intake.look_again(UID)
    edge.pass_time(60)
    assert edge.state() is StudyState.COMPLETE


def test_an_association_that_never_ends_holds_up_no_study_for_ever(edge: Edge) -> None:
    edge.intake.instance_received(values.instance(1), "a1")
    edge.pass_time(295)
    assert not edge.analyses()
    edge.pass_time(10)
    assert edge.how() == [Completeness.UNCONFIRMED]


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_is_set_neither_cuts_nor_delays(edge: Edge, years: int) -> None:
    edge.archive.silent = True
    edge.receive(1, 2, 3)
    edge.clock.set_wall_clock(edge.clock.now() + timedelta(days=365 * years))
    edge.pass_time(290)
    assert not edge.analyses()
    edge.pass_time(15)
    assert edge.how() == [Completeness.UNCONFIRMED]


@pytest.mark.parametrize("years", [-30, 30])
def test_nor_does_one_that_is_set_before_a_restart(edge: Edge, years: int) -> None:
    edge.receive(1, 2, 3)
    edge.clock.set_wall_clock(edge.clock.now() + timedelta(days=365 * years))
    edge.restart()
    edge.pass_time(50)
    assert edge.how() == [Completeness.CONFIRMED], "there was time to ask twice"
    edge.receive(4)
    edge.archive.silent = True
    edge.restart()
    edge.pass_time(SETTINGS.limit_s + 10)
    assert edge.how()[-1] is Completeness.UNCONFIRMED


def test_a_restart_goes_on_counting(edge: Edge) -> None:
    edge.receive(1, 2, 3)
    edge.pass_time(QUIET_S + 5)
    assert edge.state() is StudyState.COUNTING
    edge.restart()
    edge.pass_time(60)
    assert edge.how() == [Completeness.CONFIRMED]


def test_what_was_waited_before_a_restart_counts(edge: Edge) -> None:
    edge.archive.silent = True
    edge.receive(1, 2, 3)
    edge.pass_time(150)
    edge.restart()
    edge.pass_time(160)
    assert edge.how() == [Completeness.UNCONFIRMED]


class Uncounted(FakeImageSource):
    """An archive that does not return (0020,1209)."""

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        return [ArchivedSeries(SERIES, "CT", None) for _ in super().series(study_instance_uid)]


def test_an_archive_that_does_not_count_is_counted_image_by_image(edge: Edge) -> None:
    edge.sources = [Uncounted(UID, {SERIES: [f"{SERIES}.1", f"{SERIES}.2"]})]
    edge.restart()
    edge.receive(1, 2)
    edge.pass_time(60)
    assert edge.how() == [Completeness.CONFIRMED]


class Refusing(FakeImageSource):
    """An archive that counts and does not send."""

    fetches = 0

    def fetch(self, *_: object) -> int:
        self.fetches += 1
        raise SourceUnavailable("no")


def test_fetches_in_vain_end(edge: Edge) -> None:
    held = {SERIES: [f"{SERIES}.1", f"{SERIES}.2"]}
    archive = Refusing(UID, held, send=edge.receive_one)
    edge.sources = [archive]
    edge.restart()
    edge.receive(1)
    edge.pass_time(310)
    assert edge.how() == [Completeness.UNCONFIRMED]
    assert archive.fetches == 3


def test_what_retention_removed_is_fetched_again_for_a_late_image(edge: Edge) -> None:
    edge.archive_sends()
    edge.receive(1, 2, 3)
    edge.pass_time(60)
    claimed = edge.store.claim_analysis()
    assert claimed is not None
    edge.store.finish_analysis(claimed.id, AnalysisEvent.FINISH, values.result(UID, 1), [])
    assert edge.store.expire_study(UID)
    other = "1.2.3.8"  # the late image is of another series, of which the archive has no more
    edge.archive.series_held[other] = [f"{other}.1"]
    late = replace(values.instance(1), series_instance_uid=other, sop_instance_uid=f"{other}.1")
    edge.intake.instance_received(late, "a2")
    edge.intake.association_released("a2")
    edge.pass_time(120)
    assert len(edge.store.instances(UID)) == 4
    assert [a.state for a in edge.analyses()] == [AnalysisState.SUPERSEDED, AnalysisState.QUEUED]
