"""``phoi priority``: a policy is checked, and tried on past studies without changing anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from phoi_edge_node.bootstrap import EdgeNode
from phoi_edge_node.cli.priority import check, show_preview
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import read_settings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.study import AnalysisEvent
from phoi_edge_node.system import SystemClock
from phoi_models.home import Home
from support import values
from support.commands import phoi

POLICY = '[[rules]]\nname = "all-at-once"\ntell = "stat"\n'


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Of a node with one result of today."""
    data = tmp_path / "data"
    data.mkdir()
    engine = open_engine(f"sqlite:///{data / 'phoi.sqlite'}")
    store = SqlStore(engine, SystemClock())
    store.add_instance(values.instance(1))
    analysis_id = store.complete_study("1.2.3", Priority.ROUTINE)
    assert analysis_id is not None
    assert store.claim_analysis() is not None
    store.pin_model(analysis_id, values.MODEL)
    today = replace(values.result(), analysed_at=SystemClock().now())
    assert store.finish_analysis(analysis_id, AnalysisEvent.FINISH, today, [])
    engine.dispose()
    file = tmp_path / "edge.toml"
    file.write_text(f"data = {json.dumps(str(data))}\n")
    return file


def test_a_preview_names_what_would_change_and_changes_nothing(
    settings_file: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "priorities.toml"
    policy.write_text(POLICY)
    shown = [phoi(show_preview, "-s", settings_file, "--policy", policy).output for _ in range(2)]
    assert shown[0] == shown[1]
    lines = shown[0].splitlines()
    assert lines[0] == "1 results looked at; nothing was changed"
    assert lines[-1] == "1.2.3: urgent -> stat (rule all-at-once)"
    as_it_is = phoi(show_preview, "-s", settings_file).output.splitlines()
    assert as_it_is[-1] == "0 would be told otherwise"


def test_a_policy_is_checked_by_the_command_and_at_the_start_of_the_node(
    settings_file: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "priorities.toml"
    policy.write_text(POLICY)
    assert phoi(check, policy).output == "all-at-once: tells stat\notherwise: as suggested\n"
    policy.write_text(POLICY.replace("stat", "soon"))
    with pytest.raises(SettingsError, match=r"rules\.0\.tell"):
        phoi(check, policy)
    settings_file.write_text(
        settings_file.read_text() + f"[priority]\npolicy = {json.dumps(str(policy))}\n"
    )
    with pytest.raises(SettingsError, match=r"rules\.0\.tell"):
        EdgeNode(read_settings(settings_file), Home(tmp_path / "home"))
