"""From counts to what is shown and reported: KPIs and usage reports. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from statistics import median

from phoi_models.identity import ModelIdentity

from phoi_edge_node.desk import Kpis, ModelKpis
from phoi_edge_node.result import Verdict
from phoi_edge_node.store import AnalysisRecord, Counts
from phoi_edge_node.study import AnalysisState
from phoi_edge_node.usage import Durations, Marks, UsageReport


def make_kpis(counts: Counts, now: datetime) -> Kpis:
    """How Phoi is used at this site."""
    records = counts.analyses
    states = Counter(record.state for record in records)
    to_result, to_sign = _result_times(records), _sign_times(records)
    return Kpis(
        since=counts.since or now,
        received=sum(counts.studies.values()),
        analysed=states[AnalysisState.SUCCEEDED],
        not_analysable=states[AnalysisState.NOT_ANALYSABLE],
        failed=states[AnalysisState.FAILED],
        signed=sum(record.signed_at is not None for record in records),
        receive_to_result_s=median(to_result) if to_result else None,
        result_to_sign_s=median(to_sign) if to_sign else None,
        models=tuple(_model_kpis(model, group) for model, group in _by_model(records)),
    )


def make_usage_reports(counts: Counts, site: str, now: datetime) -> tuple[UsageReport, ...]:
    """One cumulative report for each model version that this site ever used."""
    return tuple(
        _usage(counts, site, model, group, now) for model, group in _by_model(counts.analyses)
    )


def _usage(
    counts: Counts, site: str, model: ModelIdentity, group: list[AnalysisRecord], now: datetime
) -> UsageReport:
    states = Counter(record.state for record in group)
    verdicts = _verdicts(group)
    return UsageReport(
        site=site,
        model=model,
        counted_at=now,
        received=len(group),
        analysed=sum(r.finished_at is not None for r in group)
        - states[AnalysisState.NOT_ANALYSABLE]
        - states[AnalysisState.FAILED],
        refused=states[AnalysisState.NOT_ANALYSABLE],
        failed=states[AnalysisState.FAILED],
        reviewed=sum(record.signed_at is not None for record in group),
        receive_to_result=Durations.of(_result_times(group)),
        result_to_review=Durations.of(_sign_times(group)),
        marks=Marks(
            accepted=verdicts[Verdict.ACCEPTED],
            modified=verdicts[Verdict.MODIFIED],
            rejected=verdicts[Verdict.REJECTED],
            missed=verdicts[Verdict.MISSED],
        ),
        link_errors={name: n for name, n in counts.failed_tries.items() if n},
    )


def _model_kpis(model: ModelIdentity, group: list[AnalysisRecord]) -> ModelKpis:
    verdicts = _verdicts(group)
    return ModelKpis(
        model=model.name,
        version=model.version,
        studies=sum(record.signed_at is not None for record in group),
        accepted=verdicts[Verdict.ACCEPTED],
        modified=verdicts[Verdict.MODIFIED],
        rejected=verdicts[Verdict.REJECTED],
        missed=verdicts[Verdict.MISSED],
    )


def _by_model(
    records: Iterable[AnalysisRecord],
) -> list[tuple[ModelIdentity, list[AnalysisRecord]]]:
    groups: dict[ModelIdentity, list[AnalysisRecord]] = {}
    for record in records:
        if record.model is not None:
            groups.setdefault(record.model, []).append(record)
    return list(groups.items())


def _verdicts(records: Iterable[AnalysisRecord]) -> Counter[Verdict]:
    return Counter(v for record in records if record.signed_at for v in record.verdicts)


def _result_times(records: Iterable[AnalysisRecord]) -> list[float]:
    return [
        (record.finished_at - record.last_received_at).total_seconds()
        for record in records
        if record.finished_at is not None and record.finished_at >= record.last_received_at
    ]


def _sign_times(records: Iterable[AnalysisRecord]) -> list[float]:
    return [
        (record.signed_at - record.finished_at).total_seconds()
        for record in records
        if record.signed_at is not None and record.finished_at is not None
    ]
