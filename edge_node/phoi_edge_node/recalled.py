"""What can be recalled, what a recall does to each result, and how far it is. Pure values.

A recall takes back results that turned out bad: those of a model version, of a period, of a sender.
It is a row with its list of results; each of them is worked off on its own, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from phoi_models.identity import ModelIdentity

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.result import Outcome
from phoi_edge_node.study import AnalysisState, DeliveryState, ReviewState

# The replacement that stands for whichever model the site uses when a result's turn comes.
CURRENT_MODEL = "current"

_UNDER_WAY = frozenset({AnalysisState.QUEUED, AnalysisState.RUNNING})


class RecallError(EdgeError):
    """A recall is asked for that cannot be meant."""


@dataclass(frozen=True)
class RecallCriteria:
    """Which results are meant: those that fit all that is said.

    Attributes:
        model_name, model_version: "" for any; a version needs a name.
        since, until: when the result was made, UTC; ``until`` itself is not meant.
        calling_ae_title: who sent images of the study; not known of images that were removed.
    """

    model_name: str = ""
    model_version: str = ""
    since: datetime | None = None
    until: datetime | None = None
    calling_ae_title: str = ""
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        if self.model_version and not self.model_name:
            raise RecallError("a version is of a model: say which as NAME@VERSION")
        if self.since and self.until and self.since >= self.until:
            raise RecallError("the period ends before it begins")
        if not (self.model_name or self.since or self.until or self.calling_ae_title):
            raise RecallError("say which results: a model, a period or a sender")

    @property
    def model(self) -> str:
        """As ``ModelIdentity.is_any_of`` takes it: "NAME" or "NAME@VERSION"; or ""."""
        return f"{self.model_name}@{self.model_version}".rstrip("@")

    def covers(self, model: str) -> bool:
        """Is a "NAME@VERSION" of the model that is blamed, if one is?"""
        name, _, version = model.partition("@")
        return name == self.model_name and self.model_version in {"", version}

    @property
    def pauses(self) -> str:
        """The switch that stops what is recalled; "" where no model is blamed."""
        return f"model:{self.model}" if self.model else ""

    def __str__(self) -> str:
        parts = (
            f"model {self.model}" if self.model else "",
            f"from {self.since:%Y-%m-%d %H:%M} UTC" if self.since else "",
            f"until {self.until:%Y-%m-%d %H:%M} UTC" if self.until else "",
            f"sent by {self.calling_ae_title}" if self.calling_ae_title else "",
            f"outcome {self.outcome.value}" if self.outcome else "",
        )
        return ", ".join(part for part in parts if part)


class RecallAction(StrEnum):
    """What a recall does to one result."""

    WITHDRAW = "withdraw"  # it stands no more, and whoever was told of it is told so
    LEAVE_SIGNED = "leave_signed"  # a person has signed it: that person's colleagues are told
    RESTART = "restart"  # it was under way, had told nothing, and is queued anew
    ANALYSE_AGAIN = "analyse_again"  # it was withdrawn before, and now there is a better model
    NOTHING = "nothing"  # a later result has replaced it, or it was withdrawn before


def action_for(
    analysis: AnalysisState,
    review: ReviewState | None,
    *,
    replaced: bool,
    stands: bool,
    signed_too: bool,
    redo: bool,
) -> RecallAction:
    """What becomes of a result.

    Args:
        review: None while there is no result.
        replaced: a later revision of the study has come to its end.
        stands: a destination has, or may have, what it told, and nothing later that follows it.
        signed_too: what people have signed is to be withdrawn as well.
        redo: a model is named that analyses the studies again.
    """
    if analysis is AnalysisState.WITHDRAWN:
        return RecallAction.ANALYSE_AGAIN if redo and not replaced else RecallAction.NOTHING
    if analysis in _UNDER_WAY:
        return RecallAction.RESTART
    if review is ReviewState.SIGNED:
        return RecallAction.WITHDRAW if signed_too else RecallAction.LEAVE_SIGNED
    if analysis is AnalysisState.SUPERSEDED and not stands:
        return RecallAction.NOTHING
    return RecallAction.WITHDRAW


class Notice(StrEnum):
    """Has everyone who was told of a withdrawn result been told that it is withdrawn?"""

    NONE = "none"  # nothing is withdrawn
    WAITING = "waiting"  # to be written
    QUEUED = "queued"  # in the outbox
    NOBODY_TOLD = "nobody_told"  # nothing of it had ever gone out
    OVERTAKEN = "overtaken"  # all who were told got something later: a notice would take that back


class Again(StrEnum):
    """Is the study of a recalled result analysed again?"""

    NONE = "none"  # nobody asked for it
    WAITING = "waiting"
    QUEUED = "queued"
    NO_IMAGES = "no_images"  # they were removed; when they come again, it is analysed
    OVERTAKEN = "overtaken"  # a later revision was queued meanwhile


class Switch(StrEnum):
    """Do new studies get the model that takes the place of the recalled one?"""

    NONE = "none"  # no model was stopped, or none was named
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True)
class RecalledResult:
    """One result that a recall is, or would be, about.

    Attributes:
        finished_at: UTC; None while it is under way.
        deliveries: how many documents are in which state, by destination.
        images_here: they could be analysed again.
    """

    analysis_id: str
    study_instance_uid: str
    revision: int
    model: str
    finished_at: datetime | None
    outcome: Outcome | None
    analysis: AnalysisState
    review: ReviewState | None
    action: RecallAction
    images_here: bool
    deliveries: Mapping[str, Mapping[DeliveryState, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recall:
    """One recall.

    Attributes:
        reason: as the person who asked wrote it; may hold anything, and is never logged.
        asked_at: UTC.
        signed_too: what people had signed is withdrawn as well.
        replacement: "NAME@VERSION" or ``CURRENT_MODEL``, which analyses the studies again; "".
        switch: of the model that new studies get, where the recalled one was stopped.
        actions, notices, again: how many results, by what is done to them and how far that is.
        trouble: the latest reason why something waits, in English; "".
    """

    id: int
    criteria: RecallCriteria
    reason: str
    asked_by: str
    asked_at: datetime
    signed_too: bool
    replacement: str
    actions: Mapping[RecallAction, int]
    notices: Mapping[Notice, int]
    again: Mapping[Again, int]
    trouble: str = ""
    switch: Switch = Switch.NONE

    @property
    def done(self) -> bool:
        """Notices are in the outbox, new analyses in the queue, and the model is changed."""
        waiting = self.notices.get(Notice.WAITING) or self.again.get(Again.WAITING)
        return not waiting and self.switch is not Switch.WAITING


@dataclass(frozen=True)
class RecallRequest:
    """What a person asks for.

    Attributes:
        pause: stop the model that is blamed at once.
    """

    criteria: RecallCriteria
    reason: str
    asked_by: str
    signed_too: bool = False
    replacement: str = ""
    pause: bool = True

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise RecallError("say why: whoever reads the audit later must understand it")
        if self.replacement and self.replacement != CURRENT_MODEL and "@" not in self.replacement:
            raise RecallError(f"a replacement is NAME@VERSION or {CURRENT_MODEL!r}")
        if self.replacement and self.replacement == self.criteria.model:
            raise RecallError(f"{self.replacement} is what is recalled: name another version")
        if self.replacement and self.pause and self.criteria.covers(self.replacement):
            raise RecallError(
                f"{self.replacement} is paused with all of {self.criteria.model}: "
                "say which version is bad, or pause nothing"
            )

    @property
    def switches(self) -> bool:
        """Are new studies to get the replacement? They would wait for a model that is stopped."""
        named = self.replacement not in {"", CURRENT_MODEL}
        return named and self.pause and bool(self.criteria.model)


@dataclass(frozen=True)
class RecallItem:
    """One result on the list of a recall.

    Attributes:
        at: when the recall was asked for, UTC.
    """

    id: int
    recall_id: int
    analysis_id: str
    study_instance_uid: str
    revision: int
    criteria: RecallCriteria
    replacement: str
    at: datetime


class RecallStore(Protocol):
    """The part of the store that recalling uses."""

    def recallable(
        self, criteria: RecallCriteria, *, signed_too: bool = False, redo: bool = False
    ) -> Sequence[RecalledResult]:
        """The results that fit, oldest first, and what a recall would do to each.

        Args:
            signed_too, redo: as for ``action_for``.
        """
        ...

    def unknown_senders(self) -> int:
        """How many studies cannot be found by who sent them: their images were removed."""
        ...

    def ask_recall(self, request: RecallRequest) -> int:
        """Withdraw the results that fit, in one transaction; the number of the recall.

        From then on none of them is shown or sent. The notices to whoever was told, and the new
        analyses, follow one by one.
        """
        ...

    def recalls(self, limit: int = 30) -> Sequence[Recall]:
        """Newest first."""
        ...

    def withdrawals(self, number: int) -> Mapping[str, Mapping[DeliveryState, int]]:
        """How many documents of a recall's notices are in which state, by destination."""
        ...

    def recalls_waiting(self) -> tuple[int, int, int]:
        """Notices to be written, studies to be analysed again, and models of new studies to set."""
        ...

    def next_switch(self) -> Recall | None:
        """The oldest recall that is to change the model of new studies, and is due."""
        ...

    def switched(self, number: int) -> None:
        """New studies do not get the model any more that a recall stopped."""
        ...

    def put_off_switch(self, number: int, trouble: str, due_at: datetime) -> None:
        """Something stands in the way of that: try again later."""
        ...

    def next_notice(self) -> RecallItem | None:
        """The oldest withdrawn result whose notice is to be written, and is due."""
        ...

    def next_again(self) -> RecallItem | None:
        """The oldest result whose study is to be analysed again, and is due."""
        ...

    def put_off(self, item_id: int, trouble: str, due_at: datetime) -> None:
        """Something stands in the way: try again later."""
        ...

    def analyse_again(self, item_id: int, model: ModelIdentity) -> Again:
        """Queue the next revision of a study, pinned to a model, if it still is what is needed."""
        ...

    def confirm_recalled(self, study_instance_uid: str, username: str) -> bool:
        """A person says that the signed report stands, recall or not; False if none asks."""
        ...


class RecallBook(Protocol):
    """What an administrator sees and asks for of recalls, on the page and at the command line."""

    def models(self) -> tuple[str, ...]:
        """Every "NAME@VERSION" that was ever used here."""
        ...

    def recallable(
        self, criteria: RecallCriteria, *, signed_too: bool = False, redo: bool = False
    ) -> Sequence[RecalledResult]:
        """As ``RecallStore.recallable``."""
        ...

    def unknown_senders(self) -> int:
        """As ``RecallStore.unknown_senders``."""
        ...

    def ask(self, request: RecallRequest) -> int:
        """Recall; its number."""
        ...

    def recalls(self) -> Sequence[tuple[Recall, Mapping[str, Mapping[DeliveryState, int]]]]:
        """The latest recalls, newest first, each with how far its notices came."""
        ...
