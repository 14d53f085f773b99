"""Which series of a study to analyse. Pure: headers in, a ranking with its reasons out.

Wanted is the one that shows the most detail of all of the chest: a transverse acquisition, no
localizer and no projection; then thin slices; then, between equals, the softer kernel, whose noise
hides fewer nodules and makes fewer false ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.geometry import Geometry

from phoi_edge_node.ports import SliceRef

MINIMUM_COVERAGE_MM = 100.0

_ENOUGH_OF_THE_LONGEST = 0.8

# Sharpness of reconstruction kernels that are named by words or letters (GE, Philips), on the
# scale of those that are numbered (Siemens B30f, Br40; Canon FC08): above about 50 is for bone
# and lung.
_NAMED_KERNELS: Mapping[str, int] = {
    "SOFT": 20,
    "STANDARD": 30,
    "STND": 30,
    "CHST": 40,
    "DETAIL": 45,
    "LUNG": 60,
    "BONE": 65,
    "BONEPLUS": 70,
    "EDGE": 75,
    "A": 20,
    "B": 30,
    "C": 40,
    "D": 55,
    "L": 60,
    "YA": 60,
    "YB": 65,
    "YC": 70,
}
_UNKNOWN_SHARPNESS = 50


@dataclass(frozen=True)
class SuitableSeries:
    """A series that can be analysed.

    Attributes:
        slices: in the order of the slice axis of ``geometry``.
        original: Image Type says ORIGINAL, PRIMARY.
        kernel: Convolution Kernel (0018,1210), or "".
        left_out: number of slices of the series that belong to other acquisitions in it.
    """

    series_instance_uid: str
    slices: tuple[SliceRef, ...]
    geometry: Geometry
    original: bool
    kernel: str
    left_out: int = 0

    @property
    def coverage_mm(self) -> float:
        """Length of the patient that it shows, mm."""
        return self.geometry.shape[0] * self.geometry.spacing_mm[0]

    @property
    def spacing_mm(self) -> float:
        """Between slices, mm, to the tenth within which series count as equal."""
        return round(self.geometry.spacing_mm[0], 1)

    @property
    def summary(self) -> str:
        """What a person wants to know of it."""
        return f"{self.geometry.shape[0]} slices of {self.geometry.spacing_mm[0]:.3g} mm"


@dataclass(frozen=True)
class Ranking:
    """The series to analyse, and why not the others.

    Attributes:
        reason: one English clause.
        passed_over: by Series Instance UID.
    """

    best: SuitableSeries
    reason: str
    passed_over: Mapping[str, str]


def is_original(image_type: Sequence[str]) -> bool:
    """By its Image Type (0008,0008), reconstructed from the acquisition itself."""
    return [str(value).strip().upper() for value in image_type[:2]] == ["ORIGINAL", "PRIMARY"]


def require_coverage(geometry: Geometry) -> None:
    """Long enough to be a chest.

    Raises:
        NotAnalysable: TOO_FEW_SLICES.
    """
    length = geometry.shape[0] * geometry.spacing_mm[0]
    if length < MINIMUM_COVERAGE_MM:
        raise NotAnalysable(
            NotAnalysableReason.TOO_FEW_SLICES,
            f"{geometry.shape[0]} slices show {length:.0f} mm of the patient; "
            f"at least {MINIMUM_COVERAGE_MM:.0f} mm are needed",
        )


def rank(candidates: Sequence[SuitableSeries]) -> Ranking:
    """The best of one or more; the same whatever their order."""
    longest = max(candidate.coverage_mm for candidate in candidates)

    def demerits(series: SuitableSeries) -> tuple[object, ...]:
        return (
            series.coverage_mm < _ENOUGH_OF_THE_LONGEST * longest,
            not series.original,
            series.spacing_mm,
            kernel_sharpness(series.kernel),
            -series.coverage_mm,
            series.series_instance_uid,
        )

    best, *others = sorted(candidates, key=demerits)
    return Ranking(
        best=best,
        reason=_praise(best, others),
        passed_over={other.series_instance_uid: _why_not(other, best) for other in others},
    )


def kernel_sharpness(kernel: str) -> int:
    """A rough order of reconstruction kernels: the higher, the sharper and noisier."""
    name = kernel.strip().upper()
    if name in _NAMED_KERNELS:
        return _NAMED_KERNELS[name]
    numbered = re.match(r"[A-Z]{1,3}(\d{2})", name)
    return int(numbered[1]) if numbered else _UNKNOWN_SHARPNESS


def _praise(best: SuitableSeries, others: Sequence[SuitableSeries]) -> str:
    if not others:
        return f"the only suitable series: {best.summary}"
    thinnest = all(best.spacing_mm <= other.spacing_mm for other in others)
    return f"{'thinnest' if thinnest else 'best'} axial series: {best.summary}"


def _why_not(series: SuitableSeries, best: SuitableSeries) -> str:
    """What set it behind the best, in the order of the ranking."""
    if series.coverage_mm < _ENOUGH_OF_THE_LONGEST * best.coverage_mm:
        return f"shows {series.coverage_mm:.0f} mm of the patient, not {best.coverage_mm:.0f} mm"
    if best.original and not series.original:
        return "derived, not an original acquisition"
    if series.spacing_mm > best.spacing_mm:
        return f"thicker: {series.summary}"
    if kernel_sharpness(series.kernel) > kernel_sharpness(best.kernel):
        return f"sharper kernel: {series.kernel or 'not named'}"
    return f"as good as the chosen one: {series.summary}"
