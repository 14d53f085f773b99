"""From counts to what is shown and reported: KPIs and usage reports. Pure."""

from __future__ import annotations

from datetime import datetime

from phoi_edge_node.desk import Kpis, ModelKpis
from phoi_edge_node.store import Counts, ModelUse, Use
from phoi_edge_node.study import AnalysisState
from phoi_edge_node.usage import UsageReport


def make_kpis(counts: Counts, use: Use, now: datetime) -> Kpis:
    """How Phoi is used at this site."""
    return Kpis(
        since=counts.since or now,
        received=sum(counted.number for counted in counts.studies.values()),
        analysed=_number(counts, AnalysisState.SUCCEEDED),
        not_analysable=_number(counts, AnalysisState.NOT_ANALYSABLE),
        failed=_number(counts, AnalysisState.FAILED),
        withdrawn=_number(counts, AnalysisState.WITHDRAWN),
        signed=sum(model.reviewed for model in use.models),
        receive_to_result_s=use.receive_to_result_s,
        result_to_sign_s=use.result_to_review_s,
        models=tuple(_model_kpis(model) for model in use.models),
        last_signed_at=use.last_signed_at,
    )


def make_usage_reports(use: Use, site: str, now: datetime) -> tuple[UsageReport, ...]:
    """One cumulative report for each model version that this site ever used."""
    return tuple(
        UsageReport(
            site=site,
            model=model.model,
            counted_at=now,
            received=model.received,
            analysed=model.analysed,
            refused=model.refused,
            failed=model.failed,
            reviewed=model.reviewed,
            receive_to_result=model.receive_to_result,
            result_to_review=model.result_to_review,
            marks=model.marks,
            link_errors=use.failed_tries,
            withdrawn=model.withdrawn,
        )
        for model in use.models
    )


def _number(counts: Counts, state: AnalysisState) -> int:
    counted = counts.analyses.get(state)
    return counted.number if counted else 0


def _model_kpis(use: ModelUse) -> ModelKpis:
    return ModelKpis(
        model=use.model.name,
        version=use.model.version,
        studies=use.reviewed,
        accepted=use.marks.accepted,
        modified=use.marks.modified,
        rejected=use.marks.rejected,
        missed=use.marks.missed,
    )
