"""The JSON of ``phoi analyze``; docs/reference/analyze-json.md describes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phoi_models.geometry import Triple
from phoi_models.identity import ModelIdentity

from phoi_edge_node.result import Nodule, Outcome, TriageResult


def analysis_json(result: TriageResult) -> Mapping[str, Any]:
    """A result as plain JSON values.

    Without an analysis there are no ``findings`` at all, so that nothing reads like "none found".
    """
    document: dict[str, Any] = {
        "study_instance_uid": result.identity.study_instance_uid or None,
        "series_instance_uid": result.identity.series_instance_uid or None,
        "series_reason": result.series_reason,
        "model": _model(result.identity.model),
        "outcome": result.outcome.value,
        "completeness": result.completeness.value if result.completeness else None,
    }
    if result.outcome is Outcome.NOT_ANALYSABLE and result.reason is not None:
        document["not_analysable"] = {"reason": result.reason.value, "detail": result.detail}
    else:
        document["detail"] = result.detail
        document["findings"] = [_finding(nodule) for nodule in result.nodules]
        document["suggested_priority"] = result.suggested_priority.value
    document["runtime"] = result.runtime
    document["timing_s"] = {step: round(s, 3) for step, s in result.timing_s.items()}
    return document


def _model(model: ModelIdentity) -> Mapping[str, str]:
    return {
        "name": model.name,
        "version": model.version,
        "device_uid": model.device_uid,
        "operating_point": model.operating_point,
    }


def _finding(nodule: Nodule) -> Mapping[str, Any]:
    finding = nodule.finding
    return {
        "number": nodule.number,
        "center_lps_mm": _millimetres(finding.center_lps_mm),
        "long_axis_mm": round(finding.long_axis_mm, 2),
        "short_axis_mm": round(finding.short_axis_mm, 2),
        "mean_diameter_mm": finding.mean_diameter_mm,
        "volume_mm3": round(finding.volume_mm3, 1),
        "attenuation": finding.attenuation.value,
        "solid_diameter_mm": finding.solid_diameter_mm,
        "mean_hu": round(finding.mean_hu, 1),
        "probability": round(finding.probability, 4),
        "side": finding.side.value,
        "lobe": finding.lobe.value if finding.lobe else None,
        "size_class": {
            "lung_rads": nodule.size_class.lung_rads,
            "fleischner": nodule.size_class.fleischner,
            "basis": nodule.size_class.basis.value,
        },
    }


def _millimetres(point: Triple) -> list[float]:
    return [round(mm, 2) for mm in point]
