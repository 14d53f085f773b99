"""What a scrape tells: states, their ages, what is overdue; never a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from phoi_edge_node.courier import Courier
from phoi_edge_node.links import Links
from phoi_edge_node.metrics import EdgeCollector
from phoi_edge_node.policies import RetryPolicy, limits
from phoi_edge_node.reconciled import Lack, LackingStudy, ReconciliationReport
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import EdgeSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.testing import FakeClock, FakeDestination, FakeInference
from phoi_edge_node.watchdog import Watchdog
from prometheus_client import CollectorRegistry
from support import values


def test_a_scrape_tells_states_ages_and_what_is_overdue(tmp_path: Path) -> None:
    clock = FakeClock()
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    store = SqlStore(engine, clock)
    watchdog = Watchdog(store, clock, limits(EdgeSettings(data=tmp_path)), lambda uid: None)
    courier = Courier(store, FakeDestination("pacs"), clock, RetryPolicy((1.0,)))
    links = Links([courier], FakeInference(values.MODEL, values.volume_analysis()), clock)
    registry = CollectorRegistry()
    registry.register(EdgeCollector(store, links, clock, watchdog))
    store.add_instance(replace(values.instance(1), received_at=clock.now()))
    store.complete_study("1.2.3", Priority.ROUTINE)
    store.add_instance(replace(values.instance(1, "1.2.4"), received_at=clock.now()))
    clock.advance(5 * 3600)
    watchdog.look()
    lacking = LackingStudy("1.2.5", Lack.NOT_RECEIVED)
    for report in (
        ReconciliationReport(3, 0, (lacking,)),
        ReconciliationReport(0, 0, (), "it gives no answer"),
    ):
        today = clock.now().date()
        store.end_reconciliation(store.ask_reconciliation(today, today, "nightly"), report)
        clock.advance(60)

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert sample("phoi_studies", state="complete") == 1
    assert sample("phoi_analyses", state="queued") == 1
    assert sample("phoi_state_oldest_seconds", life="analysis", state="queued") == 5 * 3600 + 120
    assert sample("phoi_state_oldest_seconds", life="study", state="receiving") == 5 * 3600 + 120
    assert sample("phoi_overdue", life="analysis", state="queued") == 1
    assert sample("phoi_overdue", life="study", state="receiving") == 1
    assert sample("phoi_overdue", life="delivery", state="dead") == 0
    assert sample("phoi_threads_in_trouble") == 0
    assert sample("phoi_circuit", link="pacs", state="closed") == 1
    assert sample("phoi_circuit", link="pacs", state="open") == 0
    assert sample("phoi_recall_waiting", **{"for": "notice"}) == 0
    assert sample("phoi_left_behind") == 1
    assert sample("phoi_reconciled_seconds") == 120
    clock.set_wall_clock(values.AT)
    assert (sample("phoi_state_oldest_seconds", life="analysis", state="queued") or 0) >= 0
    engine.dispose()
