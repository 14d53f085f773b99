"""When a result has a reading priority to suggest."""

from __future__ import annotations

from phoi_edge_node.ports import ReportedCase
from phoi_edge_node.result import Outcome

_NOTHING_KNOWN = frozenset({Outcome.NOT_ANALYSABLE, Outcome.FAILED})


def suggests_priority(case: ReportedCase) -> bool:
    """Not where nothing is known of the lungs, nor once a person has read the study."""
    return case.review is None and case.result.outcome not in _NOTHING_KNOWN
