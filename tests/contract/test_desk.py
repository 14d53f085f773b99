"""What the review page may count on: the in-memory desk and the one on a store alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from phoi_edge_node.accounts import hash_password
from phoi_edge_node.current_model import CurrentModel
from phoi_edge_node.desk import Desk, Phase
from phoi_edge_node.errors import Conflict, ReviewConflict, UnknownStudy
from phoi_edge_node.intake import StudyIntake
from phoi_edge_node.links import Links
from phoi_edge_node.policies import LIVES, RetryPolicy, limits
from phoi_edge_node.result import Correction, Outcome, Verdict
from phoi_edge_node.review_desk import ReviewDesk
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import StoredAccount
from phoi_edge_node.study import ReviewState
from phoi_edge_node.testing import FakeClock, FakeInference, FakeSeriesReader, SequentialUids
from phoi_edge_node.watchdog import Watchdog
from phoi_edge_node.workflow import Analyst, Outbox
from support import values
from support.fake_desk import PASSWORD, REVIEWER, FakeDesk, FakeStudy

UID = "1.2.3"
AS_IT_IS = Correction()


@dataclass
class Case:
    """A desk with one analysed study with one nodule, and its clock."""

    desk: Desk
    clock: FakeClock

    @property
    def nodule(self) -> str:
        return self.desk.study(UID).nodules[0].tracking_uid

    def decide(self, verdict: Verdict, uid: str = "", correction: Correction = AS_IT_IS) -> None:
        self.clock.advance(1)
        self.desk.decide(UID, uid or self.nodule, verdict, REVIEWER, "", correction)

    def miss(self, revision: int = 1) -> str:
        self.clock.advance(1)
        return self.desk.mark_missed(UID, revision, (1.0, 2.0, 3.0), 7.0, REVIEWER, "")

    def verdicts(self) -> list[Verdict]:
        return [said.verdict for said in self.desk.study(UID).dispositions.values()]


def in_memory() -> Case:
    clock = FakeClock()
    desk = FakeDesk(clock)
    study = FakeStudy(values.header(UID), clock.now(), Phase.READY)
    study.result, study.volume = values.result(UID), values.small_volume()
    desk.studies[UID] = study
    return Case(desk, clock)


def on_a_store(store: SqlStore, clock: FakeClock) -> Case:
    reader = FakeSeriesReader(values.small_volume())
    inference = FakeInference(values.MODEL, values.volume_analysis(values.finding()))
    uids, outbox = SequentialUids(), Outbox([], {})
    intake = StudyIntake(store, clock, quiet_time_s=30)
    analyst = Analyst(
        store,
        reader,
        inference,
        outbox,
        clock,
        uids,
        CurrentModel(store, inference, values.MODEL.name).get,
        RetryPolicy((10.0,), jitter=0.0),
        deadline_s=60,
        maximum_attempts=3,
    )
    store.put_account(StoredAccount(REVIEWER, hash_password(PASSWORD)))
    for number in range(1, 4):
        intake.instance_received(values.instance(number), "a1")
    intake.association_released("a1")
    clock.advance(31)
    intake.complete_quiet_studies()
    assert analyst.run_next()
    links = Links([], inference, clock)
    watchdog = Watchdog(store, clock, limits(EdgeSettings(data=Path("unused"))), lambda uid: None)
    names = ([values.MODEL.name], ["pacs", "emr-hl7"])
    desk = ReviewDesk(store, reader, outbox, links, clock, uids, *names, watchdog)
    return Case(desk, clock)


@pytest.fixture(params=["memory", "sqlite"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "memory":
        yield in_memory()
        return
    clock = FakeClock()
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    yield on_a_store(SqlStore(engine, clock), clock)
    engine.dispose()


def test_the_worklist_row_and_the_study_agree(case: Case) -> None:
    (row,) = case.desk.worklist(10)
    view = case.desk.study(UID)
    assert row == view.row
    assert (row.phase, row.outcome, row.nodule_count) == (Phase.READY, Outcome.POSITIVE, 1)
    assert (row.revision, row.max_diameter_mm) == (1, 12.0)
    assert view.review is ReviewState.OPEN
    assert not view.can_sign
    assert case.desk.worklist(0) == ()


def test_an_unknown_study(case: Case) -> None:
    for ask in (
        lambda: case.desk.study("9.9"),
        lambda: case.desk.volume("9.9", 1),
        lambda: case.desk.undo("9.9", REVIEWER),
        lambda: case.desk.sign("9.9", 1, 0, REVIEWER),
        lambda: case.desk.mark_missed("9.9", 1, (0.0, 0.0, 0.0), None, REVIEWER, ""),
        lambda: case.desk.decide("9.9", "1.1", Verdict.ACCEPTED, REVIEWER, "", AS_IT_IS),
    ):
        with pytest.raises(UnknownStudy):
            ask()


def test_the_volume_of_the_revision_that_is_shown(case: Case) -> None:
    volume = case.desk.volume(UID, 1)
    assert volume.geometry == values.small_volume().geometry
    assert case.desk.volume(UID, 1) is volume, "it is asked for with every slice"
    with pytest.raises(ReviewConflict):
        case.desk.volume(UID, 2)


def test_the_latest_judgement_stands_and_undo_brings_the_one_before_back(case: Case) -> None:
    case.decide(Verdict.ACCEPTED)
    case.decide(Verdict.MODIFIED, correction=Correction(mean_diameter_mm=9.5))
    view = case.desk.study(UID)
    (said,) = view.dispositions.values()
    assert (said.verdict, said.reviewer) == (Verdict.MODIFIED, REVIEWER.username)
    assert said.correction.mean_diameter_mm == 9.5
    assert len(view.history) == 2
    assert view.can_sign

    assert case.desk.undo(UID, REVIEWER) == case.nodule
    assert case.verdicts() == [Verdict.ACCEPTED]
    assert [j.undone_by for j in case.desk.study(UID).history] == ["", REVIEWER.username]
    case.desk.undo(UID, REVIEWER)
    assert case.verdicts() == []
    with pytest.raises(ReviewConflict):
        case.desk.undo(UID, REVIEWER)


def test_a_missed_nodule_can_be_taken_away_and_brought_back(case: Case) -> None:
    uid = case.miss()
    (said,) = case.desk.study(UID).missed
    assert said.tracking_uid == uid != case.nodule
    assert said.correction == Correction((1.0, 2.0, 3.0), 7.0)
    case.decide(Verdict.REJECTED, uid)
    assert case.desk.study(UID).missed == ()
    assert case.desk.undo(UID, REVIEWER) == uid
    assert len(case.desk.study(UID).missed) == 1


def test_what_is_not_in_the_latest_revision_is_not_judged(case: Case) -> None:
    with pytest.raises(ReviewConflict):
        case.decide(Verdict.ACCEPTED, "2.25.999")
    with pytest.raises(ReviewConflict):
        case.miss(revision=2)
    assert case.desk.study(UID).history == ()


def test_only_a_decided_review_as_it_was_seen_is_signed(case: Case) -> None:
    with pytest.raises(ReviewConflict):
        case.desk.sign(UID, 1, 0, REVIEWER)  # undecided
    case.decide(Verdict.ACCEPTED)
    for revision, seen in ((2, 1), (1, 0), (1, 2)):
        with pytest.raises(ReviewConflict):
            case.desk.sign(UID, revision, seen, REVIEWER)
    assert case.desk.study(UID).review is ReviewState.OPEN

    case.desk.sign(UID, 1, 1, REVIEWER)
    view = case.desk.study(UID)
    assert view.row.phase is Phase.SIGNED
    assert (view.signed_by, view.signed_at) == (REVIEWER.display_name, case.clock.now())
    assert not view.reviewable


def test_a_signed_review_is_read_only(case: Case) -> None:
    case.decide(Verdict.ACCEPTED)
    case.desk.sign(UID, 1, 1, REVIEWER)
    for change in (
        lambda: case.decide(Verdict.REJECTED),
        case.miss,
        lambda: case.desk.undo(UID, REVIEWER),
        lambda: case.desk.sign(UID, 1, 1, REVIEWER),
    ):
        with pytest.raises(ReviewConflict):
            change()
    assert case.verdicts() == [Verdict.ACCEPTED]


def test_a_switch_turned_twice_stays_as_it_is(case: Case) -> None:
    assert not any(switch.paused for switch in case.desk.switches())
    for _ in range(2):
        case.desk.pause("destination:pacs", REVIEWER)
    (paused,) = [switch for switch in case.desk.switches() if switch.paused]
    assert (paused.target, paused.paused_by) == ("destination:pacs", REVIEWER.username)
    for _ in range(2):
        case.desk.resume("destination:pacs", REVIEWER)
    assert not any(switch.paused for switch in case.desk.switches())
    for turn in (case.desk.pause, case.desk.resume):
        with pytest.raises(ReviewConflict):
            turn("destination:moon", REVIEWER)


def test_people(case: Case) -> None:
    assert case.desk.authenticate(REVIEWER.username, PASSWORD) == REVIEWER
    assert case.desk.authenticate(REVIEWER.username, "wrong horse") is None
    assert case.desk.authenticate("nobody", PASSWORD) is None
    assert case.desk.account(REVIEWER.username) == REVIEWER
    assert case.desk.account("nobody") is None


def test_the_audit_is_latest_first(case: Case) -> None:
    case.desk.log_access("an", "view_study", UID, "revision 1")
    case.clock.advance(1)
    case.desk.log_access("an", "sign_out", None, "")
    latest, earlier = case.desk.audit(2)
    assert (latest.action, latest.study_instance_uid) == ("sign_out", None)
    assert (earlier.username, earlier.action, earlier.detail) == ("an", "view_study", "revision 1")
    assert earlier.at < latest.at


def test_every_report_of_a_problem_has_its_own_reference(case: Case) -> None:
    references = {case.desk.report_problem("nothing works", REVIEWER) for _ in range(3)}
    assert len(references) == 3


def test_quiet_operations(case: Case) -> None:
    assert case.desk.unready() == ()
    assert case.desk.dead_letters(10) == ()
    assert case.desk.kpis().since <= case.clock.now()


def test_what_can_be_signed_is_not_merely_acknowledged(case: Case) -> None:
    with pytest.raises(ReviewConflict) as told:
        case.desk.acknowledge(UID, 1, REVIEWER)
    assert told.value.conflict is Conflict.TO_BE_SIGNED
    with pytest.raises(ReviewConflict):
        case.desk.acknowledge(UID, 2, REVIEWER)
    assert case.desk.study(UID).review is ReviewState.OPEN


def test_every_state_of_every_life_is_told(case: Case) -> None:
    health = case.desk.health()
    shown = [(state.life, state.state) for state in health.states]
    assert shown == [(life, state.value) for life, states in LIVES.items() for state in states]
    assert all((state.number > 0) == (state.since is not None) for state in health.states)
