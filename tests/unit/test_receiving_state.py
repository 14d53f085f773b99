"""The receiver's health: red below the watermark, green again by itself."""

from __future__ import annotations

from pathlib import Path

from phoi_edge_node.checks.catalogue import Health, Language
from phoi_edge_node.checks.node import check_quarantine
from phoi_edge_node.commitment import CommitmentState
from phoi_edge_node.receiving_state import ReceivingCollector, ReceivingState
from prometheus_client import CollectorRegistry


def test_a_full_disk_is_a_trouble_and_passes() -> None:
    free = [1_999_000_000]
    state = ReceivingState(lambda: free[0], lambda: 0, 2000)
    assert state.troubles() == ("images are refused: 1999 MB of disk are free, 2000 are needed",)
    free[0] = 2_000_000_000
    assert state.troubles() == ()


def test_metrics_speak_of_room_quarantine_and_commitments() -> None:
    state = ReceivingState(lambda: 5_000_000, lambda: 3, 10)
    registry = CollectorRegistry()
    registry.register(ReceivingCollector(state, lambda: {("pacs", CommitmentState.FAILED): 2}))
    values = {(s.name, *s.labels.values()): s.value for m in registry.collect() for s in m.samples}
    assert values == {
        ("phoi_disk_free_bytes",): 5_000_000,
        ("phoi_disk_least_bytes",): 10_000_000,
        ("phoi_images_refused",): 1,
        ("phoi_quarantined",): 3,
        ("phoi_commitments", "pacs", "failed"): 2,
    }


def test_the_doctor_names_a_quarantine_that_is_not_empty(tmp_path: Path) -> None:
    assert check_quarantine(tmp_path).health is Health.GOOD
    folder = tmp_path / "instances" / "quarantine"
    folder.mkdir(parents=True)
    (folder / "ab.dcm").write_bytes(b"")
    finding = check_quarantine(tmp_path)
    assert finding.health is Health.WARNING
    assert "1 instances" in finding.told(Language.EN).seen
