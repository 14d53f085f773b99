"""Values to JSON text and back, for the store. One converter, no hand-written field lists."""

from __future__ import annotations

import base64
import json
from datetime import date, datetime
from typing import Any, TypeVar

import cattrs
import numpy as np
from phoi_models.findings import NoduleMask

_T = TypeVar("_T")


def _mask_out(mask: NoduleMask) -> dict[str, Any]:
    return {
        "offset": list(mask.offset),
        "shape": list(mask.voxels.shape),
        "bits": base64.b64encode(np.packbits(mask.voxels).tobytes()).decode(),
    }


def _mask_in(value: dict[str, Any], _: type[NoduleMask]) -> NoduleMask:
    shape = tuple(value["shape"])
    bits = np.frombuffer(base64.b64decode(value["bits"]), dtype=np.uint8)
    voxels = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    z, y, x = value["offset"]
    return NoduleMask(offset=(z, y, x), voxels=voxels)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in (date, datetime):
        converter.register_unstructure_hook(kind, lambda value: value.isoformat())
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))
    converter.register_structure_hook(date, lambda value, _: date.fromisoformat(value))
    converter.register_unstructure_hook(NoduleMask, _mask_out)
    converter.register_structure_hook(NoduleMask, _mask_in)
    return converter


_CONVERTER = _converter()


def to_json(value: Any) -> str:
    """JSON text of a frozen dataclass of this project."""
    return json.dumps(_CONVERTER.unstructure(value), ensure_ascii=False)


def from_json(text: str, kind: type[_T]) -> _T:
    """The value that ``to_json`` wrote.

    Raises:
        cattrs.BaseValidationError: the text is not of that type.
    """
    return _CONVERTER.structure(json.loads(text), kind)
