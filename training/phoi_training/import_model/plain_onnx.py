"""An ONNX file with a small manifest: any detector whose outputs Phoi's worker can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import compose
from phoi_models.bundle import AnyParameters, OutputShapes
from phoi_models.errors import BadBundle
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phoi_training.import_model.errors import CannotImport, OutputsDiffer

_PREFIX = "imported/"


class OnnxManifest(BaseModel):
    """What must be known of a plain ONNX file.

    Attributes:
        model: the ONNX file, beside the manifest.
        licence: file with the licence of the model, beside the manifest.
        description: for the model card.
        input: the graph's name of the image.
        outputs: the graph's names of the outputs, by Phoi's names for them; those of the same name
            may be left out.
        parameters: the section ``phoi`` of a bundle, without ``operating_points``; without
            ``calibration`` scores are taken as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    licence: str
    description: str = ""
    input: str = "image"
    outputs: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any]


def read_manifest(path: Path) -> OnnxManifest:
    """Read a manifest.

    Raises:
        CannotImport: it is missing or malformed; says where.
    """
    try:
        return OnnxManifest.model_validate_json(path.read_bytes())
    except OSError:
        raise CannotImport(f"{path.name} cannot be read") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CannotImport(f"{path.name}: {where or 'content'}: {first['msg']}") from None


def adopt(manifest: OnnxManifest, folder: Path, outputs: OutputShapes, path: Path) -> None:
    """Copy the model to ``path`` with the input and output names that a bundle promises.

    Args:
        manifest: names the model and its own names.
        folder: in which the model lies.
        outputs: promised, by name.
        path: of the new file; weights kept in other files are taken in.

    Raises:
        CannotImport: the file is no ONNX model, or lacks an input or output.
    """
    try:
        model = onnx.load(str(folder / manifest.model))
        onnx.checker.check_model(model)
    except Exception:  # onnx lets protobuf's errors through, which share no public base
        raise CannotImport(f"{manifest.model} is no readable ONNX model") from None
    names = {manifest.input: "image", **{manifest.outputs.get(n, n): n for n in outputs}}
    _require(manifest, model, names)
    named = compose.add_prefix(model, _PREFIX)  # so that no inner name is in the way
    renamed = {_PREFIX + old: new for old, new in names.items()}
    for value in (*named.graph.input, *named.graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in named.graph.node:
        for part in (node.input, node.output):
            part[:] = [renamed.get(name, name) for name in part]
    wanted = {value.name: value for value in named.graph.output}
    del named.graph.output[:]
    named.graph.output.extend(wanted[name] for name in outputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(named, str(path))


def _require(manifest: OnnxManifest, model: onnx.ModelProto, names: dict[str, str]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    if inputs != [manifest.input]:
        raise CannotImport(
            f"{manifest.model} takes {', '.join(inputs)}; it must take one image,"
            f' which the manifest calls "{manifest.input}"'
        )
    present = {value.name for value in model.graph.output}
    for old, new in names.items():
        if new != "image" and old not in present:
            raise CannotImport(
                f'{manifest.model} has no output "{old}" for {new};'
                f" it has {', '.join(sorted(present))}"
            )


def try_out(path: Path, parameters: AnyParameters) -> None:
    """Run the model on noise, two patches and one, and look at what it gives.

    Raises:
        BadBundle: it does not run on its patch, or its outputs have other shapes.
        OutputsDiffer: they are no numbers, no scores, or another's patch changes them.
    """
    image = np.random.default_rng(0).random((2, 1, *parameters.patch_shape), dtype=np.float32)
    names = list(parameters.outputs)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        both, alone = session.run(names, {"image": image}), session.run(names, {"image": image[1:]})
    except Exception:  # ONNX Runtime's own exceptions share no public base
        raise BadBundle(
            "the model does not run on float32 patches of shape"
            f" [N, 1, {', '.join(map(str, parameters.patch_shape))}], N of 1 and 2"
        ) from None
    for name, pair, single in zip(names, both, alone, strict=True):
        if pair.shape != (2, *parameters.outputs[name]):
            raise BadBundle(f"{name} has shape {pair.shape}, not {(2, *parameters.outputs[name])}")
        if not np.isfinite(pair).all():
            raise OutputsDiffer(f"{name} holds what is no number")
        if name == "heatmap" and not (pair.min() >= 0 and pair.max() <= 1):
            raise OutputsDiffer(
                "heatmap must hold scores from 0 to 1: end the network in a sigmoid"
            )
        if not np.allclose(pair[1], single[0], rtol=1e-3, atol=1e-3):
            raise OutputsDiffer(f"{name} of a patch depends on the other patches of its batch")
