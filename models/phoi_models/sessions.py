"""ONNX Runtime: the best execution provider present, the fastest form, a session per network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from phoi_models.bundle import Form, OnnxForms, OutputShapes
from phoi_models.device_buffers import BoundSession
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


class FormChoice(StrEnum):
    """In which form networks run."""

    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


# Fastest first.
_NAMES = {
    Provider.TENSORRT: "TensorrtExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
    Provider.CPU: _CPU,
}
GPU_MEMORY = {_NAMES[Provider.TENSORRT]: "cuda", _NAMES[Provider.CUDA]: "cuda"}
"""Where the patches lie that a GPU runs."""


@dataclass(frozen=True)
class SessionSettings:
    """How networks run.

    Attributes:
        provider: AUTO takes the fastest that works here.
        threads: of the CPU and OpenVINO providers; 0 means one per core.
        form: AUTO takes 8-bit integers where the bundle has them and they are known to be faster:
            on a CPU with instructions for them.
        batch_size: patches that a network is given at once; 0 means one on a CPU, and on a GPU
            as many as ``phoi_models.detector_sessions.automatic_batch`` says.
    """

    provider: Provider = Provider.AUTO
    threads: int = 0
    form: FormChoice = FormChoice.AUTO
    batch_size: int = 0


class OnnxHeads:
    """A network on ONNX Runtime: the ``Heads`` of ``phoi_models.detector``. Thread-safe."""

    def __init__(self, onnx: OnnxForms, settings: SessionSettings, outputs: OutputShapes) -> None:
        """Start a session.

        Args:
            onnx: the network, in the forms it has.
            settings: how it runs.
            outputs: what it is to give for one patch; ``run`` gives them in this order.

        Raises:
            BadBundle: ONNX Runtime cannot read the network, or it lacks the form asked for.
            PhoiError: the provider that was asked for does not work here.
        """
        self._session, self.form = _start(onnx, settings)
        self._outputs = outputs
        memory = GPU_MEMORY.get(self.provider)
        self._bound = BoundSession(self._session, outputs, memory) if memory else None

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider in use."""
        name: str = self._session.get_providers()[0]
        return name

    @property
    def on_gpu(self) -> bool:
        """It runs batches of one shape: a GPU tunes or compiles each new shape anew."""
        return self._bound is not None

    def run(self, patches: Float32) -> tuple[Float32, ...]:
        """The outputs for a batch of patches.

        Args:
            patches: float32 [N, 1, ...], windowed to 0 to 1, in the voxels of the bundle.
        """
        if self._bound is not None:
            return self._bound.run(patches)
        return tuple(self._session.run(list(self._outputs), {"image": patches}))

    def warm_up(self, patch_shape: Index, batch_size: int = 1) -> None:
        """Run empty patches, so that the first study does not wait, and check the outputs.

        Raises:
            BadBundle: the network does not fit its parameters.
        """
        try:
            outputs = self.run(np.zeros((batch_size, 1, *patch_shape), np.float32))
        except Exception:  # ONNX Runtime's own exceptions share no public base
            raise BadBundle("the network does not run on its own patch shape") from None
        for (name, shape), output in zip(self._outputs.items(), outputs, strict=True):
            if output.shape != (batch_size, *shape):
                raise BadBundle(f"the network's {name} has shape {output.shape}")

    def check_shape(self, patch_shape: Index) -> None:
        """Run one empty patch of another shape.

        Raises:
            BadBundle: the network takes its own shape only.
        """
        try:
            self.run(np.zeros((1, 1, *patch_shape), np.float32))
        except Exception:  # ONNX Runtime's own exceptions share no public base
            raise BadBundle("the network does not take the patch shapes that it promises") from None


def _start(onnx: OnnxForms, settings: SessionSettings) -> tuple[onnxruntime.InferenceSession, Form]:
    present = onnxruntime.get_available_providers()
    wanted = list(_NAMES) if settings.provider is Provider.AUTO else [settings.provider]
    for provider in wanted:
        name = _NAMES[provider]
        if name not in present:
            continue
        form = chosen_form(settings.form, onnx, name, fast_int8=has_int8_instructions())
        try:
            session = _session(onnx[form], name, settings)
        except BadBundle:
            if settings.provider is not Provider.AUTO or provider is Provider.CPU:
                raise
            _log.warning("execution provider cannot take the network", provider=name, form=form)
            continue
        # A provider whose libraries are missing is dropped by ONNX Runtime without an error.
        if session.get_providers()[0] == name:
            version = onnxruntime.__version__
            _log.info("session started", provider=name, form=form, onnxruntime=version)
            return session, form
        _log.warning("execution provider does not work here", provider=name)
    raise PhoiError(
        f"execution provider {settings.provider} does not work here; present: {', '.join(present)}"
    )


def chosen_form(choice: FormChoice, onnx: OnnxForms, provider: str, *, fast_int8: bool) -> Form:
    """The form in which a network runs.

    Args:
        choice: what was asked for.
        onnx: the forms there are.
        provider: ONNX Runtime's name of the execution provider.
        fast_int8: the CPU multiplies and adds 8-bit integers in one instruction.

    Raises:
        BadBundle: the network lacks the form that was asked for.
    """
    if choice is FormChoice.AUTO:
        wanted = Form.INT8 in onnx and provider not in GPU_MEMORY and fast_int8
        return Form.INT8 if wanted else Form.FLOAT32
    form = Form(choice)
    if form not in onnx:
        raise BadBundle(
            f"the bundle has no networks in {form}: let the worker choose (--form auto)"
        )
    return form


@cache
def has_int8_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for dot products of 8-bit integers (x86: VNNI).

    Without them 8-bit networks are hardly faster, and on x86 sums of products may overflow 16 bits,
    which changes findings. Where nothing is known the answer is no.
    """
    try:
        words = cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni", "asimddp"}.isdisjoint(words)


def _session(onnx: bytes, name: str, settings: SessionSettings) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3
    own: dict[str, str] = {}
    if name == _NAMES[Provider.OPENVINO] and settings.threads:
        own["num_of_threads"] = str(settings.threads)  # it has threads of its own
    fallback = [] if name == _CPU else [_CPU]
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=[(name, own), *fallback])
    except Exception:  # ONNX Runtime's own exceptions share no public base
        raise BadBundle("ONNX Runtime cannot read the network") from None
