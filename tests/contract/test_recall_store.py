"""What every ``RecallStore`` keeps to: SQLite and PostgreSQL run the same suite."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from threading import Barrier, Event
from typing import Any

import pytest
import sqlalchemy as sa
from phoi_edge_node.errors import IllegalTransition, ReviewConflict, TransitionRefused
from phoi_edge_node.ports import Delivered, DocumentKind, Refused, ReportStatus, Unreachable
from phoi_edge_node.recalled import (
    Again,
    Notice,
    RecallAction,
    RecallCriteria,
    RecallItem,
    RecallRequest,
)
from phoi_edge_node.result import Correction, Outcome, Priority, SignedReview, Verdict
from phoi_edge_node.sql import deliveries, reviews
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, AnalysisState, DeliveryState, ReviewState
from phoi_edge_node.testing import FakeClock
from phoi_models.identity import ModelIdentity
from support import values

BAD = values.MODEL
GOOD = replace(values.MODEL, version="1.1.0", bundle_hash="cd" * 32)
BAD_VERSION = RecallCriteria(BAD.name, BAD.version)
REQUEST = RecallRequest(BAD_VERSION, "too many false marks", "it")
LANES = ("pacs", "emr")


@pytest.fixture
def store(engine: sa.Engine, clock: FakeClock) -> SqlStore:
    return SqlStore(engine, clock)


class Site:
    """A store with the few steps that these tests need."""

    def __init__(self, store: SqlStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock

    def begin(self, uid: str, images: Sequence[int] = (1,)) -> str:
        """Images come; their analysis runs, pinned to the bad version."""
        for number in images:
            self.store.add_instance(values.instance(number, uid))
        analysis_id = self.store.complete_study(uid, Priority.ROUTINE)
        assert analysis_id is not None
        claimed = self.store.claim_analysis()
        assert claimed is not None
        assert claimed.id == analysis_id
        assert self.store.pin_model(analysis_id, BAD)
        return analysis_id

    def finish(self, analysis_id: str, uid: str, revision: int = 1) -> None:
        sr = values.document(f"{uid}-sr-{revision}")
        outgoing = [Outgoing(sr, LANES)]
        result = values.result(uid, revision)
        finish = AnalysisEvent.FINISH
        assert self.store.finish_analysis(analysis_id, finish, result, outgoing)

    def result(self, uid: str, *arrives_at: str) -> str:
        analysis_id = self.begin(uid)
        self.finish(analysis_id, uid)
        for destination in arrives_at:
            self.deliver(destination)
        return analysis_id

    def deliver(self, destination: str) -> None:
        claimed = self.store.claim_delivery(destination)
        assert claimed is not None
        self.store.settle_delivery(claimed[0].id, Delivered(), self.clock.now())

    def sign(self, analysis_id: str) -> None:
        (nodule,) = values.result().nodules
        self.store.decide(
            analysis_id, nodule.tracking_uid, Verdict.ACCEPTED, "an", "", Correction()
        )
        current = self.store.review(analysis_id).current
        signed = SignedReview("an", "Bs. An", self.clock.now(), tuple(current.values()))
        self.store.sign(analysis_id, signed, [Outgoing(values.document("final"), LANES)])

    def next_revision(self, uid: str, model: ModelIdentity) -> str:
        """Late images come; the analysis of the second revision runs."""
        self.store.add_instance(replace(values.instance(2, uid), sop_instance_uid=f"{uid}.99"))
        analysis_id = self.store.complete_study(uid, Priority.ROUTINE)
        assert analysis_id is not None
        assert self.store.claim_analysis() is not None
        assert self.store.pin_model(analysis_id, model)
        return analysis_id

    def refuse(self, destination: str) -> None:
        claimed = self.store.claim_delivery(destination)
        assert claimed is not None
        self.store.settle_delivery(claimed[0].id, Refused("no"), self.clock.now())

    def tell(self) -> RecallItem:
        """Write the next notice, for every lane."""
        item = self.store.next_notice()
        assert item is not None
        notice = values.document(f"withdrawn-{item.id}")
        outgoing = [Outgoing(notice, LANES)]
        assert self.store.tell_withdrawal(item, outgoing, values.PATIENT) == ()
        return item

    def withdrawals(self, uid: str) -> set[str]:
        """Where notices go."""
        told = (d for d in self.store.deliveries(uid) if d.status is ReportStatus.WITHDRAWN)
        return {d.destination for d in told}

    def states(self, uid: str) -> list[AnalysisState]:
        return [a.state for a in self.store.analyses(uid)]


@pytest.fixture
def site(store: SqlStore, clock: FakeClock) -> Site:
    return Site(store, clock)


def test_a_recall_withdraws_at_once_and_sends_nothing_more(site: Site, store: SqlStore) -> None:
    analysis_id = site.result("1.1", "pacs")
    (found,) = store.recallable(BAD_VERSION)
    assert found.action is RecallAction.WITHDRAW
    assert found.deliveries == {
        "pacs": {DeliveryState.DELIVERED: 1},
        "emr": {DeliveryState.PENDING: 1},
    }
    assert store.ask_recall(REQUEST) == 1
    assert site.states("1.1") == [AnalysisState.WITHDRAWN]
    assert store.review(analysis_id).state is ReviewState.WITHDRAWN
    assert store.claim_delivery("emr") is None
    with pytest.raises(TransitionRefused):
        store.decide(analysis_id, "2.25.1", Verdict.ACCEPTED, "an", "", Correction())
    assert [p.target for p in store.pauses()] == [f"model:{BAD.name}@{BAD.version}"]
    audited = {e.action: e.detail for e in store.audit()}
    assert REQUEST.reason in audited["recall"]
    assert "pause" in audited


def test_only_who_may_have_been_told_is_told_and_only_once(site: Site, store: SqlStore) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(REQUEST)
    item = site.tell()
    assert site.withdrawals("1.1") == {"pacs"}
    assert store.next_notice() is None
    # A second worker, or the same after a crash, finds it done.
    again = Outgoing(values.document("again"), LANES)
    assert store.tell_withdrawal(item, [again], values.PATIENT) == ()
    assert len([d for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN]) == 1
    (recall,) = store.recalls()
    assert recall.done
    (use,) = store.use().models
    assert (use.received, use.analysed, use.withdrawn) == (1, 1, 1)
    assert recall.notices == {Notice.QUEUED: 1}
    assert store.withdrawals(1) == {"pacs": {DeliveryState.PENDING: 1}}


def test_who_refused_at_once_never_had_it_and_who_was_silent_may_have(
    site: Site, store: SqlStore, clock: FakeClock
) -> None:
    site.result("1.1")
    for lane, answer in (("pacs", Refused("no")), ("emr", Unreachable("time-out"))):
        claimed = store.claim_delivery(lane)
        assert claimed is not None
        store.settle_delivery(claimed[0].id, answer, clock.now())
    store.ask_recall(REQUEST)
    site.tell()
    assert site.withdrawals("1.1") == {"emr"}


def test_what_is_being_sent_while_it_is_recalled_is_not_tried_again(
    site: Site, store: SqlStore, clock: FakeClock
) -> None:
    site.result("1.1")
    claimed = store.claim_delivery("pacs")
    assert claimed is not None
    store.ask_recall(REQUEST)
    site.tell()
    state = store.settle_delivery(claimed[0].id, Unreachable("cut"), clock.now())
    assert state is DeliveryState.SUPERSEDED
    assert site.withdrawals("1.1") == {"pacs"}
    with pytest.raises(IllegalTransition):
        store.resend(claimed[0].id, "an")


def test_a_withdrawn_document_is_not_sent_again(site: Site, store: SqlStore) -> None:
    site.result("1.1", "pacs")
    (delivery,) = store.deliveries("1.1", (DeliveryState.DELIVERED,))
    store.ask_recall(REQUEST)
    with pytest.raises(IllegalTransition, match="recalled"):
        store.resend(delivery.id, "an")


def test_nobody_is_told_of_what_never_went_out(site: Site, store: SqlStore) -> None:
    site.result("1.1")
    store.ask_recall(REQUEST)
    site.tell()
    assert site.withdrawals("1.1") == set()
    assert store.recalls()[0].notices == {Notice.NOBODY_TOLD: 1}


def test_a_signed_result_stays_until_its_people_look(site: Site, store: SqlStore) -> None:
    analysis_id = site.result("1.1", "pacs")
    site.sign(analysis_id)
    store.ask_recall(REQUEST)
    assert store.next_notice() is None
    assert site.states("1.1") == [AnalysisState.SUCCEEDED]
    assert store.review(analysis_id).state is ReviewState.SIGNED
    assert store.claim_delivery("pacs") is not None, "the signed report goes on its way"
    (study,) = store.studies()
    assert study.recalled
    assert store.confirm_recalled("1.1", "an")
    assert not store.studies()[0].recalled
    assert not store.confirm_recalled("1.1", "an")
    assert "confirm_recalled" in {e.action for e in store.audit()}


def test_a_signed_result_is_withdrawn_where_that_is_said(site: Site, store: SqlStore) -> None:
    analysis_id = site.result("1.1", "pacs", "emr")
    site.sign(analysis_id)
    store.ask_recall(replace(REQUEST, signed_too=True))
    assert store.review(analysis_id).state is ReviewState.WITHDRAWN
    assert store.review(analysis_id).signed is not None, "nothing of the history is lost"
    site.tell()
    assert site.withdrawals("1.1") == set(LANES)
    assert not store.studies()[0].recalled


def test_what_is_signed_after_a_revoked_signature_is_a_correction(
    site: Site, store: SqlStore
) -> None:
    site.sign(site.result("1.1", "pacs"))
    store.ask_recall(replace(REQUEST, signed_too=True, pause=False))
    store.add_instance(values.instance(2, "1.1"))
    second = store.complete_study("1.1", Priority.ROUTINE)
    assert second is not None
    assert store.claim_analysis() is not None
    site.finish(second, "1.1", revision=2)
    site.sign(second)
    assert store.deliveries("1.1")[-1].status is ReportStatus.CORRECTED


def test_what_runs_is_begun_anew_and_its_model_waits(site: Site, store: SqlStore) -> None:
    running = site.begin("1.1")
    store.ask_recall(REQUEST)
    assert site.states("1.1") == [AnalysisState.SUPERSEDED, AnalysisState.QUEUED]
    late = [Outgoing(values.document("late"), LANES)]
    assert not store.finish_analysis(running, AnalysisEvent.FINISH, values.result("1.1"), late)
    paused = f"{BAD.name}@{BAD.version}"
    assert store.claim_analysis([paused], unpinned=False) is None
    claimed = store.claim_analysis([paused])
    assert claimed is not None
    assert not store.pin_model(claimed.id, BAD), "it was paused"
    assert store.pin_model(claimed.id, GOOD)


def test_one_version_is_paused_and_the_others_go_on(site: Site, store: SqlStore) -> None:
    for uid, model in (("1.1", BAD), ("1.2", GOOD)):
        store.add_instance(values.instance(1, uid))
        analysis_id = store.complete_study(uid, Priority.ROUTINE)
        assert analysis_id is not None
        store.pin_model(analysis_id, model)
    claimed = store.claim_analysis([f"{BAD.name}@{BAD.version}"])
    assert claimed is not None
    assert claimed.model == GOOD
    assert store.claim_analysis([f"{BAD.name}@{BAD.version}"]) is None
    assert store.claim_analysis([f"{BAD.name}@0.9"]) is not None


def test_what_a_queued_revision_is_to_replace_still_stands_outside(
    site: Site, store: SqlStore
) -> None:
    site.result("1.1", "pacs", "emr")
    store.add_instance(values.instance(2, "1.1"))
    store.complete_study("1.1", Priority.ROUTINE)
    store.ask_recall(REQUEST)
    assert site.states("1.1") == [AnalysisState.WITHDRAWN, AnalysisState.QUEUED]
    site.tell()
    assert site.withdrawals("1.1") == set(LANES)


def test_what_a_later_result_has_replaced_is_left(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    store.add_instance(values.instance(2, "1.1"))
    second = store.complete_study("1.1", Priority.ROUTINE)
    assert second is not None
    assert store.claim_analysis() is not None
    store.pin_model(second, GOOD)
    site.finish(second, "1.1", revision=2)
    (found,) = store.recallable(BAD_VERSION)
    assert found.action is RecallAction.NOTHING
    store.ask_recall(REQUEST)
    assert site.states("1.1") == [AnalysisState.SUPERSEDED, AnalysisState.SUCCEEDED]
    assert store.recalls()[0].done


def test_recalling_twice_withdraws_once(site: Site, store: SqlStore) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(REQUEST)
    site.tell()
    store.ask_recall(REQUEST)
    assert store.next_notice() is None
    assert store.recalls()[0].actions == {}


def test_a_study_is_analysed_again_by_the_model_that_is_named(site: Site, store: SqlStore) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(replace(REQUEST, replacement=f"{GOOD.name}@{GOOD.version}"))
    assert store.settled_studies() == [], "its images are needed"
    site.tell()
    item = store.next_again()
    assert item is not None
    assert store.analyse_again(item.id, GOOD) is Again.QUEUED
    assert store.analyse_again(item.id, GOOD) is Again.QUEUED
    withdrawn, queued = store.analyses("1.1")
    assert (withdrawn.state, queued.state) == (AnalysisState.WITHDRAWN, AnalysisState.QUEUED)
    assert queued.model == GOOD
    assert store.next_again() is None
    # The notice still goes, before what the next revision tells.
    assert [d.state for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN] == [
        DeliveryState.PENDING
    ]


def test_removed_images_that_come_again_are_analysed(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    assert store.expire_study("1.1")
    store.ask_recall(replace(REQUEST, replacement="current"))
    site.tell()
    assert site.withdrawals("1.1") == set(LANES)
    item = store.next_again()
    assert item is not None
    assert store.analyse_again(item.id, GOOD) is Again.NO_IMAGES
    store.add_instance(values.instance(1, "1.1"))
    assert store.complete_study("1.1", Priority.ROUTINE) is not None


def test_what_is_put_off_waits_and_says_why(site: Site, store: SqlStore, clock: FakeClock) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(REQUEST)
    item = store.next_notice()
    assert item is not None
    store.put_off(item.id, "the disk is full", clock.now() + timedelta(minutes=1))
    assert store.next_notice() is None
    assert store.recalls()[0].trouble == "the disk is full"
    clock.advance(61)
    assert store.next_notice() == item
    assert store.recalls_waiting() == (1, 0, 0)


def test_a_correction_of_the_patient_does_not_stop_a_withdrawal(
    site: Site, store: SqlStore
) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(REQUEST)
    item = store.next_notice()
    assert item is not None
    somebody_else = replace(values.PATIENT, name="Trần^Bình")
    notice = Outgoing(values.document("withdrawn"), LANES)
    assert store.tell_withdrawal(item, [notice], somebody_else) is None
    assert store.next_notice() == item


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (RecallCriteria(BAD.name), {"1.1", "1.2"}),
        (RecallCriteria(GOOD.name, GOOD.version), set()),
        (RecallCriteria(calling_ae_title="PACS"), {"1.1", "1.2"}),
        (RecallCriteria(calling_ae_title="OTHER"), set()),
        (RecallCriteria(BAD.name, outcome=Outcome.NEGATIVE), set()),
        (RecallCriteria(since=values.AT + timedelta(hours=1)), {"1.2"}),
        (RecallCriteria(until=values.AT + timedelta(hours=1)), {"1.1"}),
    ],
)
def test_which_results_are_meant(
    site: Site, store: SqlStore, clock: FakeClock, criteria: RecallCriteria, expected: set[str]
) -> None:
    site.result("1.1")
    clock.advance(7200)
    site.result("1.2")
    assert {r.study_instance_uid for r in store.recallable(criteria)} == expected


def test_studies_whose_sender_is_forgotten_are_counted(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    assert store.unknown_senders() == 0
    assert store.expire_study("1.1")
    assert store.unknown_senders() == 1
    assert store.recallable(RecallCriteria(calling_ae_title="PACS")) == []


def test_kinds_of_documents_do_not_matter(site: Site, store: SqlStore) -> None:
    """Who got any document of a result gets the notice in the kinds it takes."""
    analysis_id = site.begin("1.1")
    seg = values.document("seg", DocumentKind.SEGMENTATION)
    outgoing = [Outgoing(seg, ("pacs",)), Outgoing(values.document("sr"), ("pacs",))]
    result = values.result("1.1")
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, result, outgoing)
    site.deliver("pacs")  # the SEG alone
    store.ask_recall(REQUEST)
    site.tell()
    assert site.withdrawals("1.1") == {"pacs"}


def test_what_was_withdrawn_before_is_analysed_again_once_there_is_a_better_model(
    site: Site, store: SqlStore
) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(REQUEST)
    site.tell()
    (found,) = store.recallable(BAD_VERSION, redo=True)
    assert found.action is RecallAction.ANALYSE_AGAIN
    store.ask_recall(replace(REQUEST, replacement="current"))
    assert store.next_notice() is None
    item = store.next_again()
    assert item is not None
    assert store.analyse_again(item.id, GOOD) is Again.QUEUED


def test_a_signature_and_a_recall_at_the_same_moment_agree(site: Site, store: SqlStore) -> None:
    """Either the result was signed first, and is left, or it is withdrawn, and nobody signs."""
    for uid in ("1.1", "1.2", "1.3"):
        analysis_id = site.result(uid)
        together = Barrier(2)

        def sign(analysis_id: str = analysis_id, together: Barrier = together) -> None:
            together.wait()
            with suppress(IllegalTransition, ReviewConflict):
                site.sign(analysis_id)

        with ThreadPoolExecutor() as pool:
            signing = pool.submit(sign)
            together.wait()
            store.ask_recall(replace(REQUEST, pause=False))
            signing.result()
        review, (analysis,) = store.review(analysis_id), store.analyses(uid)
        withdrawn = analysis.state is AnalysisState.WITHDRAWN
        assert withdrawn == (review.state is ReviewState.WITHDRAWN)
        final = [d for d in store.deliveries(uid) if d.status is ReportStatus.FINAL]
        assert bool(final) == (review.signed is not None)
        assert not (withdrawn and final)


def test_a_notice_does_not_take_back_a_later_result(site: Site, store: SqlStore) -> None:
    site.result("1.1", "pacs")
    store.ask_recall(replace(REQUEST, pause=False))
    store.add_instance(values.instance(2, "1.1"))
    second = store.complete_study("1.1", Priority.ROUTINE)
    assert second is not None
    assert store.claim_analysis() is not None
    site.finish(second, "1.1", revision=2)
    site.tell()
    assert site.withdrawals("1.1") == set()
    assert store.recalls()[0].notices == {Notice.OVERTAKEN: 1}


def test_a_later_result_that_told_nothing_overtakes_no_notice(site: Site, store: SqlStore) -> None:
    """It was silent since a person had signed the result that is now withdrawn."""
    first = site.result("1.1", *LANES)
    site.sign(first)
    for lane in LANES:
        site.deliver(lane)
    second = site.next_revision("1.1", GOOD)
    finish = AnalysisEvent.FINISH
    assert store.finish_analysis(second, finish, values.result("1.1", 2), [])
    store.ask_recall(replace(REQUEST, signed_too=True))
    site.tell()
    assert site.withdrawals("1.1") == set(LANES)
    assert store.recalls()[0].notices == {Notice.QUEUED: 1}


def test_a_later_failure_that_told_nothing_overtakes_no_notice(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    second = site.next_revision("1.1", GOOD)
    store.ask_recall(REQUEST)
    assert store.finish_analysis(second, AnalysisEvent.GIVE_UP, values.result("1.1", 2), [])
    site.tell()
    assert site.withdrawals("1.1") == set(LANES)


def test_who_refused_the_later_result_is_told(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    site.finish(site.next_revision("1.1", GOOD), "1.1", revision=2)
    site.refuse("pacs")
    (found,) = store.recallable(BAD_VERSION)
    assert found.action is RecallAction.WITHDRAW
    store.ask_recall(REQUEST)
    site.tell()
    assert site.withdrawals("1.1") == {"pacs"}
    (dead,) = store.deliveries("1.1", (DeliveryState.DEAD,))
    with pytest.raises(IllegalTransition):
        store.resend(dead.id, "it")  # it would come before the notice
    site.deliver("pacs")
    store.resend(dead.id, "it")
    claimed = store.claim_delivery("pacs")
    assert claimed is not None
    assert claimed[1].identity == "1.1-sr-2"


def test_two_results_of_a_study_make_one_notice_for_each_destination(
    site: Site, store: SqlStore
) -> None:
    first = site.result("1.1", *LANES)
    site.sign(first)
    for lane in LANES:
        site.deliver(lane)
    second = site.next_revision("1.1", BAD)
    finish = AnalysisEvent.FINISH
    assert store.finish_analysis(second, finish, values.result("1.1", 2), [])
    store.ask_recall(replace(REQUEST, signed_too=True))
    site.tell()
    site.tell()
    told = [d for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN]
    assert sorted(d.destination for d in told) == sorted(LANES)
    assert store.recalls()[0].notices == {Notice.QUEUED: 1, Notice.OVERTAKEN: 1}


def test_each_destination_is_told_of_the_latest_result_it_has(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    site.finish(site.next_revision("1.1", BAD), "1.1", revision=2)
    site.deliver("emr")
    site.refuse("pacs")
    store.ask_recall(REQUEST)
    site.tell()
    site.tell()
    told = [d for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN]
    assert {(d.destination, d.revision) for d in told} == {("pacs", 1), ("emr", 2)}


def test_a_notice_waits_for_a_destination_that_is_gone_from_the_settings(
    site: Site, store: SqlStore
) -> None:
    site.result("1.1", *LANES)
    store.ask_recall(REQUEST)
    item = store.next_notice()
    assert item is not None
    to_pacs = [Outgoing(values.document("withdrawn"), ("pacs",))]
    assert store.tell_withdrawal(item, to_pacs, values.PATIENT) == {"emr"}
    assert store.tell_withdrawal(item, to_pacs, values.PATIENT) == {"emr"}
    assert not store.recalls()[0].done
    site.tell()
    told = [d for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN]
    assert sorted(d.destination for d in told) == sorted(LANES), "once each"
    assert store.recalls()[0].done


def test_a_part_of_a_notice_goes_out_before_the_rest(site: Site, store: SqlStore) -> None:
    site.result("1.1", *LANES)
    store.ask_recall(REQUEST)
    item = store.next_notice()
    assert item is not None
    note = Outgoing(values.document("note", DocumentKind.KEY_OBJECTS), LANES)
    sr = Outgoing(values.document("sr-withdrawn"), LANES)
    assert store.tell_withdrawal(item, [note], values.PATIENT, whole=False) == set(LANES)
    assert site.withdrawals("1.1") == set(LANES)
    assert store.next_notice() == item
    again = Outgoing(values.document("note-again", DocumentKind.KEY_OBJECTS), LANES)
    assert store.tell_withdrawal(item, [again, sr], values.PATIENT) == ()
    told = [d for d in store.deliveries("1.1") if d.status is ReportStatus.WITHDRAWN]
    expected = {(name, lane) for name in ("note", "sr-withdrawn") for lane in LANES}
    assert {(d.identity, d.destination) for d in told} == expected
    assert len(told) == len(expected)


def _signed_then_open(site: Site, uid: str) -> tuple[str, SignedReview]:
    """A study with a signed first revision, and a second one by the same model about to be."""
    site.sign(site.result(uid))
    second = site.next_revision(uid, BAD)
    finish = AnalysisEvent.FINISH
    assert site.store.finish_analysis(second, finish, values.result(uid, 2), [])
    (nodule,) = values.result().nodules
    site.store.decide(second, nodule.tracking_uid, Verdict.ACCEPTED, "an", "", Correction())
    current = site.store.review(second).current
    return second, SignedReview("an", "Bs. An", site.clock.now(), tuple(current.values()))


def test_a_second_signature_and_a_recall_never_wait_for_each_other(
    site: Site, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature holds the second review and wants the first, whichever sorts first."""
    real = reviews._require_standing
    for number in range(4):
        second, signed = _signed_then_open(site, f"1.{number}")
        held, goes_on = Event(), Event()

        def standing(*args: Any, held: Event = held, goes_on: Event = goes_on) -> None:
            real(*args)
            held.set()
            goes_on.wait(0.3)  # till the recall waits for what it holds

        with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
            patch.setattr(reviews, "_require_standing", standing)
            signing = pool.submit(store.sign, second, signed, [])
            assert held.wait(10)
            store.ask_recall(replace(REQUEST, pause=False))
            goes_on.set()
            signing.result()
        assert store.review(second).state is ReviewState.SIGNED


