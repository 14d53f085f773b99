"""What every ``OrderStore`` keeps to: SQLite and PostgreSQL run the same suite."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from phoi_edge_node.errors import IllegalTransition, ReviewConflict
from phoi_edge_node.orders import (
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    OrderNumber,
    PatientKey,
    PatientMerge,
    PatientUpdate,
    ToldOrder,
)
from phoi_edge_node.ports import Delivered, DocumentKind, Intake, ReceivedInstance, Unreachable
from phoi_edge_node.result import Patient, Priority, SignedReview
from phoi_edge_node.sql import tables
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, AnalysisState, DeliveryState, ReviewState
from phoi_edge_node.testing import FakeClock
from support import values

UID = "1.2.3"
PATIENT = PatientKey(values.PATIENT.patient_id, values.PATIENT.issuer)
ORDER = ImagingOrder(
    placer=OrderNumber("P1", "HIS"),
    accession_number="ACC1",
    patients=(PATIENT,),
    requester="Trần^An",
    clinical_question="Nốt phổi?",
    priority=Priority.ROUTINE,
)
_numbers = itertools.count(1)


@pytest.fixture
def store(engine: sa.Engine, clock: FakeClock) -> SqlStore:
    return SqlStore(engine, clock)


def _message(at: datetime, *told: ToldOrder | PatientMerge | PatientUpdate) -> HospitalMessage:
    return HospitalMessage(
        identity=f"message {next(_numbers)}",
        sent_at=at,
        orders=tuple(t for t in told if isinstance(t, ToldOrder)),
        merges=tuple(t for t in told if isinstance(t, PatientMerge)),
        updates=tuple(t for t in told if isinstance(t, PatientUpdate)),
    )


def _place(order: ImagingOrder) -> ToldOrder:
    return ToldOrder(OrderAction.PLACE, order)


def _of_patient(key: PatientKey, number: int = 1, uid: str = UID) -> ReceivedInstance:
    instance = values.instance(number, uid)
    patient = replace(instance.study.patient, patient_id=key.patient_id, issuer=key.issuer)
    return replace(instance, study=replace(instance.study, patient=patient))


def _finish(store: SqlStore, uid: str = UID) -> str:
    """A study of the usual patient, analysed, its report under way."""
    store.add_instance(values.instance(len(store.instances(uid)) + 1, uid))
    analysis_id = store.complete_study(uid, Priority.ROUTINE)
    assert analysis_id
    analysis = store.claim_analysis()
    assert analysis
    assert analysis.id == analysis_id
    store.pin_model(analysis_id, values.MODEL)
    report = Outgoing(values.document(f"{uid}-sr", DocumentKind.STRUCTURED_REPORT), ("pacs",))
    result = values.result(uid, analysis.revision)
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, result, [report])
    return analysis_id


def test_an_order_is_found_by_its_accession_number_before_and_after_the_images(
    store: SqlStore, clock: FakeClock
) -> None:
    assert store.order_of(UID) is None
    assert store.take_message(_message(clock.now(), _place(ORDER)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) == ORDER
    assert store.order_of("1.2.4") is None


@pytest.mark.parametrize(
    "order",
    [
        replace(ORDER, accession_number="", filler=OrderNumber("ACC1", "RIS")),
        replace(ORDER, accession_number="", placer=OrderNumber("ACC1", "HIS")),
    ],
    ids=["filler", "placer"],
)
def test_sites_that_use_an_order_number_as_accession_number_are_understood(
    store: SqlStore, clock: FakeClock, order: ImagingOrder
) -> None:
    store.take_message(_message(clock.now(), _place(order)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) == order


def test_the_study_instance_uid_says_it_best(store: SqlStore, clock: FakeClock) -> None:
    by_uid = replace(
        ORDER, placer=OrderNumber("P2"), accession_number="OTHER", study_instance_uid=UID
    )
    store.take_message(_message(clock.now(), _place(by_uid), _place(ORDER)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) == by_uid


def test_an_order_of_another_patient_is_never_taken(store: SqlStore, clock: FakeClock) -> None:
    for patient in (PatientKey("BN-9999"), PatientKey(PATIENT.patient_id, "ANOTHER")):
        order = replace(ORDER, patients=(patient,), study_instance_uid=UID)
        store.take_message(_message(clock.now(), _place(order)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) is None


def test_any_of_a_patients_numbers_will_do(store: SqlStore, clock: FakeClock) -> None:
    order = replace(ORDER, patients=(PatientKey("001", "CCCD"), PatientKey(PATIENT.patient_id)))
    store.take_message(_message(clock.now(), _place(order)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) == order


def test_the_same_message_counts_once(store: SqlStore, clock: FakeClock) -> None:
    message = _message(clock.now(), _place(ORDER))
    assert store.take_message(message)
    cancelled = ToldOrder(OrderAction.CANCEL, ORDER)
    assert store.take_message(_message(clock.now(), cancelled))
    assert not store.take_message(message)
    store.add_instance(values.instance(1))
    assert store.order_of(UID) is None


def test_a_later_message_wins_and_an_old_one_changes_nothing(
    store: SqlStore, clock: FakeClock
) -> None:
    store.add_instance(values.instance(1))
    later = replace(ORDER, clinical_question="Theo dõi nốt 8 mm")
    store.take_message(_message(clock.now(), _place(later)))
    store.take_message(_message(clock.now() - timedelta(minutes=1), _place(ORDER)))
    assert store.order_of(UID) == later
    old_cancel = ToldOrder(OrderAction.CANCEL, ORDER)
    store.take_message(_message(clock.now() - timedelta(minutes=1), old_cancel))
    assert store.order_of(UID) == later


def test_a_status_change_adds_what_it_names_and_keeps_the_rest(
    store: SqlStore, clock: FakeClock
) -> None:
    store.take_message(_message(clock.now(), _place(replace(ORDER, accession_number=""))))
    started = ImagingOrder(
        placer=ORDER.placer, filler=OrderNumber("F7", "RIS"), accession_number="ACC1"
    )
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.UPDATE, started)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) == replace(ORDER, filler=OrderNumber("F7", "RIS"))
    # A status change brings no cancelled order back.
    by_filler = ImagingOrder(filler=OrderNumber("F7", "RIS"))
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.CANCEL, by_filler)))
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.UPDATE, by_filler)))
    assert store.order_of(UID) is None


def test_a_cancellation_that_overtakes_its_order_still_counts(
    store: SqlStore, clock: FakeClock
) -> None:
    cancel = ToldOrder(OrderAction.CANCEL, ImagingOrder(placer=ORDER.placer))
    store.take_message(_message(clock.now(), cancel))
    store.take_message(_message(clock.now() - timedelta(seconds=1), _place(ORDER)))
    store.add_instance(values.instance(1))
    assert store.order_of(UID) is None


def test_an_urgent_order_makes_an_urgent_analysis(store: SqlStore, clock: FakeClock) -> None:
    stat = replace(ORDER, priority=Priority.STAT)
    store.take_message(_message(clock.now(), _place(stat)))
    store.add_instance(values.instance(1))
    store.complete_study(UID, Priority.ROUTINE)
    assert [a.priority for a in store.analyses(UID)] == [Priority.STAT]


def test_an_order_that_comes_late_moves_a_waiting_analysis_up_and_never_down(
    store: SqlStore, clock: FakeClock
) -> None:
    for uid in ("1.2.2", UID):
        instance = values.instance(1, uid)
        header = replace(instance.study, accession_number=f"ACC-{uid}")
        store.add_instance(replace(instance, study=header))
        store.complete_study(uid, Priority.ROUTINE)
        clock.advance(1)
    order = replace(ORDER, accession_number=f"ACC-{UID}", priority=Priority.STAT)
    store.take_message(_message(clock.now(), _place(order)))
    assert [a.priority for a in store.analyses(UID)] == [Priority.STAT]
    assert [a.priority for a in store.analyses("1.2.2")] == [Priority.ROUTINE]
    calmer = replace(order, priority=Priority.ROUTINE)
    store.take_message(_message(clock.now(), _place(calmer)))
    claimed = store.claim_analysis()
    assert claimed
    assert claimed.study_instance_uid == UID
    assert claimed.priority is Priority.STAT


def test_a_merge_renames_stored_studies_and_queues_them_to_be_told_anew(
    store: SqlStore, clock: FakeClock
) -> None:
    first = _finish(store)
    surviving = PatientKey("BN-7777", PATIENT.issuer)
    assert store.take_message(_message(clock.now(), PatientMerge(PATIENT, surviving)))
    study = store.study(UID)
    assert study
    assert study.header.patient == replace(values.PATIENT, patient_id="BN-7777")
    assert {i.study.patient.patient_id for i in store.instances(UID)} == {"BN-7777"}
    before, anew = store.analyses(UID)
    assert (before.id, before.state) == (first, AnalysisState.SUPERSEDED)
    assert (anew.state, anew.model) == (AnalysisState.QUEUED, values.MODEL)
    assert {d.state for d in store.deliveries(UID)} == {DeliveryState.SUPERSEDED}
    assert [(e.username, e.action) for e in store.audit()][:1] == [("hl7v2", "patient_merged")]


def test_after_a_merge_images_under_either_number_are_the_same_patients(
    store: SqlStore, clock: FakeClock
) -> None:
    middle, last = PatientKey("BN-2", PATIENT.issuer), PatientKey("BN-3", PATIENT.issuer)
    store.add_instance(values.instance(1))
    store.take_message(_message(clock.now(), PatientMerge(PATIENT, middle)))
    store.take_message(_message(clock.now(), PatientMerge(middle, last)))
    assert store.add_instance(_of_patient(PATIENT, 2)) is Intake.STORED  # a late slice
    assert store.add_instance(_of_patient(last, 3)) is Intake.STORED
    stranger = PatientKey("BN-4", PATIENT.issuer)
    assert store.add_instance(_of_patient(stranger, 4)) is Intake.OTHER_PATIENT
    store.add_instance(_of_patient(PATIENT, 1, "1.2.5"))
    study = store.study("1.2.5")
    assert study
    assert study.header.patient.patient_id == "BN-3"
    # An order that was placed under the first number is still theirs.
    store.take_message(_message(clock.now(), _place(ORDER)))
    assert store.order_of(UID) == ORDER


def test_an_order_goes_on_under_the_number_that_survives(store: SqlStore, clock: FakeClock) -> None:
    store.add_instance(values.instance(1))
    store.take_message(_message(clock.now(), _place(ORDER)))
    surviving = PatientKey("BN-2", PATIENT.issuer)
    store.take_message(_message(clock.now(), PatientMerge(PATIENT, surviving)))
    started = replace(ImagingOrder(placer=ORDER.placer), patients=(surviving,))
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.UPDATE, started)))
    order = store.order_of(UID)
    assert order
    assert order.clinical_question == ORDER.clinical_question
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.CANCEL, ORDER)))
    assert store.order_of(UID) is None


def test_numbers_that_are_longer_than_an_index_takes_are_told_apart(
    store: SqlStore, clock: FakeClock
) -> None:
    """PostgreSQL refuses an index entry of more than 2,704 bytes."""
    endless = "số" * 2000
    one, other = PatientKey(endless + "1"), PatientKey(endless + "2")
    for number, key in enumerate((one, other)):
        instance = _of_patient(key, 1, f"1.2.{number}")
        header = replace(instance.study, accession_number=endless + key.patient_id[-1])
        assert store.add_instance(replace(instance, study=header)) is Intake.STORED
    order = replace(ORDER, accession_number=endless + "2", patients=(other,))
    store.take_message(_message(clock.now(), _place(order)))
    assert store.order_of("1.2.0") is None
    assert store.order_of("1.2.1") == order
    store.take_message(_message(clock.now(), PatientUpdate((other,), sex="M")))
    studies = [store.study(uid) for uid in ("1.2.0", "1.2.1")]
    assert [s.header.patient.sex for s in studies if s] == ["F", "M"]


def test_a_merge_that_is_turned_round_does_not_go_in_circles(
    store: SqlStore, clock: FakeClock
) -> None:
    other = PatientKey("BN-2", PATIENT.issuer)
    store.add_instance(values.instance(1))
    store.take_message(_message(clock.now(), PatientMerge(PATIENT, other)))
    clock.advance(1)
    store.take_message(_message(clock.now(), PatientMerge(other, PATIENT)))
    study = store.study(UID)
    assert study
    assert study.header.patient == values.PATIENT
    # One that was sent before the other, and comes after it, changes nothing.
    early = clock.now() - timedelta(minutes=1)
    store.take_message(_message(early, PatientMerge(PATIENT, other)))
    assert store.study(UID) == study


def test_a_correction_changes_name_birth_date_and_sex(store: SqlStore, clock: FakeClock) -> None:
    _finish(store)
    update = PatientUpdate((PATIENT,), "Nguyễn^Thị Minh Nguyệt", date(1962, 5, 4), "F")
    store.take_message(_message(clock.now(), update))
    study = store.study(UID)
    assert study
    assert study.header.patient.name == "Nguyễn^Thị Minh Nguyệt"
    assert study.header.patient.birth_date == date(1962, 5, 4)
    assert [a.state for a in store.analyses(UID)] == [
        AnalysisState.SUPERSEDED,
        AnalysisState.QUEUED,
    ]
    older = replace(update, name="Trần^Sai", birth_date=None)
    store.take_message(_message(clock.now() - timedelta(days=1), older))
    assert store.study(UID) == study


def test_a_message_that_changes_nothing_tells_nothing_anew(
    store: SqlStore, clock: FakeClock
) -> None:
    _finish(store)
    same = PatientUpdate((PATIENT,), "NGUYỄN^THỊ ÁNH TUYẾT", values.PATIENT.birth_date, "F")
    store.take_message(_message(clock.now(), same, PatientMerge(PatientKey("X"), PATIENT)))
    assert len(store.analyses(UID)) == 1


def test_what_a_person_signed_stays_and_waits_for_a_person(
    store: SqlStore, clock: FakeClock
) -> None:
    first = _finish(store)
    store.sign(first, SignedReview("duc", "BS Đức", clock.now(), ()), [])
    update = PatientUpdate((PATIENT,), birth_date=date(1962, 5, 4))
    store.take_message(_message(clock.now(), update))
    assert store.review(first).state is ReviewState.SIGNED
    assert [a.state for a in store.analyses(UID)] == [
        AnalysisState.SUCCEEDED,
        AnalysisState.QUEUED,
    ]


def test_a_study_that_still_comes_in_gets_the_right_patient_and_no_analysis_yet(
    store: SqlStore, clock: FakeClock
) -> None:
    store.add_instance(values.instance(1))
    store.take_message(_message(clock.now(), PatientUpdate((PATIENT,), sex="M")))
    study = store.study(UID)
    assert study
    assert study.header.patient.sex == "M"
    assert store.analyses(UID) == []


RENAMED = PatientKey("BN-7777", PATIENT.issuer)


def _merge(store: SqlStore, clock: FakeClock) -> None:
    assert store.take_message(_message(clock.now(), PatientMerge(PATIENT, RENAMED)))


def test_a_merge_while_an_image_is_asked_for_again_is_told_once_it_is_back(
    store: SqlStore, clock: FakeClock
) -> None:
    _finish(store)
    store.lose_instances(UID, {values.instance(1).sop_instance_uid: "changed"})
    _merge(store, clock)
    assert {d.state for d in store.deliveries(UID)} == {DeliveryState.SUPERSEDED}
    store.add_instance(_of_patient(PATIENT))
    assert store.complete_study(UID, Priority.ROUTINE)
    assert store.analyses(UID)[-1].state is AnalysisState.QUEUED


def test_what_was_written_of_the_former_patient_does_not_end_an_analysis(
    store: SqlStore, clock: FakeClock
) -> None:
    store.add_instance(values.instance(1))
    analysis_id = store.complete_study(UID, Priority.ROUTINE)
    assert analysis_id
    assert store.claim_analysis()
    store.add_instance(values.instance(2))  # reopened: the analysis goes on
    _merge(store, clock)
    finish = partial(store.finish_analysis, analysis_id, AnalysisEvent.FINISH, values.result(), [])
    assert not finish(patient=values.PATIENT)
    assert store.analyses(UID)[0].state is AnalysisState.QUEUED
    again = store.claim_analysis()
    assert again
    study = store.study(UID)
    assert study
    assert finish(claim=again.claims, patient=study.header.patient)


def test_what_was_written_of_the_former_patient_is_not_signed(
    store: SqlStore, clock: FakeClock
) -> None:
    first = _finish(store)
    store.add_instance(values.instance(2))
    _merge(store, clock)
    signed = SignedReview("duc", "BS Đức", clock.now(), ())
    with pytest.raises(ReviewConflict):
        store.sign(first, signed, [], values.PATIENT)
    assert store.review(first).state is ReviewState.OPEN


def _sign(store: SqlStore, clock: FakeClock, analysis_id: str) -> None:
    final = Outgoing(values.document("final", DocumentKind.STRUCTURED_REPORT), ("pacs",))
    store.sign(analysis_id, SignedReview("duc", "BS Đức", clock.now(), ()), [final])


def _asks_for_a_person(store: SqlStore) -> bool:
    study = store.study(UID)
    assert study
    assert store.counts().changed_after_signing == int(study.changed_after_signing)
    return study.changed_after_signing


def test_signed_documents_do_not_go_out_under_the_former_number(
    store: SqlStore, clock: FakeClock
) -> None:
    _sign(store, clock, _finish(store))
    assert not _asks_for_a_person(store)
    sent = store.claim_delivery("pacs")
    assert sent
    _merge(store, clock)
    assert [d.state for d in store.deliveries(UID)] == [
        DeliveryState.SENDING,
        DeliveryState.SUPERSEDED,
    ]
    state = store.settle_delivery(sent[0].id, Unreachable("away"), clock.now())
    assert state is DeliveryState.SUPERSEDED
    assert store.claim_delivery("pacs") is None
    assert _asks_for_a_person(store)


def test_a_delivered_document_of_the_former_patient_is_not_sent_again(
    store: SqlStore, clock: FakeClock
) -> None:
    _sign(store, clock, _finish(store))
    _deliver_all(store, clock)
    _merge(store, clock)
    with pytest.raises(IllegalTransition):
        store.resend(store.deliveries(UID)[-1].id, "an")


def _deliver_all(store: SqlStore, clock: FakeClock) -> None:
    while claimed := store.claim_delivery("pacs"):
        store.settle_delivery(claimed[0].id, Delivered(), clock.now())


@pytest.mark.parametrize("signed", [True, False])
def test_a_merge_after_the_images_were_removed_asks_for_a_person(
    store: SqlStore, clock: FakeClock, *, signed: bool
) -> None:
    analysis_id = _finish(store)
    if signed:
        _sign(store, clock, analysis_id)
    _deliver_all(store, clock)
    assert store.expire_study(UID)
    assert not _asks_for_a_person(store)
    _merge(store, clock)
    assert _asks_for_a_person(store)
    assert len(store.analyses(UID)) == 1
    store.add_instance(values.instance(1))  # sent again from the archive
    anew = store.complete_study(UID, Priority.ROUTINE)
    assert anew
    assert _asks_for_a_person(store) is signed


def test_an_order_that_names_no_patient_is_nobodys(store: SqlStore, clock: FakeClock) -> None:
    store.add_instance(values.instance(1))
    order = ImagingOrder(placer=OrderNumber("ACC1", "LAB"), priority=Priority.STAT)
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.UPDATE, order)))
    store.take_message(_message(clock.now(), _place(replace(order, study_instance_uid=UID))))
    assert store.order_of(UID) is None


def test_the_same_number_of_another_system_is_another_order(
    store: SqlStore, clock: FakeClock
) -> None:
    store.add_instance(values.instance(1))
    store.take_message(_message(clock.now(), _place(ORDER)))
    of_laboratory = ImagingOrder(placer=OrderNumber("P1", "LAB"), patients=(PATIENT,))
    store.take_message(_message(clock.now(), ToldOrder(OrderAction.CANCEL, of_laboratory)))
    assert store.order_of(UID) == ORDER


def _of_unnamed_issuer(store: SqlStore) -> Patient:
    study = store.study(UID)
    assert study
    return study.header.patient


def test_a_number_that_two_authorities_give_merges_no_images_that_name_none(
    store: SqlStore, clock: FakeClock
) -> None:
    number = PATIENT.patient_id
    store.add_instance(_of_patient(PatientKey(number, "B"), 1, "1.2.9"))
    store.add_instance(_of_patient(PatientKey(number)))
    merge = PatientMerge(PatientKey(number, "A"), PatientKey("BN-2", "A"))
    store.take_message(_message(clock.now(), merge))
    assert _of_unnamed_issuer(store).patient_id == number
    store.add_instance(_of_patient(PatientKey(number), 1, "1.2.10"))
    late = store.study("1.2.10")
    assert late
    assert late.header.patient.patient_id == number


def test_a_correction_of_a_number_alone_changes_no_images_that_name_no_issuer(
    store: SqlStore, clock: FakeClock
) -> None:
    number = PATIENT.patient_id
    store.add_instance(_of_patient(PatientKey(number)))
    keys = (PatientKey("5", "BV"), PatientKey(number, "OTHER"))
    store.take_message(_message(clock.now(), PatientUpdate(keys, "Khác^Người", None, "M")))
    assert _of_unnamed_issuer(store) == replace(values.PATIENT, issuer="")
    born = values.PATIENT.birth_date  # the second thing they agree in
    store.take_message(_message(clock.now(), PatientUpdate(keys, "Tuyết^Ánh", born, "F")))
    assert _of_unnamed_issuer(store).name == "Tuyết^Ánh"


def test_the_site_may_say_who_gave_the_numbers_on_images(
    engine: sa.Engine, clock: FakeClock
) -> None:
    named = engine.execution_options(phoi_default_issuer="A")
    store = SqlStore(named, clock)
    number = PATIENT.patient_id
    store.add_instance(_of_patient(PatientKey(number)))
    for issuer in ("B", "A"):
        merge = PatientMerge(PatientKey(number, issuer), PatientKey(f"BN-{issuer}", issuer))
        store.take_message(_message(clock.now(), merge))
    assert _of_unnamed_issuer(store) == replace(values.PATIENT, patient_id="BN-A", issuer="")


def test_a_study_that_begins_while_its_patient_is_merged_gets_the_number_that_stays(
    store: SqlStore, clock: FakeClock
) -> None:
    for number in range(10):
        gone, stays = PatientKey(f"G-{number}", "A"), PatientKey(f"S-{number}", "A")
        uid = f"1.2.{number}"
        both = threading.Barrier(2)

        def begin(gone: PatientKey = gone, uid: str = uid, both: threading.Barrier = both) -> None:
            both.wait(20)
            store.add_instance(_of_patient(gone, 1, uid))

        thread = threading.Thread(target=begin)
        thread.start()
        both.wait(20)
        store.take_message(_message(clock.now(), PatientMerge(gone, stays)))
        thread.join()
        study = store.study(uid)
        assert study
        assert study.header.patient.patient_id == stays.patient_id


def test_two_messages_of_a_new_order_at_once_make_one_order(
    store: SqlStore, clock: FakeClock, engine: sa.Engine
) -> None:
    for number in range(10):
        order = replace(ORDER, placer=OrderNumber(f"P{number}"), accession_number=f"A{number}")
        messages = [_message(clock.now(), _place(order)) for _ in range(2)]
        both = threading.Barrier(2)

        def take(message: HospitalMessage, both: threading.Barrier = both) -> None:
            both.wait(20)
            store.take_message(message)

        threads = [threading.Thread(target=take, args=(message,)) for message in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.orders)) == 10
