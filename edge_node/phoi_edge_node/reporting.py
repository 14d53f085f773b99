"""Now and then, what this site tells the central training loop."""

from __future__ import annotations

import json

from phoi_edge_node.ports import Clock, UidSource
from phoi_edge_node.statistics import make_usage_reports
from phoi_edge_node.store import StudyStore
from phoi_edge_node.usage import to_document

_SEQUENCE = "usage_sequence"
_LAST = "usage_last"


class Reporter:
    """Queues cumulative usage reports when the numbers have changed."""

    def __init__(
        self, store: StudyStore, clock: Clock, uids: UidSource, site: str, destination: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._uids = uids
        self._site = site
        self._destination = destination

    def report(self) -> bool:
        """Queue reports; False if nothing changed since the last ones."""
        reports = make_usage_reports(self._store.use(), self._site, self._clock.now())
        numbers = json.dumps([r.metrics() for r in reports], sort_keys=True)
        if not reports or numbers == self._store.fact(_LAST):
            return False
        sequence = self._store.next_number(_SEQUENCE)
        documents = [to_document(r, sequence, self._uids.message_id()) for r in reports]
        self._store.enqueue_usage(documents, self._destination)
        self._store.put_fact(_LAST, numbers)
        return True
