"""Which model the next analysis gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from phoi_edge_node.current_model import CurrentModel
from phoi_edge_node.errors import InferenceUnavailable
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.testing import FakeClock, FakeInference
from support import values

NEWER = replace(values.MODEL, version="1.10.0", bundle_hash="ef" * 32)
OLDER = replace(values.MODEL, version="1.9.0", bundle_hash="aa" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    yield SqlStore(engine, FakeClock())
    engine.dispose()


def test_the_newest_of_the_name_is_chosen_once_and_kept(store: SqlStore) -> None:
    inference = FakeInference(OLDER, values.volume_analysis())
    inference.load(replace(NEWER, name="another"))
    inference.load(NEWER)
    model = CurrentModel(store, inference, OLDER.name)
    assert model.get() == NEWER
    inference.load(replace(NEWER, version="2.0.0", bundle_hash="bb" * 32))
    assert model.get() == NEWER, "a promotion is asked for, it does not happen by itself"
    model.set(OLDER)
    assert CurrentModel(store, inference, OLDER.name).get() == OLDER


def test_without_any_model_the_analysis_waits(store: SqlStore) -> None:
    inference = FakeInference(OLDER, values.volume_analysis())
    with pytest.raises(InferenceUnavailable, match="phoi models list"):
        CurrentModel(store, inference, "unknown").get()
