"""UIDs that follow from others, so that equal inputs give equal bytes."""

from __future__ import annotations

import re
import uuid

from pydicom.uid import UID

# Looser than PS3.5 9.1: components with leading zeros come from scanners that are in
# use, and are compared as text everywhere, so they are taken.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")

# Of everything that Phoi writes (PS3.10 7.1; PS3.7 D.3.3.2): from uuid5(NAMESPACE_OID, "phoi
# implementation"). Names the program and not its version, so it never changes.
IMPLEMENTATION_CLASS_UID = UID("2.25.230582597765042602271303535448207151640")
IMPLEMENTATION_VERSION_NAME = "PHOI"


def is_uid(text: str) -> bool:
    """It may be a UID (PS3.5 9.1). What a peer sends must be, before it is used as one."""
    return _UID.fullmatch(text) is not None


def derived_uid(uid: str, what: str) -> str:
    """A UID that follows from another one and from what it is for (UUID-derived, PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{uid}/{what}').int}"


def series_of(sop_instance_uid: str) -> str:
    """Series Instance UID of an object made here: a successor can name its predecessor's series."""
    return derived_uid(sop_instance_uid, "series")
