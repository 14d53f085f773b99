"""The errors of this package, and whose fault each one is."""

from __future__ import annotations

from enum import StrEnum


class PhoiError(Exception):
    """Something Phoi can name. Its text tells a person what to do and holds no patient data."""


class NotAnalysableReason(StrEnum):
    """Why an image cannot be analysed. The value is stable: it is stored and sent."""

    NO_CT_IMAGES = "no_ct_images"
    NO_SUITABLE_SERIES = "no_suitable_series"
    TOO_FEW_SLICES = "too_few_slices"
    SLICES_TOO_THICK = "slices_too_thick"
    MISSING_SLICES = "missing_slices"
    DUPLICATE_SLICES = "duplicate_slices"
    NOT_AXIAL = "not_axial"
    INCONSISTENT_GEOMETRY = "inconsistent_geometry"
    UNREADABLE_PIXELS = "unreadable_pixels"
    NOT_HOUNSFIELD = "not_hounsfield"
    NO_LUNGS = "no_lungs"


class NotAnalysable(PhoiError):
    """The input is understood and cannot be analysed. The input's fault, never a negative result.

    Attributes:
        reason: stable code.
        detail: one plain English clause, without patient data: "5 of 120 slices are missing".
    """

    def __init__(self, reason: NotAnalysableReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class UntrustedBundle(PhoiError):
    """A model bundle's signature, key or content is not to be trusted. It is never run."""


class BadBundle(PhoiError):
    """A model bundle is incomplete or malformed."""


class Cancelled(PhoiError):
    """The caller no longer wants the answer. Nobody's fault."""


class InferenceUnavailable(PhoiError):
    """No worker could take the analysis now. Passing: try again later.

    Attributes:
        retry_after_s: what the worker suggests, seconds; None if it said nothing.
    """

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class InferenceFailed(PhoiError):
    """This analysis cannot succeed as asked: a bug, or a bad bundle. Trying again is no use."""
