"""From signed reviews to a feedback data set that names nobody.

A crop holds voxels, spacing and directions, and nothing else of the images' headers: no UID, no
date, no device, no position. Names become keyed hashes; the key never leaves the site, so nobody
elsewhere can turn one back, or try names until one fits. Reviewers' free text stays here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable
from phoi_models.feedback import (
    Case,
    FeedbackIndex,
    Label,
    LabelledBy,
    crop_bytes,
    write_index,
)
from phoi_models.files import write_atomically
from phoi_models.geometry import Geometry, Index, Triple, as_triple
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.ports import SeriesReader
from phoi_edge_node.result import Disposition, Patient, SignedReview, TriageResult, Verdict
from phoi_edge_node.store import StudyStore
from phoi_edge_node.study import ReviewState

# A crop's side: room for a nodule, its surroundings and the shifts of augmentation.
CROP_MM = 64.0
_KEY_BYTES = 32
_ALL = 10_000_000


@dataclass(frozen=True)
class ReviewedCase:
    """One signed review and what it is about.

    Attributes:
        volume: the analysed one.
        reviewer_role: of who signed: "reviewer", "admin".
    """

    patient: Patient
    result: TriageResult
    review: SignedReview
    volume: Volume
    reviewer_role: str


@dataclass(frozen=True)
class Pseudonyms:
    """Turns names into pseudonyms: HMAC-SHA-256 under the site's own key, the first 128 bits.

    Attributes:
        key: 32 random bytes that never leave the site.
    """

    key: bytes

    @classmethod
    def load(cls, path: Path, random: Callable[[int], bytes] = os.urandom) -> Pseudonyms:
        """The key at ``path``, readable by its owner only; made at the first use.

        Raises:
            EdgeError: the file is damaged, or others can read it.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, random(_KEY_BYTES), mode=0o600)
        if path.stat().st_mode & 0o077:
            raise EdgeError(f"others can read the pseudonym key: run `chmod 600 {path}`")
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise EdgeError(f"{path} is damaged: restore it, or patients get new pseudonyms")
        return cls(key)

    def of(self, *parts: str) -> str:
        """The pseudonym of a thing; the parts' borders count."""
        message = json.dumps(parts).encode()
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:32]

    def patient(self, patient: Patient, study_instance_uid: str) -> str:
        """Of a patient; of the study where the patient has no id."""
        if not patient.patient_id:
            return self.of("study", study_instance_uid)
        return self.of("patient", patient.issuer, patient.patient_id)


def reviewed_cases(store: StudyStore, reader: SeriesReader) -> Iterator[ReviewedCase]:
    """Every signed review whose images are still what was analysed, one volume at a time."""
    for study in store.studies(_ALL):
        for analysis in store.analyses(study.header.study_instance_uid):
            review = store.review(analysis.id)
            if review.state is not ReviewState.SIGNED or not review.signed or not analysis.result:
                continue
            account = store.account(review.signed.reviewer)
            volume = _analysed_volume(store, reader, analysis.result)
            if account is not None and volume is not None:
                patient, role = study.header.patient, account.account.role
                yield ReviewedCase(patient, analysis.result, review.signed, volume, role)


def _analysed_volume(
    store: StudyStore, reader: SeriesReader, result: TriageResult
) -> Volume | None:
    try:
        choice = reader.choose(store.instances(result.identity.study_instance_uid))
        volume = reader.read(choice)
    except NotAnalysable:
        return None
    return volume if volume.digest() == result.identity.input_digest else None


@dataclass(frozen=True)
class _Mark:
    """A judged mark in the patient."""

    tracking_uid: str
    center_lps_mm: Triple
    diameter_mm: float | None
    verdict: Verdict
    probability: float | None


