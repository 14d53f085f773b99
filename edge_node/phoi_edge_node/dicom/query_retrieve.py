"""Query/Retrieve SCU (PS3.4 C), Study Root: an archive as an ``ImageSource``.

Asked by C-FIND; images come by C-MOVE to our own storage SCP, or by C-GET on the association that
asked. An archive's answer is believed as far as it says what was asked for: answers about another
study are passed over, and images that were not asked for are refused.
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import cast

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from phoi_edge_node.dicom.headers import BadHeader, read_data_set_header, text
from phoi_edge_node.dicom.storage_scp import SOP_CLASSES, TRANSFER_SYNTAXES
from phoi_edge_node.dicom.storage_scu import NothingAccepted, Peer, PeerUnreachable, association
from phoi_edge_node.dicom.taking import (
    DATA_SET_DOES_NOT_MATCH,
    SUCCESS,
    IncomingInstance,
    InstanceTaker,
    status_of,
)
from phoi_edge_node.dicom.uids import is_uid
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.ports import ArchivedImages, ArchivedSeries, ArchivedStudy
from phoi_edge_node.settings import ArchiveSettings

FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"

_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_PENDING = frozenset({0xFF00, 0xFF01})
_WARNING = 0xB000  # some sub-operations failed
_MOVE_DESTINATION_UNKNOWN = 0xA801
_MOST_ANSWERS = 50_000
# A list of UIDs is one value of VR UI, which explicit VR limits to 64 KiB; and a retrieve that
# breaks off has brought the parts before it.
_LONGEST_COUNT = 9  # digits
_IMAGES_A_REQUEST = 100


class DicomSource:
    """One archive of the settings, asked over DIMSE. Safe to use from several threads.

    Args:
        calling_ae_title: our own, also where C-MOVE sends to.
        taker: takes what comes by C-GET; None: it is only asked what it holds.
        tls: used where the settings say so.
    """

    def __init__(
        self,
        settings: ArchiveSettings,
        calling_ae_title: str,
        taker: InstanceTaker | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._name = settings.name
        self._peer = Peer.of(settings, tls)
        self._calling_ae_title = calling_ae_title
        self._retrieve = settings.retrieve
        self._taker = taker
        self._gets = itertools.count(1)

    @property
    def name(self) -> str:
        """As in the settings."""
        return self._name

    @property
    def can_fetch(self) -> bool:
        """The settings say how."""
        return self._taker is not None and self._retrieve in {"c-move", "c-get"}

    def studies(self, first: date, last: date) -> Sequence[ArchivedStudy]:
        """Studies with CT series whose Study Date lies between two days, both included.

        Not every archive matches by Modalities in Study (0008,0061), which is optional
        (PS3.4 C.6.2.1.2): what it returns in spite of that is passed over here.
        """
        query = _query("STUDY", StudyDate=f"{first:%Y%m%d}-{last:%Y%m%d}", ModalitiesInStudy="CT")
        query.StudyInstanceUID = query.StudyDescription = ""
        found = []
        for answer in self._find(query):
            modalities = _modalities(answer)
            if not modalities or "CT" in modalities:
                description = text(answer, "StudyDescription")
                found.append(
                    ArchivedStudy(text(answer, "StudyInstanceUID"), modalities, description)
                )
        return [study for study in found if is_uid(study.study_instance_uid)]

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """The series of a study; empty where the archive does not know it."""
        query = _query("SERIES", StudyInstanceUID=study_instance_uid)
        query.SeriesInstanceUID = query.Modality = ""
        query.SeriesDescription = query.BodyPartExamined = ""
        query.NumberOfSeriesRelatedInstances = None
        return [
            ArchivedSeries(
                uid,
                text(answer, "Modality"),
                _count(answer),
                text(answer, "SeriesDescription"),
                text(answer, "BodyPartExamined"),
            )
            for answer in self._find(query)
            if is_uid(uid := text(answer, "SeriesInstanceUID"))
        ]

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> ArchivedImages:
        """The images of a series; SOP Class UID is optional in an answer (PS3.4 C.6.1.1.5)."""
        listed = dict(self._held(study_instance_uid, series_instance_uid))
        images = {uid for uid, kind in listed.items() if not kind or kind in SOP_CLASSES}
        return ArchivedImages(frozenset(images), len(listed))

    def documents(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of all that is no CT image in a study: reports, segmentations, ..."""
        others = [s for s in self.series(study_instance_uid) if s.modality != "CT"]
        held = (self._held(study_instance_uid, s.series_instance_uid) for s in others)
        return {uid for found in held for uid, _ in found}

    def fetch(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Collection[str]
    ) -> int:
        """Have images sent, in parts; once this returns they are durable and indexed."""
        wanted = sorted(
            sop_instance_uids
            or self.instances(study_instance_uid, series_instance_uid).sop_instance_uids
        )
        sent = 0
        for start in range(0, len(wanted), _IMAGES_A_REQUEST):
            query = _query(
                "IMAGE", StudyInstanceUID=study_instance_uid, SeriesInstanceUID=series_instance_uid
            )
            query.SOPInstanceUID = wanted[start : start + _IMAGES_A_REQUEST]
            sent += self._move(query) if self._retrieve == "c-move" else self._get(query)
        if sent < len(wanted):
            raise SourceUnavailable(f"{sent} of {len(wanted)} images came from {self._name}")
        return sent

    # --- the services ------------------------------------------------------------------------

    def _held(self, study_instance_uid: str, series_instance_uid: str) -> Sequence[tuple[str, str]]:
        """SOP Instance UID and SOP Class UID, or "", of all that a series holds."""
        query = _query(
            "IMAGE", StudyInstanceUID=study_instance_uid, SeriesInstanceUID=series_instance_uid
        )
        query.SOPInstanceUID = query.SOPClassUID = ""
        found = ((text(a, "SOPInstanceUID"), text(a, "SOPClassUID")) for a in self._find(query))
        return [(uid, kind) for uid, kind in found if is_uid(uid)]

    def _find(self, query: Dataset) -> Sequence[Dataset]:
        """All answers to a C-FIND (PS3.4 C.4.1)."""
        answers: list[Dataset] = []
        with self._associate({(FIND, syntax) for syntax in _SYNTAXES}) as link:
            for status, identifier in link.send_c_find(query, FIND):
                if not self._pending(status):
                    break
                if identifier is None:
                    raise SourceUnavailable(f"{self._name} gives an answer that cannot be parsed")
                if _asked_for(query, identifier):
                    answers.append(identifier)
                if len(answers) > _MOST_ANSWERS:
                    raise SourceUnavailable(f"{self._name} gives more than {_MOST_ANSWERS} answers")
        return answers

    def _move(self, query: Dataset) -> int:
        """C-MOVE to our own AE (PS3.4 C.4.2); how many the archive says it sent."""
        with self._associate({(MOVE, syntax) for syntax in _SYNTAXES}) as link:
            return self._retrieved(link.send_c_move(query, self._calling_ae_title, MOVE))

    def _get(self, query: Dataset) -> int:
        """C-GET (PS3.4 C.4.3); how many of them were taken."""
        if self._taker is None:
            raise SourceUnavailable(f"{self._name} is only asked what it holds")
        taker = self._taker
        study, expected = text(query, "StudyInstanceUID"), set(query.SOPInstanceUID)
        name = f"c-get {self._name} {next(self._gets)}"
        taken: set[str] = set()

        def store(event: evt.Event) -> int:
            incoming = _incoming(event)
            if incoming.sop_instance_uid not in expected or _study_of(incoming) != study:
                return DATA_SET_DOES_NOT_MATCH
            status = status_of(lambda: taker.take(incoming, name), incoming.sop_instance_uid)
            if status == SUCCESS:
                taken.add(incoming.sop_instance_uid)
            return status

        contexts = {(GET, syntax) for syntax in _SYNTAXES}
        contexts |= {(kind, syntax) for kind in SOP_CLASSES for syntax in TRANSFER_SYNTAXES}
        try:
            with self._associate(contexts, taken=SOP_CLASSES, on_store=store) as link:
                self._retrieved(link.send_c_get(query, GET))
        finally:
            taker.released(name)
        return len(taken)

    def _retrieved(self, responses: Iterator[tuple[Dataset, Dataset | None]]) -> int:
        """Wait for the end of a retrieve; how many sub-operations went well."""
        for status, _ in responses:
            if not self._pending(status):
                warned = status.get("NumberOfWarningSuboperations") or 0
                return int(status.get("NumberOfCompletedSuboperations") or 0) + int(warned)
        raise SourceUnavailable(f"{self._name} gave no answer")

    def _pending(self, status: Dataset) -> bool:
        """More is to come; False: it has ended well, or a retrieve has ended with warnings.

        Raises:
            SourceUnavailable: no answer, or a failure.
        """
        code = status.get("Status")
        if code in _PENDING:
            return True
        if code in {SUCCESS, _WARNING}:
            return False
        raise SourceUnavailable(f"{self._name} {_failure(code)}")

    @contextmanager
    def _associate(
        self,
        contexts: Collection[tuple[str, str]],
        *,
        taken: Collection[str] = (),
        on_store: Callable[[evt.Event], int] | None = None,
    ) -> Iterator[Association]:
        """An association that is aborted unless all went well: nothing is left running."""
        try:
            with association(
                self._peer, self._calling_ae_title, contexts, taken=taken, on_store=on_store
            ) as link:
                try:
                    yield link
                except BaseException:
                    link.abort()
                    raise
        except (PeerUnreachable, NothingAccepted) as error:
            raise SourceUnavailable(str(error)) from None
        except (RuntimeError, ValueError) as error:  # pynetdicom: lost, or no context for it
            raise SourceUnavailable(
                f"{self._name} cannot be asked ({type(error).__name__}): the association was lost, "
                "or it does not offer this service to us"
            ) from None


