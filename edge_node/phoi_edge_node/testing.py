"""Fakes of the ports, for tests of Phoi and of whatever is built on it.

Each passes the same contract suite as the adapter that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from phoi_models.findings import VolumeAnalysis
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume

from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable, SourceUnavailable
from phoi_edge_node.ports import (
    AnalysisRequest,
    ArchivedImages,
    ArchivedSeries,
    ArchivedStudy,
    Delivered,
    Document,
    DocumentKind,
    ReceivedInstance,
    SendOutcome,
    SeriesChoice,
    SliceRef,
    Unreachable,
)


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, start: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The present, UTC."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the start of the test."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def set_wall_clock(self, now: datetime) -> None:
        """Somebody sets the wall clock; the monotonic one does not move."""
        self._now = now


class SequentialUids:
    """The same identities in every run."""

    def __init__(self) -> None:
        self._count = 0

    def dicom_uid(self) -> str:
        """2.25.1, 2.25.2, ..."""
        self._count += 1
        return f"2.25.{self._count}"

    def message_id(self) -> str:
        """MSG00000001, MSG00000002, ..."""
        self._count += 1
        return f"MSG{self._count:08d}"


class FakeInference:
    """Answers every volume with the same analysis, or with a list of troubles first.

    Args:
        model: the one model it has.
        analysis: what it finds in every volume.
        troubles: errors to raise, one a call, before it begins to work.
    """

    def __init__(
        self,
        model: ModelIdentity,
        analysis: VolumeAnalysis,
        troubles: Sequence[Exception] = (),
    ) -> None:
        self._models = [model]
        self._analysis = analysis
        self._troubles = list(troubles)
        self.requests: list[AnalysisRequest] = []

    def models(self) -> Sequence[ModelIdentity]:
        """Its model, and those it was told to load."""
        return tuple(self._models)

    def load(self, model: ModelIdentity) -> None:
        """Take any model."""
        if model not in self._models:
            self._models.append(model)

    def analyze(
        self,
        request: AnalysisRequest,
        on_progress: Callable[[str, float], None],
        cancelled: Callable[[], bool],
    ) -> VolumeAnalysis:
        """The prepared analysis."""
        self.requests.append(request)
        if request.model not in self._models:
            raise InferenceFailed("no such model")
        if self._troubles:
            raise self._troubles.pop(0)
        if cancelled():
            raise InferenceUnavailable("cancelled")
        on_progress("detect", 0.5)
        on_progress("measure", 1.0)
        return self._analysis


class FakeSeriesReader:
    """Chooses all instances and reads the same volume."""

    def __init__(self, volume: Volume, refusal: Exception | None = None) -> None:
        self._volume = volume
        self._refusal = refusal

    def choose(self, instances: Sequence[ReceivedInstance]) -> SeriesChoice:
        """All instances, as one series."""
        if self._refusal is not None:
            raise self._refusal
        slices = tuple(SliceRef(instance) for instance in instances)
        return SeriesChoice(instances[0].series_instance_uid, slices, "the only one", {})

    def show(self, volume: Volume) -> None:
        """From now on, another volume."""
        self._volume = volume

    def read(self, choice: SeriesChoice) -> Volume:
        """The prepared volume."""
        del choice
        return self._volume


class FakeDestination:
    """Keeps what it is sent; can be told to answer otherwise.

    Attributes:
        received: content by identity, in order of first arrival.
        answers: outcomes to give, one a call, before it takes everything.
        away: it answers nothing at all; may be changed.
        checks: how often it was asked whether it is there.
    """

    def __init__(
        self,
        name: str = "fake",
        accepts: Collection[DocumentKind] = tuple(DocumentKind),
        answers: Sequence[SendOutcome] = (),
    ) -> None:
        self.name = name
        self.accepts = accepts
        self.answers = list(answers)
        self.received: dict[str, bytes] = {}
        self.attempts: list[str] = []
        self.away = False
        self.checks = 0

    def send(self, document: Document) -> SendOutcome:
        """Keep it, unless told otherwise."""
        self.attempts.append(document.identity)
        if self.away:
            return Unreachable("away", nothing_taken=True)
        if self.answers:
            return self.answers.pop(0)
        self.received.setdefault(document.identity, document.content)
        return Delivered("kept")

    def check(self) -> SendOutcome:
        """There, unless told otherwise."""
        self.checks += 1
        return Unreachable("away") if self.away else Delivered()


class FakeImageSource:
    """An archive with one CT study, which can be told to be silent.

    Args:
        study_instance_uid: of its study.
        series: SOP Instance UIDs by Series Instance UID.
        on_day: Study Date of its study.
        send: gets each image that is fetched; None: nothing can be fetched.

    Attributes:
        series_held: what it holds; may be changed.
        documents_held: SOP Instance UIDs of results that it holds; may be changed.
        silent: it gives no answer.
        asked: how often it was asked, in vain too.
    """

    def __init__(
        self,
        study_instance_uid: str,
        series: Mapping[str, Collection[str]],
        on_day: date = date(2026, 3, 15),
        send: Callable[[str], object] | None = None,
        name: str = "fake",
    ) -> None:
        self.name = name
        self.series_held = {uid: list(instances) for uid, instances in series.items()}
        self.documents_held: set[str] = set()
        self.silent = False
        self.asked = 0
        self._study_instance_uid = study_instance_uid
        self._on_day = on_day
        self._send = send

    @property
    def can_fetch(self) -> bool:
        """It was told where to send."""
        return self._send is not None

    def studies(self, first: date, last: date) -> Sequence[ArchivedStudy]:
        """Its study, if it is of these days."""
        self._answer()
        if not first <= self._on_day <= last:
            return ()
        return (ArchivedStudy(self._study_instance_uid, frozenset({"CT"}), ""),)

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """Every series with its count."""
        self._answer()
        if study_instance_uid != self._study_instance_uid:
            return ()
        return tuple(ArchivedSeries(u, "CT", len(i)) for u, i in self.series_held.items())

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> ArchivedImages:
        """What it holds of a series."""
        self._answer()
        held = self.series_held.get(series_instance_uid, ())
        if study_instance_uid != self._study_instance_uid:
            held = ()
        return ArchivedImages(frozenset(held), len(held))

    def documents(self, study_instance_uid: str) -> Collection[str]:
        """The results that it holds."""
        self._answer()
        return self.documents_held if study_instance_uid == self._study_instance_uid else ()

    def fetch(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Collection[str]
    ) -> int:
        """Send those that it holds."""
        held = self.instances(study_instance_uid, series_instance_uid).sop_instance_uids
        wanted = sop_instance_uids or held
        if self._send is None or not set(wanted) <= held:
            raise SourceUnavailable("it cannot send all of these images")
        for uid in wanted:
            self._send(uid)
        return len(wanted)

    def _answer(self) -> None:
        self.asked += 1
        if self.silent:
            raise SourceUnavailable("it gives no answer")
