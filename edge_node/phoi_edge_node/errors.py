"""The errors of the edge node, and whose fault each one is."""

from __future__ import annotations

from enum import StrEnum

# Raised by every way of inference, also by the one in this process, which is no part of the edge.
from phoi_models.errors import InferenceFailed as InferenceFailed
from phoi_models.errors import InferenceUnavailable as InferenceUnavailable
from phoi_models.errors import PhoiError


class EdgeError(PhoiError):
    """Root of all errors that the edge node raises on purpose."""


class IllegalTransition(EdgeError):
    """An event met a state in which nothing follows from it. Our own fault: a bug."""


class TransitionRefused(IllegalTransition):
    """A person asked for what the present state does not allow. Nobody's bug."""


class SettingsError(EdgeError):
    """The settings cannot be used. The message names the key and what to write there."""


class UnknownStudy(EdgeError):
    """Nobody sent a study of this UID."""


class Conflict(StrEnum):
    """Why not, in English; pages say it in their reader's language."""

    NO_IMAGES = "this revision has no images to show"
    IMAGES_GONE = "the analysed images can no longer be read"
    IMAGES_DAMAGED = "images were damaged on disk and are asked for again; try later"
    IMAGES_CHANGED = "new images have come since this result; wait for the next one"
    NO_SUCH_NODULE = "the latest result has no such nodule; reload the page"
    NEWER_RESULT = "a newer result has come; reload the page"
    NO_RESULT = "there is no result to judge"
    CLOSED = "this review is closed"
    NOTHING_TO_UNDO = "there is nothing to take back"
    CHANGED = "something changed since you looked; reload the page"
    CHANGED_BY_COLLEAGUE = "a colleague changed this review a moment ago; reload the page"
    CLOSED_BY_COLLEAGUE = "a colleague closed this review a moment ago"
    UNDECIDED = "every mark must be decided before signing, and only once"
    NOT_WRITTEN = "the signed report could not be written; nothing was signed. Report a problem."
    TO_BE_SIGNED = "this result is to be reviewed and signed"
    STILL_RECEIVED = "this study is still being received"
    NOT_RESENT = "this delivery cannot be sent again now"
    NO_SWITCH = "there is no such switch"


class ReviewConflict(EdgeError):
    """What the reviewer asks is not possible in the present state."""

    def __init__(self, conflict: Conflict) -> None:
        super().__init__(conflict.value)
        self.conflict = conflict


class RegistryUnavailable(EdgeError):
    """The registry of models cannot be asked now. Passing: the present model goes on."""


class SourceUnavailable(EdgeError):
    """An archive gave no usable answer, or not what was asked for. Passing: ask again later."""
