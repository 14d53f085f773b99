"""What archives hold is compared with what is here, and what lacks is mended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from phoi_edge_node.body_region import may_show_chest
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import (
    ArchivedSeries,
    ArchivedStudy,
    Delivered,
    DocumentKind,
    Intake,
    Refused,
    ReportStatus,
    SendOutcome,
)
from phoi_edge_node.reconciled import NIGHTLY, Lack, LackingStudy, Mending
from phoi_edge_node.reconciliation import (
    Reconciler,
    ReconciliationDesk,
    last_due,
    report_lines,
    standing,
)
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import ReconciliationSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent
from phoi_edge_node.testing import FakeClock, FakeImageSource
from support import values

DAY = date(2026, 3, 15)
UID, SERIES = "1.2.3", "1.2.3.9"
IMAGES = [f"{SERIES}.{n}" for n in (1, 2, 3)]


class Hospital:
    """A store and one archive, ``UID`` in it, that sends what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.archive = FakeImageSource(UID, {SERIES: IMAGES}, DAY, self.receive)

    def receive(self, sop_instance_uid: str) -> Intake:
        return self.store.add_instance(values.instance(int(sop_instance_uid[-1]), UID))

    def analyse(self, *answers: SendOutcome, event: AnalysisEvent = AnalysisEvent.FINISH) -> None:
        """Complete and analyse the study; deliver its SR, with these answers."""
        analysis_id = self.store.complete_study(UID, Priority.ROUTINE)
        assert analysis_id is not None
        claimed = self.store.claim_analysis()
        assert claimed is not None
        outgoing = [Outgoing(values.document(f"sr-{claimed.revision}"), ("pacs",))]
        result = values.result(UID, claimed.revision)
        self.store.finish_analysis(analysis_id, event, result, outgoing)
        for answer in answers:
            self.deliver(answer)

    def deliver(self, answer: SendOutcome) -> None:
        delivery = self.store.claim_delivery("pacs")
        assert delivery is not None
        self.store.settle_delivery(delivery[0].id, answer, self.clock.now())

    def reconcile(self, *, mend: bool = True) -> tuple[LackingStudy, ...]:
        report = Reconciler(self.store, [self.archive]).run(DAY, DAY, mend=mend)
        assert (report.compared, report.trouble) == (1, "")
        return report.lacking


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path)
    yield hospital
    hospital.engine.dispose()


def test_a_study_that_never_came_is_fetched_and_zero_once_it_is_delivered(
    hospital: Hospital,
) -> None:
    looked = LackingStudy(UID, Lack.NOT_RECEIVED, Mending.NONE, 3)
    assert hospital.reconcile(mend=False) == (looked,)
    assert hospital.store.study(UID) is None
    fetched = LackingStudy(UID, Lack.NOT_RECEIVED, Mending.FETCHED, 3)
    assert hospital.reconcile() == (fetched,)
    assert {i.sop_instance_uid for i in hospital.store.instances(UID)} == set(IMAGES)
    assert hospital.reconcile() == (LackingStudy(UID, Lack.NOT_ANALYSED),)
    hospital.analyse(Delivered())
    assert hospital.reconcile() == ()


def test_the_images_that_did_not_come_are_fetched_and_no_others(hospital: Hospital) -> None:
    hospital.receive(IMAGES[0])
    hospital.analyse(Delivered())
    lacking = LackingStudy(UID, Lack.IMAGES_MISSING, Mending.FETCHED, 2)
    assert hospital.reconcile() == (lacking,)
    assert len(hospital.store.instances(UID)) == 3


def test_a_series_that_the_pacs_keeps_back_is_no_lack_unless_the_rest_cannot_be_analysed(
    hospital: Hospital,
) -> None:
    for image in IMAGES:
        hospital.receive(image)
    hospital.archive.series_held["1.2.3.8"] = ["1.2.3.8.4"]
    hospital.analyse(Delivered())
    assert hospital.reconcile() == ()
    hospital.store.add_instance(values.instance(5, UID))
    hospital.analyse(Delivered(), event=AnalysisEvent.REFUSE)
    assert hospital.reconcile() == (LackingStudy(UID, Lack.IMAGES_MISSING, Mending.FETCHED, 1),)


