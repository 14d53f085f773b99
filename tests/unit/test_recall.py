"""Recalls worked off by the node's core, with fakes at every port and a real, small store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from phoi_edge_node.current_model import CurrentModel
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    ReportedCase,
    ReportStatus,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.recall import (
    RecallDesk,
    StoredRecallBook,
    recall_lines,
    result_line,
    withdrawn_case,
)
from phoi_edge_node.recalled import (
    CURRENT_MODEL,
    Again,
    Notice,
    RecallCriteria,
    RecallError,
    RecallItem,
    RecallRequest,
)
from phoi_edge_node.result import Priority
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.store import Outgoing
from phoi_edge_node.study import AnalysisEvent, AnalysisState, DeliveryState
from phoi_edge_node.testing import FakeClock, FakeInference
from phoi_edge_node.workflow import Outbox
from phoi_models.identity import ModelIdentity
from support import values
from support.cases import case

UID = "1.2.3"
BAD = values.MODEL
GOOD = replace(values.MODEL, version="1.1.0", bundle_hash="cd" * 32)
CRITERIA = RecallCriteria(BAD.name, BAD.version)
REQUEST = RecallRequest(CRITERIA, "marks vessels", "it", replacement=f"{GOOD.name}@{GOOD.version}")


class Encoder:
    """Keeps what it was given; can be told to fail."""

    def __init__(self) -> None:
        self.cases: list[ReportedCase] = []
        self.fails = False

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        if self.fails:
            raise ValueError("a value of a patient")
        self.cases.append(case)
        return [Document(DocumentKind.STRUCTURED_REPORT, f"withdrawn-{len(self.cases)}", b"x")]


class Edge:
    """A node that told one result of the bad version to its archive."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = open_engine(f"sqlite:///{folder / 'phoi.sqlite'}")
        self.store = SqlStore(self.engine, self.clock)
        self.inference = FakeInference(BAD, values.volume_analysis())
        self.model = CurrentModel(self.store, self.inference, BAD.name)
        assert self.model.get() == BAD
        self.encoder = Encoder()
        outbox = Outbox([self.encoder], {"pacs": {DocumentKind.STRUCTURED_REPORT}})
        self.desk = RecallDesk(self.store, outbox, self.inference, self.model, self.clock)
        self.book = StoredRecallBook(self.store)
        self._tell()

    def _tell(self) -> None:
        self.store.add_instance(values.instance(1))
        analysis_id = self.store.complete_study(UID, Priority.ROUTINE)
        assert analysis_id is not None
        assert self.store.claim_analysis() is not None
        self.store.pin_model(analysis_id, BAD)
        told = [Outgoing(values.document("sr"), ("pacs",))]
        self.store.finish_analysis(analysis_id, AnalysisEvent.FINISH, values.result(), told)
        self.deliver()

    def deliver(self) -> None:
        claimed = self.store.claim_delivery("pacs")
        assert claimed is not None
        self.store.settle_delivery(claimed[0].id, Delivered(), self.clock.now())

    def work_off(self) -> None:
        while self.desk.run_next():
            pass


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(tmp_path)
    yield edge
    edge.engine.dispose()


def test_the_notice_is_about_what_was_told(edge: Edge) -> None:
    edge.book.ask(REQUEST)
    edge.work_off()
    (case,) = edge.encoder.cases
    assert case.status is ReportStatus.WITHDRAWN
    assert case.predecessors == {DocumentKind.STRUCTURED_REPORT: ("sr",)}
    assert [told.result.identity for told in case.told_before] == [values.result().identity]
    assert (case.review, case.choice, case.volume) == (None, None, None)
    assert case.withdrawn_at == edge.clock.now()


KINDS = {"sr": DocumentKind.STRUCTURED_REPORT, "seg": DocumentKind.SEGMENTATION}


