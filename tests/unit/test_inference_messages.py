"""What the edge writes the worker reads, and what the worker writes the edge reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from phoi_edge_node.grpc import converters as edge
from phoi_edge_node.ports import AnalysisRequest
from phoi_edge_node.result import Priority
from phoi_inference import converters as worker
from phoi_inference.errors import BadRequest
from phoi_inference.scheduler import Level
from phoi_inference.volumes import Handle, Reference
from phoi_models.errors import NotAnalysable, NotAnalysableReason
from phoi_models.findings import (
    Attenuation,
    Finding,
    Lobe,
    LungCoverage,
    NoduleMask,
    Region,
    Side,
    VolumeAnalysis,
)
from phoi_models.geometry import Geometry, Triple
from phoi_models.identity import ModelIdentity
from phoi_models.volume import Volume
from phoi_protos.phoi.inference.v1 import inference_pb2 as pb

MODEL = ModelIdentity("phoi-lung-nodule", "1.0.0", "ab" * 32, "sensitive")
SHAPE = (6, 7, 8)
TILT = 0.2
GEOMETRY = Geometry(
    SHAPE,
    (2.5, 0.7, 0.8),
    (-10.5, 20.25, -300.125),
    ((0.0, float(np.sin(TILT)), float(np.cos(TILT))), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
)
VOLUME = Volume(np.zeros(SHAPE, np.int16), GEOMETRY)
REQUEST = AnalysisRequest("1.2.3-a_b", MODEL, VOLUME)
numbers = st.floats(-1e4, 1e4)
triples = st.tuples(numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("priority", "level"),
    [
        (Priority.ROUTINE, Level.ROUTINE),
        (Priority.URGENT, Level.URGENT),
        (Priority.STAT, Level.STAT),
    ],
)
@pytest.mark.parametrize("region", list(Region))
@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (pb.VolumeHandle(name="a.hu"), Handle("a.hu")),
        (pb.VolumeReference(address="edge:1", token="t"), Reference("edge:1", "t")),
    ],
)
def test_a_request_arrives_as_it_was_meant(
    priority: Priority,
    level: Level,
    region: Region,
    sent: pb.VolumeHandle | pb.VolumeReference,
    received: Handle | Reference,
) -> None:
    asked = replace(REQUEST, priority=priority, region=region)

    message = edge.analyze_request(asked, VOLUME.digest(), sent)
    request = worker.request(pb.AnalyzeRequest.FromString(message.SerializeToString()))

    assert request == worker.Request(
        "1.2.3-a_b", MODEL, GEOMETRY, VOLUME.digest(), received, level, region
    )
    assert Volume(VOLUME.hu, request.geometry).digest() == VOLUME.digest()


def message() -> pb.AnalyzeRequest:
    return edge.analyze_request(REQUEST, VOLUME.digest(), pb.VolumeHandle(name="a.hu"))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: setattr(m, "request_id", ""),
        lambda m: setattr(m, "request_id", "a/b"),
        lambda m: setattr(m, "request_id", "a" * 129),
        lambda m: setattr(m, "digest", "abc"),
        lambda m: setattr(m.model, "bundle_hash", ""),
        lambda m: setattr(m, "priority", 9),
        lambda m: setattr(m, "region", 9),
        lambda m: m.ClearField("handle"),
        lambda m: m.ClearField("geometry"),
        lambda m: m.geometry.shape.append(1),
        lambda m: m.geometry.shape.__setitem__(0, 0),
        lambda m: m.geometry.spacing_mm.__setitem__(0, 0.0),
        lambda m: m.geometry.spacing_mm.__setitem__(0, float("nan")),
        lambda m: m.geometry.axes_lps.__setitem__(slice(0, 3), [0.0, 1.0, 0.0]),
    ],
)
def test_a_malformed_request_is_refused(break_it: Callable[[pb.AnalyzeRequest], None]) -> None:
    broken = message()
    break_it(broken)

    with pytest.raises(BadRequest):
        worker.request(broken)


@st.composite
def findings(draw: st.DrawFn) -> Finding:
    extent = draw(st.tuples(*(st.integers(1, n) for n in SHAPE)))
    offset = draw(st.tuples(*(st.integers(0, n - e) for n, e in zip(SHAPE, extent, strict=True))))
    voxels = draw(hnp.arrays(np.bool_, extent))
    voxels.flat[0] = True

    def segment() -> tuple[Triple, Triple]:
        return (draw(triples), draw(triples))

    return Finding(
        center_lps_mm=draw(triples),
        probability=draw(st.floats(0, 1)),
        long_axis_mm=draw(numbers),
        short_axis_mm=draw(numbers),
        mean_diameter_mm=draw(numbers),
        volume_mm3=draw(numbers),
        attenuation=draw(st.sampled_from(Attenuation)),
        solid_diameter_mm=draw(st.none() | numbers),
        mean_hu=draw(numbers),
        side=draw(st.sampled_from(Side)),
        lobe=draw(st.none() | st.sampled_from(Lobe)),
        long_axis_lps_mm=segment(),
        short_axis_lps_mm=segment(),
        mask=NoduleMask(offset, voxels),
    )


@given(st.lists(findings(), max_size=3), st.booleans(), st.booleans(), st.booleans())
def test_a_result_arrives_as_it_was_found(
    found: list[Finding],
    apex: bool,  # noqa: FBT001
    base: bool,  # noqa: FBT001
    sides: bool,  # noqa: FBT001
) -> None:
    coverage, timing_s = LungCoverage(apex, base, 4000.5, sides), {"detect": 1.25}
    sent = VolumeAnalysis(tuple(found), coverage, timing_s, "CPUExecutionProvider int8")

    written = worker.analysis(sent, MODEL).SerializeToString()
    got = edge.analysis(pb.Analysis.FromString(written), SHAPE)

    assert (got.coverage, got.timing_s) == (sent.coverage, sent.timing_s)
    assert got.runtime == "CPUExecutionProvider int8"
    for mine, theirs in zip(got.findings, sent.findings, strict=True):
        np.testing.assert_array_equal(mine.mask.voxels, theirs.mask.voxels)
        assert mine.mask.offset == theirs.mask.offset
        assert replace(mine, mask=theirs.mask).__dict__ == theirs.__dict__


def test_a_worker_that_does_not_look_at_the_sides_is_understood() -> None:
    sent = worker.analysis(VolumeAnalysis((), LungCoverage(True, True, 4000.0)), MODEL)
    sent.coverage.ClearField("sides")
    assert edge.analysis(sent, SHAPE).coverage.complete


def result() -> pb.Analysis:
    voxels = np.ones((2, 2, 2), bool)
    finding = Finding(
        center_lps_mm=(1.0, 2.0, 3.0),
        probability=0.5,
        long_axis_mm=6.0,
        short_axis_mm=5.0,
        mean_diameter_mm=5.5,
        volume_mm3=80.0,
        attenuation=Attenuation.SOLID,
        solid_diameter_mm=None,
        mean_hu=20.0,
        side=Side.LEFT,
        lobe=None,
        long_axis_lps_mm=((0.0, 0.0, 0.0), (6.0, 0.0, 0.0)),
        short_axis_lps_mm=((0.0, 0.0, 0.0), (0.0, 5.0, 0.0)),
        mask=NoduleMask((1, 1, 1), voxels),
    )
    return worker.analysis(VolumeAnalysis((finding,), LungCoverage(True, True, 4000.0)), MODEL)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda f: setattr(f, "side", "middle"),
        lambda f: setattr(f, "side", ""),
        lambda f: setattr(f, "attenuation", ""),
        lambda f: setattr(f, "lobe", "sixth"),
        lambda f: setattr(f, "probability", float("nan")),
        lambda f: setattr(f, "probability", 1.5),
        lambda f: f.center_lps_mm.append(0.0),
        lambda f: f.center_lps_mm.__setitem__(0, float("inf")),
        lambda f: f.ClearField("long_axis"),
        lambda f: f.ClearField("mask"),
        lambda f: setattr(f.mask, "bits", b""),
        lambda f: setattr(f.mask, "bits", b"\0"),
        lambda f: f.mask.offset.__setitem__(0, 5),
        lambda f: f.mask.shape.__setitem__(0, 0),
        lambda f: f.mask.shape.__setitem__(0, 2**31),
    ],
)
def test_a_result_that_makes_no_sense_is_refused(break_it: Callable[[pb.Finding], None]) -> None:
    broken = result()
    edge.analysis(broken, SHAPE)
    break_it(broken.findings[0])

    with pytest.raises(ValueError):  # noqa: PT011  whatever is wrong, in whatever words
        edge.analysis(broken, SHAPE)


@pytest.mark.parametrize("reason", list(NotAnalysableReason))
def test_a_refusal_arrives_by_reason(reason: NotAnalysableReason) -> None:
    trailer = pb.NotAnalysable(reason=reason.value, detail="5 of 120").SerializeToString()

    refusal = edge.not_analysable(trailer)

    assert isinstance(refusal, NotAnalysable)
    assert (refusal.reason, refusal.detail) == (reason, "5 of 120")


@pytest.mark.parametrize(
    "trailer", [b"", b"\xff\xff", pb.NotAnalysable(reason="x").SerializeToString()]
)
def test_a_refusal_without_a_known_reason_is_none(trailer: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        edge.not_analysable(trailer)
