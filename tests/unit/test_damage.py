"""A stored image that is damaged is found, named and asked for again; its result stands."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from phoi_edge_node.damage import ImageCare
from phoi_edge_node.dicom.file_meta import encode_file_meta
from phoi_edge_node.dicom.instance_files import InstanceFiles
from phoi_edge_node.dicom.stored_images import StoredFiles
from phoi_edge_node.errors import Conflict, ReviewConflict
from phoi_edge_node.links import Links
from phoi_edge_node.policies import TIMES_ASKED_AGAIN, RetryPolicy
from phoi_edge_node.ports import ReceivedInstance
from phoi_edge_node.result import Completeness, Priority
from phoi_edge_node.review_desk import ReviewDesk
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.study import AnalysisEvent, AnalysisState, StudyState
from phoi_edge_node.testing import FakeClock, FakeInference, FakeSeriesReader, SequentialUids
from phoi_edge_node.watchdog import Watchdog
from phoi_edge_node.workflow import Analyst, Outbox
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from support import values

UID = "1.2.3"
UNREADABLE = NotAnalysable(NotAnalysableReason.UNREADABLE_PIXELS, "instance 1")


class Node:
    """A store with real files, and who looks after them."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.files = InstanceFiles(folder / "instances")
        self.reopened: list[str] = []
        self.care = ImageCare(self.store, StoredFiles(self.files), self.reopened.append)

    def receive(self, number: int, uid: str = UID) -> ReceivedInstance:
        instance = values.instance(number, uid)
        meta = encode_file_meta(
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            sending_ae_title=instance.calling_ae_title,
            receiving_ae_title="PHOI",
        )
        stored = self.files.store(uid, instance.sop_instance_uid, meta, bytes([number] * 99))
        instance = replace(instance, path=stored.path, sha256=stored.sha256, size=stored.size)
        self.store.add_instance(instance)
        return instance

    def complete(self, uid: str = UID) -> str | None:
        return self.store.complete_study(uid, Priority.ROUTINE)

    def analyse(self) -> None:
        analysis = self.store.claim_analysis()
        assert analysis is not None
        result = values.result(analysis.study_instance_uid, analysis.revision)
        self.store.finish_analysis(analysis.id, AnalysisEvent.FINISH, result, [])

    def path(self, instance: ReceivedInstance) -> Path:
        return self.files.root / instance.path

    def flip(self, instance: ReceivedInstance) -> None:
        """One bit of the pixels, as a failing disk does it."""
        content = bytearray(self.path(instance).read_bytes())
        content[-1] ^= 1
        self.path(instance).write_bytes(content)

    @property
    def study_state(self) -> StudyState:
        study = self.store.study(UID)
        assert study is not None
        return study.state

    @property
    def states(self) -> list[AnalysisState]:
        return [analysis.state for analysis in self.store.analyses(UID)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.engine.dispose()


def test_whole_images_are_left_alone(node: Node) -> None:
    instances = [node.receive(number) for number in (1, 2)]
    node.complete()
    assert not node.care.look_after(UID)
    assert node.store.instances(UID) == instances
    assert node.study_state is StudyState.COMPLETE
    assert not node.reopened


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_image_is_named_and_asked_for_again(node: Node, damage: str) -> None:
    first, second = node.receive(1), node.receive(2)
    node.complete()
    node.analyse()
    if damage == "changed":
        node.flip(first)
    else:
        node.path(first).unlink()
    assert node.care.look_after(UID)
    assert node.reopened == [UID]
    assert node.study_state is StudyState.RECEIVING
    assert node.store.instances(UID) == [second]
    assert node.files.quarantined() == (1 if damage == "changed" else 0)
    (found,) = node.store.damages(UID)
    assert (found.sop_instance_uid, found.kind, found.back) == (
        first.sop_instance_uid,
        damage,
        False,
    )
    assert node.receive(1) == first
    assert node.path(first).exists()
    assert node.store.damages(UID)[0].back
    assert node.store.counts().damages == 1


@pytest.mark.parametrize("at", [130, 141, 160, 190, 230])
def test_a_bit_that_flips_before_the_data_set_is_damage_too(node: Node, at: int) -> None:
    instance = node.receive(1)
    node.complete()
    content = bytearray(node.path(instance).read_bytes())
    content[at] ^= 1
    node.path(instance).write_bytes(content)
    assert node.care.look_after(UID)
    assert [found.kind for found in node.store.damages(UID)] == ["changed"]


class BadSector(StoredFiles):
    """A disk that does not give one file, or does not let look at one."""

    def __init__(self, files: InstanceFiles, path: str, trouble: int) -> None:
        super().__init__(files)
        self._path, self._trouble = path, trouble

    def _is_as_received(self, file: BinaryIO, instance: ReceivedInstance) -> bool:
        if instance.path == self._path:
            raise OSError(self._trouble, "read")
        return super()._is_as_received(file, instance)


def test_what_the_disk_cannot_read_is_damaged_and_set_aside(node: Node) -> None:
    instance = node.receive(1)
    node.complete()
    images = BadSector(node.files, instance.path, errno.EIO)
    assert ImageCare(node.store, images, node.reopened.append).look_after(UID)
    assert [found.kind for found in node.store.damages(UID)] == ["unreadable"]
    assert node.files.quarantined() == 1


def test_a_study_that_cannot_be_looked_at_keeps_nobody_from_the_next(node: Node) -> None:
    first, second = node.receive(1, "1.1"), node.receive(1, "1.2")
    for uid in ("1.1", "1.2"):
        node.complete(uid)
        node.analyse()
    node.flip(second)
    images = BadSector(node.files, first.path, errno.EMFILE)
    care = ImageCare(node.store, images, node.reopened.append)
    with pytest.raises(OSError, match="read"):
        care.verify_next()
    care.verify_next()
    assert node.reopened == ["1.2"]


def test_what_another_found_and_got_back_meanwhile_is_not_taken_away_again(node: Node) -> None:
    instance = node.receive(1)
    node.complete()
    node.flip(instance)

    class Slow(StoredFiles):
        def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
            if not node.reopened:  # between its look and its turn, another does all of it
                assert node.care.look_after(study_instance_uid)
                node.receive(1)
            return super().going(study_instance_uid)

    assert not ImageCare(node.store, Slow(node.files), node.reopened.append).look_after(UID)
    assert node.path(instance).exists()
    assert len(node.store.damages(UID)) == 1


def test_a_result_stands_when_the_same_images_are_back(node: Node) -> None:
    first = node.receive(1)
    node.complete()
    node.analyse()
    node.flip(first)
    node.care.look_after(UID)
    node.receive(1)
    assert node.complete() is None
    assert node.study_state is StudyState.COMPLETE
    assert node.states == [AnalysisState.SUCCEEDED]


def test_a_result_stands_when_nobody_has_the_image_any_more(node: Node) -> None:
    first = node.receive(1)
    node.receive(2)
    node.complete()
    node.analyse()
    node.flip(first)
    node.care.look_after(UID)
    node.store.complete_study(UID, Priority.ROUTINE, Completeness.UNCONFIRMED)
    assert node.study_state is StudyState.COMPLETE
    assert node.states == [AnalysisState.SUCCEEDED]


def test_a_new_image_among_those_that_are_back_makes_a_revision(node: Node) -> None:
    first = node.receive(1)
    node.complete()
    node.analyse()
    node.flip(first)
    node.care.look_after(UID)
    node.receive(1)
    node.receive(2)
    assert node.complete() is not None
    assert node.states == [AnalysisState.SUPERSEDED, AnalysisState.QUEUED]


def test_an_analysis_that_had_not_ended_begins_anew(node: Node) -> None:
    first = node.receive(1)
    node.complete()
    node.flip(first)
    node.care.look_after(UID)
    assert node.states == [AnalysisState.SUPERSEDED]
    node.receive(1)
    assert node.complete() is not None
    assert node.states == [AnalysisState.SUPERSEDED, AnalysisState.QUEUED]


def test_an_image_is_not_asked_for_for_ever(node: Node) -> None:
    for _ in range(TIMES_ASKED_AGAIN):
        node.flip(node.receive(1))
        assert node.care.look_after(UID)
    node.flip(node.receive(1))
    assert not node.care.look_after(UID)
    assert len(node.store.instances(UID)) == 1
    assert len(node.store.damages(UID)) == TIMES_ASKED_AGAIN


def _analyst(node: Node) -> Analyst:
    return Analyst(
        node.store,
        FakeSeriesReader(values.small_volume(), UNREADABLE),
        FakeInference(values.MODEL, values.volume_analysis()),
        Outbox([], {}),
        node.clock,
        SequentialUids(),
        lambda: values.MODEL,
        RetryPolicy((10.0,)),
        deadline_s=60,
        maximum_attempts=3,
        look_after=node.care.look_after,
    )


def test_what_cannot_be_read_because_of_the_disk_is_not_told_as_not_analysable(node: Node) -> None:
    node.flip(node.receive(1))
    node.complete()
    assert _analyst(node).run_next()
    assert node.states == [AnalysisState.SUPERSEDED]
    assert node.study_state is StudyState.RECEIVING
    node.receive(1)
    assert node.complete() is not None


def test_what_was_bad_as_received_is_told_and_not_asked_for_again(node: Node) -> None:
    node.receive(1)
    node.complete()
    assert _analyst(node).run_next()
    assert node.states == [AnalysisState.NOT_ANALYSABLE]
    assert not node.store.damages(UID)
    assert node.study_state is StudyState.COMPLETE


def test_who_opens_a_study_whose_image_is_damaged_finds_that_and_is_told(node: Node) -> None:
    first = node.receive(1)
    node.complete()
    node.analyse()
    node.flip(first)
    uids, inference = SequentialUids(), FakeInference(values.MODEL, values.volume_analysis())
    desk = ReviewDesk(
        node.store,
        FakeSeriesReader(values.small_volume(), UNREADABLE),
        Outbox([], {}),
        Links([], inference, node.clock),
        node.clock,
        uids,
        [],
        [],
        Watchdog(node.store, node.clock, (), node.reopened.append),
        look_after=node.care.look_after,
    )
    with pytest.raises(ReviewConflict) as told:
        desk.volume(UID, 1)
    assert told.value.conflict is Conflict.IMAGES_DAMAGED
    assert [d.sop_instance_uid for d in desk.study(UID).damages] == [first.sop_instance_uid]
    node.receive(1)
    with pytest.raises(ReviewConflict) as told:
        desk.volume(UID, 1)
    assert told.value.conflict is Conflict.IMAGES_GONE, "the bytes are right, and yet unreadable"


def test_images_that_changed_the_choice_are_read_once_for_all_who_ask(node: Node) -> None:
    node.receive(1)
    node.complete()
    node.analyse()
    looked: list[str] = []

    def look_after(uid: str) -> bool:
        looked.append(uid)
        return False

    reader = FakeSeriesReader(values.small_volume(), UNREADABLE)
    inference = FakeInference(values.MODEL, values.volume_analysis())
    desk = ReviewDesk(
        node.store,
        reader,
        Outbox([], {}),
        Links([], inference, node.clock),
        node.clock,
        SequentialUids(),
        [],
        [],
        Watchdog(node.store, node.clock, (), node.reopened.append),
        look_after=look_after,
    )
    for _ in range(3):
        with pytest.raises(ReviewConflict) as told:
            desk.volume(UID, 1)
        assert told.value.conflict is Conflict.IMAGES_GONE
    assert looked == [UID]
    node.receive(2)
    with pytest.raises(ReviewConflict):
        desk.volume(UID, 1)
    assert looked == [UID, UID], "another image came: it is looked at anew"


def test_studies_are_looked_at_one_after_the_other_when_there_is_time(node: Node) -> None:
    damaged = [node.receive(1, f"1.{number}") for number in (1, 2, 3)]
    for number in (1, 2, 3):
        node.complete(f"1.{number}")
    node.flip(damaged[2])
    node.care.verify_next()
    assert not node.reopened, "analyses wait"
    for _ in range(3):
        node.analyse()
    for _ in range(2):
        node.care.verify_next()
    assert not node.reopened
    node.care.verify_next()
    assert node.reopened == ["1.3"]
    node.receive(1, "1.3")
    node.complete("1.3")
    node.care.verify_next()  # past the last one: from the first again
    node.flip(damaged[0])
    node.care.verify_next()
    assert node.reopened == ["1.3", "1.1"]
