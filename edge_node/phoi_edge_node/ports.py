"""What the edge's core asks of the outside world. Adapters are named by technology."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Protocol

from phoi_models.findings import Region, VolumeAnalysis
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume

from phoi_edge_node.orders import ImagingOrder
from phoi_edge_node.result import Priority, SignedReview, StudyHeader, TriageResult


class Clock(Protocol):
    """Time, as an argument."""

    def now(self) -> datetime:
        """The present, UTC, aware."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...


class UidSource(Protocol):
    """New identities, as an argument."""

    def dicom_uid(self) -> str:
        """A globally unique DICOM UID."""
        ...

    def message_id(self) -> str:
        """A unique HL7 v2 message control id, at most 20 characters."""
        ...


# --- receiving -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReceivedInstance:
    """One instance that lies safely on disk.

    Attributes:
        path: of the DICOM file, relative to the instance store's root.
        sha256: hex, of the encoded data set as received, without the file meta information.
        modality: Modality (0008,0060), or "".
        received_at: UTC.
        study: what its header says of the study.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    path: str
    sha256: str
    size: int
    modality: str
    calling_ae_title: str
    received_at: datetime
    study: StudyHeader

    @property
    def study_instance_uid(self) -> str:
        """UID of the study it belongs to."""
        return self.study.study_instance_uid


class Intake(StrEnum):
    """What became of an instance that arrived."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the same bytes again: success, nothing changes
    CONFLICT = "conflict"  # the same SOP Instance UID, other content: quarantined
    OTHER_PATIENT = "other_patient"  # the study is another patient's: quarantined


class Receiver(Protocol):
    """What an intake (C-STORE SCP, a watched folder) reports to."""

    def instance_received(self, instance: ReceivedInstance, association: str) -> Intake:
        """Index an instance that is durable on disk. Success may be answered once this returns."""
        ...

    def association_released(self, association: str) -> None:
        """An association ended, by release, abort or loss."""
        ...


# --- asking an archive what it holds ---------------------------------------------------------


@dataclass(frozen=True)
class ArchivedSeries:
    """What an archive says of one series. ``instances`` is None where it does not say.

    Attributes:
        description: Series Description (0008,103E), or "".
        body_part: Body Part Examined (0018,0015), or "".
    """

    series_instance_uid: str
    modality: str
    instances: int | None
    description: str = ""
    body_part: str = ""


@dataclass(frozen=True)
class ArchivedStudy:
    """What an archive says of one study. No name of a patient."""

    study_instance_uid: str
    modalities: frozenset[str]
    description: str


@dataclass(frozen=True)
class ArchivedImages:
    """What an archive lists of one series, which may be less than it counts.

    Attributes:
        sop_instance_uids: less those that are known to be of a kind that we never take.
        in_all: how many it lists, of any kind.
    """

    sop_instance_uids: frozenset[str]
    in_all: int


class ImageSource(Protocol):
    """An archive that can be asked what it holds, and perhaps for the images themselves."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def can_fetch(self) -> bool:
        """May ``fetch`` be called?"""
        ...

    def studies(self, first: date, last: date) -> Sequence[ArchivedStudy]:
        """Studies with CT series whose Study Date lies between two days, both included.

        Raises:
            SourceUnavailable: no usable answer; the text says why, without patient data.
        """
        ...

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """The series of a study; empty where the archive does not know it.

        Raises:
            SourceUnavailable: no usable answer.
        """
        ...

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> ArchivedImages:
        """The images of a series.

        Raises:
            SourceUnavailable: no usable answer.
        """
        ...

    def documents(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of all that is no CT image in a study: reports, segmentations, ...

        Raises:
            SourceUnavailable: no usable answer.
        """
        ...

    def fetch(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Collection[str]
    ) -> int:
        """Make these images come in the way all others come: durable, then indexed.

        Blocks until the archive has sent them. An empty collection asks for the whole series.

        Returns:
            How many the archive says it sent.

        Raises:
            SourceUnavailable: they could not be fetched, or not all.
        """
        ...


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceRef:
    """One slice of a series: an instance, or one frame of a multi-frame instance.

    Attributes:
        frame: counted from 1, as in Referenced Frame Number (0008,1160); None where the instance
            is one image.
    """

    instance: ReceivedInstance
    frame: int | None = None


@dataclass(frozen=True)
class SeriesChoice:
    """The series that is analysed.

    Attributes:
        slices: in the order of the volume's slice axis.
        reason: one English clause: "thinnest axial series: 133 slices of 2.5 mm".
        passed_over: why each other series was not taken, by Series Instance UID.
    """

    series_instance_uid: str
    slices: tuple[SliceRef, ...]
    reason: str
    passed_over: Mapping[str, str]

    @property
    def instances(self) -> tuple[ReceivedInstance, ...]:
        """Those that hold the slices, each once, by their first slice."""
        return tuple({s.instance.sop_instance_uid: s.instance for s in self.slices}.values())


class SeriesReader(Protocol):
    """Chooses and reads the images of a study."""

    def choose(self, instances: Sequence[ReceivedInstance]) -> SeriesChoice:
        """The series to analyse.

        Raises:
            NotAnalysable: none can be; the detail says why for the best of them.
        """
        ...

    def read(self, choice: SeriesChoice) -> Volume:
        """The voxels, HU, ordered by position; slice z of the volume is ``choice.slices[z]``.

        Raises:
            NotAnalysable: missing or duplicate slices, unreadable pixels, ...
        """
        ...


