"""When images go, in which order, what keeps them; and a crash in between loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from phoi_edge_node.dicom.instance_files import InstanceFiles, study_folder
from phoi_edge_node.dicom.recovery import recover_files
from phoi_edge_node.dicom.retired_files import RetiredFiles
from phoi_edge_node.ports import Delivered, Intake, ReceivedInstance, Refused
from phoi_edge_node.result import Priority
from phoi_edge_node.retention import GRACE, Retention, next_to_expire
from phoi_edge_node.settings import RetentionSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing, SettledStudy
from phoi_edge_node.study import AnalysisEvent, AnalysisState, StudyState
from phoi_edge_node.system import SystemClock
from phoi_edge_node.testing import FakeClock
from support import values

NOW = values.AT
DAYS_30 = RetentionSettings(pixels_days=30, free_disk_target_mb=100)
ROOM, FULL, LEAST, SCARCE = 101_000_000, 99_000_000, 50_000_000, 49_000_000


def settled(uid: str, days: float, *, signed: bool = False) -> SettledStudy:
    return SettledStudy(uid, NOW - timedelta(days=days), signed)


def test_with_room_on_the_disk_only_what_is_old_goes_the_oldest_first() -> None:
    studies = [settled("young", 29.9), settled("old", 31), settled("older", 32, signed=True)]
    chosen = next_to_expire(studies, NOW, ROOM, DAYS_30, LEAST)
    assert chosen == studies[2]
    assert next_to_expire(studies[:2], NOW, ROOM, DAYS_30, LEAST) == studies[1]
    assert next_to_expire(studies[:1], NOW, ROOM, DAYS_30, LEAST) is None
    never = RetentionSettings(pixels_days=0, free_disk_target_mb=100)
    assert next_to_expire(studies, NOW, ROOM, never, LEAST) is None


def test_on_a_full_disk_signed_studies_go_before_older_unsigned_ones() -> None:
    studies = [settled("unsigned", 20), settled("new", 1, signed=True), settled("b", 2)]
    assert next_to_expire(studies, NOW, FULL, DAYS_30, LEAST) == studies[1]
    assert next_to_expire([studies[0], studies[2]], NOW, FULL, DAYS_30, LEAST) == studies[0]
    assert next_to_expire([], NOW, FULL, DAYS_30, LEAST) is None


def test_a_full_disk_leaves_unsigned_studies_to_their_readers_until_receiving_would_stop() -> None:
    studies = [settled("young", 0.9), settled("younger", 0.5), settled("ahead of the clock", -400)]
    assert next_to_expire(studies, NOW, FULL, DAYS_30, LEAST) is None
    assert next_to_expire(studies, NOW, SCARCE, DAYS_30, LEAST) == studies[0]
    assert next_to_expire(studies[2:], NOW, SCARCE, DAYS_30, LEAST) == studies[2]
    signed = settled("signed", 0, signed=True)
    assert next_to_expire([*studies, signed], NOW, FULL, DAYS_30, LEAST) == signed
    assert next_to_expire([*studies, signed], NOW, SCARCE, DAYS_30, LEAST) == signed


class Edge:
    """A store and real files, on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(SystemClock().now())
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.files = InstanceFiles(folder / "instances")
        self.images = RetiredFiles(self.files, self.store.indexed, self.clock)
        self.settings = RetentionSettings(pixels_days=30, free_disk_target_mb=0)
        self.least_room = 0
        self.restart()

    def restart(self) -> None:
        self.retention = Retention(
            self.store, self.images, self.clock, self.settings, self.least_room
        )
        self.retention.run()  # has seen the clock

    def write(self, number: int, uid: str = "1.2.3") -> ReceivedInstance:
        """An instance on disk that is not indexed yet."""
        instance = values.instance(number, uid)
        stored = self.files.store(uid, instance.sop_instance_uid, b"meta", b"%d" % number)
        return replace(
            instance, path=stored.path, sha256=stored.sha256, received_at=self.clock.now()
        )

    def receive(self, number: int, uid: str = "1.2.3") -> Intake:
        return self.store.add_instance(self.write(number, uid))

    def analyse(self, uid: str = "1.2.3", *, delivered: bool = True) -> None:
        self.store.complete_study(uid, Priority.ROUTINE)
        claimed = self.store.claim_analysis()
        assert claimed is not None
        outgoing = [Outgoing(values.document(f"{uid}-sr-{claimed.revision}"), ("pacs",))]
        result = values.result(uid, claimed.revision)
        self.store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, outgoing)
        delivery = self.store.claim_delivery("pacs")
        assert delivery is not None
        outcome = Delivered() if delivered else Refused("no")
        self.store.settle_delivery(delivery[0].id, outcome, self.clock.now())

    def pass_days(self, days: float) -> None:
        self.clock.advance(days * 86400)
        while self.retention.run():
            pass

    def state(self, uid: str = "1.2.3") -> StudyState:
        study = self.store.study(uid)
        assert study is not None
        return study.state

    def recover(self) -> int:
        return recover_files(self.files, self.store, self.images.retire).indexed

    def here(self) -> list[str]:
        return list(self.files.paths())

    def retired(self) -> list[Path]:
        return list((self.files.root / "retired").iterdir())


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path)
    yield edge
    edge.engine.dispose()


