"""How long detection takes on LIDC-IDRI-0001, on each provider and in each form present."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from monai.data import MetaTensor
from monai.transforms import Compose, ScaleIntensityRange, Spacing
from numpy.typing import NDArray
from phoi_edge_node.sample import default_cache, fetch_sample
from phoi_models.bundle import (
    METADATA,
    MODEL,
    SECOND_LOOK,
    DetectorParameters,
    Form,
    form_file,
    heatmap_outputs,
    parse_parameters,
)
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import cut_patch, detect
from phoi_models.lungs import LungMask, segment_lungs
from phoi_models.reading.dicom_series import read_volume
from phoi_models.sessions import FormChoice, OnnxHeads, Provider, SessionSettings
from phoi_models.shipped import SHIPPED
from phoi_models.volume import Volume

from benchmarks.results import Result

BUNDLE = SHIPPED / "phoi-lung-nodule"
_PROVIDERS = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
}
_MATRIX = 2048


def measure(runs: int, bundle: Path = BUNDLE) -> tuple[Result, ...]:
    """Detection, resampling and lungs; all ways in turn, so that all meet the same weather."""
    volume, _ = read_volume(sorted(fetch_sample(default_cache(), print).rglob("*.dcm")))
    parameters = parse_parameters((bundle / METADATA).read_bytes())
    assert isinstance(parameters, DetectorParameters)
    grid = to_canonical(volume, parameters.spacing_mm)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    ways = {
        "resample.phoi": lambda: _resampled(volume, parameters),
        "resample.monai": lambda: _resampled_by_monai(volume, parameters),
        "lungs": lambda: segment_lungs(grid.hu, grid.spacing_mm),
        **_detections(bundle, parameters, grid, lungs),
    }
    a, b = np.random.default_rng(0).random((2, _MATRIX, _MATRIX), np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    for run in range(runs + 1):
        for name, way in ways.items():
            if run:  # the first one warms up
                seconds[name].append(_seconds(way))
            else:
                way()
        peaks.append(2 * _MATRIX**3 / _seconds(lambda: a @ b) / 1e9)
    return (*_results(seconds), Result.of("detection.matmul_fp32", peaks, "GFLOP/s"))


def _detections(
    bundle: Path, parameters: DetectorParameters, grid: CanonicalGrid, lungs: LungMask
) -> dict[str, Callable[[], object]]:
    """One detection for each provider and form that are there."""
    present = onnxruntime.get_available_providers()
    forms = [Form.FLOAT32] if parameters.int8 is None else list(Form)
    ways: dict[str, Callable[[], object]] = {}
    for provider, name in _PROVIDERS.items():
        for form in forms if name in present else []:
            settings = SessionSettings(provider, form=FormChoice(form))
            heads, second = _networks(bundle, parameters, settings, form)
            ways[f"detect.{provider}.{form}"] = lambda heads=heads, second=second: detect(  # type: ignore[misc]
                grid, lungs, parameters, heads, second_look=second
            )
    return ways


def _networks(
    bundle: Path, parameters: DetectorParameters, settings: SessionSettings, form: Form
) -> tuple[OnnxHeads, OnnxHeads | None]:
    def start(name: str, outputs: Mapping[str, tuple[int, ...]]) -> OnnxHeads:
        return OnnxHeads({form: (bundle / form_file(name, form)).read_bytes()}, settings, outputs)

    second = parameters.second_look
    return start(MODEL, parameters.outputs), None if second is None else start(
        SECOND_LOOK, heatmap_outputs(second.patch_shape, parameters.stride)
    )


def _resampled(volume: Volume, parameters: DetectorParameters) -> NDArray[np.float32]:
    """The whole chest as the network wants it."""
    grid = to_canonical(volume, parameters.spacing_mm)
    z, y, x = grid.hu.shape
    return cut_patch(grid.hu, (0, 0, 0), (z, y, x), parameters)


def _resampled_by_monai(volume: Volume, parameters: DetectorParameters) -> object:
    """The same with MONAI's transforms."""
    low, high = parameters.window_hu
    geometry = volume.geometry
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = geometry.matrix, geometry.origin_lps_mm
    image = MetaTensor(volume.hu[None].astype(np.float32), affine=affine)
    steps = Compose(
        [
            Spacing(pixdim=(parameters.spacing_mm,) * 3, mode="bilinear"),
            ScaleIntensityRange(low, high, 0.0, 1.0, clip=True),
        ]
    )
    return steps(image)


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def _results(seconds: Mapping[str, list[float]]) -> list[Result]:
    """Each beside what it is compared with."""
    plain = "detect.cpu.fp32"
    beside = {name: plain for name in seconds if name.startswith("detect.") and name != plain}
    beside["resample.phoi"] = "resample.monai"
    results = []
    for name, values in seconds.items():
        said = ""
        if name in beside:
            other = seconds[beside[name]]
            ratio = median(b / a for a, b in zip(values, other, strict=True))
            said = f"{beside[name]}: {median(other):.3f} s, {ratio:.2f} times as long"
        results.append(Result.of(f"detection.{name}", values, "s", said))
    return results
