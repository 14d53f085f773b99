"""Storage commitment on every store: nothing forgotten or asked twice, failures sent again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import sqlalchemy as sa
from phoi_edge_node.commitment import (
    ANSWER_WITHIN,
    CLASS_CONFLICT,
    GIVE_UP_AFTER,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    REFUSALS,
    CommitmentClerk,
    CommitmentReport,
    CommitmentRequest,
    CommitmentState,
    Reference,
)
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.result import Priority
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, DeliveryState
from phoi_edge_node.testing import FakeClock, SequentialUids
from support import values

STUDY = "1.2.3"
CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclass
class FakePeer:
    """An archive that keeps what it is asked."""

    name: str = "pacs"
    ae_title: str = "PACS"
    outcome: SendOutcome = Delivered()  # noqa: RUF009 - frozen
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def ask(self, transaction_uid: str, documents: Sequence[Document]) -> SendOutcome:
        self.asked.append((transaction_uid, tuple(d.identity for d in documents)))
        return self.outcome

    def answer(self, *failed: str) -> CommitmentReport:
        """To the last question: all is kept but ``failed``."""
        transaction_uid, identities = self.asked[-1]
        references = [Reference("1.2.3.4", identity) for identity in identities]
        return CommitmentReport(
            transaction_uid,
            tuple(r for r in references if r.sop_instance_uid not in failed),
            tuple((r, NO_SUCH_INSTANCE) for r in references if r.sop_instance_uid in failed),
        )


@dataclass
class Desk:
    """A clerk and all that is around."""

    store: SqlStore
    clock: FakeClock
    peer: FakePeer
    hashes: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clerk = CommitmentClerk(
            self.store,
            [self.peer],
            self.hashes.get,
            self.clock,
            SequentialUids(),
            lambda tries: timedelta(seconds=10 * tries),
        )

    def deliver(self, *documents: Document, settle: bool = True) -> None:
        """Documents of one study, else segmentation and report, are on their way to the archive."""
        for number in itertools.count(1):
            self.store.add_instance(values.instance(number, STUDY))
            if self.store.complete_study(STUDY, Priority.ROUTINE) is not None:
                break
        claimed = self.store.claim_analysis()
        assert claimed is not None
        self.store.pin_model(claimed.id, values.MODEL)
        told = documents or (
            values.document("1.2.1", DocumentKind.SEGMENTATION),
            values.document("1.2.2"),
        )
        outgoing = [Outgoing(document, ("pacs", "emr")) for document in told]
        result = values.result(STUDY, claimed.revision)
        assert self.store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, outgoing)
        if settle:
            self.settle()

    def settle(self) -> list[str]:
        """The courier delivers what is due; the identities that went."""
        sent = []
        while (claimed := self.store.claim_delivery("pacs")) is not None:
            self.store.settle_delivery(claimed[0].id, Delivered(), self.clock.now())
            sent.append(claimed[1].identity)
        return sent

    @property
    def counts(self) -> Mapping[tuple[str, CommitmentState], int]:
        return self.store.commitment_counts()


@pytest.fixture
def desk(engine: sa.Engine, clock: FakeClock) -> Desk:
    return Desk(SqlStore(engine, clock), clock, FakePeer())


def test_an_archive_is_asked_once_about_a_study_when_all_of_it_was_delivered(desk: Desk) -> None:
    desk.deliver(settle=False)
    assert not desk.clerk.ask_next()
    desk.settle()
    assert desk.clerk.ask_next()
    assert not desk.clerk.ask_next()
    assert [identities for _, identities in desk.peer.asked] == [("1.2.1", "1.2.2")]
    assert desk.counts == {("pacs", CommitmentState.ASKED): 2}

    assert desk.clerk.reported("PACS", desk.peer.answer())

    assert desk.counts == {("pacs", CommitmentState.COMMITTED): 2}
    desk.clock.advance(2 * ANSWER_WITHIN.total_seconds())
    assert not desk.clerk.ask_next()


def test_what_was_rejected_since_is_not_asked_about(desk: Desk) -> None:
    desk.deliver()
    note = values.document("1.2.3", DocumentKind.REJECTION_NOTE)
    desk.deliver(note, values.document("1.2.4"))
    while desk.clerk.ask_next():
        pass
    assert [identities for _, identities in desk.peer.asked] == [("1.2.3", "1.2.4")]


def test_what_the_archive_does_not_hold_is_sent_again_as_it_was_and_asked_about_anew(
    desk: Desk,
) -> None:
    desk.deliver()
    desk.clerk.ask_next()
    desk.clerk.reported("PACS", desk.peer.answer("1.2.1"))

    desk.clerk.send_failed_again()

    assert desk.settle() == ["1.2.1"]
    assert [entry.username for entry in desk.store.audit()] == ["storage-commitment"]
    assert desk.clerk.ask_next()
    assert desk.peer.asked[-1][1] == ("1.2.1",)
    desk.clerk.reported("PACS", desk.peer.answer())
    assert desk.counts == {
        ("pacs", CommitmentState.COMMITTED): 2,
        ("pacs", CommitmentState.SENT_AGAIN): 1,
    }
    desk.clerk.send_failed_again()
    assert desk.settle() == []


def test_a_failure_of_what_was_replaced_sends_nothing(desk: Desk) -> None:
    desk.deliver()
    desk.clerk.ask_next()
    answer = desk.peer.answer("1.2.1", "1.2.2")
    desk.deliver()
    desk.clerk.reported("PACS", answer)
    desk.clerk.send_failed_again()
    assert desk.settle() == []
    assert desk.store.failed_commitments() == []


def test_an_archive_that_cannot_be_asked_is_asked_another_time(desk: Desk) -> None:
    desk.deliver()
    desk.peer.outcome = Unreachable("down")
    assert not desk.clerk.ask_next()
    assert desk.counts == {}
    desk.peer.outcome = Delivered()
    desk.clock.advance(10)
    assert desk.clerk.ask_next()


def test_an_archive_that_never_answers_is_asked_again(desk: Desk) -> None:
    desk.deliver()
    desk.clerk.ask_next()
    first = desk.peer.answer()
    desk.clock.advance(ANSWER_WITHIN.total_seconds() + 1)
    assert desk.clerk.ask_next()
    assert desk.counts == {
        ("pacs", CommitmentState.UNANSWERED): 2,
        ("pacs", CommitmentState.ASKED): 2,
    }
    assert desk.clerk.reported("PACS", first)  # late, and welcome
    assert desk.counts[("pacs", CommitmentState.COMMITTED)] == 2


def test_nobody_else_answers_for_the_archive(desk: Desk) -> None:
    desk.deliver()
    desk.clerk.ask_next()
    assert not desk.clerk.reported("STRANGER", desk.peer.answer("1.2.1"))
    unknown = CommitmentReport("2.25.999", (), ((Reference(CT, "1.2.1"), NO_SUCH_INSTANCE),))
    assert not desk.clerk.reported("PACS", unknown)
    assert desk.counts == {("pacs", CommitmentState.ASKED): 2}


def test_a_report_speaks_of_what_lies_on_disk_now(desk: Desk) -> None:
    sound, damaged, lost = (values.instance(number, STUDY) for number in (1, 2, 3))
    for instance in (sound, damaged, lost):
        desk.store.add_instance(instance)
    desk.hashes |= {sound.path: sound.sha256, damaged.path: "00" * 32, lost.path: None}
    references = [Reference(i.sop_class_uid, i.sop_instance_uid) for i in (sound, damaged, lost)]
    of_another_class = Reference("1.2.3.4", sound.sop_instance_uid)
    unknown = Reference(CT, "9.9.9")
    reports: list[CommitmentReport] = []
    desk.clerk.requested(
        CommitmentRequest("1.2.77", "CT1", (*references, of_another_class, unknown))
    )

    def take(ae_title: str, report: CommitmentReport) -> SendOutcome:
        assert ae_title == "CT1"
        reports.append(report)
        return Delivered()

    assert desk.clerk.report_next(take)
    assert not desk.clerk.report_next(take)
    (report,) = reports
    assert report.transaction_uid == "1.2.77"
    assert report.committed == (references[0],)
    assert report.failed == (
        (references[1], PROCESSING_FAILURE),
        (references[2], PROCESSING_FAILURE),
        (of_another_class, CLASS_CONFLICT),
        (unknown, NO_SUCH_INSTANCE),
    )


def test_a_report_is_tried_until_it_arrives_also_after_a_restart(
    desk: Desk, engine: sa.Engine
) -> None:
    desk.clerk.requested(CommitmentRequest("1.2.77", "CT1", (Reference(CT, "9.9.9"),)))
    assert desk.clerk.report_next(lambda *_: Unreachable("down"))
    assert not desk.clerk.report_next(lambda *_: Unreachable("not yet due"))
    again = Desk(SqlStore(engine, desk.clock), desk.clock, FakePeer())
    desk.clock.advance(11)
    assert again.clerk.report_next(lambda *_: Delivered())
    desk.clock.advance(1000)
    assert not again.clerk.report_next(lambda *_: Delivered())


def test_a_report_that_nobody_takes_is_given_up(desk: Desk) -> None:
    desk.clerk.requested(CommitmentRequest("1.2.77", "CT1", (Reference(CT, "9.9.9"),)))
    for _ in range(GIVE_UP_AFTER):
        assert desk.clerk.report_next(lambda *_: Unreachable("down"))
        desk.clock.advance(1000)
    assert not desk.clerk.report_next(lambda *_: Unreachable("down"))


def test_a_request_twice_is_one(desk: Desk) -> None:
    for _ in range(2):
        assert desk.clerk.requested(CommitmentRequest("1.2.77", "CT1", (Reference(CT, "9.9"),)))
    assert desk.clerk.report_next(lambda *_: Delivered())
    assert not desk.clerk.report_next(lambda *_: Delivered())


def test_what_is_delivered_stays_delivered_while_an_archive_is_asked(desk: Desk) -> None:
    desk.deliver()
    desk.clerk.ask_next()
    states = {d.state for d in desk.store.deliveries(STUDY) if d.destination == "pacs"}
    assert states == {DeliveryState.DELIVERED}


def test_an_archive_that_refuses_is_asked_ever_later_and_then_no_more(desk: Desk) -> None:
    desk.deliver()
    desk.peer.outcome = Refused("no such service")
    waited = []
    while desk.clerk.refused_by == ():
        asked, seconds = len(desk.peer.asked), 0
        while len(desk.peer.asked) == asked:
            desk.clerk.ask_next()
            desk.clock.advance(1)
            seconds += 1
        waited.append(seconds)
    assert waited == [1, *range(10, 10 * REFUSALS, 10)]
    assert desk.clerk.refused_by == ("pacs",)
    desk.clock.advance(86400)
    desk.clerk.ask_next()
    assert len(desk.peer.asked) == REFUSALS


def test_an_archive_that_is_away_is_asked_again_without_end(desk: Desk) -> None:
    desk.deliver()
    desk.peer.outcome = Unreachable("no answer")
    for _ in range(2 * REFUSALS):
        desk.clerk.ask_next()
        desk.clock.advance(3600)
    assert len(desk.peer.asked) == 2 * REFUSALS
    assert desk.clerk.refused_by == ()
    desk.peer.outcome = Delivered()
    assert desk.clerk.ask_next()
