"""ONNX Runtime on a GPU: the input and the outputs stay in the same memory of the device.

Left to itself ONNX Runtime takes memory on the device for each run, and meets a new shape with each
smaller batch, for which a GPU's kernels are chosen anew. Here both are bound once (I/O binding),
and a smaller batch is filled up.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_INPUT = "image"


@dataclass(frozen=True, eq=False)
class _Buffers:
    """What is bound: ``host`` is copied to ``image`` on the device before each run."""

    host: Float32
    image: onnxruntime.OrtValue
    outputs: tuple[onnxruntime.OrtValue, ...]
    binding: onnxruntime.IOBinding


class BoundSession:
    """A session that runs batches of one shape, one at a time. Thread-safe."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        outputs: Mapping[str, tuple[int, ...]],
        device: str,
    ) -> None:
        """Take no memory yet: the first batch says how much.

        Args:
            session: of a network with the input ``image``, float32.
            outputs: shapes of its outputs for one patch, by name, in the order wanted.
            device: ONNX Runtime's name of the memory: "cuda", or "cpu".
        """
        self._session = session
        self._outputs = outputs
        self._device = device
        self._lock = threading.Lock()
        self._buffers: _Buffers | None = None

    def run(self, patches: Float32) -> tuple[Float32, ...]:
        """The outputs for a batch.

        Args:
            patches: float32 [N, 1, ...]. The largest batch so far decides the size of the buffers;
                the patches have one shape for ever.

        Raises:
            ValueError: patches of another shape than before.
        """
        with self._lock:
            buffers = self._fitting(patches.shape)
            buffers.host[: len(patches)] = patches
            buffers.image.update_inplace(buffers.host)
            buffers.binding.synchronize_inputs()  # copies and kernels may be in other streams
            self._session.run_with_iobinding(buffers.binding)
            buffers.binding.synchronize_outputs()
            return tuple(output.numpy()[: len(patches)].copy() for output in buffers.outputs)

    def _fitting(self, shape: tuple[int, ...]) -> _Buffers:
        """Buffers for a batch of a shape [N, 1, ...]: those at hand, or larger ones."""
        if self._buffers is not None and shape[1:] != self._buffers.host.shape[1:]:
            raise ValueError(f"patches of {self._buffers.host.shape[1:]} ran before")
        if self._buffers is None or shape[0] > len(self._buffers.host):
            self._buffers = self._bind(shape)
        return self._buffers

    def _bind(self, shape: tuple[int, ...]) -> _Buffers:
        """Buffers for batches of a shape [N, 1, ...]."""
        host = np.zeros(shape, np.float32)
        image = self._on_device(shape)
        outputs = tuple(self._on_device((shape[0], *one)) for one in self._outputs.values())
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(_INPUT, image)
        for name, output in zip(self._outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        return _Buffers(host, image, outputs, binding)

    def _on_device(self, shape: tuple[int, ...]) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device)
