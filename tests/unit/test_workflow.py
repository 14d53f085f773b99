"""The study's way through the edge's core, with fakes at every port and a real, small store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from phoi_edge_node.accounts import Account, Role
from phoi_edge_node.courier import Courier
from phoi_edge_node.current_model import CurrentModel
from phoi_edge_node.desk import LinkState, Phase
from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable, ReviewConflict
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.links import Links
from phoi_edge_node.orders import (
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    PatientKey,
    PatientMerge,
    ToldOrder,
)
from phoi_edge_node.policies import LanePolicy, RetryPolicy, limits
from phoi_edge_node.ports import (
    Document,
    DocumentKind,
    Intake,
    Refused,
    ReportedCase,
    ReportStatus,
    Unreachable,
)
from phoi_edge_node.priority_policy import AS_SUGGESTED, PriorityPolicy, Rule
from phoi_edge_node.reported import told_priority
from phoi_edge_node.result import Correction, Outcome, Priority, ToldPriority, Verdict
from phoi_edge_node.review_desk import ReviewDesk
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.study import AnalysisState, DeliveryState
from phoi_edge_node.testing import (
    FakeClock,
    FakeDestination,
    FakeInference,
    FakeSeriesReader,
    SequentialUids,
)
from phoi_edge_node.watchdog import Watchdog
from phoi_edge_node.workflow import Analyst, Outbox
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from support import values

UID = "1.2.3"
RETRY = RetryPolicy((10.0, 60.0), jitter=0.0)
READER = Account("an", "Bs. An", Role.REVIEWER)


class Encoder:
    """Names what it was given, so that a test can see it."""

    def __init__(self) -> None:
        self.cases: list[ReportedCase] = []

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        self.cases.append(case)
        name = f"{case.result.outcome}-{case.status}-{case.result.identity.revision}"
        return [Document(DocumentKind.STRUCTURED_REPORT, name, b"x")]


class Edge:
    """The core of an edge node around fakes."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.reader = FakeSeriesReader(values.small_volume())
        self.inference = FakeInference(values.MODEL, values.volume_analysis(values.finding()))
        self.encoder = Encoder()
        self.outbox = Outbox([self.encoder], {"pacs": {DocumentKind.STRUCTURED_REPORT}})
        self.pacs = FakeDestination("pacs")
        self.priorities = AS_SUGGESTED
        self.restart()

    def trouble(self, error: Exception) -> None:
        self.inference = FakeInference(values.MODEL, values.volume_analysis(), [error])
        self.restart()

    def restart(self) -> None:
        uids = SequentialUids()
        self.intake = StudyIntake(self.store, self.clock, quiet_time_s=30)
        model = CurrentModel(self.store, self.inference, values.MODEL.name)
        self.analyst = Analyst(
            self.store,
            self.reader,
            self.inference,
            self.outbox,
            self.clock,
            uids,
            model.get,
            RETRY,
            deadline_s=60,
            maximum_attempts=3,
            priorities=self.priorities,
        )
        lane = LanePolicy(maximum_errors=3)
        self.courier = Courier(self.store, self.pacs, self.clock, RETRY, lane, lambda: 0.5)
        self.links = Links([self.courier], self.inference, self.clock)
        rules = limits(EdgeSettings(data=Path("unused")))
        self.watchdog = Watchdog(self.store, self.clock, rules, self.intake.reopened)
        self.desk = ReviewDesk(
            self.store,
            self.reader,
            self.outbox,
            self.links,
            self.clock,
            uids,
            [values.MODEL.name],
            ["pacs"],
            self.watchdog,
        )

    def receive(self, count: int = 3, start: int = 1) -> None:
        for number in range(start, start + count):
            self.intake.instance_received(values.instance(number), "a1")
        self.intake.association_released("a1")

    def complete(self) -> None:
        self.clock.advance(31)
        assert self.intake.complete_quiet_studies() == 1

    def state(self) -> AnalysisState:
        return self.store.analyses(UID)[-1].state


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path)
    yield edge
    edge.engine.dispose()


