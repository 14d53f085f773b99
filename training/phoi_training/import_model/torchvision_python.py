"""torchvision's Python code without its compiled operators.

MONAI's RetinaNet takes two helpers from torchvision, both plain Python. torchvision's wheel on PyPI
is compiled for CUDA, so beside a CPU-only torch its operators do not load, and importing it then
fails on two operators that it describes but does not have. Their names alone let it be imported;
nothing here calls them.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

from phoi_training.import_model.errors import CannotImport

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_names: list[torch.library.Library] = []  # they last as long as the library object


def import_torchvision() -> None:
    """Import torchvision, with its operators or without.

    Call it before MONAI is imported, which looks for torchvision once.

    Raises:
        CannotImport: it is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise CannotImport(
            "MONAI's RetinaNet needs torchvision's Python code: run pip install --no-deps"
            f" torchvision==VERSION with the version that belongs to torch {torch.__version__}"
            " (0.28.0 to torch 2.13.0)"
        )
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
        _names.append(library)
        importlib.import_module("torchvision")
