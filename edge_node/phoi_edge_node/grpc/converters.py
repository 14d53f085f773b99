"""Between values and the messages of ``phoi.inference.v1``. Generated types stop here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import (
    Attenuation,
    Finding,
    Lobe,
    LungCoverage,
    NoduleMask,
    Region,
    Segment,
    Side,
    VolumeAnalysis,
)
from phoi_models.geometry import Geometry, Index, Triple
from phoi_models.identity import ModelIdentity
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb

from phoi_edge_node.ports import AnalysisRequest
from phoi_edge_node.result import Priority

_PRIORITIES = {
    Priority.ROUTINE: pb.PRIORITY_ROUTINE,
    Priority.URGENT: pb.PRIORITY_URGENT,
    Priority.STAT: pb.PRIORITY_STAT,
}
_REGIONS = {Region.LUNGS: pb.REGION_LUNGS, Region.WHOLE: pb.REGION_WHOLE}


def analyze_request(
    request: AnalysisRequest, digest: str, location: pb.VolumeHandle | pb.VolumeReference
) -> pb.AnalyzeRequest:
    """Write a request.

    Args:
        request: what to analyse.
        digest: of its volume, computed once for all tries.
        location: where the worker finds the voxels.
    """
    message = pb.AnalyzeRequest(
        request_id=request.request_id,
        model=model_reference(request.model),
        geometry=_geometry(request.volume.geometry),
        digest=digest,
        priority=_PRIORITIES[request.priority],
        region=_REGIONS[request.region],
    )
    if isinstance(location, pb.VolumeHandle):
        message.handle.CopyFrom(location)
    else:
        message.reference.CopyFrom(location)
    return message


def model_reference(model: ModelIdentity) -> pb.ModelReference:
    """Name a model."""
    return pb.ModelReference(
        name=model.name,
        version=model.version,
        bundle_hash=model.bundle_hash,
        operating_point=model.operating_point,
    )


def model_identity(message: pb.ModelReference) -> ModelIdentity:
    """Read a model's name."""
    return ModelIdentity(
        message.name, message.version, message.bundle_hash, message.operating_point or "default"
    )


def not_analysable(trailer: bytes) -> NotAnalysable:
    """Read why a volume cannot be analysed.

    Raises:
        ValueError: the trailer is malformed, or its reason unknown here.
    """
    try:
        message = pb.NotAnalysable.FromString(trailer)
    except Exception:  # protobuf's DecodeError differs between its implementations
        raise ValueError("the trailer of the refusal is malformed") from None
    return NotAnalysable(NotAnalysableReason(message.reason), message.detail)


def analysis(message: pb.Analysis, shape: Index) -> VolumeAnalysis:
    """Read a result.

    Args:
        message: what the worker sent.
        shape: of the analysed volume (z, y, x); every mask lies inside.

    Raises:
        ValueError: the result is malformed.
    """
    coverage = message.coverage
    return VolumeAnalysis(
        findings=tuple(_finding(finding, shape) for finding in message.findings),
        coverage=LungCoverage(
            coverage.apex,
            coverage.base,
            coverage.volume_ml,
            sides=coverage.sides or not coverage.HasField("sides"),
        ),
        timing_s=dict(message.timing_s),
        runtime=message.execution_provider,
    )


def _geometry(geometry: Geometry) -> pb.Geometry:
    return pb.Geometry(
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        origin_lps_mm=geometry.origin_lps_mm,
        axes_lps=[number for axis in geometry.axes_lps for number in axis],
    )


def _finding(message: pb.Finding, shape: Index) -> Finding:
    numbers = (
        message.probability,
        message.long_axis_mm,
        message.short_axis_mm,
        message.mean_diameter_mm,
        message.volume_mm3,
        message.mean_hu,
    )
    if not all(math.isfinite(number) for number in numbers) or not 0 <= message.probability <= 1:
        raise ValueError("a finding of the worker holds numbers that make no sense")
    has_solid_part = message.HasField("solid_diameter_mm")
    return Finding(
        center_lps_mm=_triple(message.center_lps_mm),
        probability=message.probability,
        long_axis_mm=message.long_axis_mm,
        short_axis_mm=message.short_axis_mm,
        mean_diameter_mm=message.mean_diameter_mm,
        volume_mm3=message.volume_mm3,
        attenuation=Attenuation(message.attenuation),
        solid_diameter_mm=message.solid_diameter_mm if has_solid_part else None,
        mean_hu=message.mean_hu,
        side=Side(message.side),
        lobe=Lobe(message.lobe) if message.lobe else None,
        long_axis_lps_mm=_segment(message.long_axis),
        short_axis_lps_mm=_segment(message.short_axis),
        mask=_mask(message.mask, shape),
    )


def _segment(message: pb.Segment) -> Segment:
    return (_triple(message.from_lps_mm), _triple(message.to_lps_mm))


def _mask(message: pb.NoduleMask, shape: Index) -> NoduleMask:
    offset, extent = _index(message.offset), _index(message.shape)
    if any(o + n > limit for o, n, limit in zip(offset, extent, shape, strict=True)):
        raise ValueError("the mask of a finding leaves the volume")
    count = math.prod(extent)
    bits = np.frombuffer(message.bits, np.uint8)
    if len(bits) != (count + 7) // 8:
        raise ValueError("the mask of a finding has another size than it says")
    voxels: NDArray[np.bool_] = np.unpackbits(bits, count=count).astype(bool).reshape(extent)
    if not voxels.any():
        raise ValueError("the mask of a finding is empty")
    return NoduleMask(offset, voxels)


def _triple(values: Sequence[float]) -> Triple:
    x, y, z = values
    if not all(math.isfinite(value) for value in (x, y, z)):
        raise ValueError("a position of the worker is not finite")
    return (x, y, z)


def _index(values: Sequence[int]) -> Index:
    z, y, x = values
    return (z, y, x)
