"""Comprehensive 3D SR, TID 1500 Measurement Report (PS3.16), as IHE AI Results asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    LanguageOfContentItemAndDescendants,
    QualitativeEvaluation,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from phoi_edge_node import terms
from phoi_edge_node.dicom import codes
from phoi_edge_node.dicom.headers import text
from phoi_edge_node.dicom.measurement_groups import Evidence, measurement_groups
from phoi_edge_node.dicom.observers import display_name, observers
from phoi_edge_node.dicom.requests import referenced_requests
from phoi_edge_node.dicom.stamp import NewInstance, Stamp
from phoi_edge_node.dicom.uids import series_of
from phoi_edge_node.ports import DocumentKind, ReportedCase, ReportStatus
from phoi_edge_node.reported import impression, outcome_term, stated_priority
from phoi_edge_node.result import SignedReview


def make_structured_report(
    case: ReportedCase, evidence: Evidence, instance: NewInstance, stamp: Stamp
) -> Dataset:
    """The report of a case: preliminary and unverified, or verified once it was signed.

    It is made for every outcome: an archive must be able to tell "nothing found" from "not run".
    """
    dataset = Comprehensive3DSR(
        evidence=evidence.instances,
        content=_content(case, evidence, stamp),
        series_instance_uid=instance.series_instance_uid,
        series_number=instance.series_number,
        sop_instance_uid=instance.sop_instance_uid,
        instance_number=1,
        is_complete=True,
        is_final=case.status is not ReportStatus.PRELIMINARY,
    )
    if case.review:
        _verify(dataset, case.review, stamp)
    _refer_to_predecessors(dataset, case)
    if requests := referenced_requests(case, stamp.header):
        dataset.ReferencedRequestSequence = requests
    dataset.CodingSchemeIdentificationSequence = [_own_coding_scheme()]
    stamp.put_on(dataset, instance)
    return dataset


def _content(case: ReportedCase, evidence: Evidence, stamp: Stamp) -> Dataset:
    model = stamp.model
    root = ContainerContentItem(name=codes.IMAGING_MEASUREMENT_REPORT, template_id="1500")
    root.ContentSequence = ContentSequence()
    language = LanguageOfContentItemAndDescendants(CodedConcept.from_code(codes.ENGLISH))
    root.ContentSequence.extend(language)
    root.ContentSequence.extend(observers(model, case.review))
    root.ContentSequence.append(
        CodeContentItem(
            codes.PROCEDURE_REPORTED,
            codes.CT_UNSPECIFIED_BODY_REGION,
            relationship_type="HAS CONCEPT MOD",
        )
    )
    groups = list(measurement_groups(case, evidence, model))
    if groups:
        root.ContentSequence.append(_container(codes.IMAGING_MEASUREMENTS, groups))
    root.ContentSequence.append(
        _container(codes.QUALITATIVE_EVALUATIONS, _conclusions(case, stamp))
    )
    return root


def _container(name: Code, content: Iterable[ContentSequence]) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type="CONTAINS")
    container.ContentSequence = ContentSequence()
    for items in content:
        container.ContentSequence.extend(items)
    return container


def _conclusions(case: ReportedCase, stamp: Stamp) -> Iterable[ContentSequence]:
    """What holds for the whole study, coded and in words."""
    outcome = codes.coded(outcome_term(case))
    yield QualitativeEvaluation(codes.coded(terms.OUTCOME_OF_TRIAGE), outcome)
    if case.status is not ReportStatus.WITHDRAWN:
        yield from _circumstances(case)
    lines = impression(case)
    yield _text(codes.IMPRESSION, [en for en, _ in lines])
    yield _text(codes.IMPRESSION, [vi for _, vi in lines], codes.VIETNAMESE)
    if case.status is not ReportStatus.WITHDRAWN:
        yield from _comments(case, stamp)


def _circumstances(case: ReportedCase) -> Iterable[ContentSequence]:
    """What the outcome rests on, and what is suggested for it."""
    if case.result.reason:
        reason = codes.not_analysable_reason(case.result.reason)
        yield QualitativeEvaluation(codes.REASON, reason)
    if case.result.completeness:
        completeness = codes.coded(terms.COMPLETENESSES[case.result.completeness])
        yield QualitativeEvaluation(codes.coded(terms.COMPLETENESS), completeness)
    if (stated := stated_priority(case)) is not None:
        priority = codes.coded(terms.PRIORITIES[stated])
        yield QualitativeEvaluation(codes.coded(terms.SUGGESTED_PRIORITY), priority)


def _comments(case: ReportedCase, stamp: Stamp) -> Iterable[ContentSequence]:
    for en, vi in stamp.remarks:
        yield _text(codes.COMMENT, [en])
        yield _text(codes.COMMENT, [vi], codes.VIETNAMESE)
    if case.result.series_reason:
        yield _text(codes.COMMENT, [f"Series analysed: {case.result.series_reason}"])


def _text(name: Code, lines: Sequence[str], language: Code | None = None) -> ContentSequence:
    value = "\r\n".join(terms.plain_text(line) for line in lines)
    item = TextContentItem(name, value, relationship_type="CONTAINS")
    if language:
        modifier = CodeContentItem(codes.LANGUAGE, language, relationship_type="HAS CONCEPT MOD")
        item.ContentSequence = ContentSequence([modifier])
    return ContentSequence([item])


def _verify(dataset: Dataset, review: SignedReview, stamp: Stamp) -> None:
    """SR Document General module (PS3.3 C.17.2): who stands for the content, and since when."""
    observer = Dataset()
    observer.VerifyingObserverName = display_name(review.reviewer_name)
    observer.VerifyingOrganization = text(stamp.header, "InstitutionName") or "not stated"
    observer.VerificationDateTime = stamp.at.strftime("%Y%m%d%H%M%S%z")
    observer.VerifyingObserverIdentificationCodeSequence = []
    dataset.VerificationFlag = "VERIFIED"
    dataset.VerifyingObserverSequence = [observer]


def _refer_to_predecessors(dataset: Dataset, case: ReportedCase) -> None:
    series = []
    for uid in (case.predecessors or {}).get(DocumentKind.STRUCTURED_REPORT, ()):
        instance = Dataset()
        instance.ReferencedSOPClassUID = Comprehensive3DSRStorage
        instance.ReferencedSOPInstanceUID = uid
        item = Dataset()
        item.SeriesInstanceUID = series_of(uid)
        item.ReferencedSOPSequence = [instance]
        series.append(item)
    if series:
        study = Dataset()
        study.StudyInstanceUID = case.study.study_instance_uid
        study.ReferencedSeriesSequence = series
        dataset.PredecessorDocumentsSequence = [study]


def _own_coding_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = terms.Scheme.PHOI.designator
    scheme.CodingSchemeUID = terms.PHOI_OID
    scheme.CodingSchemeName = "Phoi codes"
    scheme.CodingSchemeResponsibleOrganization = terms.MANUFACTURER
    return scheme
