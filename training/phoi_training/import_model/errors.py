"""Why a model cannot be imported."""

from __future__ import annotations

from phoi_models.errors import PhoiError


class CannotImport(PhoiError):
    """The model is incomplete, or of a kind that this import does not know."""


class OutputsDiffer(PhoiError):
    """What would run here does not compute what the original computes: it is not imported."""
