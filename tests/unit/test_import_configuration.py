"""A MONAI bundle's configuration is read as data; what would execute is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from phoi_training.import_model.configuration import Call, Configuration
from phoi_training.import_model.errors import CannotImport


def value(expression: Any, **others: Any) -> Any:
    return Configuration({"it": expression, **others}).value("it")


def test_a_call_is_read_with_literals_references_and_inner_calls() -> None:
    read = value(
        "$monai.networks.pyramid(@backbone, 3, False, [1, 2], None, scale=-0.5)",
        backbone="$some.where.resnet10(conv1_t_stride=(2, 2, @last))",
        last=1,
    )

    backbone = Call("resnet10", (), {"conv1_t_stride": [2, 2, 1]})
    assert read == Call("pyramid", (backbone, 3, False, [1, 2], None), {"scale": -0.5})


def test_a_target_is_a_call_without_what_is_monais_own() -> None:
    read = value({"_target_": "a.b.Net", "_disabled_": "@off", "sizes": ["@n", 2]}, n=7, off=False)

    assert read == Call("Net", (), {"sizes": [7, 2]})


def test_moving_a_network_leaves_it_the_network() -> None:
    assert value("$@net.to(@device).eval()", net={"_target_": "Net"}) == Call("Net", (), {})


@pytest.mark.parametrize(
    "expression",
    [
        "$__import__('os').system('touch owned')(1)",
        "$[x for x in (1, 2)]",
        "$1 + 1",
        "$@n + '/models'",
        "$lambda: 0",
        "$(",
        "$os.environ",
        "$f(x := 1)",
        "$f(*@n)",
    ],
)
def test_what_is_no_plain_call_is_refused(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CannotImport, match="nothing is executed"):
        value(expression, n=1)
    assert not list(tmp_path.iterdir())


@given(text=st.text(max_size=40))
def test_no_text_is_executed_or_breaks_the_reader(text: str) -> None:
    try:
        value("$" + text)
    except CannotImport:
        return


def test_references_in_a_circle_are_refused() -> None:
    with pytest.raises(CannotImport, match="refers to itself"):
        value("@other", other=["@it"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CannotImport, match='no "backbone"'):
        value("$net(@backbone)")


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_json_and_yaml_say_the_same(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "configs").mkdir()
    content = {"patch": [1, 2, 3]}
    (tmp_path / "configs" / f"inference.{suffix}").write_text(yaml.safe_dump(content))
    if suffix == "json":
        (tmp_path / "configs" / "inference.json").write_text('{"patch": [1, 2, 3]}')

    assert Configuration.of_bundle(tmp_path).value("patch") == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("inference.json", "{"),
        ("inference.json", "[]"),
        ("inference.yaml", "!!python/object/apply:os.system ['touch owned']"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / name).write_text(text)

    with pytest.raises(CannotImport, match=name):
        Configuration.of_bundle(tmp_path)
