"""The analysis of one study: load, decide, persist, then effects."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import structlog
from phoi_models.errors import NotAnalysable
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume

from phoi_edge_node.errors import (
    EdgeError,
    IllegalTransition,
    InferenceFailed,
    InferenceUnavailable,
)
from phoi_edge_node.policies import RetryPolicy
from phoi_edge_node.ports import (
    AnalysisRequest,
    Clock,
    Document,
    DocumentEncoder,
    DocumentKind,
    InferenceService,
    ReportedCase,
    ReportStatus,
    SeriesChoice,
    SeriesReader,
    ToldBefore,
    UidSource,
)
from phoi_edge_node.priority_policy import AS_SUGGESTED, PriorityPolicy
from phoi_edge_node.result import ResultIdentity, SignedReview, StudyHeader, TriageResult
from phoi_edge_node.store import Outgoing, StoredAnalysis, StudyStore
from phoi_edge_node.study import AnalysisEvent, AnalysisState, DeliveryState, ReviewState
from phoi_edge_node.triage import (
    failed_result,
    known_completeness,
    make_result,
    not_analysable_result,
)

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_PROGRESS_STEP = 0.05  # each stored one is a transaction, synced to disk
UNKNOWN_MODEL = ModelIdentity(name="none", version="0", bundle_hash="0" * 64)


def insist(write: Callable[[], _T], tries: int = 60, wait_s: float = 1.0) -> _T:
    """Do a write that must not be given up lightly: a full disk or a locked database may pass.

    What is claimed and then not settled would wait until the next start of the node.
    """
    for _ in range(tries - 1):
        try:
            return write()
        except IllegalTransition:
            raise
        except Exception:
            log.exception("a write failed and will be tried again")
            time.sleep(wait_s)
    return write()


class EncodingFailed(EdgeError):
    """A document of a case could not be made: a bug of ours.

    Attributes:
        outgoing: the documents that could be made.
    """

    def __init__(self, detail: str, outgoing: tuple[Outgoing, ...]) -> None:
        super().__init__(detail)
        self.outgoing = outgoing


class Outbox:
    """Turns a case into documents for the destinations that this site sends to."""

    def __init__(
        self, encoders: Sequence[DocumentEncoder], lanes: Mapping[str, Collection[DocumentKind]]
    ) -> None:
        self._encoders = encoders
        of_studies = {name: set(kinds) - {DocumentKind.USAGE} for name, kinds in lanes.items()}
        self._lanes = {name: kinds for name, kinds in of_studies.items() if kinds}

    def encode(self, case: ReportedCase) -> tuple[Outgoing, ...]:
        """The documents of a case, in order, each with its destinations; empty in shadow mode.

        Raises:
            EncodingFailed: an encoder did not manage. Its ``outgoing`` holds what the others did.
        """
        if not self._lanes:
            return ()
        outgoing: list[Outgoing] = []
        troubles: set[str] = set()
        for encoder in self._encoders:
            try:
                documents = encoder.encode(case)
            except Exception as error:  # one broken encoder must not silence the others
                log.exception("encoding failed", encoder=type(encoder).__name__)
                troubles.add(type(error).__name__)
                continue
            outgoing += [
                Outgoing(document, lanes) for document in documents if (lanes := self._to(document))
            ]
        if troubles:
            raise EncodingFailed(f"encoding failed: {', '.join(sorted(troubles))}", tuple(outgoing))
        return tuple(outgoing)

    def _to(self, document: Document) -> tuple[str, ...]:
        takes = (name for name, kinds in self._lanes.items() if document.kind in kinds)
        return tuple(name for name in takes if document.only_to in ("", name))


@dataclass(frozen=True)
class _Ended:
    """An analysis came to its end: how, and with what."""

    event: AnalysisEvent
    result: TriageResult
    choice: SeriesChoice | None = None
    volume: Volume | None = None
    error: str = ""


@dataclass(frozen=True)
class _Passing:
    """Something passing went wrong: try again."""

    error: str
    reached_worker: bool
    retry_after_s: float | None


class _Progress:
    """Stores what a worker tells of its progress, but not every hair's breadth of it."""

    def __init__(self, store: StudyStore, analysis_id: str) -> None:
        self._store = store
        self._analysis_id = analysis_id
        self._last = ("", 0.0)
        self.reached_worker = False

    def __call__(self, step: str, fraction: float) -> None:
        self.reached_worker = True
        last_step, last_fraction = self._last
        if step != last_step or fraction - last_fraction >= _PROGRESS_STEP:
            self._last = (step, fraction)
            self._store.report_progress(self._analysis_id, step, fraction)


