"""A CT with what is known to be in it: what training plants into and evaluation looks at.

Positions are LPS, mm; lengths mm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from phoi_models.findings import Attenuation, Lobe
from phoi_models.geometry import Triple
from phoi_models.planting import Margin, Place
from phoi_models.planting_host import Ball, LungSpace
from phoi_models.volume import Volume

_KEPT_VOLUMES = 3
_KEPT_LUNGS = 6


@dataclass(frozen=True)
class Mark:
    """A real or planted finding.

    Attributes:
        center_lps_mm: LPS, mm.
        diameter_mm: mm.
        certain: a nodule; otherwise nobody knows, and it is neither trained on nor scored.
        attenuation, margin, place, lobe: of a nodule of which they are known, to report by them.
    """

    center_lps_mm: Triple
    diameter_mm: float
    certain: bool = True
    # Not part of the identity of a data set, which is taken from the repr of its marks.
    attenuation: Attenuation | None = field(default=None, repr=False)
    margin: Margin | None = field(default=None, repr=False)
    place: Place | None = field(default=None, repr=False)
    lobe: Lobe | None = field(default=None, repr=False)

    @property
    def ball(self) -> Ball:
        """Centre, LPS, mm, and diameter, mm."""
        return self.center_lps_mm, self.diameter_mm


@dataclass(frozen=True, eq=False)
class Background:
    """One CT to plant nodules into, or to evaluate on.

    Attributes:
        name: for logs and cards; never a patient's name.
        patient: splits go by patient.
        volume: the CT.
        lungs: where to plant.
        marks: what is known to be in it.
        complete: there are no nodules but the marked ones.
        rejected: what a reviewer said is no nodule, though a model had marked it.
        source: collection and licence, for the model card; "" if not known.
    """

    name: str
    patient: str
    volume: Volume
    lungs: LungSpace
    marks: tuple[Mark, ...]
    complete: bool
    rejected: tuple[Mark, ...] = ()
    source: str = ""

    @property
    def nodules(self) -> tuple[Mark, ...]:
        """The certain marks."""
        return tuple(mark for mark in self.marks if mark.certain)

    def digest(self) -> str:
        """SHA-256 (hex) of voxels and geometry."""
        return self.volume.digest()


class StoredBackground(Background):
    """A background on disk, for data sets that no memory holds.

    The CT is read, and its lungs are segmented, when they are asked for; the last few are kept.
    Sent to another process it takes only the way to its files along. What
    ``dataclasses.replace`` makes of it is in memory.
    """

    _read: Callable[[], Volume]
    _sha256: str

    @classmethod
    def on_disk(
        cls,
        name: str,
        patient: str,
        read: Callable[[], Volume],
        marks: tuple[Mark, ...],
        *,
        sha256: str,
        source: str,
    ) -> StoredBackground:
        """A CT of which all nodules are marked.

        Args:
            name, patient, marks, source: as of any background.
            read: reads the CT; must survive pickling.
            sha256: identity of the files, hex, found without reading all voxels.
        """
        made = cls.__new__(cls)
        vars(made).update(
            {"name": name, "patient": patient, "marks": marks, "complete": True, "rejected": ()},
            source=source,
            _read=read,
            _sha256=sha256,
        )
        return made

    def __getattr__(self, name: str) -> Any:
        """What is not in memory; only asked for what the instance does not hold.

        Raises:
            NotAnalysable: the files cannot be read, or show no lungs.
        """
        if name == "volume":
            return _volume(self)
        if name == "lungs":
            return _lungs(self)
        raise AttributeError(name)

    def digest(self) -> str:
        """SHA-256 (hex) of what tells the files apart, or of voxels that were changed since."""
        return self.volume.digest() if "volume" in vars(self) else self._sha256

    def read(self) -> Volume:
        """The CT, read anew."""
        return self._read()


@lru_cache(maxsize=_KEPT_VOLUMES)
def _volume(background: StoredBackground) -> Volume:
    return background.read()


@lru_cache(maxsize=_KEPT_LUNGS)
def _lungs(background: StoredBackground) -> LungSpace:
    return LungSpace.of(background.volume)
