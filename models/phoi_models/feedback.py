"""Feedback data sets: what reviewers said, as crops and labels that name nobody.

A folder with ``dataset.json`` and ``cases/<id>.npz``. An edge writes it, training reads it. A case
is one crop of a CT; its file holds ``hu``: int16 Hounsfield units, axes (z, y, x), on the grid of
the original series. Of the series' header there are left only spacing and directions; the crop's
own first voxel is the origin.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from phoi_models.errors import PhoiError
from phoi_models.files import write_atomically
from phoi_models.geometry import Geometry, Index, Triple
from phoi_models.signing import Sha256
from phoi_models.volume import Volume

INDEX = "dataset.json"
Pseudonym = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Verdict = Literal["accepted", "modified", "rejected", "missed"]


class BadDataset(PhoiError):
    """A data set is incomplete, damaged or of an unknown format."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Label(_Stored):
    """One judged mark in a crop.

    Attributes:
        center_zyx: index (z, y, x) of its centre in the crop, fractional.
        diameter_mm: mean diameter, mm; None where nobody measured a missed nodule.
        verdict: of the reviewer.
        probability: what the model said; None for a nodule that it missed.
    """

    center_zyx: Triple
    diameter_mm: float | None = Field(gt=0)
    verdict: Verdict
    probability: float | None = Field(ge=0, le=1)

    @property
    def is_nodule(self) -> bool:
        """The reviewer says that it is a nodule."""
        return self.verdict != "rejected"


class LabelledBy(_Stored):
    """The model that was judged."""

    name: str
    version: str
    bundle_hash: Sha256
    device_uid: str


class Case(_Stored):
    """One crop and all judged marks whose centres lie in it.

    Attributes:
        id: names nobody; the same crop keeps it in every export of its site.
        patient: the same for all crops of one patient, so that splits go by patient.
        sha256: of the crop's file.
        shape: of the crop along (z, y, x), voxels.
        spacing_mm: along (z, y, x), mm.
        axes_lps: for each array axis the LPS unit vector along which its index grows.
        reviewer_role: all that is said of who judged.
    """

    id: Pseudonym
    patient: Pseudonym
    sha256: Sha256
    shape: Index
    spacing_mm: Triple
    axes_lps: tuple[Triple, Triple, Triple]
    labels: tuple[Label, ...] = Field(min_length=1)
    model: LabelledBy
    reviewer_role: str = Field(pattern=r"^[a-z]{1,20}$")

    @property
    def file(self) -> str:
        """Path of the crop inside the data set."""
        return f"cases/{self.id}.npz"

    @property
    def geometry(self) -> Geometry:
        """Of the crop, with its first voxel as the origin."""
        return Geometry(self.shape, self.spacing_mm, (0.0, 0.0, 0.0), self.axes_lps)


class FeedbackIndex(_Stored):
    """The content of ``dataset.json``.

    Attributes:
        site: names the site to nobody but itself.
        digest: SHA-256 (hex) of all the rest, and through the crops' hashes of every voxel.
    """

    format: Literal["phoi-feedback/1"] = "phoi-feedback/1"
    site: Pseudonym
    cases: tuple[Case, ...]
    digest: Sha256

    @classmethod
    def of(cls, site: str, cases: Iterable[Case]) -> Self:
        """The index of ``cases``, in the order of their ids."""
        ordered = tuple(sorted(cases, key=lambda case: case.id))
        return cls(site=site, cases=ordered, digest=_digest(site, ordered))


@dataclass(frozen=True)
class FeedbackDataset:
    """A data set whose index has been checked; crops are checked as they are read."""

    folder: Path
    index: FeedbackIndex

    @classmethod
    def open(cls, folder: Path) -> FeedbackDataset:
        """Read the index of the data set in ``folder``.

        Raises:
            BadDataset: there is none, it is malformed, or its digest is wrong.
        """
        try:
            index = FeedbackIndex.model_validate_json((folder / INDEX).read_bytes())
        except FileNotFoundError:
            raise BadDataset(f"{folder} holds no {INDEX}: it is no feedback data set") from None
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise BadDataset(f"{INDEX} is malformed at {where or 'its start'}") from None
        if _digest(index.site, index.cases) != index.digest:
            raise BadDataset(f"{INDEX} was changed after it was written")
        return cls(folder, index)

    def crop(self, case: Case) -> Volume:
        """The voxels of ``case``, HU; LPS positions count from its first voxel.

        Raises:
            BadDataset: the file is missing, or not the one that was written.
        """
        try:
            content = (self.folder / case.file).read_bytes()
        except FileNotFoundError:
            raise BadDataset(f"{case.file} is missing") from None
        if hashlib.sha256(content).hexdigest() != case.sha256:
            raise BadDataset(f"{case.file} was changed after it was written")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return Volume(np.ascontiguousarray(arrays["hu"]), case.geometry)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            raise BadDataset(f"{case.file} holds no crop of the size that is stated") from None


def crop_bytes(hu: NDArray[np.int16]) -> bytes:
    """The content of a crop's file: the same voxels always give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, hu=np.ascontiguousarray(hu))
    return buffer.getvalue()


def write_index(folder: Path, index: FeedbackIndex) -> None:
    """Write ``dataset.json``: last, for it is what makes a folder a data set."""
    write_atomically(folder / INDEX, (index.model_dump_json(indent=1) + "\n").encode())


def _digest(site: str, cases: tuple[Case, ...]) -> str:
    content = {"site": site, "cases": [case.model_dump(mode="json") for case in cases]}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
