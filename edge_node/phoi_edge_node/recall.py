"""Works off recalls: tells whoever was told of a result that it is withdrawn, and has it redone.

First new studies get another model, where one is named; where that fails, it is tried again later.
Then come all notices, so that nobody reads a bad result longer than must be; then the studies are
analysed again, one by one. Each is one transaction: a crash leaves it done or to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import structlog
from phoi_models.identity import ModelIdentity

from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.ports import (
    Clock,
    DocumentKind,
    InferenceService,
    ReceivedInstance,
    ReportedCase,
    ReportStatus,
)
from phoi_edge_node.recalled import (
    CURRENT_MODEL,
    Again,
    Recall,
    RecallCriteria,
    RecalledResult,
    RecallError,
    RecallItem,
    RecallRequest,
    Switch,
)
from phoi_edge_node.result import StudyHeader
from phoi_edge_node.store import Delivery, StoredAnalysis, StudyStore
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.workflow import EncodingFailed, Outbox, told_before

log = structlog.get_logger(__name__)

_TRY_AGAIN_AFTER = timedelta(minutes=1)
_LOOK_AT_SETTINGS_AFTER = timedelta(minutes=15)  # they change seldom, and the list may be long
_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


class SiteModel(Protocol):
    """The model that new analyses get."""

    def get(self) -> ModelIdentity:
        """As it is now.

        Raises:
            InferenceUnavailable: none was ever chosen.
        """
        ...

    def set(self, model: ModelIdentity) -> None:
        """Another one from now on."""
        ...


class RecallDesk:
    """Takes the next step of whatever was recalled."""

    def __init__(
        self,
        store: StudyStore,
        outbox: Outbox,
        inference: InferenceService,
        model: SiteModel,
        clock: Clock,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._inference = inference
        self._model = model
        self._clock = clock

    def run_next(self) -> bool:
        """One change of model, notice or study that is analysed again; False if nothing is due."""
        recall = self._store.next_switch()
        if recall is not None:
            self._switch_or_put_off(recall)
            return True
        item = self._store.next_notice()
        if item is not None:
            self._do_or_put_off(self._tell, item)
            return True
        item = self._store.next_again()
        if item is not None:
            self._do_or_put_off(self._analyse_again, item)
            return True
        return False

    def _switch_or_put_off(self, recall: Recall) -> None:
        """New studies do not wait for the stopped model, whatever becomes of the results."""
        trouble = _trouble_of(lambda: self._switch(recall), recall=recall.id)
        if not trouble:
            self._store.switched(recall.id)
            return
        log.warning("recall waits", trouble=trouble, recall=recall.id)
        self._store.put_off_switch(recall.id, trouble, self._clock.now() + _TRY_AGAIN_AFTER)

    def _switch(self, recall: Recall) -> None:
        if self._model.get().is_any_of([recall.criteria.model]):
            model = self._replacement(recall.replacement)
            self._model.set(model)
            log.info("model of new studies changed", model=model.name, version=model.version)

    def _do_or_put_off(self, step: Callable[[RecallItem], None], item: RecallItem) -> None:
        """One notice or study with which something is wrong must not hold up the others."""
        if trouble := _trouble_of(lambda: step(item), **_names(item)):
            self._put_off(item, trouble)

    def _tell(self, item: RecallItem) -> None:
        case = withdrawn_case(self._store, item)
        trouble = ""
        try:
            outgoing = self._outbox.encode(case)
        except EncodingFailed as error:  # what the other encoders made goes out at once
            outgoing, trouble = error.outgoing, str(error)
        waiting = self._store.tell_withdrawal(item, outgoing, case.study.patient, whole=not trouble)
        if waiting and trouble:
            self._put_off(item, trouble)
        elif waiting:
            names = ", ".join(sorted(waiting))
            trouble = f"{names} was told, and by the settings gets no notice"
            self._put_off(item, trouble, _LOOK_AT_SETTINGS_AFTER)
        elif waiting is not None:
            log.info("withdrawal told", **_names(item))

    def _analyse_again(self, item: RecallItem) -> None:
        model = self._replacement(item.replacement)
        if self._store.analyse_again(item.id, model) is Again.WAITING:
            self._put_off(item, "images of it are being received")

    def _replacement(self, name: str) -> ModelIdentity:
        """The model that takes the place of the recalled one.

        Raises:
            InferenceUnavailable: no worker has it.
            RecallError: it is paused, perhaps since it is the recalled one.
        """
        model = self._model.get() if name == CURRENT_MODEL else self._offered(name)
        paused = [pause.target.removeprefix("model:") for pause in self._store.pauses()]
        if model.is_any_of(paused):
            which = f"{model.name}@{model.version}"
            raise RecallError(f"{which} is paused: resume it, or recall with another model")
        return model

    def _offered(self, name: str) -> ModelIdentity:
        for model in self._inference.models():
            if model.is_any_of([name]):
                return model
        raise InferenceUnavailable(f"no worker offers {name}: see `phoi models list`")

    def _put_off(
        self, item: RecallItem, trouble: str, longer: timedelta = _TRY_AGAIN_AFTER
    ) -> None:
        log.warning("recall waits", trouble=trouble, **_names(item))
        self._store.put_off(item.id, trouble, self._clock.now() + longer)


def _trouble_of(step: Callable[[], None], **names: object) -> str:
    """Take a step; why it could not be taken, without patient data, or ""."""
    try:
        step()
    except (InferenceUnavailable, RecallError) as error:
        return str(error) or type(error).__name__
    except Exception as error:
        log.exception("a step of a recall failed", **names)
        return f"internal error: {type(error).__name__}"
    return ""


def withdrawn_case(store: StudyStore, item: RecallItem) -> ReportedCase:
    """What the notice of a withdrawn result is made of; its images need not be here."""
    uid = item.study_instance_uid
    study = store.study(uid)
    analysis = next(a for a in store.analyses(uid) if a.id == item.analysis_id)
    if study is None or analysis.result is None:
        raise AssertionError("what is withdrawn is the result of a study")
    out = [d for d in store.deliveries(uid) if d.revision <= item.revision and d.may_have_arrived]
    return ReportedCase(
        study=study.header,
        result=analysis.result,
        status=ReportStatus.WITHDRAWN,
        instances=tuple(store.instances(uid)) or (_removed(store, study.header, analysis),),
        choice=None,
        volume=None,
        predecessors=_identities(out),
        told_before=told_before(store, uid, item.revision + 1),
        order=store.order_of(uid),
        withdrawn_at=item.at,
        held=_held(out),
    )


def _held(out: Sequence[Delivery]) -> Mapping[str, Mapping[DocumentKind, tuple[str, ...]]]:
    by_lane: dict[str, list[Delivery]] = {}
    for delivery in out:
        by_lane.setdefault(delivery.destination, []).append(delivery)
    return {name: _standing(deliveries) for name, deliveries in sorted(by_lane.items())}


def _standing(deliveries: Sequence[Delivery]) -> Mapping[DocumentKind, tuple[str, ...]]:
    """What one destination may have and no rejection note has hidden there, by kind.

    An archive that is told to hide what it has not, or has hidden, may follow none of the note. A
    note hides what was queued before it; what tells of the withdrawal is queued after it.
    """
    notes = (
        d.id
        for d in deliveries
        if (d.kind, d.state) == (DocumentKind.REJECTION_NOTE, DeliveryState.DELIVERED)
    )
    last = max(notes, default=0)
    return _identities([d for d in deliveries if d.id > last])


def _identities(deliveries: Sequence[Delivery]) -> Mapping[DocumentKind, tuple[str, ...]]:
    """By kind, latest last."""
    found: dict[DocumentKind, dict[str, None]] = {}
    for delivery in deliveries:
        found.setdefault(delivery.kind, {})[delivery.identity] = None
    return {kind: tuple(identities) for kind, identities in found.items()}


def _removed(store: StudyStore, study: StudyHeader, analysis: StoredAnalysis) -> ReceivedInstance:
    """What is still known of an image that retention removed: enough to name it as evidence."""
    uid = study.study_instance_uid
    series = analysis.result.identity.series_instance_uid if analysis.result else ""
    lost = {series: {damage.sop_instance_uid for damage in store.damages(uid)}}
    known = store.expired_images(uid) or lost
    series = series if series in known else min(known)
    return ReceivedInstance(
        sop_instance_uid=min(known[series]),
        sop_class_uid=_CT_IMAGE_STORAGE,
        series_instance_uid=series,
        transfer_syntax_uid="",
        path="removed",
        sha256="",
        size=0,
        modality="CT",
        calling_ae_title="",
        received_at=analysis.created_at,
        study=study,
    )


class StoredRecallBook:
    """``recalled.RecallBook`` on the store."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store

    def models(self) -> tuple[str, ...]:
        """Every "NAME@VERSION" that was ever used here."""
        used = (use.model for use in self._store.use().models)
        return tuple(dict.fromkeys(f"{m.name}@{m.version}" for m in used))

    def recallable(
        self, criteria: RecallCriteria, *, signed_too: bool = False, redo: bool = False
    ) -> Sequence[RecalledResult]:
        """As ``RecallStore.recallable``."""
        return self._store.recallable(criteria, signed_too=signed_too, redo=redo)

    def unknown_senders(self) -> int:
        """As ``RecallStore.unknown_senders``."""
        return self._store.unknown_senders()

    def ask(self, request: RecallRequest) -> int:
        """Recall; its number."""
        return self._store.ask_recall(request)

    def recalls(self) -> tuple[tuple[Recall, Mapping[str, Mapping[DeliveryState, int]]], ...]:
        """The latest recalls, newest first, each with how far its notices came."""
        return tuple((r, self._store.withdrawals(r.id)) for r in self._store.recalls())


