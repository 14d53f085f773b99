"""The errors of the edge node, and whose fault each one is."""

from __future__ import annotations

from phoi_models.errors import PhoiError


class EdgeError(PhoiError):
    """Root of all errors that the edge node raises on purpose."""


class IllegalTransition(EdgeError):
    """An event met a state that does not know it. Our own fault: a bug."""


class SettingsError(EdgeError):
    """The settings cannot be used. The message names the key and what to write there."""


class UnknownStudy(EdgeError):
    """Nobody sent a study of this UID."""


class ReviewConflict(EdgeError):
    """What the reviewer asks is not possible in the present state; the text says why."""


class InferenceUnavailable(EdgeError):
    """No worker could take the analysis now. Passing: try again later.

    Attributes:
        retry_after_s: what the worker suggests, seconds; None if it said nothing.
    """

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class InferenceFailed(EdgeError):
    """The worker answered that this analysis cannot succeed as asked: a bug, or a bad bundle."""
