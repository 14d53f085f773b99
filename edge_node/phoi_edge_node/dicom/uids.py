"""UIDs that follow from others, so that equal inputs give equal bytes."""

from __future__ import annotations

import uuid


def derived_uid(uid: str, what: str) -> str:
    """A UID that follows from another one and from what it is for (UUID-derived, PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{uid}/{what}').int}"


def series_of(sop_instance_uid: str) -> str:
    """Series Instance UID of an object made here: a successor can name its predecessor's series."""
    return derived_uid(sop_instance_uid, "series")
