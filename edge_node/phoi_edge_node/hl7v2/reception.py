"""One message in, one acknowledgement out (chapter 2.9.2, original mode).

AA is answered once what the message tells is durable. A message that is sent again is
acknowledged again and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from phoi_edge_node.hl7v2.fields import SEGMENT_END, components, header, segment, text, timestamp
from phoi_edge_node.hl7v2.incoming import BadMessage, IncomingMessage, Segment, parse
from phoi_edge_node.hl7v2.known_values import APPLICATION
from phoi_edge_node.hl7v2.orders import read_message
from phoi_edge_node.orders import OrderStore
from phoi_edge_node.ports import Clock, UidSource

_APPLICATION_ERROR = 207  # HL7 table 0357

log = structlog.get_logger(__name__)


class Reception:
    """Takes orders and patients' changes. Safe to use from several threads.

    Args:
        on_taken: called after each message that was new.
        processing_id: MSH-11 of the messages that are taken.
    """

    def __init__(
        self,
        store: OrderStore,
        clock: Clock,
        uids: UidSource,
        site: str,
        on_taken: Callable[[], None] = lambda: None,
        processing_id: str = "P",
    ) -> None:
        self._store = store
        self._clock = clock
        self._uids = uids
        self._site = site
        self._on_taken = on_taken
        self._processing_id = processing_id

    def answer(self, content: bytes) -> bytes:
        """Take one message, without its frame; the acknowledgement, without a frame. Never raises.

        Nothing of the message but its kind is logged.
        """
        message: IncomingMessage | None = None
        try:
            message = parse(content)
            told = read_message(message, content, self._clock.now(), self._processing_id)
            new = self._store.take_message(told)
        except BadMessage as refusal:
            log.warning("message refused", code=refusal.code, why=str(refusal))
            return self._acknowledge(message, refusal.code, refusal.error, str(refusal))
        except Exception as error:  # the sender keeps the message, and sends it again
            log.error("message not taken", error=type(error).__name__)  # noqa: TRY400
            return self._acknowledge(message, "AE", _APPLICATION_ERROR, "it could not be stored")
        if new:
            log.info("message taken", orders=len(told.orders), merges=len(told.merges))
            self._on_taken()
        return self._acknowledge(message, "AA")

    def _acknowledge(
        self, message: IncomingMessage | None, code: str, error: int = 0, why: str = ""
    ) -> bytes:
        """General acknowledgement, ACK, in the version of the message."""
        asked = message.header if message else None
        lines = [self._msh(asked), segment("MSA", {1: code, 2: text(_of(asked, 10))})]
        if error:
            # ERR-3 and ERR-4 came with 2.5, and a receiver of an older version skips them.
            lines.append(segment("ERR", {3: components(str(error), why, "HL70357"), 4: "E"}))
        return "".join(line + SEGMENT_END for line in lines).encode()

    def _msh(self, asked: Segment | None) -> str:
        trigger = asked.value(9, 2) if asked else ""
        return header(
            {
                3: text(_of(asked, 5) or APPLICATION),
                4: text(_of(asked, 6) or self._site),
                5: text(_of(asked, 3)),
                6: text(_of(asked, 4)),
                7: timestamp(self._clock.now()),
                9: components("ACK", trigger, "ACK"),
                10: text(self._uids.message_id()),
                11: text(_of(asked, 11) or self._processing_id),
                12: text(_of(asked, 12) or "2.5.1"),
                18: "UNICODE UTF-8",
            }
        )


def _of(header: Segment | None, field: int) -> str:
    return header.raw(field) if header else ""