def test_what_was_refused_is_sent_again_once_in_each_run(hospital: Hospital) -> None:
    for image in IMAGES:
        hospital.receive(image)
    hospital.analyse(Refused("no room"))
    resent = LackingStudy(UID, Lack.NOT_DELIVERED, Mending.RESENT, 1)
    assert hospital.reconcile() == (resent,)
    assert hospital.store.audit()[0].username == "reconciliation"
    waiting = LackingStudy(UID, Lack.NOT_DELIVERED, Mending.NOT_RESENT, 1)
    assert hospital.reconcile() == (waiting,)
    hospital.deliver(Delivered())
    assert hospital.reconcile() == ()


def test_a_report_that_the_archive_took_and_lost_is_sent_again(hospital: Hospital) -> None:
    hospital.archive.name = "pacs"
    for image in IMAGES:
        hospital.receive(image)
    hospital.analyse(Delivered())
    assert hospital.reconcile() == (LackingStudy(UID, Lack.NOT_DELIVERED, Mending.RESENT, 1),)
    hospital.deliver(Delivered())
    hospital.archive.documents_held = {"sr-1"}
    assert hospital.reconcile() == ()


def test_what_was_rejected_is_not_sent_again_though_the_archive_hides_it(
    hospital: Hospital,
) -> None:
    for image in IMAGES:
        hospital.receive(image)
    hospital.analyse(Delivered())
    (report,) = hospital.store.deliveries(UID)
    sent = [
        replace(report, id=1, kind=DocumentKind.SEGMENTATION),
        replace(report, id=2),
        replace(report, id=3, kind=DocumentKind.REJECTION_NOTE, status=ReportStatus.WITHDRAWN),
        replace(report, id=4, status=ReportStatus.WITHDRAWN),
    ]
    assert [d.id for d in standing(sent[:2])] == [1, 2]
    assert [d.id for d in standing(sent)] == [3, 4]


def test_an_archive_that_sends_nothing_is_named_and_one_that_is_silent_is_told(
    hospital: Hospital,
) -> None:
    closed = FakeImageSource(UID, {SERIES: IMAGES}, DAY)
    other = FakeImageSource("1.9", {"1.9.9": ["1.9.9.1"]}, DAY)
    other.silent = True
    report = Reconciler(hospital.store, [closed, other]).run(DAY, DAY)
    assert report.lacking == (LackingStudy(UID, Lack.NOT_RECEIVED, Mending.NOT_FETCHED, 3),)
    assert report.trouble == "it gives no answer"
    assert not report.nothing_left_behind
    lines = list(report_lines(report))
    assert f"{UID}: not_received (3): not_fetched" in lines
    assert "0 studies left behind" not in lines


class Fickle(FakeImageSource):
    """An archive with five more studies that gives no answer about some."""

    def __init__(self, *silent_about: str) -> None:
        super().__init__("1.0", {}, DAY)
        self._silent_about = silent_about

    def studies(self, first: date, last: date) -> Sequence[ArchivedStudy]:
        del first, last
        return [ArchivedStudy(f"1.{n}", frozenset({"CT"}), "chest") for n in range(5)]

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        if study_instance_uid in self._silent_about:
            raise SourceUnavailable("it gives no answer")
        return (ArchivedSeries(f"{study_instance_uid}.9", "CT", 0),)


def test_a_study_about_which_an_archive_is_silent_is_named_and_the_rest_compared(
    hospital: Hospital,
) -> None:
    report = Reconciler(hospital.store, [Fickle("1.0", "1.1", "1.3")]).run(DAY, DAY)
    assert (report.compared, report.trouble) == (5, "")
    named = [(lacking.study_instance_uid, lacking.lack) for lacking in report.lacking]
    assert named == [(uid, Lack.NOT_COMPARED) for uid in ("1.0", "1.1", "1.3")]


def test_an_archive_that_falls_silent_is_left_alone_soon(hospital: Hospital) -> None:
    report = Reconciler(hospital.store, [Fickle(*(f"1.{n}" for n in range(1, 5)))]).run(DAY, DAY)
    assert (report.compared, report.trouble) == (4, "it gives no answer")


def test_a_report_that_a_later_one_replaced_may_be_dropped_by_the_archive(
    hospital: Hospital,
) -> None:
    hospital.archive.name = "pacs"
    for image in IMAGES:
        hospital.receive(image)
        hospital.analyse(Delivered())
    hospital.archive.documents_held = {"sr-3"}
    assert hospital.reconcile() == ()


