"""What every ``StudyStore`` keeps to: SQLite and PostgreSQL run the same suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from statistics import median
from threading import Barrier

import pytest
import sqlalchemy as sa
from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.errors import IllegalTransition, ReviewConflict
from phoi_edge_node.ports import (
    Delivered,
    DocumentKind,
    Erred,
    Intake,
    ReceivedInstance,
    Refused,
    ReportStatus,
    Unreachable,
)
from phoi_edge_node.reconciled import (
    Lack,
    LackingStudy,
    Mending,
    Reconciliation,
    ReconciliationReport,
)
from phoi_edge_node.result import Correction, Outcome, Priority, SignedReview, Verdict
from phoi_edge_node.sql import deliveries as sql_deliveries
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.sql.tables import metadata
from phoi_edge_node.store import InState, Outgoing, StoredAccount, StudyStore
from phoi_edge_node.study import (
    AnalysisEvent,
    AnalysisState,
    DeliveryState,
    ReviewState,
    StudyState,
)
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.usage import Durations, Marks
from support import values

UID = "1.2.3"


@pytest.fixture
def store(engine: sa.Engine, clock: FakeClock) -> StudyStore:
    return SqlStore(engine, clock)


def _complete(store: StudyStore, uid: str = UID, priority: Priority = Priority.ROUTINE) -> str:
    store.add_instance(values.instance(len(store.instances(uid)) + 1, uid))
    analysis_id = store.complete_study(uid, priority)
    assert analysis_id is not None
    return analysis_id


def _finish(store: StudyStore, uid: str = UID, *destinations: str) -> str:
    analysis_id = _complete(store, uid)
    claimed = store.claim_analysis()
    assert claimed is not None
    assert claimed.id == analysis_id
    store.pin_model(analysis_id, values.MODEL)
    outgoing = [
        Outgoing(values.document(f"{uid}-seg", DocumentKind.SEGMENTATION), destinations),
        Outgoing(values.document(f"{uid}-sr"), destinations),
    ]
    result = values.result(uid, claimed.revision)
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, result, outgoing)
    return analysis_id


def test_the_migrations_make_the_schema_that_the_tables_describe(engine: sa.Engine) -> None:
    found = sa.inspect(engine)
    assert set(metadata.tables) <= set(found.get_table_names())
    for name, table in metadata.tables.items():
        assert {c["name"] for c in found.get_columns(name)} == set(table.columns.keys())


def test_the_same_instance_twice_is_one_and_other_content_is_a_conflict(store: StudyStore) -> None:
    assert store.add_instance(values.instance(1)) is Intake.STORED
    assert store.add_instance(values.instance(1)) is Intake.DUPLICATE
    assert store.add_instance(values.instance(1, sha256="ff")) is Intake.CONFLICT
    assert store.instances(UID) == [values.instance(1)]
    path = values.instance(1).path
    assert store.indexed([path, "elsewhere.dcm"]) == {path}
    assert store.instance_counts() == {UID: 1}


def test_a_study_is_complete_once_and_a_duplicate_does_not_reopen_it(store: StudyStore) -> None:
    first = _complete(store)
    assert store.complete_study(UID, Priority.ROUTINE) is None
    store.add_instance(values.instance(1))
    assert store.receiving_studies() == []
    assert [a.id for a in store.analyses(UID)] == [first]


def test_a_late_instance_makes_the_next_revision_and_supersedes(store: StudyStore) -> None:
    _finish(store, UID, "pacs")
    store.add_instance(values.instance(2))
    study = store.study(UID)
    assert study is not None
    assert study.state is StudyState.RECEIVING
    assert study.instance_count == 2
    store.complete_study(UID, Priority.ROUTINE)
    assert [(a.revision, a.state) for a in store.analyses(UID)] == [
        (1, AnalysisState.SUPERSEDED),
        (2, AnalysisState.QUEUED),
    ]
    assert {d.state for d in store.deliveries(UID)} == {DeliveryState.SUPERSEDED}


def test_a_superseded_analysis_that_ends_late_stores_nothing(store: StudyStore) -> None:
    running = _complete(store)
    assert store.claim_analysis() is not None
    store.add_instance(values.instance(2))
    store.complete_study(UID, Priority.ROUTINE)
    out = [Outgoing(values.document("late"), ("pacs",))]
    stored = store.finish_analysis(running, AnalysisEvent.FINISH, values.result(), out)
    assert not stored
    assert store.deliveries(UID) == []


def test_what_is_urgent_is_claimed_first_then_what_is_older(
    store: StudyStore, clock: FakeClock
) -> None:
    for uid, priority in [
        ("1.1", Priority.ROUTINE),
        ("1.2", Priority.ROUTINE),
        ("1.3", Priority.STAT),
        ("1.4", Priority.URGENT),
    ]:
        _complete(store, uid, priority)
        clock.advance(1)
    claimed = [store.claim_analysis() for _ in range(5)]
    assert [a.study_instance_uid if a else None for a in claimed] == [
        "1.3",
        "1.4",
        "1.1",
        "1.2",
        None,
    ]


def test_a_retry_waits_keeps_its_model_and_survives_a_wrong_clock(
    store: StudyStore, clock: FakeClock
) -> None:
    analysis_id = _complete(store)
    store.claim_analysis()
    store.pin_model(analysis_id, values.MODEL)
    store.pin_model(analysis_id, values.MODEL.__class__("other", "2", "ff" * 32))
    later = clock.now() + timedelta(seconds=30)
    store.retry_analysis(analysis_id, "worker lost", later, reached_worker=True)
    assert store.claim_analysis() is None
    clock.advance(31)
    again = store.claim_analysis()
    assert again is not None
    assert (again.model, again.attempts, again.error) == (values.MODEL, 1, "worker lost")
    # The clock stood years ahead when this was written, and was then put right.
    store.retry_analysis(analysis_id, "", clock.now() + timedelta(days=900), reached_worker=True)
    assert store.claim_analysis() is not None


def test_a_paused_model_leaves_its_analyses_queued(store: StudyStore, clock: FakeClock) -> None:
    analysis_id = _complete(store)
    store.claim_analysis()
    store.pin_model(analysis_id, values.MODEL)
    store.retry_analysis(analysis_id, "", clock.now(), reached_worker=True)
    assert store.claim_analysis([values.MODEL.name]) is None
    assert store.claim_analysis(["another"]) is not None


def test_a_result_comes_back_as_it_was_stored(store: StudyStore) -> None:
    _finish(store)
    stored = store.latest_analyses([UID])[UID]
    assert stored.state is AnalysisState.SUCCEEDED
    assert stored.result is not None
    expected = values.result().nodules[0]
    nodule = stored.result.nodules[0]
    assert nodule.tracking_uid == expected.tracking_uid
    assert nodule.finding.center_lps_mm == expected.finding.center_lps_mm
    assert (nodule.finding.mask.voxels == expected.finding.mask.voxels).all()
    assert nodule.size_class == expected.size_class
    assert stored.result.identity == values.result().identity


def test_a_lane_keeps_the_order_within_a_study_and_only_there(
    store: StudyStore, clock: FakeClock
) -> None:
    _finish(store, "1.1", "pacs")
    _finish(store, "1.2", "pacs")
    first = store.claim_delivery("pacs")
    assert first is not None
    assert first[0].identity == "1.1-seg"
    # While the SEG of 1.1 is on its way its SR waits, and 1.2 does not.
    second = store.claim_delivery("pacs")
    assert second is not None
    assert second[0].identity == "1.2-seg"
    assert store.claim_delivery("pacs") is None
    later = clock.now() + timedelta(seconds=60)
    assert store.settle_delivery(first[0].id, Unreachable("x"), later) is DeliveryState.PENDING
    assert store.settle_delivery(second[0].id, Refused("no"), later) is DeliveryState.DEAD
    third = store.claim_delivery("pacs")
    assert third is not None
    assert third[0].identity == "1.2-sr"
    assert third[1].content == b"content of 1.2-sr"
    clock.advance(61)
    again = store.claim_delivery("pacs")
    assert again is not None
    assert (again[0].identity, again[0].attempts) == ("1.1-seg", 2)


def test_an_error_is_tried_again_so_often_and_no_more(store: StudyStore, clock: FakeClock) -> None:
    _finish(store, UID, "emr")
    states = []
    for answer in (Erred("AE"), Unreachable("x"), Erred("AE"), Erred("AE, error 207")):
        claimed = store.claim_delivery("emr")
        assert claimed is not None
        states.append(store.settle_delivery(claimed[0].id, answer, clock.now(), 3))
    assert states == [DeliveryState.PENDING] * 3 + [DeliveryState.DEAD]
    (dead,) = store.deliveries(UID, (DeliveryState.DEAD,))
    assert (dead.errors, dead.attempts, dead.last_error) == (3, 4, "AE, error 207, 3 times")
    store.resend(dead.id, "op")
    claimed = store.claim_delivery("emr")
    assert claimed is not None
    assert claimed[0].id == dead.id
    assert claimed[0].errors == 0, "a person's resend starts the count anew"
    assert store.settle_delivery(dead.id, Erred("AE"), clock.now(), 3) is DeliveryState.PENDING


def test_what_it_fails_on_again_and_again_holds_up_only_what_replaces_it(
    store: StudyStore, clock: FakeClock
) -> None:
    analysis_id = _finish(store, UID, "pacs")
    for _ in range(3):
        assert store.claim_delivery("pacs") is not None
        seg = store.deliveries(UID, (DeliveryState.SENDING,))
        assert [d.kind for d in seg] == [DocumentKind.SEGMENTATION], "its SR waits"
        store.settle_delivery(seg[0].id, Erred("status 0xC000"), clock.now())
    for _ in range(3):
        sr = store.claim_delivery("pacs")
        assert sr is not None
        assert sr[1].identity == f"{UID}-sr", "though the SEG is due too: it failed less"
        store.settle_delivery(sr[0].id, Erred("status 0xC000"), clock.now())
    later = clock.now() + timedelta(hours=1)
    for _ in range(2):
        claimed = store.claim_delivery("pacs")
        assert claimed is not None
        store.settle_delivery(claimed[0].id, Erred("status 0xC000"), later)
    _sign(store, analysis_id, "final-sr")
    assert store.claim_delivery("pacs") is None, "or the preliminary one would come last"


def test_what_waits_for_a_destination_that_is_back_is_due_at_once(
    store: StudyStore, clock: FakeClock
) -> None:
    for uid in (UID, "1.2.4", "1.2.5"):
        _finish(store, uid, "pacs", "emr")
    later = clock.now() + timedelta(hours=1)
    for lane in ("pacs", "emr"):
        for answer in (Unreachable("x"), Erred("y"), Unreachable("x")):
            claimed = store.claim_delivery(lane)
            assert claimed is not None
            store.settle_delivery(claimed[0].id, answer, later)
        assert store.claim_delivery(lane) is None
    clock.advance(60)
    assert store.hurry("pacs") == 2
    due = [store.claim_delivery("pacs") for _ in range(3)]
    assert [c[0].study_instance_uid for c in due if c] == [UID, "1.2.5"], "not what it failed on"
    assert store.claim_delivery("emr") is None, "another lane's"


def test_all_dead_letters_of_a_destination_go_again(
    store: StudyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in (UID, "1.2.4"):
        _finish(store, uid, "pacs", "emr")
    for lane in ("pacs", "emr"):
        while (claimed := store.claim_delivery(lane)) is not None:
            store.settle_delivery(claimed[0].id, Refused("no"), clock.now())
    monkeypatch.setattr(sql_deliveries, "_BATCH", 3)
    assert store.resend_dead("pacs", "op") == 4
    assert store.resend_dead("pacs", "op") == 0
    resent = store.deliveries(states=(DeliveryState.PENDING,))
    assert {d.destination for d in resent} == {"pacs"}
    audited = [(e.username, e.action, e.detail) for e in store.audit() if e.action == "resend"]
    assert audited == [("op", "resend", "pacs")] * 4


def test_the_dead_letters_of_a_lane_are_the_latest_whatever_others_have(
    store: StudyStore, clock: FakeClock
) -> None:
    for uid in (UID, "1.2.4", "1.2.5"):
        _finish(store, uid, "pacs", "emr")
    died = []
    for lane in ("emr", "pacs"):  # those of "pacs" are later
        while (claimed := store.claim_delivery(lane)) is not None:
            clock.advance(1)
            store.settle_delivery(claimed[0].id, Refused("no"), clock.now())
            died += [claimed[0].id] if lane == "emr" else []
    assert len(died) == 6
    assert [d.id for d in store.dead_letters("emr", 4)] == died[:1:-1]
    assert store.dead_letters("moon", 4) == []


def test_problems_are_counted_of_the_studies_that_are_shown(
    store: StudyStore, clock: FakeClock
) -> None:
    for uid in ("1.1", "1.2"):
        _finish(store, uid, "pacs")
    for outcome in (Refused("no"), Unreachable("x")):  # the SEG of 1.1, then its SR
        claimed = store.claim_delivery("pacs")
        assert claimed is not None
        store.settle_delivery(claimed[0].id, outcome, clock.now() + timedelta(hours=1))
    assert store.delivery_problems(["1.1", "1.2"], 2) == {"1.1": 1}
    assert store.delivery_problems(["1.1", "1.2"], 1) == {"1.1": 2}
    assert store.delivery_problems(["1.2"], 1) == {}


def test_a_dead_letter_can_be_sent_again_with_its_identity(
    store: StudyStore, clock: FakeClock
) -> None:
    _finish(store, UID, "pacs")
    claimed = store.claim_delivery("pacs")
    assert claimed is not None
    store.settle_delivery(claimed[0].id, Refused("no room"), clock.now())
    (dead,) = store.deliveries(states=[DeliveryState.DEAD])
    assert (dead.last_error, dead.status) == ("no room", ReportStatus.PRELIMINARY)
    store.resend(dead.id, "ba")
    again = store.claim_delivery("pacs")
    assert again is not None
    assert again[1] == claimed[1]
    with pytest.raises(IllegalTransition):
        store.resend(dead.id, "ba")
    with pytest.raises(KeyError):
        store.resend(999, "ba")
    assert store.audit()[0].action == "resend"


def test_what_was_under_way_when_the_process_died_is_queued_again(store: StudyStore) -> None:
    _finish(store, "1.1", "pacs")
    assert store.claim_delivery("pacs") is not None
    _complete(store, "1.2")
    assert store.claim_analysis() is not None
    assert store.requeue_interrupted() == 2
    assert store.claim_delivery("pacs") is not None
    assert store.claim_analysis() is not None


def test_dispositions_stand_until_undone_and_history_keeps_all(store: StudyStore) -> None:
    analysis_id = _finish(store)
    uid = values.result().nodules[0].tracking_uid
    store.decide(analysis_id, uid, Verdict.ACCEPTED, "an", "", Correction())
    store.decide(analysis_id, uid, Verdict.REJECTED, "an", "vessel", Correction())
    assert store.review(analysis_id).current[uid].verdict is Verdict.REJECTED
    undone = store.undo(analysis_id, "binh")
    assert undone is not None
    assert undone.verdict is Verdict.REJECTED
    review = store.review(analysis_id)
    assert review.current[uid].verdict is Verdict.ACCEPTED
    assert [(j.disposition.verdict, j.undone_by) for j in review.history] == [
        (Verdict.ACCEPTED, ""),
        (Verdict.REJECTED, "binh"),
    ]
    assert store.undo(analysis_id, "an") is not None
    assert store.undo(analysis_id, "an") is None
    assert [e.action for e in store.audit()] == ["undo", "undo", "decide", "decide"]


def _sign(store: StudyStore, analysis_id: str, identity: str) -> None:
    signed = SignedReview("an", "Bs. An", values.AT, ())
    store.sign(analysis_id, signed, [Outgoing(values.document(identity), ("pacs",))])


def test_what_is_signed_is_what_stands(store: StudyStore) -> None:
    analysis_id = _finish(store)
    seen = SignedReview("an", "Bs. An", values.AT, ())
    uid = values.result().nodules[0].tracking_uid
    store.decide(analysis_id, uid, Verdict.REJECTED, "binh", "", Correction())
    with pytest.raises(ReviewConflict):
        store.sign(analysis_id, seen, [])
    assert store.review(analysis_id).state is ReviewState.OPEN


def test_nothing_is_sent_again_that_would_overwrite_something_later(
    store: StudyStore, clock: FakeClock
) -> None:
    analysis_id = _finish(store, UID, "pacs")
    for outcome in (Delivered(), Delivered()):
        claimed = store.claim_delivery("pacs")
        assert claimed is not None
        store.settle_delivery(claimed[0].id, outcome, clock.now())
    _sign(store, analysis_id, "final-1")
    preliminary = next(d for d in store.deliveries(UID) if d.identity == f"{UID}-sr")
    with pytest.raises(IllegalTransition):
        store.resend(preliminary.id, "ba")


def test_all_go_again_but_those_that_a_later_document_replaced(
    store: StudyStore, clock: FakeClock
) -> None:
    analysis_id = _finish(store, UID, "pacs")
    seg = store.claim_delivery("pacs")
    assert seg
    store.settle_delivery(seg[0].id, Delivered(), clock.now())
    sr = store.claim_delivery("pacs")
    assert sr
    _sign(store, analysis_id, "final-sr")
    store.settle_delivery(sr[0].id, Refused("no"), clock.now())
    final = store.claim_delivery("pacs")
    assert final
    store.settle_delivery(final[0].id, Refused("no"), clock.now())
    assert store.resend_dead("pacs", "op") == 1
    again = store.claim_delivery("pacs")
    assert again
    assert again[1].identity == "final-sr"


def test_a_study_of_another_patient_is_not_mixed_in(store: StudyStore) -> None:
    store.add_instance(values.instance(1))
    other = values.instance(2)
    patient = replace(other.study.patient, patient_id="SOMEBODY-ELSE")
    mixed = replace(other, study=replace(other.study, patient=patient))
    assert store.add_instance(mixed) is Intake.OTHER_PATIENT
    assert len(store.instances(UID)) == 1


def test_a_study_of_nobody_is_of_the_first_patient_that_is_named(store: StudyStore) -> None:
    def of(number: int, patient_id: str, issuer: str) -> ReceivedInstance:
        instance = values.instance(number)
        patient = replace(instance.study.patient, patient_id=patient_id, issuer=issuer)
        return replace(instance, study=replace(instance.study, patient=patient))

    assert store.add_instance(of(1, "", "")) is Intake.STORED
    assert store.add_instance(of(2, "B", "HOSPITAL")) is Intake.STORED
    assert store.add_instance(of(3, "C", "HOSPITAL")) is Intake.OTHER_PATIENT
    assert store.add_instance(of(4, "B", "CLINIC")) is Intake.OTHER_PATIENT
    assert store.add_instance(of(5, "", "")) is Intake.STORED
    study = store.study(UID)
    assert study is not None
    assert (study.header.patient.patient_id, study.header.patient.issuer) == ("B", "HOSPITAL")


def test_two_nodes_that_bring_the_same_studies_do_not_stop_each_other(
    store: SqlStore, engine: sa.Engine, clock: FakeClock
) -> None:
    stores = (store, SqlStore(engine, clock))
    store.add_instances([values.instance(0, "1.1"), values.instance(0, "1.2")])
    together = Barrier(2)

    def bring(node: int) -> list[Sequence[Intake]]:
        studies = ["1.1", "1.2"] if node else ["1.2", "1.1"]
        outcomes = []
        for number in range(10):
            together.wait(60)
            numbers = range(1000 * (node + 1) + 4 * number, 1000 * (node + 1) + 4 * number + 4)
            group = [values.instance(n, study) for study in studies for n in numbers]
            outcomes.append(stores[node].add_instances([*group, group[0]]))
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        for outcomes in pool.map(bring, range(2)):
            assert outcomes == [[*[Intake.STORED] * 8, Intake.DUPLICATE]] * 10


def test_signed_studies_come_after_those_that_wait(store: StudyStore) -> None:
    _sign(store, _finish(store, "1.1"), "final")
    store.add_instance(values.instance(1, "1.2"))
    _sign(store, _finish(store, "1.3"), "final-3")
    first, *_ = store.studies(2)
    assert first.header.study_instance_uid == "1.2"


def test_what_a_person_signed_only_a_person_replaces(store: StudyStore) -> None:
    first = _finish(store)
    _sign(store, first, "final-1")
    with pytest.raises(IllegalTransition):
        _sign(store, first, "final-again")
    with pytest.raises(IllegalTransition):
        store.decide(first, "2.25.1", Verdict.ACCEPTED, "an", "", Correction())
    store.add_instance(values.instance(2))
    second = _finish(store)
    assert [a.state for a in store.analyses(UID)] == [
        AnalysisState.SUCCEEDED,
        AnalysisState.SUCCEEDED,
    ]
    _sign(store, second, "final-2")
    assert store.review(first).state is ReviewState.SUPERSEDED
    status = {d.identity: d.status for d in store.deliveries(UID)}
    assert status == {"final-1": ReportStatus.FINAL, "final-2": ReportStatus.CORRECTED}
    assert store.identities(UID)[DocumentKind.STRUCTURED_REPORT][-2:] == (f"{UID}-sr", "final-2")


def _changed(store: StudyStore) -> bool:
    """What the study itself says, and what is counted, which must be the same."""
    study = store.study(UID)
    assert study is not None
    assert store.counts().changed_after_signing == int(study.changed_after_signing)
    return study.changed_after_signing


def test_a_late_image_after_signing_is_told_until_somebody_signs_again(store: StudyStore) -> None:
    _finish(store, "1.9")
    _sign(store, _finish(store), "final-1")
    _sign(store, _finish(store, "1.8"), "final-8")
    assert not _changed(store)
    store.add_instance(values.instance(2))
    assert _changed(store), "from the first late image on"
    second = _finish(store)
    assert _changed(store)
    assert [s.header.study_instance_uid for s in store.studies(3)][-1] == "1.8"
    _sign(store, second, "final-2")
    assert not _changed(store)


def test_it_is_told_until_somebody_has_seen_that_there_is_nothing_to_sign(
    store: StudyStore,
) -> None:
    _sign(store, _finish(store), "final-1")
    store.add_instance(values.instance(2))
    second = _complete(store)
    assert store.claim_analysis() is not None
    refused = replace(values.result(UID, 2), outcome=Outcome.NOT_ANALYSABLE, nodules=())
    store.finish_analysis(second, AnalysisEvent.REFUSE, refused, [])
    assert _changed(store)
    store.acknowledge(second, "an")
    assert not _changed(store)


def test_the_audit_trail_cannot_be_changed(store: StudyStore, engine: sa.Engine) -> None:
    store.record_audit("an", "view_study", UID, "")
    for statement in ("UPDATE audit SET username = 'x'", "DELETE FROM audit"):
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), engine.begin() as connection:
            connection.execute(sa.text(statement))
    assert store.audit()[0].username == "an"


def test_a_newer_usage_report_replaces_one_that_still_waits(
    store: StudyStore, clock: FakeClock
) -> None:
    store.enqueue_usage([values.document("u1", DocumentKind.USAGE)], "mlflow")
    store.enqueue_usage([values.document("u2", DocumentKind.USAGE)], "mlflow")
    claimed = store.claim_delivery("mlflow")
    assert claimed is not None
    assert claimed[1].identity == "u2"
    store.settle_delivery(claimed[0].id, Delivered(), clock.now())
    assert store.claim_delivery("mlflow") is None


def test_accounts_pauses_facts_and_numbers(store: StudyStore) -> None:
    account = StoredAccount(Account("an", "Bs. An", Role.REVIEWER), "hash")
    store.put_account(account)
    store.put_account(StoredAccount(account.account, "hash2"))
    found = store.account("an")
    assert found is not None
    assert (found.account, found.password_hash) == (account.account, "hash2")
    assert store.account("nobody") is None
    store.pause("destination:pacs", "an")
    assert [p.target for p in store.pauses()] == ["destination:pacs"]
    store.resume("destination:pacs", "an")
    assert store.pauses() == []
    assert [store.next_number("n"), store.next_number("n")] == [1, 2]
    store.put_fact("k", "v")
    assert store.fact("k") == "v"
    assert store.fact("absent") is None
    assert store.report_problem("an", "slow") == 1


def test_counts_speak_of_everything(store: StudyStore, clock: FakeClock) -> None:
    analysis_id = _finish(store, UID, "pacs")
    claimed = store.claim_delivery("pacs")
    assert claimed is not None
    store.settle_delivery(claimed[0].id, Unreachable("x"), clock.now())
    uid = values.result().nodules[0].tracking_uid
    store.decide(analysis_id, uid, Verdict.REJECTED, "an", "", Correction())
    current = tuple(store.review(analysis_id).current.values())
    store.sign(analysis_id, SignedReview("an", "Bs. An", values.AT, current), [])
    counts = store.counts()
    assert counts.studies == {StudyState.COMPLETE: InState(1, clock.now())}
    assert counts.analyses == {AnalysisState.SUCCEEDED: InState(1, clock.now())}
    assert counts.deliveries == {("pacs", DeliveryState.PENDING): InState(2, clock.now())}
    assert counts.reviews == {ReviewState.SIGNED: InState(1, clock.now())}
    assert counts.oldest_undelivered == {"pacs": clock.now()}
    use = store.use()
    assert use.failed_tries == {"pacs": 1}
    (model,) = use.models
    assert model.model == values.MODEL
    assert (model.received, model.analysed, model.reviewed) == (1, 1, 1)
    assert model.marks == Marks(rejected=1)


def test_counting_tells_since_when_the_oldest_is_in_its_state(
    store: StudyStore, clock: FakeClock
) -> None:
    began = clock.now()
    _finish(store, "1.1", "pacs", "emr")
    clock.advance(100)
    _finish(store, "1.2", "pacs")
    counts = store.counts()
    assert counts.studies == {StudyState.COMPLETE: InState(2, began)}
    assert counts.deliveries == {
        ("emr", DeliveryState.PENDING): InState(2, began),
        ("pacs", DeliveryState.PENDING): InState(4, began),
    }
    assert counts.of_lives()["delivery", "pending"] == InState(6, began)
    assert counts.since == values.AT


def test_what_ended_stays_counted_as_it_ended_when_it_is_superseded(
    store: StudyStore, clock: FakeClock
) -> None:
    for outcome, event in (
        (Outcome.FAILED, AnalysisEvent.GIVE_UP),
        (Outcome.NOT_ANALYSABLE, AnalysisEvent.REFUSE),
        (Outcome.POSITIVE, AnalysisEvent.FINISH),
    ):
        analysis_id = _complete(store)
        assert store.claim_analysis() is not None
        store.pin_model(analysis_id, values.MODEL)
        clock.advance(40)
        result = replace(values.result(), outcome=outcome)
        store.finish_analysis(analysis_id, event, result, [])
    (model,) = store.use().models
    assert (model.received, model.failed, model.refused, model.analysed) == (3, 1, 1, 1)
    assert store.counts().analyses[AnalysisState.SUPERSEDED].number == 2


def test_durations_are_added_up_as_one_by_one(store: StudyStore, clock: FakeClock) -> None:
    clock.set_wall_clock(values.AT)  # when all instances came
    waits = [10.0, 31.5, 120.0, 4000.0, 100_000.0]
    analyses = [_complete(store, f"1.{number}") for number in range(len(waits))]
    for number, wait in enumerate(waits):
        clock.set_wall_clock(values.AT + timedelta(seconds=wait))
        claimed = store.claim_analysis()
        assert claimed is not None
        assert claimed.id == analyses[number]
        store.pin_model(claimed.id, values.MODEL)
        result = values.result(claimed.study_instance_uid, claimed.revision)
        store.finish_analysis(claimed.id, AnalysisEvent.FINISH, result, [])
    (model,) = store.use().models
    assert model.receive_to_result == Durations.of(waits)
    assert model.result_to_review == Durations.of([])
    assert store.use().receive_to_result_s == median(waits)


def test_threads_claim_each_analysis_once(store: StudyStore) -> None:
    for number in range(12):
        _complete(store, f"1.{number}")
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda _: store.claim_analysis(), range(12)))
    ids = [a.id for a in claimed if a is not None]
    assert len(set(ids)) == len(ids)
    left = []
    while (analysis := store.claim_analysis()) is not None:
        left.append(analysis.id)
    assert len(set(ids) | set(left)) == 12


def test_the_first_instances_of_a_study_may_come_on_many_associations_at_once(
    store: StudyStore,
) -> None:
    """Eight associations, five studies each brand-new: none is refused for meeting another."""
    together = Barrier(8, timeout=20)

    def receive(association: int) -> list[Intake]:
        intakes = []
        for study in range(5):
            together.wait()
            own = values.instance(association, f"1.{study}")
            shared = values.instance(99, f"1.{study}")
            intakes += [store.add_instance(own), store.add_instance(shared)]
        return intakes

    with ThreadPoolExecutor(8) as pool:
        intakes = [intake for made in pool.map(receive, range(8)) for intake in made]
    assert Counter(intakes) == {Intake.STORED: 8 * 5 + 5, Intake.DUPLICATE: 7 * 5}
    assert all(len(store.instances(f"1.{study}")) == 9 for study in range(5))


def test_one_instance_in_two_studies_at_once_leaves_no_empty_study(store: StudyStore) -> None:
    together = Barrier(2, timeout=20)

    def receive(study_uid: str) -> Intake:
        together.wait()
        return store.add_instance(
            replace(values.instance(1, study_uid), sop_instance_uid="1.9", sha256=study_uid)
        )

    with ThreadPoolExecutor(2) as pool:
        intakes = sorted(pool.map(receive, ("1.1", "1.2")))
    assert intakes == [Intake.CONFLICT, Intake.STORED]
    assert len(store.studies()) == 1


def test_facts_pauses_accounts_and_numbers_may_be_written_at_once(store: StudyStore) -> None:
    together = Barrier(8, timeout=20)

    def write(number: int) -> int:
        together.wait()
        store.put_fact("k", str(number))
        together.wait()
        store.pause("everything", "an")
        together.wait()
        store.put_account(StoredAccount(Account("an", str(number), Role.REVIEWER), "hash"))
        together.wait()
        return store.next_number("n")

    with ThreadPoolExecutor(8) as pool:
        numbers = sorted(pool.map(write, range(8)))
    assert numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(store.pauses()) == 1


def test_a_review_signed_while_a_late_revision_is_queued_stays_signed_or_is_refused(
    store: StudyStore,
) -> None:
    """Whoever comes first wins; what a person signed is never marked superseded by an analysis."""
    together = Barrier(2, timeout=20)
    for number in range(8):
        uid = f"1.{number}"
        analysis_id = _finish(store, uid)
        store.add_instance(values.instance(50, uid))

        def sign(analysis_id: str = analysis_id, uid: str = uid) -> bool:
            together.wait()
            try:
                _sign(store, analysis_id, f"final-{uid}")
            except IllegalTransition:
                return False
            return True

        def queue(uid: str = uid) -> None:
            together.wait()
            store.complete_study(uid, Priority.ROUTINE)

        with ThreadPoolExecutor(2) as pool:
            signed, queued = pool.submit(sign), pool.submit(queue)
            queued.result()
            expected = ReviewState.SIGNED if signed.result() else ReviewState.SUPERSEDED
        assert store.review(analysis_id).state is expected
        store.claim_analysis()


def test_the_first_instances_of_a_study_may_come_in_many_transactions_at_once(
    engine: sa.Engine, clock: FakeClock
) -> None:
    """Eight transactions, five brand-new studies: none is refused for meeting another."""
    together = Barrier(8, timeout=20)

    def receive(number: int) -> list[Intake]:
        own_store = SqlStore(engine, clock)
        intakes: list[Intake] = []
        for study in range(5):
            together.wait()
            brought = [values.instance(n, f"1.{study}") for n in (number, 99)]
            intakes += own_store.add_instances(brought)
        return intakes

    with ThreadPoolExecutor(8) as pool:
        intakes = [intake for made in pool.map(receive, range(8)) for intake in made]
    assert Counter(intakes) == {Intake.STORED: 8 * 5 + 5, Intake.DUPLICATE: 7 * 5}


def test_an_emergency_overtakes_and_nobody_is_overtaken_for_ever(
    store: StudyStore, clock: FakeClock
) -> None:
    _complete(store, "1.1")
    clock.advance(3600)
    _complete(store, "1.2")
    clock.advance(5.5 * 3600)
    _complete(store, "1.3", Priority.STAT)
    _complete(store, "1.4", Priority.URGENT)
    claimed = [store.claim_analysis() for _ in range(4)]
    assert [a.study_instance_uid for a in claimed if a] == ["1.3", "1.1", "1.4", "1.2"]
    _complete(store, "1.5")
    clock.advance(31 * 3600)
    _complete(store, "1.6", Priority.STAT)
    claimed = [store.claim_analysis() for _ in range(2)]
    assert [a.study_instance_uid for a in claimed if a] == ["1.5", "1.6"]


def test_a_reconciliation_is_asked_for_and_ends_with_its_report(
    store: StudyStore, clock: FakeClock
) -> None:
    first, last = date(2026, 11, 1), date(2026, 11, 2)
    number = store.ask_reconciliation(first, last, "ba")
    later = store.ask_reconciliation(last, last, "ba")
    asked = store.next_reconciliation()
    assert asked == Reconciliation(number, first, last, "ba", clock.now(), None, None)
    clock.advance(5)
    lacking = LackingStudy("1.2.3", Lack.IMAGES_MISSING, Mending.FETCHED, 7)
    report = ReconciliationReport(3, 1, (lacking,), "pacs gives no answer")
    store.end_reconciliation(number, report)
    assert [(r.id, r.ended_at, r.report) for r in store.reconciliations()] == [
        (later, None, None),
        (number, clock.now(), report),
    ]
    waiting = store.next_reconciliation()
    assert waiting is not None
    assert waiting.id == later


def test_lost_images_reopen_a_study_and_what_had_not_ended_begins_anew(
    store: StudyStore, clock: FakeClock
) -> None:
    store.add_instance(values.instance(1))
    _complete(store)
    store.lose_instances(UID, {values.instance(1).sop_instance_uid: "missing"})
    study = store.study(UID)
    assert study is not None
    assert (study.state, study.receiving_since) == (StudyState.RECEIVING, clock.now())
    assert [a.state for a in store.analyses(UID)] == [AnalysisState.SUPERSEDED]
    (lost,) = store.damages(UID)
    assert (lost.kind, lost.found_at, lost.back) == ("missing", clock.now(), False)
    store.add_instance(values.instance(1))
    assert store.damages(UID)[0].back
    assert store.complete_study(UID, Priority.ROUTINE) is not None
    assert store.next_complete_study("") == UID
    assert store.next_complete_study(UID) is None


def test_a_lost_image_that_comes_back_with_other_content_makes_a_revision(
    store: StudyStore,
) -> None:
    _finish(store)
    lost = values.instance(1)
    store.lose_instances(UID, {lost.sop_instance_uid: "changed"})
    store.add_instance(replace(lost, sha256="aa"))
    assert store.complete_study(UID, Priority.ROUTINE) is not None
    assert [a.revision for a in store.analyses(UID)] == [1, 2]


def test_what_waits_comes_before_what_somebody_has_closed(
    store: StudyStore, clock: FakeClock
) -> None:
    def receive(uid: str) -> None:
        clock.advance(1)
        store.add_instance(replace(values.instance(1, uid), received_at=clock.now()))

    receive("1.1")  # is received
    receive("1.2")  # open for review
    store.complete_study("1.2", Priority.ROUTINE)
    analysis = store.claim_analysis()
    assert analysis is not None
    store.finish_analysis(analysis.id, AnalysisEvent.REFUSE, values.result("1.2"), [])
    receive("1.3")  # seen
    store.complete_study("1.3", Priority.ROUTINE)
    analysis = store.claim_analysis()
    assert analysis is not None
    store.finish_analysis(analysis.id, AnalysisEvent.REFUSE, values.result("1.3"), [])
    store.acknowledge(analysis.id, "an")
    receive("1.4")  # queued
    store.complete_study("1.4", Priority.ROUTINE)

    def listed(limit: int) -> list[str]:
        return [s.header.study_instance_uid for s in store.studies(limit)]

    assert listed(10) == ["1.4", "1.2", "1.1", "1.3"]
    assert listed(2) == ["1.4", "1.2"]


def test_what_a_clock_that_stood_ahead_queued_is_no_later_than_now(
    store: StudyStore, clock: FakeClock
) -> None:
    clock.advance(365 * 86400)
    _complete(store, "1.1", Priority.STAT)
    _complete(store, "1.2")
    clock.advance(-365 * 86400)
    _complete(store, "1.3")
    clock.advance(60)
    claimed = [store.claim_analysis() for _ in range(3)]
    assert [a.study_instance_uid for a in claimed if a] == ["1.1", "1.3", "1.2"]


def test_the_failure_of_a_stale_try_leaves_the_one_that_runs_alone(
    store: StudyStore, clock: FakeClock
) -> None:
    analysis_id = _complete(store)
    stale = store.claim_analysis()
    store.retry_analysis(analysis_id, "taken to be lost", clock.now(), reached_worker=True)
    running = store.claim_analysis()
    assert stale is not None
    assert running is not None
    now, result = clock.now(), values.result()
    store.retry_analysis(analysis_id, "broke", now, reached_worker=True, claim=stale.claims)
    gave_up = AnalysisEvent.GIVE_UP
    assert not store.finish_analysis(analysis_id, gave_up, result, [], "broke", stale.claims)
    assert store.analyses(UID)[0].state is AnalysisState.RUNNING
    ended = AnalysisEvent.FINISH
    assert store.finish_analysis(analysis_id, ended, result, [], claim=running.claims)


@pytest.mark.parametrize("outcome", [Refused("no"), Unreachable("no answer")])
def test_what_was_being_sent_when_it_was_superseded_goes_out_no_more(
    store: StudyStore, clock: FakeClock, outcome: Refused | Unreachable
) -> None:
    _finish(store, UID, "pacs")
    claimed = store.claim_delivery("pacs")
    assert claimed is not None
    _complete(store)
    settled = store.settle_delivery(claimed[0].id, outcome, clock.now())
    assert settled is DeliveryState.SUPERSEDED
    assert store.claim_delivery("pacs") is None


def test_seeing_a_revision_ends_the_dead_letters_of_earlier_ones_and_not_its_own(
    store: StudyStore, clock: FakeClock, engine: sa.Engine
) -> None:
    for _ in range(2):
        analysis_id = _finish(store, UID, "pacs")
        for _ in range(2):
            claimed = store.claim_delivery("pacs")
            assert claimed is not None
            store.settle_delivery(claimed[0].id, Refused("no"), clock.now())
    deliveries = metadata.tables["deliveries"]
    with engine.begin() as connection:  # as an earlier version of Phoi left them
        connection.execute(deliveries.update().values(state=DeliveryState.DEAD))
    store.acknowledge(analysis_id, "an")
    assert [(d.revision, d.state) for d in store.deliveries(UID)] == [
        (1, DeliveryState.SUPERSEDED),
        (1, DeliveryState.SUPERSEDED),
        (2, DeliveryState.DEAD),
        (2, DeliveryState.DEAD),
    ]