class Analyst:
    """Runs queued analyses, one at a time.

    Args:
        look_after: looks at the stored images of a study that cannot be read, by Study Instance
            UID; True if some were damaged and are asked for again.
        priorities: the site's policy of what is told outward.
    """

    def __init__(
        self,
        store: StudyStore,
        reader: SeriesReader,
        inference: InferenceService,
        outbox: Outbox,
        clock: Clock,
        uids: UidSource,
        current_model: Callable[[], ModelIdentity],
        retry: RetryPolicy,
        *,
        deadline_s: float,
        maximum_attempts: int,
        look_after: Callable[[str], bool] = lambda _: False,
        priorities: PriorityPolicy = AS_SUGGESTED,
    ) -> None:
        self._store = store
        self._reader = reader
        self._inference = inference
        self._outbox = outbox
        self._clock = clock
        self._uids = uids
        self._current_model = current_model
        self._retry = retry
        self._deadline_s = deadline_s
        self._maximum_attempts = maximum_attempts
        self._look_after = look_after
        self._priorities = priorities

    def run_next(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Run the next analysis to an end or to its next try; False if none is due."""
        paused = {pause.target for pause in self._store.pauses()}
        if "everything" in paused:
            return False
        excluded = [t.removeprefix("model:") for t in paused if t.startswith("model:")]
        analysis = self._store.claim_analysis(excluded, unpinned=self._model_runs(excluded))
        if analysis is None:
            return False
        self._run(analysis, stopping)
        return True

    def _model_runs(self, excluded: Collection[str]) -> bool:
        # A queued analysis has no model yet: it would get the current one.
        if not excluded:
            return True
        try:
            return not self._current_model().is_any_of(excluded)
        except InferenceUnavailable:
            return False

    def _run(self, analysis: StoredAnalysis, stopping: Callable[[], bool]) -> None:
        log.info("analysis started", **_names(analysis))
        study = self._store.study(analysis.study_instance_uid)
        if study is None:
            raise AssertionError("an analysis belongs to a study")
        ended: _Ended | _Passing
        try:
            if analysis.attempts >= self._maximum_attempts:
                ended = self._failed(analysis, analysis.error or "it broke the node")
            else:
                ended = self._analyse(analysis, stopping)
        except Exception as error:  # our bug, or a trouble of the disk that may pass
            log.exception("analysis broke off", **_names(analysis))
            ended = _Passing(f"internal error: {type(error).__name__}", True, None)
        if isinstance(ended, _Passing) and stopping():
            ended = replace(ended, reached_worker=False)  # being stopped is nobody's fault
        if isinstance(ended, _Passing):
            self._try_again(analysis, ended, study.header)
        else:
            self._finish(analysis, ended, study.header)

    def _analyse(self, analysis: StoredAnalysis, stopping: Callable[[], bool]) -> _Ended | _Passing:
        choice = volume = None
        progress = _Progress(self._store, analysis.id)
        model = analysis.model
        try:
            if model is None:
                model = self._current_model()
                if not self._store.pin_model(analysis.id, model):
                    return _Passing("its model was paused a moment ago", False, None)
            choice = self._reader.choose(self._store.instances(analysis.study_instance_uid))
            self._store.report_progress(analysis.id, "read", 0.0)
            volume = self._reader.read(choice)
            known = self._known_result(analysis, volume)
            if known is not None:
                return _Ended(AnalysisEvent.FINISH, known, choice, volume)
            request = AnalysisRequest(
                analysis.id, model, volume, analysis.priority, deadline_s=self._deadline_s
            )
            found = self._inference.analyze(request, progress, stopping)
        except NotAnalysable as refusal:
            if volume is None and self._look_after(analysis.study_instance_uid):
                return _Passing("images were damaged on disk: asked for again", False, None)
            identity = _identity(analysis, choice, "", model)
            reason = choice.reason if choice else ""
            result = not_analysable_result(
                identity, refusal, reason, self._clock.now(), analysis.completeness
            )
            return _Ended(AnalysisEvent.REFUSE, result, choice)
        except InferenceUnavailable as error:
            return _Passing(str(error), progress.reached_worker, error.retry_after_s)
        except InferenceFailed as error:
            return self._failed(analysis, str(error), choice, model)
        identity = _identity(analysis, choice, volume.digest(), model)
        result = make_result(
            identity, found, choice.reason, self._uids, self._clock.now(), analysis.completeness
        )
        result = replace(result, passed_over=choice.passed_over)
        return _Ended(AnalysisEvent.FINISH, result, choice, volume)

    def _known_result(self, analysis: StoredAnalysis, volume: Volume) -> TriageResult | None:
        """What an earlier revision found in the same voxels by the same model, to be told anew.

        Asked where the model was pinned before: a correction of the patient queues such a
        revision, whose result is the same to the last digit, and whose documents are not.
        """
        for earlier in reversed(self._store.analyses(analysis.study_instance_uid)):
            result = earlier.result
            if (
                result is not None
                and earlier.state is not AnalysisState.WITHDRAWN
                and result.identity.model == analysis.model
                and result.identity.input_digest == volume.digest()
                and result.completeness
                is known_completeness(analysis.completeness, result.coverage)
            ):
                identity = replace(result.identity, revision=analysis.revision)
                return replace(result, identity=identity, analysed_at=self._clock.now())
        return None

    def _failed(
        self,
        analysis: StoredAnalysis,
        error: str,
        choice: SeriesChoice | None = None,
        model: ModelIdentity | None = None,
    ) -> _Ended:
        identity = _identity(analysis, choice, "", model or analysis.model)
        reason = choice.reason if choice else ""
        result = failed_result(identity, error, reason, self._clock.now(), analysis.completeness)
        return _Ended(AnalysisEvent.GIVE_UP, result, choice, error=error)

    def _try_again(self, analysis: StoredAnalysis, passing: _Passing, study: StudyHeader) -> None:
        attempts = analysis.attempts + int(passing.reached_worker)
        # A study that brings every worker down must not do so for ever. One that never reached a
        # worker is not to blame, and waits.
        if attempts >= self._maximum_attempts:
            self._finish(analysis, self._failed(analysis, passing.error), study)
            return
        delay = self._retry.delay(attempts, random.random())  # noqa: S311 - jitter, no secret
        if passing.retry_after_s is not None:
            delay = max(delay, timedelta(seconds=passing.retry_after_s))
        log.warning("analysis will be tried again", error=passing.error, **_names(analysis))
        due_at = self._clock.now() + delay
        insist(
            lambda: self._store.retry_analysis(
                analysis.id,
                passing.error,
                due_at,
                reached_worker=passing.reached_worker,
                claim=analysis.claims,
            )
        )

    def _finish(self, analysis: StoredAnalysis, ended: _Ended, study: StudyHeader) -> None:
        ended = self._prioritised(ended)
        try:
            outgoing = self._documents(analysis, ended, study)
        except EncodingFailed as error:
            # Shown as failed, and told outward as failed by every encoder that manages that.
            ended = self._prioritised(self._failed(analysis, str(error)))
            outgoing = self._documents_of_failure(analysis, ended, study)
        stored = insist(
            lambda: self._store.finish_analysis(
                analysis.id,
                ended.event,
                ended.result,
                outgoing,
                ended.error,
                analysis.claims,
                study.patient,
            )
        )
        log.info(
            "analysis ended",
            outcome=ended.result.outcome.value if stored else "superseded",
            nodules=len(ended.result.nodules),
            **_names(analysis),
        )

    def _prioritised(self, ended: _Ended) -> _Ended:
        order = self._store.order_of(ended.result.identity.study_instance_uid)
        ordered = order.priority if order else None
        return replace(ended, result=self._priorities.applied(ended.result, ordered))

    def _documents_of_failure(
        self, analysis: StoredAnalysis, ended: _Ended, study: StudyHeader
    ) -> tuple[Outgoing, ...]:
        try:
            return self._documents(analysis, ended, study)
        except EncodingFailed as error:
            return error.outgoing

    def _documents(
        self, analysis: StoredAnalysis, ended: _Ended, study: StudyHeader
    ) -> tuple[Outgoing, ...]:
        uid = analysis.study_instance_uid
        if signed_before(self._store, uid):
            # What a person has signed, only a person replaces: the new result waits for review.
            return ()
        case = ReportedCase(
            study=study,
            result=ended.result,
            status=ReportStatus.PRELIMINARY,
            instances=tuple(self._store.instances(uid)),
            choice=ended.choice,
            volume=ended.volume,
            predecessors=self._store.identities(uid),
            told_before=told_before(self._store, uid, analysis.revision),
            order=self._store.order_of(uid),
        )
        return self._outbox.encode(case)


def signed_before(store: StudyStore, study_instance_uid: str) -> SignedReview | None:
    """The standing signed review of an earlier revision, if a person signed one."""
    ids = [a.id for a in store.analyses(study_instance_uid)]
    for review in store.reviews(ids).values():
        if review.state is ReviewState.SIGNED:
            return review.signed
    return None


def was_signed_before(store: StudyStore, study_instance_uid: str, analysis_id: str) -> bool:
    """Did a person sign another revision, whatever became of that report since?"""
    others = [a.id for a in store.analyses(study_instance_uid) if a.id != analysis_id]
    return any(review.signed for review in store.reviews(others).values())


def told_before(
    store: StudyStore, study_instance_uid: str, revision: int
) -> tuple[ToldBefore, ...]:
    """What was, or may have been, told outward of earlier revisions, oldest first."""
    told = {
        delivery.revision
        for delivery in store.deliveries(study_instance_uid)
        if delivery.state is not DeliveryState.SUPERSEDED or delivery.may_have_arrived
    }
    earlier = [
        (analysis.id, analysis.result)
        for analysis in store.analyses(study_instance_uid)
        if analysis.revision < revision and analysis.revision in told and analysis.result
    ]
    reviews = store.reviews([analysis_id for analysis_id, _ in earlier])
    return tuple(ToldBefore(result, reviews[analysis_id].signed) for analysis_id, result in earlier)


def _identity(
    analysis: StoredAnalysis, choice: SeriesChoice | None, digest: str, model: ModelIdentity | None
) -> ResultIdentity:
    return ResultIdentity(
        study_instance_uid=analysis.study_instance_uid,
        series_instance_uid=choice.series_instance_uid if choice else "",
        input_digest=digest,
        model=model or UNKNOWN_MODEL,
        revision=analysis.revision,
    )


def _names(analysis: StoredAnalysis) -> dict[str, object]:
    return {
        "study_instance_uid": analysis.study_instance_uid,
        "analysis_id": analysis.id,
        "revision": analysis.revision,
    }
