"""All networks of a detector, started and tried, and how they are fed where they run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phoi_models.bundle import AnyParameters, DetectorParameters, OnnxForms, heatmap_outputs
from phoi_models.geometry import Index
from phoi_models.sessions import OnnxHeads, SessionSettings

_GPU_VOXELS = 8 * 96**3
"""In a batch, unless a site says otherwise: enough to keep a GPU busy, little of its memory."""


@dataclass(frozen=True, eq=False)
class DetectorSessions:
    """Networks that are ready to run.

    Attributes:
        parameters: how to feed and read them here.
        heads: the network that searches.
        second_look: the one that looks again; None if there is none.
        batch_size: patches to give them at once.
    """

    parameters: AnyParameters
    heads: OnnxHeads
    second_look: OnnxHeads | None
    batch_size: int

    @property
    def runtime(self) -> str:
        """What of this machine may change findings in their last digits: provider and form."""
        return f"{self.heads.provider} {self.heads.form}"

    @classmethod
    def start(
        cls,
        parameters: AnyParameters,
        onnx: OnnxForms,
        second_look: OnnxForms | None,
        settings: SessionSettings,
    ) -> DetectorSessions:
        """Start all networks of a bundle, and run an empty batch through each.

        Args:
            parameters: of the bundle.
            onnx: the network that searches, in the forms it has.
            second_look: the network that ``parameters.second_look`` describes.
            settings: how they run.

        Raises:
            BadBundle: a network does not fit the parameters, or lacks the form asked for.
            PhoiError: the provider that was asked for does not work here.
        """
        heads = OnnxHeads(onnx, settings, parameters.outputs)
        batch_size = settings.batch_size or automatic_batch(
            parameters.patch_shape, on_gpu=heads.on_gpu
        )
        heads.warm_up(parameters.patch_shape, batch_size)
        again = None
        if isinstance(parameters, DetectorParameters):
            parameters = _with_patches_for(heads, parameters)
            if parameters.second_look is not None and second_look is not None:
                shape = parameters.second_look.patch_shape
                outputs = heatmap_outputs(shape, parameters.stride)
                again = OnnxHeads(second_look, settings, outputs)
                again.warm_up(shape, batch_size)
        return cls(parameters, heads, again, batch_size)


def automatic_batch(patch_shape: Index, *, on_gpu: bool) -> int:
    """How many patches of a shape (voxels) to run at once where nobody said.

    One on a CPU: it is busy with one, and patches of ever new shapes fit the lungs better.
    """
    return max(1, _GPU_VOXELS // math.prod(patch_shape)) if on_gpu else 1


def _with_patches_for(heads: OnnxHeads, parameters: DetectorParameters) -> DetectorParameters:
    """Patches of free shape on a CPU, where they were tried; of one shape on a GPU.

    Raises:
        BadBundle: the network does not take the patch shapes that it promises.
    """
    if parameters.patch_multiple is None:
        return parameters
    if heads.on_gpu:
        return parameters.model_copy(update={"patch_multiple": None})
    z, y, x = parameters.patch_shape
    heads.check_shape((z + parameters.patch_multiple, y, x))
    return parameters
