"""Between the messages of ``phoi.inference.v1`` and values. Generated types stop here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from phoi_models.findings import Finding, NoduleMask, Region, Segment, VolumeAnalysis
from phoi_models.geometry import Geometry, Triple
from phoi_models.identity import ModelIdentity
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb

from phoi_inference.engine import ModelState
from phoi_inference.errors import BadRequest
from phoi_inference.scheduler import Level
from phoi_inference.volumes import Handle, Reference

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LEVELS = {
    pb.PRIORITY_UNSPECIFIED: Level.ROUTINE,
    pb.PRIORITY_ROUTINE: Level.ROUTINE,
    pb.PRIORITY_URGENT: Level.URGENT,
    pb.PRIORITY_STAT: Level.STAT,
}
_REGIONS = {
    pb.REGION_UNSPECIFIED: Region.LUNGS,
    pb.REGION_LUNGS: Region.LUNGS,
    pb.REGION_WHOLE: Region.WHOLE,
}


@dataclass(frozen=True)
class Request:
    """A well-formed ``AnalyzeRequest``.

    Attributes:
        request_id: the same for every try of one analysis.
        model: pinned by its bundle hash.
        geometry: of the volume.
        digest: ``Volume.digest()``.
        location: where the voxels are.
        level: how urgent.
        region: what of the volume to look at.
    """

    request_id: str
    model: ModelIdentity
    geometry: Geometry
    digest: str
    location: Handle | Reference
    level: Level
    region: Region

    @property
    def input_key(self) -> tuple[ModelIdentity, str, Region]:
        """What the result depends on; where the voxels come from is no part of it."""
        return (self.model, self.digest, self.region)


def request(message: pb.AnalyzeRequest) -> Request:
    """Read a request.

    Raises:
        BadRequest: it is malformed.
    """
    if not _REQUEST_ID.fullmatch(message.request_id):
        raise BadRequest("request_id must match [A-Za-z0-9._-]{1,128}")
    if not _SHA256.fullmatch(message.digest):
        raise BadRequest("digest must be a SHA-256 in hex")
    if message.priority not in _LEVELS or message.region not in _REGIONS:
        raise BadRequest("priority or region is unknown here")
    return Request(
        request_id=message.request_id,
        model=model_identity(message.model),
        geometry=_geometry(message.geometry),
        digest=message.digest,
        location=_location(message),
        level=_LEVELS[message.priority],
        region=_REGIONS[message.region],
    )


def model_identity(message: pb.ModelReference) -> ModelIdentity:
    """Read which model is meant.

    Raises:
        BadRequest: no bundle hash pins it.
    """
    if not _SHA256.fullmatch(message.bundle_hash):
        raise BadRequest("model.bundle_hash must be a SHA-256 in hex")
    return ModelIdentity(
        message.name, message.version, message.bundle_hash, message.operating_point or "default"
    )


def model_reference(identity: ModelIdentity) -> pb.ModelReference:
    """Name a model."""
    return pb.ModelReference(
        name=identity.name,
        version=identity.version,
        bundle_hash=identity.bundle_hash,
        operating_point=identity.operating_point,
    )


def model(state: ModelState) -> pb.Model:
    """Describe a model of the store."""
    return pb.Model(
        model=model_reference(state.identity),
        operating_points=state.operating_points,
        loaded=bool(state.provider),
        execution_provider=state.provider,
    )


def analysis(result: VolumeAnalysis, identity: ModelIdentity) -> pb.Analysis:
    """Write a result."""
    return pb.Analysis(
        model=model_reference(identity),
        findings=[_finding(finding) for finding in result.findings],
        coverage=pb.LungCoverage(
            apex=result.coverage.apex,
            base=result.coverage.base,
            volume_ml=result.coverage.volume_ml,
            sides=result.coverage.sides,
        ),
        timing_s=dict(result.timing_s),
        execution_provider=result.runtime,
    )


def _geometry(message: pb.Geometry) -> Geometry:
    lengths = (
        len(message.shape),
        len(message.spacing_mm),
        len(message.origin_lps_mm),
        len(message.axes_lps),
    )
    if lengths != (3, 3, 3, 9):
        raise BadRequest("geometry needs 3 sizes, 3 spacings, 3 origin coordinates and 9 of axes")
    z, y, x = message.shape
    axes = message.axes_lps
    try:
        return Geometry(
            (z, y, x),
            _triple(message.spacing_mm),
            _triple(message.origin_lps_mm),
            (_triple(axes[0:3]), _triple(axes[3:6]), _triple(axes[6:9])),
        )
    except ValueError as error:
        raise BadRequest(f"geometry: {error}") from None


def _location(message: pb.AnalyzeRequest) -> Handle | Reference:
    match message.WhichOneof("volume"):
        case "handle":
            return Handle(message.handle.name)
        case "reference":
            return Reference(message.reference.address, message.reference.token)
        case _:
            raise BadRequest("the request names no volume")


def _finding(finding: Finding) -> pb.Finding:
    return pb.Finding(
        center_lps_mm=finding.center_lps_mm,
        probability=finding.probability,
        long_axis_mm=finding.long_axis_mm,
        short_axis_mm=finding.short_axis_mm,
        mean_diameter_mm=finding.mean_diameter_mm,
        volume_mm3=finding.volume_mm3,
        attenuation=finding.attenuation.value,
        solid_diameter_mm=finding.solid_diameter_mm,
        mean_hu=finding.mean_hu,
        side=finding.side.value,
        lobe=finding.lobe.value if finding.lobe else "",
        long_axis=_segment(finding.long_axis_lps_mm),
        short_axis=_segment(finding.short_axis_lps_mm),
        mask=_mask(finding.mask),
    )


def _segment(segment: Segment) -> pb.Segment:
    return pb.Segment(from_lps_mm=segment[0], to_lps_mm=segment[1])


def _mask(mask: NoduleMask) -> pb.NoduleMask:
    return pb.NoduleMask(
        offset=mask.offset, shape=mask.voxels.shape, bits=np.packbits(mask.voxels).tobytes()
    )


def _triple(values: Sequence[float]) -> Triple:
    x, y, z = values
    return (x, y, z)
