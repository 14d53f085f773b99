"""A MONAI bundle's configuration, read as data.

MONAI evaluates the expressions in it as Python, so a bundle from elsewhere could do anything here.
This reader executes nothing: an expression must be one call with literal arguments or references,
and the caller decides which names it knows.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phoi_training.import_model.errors import CannotImport

_REFERENCE = re.compile(r"@([A-Za-z_]\w*)")
_PLACEHOLDER = "__reference_to_"
_KEEPS = frozenset({"to", "eval", "cpu", "cuda"})  # methods that leave a network what it is
_DEEPEST = 50


@dataclass(frozen=True)
class Call:
    """A call that a configuration asks for.

    Attributes:
        name: last part of what is called: "resnet50" for "monai.networks.nets.resnet.resnet50".
        arguments: positional ones; literals, lists, or calls.
        keywords: named ones.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Configuration:
    """One configuration file.

    Args:
        content: what the file holds.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    @classmethod
    def of_bundle(cls, folder: Path) -> Configuration:
        """``configs/inference`` of a MONAI bundle, JSON or YAML.

        Raises:
            CannotImport: there is none, or it is malformed.
        """
        for suffix in ("json", "yaml", "yml"):
            path = folder / "configs" / f"inference.{suffix}"
            if path.is_file():
                return cls(_read(path))
        raise CannotImport(
            f"{folder.name} has no configs/inference.json or .yaml: it is no MONAI bundle"
        )

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def value(self, key: str) -> Any:
        """What the configuration says at ``key``, references followed, calls as :class:`Call`.

        Raises:
            CannotImport: it says nothing, or holds an expression that is no plain call.
        """
        return self._resolved_key(key, 0)

    def _resolved_key(self, key: str, depth: int) -> Any:
        if key not in self._content:
            raise CannotImport(f'the configuration has no "{key}"')
        if depth > _DEEPEST:
            raise CannotImport(f'the configuration\'s "{key}" refers to itself')
        return self._resolved(self._content[key], depth + 1)

    def _resolved(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._resolved_text(value, depth)
        if isinstance(value, Sequence):
            return [self._resolved(item, depth) for item in value]
        if isinstance(value, Mapping):
            return self._resolved_mapping(value, depth)
        return value

    def _resolved_text(self, text: str, depth: int) -> Any:
        if text.startswith("$"):
            return self._evaluated(text[1:], depth)
        if reference := _REFERENCE.fullmatch(text):
            return self._resolved_key(reference[1], depth)
        return text

    def _resolved_mapping(self, value: Mapping[str, Any], depth: int) -> Any:
        if not isinstance(target := value.get("_target_"), str):
            return {key: self._resolved(item, depth) for key, item in value.items()}
        keywords = {
            key: self._resolved(item, depth)
            for key, item in value.items()
            if not (key.startswith("_") and key.endswith("_"))  # MONAI's own: _disabled_, ...
        }
        return Call(target.rpartition(".")[2], (), keywords)

    def _evaluated(self, expression: str, depth: int) -> Any:
        python = _REFERENCE.sub(rf"{_PLACEHOLDER}\1", expression).strip()
        try:
            return self._node(ast.parse(python, mode="eval").body, depth)
        except (SyntaxError, ValueError):
            raise CannotImport(
                f"the configuration computes with `{expression}`: only plain calls are read,"
                " nothing is executed"
            ) from None

    def _node(self, node: ast.expr, depth: int) -> Any:
        match node:
            case ast.Name(id=name) if name.startswith(_PLACEHOLDER):
                return self._resolved_key(name.removeprefix(_PLACEHOLDER), depth)
            case ast.Call(func=ast.Attribute(value=owner, attr=method)) if method in _KEEPS:
                return self._node(owner, depth)
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                arguments = tuple(self._node(argument, depth) for argument in node.args)
                keywords = {k.arg or "**": self._node(k.value, depth) for k in node.keywords}
                return Call(name, arguments, keywords)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._node(item, depth) for item in items]
            case _:
                return ast.literal_eval(node)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        raise CannotImport(f"configs/{path.name} cannot be read") from None
    if not isinstance(content, dict):
        raise CannotImport(f"configs/{path.name} holds no mapping")
    return content