def test_a_study_is_complete_after_release_and_quiet_not_before(edge: Edge) -> None:
    edge.intake.instance_received(values.instance(1), "a1")
    edge.clock.advance(100)
    assert edge.intake.complete_quiet_studies() == 0, "the association is still open"
    edge.intake.association_released("a1")
    assert edge.intake.complete_quiet_studies() == 1
    assert edge.intake.complete_quiet_studies() == 0


def test_each_instance_starts_the_quiet_time_anew(edge: Edge) -> None:
    for number in range(1, 5):
        edge.receive(1, start=number)
        edge.clock.advance(20)
        assert edge.intake.complete_quiet_studies() == 0
    edge.clock.advance(11)
    assert edge.intake.complete_quiet_studies() == 1


def test_a_wall_clock_set_back_delays_nothing(edge: Edge) -> None:
    edge.receive()
    edge.clock.set_wall_clock(edge.clock.now().replace(year=1999))
    edge.complete()
    assert edge.analyst.run_next()


def test_a_restart_while_receiving_does_not_lose_the_study(edge: Edge) -> None:
    edge.receive()
    edge.restart()
    assert edge.intake.complete_quiet_studies() == 0
    edge.complete()
    assert edge.state() is AnalysisState.QUEUED


def test_the_same_study_sent_twice_makes_no_second_revision(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.receive()
    edge.clock.advance(100)
    assert edge.intake.complete_quiet_studies() == 0
    assert len(edge.store.analyses(UID)) == 1
    conflict = replace(values.instance(1), sha256="ff")
    assert edge.intake.instance_received(conflict, "a2") is Intake.CONFLICT


def test_from_instances_to_a_delivered_result(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    assert edge.analyst.run_next()
    assert not edge.analyst.run_next()
    assert edge.state() is AnalysisState.SUCCEEDED
    assert edge.courier.send_next()
    assert not edge.courier.send_next()
    assert list(edge.pacs.received) == ["positive-preliminary-1"]
    (row,) = edge.desk.worklist(10)
    assert (row.phase, row.nodule_count, row.max_diameter_mm) == (Phase.READY, 1, 12.0)
    assert edge.desk.volume(UID, 1).digest() == values.small_volume().digest()


def test_a_merged_patients_result_is_told_anew_without_another_inference(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    known_as = PatientKey(values.PATIENT.patient_id, values.PATIENT.issuer)
    merge = PatientMerge(known_as, PatientKey("BN-7777", values.PATIENT.issuer))
    edge.store.take_message(HospitalMessage("m1", edge.clock.now(), merges=(merge,)))
    assert edge.analyst.run_next()
    before, anew = (analysis.result for analysis in edge.store.analyses(UID))
    assert before
    assert anew
    assert len(edge.inference.requests) == 1
    assert [n.tracking_uid for n in anew.nodules] == [n.tracking_uid for n in before.nodules]
    assert (anew.outcome, anew.completeness) == (before.outcome, before.completeness)
    assert [c.study.patient.patient_id for c in edge.encoder.cases] == ["BN-0042", "BN-7777"]


def test_what_cannot_be_analysed_is_told_outward_and_is_not_negative(edge: Edge) -> None:
    refusal = NotAnalysable(NotAnalysableReason.SLICES_TOO_THICK, "8 mm slices")
    edge.reader = FakeSeriesReader(values.small_volume(), refusal)
    edge.restart()
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    assert edge.state() is AnalysisState.NOT_ANALYSABLE
    assert edge.encoder.cases[0].result.outcome is Outcome.NOT_ANALYSABLE
    assert edge.encoder.cases[0].result.reason is NotAnalysableReason.SLICES_TOO_THICK
    assert edge.desk.worklist(10)[0].phase is Phase.NOT_ANALYSABLE


def test_a_worker_that_is_away_is_waited_for_without_end(edge: Edge) -> None:
    edge.inference = FakeInference(
        values.MODEL,
        values.volume_analysis(),
        [InferenceUnavailable("connection refused")] * 20,
    )
    edge.restart()
    edge.receive()
    edge.complete()
    for _ in range(20):
        assert edge.analyst.run_next()
        assert edge.state() is AnalysisState.QUEUED
        assert not edge.analyst.run_next(), "the retry waits"
        edge.clock.advance(61)
    assert edge.analyst.run_next()
    assert edge.state() is AnalysisState.SUCCEEDED
    ids = {request.request_id for request in edge.inference.requests}
    assert len(ids) == 1, "every try has the same identity"


def test_a_study_that_brings_workers_down_is_given_up_and_told_outward(edge: Edge) -> None:
    class Dying(FakeInference):
        def analyze(self, request, on_progress, cancelled):  # type: ignore[no-untyped-def]
            on_progress("detect", 0.1)
            raise InferenceUnavailable("the worker is gone")

    edge.inference = Dying(values.MODEL, values.volume_analysis())
    edge.restart()
    edge.receive()
    edge.complete()
    for _ in range(3):
        assert edge.analyst.run_next()
        edge.clock.advance(61)
    assert edge.state() is AnalysisState.FAILED
    assert edge.encoder.cases[-1].result.outcome is Outcome.FAILED


def test_a_study_on_which_the_node_itself_dies_is_given_up(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    for _ in range(3):
        assert edge.store.claim_analysis() is not None, "and then the process dies"
        edge.store.requeue_interrupted()
    assert edge.analyst.run_next()
    assert edge.state() is AnalysisState.FAILED


def test_nothing_is_signed_on_images_that_have_changed(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    uid = edge.desk.study(UID).nodules[0].tracking_uid
    edge.desk.decide(UID, uid, Verdict.ACCEPTED, READER, "", Correction())
    edge.desk.volume(UID, 1)
    other = values.small_volume()
    other.hu[0, 0, 0] = 77
    edge.reader.show(other)
    with pytest.raises(ReviewConflict, match="new images"):
        edge.desk.sign(UID, 1, 1, READER)


@pytest.mark.parametrize("error", [InferenceFailed("bad bundle"), RuntimeError("name of a person")])
def test_what_cannot_succeed_ends_the_study_and_not_the_process(
    edge: Edge, error: Exception
) -> None:
    edge.inference = FakeInference(values.MODEL, values.volume_analysis(), [error] * 3)
    edge.restart()
    edge.receive()
    edge.complete()
    while edge.analyst.run_next():
        edge.clock.advance(61)
    assert edge.state() is AnalysisState.FAILED
    assert "name of a person" not in edge.store.analyses(UID)[-1].error


def test_a_failing_encoder_ends_as_failed_and_the_others_say_so(edge: Edge) -> None:
    class Broken:
        def encode(self, case: ReportedCase) -> Sequence[Document]:
            raise ValueError("boom")

    lanes = {"pacs": {DocumentKind.STRUCTURED_REPORT}}
    edge.outbox = Outbox([Broken(), edge.encoder], lanes)
    edge.restart()
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    assert edge.state() is AnalysisState.FAILED
    assert edge.encoder.cases[-1].result.outcome is Outcome.FAILED
    assert [d.identity for d in edge.store.deliveries(UID)] == ["failed-preliminary-1"]


def test_in_shadow_mode_nothing_is_encoded(edge: Edge) -> None:
    edge.outbox = Outbox([edge.encoder], {})
    edge.restart()
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    assert edge.state() is AnalysisState.SUCCEEDED
    assert edge.encoder.cases == []
    assert edge.store.deliveries() == []


def test_a_pause_of_everything_or_of_the_model_holds_analyses(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    for target in ("everything", f"model:{values.MODEL.name}"):
        edge.desk.pause(target, READER)
        assert not edge.analyst.run_next()
        edge.desk.resume(target, READER)
    assert edge.analyst.run_next()


def test_a_paused_destination_keeps_its_documents(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    edge.desk.pause("destination:pacs", READER)
    assert not edge.courier.send_next()
    edge.desk.resume("destination:pacs", READER)
    assert edge.courier.send_next()
    with pytest.raises(ReviewConflict):
        edge.desk.pause("destination:unknown", READER)


def test_a_destination_that_is_away_gets_the_same_bytes_later(edge: Edge) -> None:
    edge.pacs.answers = [Unreachable("no route")] * 5
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    for _ in range(6):
        assert edge.courier.send_next()
        assert not edge.courier.send_next()
        edge.clock.advance(61)
    assert edge.pacs.attempts == ["positive-preliminary-1"] * 6
    assert list(edge.pacs.received) == ["positive-preliminary-1"]


def test_a_refusal_is_a_dead_letter_that_a_person_can_send_again(edge: Edge) -> None:
    edge.pacs.answers = [Refused("0xA900")]
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    edge.courier.send_next()
    (lane,) = edge.desk.dead_letters(10)
    (dead,) = lane.latest
    assert (dead.state, dead.last_error) == (DeliveryState.DEAD, "0xA900")
    assert edge.desk.worklist(10)[0].delivery_problems == 1
    edge.desk.resend(dead.delivery_id, READER)
    assert edge.courier.send_next()
    assert edge.desk.dead_letters(10) == ()


def test_an_adapter_that_raises_does_not_stop_its_lane(edge: Edge) -> None:
    class Raising(FakeDestination):
        def send(self, document: Document) -> Unreachable:
            raise OSError("with a name in it")

    edge.pacs = Raising("pacs")
    edge.restart()
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    assert edge.courier.send_next()
    (delivery,) = edge.store.deliveries(UID)
    assert delivery.state is DeliveryState.PENDING
    assert delivery.last_error == "internal error: OSError"


def test_a_review_is_signed_once_every_mark_is_decided(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    view = edge.desk.study(UID)
    tracking_uid = view.nodules[0].tracking_uid
    with pytest.raises(ReviewConflict):
        edge.desk.sign(UID, 1, 0, READER)
    edge.desk.decide(UID, tracking_uid, Verdict.REJECTED, READER, "vessel", Correction())
    missed = edge.desk.mark_missed(UID, 1, (1.0, 2.0, 3.0), 7.0, READER, "")
    with pytest.raises(ReviewConflict, match="changed since"):
        edge.desk.sign(UID, 1, 1, READER)
    edge.desk.sign(UID, 1, 2, READER)
    case = edge.encoder.cases[-1]
    assert case.status is ReportStatus.FINAL
    assert case.review is not None
    assert case.review.kept(case.result.nodules) == ()
    assert [d.tracking_uid for d in case.review.missed()] == [missed]
    assert case.predecessors == {DocumentKind.STRUCTURED_REPORT: ("positive-preliminary-1",)}
    assert edge.desk.worklist(10)[0].phase is Phase.SIGNED
    for forbidden in (
        lambda: edge.desk.sign(UID, 1, 2, READER),
        lambda: edge.desk.undo(UID, READER),
        lambda: edge.desk.mark_missed(UID, 1, (0.0, 0.0, 0.0), None, READER, ""),
    ):
        with pytest.raises(ReviewConflict):
            forbidden()


def test_a_new_revision_after_signing_waits_for_a_person(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.analyst.run_next()
    uid = edge.desk.study(UID).nodules[0].tracking_uid
    edge.desk.decide(UID, uid, Verdict.ACCEPTED, READER, "", Correction())
    edge.desk.sign(UID, 1, 1, READER)
    sent = len(edge.store.deliveries(UID))
    edge.receive(1, start=4)
    edge.complete()
    edge.analyst.run_next()
    assert len(edge.store.deliveries(UID)) == sent, "nothing goes out by itself"
    view = edge.desk.study(UID)
    assert (view.row.revision, view.row.phase) == (2, Phase.READY)
    uid = view.nodules[0].tracking_uid
    edge.desk.decide(UID, uid, Verdict.ACCEPTED, READER, "", Correction())
    edge.desk.sign(UID, 2, 1, READER)
    case = edge.encoder.cases[-1]
    assert case.status is ReportStatus.CORRECTED
    (earlier,) = case.told_before
    assert earlier.result.identity.revision == 1
    assert earlier.review is not None


def test_links_tell_what_was_last_heard(edge: Edge) -> None:
    assert {link.state for link in edge.desk.links()} == {LinkState.UNKNOWN}
    edge.links.check_inference()
    assert not edge.courier.step(), "nothing to send: it asks"
    worker, pacs = edge.desk.links()
    assert (worker.state, pacs.state) == (LinkState.UP, LinkState.UP)
    assert "phoi-lung-nodule 1.0.0" in worker.detail


def test_inference_that_is_away_is_a_link_that_is_down(edge: Edge) -> None:
    class Away(FakeInference):
        def models(self):  # type: ignore[no-untyped-def]
            raise InferenceUnavailable("no worker answers")

    edge.inference = Away(values.MODEL, values.volume_analysis())
    edge.restart()
    edge.links.check_inference()
    worker, _ = edge.desk.links()
    assert (worker.state, worker.detail) == (LinkState.DOWN, "no worker answers")


def test_kpis_count_what_happened(edge: Edge) -> None:
    edge.receive()
    edge.complete()
    edge.clock.advance(9)
    edge.analyst.run_next()
    uid = edge.desk.study(UID).nodules[0].tracking_uid
    edge.desk.decide(UID, uid, Verdict.ACCEPTED, READER, "", Correction())
    edge.clock.advance(60)
    edge.desk.sign(UID, 1, 1, READER)
    kpis = edge.desk.kpis()
    assert (kpis.received, kpis.analysed, kpis.signed) == (1, 1, 1)
    assert kpis.receive_to_result_s == pytest.approx(40)
    assert kpis.result_to_sign_s == pytest.approx(60)
    assert (kpis.models[0].accepted, kpis.models[0].missed) == (1, 0)


def test_a_study_that_cannot_be_read_leaves_the_worklist_once_somebody_has_seen_it(
    edge: Edge,
) -> None:
    edge.trouble(NotAnalysable(NotAnalysableReason.NO_LUNGS, "no lungs"))
    edge.receive()
    edge.complete()
    assert edge.analyst.run_next()
    (row,) = edge.desk.worklist(10)
    assert row.phase is Phase.NOT_ANALYSABLE
    assert edge.desk.study(UID).can_acknowledge
    edge.desk.acknowledge(UID, 1, READER)
    edge.desk.acknowledge(UID, 1, READER)  # a colleague, a moment later
    view = edge.desk.study(UID)
    assert (view.row.phase, view.acknowledged_by) == (Phase.ACKNOWLEDGED, READER.username)
    assert view.acknowledged_at == edge.clock.now()
    assert [e.action for e in edge.desk.audit(10)].count("acknowledge") == 1
    edge.receive(1, start=9)
    edge.complete()
    assert edge.desk.study(UID).row.phase is Phase.QUEUED, "a later revision begins anew"


def test_what_waits_says_since_when_behind_how_many_and_why(edge: Edge) -> None:
    edge.trouble(InferenceUnavailable("no worker answers"))
    edge.receive()
    assert edge.desk.study(UID).row.phase is Phase.RECEIVING
    edge.complete()
    queued_at = edge.clock.now()
    edge.store.add_instance(replace(values.instance(1, "1.9"), received_at=edge.clock.now()))
    edge.clock.advance(1)
    edge.store.complete_study("1.9", Priority.ROUTINE)
    rows = {row.study_instance_uid: row for row in edge.desk.worklist(10)}
    assert (rows[UID].ahead, rows["1.9"].ahead) == (0, 1)
    assert edge.analyst.run_next()
    row = edge.desk.study(UID).row
    assert (row.phase, row.phase_since) == (Phase.QUEUED, queued_at)
    assert row.trouble == "no worker answers"
    assert row.retry_at is not None
    assert row.retry_at > edge.clock.now()


def test_what_is_ordered_as_an_emergency_stands_above_what_is_not_while_it_waits(
    edge: Edge,
) -> None:
    def receive(uid: str) -> None:
        edge.clock.advance(1)
        edge.store.add_instance(replace(values.instance(1, uid), received_at=edge.clock.now()))

    def listed() -> list[tuple[str, Priority | None]]:
        return [(row.study_instance_uid, row.ordered) for row in edge.desk.worklist(10)]

    for uid in ("1.1", "1.2", "1.3"):
        receive(uid)
    now = edge.clock.now()
    patient = PatientKey(values.PATIENT.patient_id, values.PATIENT.issuer)
    order = ImagingOrder(study_instance_uid="1.3", patients=(patient,), priority=Priority.STAT)
    edge.store.take_message(HospitalMessage("m1", now, (ToldOrder(OrderAction.PLACE, order),)))
    assert listed() == [("1.3", Priority.STAT), ("1.1", None), ("1.2", None)]
    for uid in ("1.1", "1.2", "1.3"):
        edge.store.complete_study(uid, Priority.ROUTINE)
    assert listed()[0] == ("1.3", Priority.STAT), "it is queued"
    assert edge.analyst.run_next()
    assert dict(listed())["1.3"] is None, "its result speaks for itself"


def test_the_site_s_policy_decides_what_is_told_and_where_the_study_stands(edge: Edge) -> None:
    edge.priorities = PriorityPolicy(rules=(Rule(name="all-at-once", tell="stat"),))
    edge.restart()
    edge.receive()
    edge.complete()
    assert edge.analyst.run_next()
    (told,) = edge.encoder.cases
    assert told.result.told_priority == ToldPriority(Priority.STAT, "all-at-once")
    view = edge.desk.study(UID)
    assert view.row.priority is Priority.STAT
    assert view.result is not None
    assert view.result.suggested_priority is not Priority.STAT, "the model's own stays known"
    assert view.result.told_priority == told.result.told_priority


def test_that_use_has_stopped_is_noticed(edge: Edge) -> None:
    def result_of_a_new_study(start: int) -> None:
        edge.receive(start=start)
        edge.complete()
        assert edge.analyst.run_next()

    def nobody_signs_after(days: float) -> int:
        edge.clock.advance(days * 86400)
        edge.watchdog.look()
        return edge.desk.kpis().nobody_signs

    result_of_a_new_study(1)
    assert nobody_signs_after(6) == 0
    assert nobody_signs_after(2) == 1, "nobody ever signed"
    nodule = edge.desk.study(UID).result
    assert nodule is not None
    for found in nodule.nodules:
        edge.desk.decide(UID, found.tracking_uid, Verdict.ACCEPTED, READER, "", Correction())
    edge.desk.sign(UID, 1, len(edge.desk.study(UID).history), READER)
    assert edge.desk.kpis().last_signed_at == edge.clock.now()
    assert nobody_signs_after(30) == 0, "nothing waits"
    edge.store.add_instance(values.instance(1, "1.9"))
    edge.store.complete_study("1.9", Priority.ROUTINE)
    assert edge.analyst.run_next()
    assert nobody_signs_after(6) == 0
    assert nobody_signs_after(2) == 1, "the last signature is older than that"


def test_a_failure_is_told_by_the_site_s_policy_too(edge: Edge) -> None:
    edge.priorities = PriorityPolicy(rules=(Rule(name="look-first", tell="urgent"),))
    edge.trouble(InferenceFailed("no"))
    edge.receive()
    edge.complete()
    assert edge.analyst.run_next()
    assert told_priority(edge.encoder.cases[-1]) is Priority.URGENT
