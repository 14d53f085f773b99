"""The real clock and the real source of identities."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime


class SystemClock:
    """Implements ``ports.Clock``."""

    def now(self) -> datetime:
        """The present, UTC, aware."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()


class RandomUids:
    """Implements ``ports.UidSource`` with random UUIDs (PS3.5 B.2)."""

    def dicom_uid(self) -> str:
        """A globally unique DICOM UID."""
        return f"2.25.{uuid.uuid4().int}"

    def message_id(self) -> str:
        """A unique HL7 v2 message control id, at most 20 characters."""
        return uuid.uuid4().hex[:20].upper()