def write_feedback(
    cases: Iterable[ReviewedCase], folder: Path, site: str, pseudonyms: Pseudonyms
) -> FeedbackIndex:
    """Write a data set with one crop around every judged mark.

    Args:
        cases: read one after the other, so that one volume is in memory at a time.
        folder: must not exist; appears complete or not at all.
        site: the site's name, which becomes a pseudonym.
        pseudonyms: the site's own.

    Raises:
        EdgeError: the folder exists already.
    """
    if folder.exists():
        raise EdgeError(f"{folder} exists already: name a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "cases").mkdir(parents=True)
    written = [entry for case in cases for entry in _write_case(case, partial, pseudonyms)]
    index = FeedbackIndex.of(pseudonyms.of("site", site), written)
    write_index(partial, index)
    partial.rename(folder)
    return index


def _write_case(case: ReviewedCase, folder: Path, pseudonyms: Pseudonyms) -> Iterator[Case]:
    marks = tuple(_marks(case))
    identity = case.result.identity
    for mark in marks:
        start, shape = _box(case.volume.geometry, mark)
        labels = tuple(_labels(case.volume.geometry, marks, start, shape))
        if not labels:  # the mark lies outside the volume: there is nothing to learn from
            continue
        content = crop_bytes(_cut(case.volume, start, shape))
        entry = Case(
            id=pseudonyms.of("crop", identity.study_instance_uid, mark.tracking_uid),
            patient=pseudonyms.patient(case.patient, identity.study_instance_uid),
            sha256=hashlib.sha256(content).hexdigest(),
            shape=shape,
            spacing_mm=case.volume.geometry.spacing_mm,
            axes_lps=case.volume.geometry.axes_lps,
            labels=labels,
            model=_labelled_by(identity.model),
            reviewer_role=case.reviewer_role,
        )
        write_atomically(folder / entry.file, content)
        yield entry


def _marks(case: ReviewedCase) -> Iterator[_Mark]:
    """Every mark with a verdict; a reviewer's correction counts more than the measurement."""
    standing = {d.tracking_uid: d for d in case.review.dispositions}
    for nodule in case.result.nodules:
        if disposition := standing.get(nodule.tracking_uid):
            center, diameter = _corrected(
                disposition, nodule.finding.center_lps_mm, nodule.finding.mean_diameter_mm
            )
            yield _Mark(
                nodule.tracking_uid,
                center,
                diameter,
                disposition.verdict,
                nodule.finding.probability,
            )
    for missed in case.review.missed():
        if place := missed.correction.center_lps_mm:
            diameter_mm = missed.correction.mean_diameter_mm
            yield _Mark(missed.tracking_uid, place, diameter_mm, Verdict.MISSED, None)


def _corrected(
    disposition: Disposition, center: Triple, diameter_mm: float
) -> tuple[Triple, float]:
    correction = disposition.correction
    return correction.center_lps_mm or center, correction.mean_diameter_mm or diameter_mm


def _box(geometry: Geometry, mark: _Mark) -> tuple[Index, Index]:
    """First index and shape, (z, y, x), of the crop around a mark, cut off at the volume's ends."""
    side_mm = max(CROP_MM, 2 * (mark.diameter_mm or 0.0))
    center = geometry.lps_to_index(mark.center_lps_mm)
    half = side_mm / 2 / np.asarray(geometry.spacing_mm)
    last = np.asarray(geometry.shape) - 1
    first = np.clip(np.floor(center - half), 0, last).astype(int)
    end = np.clip(np.ceil(center + half), 0, last).astype(int)
    return _as_index(first), _as_index(end - first + 1)


def _cut(volume: Volume, start: Index, shape: Index) -> NDArray[np.int16]:
    z, y, x = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
    return volume.hu[z, y, x]


def _labels(
    geometry: Geometry, marks: Iterable[_Mark], start: Index, shape: Index
) -> Iterator[Label]:
    """All marks inside the crop: a nodule without its label would be taught as none."""
    for mark in marks:
        center = geometry.lps_to_index(mark.center_lps_mm) - np.asarray(start)
        if np.all(center > -0.5) and np.all(center < np.asarray(shape) - 0.5):
            yield Label(
                center_zyx=as_triple(np.round(center, 2)),
                diameter_mm=mark.diameter_mm,
                verdict=mark.verdict.value,
                probability=mark.probability,
            )


def _labelled_by(model: ModelIdentity) -> LabelledBy:
    return LabelledBy(
        name=model.name,
        version=model.version,
        bundle_hash=model.bundle_hash,
        device_uid=model.device_uid,
    )


def _as_index(values: NDArray[np.int_]) -> Index:
    z, y, x = (int(v) for v in values)
    return (z, y, x)
