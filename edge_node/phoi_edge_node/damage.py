"""Images that were whole when they came and are not any more: found, named, asked for again.

A file is damaged when its bytes are not those that were received, when the disk does not give them
any more, or when it is gone. Pixels that
cannot be decoded although the bytes are right were bad as received: asking again brings the same.
Damage is found when a study cannot be read, and by looking at one study after the other while
there is nothing else to do. A damaged file goes to quarantine and out of the index, and its study
is received again: whoever counts it asks the archive for what is missing. A result that there was
stands; only an analysis that had not ended begins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol

import structlog

from phoi_edge_node.policies import TIMES_ASKED_AGAIN
from phoi_edge_node.ports import ReceivedInstance
from phoi_edge_node.store import StudyStore

log = structlog.get_logger(__name__)

_VERIFIED = "images_verified_up_to"


class Damage(StrEnum):
    """What is wrong with a stored file."""

    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"  # the disk does not give it any more


class StoredImages(Protocol):
    """Where images lie."""

    def damage(self, instance: ReceivedInstance) -> Damage | None:
        """What is wrong with the file of an instance; reads all of it."""
        ...

    def going(self, study_instance_uid: str) -> AbstractContextManager[None]:
        """No image of the study comes meanwhile, and nobody else takes any away."""
        ...

    def set_aside(self, instance: ReceivedInstance) -> None:
        """Take the file, if there is one, from where it is read."""
        ...


class ImageCare:
    """Looks after stored images.

    Args:
        reopened: told of each study that is received again, by Study Instance UID.
    """

    def __init__(
        self, store: StudyStore, images: StoredImages, reopened: Callable[[str], None]
    ) -> None:
        self._store = store
        self._images = images
        self._reopened = reopened

    def look_after(self, study_instance_uid: str) -> bool:
        """Look at every image of a study; True if some were damaged and are asked for again."""
        suspects = self._damaged(self._store.instances(study_instance_uid))
        if not suspects:
            return False
        with self._images.going(study_instance_uid):
            lost = self._lose(study_instance_uid, suspects)
        if lost:
            self._reopened(study_instance_uid)
        return lost

    def _damaged(self, instances: Sequence[ReceivedInstance]) -> dict[str, Damage]:
        """By SOP Instance UID."""
        found = {i.sop_instance_uid: self._images.damage(i) for i in instances}
        return {uid: damage for uid, damage in found.items() if damage is not None}

    def _lose(self, study_instance_uid: str, suspects: Collection[str]) -> bool:
        """Looks at them again: meanwhile another may have found them, and got them back."""
        indexed = {i.sop_instance_uid: i for i in self._store.instances(study_instance_uid)}
        asked = Counter(d.sop_instance_uid for d in self._store.damages(study_instance_uid))
        damaged: dict[str, Damage] = {}
        again_suspected = [indexed[uid] for uid in suspects if uid in indexed]
        for uid, damage in self._damaged(again_suspected).items():
            again = asked[uid] < TIMES_ASKED_AGAIN
            log.error("image damaged", sop_instance_uid=uid, damage=damage.value, asked_again=again)
            if again:
                # The file first: one that nobody indexes is taken for a new image at the start.
                self._images.set_aside(indexed[uid])
                damaged[uid] = damage
        if damaged:
            self._store.lose_instances(study_instance_uid, damaged)
        return bool(damaged)

    def verify_next(self) -> bool:
        """Look after the next study, if nothing else is to be done. Always False: no hurry."""
        if not self._store.queued_analyses() and not self._store.receiving_studies():
            before = self._store.fact(_VERIFIED) or ""
            uid = self._store.next_complete_study(before)
            try:
                if uid is not None:
                    self.look_after(uid)
            finally:  # one study that cannot be looked at keeps nobody from the others
                self._store.put_fact(_VERIFIED, uid or "")
        return False