def test_what_is_recalled_while_somebody_resends_it_does_not_go_out(
    site: Site, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.result("1.1")
    site.refuse("emr")
    (dead,) = store.deliveries("1.1", (DeliveryState.DEAD,))
    looked, goes_on = Event(), Event()
    real = deliveries._require_latest

    def require_latest(*args: Any) -> None:
        real(*args)
        looked.set()
        goes_on.wait(0.3)

    monkeypatch.setattr(deliveries, "_require_latest", require_latest)
    with ThreadPoolExecutor() as pool:
        resending = pool.submit(store.resend, dead.id, "it")
        assert looked.wait(10)
        store.ask_recall(REQUEST)
        goes_on.set()
        resending.result()
    assert store.claim_delivery("emr") is None


@pytest.mark.parametrize("again_told", [True, False])
def test_a_refused_notice_stays_until_something_later_goes_there(
    site: Site, store: SqlStore, *, again_told: bool
) -> None:
    site.result("1.1", *LANES)
    store.ask_recall(REQUEST)
    site.tell()
    site.refuse("emr")
    second = site.next_revision("1.1", GOOD)
    later = [Outgoing(values.document("failed"), LANES)] if again_told else []
    assert store.finish_analysis(second, AnalysisEvent.GIVE_UP, values.result("1.1", 2), later)
    store.acknowledge(second, "an")
    dead = store.deliveries("1.1", (DeliveryState.DEAD,))
    assert [d.status for d in dead] == ([] if again_told else [ReportStatus.WITHDRAWN])


def test_removed_images_of_a_signed_study_that_come_again_are_analysed(
    site: Site, store: SqlStore
) -> None:
    site.sign(site.result("1.1", *LANES))
    for lane in LANES:
        site.deliver(lane)
    assert store.expire_study("1.1")
    store.ask_recall(replace(REQUEST, replacement="current"))
    item = store.next_again()
    assert item is not None
    assert store.analyse_again(item.id, GOOD) is Again.NO_IMAGES
    store.add_instance(values.instance(1, "1.1"))
    assert store.complete_study("1.1", Priority.ROUTINE) is not None


def test_the_model_of_new_studies_is_changed_once(
    site: Site, store: SqlStore, clock: FakeClock
) -> None:
    store.ask_recall(REQUEST)
    assert store.next_switch() is None, "no other model is named"
    number = store.ask_recall(replace(REQUEST, replacement=f"{GOOD.name}@{GOOD.version}"))
    recall = store.next_switch()
    assert recall is not None
    assert (recall.id, recall.criteria, recall.done) == (number, BAD_VERSION, False)
    store.put_off_switch(number, "no worker", clock.now() + timedelta(minutes=1))
    assert store.next_switch() is None
    assert store.recalls()[0].trouble == "no worker"
    assert store.recalls_waiting() == (0, 0, 1)
    clock.advance(61)
    assert store.next_switch() is not None
    store.switched(number)
    assert store.next_switch() is None
    assert store.recalls()[0].done