def _store_with(
    folder: Path, outcomes: Mapping[tuple[str, str], SendOutcome]
) -> tuple[SqlStore, RecallItem]:
    """A study whose SEG and SR had these answers, by lane and document, and that was recalled."""
    clock = FakeClock()
    store = SqlStore(open_engine(f"sqlite:///{folder / 'held.sqlite'}"), clock)
    store.add_instance(values.instance(1))
    analysis_id = store.complete_study(UID, Priority.ROUTINE)
    assert analysis_id is not None
    assert store.claim_analysis() is not None
    store.pin_model(analysis_id, BAD)
    lanes = tuple(sorted({lane for lane, _ in outcomes}))
    documents = [Document(KINDS[name], name, b"x") for name in ("seg", "sr")]
    told = [
        Outgoing(document, tuple(n for n in lanes if (n, document.identity) in outcomes))
        for document in documents
    ]
    store.finish_analysis(analysis_id, AnalysisEvent.FINISH, values.result(), told)
    for lane in lanes:
        while (claimed := store.claim_delivery(lane)) is not None:
            outcome = outcomes[lane, claimed[0].identity]
            store.settle_delivery(claimed[0].id, outcome, clock.now() + timedelta(hours=1), 1)
    store.ask_recall(RecallRequest(CRITERIA, "marks vessels", "it"))
    item = store.next_notice()
    assert item is not None
    return store, item


SR, SEG = DocumentKind.STRUCTURED_REPORT, DocumentKind.SEGMENTATION