def test_the_images_go_and_the_results_stay(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    edge.pass_days(29)
    assert len(edge.here()) == 1
    edge.pass_days(2)
    assert (edge.here(), edge.state()) == ([], StudyState.EXPIRED)
    assert edge.store.instances("1.2.3") == []
    assert len(edge.retired()) == 1
    edge.pass_days(GRACE.total_seconds() / 86400 + 0.001)
    assert edge.retired() == []
    (analysis,) = edge.store.analyses("1.2.3")
    assert analysis.result is not None
    assert len(edge.store.deliveries("1.2.3")) == 1


def test_nothing_goes_before_it_is_delivered_or_while_it_is_under_way(edge: Edge) -> None:
    edge.receive(1, "1.1")
    edge.analyse("1.1", delivered=False)  # a dead letter
    edge.receive(1, "1.2")  # being received
    edge.receive(1, "1.3")
    edge.store.complete_study("1.3", Priority.ROUTINE)  # queued
    edge.receive(1, "1.4")
    edge.store.quiet_study("1.4")  # being counted
    edge.pass_days(400)
    assert len(edge.here()) == 4
    assert edge.store.settled_studies() == []
    assert not edge.store.expire_study("1.1")


def test_the_same_images_again_are_shown_with_the_same_result(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    edge.pass_days(31)
    assert edge.receive(1) is Intake.STORED
    assert edge.state() is StudyState.RECEIVING
    edge.pass_days(1)
    assert len(edge.here()) == 1
    assert edge.store.complete_study("1.2.3", Priority.ROUTINE) is None
    edge.pass_days(28)
    assert edge.state() is StudyState.COMPLETE
    edge.receive(2)
    edge.analyse()
    assert [a.revision for a in edge.store.analyses("1.2.3")] == [1, 2]


def test_a_clock_that_is_ahead_for_a_while_removes_nothing(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    right = edge.clock.now()
    edge.clock.set_wall_clock(right + timedelta(days=365))
    edge.pass_days(0.5)
    edge.restart()
    edge.pass_days(0.4)
    edge.clock.set_wall_clock(right + timedelta(days=0.9))
    edge.pass_days(0.01)
    assert len(edge.here()) == 1
    edge.pass_days(30)
    assert edge.here() == []


def test_a_machine_that_starts_with_a_clock_far_ahead_removes_nothing(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    edge.clock.advance(365 * 86400)  # it was off for a year, or its clock says so
    edge.restart()
    edge.pass_days(0.9)
    assert len(edge.here()) == 1
    edge.pass_days(0.2)
    assert edge.here() == []


def test_by_age_one_study_goes_at_a_time_and_on_a_full_disk_all_that_have_to(edge: Edge) -> None:
    for uid in ("1.1", "1.2", "1.3", "1.4"):
        edge.receive(1, uid)
        edge.analyse(uid)
    edge.pass_days(31)
    assert len(edge.here()) == 3
    edge.settings = edge.settings.model_copy(update={"free_disk_target_mb": 10**12})
    edge.least_room = 10**18
    edge.restart()
    edge.clock.set_wall_clock(edge.clock.now() - timedelta(days=365))
    edge.pass_days(0)
    assert edge.here() == []


def test_a_late_image_alone_takes_no_result_away(edge: Edge) -> None:
    for number in (1, 2, 3):
        edge.receive(number)
    edge.analyse()
    edge.pass_days(31)
    assert edge.receive(4) is Intake.STORED
    assert edge.store.expired_images("1.2.3") == {"1.2.3.9": {f"1.2.3.9.{n}" for n in (1, 2, 3)}}
    assert edge.store.complete_study("1.2.3", Priority.ROUTINE) is None
    study = edge.store.study("1.2.3")
    assert study is not None
    assert (study.state, study.late_images) == (StudyState.COMPLETE, True)
    assert [a.state for a in edge.store.analyses("1.2.3")] == [AnalysisState.SUCCEEDED]
    edge.pass_days(31)  # what came late goes too, and is remembered as well
    for number in (1, 2, 3):
        edge.receive(number)
    assert edge.store.complete_study("1.2.3", Priority.ROUTINE) is None
    edge.receive(4)
    edge.analyse()
    assert [a.revision for a in edge.store.analyses("1.2.3")] == [1, 2]
    study = edge.store.study("1.2.3")
    assert study is not None
    assert not study.late_images
    assert edge.store.expired_images("1.2.3") == {}


def test_a_part_of_the_same_images_is_nothing_new(edge: Edge) -> None:
    for number in (1, 2):
        edge.receive(number)
    edge.analyse()
    edge.pass_days(31)
    edge.receive(1)
    assert edge.store.complete_study("1.2.3", Priority.ROUTINE) is None
    study = edge.store.study("1.2.3")
    assert study is not None
    assert not study.late_images


def test_a_crash_before_the_files_were_set_aside_is_made_up_for_at_the_next_start(
    edge: Edge,
) -> None:
    edge.receive(1)
    edge.receive(2)
    edge.analyse()
    assert edge.store.expire_study("1.2.3")
    assert edge.recover() == 0
    assert (edge.here(), edge.state()) == ([], StudyState.EXPIRED)


def test_an_image_that_was_being_indexed_while_its_study_went_comes_back(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    late = edge.write(2)
    edge.pass_days(31)
    assert edge.here() == []
    assert edge.store.add_instance(late) is Intake.STORED
    edge.pass_days(1)
    assert edge.here() == [late.path]
    assert edge.retired() == []


def test_retention_waits_for_an_image_that_is_on_disk_and_not_yet_indexed(edge: Edge) -> None:
    """The same image again: it has the very path of the one that goes."""
    edge.receive(1)
    edge.analyse()
    edge.clock.advance(31 * 86400)
    retention = threading.Thread(target=edge.retention.run)
    with edge.files.studies.coming("1.2.3"):
        again = edge.write(1)
        retention.start()
        retention.join(0.2)
        assert retention.is_alive()
        assert edge.store.add_instance(again) is Intake.DUPLICATE
        assert edge.store.add_instance(edge.write(2)) is Intake.STORED
    retention.join()
    assert len(edge.here()) == 2, "it is needed again"
    assert edge.state() is StudyState.RECEIVING


def test_an_image_waits_while_its_study_goes(edge: Edge) -> None:
    edge.receive(1)
    edge.analyse()
    taken: list[Intake] = []

    def bring() -> None:
        with edge.files.studies.coming("1.2.3"):
            taken.append(edge.receive(1))

    receiver = threading.Thread(target=bring)
    with edge.files.studies.going("1.2.3"):
        receiver.start()
        assert edge.store.expire_study("1.2.3")
        edge.images.retire("1.2.3")
        assert not taken
    receiver.join()
    assert taken == [Intake.STORED]
    assert len(edge.here()) == 1


def test_a_start_indexes_what_was_received_and_not_yet_indexed(edge: Edge) -> None:
    edge.receive(1)
    (edge.files.root / study_folder("1.2.3") / "rubbish.dcm").write_bytes(b"no DICOM")
    (edge.files.incoming / "half").write_bytes(b"x")
    found = recover_files(edge.files, edge.store, edge.images.retire)
    assert (found.half_written, found.indexed) == (1, 0)
    assert len(edge.here()) == 1
    assert (edge.files.root / "quarantine" / "rubbish.dcm").exists()


def test_what_is_quarantined_goes_in_its_own_time_and_first_on_a_full_disk(edge: Edge) -> None:
    def quarantine(number: int) -> None:
        edge.files.quarantine(edge.write(number).path)

    quarantine(1)
    edge.clock.advance(timedelta(hours=1).total_seconds())
    edge.retention.run()
    assert edge.files.quarantined() == 1

    edge.settings = RetentionSettings(free_disk_target_mb=10**9)  # more than any disk has
    edge.restart()
    assert edge.files.quarantined() == 1  # an hour is too short for anybody to look
    edge.clock.advance(timedelta(days=1).total_seconds())
    edge.retention.run()
    assert edge.files.quarantined() == 0


def test_what_is_quarantined_is_not_judged_by_a_clock_that_jumped(edge: Edge) -> None:
    edge.files.quarantine(edge.write(1).path)
    edge.clock.set_wall_clock(edge.clock.now() + timedelta(days=365))
    edge.retention.run()
    assert edge.files.quarantined() == 1
    for _ in range(49):
        edge.clock.advance(timedelta(hours=1).total_seconds())
        edge.retention.run()
    assert edge.files.quarantined() == 0
