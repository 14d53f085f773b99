"""ONNX Runtime: the best execution provider present, one session per loaded bundle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray
from phoi_models.bundle import OutputShapes
from phoi_models.errors import BadBundle, PhoiError
from phoi_models.geometry import Index

_log = structlog.get_logger()
_CPU = "CPUExecutionProvider"

Float32 = NDArray[np.float32]


class Provider(StrEnum):
    """Where networks run."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    CUDA = "cuda"
    OPENVINO = "openvino"
    CPU = "cpu"


# Fastest first.
_NAMES = {
    Provider.TENSORRT: "TensorrtExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
    Provider.CPU: _CPU,
}


@dataclass(frozen=True)
class SessionSettings:
    """How networks run.

    Attributes:
        provider: AUTO takes the fastest that works here.
        threads: intra-op threads of the CPU provider; 0 means one per core.
    """

    provider: Provider = Provider.AUTO
    threads: int = 0


class OnnxHeads:
    """A network on ONNX Runtime: the ``Heads`` of ``phoi_models.detector``. Thread-safe."""

    def __init__(self, onnx: bytes, settings: SessionSettings, outputs: OutputShapes) -> None:
        """Start a session.

        Args:
            onnx: the network.
            settings: how it runs.
            outputs: what it is to give for one patch; ``run`` gives them in this order.

        Raises:
            BadBundle: ONNX Runtime cannot read the network.
            PhoiError: the provider that was asked for does not work here.
        """
        self._session = _start(onnx, settings)
        self._outputs = outputs

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider in use."""
        name: str = self._session.get_providers()[0]
        return name

    def run(self, patches: Float32) -> tuple[Float32, ...]:
        """The outputs for a batch of patches.

        Args:
            patches: float32 [N, 1, ...], windowed to 0 to 1, in the voxels of the bundle.
        """
        return tuple(self._session.run(list(self._outputs), {"image": patches}))

    def warm_up(self, patch_shape: Index) -> None:
        """Run one empty patch, so that the first study does not wait, and check the outputs.

        Raises:
            BadBundle: the network does not fit its parameters.
        """
        try:
            outputs = self.run(np.zeros((1, 1, *patch_shape), np.float32))
        except Exception:  # ONNX Runtime's own exceptions share no public base
            raise BadBundle("the network does not run on its own patch shape") from None
        for (name, shape), output in zip(self._outputs.items(), outputs, strict=True):
            if output.shape != (1, *shape):
                raise BadBundle(f"the network's {name} has shape {output.shape}")


def _start(onnx: bytes, settings: SessionSettings) -> onnxruntime.InferenceSession:
    present = onnxruntime.get_available_providers()
    wanted = list(_NAMES) if settings.provider is Provider.AUTO else [settings.provider]
    for provider in wanted:
        name = _NAMES[provider]
        if name not in present:
            continue
        session = _session(onnx, name, settings)
        # A provider whose libraries are missing is dropped by ONNX Runtime without an error.
        if session.get_providers()[0] == name:
            _log.info("session started", provider=name, onnxruntime=onnxruntime.__version__)
            return session
        _log.warning("execution provider does not work here", provider=name)
    raise PhoiError(
        f"execution provider {settings.provider} does not work here; present: {', '.join(present)}"
    )


def _session(onnx: bytes, name: str, settings: SessionSettings) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            onnx, options, providers=list(dict.fromkeys([name, _CPU]))
        )
    except Exception:  # ONNX Runtime's own exceptions share no public base
        raise BadBundle("ONNX Runtime cannot read the network") from None