def result_line(result: RecalledResult) -> str:
    """One result, for a person: no name of a patient."""
    where = "; ".join(
        f"{name}: {', '.join(f'{n} {state.value}' for state, n in states.items())}"
        for name, states in result.deliveries.items()
    )
    parts = (
        f"{result.finished_at:%Y-%m-%d %H:%M}" if result.finished_at else "under way",
        result.study_instance_uid,
        f"revision {result.revision}",
        result.model or "no model",
        result.outcome.value if result.outcome else "-",
        f"review {result.review.value}" if result.review else "no review",
        where or "sent nowhere",
        "images here" if result.images_here else "images removed",
        f"-> {result.action.value}",
    )
    return "  ".join(parts)


def recall_lines(
    recall: Recall, withdrawals: Mapping[str, Mapping[DeliveryState, int]]
) -> Iterator[str]:
    """How far a recall is, for a person."""
    state = "done" if recall.done else "under way"
    yield f"recall {recall.id}: {recall.criteria} ({state})"
    yield f"  asked for {recall.asked_at:%Y-%m-%d %H:%M} UTC by {recall.asked_by}: {recall.reason}"
    for title, counts in (
        ("results", recall.actions),
        ("notices", recall.notices),
        ("analysed again", recall.again),
    ):
        told = ", ".join(f"{n} {key.value}" for key, n in counts.items() if key.value != "none")
        yield f"  {title}: {told or 'none'}"
    for name, states in withdrawals.items():
        told = ", ".join(f"{n} {state.value}" for state, n in states.items())
        yield f"  withdrawals to {name}: {told}"
    if recall.switch is not Switch.NONE:
        yield f"  model of new studies: {recall.switch.value}"
    if recall.trouble:
        yield f"  waits: {recall.trouble}"


def _names(item: RecallItem) -> dict[str, object]:
    return {
        "recall": item.recall_id,
        "study_instance_uid": item.study_instance_uid,
        "revision": item.revision,
    }