def test_a_run_that_is_stopped_says_so(hospital: Hospital) -> None:
    reconciler = Reconciler(hospital.store, [hospital.archive], lambda: True)
    report = reconciler.run(DAY, DAY)
    assert report.compared == 0
    assert not report.nothing_left_behind


@pytest.mark.parametrize(
    ("study", "series", "expected"),
    [
        ("CT NGỰC có tiêm thuốc", [], True),
        ("CLVT lồng ngực liều thấp", ["Topogram", "Phổi 1.0"], True),
        ("", ["", ""], True),
        ("Followup", ["AX 1.25 BONE"], True),
        ("CT Head", ["brain 5.0 HEAD"], False),
        ("CLVT sọ não", [], False),
        ("CT BỤNG", ["arterial ABDOMEN"], False),
        ("CT abdomen", ["lung bases"], True),
        ("CT chest/abdomen/pelvis", ["AX ABDOMEN"], True),
        ("", ["KNEE left", "foot"], False),
        ("", ["KNEE left", "AX 2.0"], True),
        ("Chan thuong so nao", [], False),
    ],
)
def test_only_what_clearly_shows_another_region_is_passed_over(
    study: str, series: list[str], *, expected: bool
) -> None:
    assert may_show_chest(study, series) is expected


def test_the_time_of_day_is_the_local_one() -> None:
    hanoi = timezone(timedelta(hours=7))
    at = datetime(2026, 3, 15, 2, 30, tzinfo=hanoi)
    assert last_due(at, "02:30") == at
    assert last_due(at - timedelta(seconds=1), "02:30") == at - timedelta(days=1)
    assert last_due(at + timedelta(hours=20), "02:30") == at


class Nights:
    """The desk, with a clock that starts at noon UTC and runs at 00:00 local time."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self.clock = hospital.clock
        self.clock.set_wall_clock(datetime(2026, 3, 15, 12, tzinfo=UTC).astimezone())
        self.at = (self.clock.now() + timedelta(hours=3)).strftime("%H:%M")
        self.restart()

    def restart(self) -> None:
        self.desk = ReconciliationDesk(
            self.hospital.store,
            Reconciler(self.hospital.store, [self.hospital.archive]),
            ReconciliationSettings(at=self.at, days=2),
            self.clock,
        )

    def runs(self) -> int:
        return len([r for r in self.hospital.store.reconciliations() if r.asked_by == NIGHTLY])


def test_every_night_once_and_a_night_slept_through_at_the_next_start(hospital: Hospital) -> None:
    nights = Nights(hospital)
    assert not nights.desk.run_next()
    nights.clock.advance(3 * 3600 + 1)
    assert nights.desk.run_next()
    assert not nights.desk.run_next()
    assert nights.runs() == 1
    nights.clock.advance(60 * 3600)  # off for more than two days
    nights.restart()
    assert nights.desk.run_next()
    assert not nights.desk.run_next()
    newest = hospital.store.reconciliations()[0]
    assert newest.last - newest.first == timedelta(days=2)
    assert newest.report is not None


def test_a_night_in_which_an_archive_was_silent_is_tried_again_every_hour(
    hospital: Hospital,
) -> None:
    nights = Nights(hospital)
    nights.desk.run_next()
    hospital.archive.silent = True
    nights.clock.advance(3 * 3600 + 1)
    assert nights.desk.run_next()
    assert not nights.desk.run_next()
    hospital.archive.silent = False
    nights.clock.advance(3601)
    assert nights.desk.run_next()
    assert not nights.desk.run_next()


def test_what_a_person_asked_for_goes_first(hospital: Hospital) -> None:
    nights = Nights(hospital)
    nights.desk.run_next()
    number = hospital.store.ask_reconciliation(DAY, DAY, "ba")
    assert nights.desk.run_next()
    (asked,) = hospital.store.reconciliations()
    assert asked.id == number
    assert asked.report is not None
    assert asked.report.compared == 1


def test_a_run_that_breaks_ends_with_its_name_and_the_next_one_follows(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Nights(hospital).desk
    for who in ("an", "binh"):
        hospital.store.ask_reconciliation(DAY, DAY, who)

    def broken(_: str) -> Sequence[ArchivedSeries]:
        raise ValueError("a value of some patient")

    monkeypatch.setattr(hospital.archive, "series", broken)
    assert desk.run_next()
    assert desk.run_next()
    ended = [r.report for r in hospital.store.reconciliations() if r.asked_by in {"an", "binh"}]
    assert [report.trouble if report else None for report in ended] == ["ValueError"] * 2