def _query(level: str, **keys: str) -> Dataset:
    """An identifier (PS3.4 C.4): the unique keys above the level, and what is matched."""
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _asked_for(query: Dataset, identifier: Dataset) -> bool:
    """An answer is about the study and series that it was asked about, as far as it says."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        asked, said = text(query, keyword), text(identifier, keyword)
        if asked and said and asked != said:
            return False
    return True


def _modalities(answer: Dataset) -> frozenset[str]:
    """Modalities in Study (0008,0061), as it stands in the answer or as it was parsed."""
    element = answer.get("ModalitiesInStudy")
    values = [element] if isinstance(element, str) else list(element or ())
    return frozenset(str(value).strip() for value in values) - {""}


def _count(answer: Dataset) -> int | None:
    """Number of Series Related Instances (0020,1209), where the archive gives a usable one."""
    value = text(answer, "NumberOfSeriesRelatedInstances")
    usable = value.isascii() and value.isdigit() and len(value) <= _LONGEST_COUNT
    return int(value) if usable else None


def _failure(code: int | None) -> str:
    if code is None:
        return "gave no answer"
    if code == _MOVE_DESTINATION_UNKNOWN:
        return (
            "does not know where to send images: add Phoi's AE title, address and port to its "
            "configuration"
        )
    return f"answered with status 0x{code:04X}"


def _study_of(incoming: IncomingInstance) -> str:
    """Its Study Instance UID, or "" where its header cannot be used."""
    try:
        header = read_data_set_header(incoming.data_set, incoming.transfer_syntax_uid)
    except BadHeader:
        return ""
    return header.study.study_instance_uid


def _incoming(event: evt.Event) -> IncomingInstance:
    """One C-STORE sub-operation, taken for what its presentation context says it is."""
    request = cast("C_STORE", event.request)
    return IncomingInstance(
        data_set=event.encoded_dataset(include_meta=False),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        sop_class_uid=str(event.context.abstract_syntax),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        calling_ae_title=str(event.assoc.acceptor.ae_title).strip(),
        called_ae_title=str(event.assoc.requestor.ae_title).strip(),
    )
