"""A worker's loaded models: few, the latest used, and never one fewer than those in use."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from phoi_inference.engine import Engine
from phoi_inference.metrics import Metrics
from phoi_inference.shelf import Shelf
from phoi_models.bundle_store import BundleStore
from phoi_models.findings import Region
from phoi_models.sessions import Provider, SessionSettings
from support.chests import plain_chest
from support.inference import QUICK, install, new_home

SESSIONS = SessionSettings(Provider.CPU, threads=1)


@given(st.integers(1, 3), st.lists(st.sampled_from("abcde"), max_size=30))
def test_what_was_used_longest_ago_goes_first(most: int, used: list[str]) -> None:
    evicted: list[str] = []
    shelf: Shelf[str] = Shelf(most, lambda key, _: evicted.append(key))
    model: OrderedDict[str, None] = OrderedDict()  # the same, written down plainly
    loads = 0
    for key in used:
        with shelf.using(key):
            if shelf.get(key) is None:
                loads += 1
                shelf.make_room()
                shelf.put(key, key.upper())
        model[key] = None
        model.move_to_end(key)
        while len(model) > most:
            model.popitem(last=False)
        assert {k for k in "abcde" if shelf.get(k)} == set(model)
    assert loads == len(model) + len(evicted)


def test_what_is_in_use_stays_and_goes_when_it_is_not() -> None:
    evicted: list[str] = []
    shelf: Shelf[str] = Shelf(1, lambda key, _: evicted.append(key))
    with ExitStack() as first:
        first.enter_context(shelf.using("a"))
        shelf.put("a", "A")
        with shelf.using("b"):
            shelf.make_room()
            shelf.put("b", "B")
            assert (shelf.get("a"), shelf.get("b"), evicted) == ("A", "B", [])
        assert (shelf.get("a"), evicted) == ("A", ["b"]), "only what is in use stays over the limit"
        shelf.put("c", "C")
        assert len(shelf) == 2
    assert (len(shelf), evicted) == (1, ["b", "c"])


def test_what_is_used_twice_at_once_stays_until_both_are_done() -> None:
    shelf: Shelf[str] = Shelf(1, lambda *_: None)
    shelf.put("a", "A")
    with shelf.using("a"):
        with shelf.using("a"):
            pass
        shelf.put("b", "B")
        assert shelf.get("a") == "A"


def test_taking_away_is_no_eviction() -> None:
    evicted: list[str] = []
    shelf: Shelf[str] = Shelf(1, lambda key, _: evicted.append(key))
    shelf.put("a", "A")
    shelf.take_away("a")
    shelf.take_away("a")
    assert (len(shelf), evicted) == (0, [])


def test_an_engine_keeps_as_many_models_as_it_is_told(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    models = [install(home, tmp_path / name, **QUICK, name=name) for name in ("one", "two")]
    metrics = Metrics(lambda: 0, lambda: 0, lambda: engine.loaded)
    engine = Engine(BundleStore(home.models), home.trust, SESSIONS, 1, metrics.model_evicted)
    engine.load_newest()
    assert engine.loaded == 1, "what would be put away at once is not loaded"
    chest = plain_chest([])
    for model in (*models, models[0]):
        engine.analyze(model, chest, Region.LUNGS, lambda *_: None, lambda: False)
        loaded = [state.identity.name for state in engine.models() if state.provider]
        assert loaded == [model.name]
    evicted = metrics.registry.get_sample_value("phoi_worker_models_evicted_total")
    assert evicted in {2, 3}, "by which of the two was loaded first"
    assert metrics.registry.get_sample_value("phoi_worker_models_loaded") == 1
