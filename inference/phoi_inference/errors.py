"""The errors of the inference worker. Each has one gRPC status code: see ``server.STATUS``."""

from __future__ import annotations

from phoi_models.errors import PhoiError


class InferenceError(PhoiError):
    """Root of the errors that the worker raises on purpose."""


class BadRequest(InferenceError):
    """The request makes no sense. The caller's fault."""


class RequestConflict(InferenceError):
    """This request id was used for other input. The caller's fault."""


class QueueFull(InferenceError):
    """Too much waits already.

    Attributes:
        retry_after_s: when a place may be free, seconds.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Stopping(InferenceError):
    """The worker is stopping and takes nothing more: try another one."""


class UnknownVolume(InferenceError):
    """The volume is not here."""


class VolumeDamaged(InferenceError):
    """The voxels are not those that the request describes."""


class NotAllowed(InferenceError):
    """The worker is not configured to read from there."""


class SourceUnavailable(InferenceError):
    """The voxels or the bundle cannot be pulled now. Passing."""


class SettingsError(InferenceError):
    """The settings cannot be used. The text names the option and what to give."""
