"""What a page shows of a study is derived from its four lives, whatever their states are."""

from __future__ import annotations

from itertools import product

import pytest
from phoi_edge_node.desk import DONE, WAITING, Phase, phase_of
from phoi_edge_node.study import AnalysisState, ReviewState, StudyState

A, R, S = AnalysisState, ReviewState, StudyState
ANALYSED = {
    A.SUCCEEDED: Phase.READY,
    A.NOT_ANALYSABLE: Phase.NOT_ANALYSABLE,
    A.FAILED: Phase.FAILED,
    A.WITHDRAWN: Phase.WITHDRAWN,
}


@pytest.mark.parametrize(("study", "analysis", "review"), list(product(S, [None, *A], [None, *R])))
def test_every_combination_has_a_phase(
    study: StudyState, analysis: AnalysisState | None, review: ReviewState | None
) -> None:
    phase = phase_of(study, analysis, review)
    being_received = study in {S.RECEIVING, S.COUNTING}
    # Whatever was said before, images that come now are not in it.
    assert (phase is Phase.COUNTING) == (study is S.COUNTING)
    if being_received or analysis is None:
        assert phase in {Phase.RECEIVING, Phase.COUNTING}
        return
    closed = {R.SIGNED: Phase.SIGNED, R.ACKNOWLEDGED: Phase.ACKNOWLEDGED}
    # Only a person closes a study, and nothing else reads as closed.
    assert (phase in DONE) == (review in closed)
    if review in closed:
        assert phase is closed[review]
    elif analysis in ANALYSED:
        assert phase is ANALYSED[analysis]
    else:
        assert phase in WAITING


def test_a_phase_either_waits_or_is_a_persons_or_is_done() -> None:
    persons = {Phase.READY, Phase.NOT_ANALYSABLE, Phase.FAILED, Phase.WITHDRAWN}
    assert WAITING | DONE | persons == set(Phase)
    assert not WAITING & DONE