# --- inference -------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnalysisRequest:
    """One volume for one model.

    Attributes:
        request_id: the same for every try of the same analysis; [A-Za-z0-9._-]{1,128}.
        deadline_s: seconds after which the answer is of no use.
    """

    request_id: str
    model: ModelIdentity
    volume: Volume
    priority: Priority = Priority.ROUTINE
    region: Region = Region.LUNGS
    deadline_s: float = 600.0


class InferenceService(Protocol):
    """Runs models."""

    def models(self) -> Sequence[ModelIdentity]:
        """The models that can be asked for, each at its ``default`` operating point.

        Raises:
            InferenceUnavailable: no worker answers.
        """
        ...

    def load(self, model: ModelIdentity) -> None:
        """Make a model of the bundle store ready at every worker.

        Raises:
            InferenceUnavailable: a worker does not answer.
            InferenceFailed: a worker refuses the bundle.
        """
        ...

    def analyze(
        self,
        request: AnalysisRequest,
        on_progress: Callable[[str, float], None],
        cancelled: Callable[[], bool],
    ) -> VolumeAnalysis:
        """Run one model on one volume; blocks. ``on_progress`` gets (step, fraction of all).

        Raises:
            NotAnalysable: the volume cannot be analysed.
            InferenceUnavailable: passing; try again later.
            InferenceFailed: trying again will not help.
        """
        ...


# --- delivering ------------------------------------------------------------------------------


class DocumentKind(StrEnum):
    """What is sent out. SEG goes before the SR that refers to it."""

    SEGMENTATION = "seg"
    STRUCTURED_REPORT = "sr"
    SECONDARY_CAPTURE = "sc"
    KEY_OBJECTS = "kos"
    REJECTION_NOTE = "reject"  # names earlier objects that must not be shown any more (IHE IOCM)
    HL7_ORU = "oru"
    FHIR_BUNDLE = "fhir"
    USAGE = "usage"


class ReportStatus(StrEnum):
    """How far a report is."""

    PRELIMINARY = "preliminary"
    FINAL = "final"
    CORRECTED = "corrected"  # a final report that replaces an earlier final one
    WITHDRAWN = "withdrawn"  # what was told of this study must not be used, and nothing replaces it


@dataclass(frozen=True)
class Document:
    """Encoded bytes, frozen with their identity: every retry sends exactly these.

    Attributes:
        identity: SOP Instance UID, MSH-10, or FHIR identifier value.
        content: a DICOM Part 10 file, an HL7 message, or JSON; UTF-8 where it is text.
        only_to: the one destination that it is about; "": any that accepts its kind.
    """

    kind: DocumentKind
    identity: str
    content: bytes
    only_to: str = ""


@dataclass(frozen=True)
class ToldBefore:
    """An earlier report of the same study: an earlier revision, or an earlier signature."""

    result: TriageResult
    review: SignedReview | None


@dataclass(frozen=True)
class ReportedCase:
    """All that an encoder may say of a study.

    Attributes:
        choice, volume: None where no series could be chosen or read.
        instances: all instances of the study that were received.
        review: None while preliminary.
        predecessors: identities of the documents that this one replaces, by kind, latest last.
        told_before: what was told outward of this study before, oldest first.
        held: by destination, the identities of the documents that it has, or may have, and that no
            rejection note has hidden there, by kind; None unless WITHDRAWN.
        order: behind the study; None where none is known.
        withdrawn_at: when the result was recalled, UTC; None unless WITHDRAWN. Such a case has no
            ``review``, ``choice`` and ``volume``: all that was told is in ``told_before``.
    """

    study: StudyHeader
    result: TriageResult
    status: ReportStatus
    instances: tuple[ReceivedInstance, ...]
    choice: SeriesChoice | None
    volume: Volume | None
    review: SignedReview | None = None
    predecessors: Mapping[DocumentKind, tuple[str, ...]] | None = None
    told_before: tuple[ToldBefore, ...] = ()
    order: ImagingOrder | None = None
    withdrawn_at: datetime | None = None
    held: Mapping[str, Mapping[DocumentKind, tuple[str, ...]]] | None = None


class DocumentEncoder(Protocol):
    """Turns a case into the documents of one technology (DICOM, HL7 v2, FHIR)."""

    def encode(self, case: ReportedCase) -> Sequence[Document]:
        """The documents, in the order in which they must arrive."""
        ...


@dataclass(frozen=True)
class Delivered:
    """The destination confirmed it. ``receipt`` is short and without patient data."""

    receipt: str = ""


@dataclass(frozen=True)
class Refused:
    """The destination understood and said no: for good. An operator must see it."""

    reason: str


@dataclass(frozen=True)
class Erred:
    """The destination answered that it failed on this document, which often passes.

    Tried again with the same bytes, ``delivery.maximum_errors`` times in all; then for good.

    Attributes:
        nothing_taken: as of ``Unreachable``.
    """

    reason: str
    nothing_taken: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Unreachable:
    """No answer, or none about the document: try the same bytes again later, for ever.

    Attributes:
        nothing_taken: surely the destination has nothing of the document: no connection came
            about, or it said so. Where it is silent, it may have all of it.
    """

    reason: str
    nothing_taken: bool = field(default=False, compare=False)


SendOutcome = Delivered | Refused | Erred | Unreachable


class Destination(Protocol):
    """One place that documents go to: an archive, an EMR, the tracker."""

    @property
    def name(self) -> str:
        """The lane's name in settings, pages and metrics."""
        ...

    @property
    def accepts(self) -> Collection[DocumentKind]:
        """The kinds of document that go here."""
        ...

    def send(self, document: Document) -> SendOutcome:
        """Send the bytes once and wait for the answer; never raises for what a peer does."""
        ...

    def check(self) -> SendOutcome:
        """Is it there? C-ECHO, a TCP connection, a capability statement."""
        ...