@pytest.mark.parametrize(
    ("outcomes", "held"),
    [
        # What one archive alone got, and what the other's settings leave out.
        (
            {("a", "seg"): Delivered(), ("a", "sr"): Delivered(), ("b", "sr"): Delivered()},
            {"a": {SEG: ("seg",), SR: ("sr",)}, "b": {SR: ("sr",)}},
        ),
        ({("a", "seg"): Refused("no"), ("a", "sr"): Delivered()}, {"a": {SR: ("sr",)}}),
        # Silence leaves it open, an archive that could not be reached does not.
        (
            {("a", "seg"): Delivered(), ("a", "sr"): Unreachable("no answer")},
            {"a": {SEG: ("seg",), SR: ("sr",)}},
        ),
        (
            {("a", "seg"): Delivered(), ("a", "sr"): Unreachable("away", nothing_taken=True)},
            {"a": {SEG: ("seg",)}},
        ),
        ({("a", "seg"): Delivered(), ("a", "sr"): Erred("x")}, {"a": {SEG: ("seg",), SR: ("sr",)}}),
    ],
)
def test_a_notice_names_to_each_archive_what_it_holds(
    outcomes: Mapping[tuple[str, str], SendOutcome],
    held: Mapping[str, Mapping[DocumentKind, tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    store, item = _store_with(tmp_path, outcomes)
    assert withdrawn_case(store, item).held == held


@pytest.mark.parametrize(
    ("answer", "named"),
    [(Delivered(), {"withdrawn-sr"}), (Refused("no"), {"withdrawn-sr", "sr", "seg"})],
)
def test_a_later_notice_leaves_out_what_an_earlier_one_has_rejected(
    answer: SendOutcome, named: set[str], tmp_path: Path
) -> None:
    outcomes = {("a", "seg"): Delivered(), ("a", "sr"): Delivered()}
    store, item = _store_with(tmp_path, outcomes)
    note = Document(DocumentKind.REJECTION_NOTE, "note", b"x")
    replaced = Document(SR, "withdrawn-sr", b"x")
    both = [Outgoing(note, ("a",)), Outgoing(replaced, ("a",))]
    store.tell_withdrawal(item, both, values.PATIENT)
    for outcome in (answer, Delivered()):
        claimed = store.claim_delivery("a")
        assert claimed is not None
        store.settle_delivery(claimed[0].id, outcome, values.AT)
    held = (withdrawn_case(store, item).held or {})["a"]
    assert {uid for kind in (SR, SEG) for uid in held.get(kind, ())} == named


def test_who_could_never_be_reached_gets_no_notice(tmp_path: Path) -> None:
    away = Unreachable("away", nothing_taken=True)
    outcomes: dict[tuple[str, str], SendOutcome] = {
        ("a", "sr"): Delivered(),
        ("b", "sr"): away,
    }
    store, item = _store_with(tmp_path, outcomes)
    notice = Outgoing(Document(SR, "withdrawn-sr", b"x"), ("a", "b"))
    store.tell_withdrawal(item, [notice], values.PATIENT)
    told = (d for d in store.deliveries(UID) if d.status is ReportStatus.WITHDRAWN)
    assert [d.destination for d in told] == ["a"]


def test_a_document_about_one_destination_goes_to_no_other() -> None:
    class Notes:
        def encode(self, case: ReportedCase) -> Sequence[Document]:
            del case
            note = Document(DocumentKind.REJECTION_NOTE, "1", b"x")
            return [replace(note, only_to="b"), replace(note, identity="2")]

    lanes = {name: {DocumentKind.REJECTION_NOTE} for name in ("a", "b", "c")}
    sent = Outbox([Notes()], {**lanes, "d": {SR}}).encode(case())
    assert [one.destinations for one in sent] == [("b",), ("a", "b", "c")]


def test_the_named_model_takes_the_place_of_the_recalled_one(edge: Edge) -> None:
    edge.inference.load(GOOD)
    edge.book.ask(REQUEST)
    edge.work_off()
    assert edge.store.analyses(UID)[-1].model == GOOD
    assert edge.model.get() == GOOD, "new studies go on with it"
    ((recall, sent),) = edge.book.recalls()
    assert recall.done
    lines = "\n".join(recall_lines(recall, sent))
    assert "(done)" in lines
    assert "withdrawals to pacs: 1 pending" in lines


def test_a_recall_that_blames_no_model_changes_no_model(edge: Edge) -> None:
    edge.inference.load(GOOD)
    edge.book.ask(replace(REQUEST, criteria=RecallCriteria(calling_ae_title="PACS")))
    edge.work_off()
    assert edge.store.pauses() == []
    assert edge.model.get() == BAD
    assert edge.store.analyses(UID)[-1].model == GOOD


def test_new_studies_get_the_named_model_even_where_nothing_is_analysed_again(
    edge: Edge,
) -> None:
    edge.inference.load(GOOD)
    nothing = RecallCriteria(BAD.name, BAD.version, until=values.AT - timedelta(days=365))
    edge.book.ask(replace(REQUEST, criteria=nothing))
    ((recall, _),) = edge.book.recalls()
    assert not recall.done
    edge.work_off()
    assert edge.model.get() == GOOD
    ((recall, _),) = edge.book.recalls()
    assert recall.done
    assert recall.actions == {}


def test_a_recall_that_stops_no_model_leaves_the_model_of_new_studies(edge: Edge) -> None:
    edge.inference.load(GOOD)
    edge.book.ask(replace(REQUEST, pause=False))
    edge.work_off()
    assert edge.model.get() == BAD
    assert edge.store.analyses(UID)[-1].model == GOOD


def test_withdrawing_does_not_wait_for_a_model_that_nobody_offers(edge: Edge) -> None:
    edge.book.ask(REQUEST)
    edge.work_off()
    ((recall, _),) = edge.book.recalls()
    assert recall.notices == {Notice.QUEUED: 1}
    assert recall.again == {Again.WAITING: 1}
    assert "no worker offers" in recall.trouble
    edge.inference.load(GOOD)
    edge.clock.advance(61)
    edge.work_off()
    assert edge.book.recalls()[0][0].done


def test_the_recalled_model_does_not_analyse_again(edge: Edge) -> None:
    edge.book.ask(replace(REQUEST, replacement=CURRENT_MODEL))
    edge.work_off()
    ((recall, _),) = edge.book.recalls()
    assert "is paused" in recall.trouble
    assert [a.state for a in edge.store.analyses(UID)] == [AnalysisState.WITHDRAWN]


def test_a_notice_that_cannot_be_written_is_tried_again_and_tells_nothing(edge: Edge) -> None:
    edge.encoder.fails = True
    edge.book.ask(REQUEST)
    edge.work_off()
    ((recall, sent),) = edge.book.recalls()
    assert recall.notices == {Notice.WAITING: 1}
    assert "a value of a patient" not in recall.trouble
    assert sent == {}
    edge.encoder.fails = False
    edge.clock.advance(61)
    edge.work_off()
    assert edge.book.recalls()[0][0].notices == {Notice.QUEUED: 1}


def test_one_broken_encoder_does_not_silence_the_others(edge: Edge) -> None:
    broken = Encoder()
    broken.fails = True
    outbox = Outbox([broken, edge.encoder], {"pacs": {DocumentKind.STRUCTURED_REPORT}})
    desk = RecallDesk(edge.store, outbox, edge.inference, edge.model, edge.clock)
    edge.book.ask(replace(REQUEST, replacement=""))
    while desk.run_next():
        pass
    ((recall, sent),) = edge.book.recalls()
    assert recall.notices == {Notice.WAITING: 1}
    assert "ValueError" in recall.trouble
    assert sent == {"pacs": {DeliveryState.PENDING: 1}}


@pytest.mark.parametrize("lanes", [{}, {"archive": {DocumentKind.STRUCTURED_REPORT}}])
def test_who_was_told_and_is_no_destination_now_is_not_forgotten(
    edge: Edge, lanes: dict[str, set[DocumentKind]]
) -> None:
    desk = RecallDesk(
        edge.store, Outbox([edge.encoder], lanes), edge.inference, edge.model, edge.clock
    )
    edge.book.ask(replace(REQUEST, replacement=""))
    while desk.run_next():
        pass
    ((recall, sent),) = edge.book.recalls()
    assert not recall.done
    assert "pacs was told" in recall.trouble
    assert sent == {}
    edge.clock.advance(901)
    edge.work_off()  # it is a destination again
    assert edge.book.recalls()[0][0].done


def test_a_study_whose_images_were_removed_is_withdrawn_all_the_same(edge: Edge) -> None:
    assert edge.store.expire_study(UID)
    edge.book.ask(REQUEST)
    edge.work_off()
    (case,) = edge.encoder.cases
    (evidence,) = case.instances
    assert evidence.sop_instance_uid == values.instance(1).sop_instance_uid
    assert evidence.series_instance_uid == values.instance(1).series_instance_uid


def test_a_line_says_all_of_a_result_and_names_nobody(edge: Edge) -> None:
    (result,) = edge.book.recallable(CRITERIA)
    line = result_line(result)
    for part in (UID, "revision 1", "pacs: 1 delivered", "images here", "-> withdraw", "positive"):
        assert part in line
    assert values.PATIENT.patient_id not in line
    assert edge.book.models() == (f"{BAD.name}@{BAD.version}",)


def test_all_versions_may_be_redone_by_one_of_them_if_nothing_is_paused() -> None:
    request = replace(REQUEST, criteria=RecallCriteria(BAD.name, since=values.AT), pause=False)
    assert request.replacement == f"{GOOD.name}@{GOOD.version}"


def test_a_study_that_cannot_be_queued_does_not_hold_up_the_others(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(item_id: int, model: ModelIdentity) -> Again:
        raise ValueError("a value of a patient")

    edge.inference.load(GOOD)
    monkeypatch.setattr(edge.store, "analyse_again", broken)
    edge.book.ask(REQUEST)
    edge.work_off()
    ((recall, _),) = edge.book.recalls()
    assert recall.again == {Again.WAITING: 1}
    assert recall.trouble == "internal error: ValueError"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: RecallCriteria(), "say which"),
        (lambda: RecallCriteria(model_version="1"), "NAME@VERSION"),
        (lambda: RecallCriteria(since=values.AT, until=values.AT), "ends before"),
        (lambda: replace(REQUEST, reason=" "), "say why"),
        (lambda: replace(REQUEST, replacement="1.0"), "NAME@VERSION"),
        (lambda: replace(REQUEST, replacement=CRITERIA.model), "another version"),
        (lambda: replace(REQUEST, criteria=RecallCriteria(BAD.name)), "is paused with all of"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: object, why: str) -> None:
    assert callable(wrong)
    with pytest.raises(RecallError, match=why):
        wrong()


def test_a_period_alone_may_be_recalled() -> None:
    request = RecallRequest(RecallCriteria(since=values.AT), "a broken scanner", "it")
    assert request.criteria.pauses == ""
