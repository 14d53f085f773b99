"""The errors of the edge node, and whose fault each one is."""

from __future__ import annotations

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


class ReviewConflict(EdgeError):
    """What the reviewer asks is not possible in the present state; the text says why."""


class RegistryUnavailable(EdgeError):
    """The registry of models cannot be asked now. Passing: the present model goes on."""


class SourceUnavailable(EdgeError):
    """An archive gave no usable answer, or not what was asked for. Passing: ask again later."""
