"""A worker that stands still lets the queue grow on disk, and not in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.study import AnalysisState
from phoi_edge_node.testing import FakeInference
from phoi_models.home import Home
from phoi_models.identity import ModelIdentity
from support import values

STUDIES = 1000
SLICES = 20
LARGEST_GROWTH_MB = 40  # 9.5 were measured, pages included; one volume takes more


class NoWorker(FakeInference):
    """No worker answers."""

    def models(self) -> Sequence[ModelIdentity]:
        raise InferenceUnavailable("no worker answers")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[EdgeNode]:
    settings = EdgeSettings.model_validate(
        {
            "data": tmp_path / "data",
            "dicom": {"port": 0, "minimum_free_disk_mb": 10},
            "web": {"port": 0},
            "retention": {"free_disk_target_mb": 0},
            "retry_delays_s": [3600],
        }
    )
    inference = NoWorker(values.MODEL, values.volume_analysis())
    node = EdgeNode(settings, Home(tmp_path / "home"), inference)
    node.start()
    try:
        yield node
    finally:
        node.stop()


def look(node: EdgeNode) -> None:
    """All that a page and a scrape ask."""
    assert len(node.desk.worklist(500)) <= 500
    node.desk.kpis()
    node.desk.links()
    node.storage.store.counts()


def memory_mb() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def fill(node: EdgeNode, first: int, number: int) -> None:
    store = node.storage.store
    for study in range(first, first + number):
        uid = f"1.2.{study}"
        store.add_instances([values.instance(n, uid) for n in range(SLICES)])
        store.complete_study(uid, Priority.ROUTINE)


def test_a_thousand_queued_studies_cost_disk_and_not_memory(node: EdgeNode) -> None:
    fill(node, 0, 20)
    for _ in range(3):
        look(node)
    before = memory_mb()
    fill(node, 20, STUDIES - 20)
    for _ in range(3):
        look(node)
    assert memory_mb() - before < LARGEST_GROWTH_MB
    waiting = node.storage.store.latest_analyses([f"1.2.{n}" for n in range(STUDIES)])
    assert len(waiting) == STUDIES
    assert {a.state for a in waiting.values()} <= {AnalysisState.QUEUED, AnalysisState.RUNNING}
