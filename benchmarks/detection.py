"""How long detection takes on LIDC-IDRI-0001, on each provider and in each form present.

Detection searches the lungs of a volume that lies resampled in memory. Studies a minute are counted
from the volume to measured findings, one study after another, as one worker does it. Both are fed
as a worker feeds them there: patches fitted to the lungs on a CPU, batches of one shape on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
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
    parse_parameters,
)
from phoi_models.canonical import CanonicalGrid, to_canonical
from phoi_models.detector import cut_patch, detect
from phoi_models.detector_sessions import DetectorSessions
from phoi_models.lungs import LungMask, segment_lungs
from phoi_models.pipeline import analyze_volume
from phoi_models.reading.dicom_series import read_volume
from phoi_models.sessions import FormChoice, Provider, SessionSettings
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
_DETECT, _ANALYSE = "detect", "analyse"
_PLAIN = f"{_DETECT}.{Provider.CPU}.{Form.FLOAT32}"
_PLAIN_TARGET_S, _FASTEST_TARGET_S = 10.0, 4.0
"""At most, on two cores: float32 of ONNX Runtime, and the fastest form."""


def measure(runs: int, bundle: Path = BUNDLE) -> tuple[Result, ...]:
    """Detection, resampling and lungs; all ways in turn, so that all meet the same weather."""
    volume, _ = read_volume(sorted(fetch_sample(default_cache(), print).rglob("*.dcm")))
    parameters = parse_parameters((bundle / METADATA).read_bytes())
    assert isinstance(parameters, DetectorParameters)
    grid = to_canonical(volume, parameters.spacing_mm)
    lungs = segment_lungs(grid.hu, grid.spacing_mm)
    ways: dict[str, Callable[[], object]] = {
        "resample.phoi": lambda: _resampled(volume, parameters),
        "resample.monai": lambda: _resampled_by_monai(volume, parameters),
        "lungs": lambda: segment_lungs(grid.hu, grid.spacing_mm),
    }
    for where, networks in _networks(bundle, parameters).items():
        ways[f"{_DETECT}.{where}"] = partial(_detected, grid, lungs, networks)
        ways[f"{_ANALYSE}.{where}"] = partial(_analysed, volume, networks)
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


def circumstances(bundle: Path = BUNDLE) -> dict[str, str]:
    """What the figures depend on beside the machine."""
    parameters = parse_parameters((bundle / METADATA).read_bytes())
    return {
        "model": f"{parameters.name} {parameters.version}",
        "onnxruntime": onnxruntime.__version__,
    }


def _networks(bundle: Path, parameters: DetectorParameters) -> dict[str, DetectorSessions]:
    """The networks on each provider and in each form that are there."""
    present = onnxruntime.get_available_providers()
    forms = [Form.FLOAT32] if parameters.int8 is None else list(Form)
    started = {}
    for provider, name in _PROVIDERS.items():
        for form in forms if name in present else []:
            settings = SessionSettings(provider, form=FormChoice(form))
            onnx = {form: (bundle / form_file(MODEL, form)).read_bytes()}
            second = None
            if parameters.second_look is not None:
                second = {form: (bundle / form_file(SECOND_LOOK, form)).read_bytes()}
            networks = DetectorSessions.start(parameters, onnx, second, settings)
            started[f"{provider}.{form}"] = networks
    return started


def _detected(grid: CanonicalGrid, lungs: LungMask, networks: DetectorSessions) -> object:
    return detect(
        grid,
        lungs,
        networks.parameters,
        networks.heads,
        second_look=networks.second_look,
        batch_size=networks.batch_size,
    )


def _analysed(volume: Volume, networks: DetectorSessions) -> object:
    return analyze_volume(
        volume,
        networks.parameters,
        networks.heads,
        second_look=networks.second_look,
        batch_size=networks.batch_size,
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
    results = []
    for name, values in seconds.items():
        way, _, where = name.partition(".")
        if way == _ANALYSE:
            rates = [60 / value for value in values]
            results.append(Result.of(f"detection.studies.{where}", rates, "studies/min"))
        else:
            results.append(Result.of(f"detection.{name}", values, "s", _beside(name, seconds)))
    return [*results, _fastest(seconds)]


def _beside(name: str, seconds: Mapping[str, list[float]]) -> str:
    if name == _PLAIN:
        return f"target: {_PLAIN_TARGET_S:g} s"
    other = "resample.monai" if name == "resample.phoi" else _PLAIN
    if name != "resample.phoi" and not name.startswith(f"{_DETECT}."):
        return ""
    ratio = median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))
    return f"{other}: {median(seconds[other]):.3f} s, {ratio:.2f} times as long"


def _fastest(seconds: Mapping[str, list[float]]) -> Result:
    """The form and provider that a worker with them all would want."""
    ways = [name for name in seconds if name.startswith(f"{_DETECT}.")]
    best = min(ways, key=lambda name: median(seconds[name]))
    said = f"{best.removeprefix(f'{_DETECT}.')}; target: {_FASTEST_TARGET_S:g} s"
    return Result.of("detection.detect.fastest", seconds[best], "s", said)
