"""The resources of one report: what stands in each, and how a server is to take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from phoi_models.findings import Finding

from phoi_edge_node.fhir.elements import (
    DEVICES,
    DOCUMENTS,
    OUTCOMES_OF_REPORTS,
    REPORTS,
    SITES,
    TASKS,
    Json,
    coded,
    concept,
    dicom_identifier,
    full_url,
    identifier,
    instant,
    matching,
    phoi_system,
    quantity,
    reference,
    string,
    tagged,
)
from phoi_edge_node.fhir.vn_core import national_identifier, national_identifiers
from phoi_edge_node.orders import key_of
from phoi_edge_node.person_name import person_name
from phoi_edge_node.ports import ReportedCase, ReportStatus
from phoi_edge_node.reported import (
    ReportedNodule,
    accession_number,
    filler_number,
    impression,
    outcome_term,
    reported_at,
    reported_nodules,
    reported_outcome,
    retracted_nodules,
    stated_priority,
    told_priority,
)
from phoi_edge_node.result import Outcome, SignedReview
from phoi_edge_node.terms import (
    ATTENUATION_CLASS,
    ATTENUATIONS,
    CENTER,
    CERTAINTY,
    COMPLETENESS,
    COMPLETENESSES,
    FLEISCHNER,
    LATERALITY,
    LONG_AXIS,
    LUNG_RADS,
    MANUFACTURER,
    MEAN_DIAMETER,
    NODULE_COUNT,
    NODULE_OF_LUNG,
    OUTCOME_OF_TRIAGE,
    PRIORITIES,
    REVIEW_OF_TRIAGE,
    REVIEW_VERDICT,
    SHORT_AXIS,
    SIDES,
    SIZE_CLASS_BASIS,
    SOLID_DIAMETER,
    SUGGESTED_PRIORITY,
    TRACKING_IDENTIFIER,
    TRACKING_UID,
    TRIAGE_REPORT,
    VERDICTS,
    VOLUME,
    Term,
    lung_rads_category,
)

DCM = "http://dicom.nema.org/resources/ontology/DCM"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_ASSERTED_BY = f"{_TERMINOLOGY}/v3-ObservationValue"
_BY_AI = {
    "system": _ASSERTED_BY,
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
_BY_CLINICIAN = {"system": _ASSERTED_BY, "code": "CLINAST", "display": "clinician asserted"}
_STATUS = {
    ReportStatus.PRELIMINARY: "preliminary",
    ReportStatus.FINAL: "final",
    ReportStatus.CORRECTED: "corrected",
    ReportStatus.WITHDRAWN: "entered-in-error",
}
_GENDER = {"M": "male", "F": "female", "O": "other"}
_INTERPRETATIONS = {
    "N": "Normal",
    "A": "Abnormal",
    "AA": "Critical abnormal",
    "IND": "Indeterminate",
}
# Why there is no number of nodules. LIMITED counts none in the part that is shown, which says
# nothing of the rest.
_NO_COUNT: Mapping[Outcome | None, tuple[str, str]] = {
    None: ("unknown", "Unknown"),  # withdrawn
    Outcome.LIMITED: ("unknown", "Unknown"),
    Outcome.NOT_ANALYSABLE: ("not-performed", "Not Performed"),
    Outcome.FAILED: ("error", "Error"),
}


@dataclass(frozen=True)
class Context:
    """What the resources of one Bundle share.

    Attributes:
        document: identity of the Bundle.
        patient_systems: identifier system by Issuer of Patient ID.
        vn_core: citizens' and insurance numbers are named as Viet Nam Core does.
    """

    case: ReportedCase
    site: str
    document: str
    phoi_version: str
    patient_systems: Mapping[str, str]
    vn_core: bool = False

    @property
    def number(self) -> str:
        """Phoi's number for the report of this study."""
        return filler_number(self.case.study.study_instance_uid)


@dataclass(frozen=True)
class Entry:
    """One entry of the transaction.

    Attributes:
        key: names it inside the Bundle.
        condition: the search that finds it on the server.
        create_only: leave what is found as it is.
    """

    key: str
    resource: Json
    condition: str
    create_only: bool = False

    def to_json(self) -> Json:
        """The entry with its request."""
        name = self.resource["resourceType"]
        request = (
            {"method": "POST", "url": name, "ifNoneExist": self.condition}
            if self.create_only
            else {"method": "PUT", "url": f"{name}?{self.condition}"}
        )
        return {"fullUrl": full_url(self.key), "resource": self.resource, "request": request}


PATIENT = reference("Patient", "patient")
IMAGING_STUDY = reference("ImagingStudy", "imaging-study")
DEVICE = reference("Device", "device")
REPORT = reference("DiagnosticReport", "report")


def entries(context: Context) -> Iterator[Entry]:
    """All entries, what is referred to before what refers to it."""
    case = context.case
    kept = reported_nodules(case)
    yield _patient(context)
    yield _imaging_study(context)
    yield _device(context)
    yield _outcome(context)
    retracted = retracted_nodules(case)
    for nodule in kept:
        status = "final" if _signed_before(case, nodule) else _STATUS[case.status]
        yield _nodule(context, nodule, status)
    for nodule in retracted:
        yield _nodule(context, nodule, "entered-in-error")
    yield _diagnostic_report(context, kept)
    yield _task(context)
    said_now = [nodule for nodule in kept if not _signed_before(case, nodule)]
    yield _provenance(context, [*said_now, *retracted])


def _signed_before(case: ReportedCase, nodule: ReportedNodule) -> bool:
    """It is told again as a person signed it in an earlier report."""
    return nodule.review is not None and case.review is None


# --- what others own -----------------------------------------------------------------------------


def _patient(context: Context) -> Entry:
    patient = context.case.study.patient
    known_as = _patient_identifier(context)
    others = [other for other in _national_identifiers(context) if other != known_as]
    made: Json = {"resourceType": "Patient", "identifier": [known_as, *others]}
    name = person_name(patient.name)
    if name.text:
        parts = {"family": name.family, "given": [p for p in (name.given, name.middle) if p]}
        made["name"] = [{"text": name.text} | {k: v for k, v in parts.items() if v}]
    if patient.sex in _GENDER:
        made["gender"] = _GENDER[patient.sex]
    if patient.birth_date:
        made["birthDate"] = patient.birth_date.isoformat()
    return Entry("patient", made, matching(known_as), create_only=True)


def _patient_identifier(context: Context) -> Json:
    patient = context.case.study.patient
    if not string(patient.patient_id):
        # Two nameless patients must never become one: each is known by the study alone.
        return dicom_identifier(context.case.study.study_instance_uid)
    national = national_identifier(key_of(patient), context.patient_systems)
    if context.vn_core and national:
        return national
    own = phoi_system(f"patients:{context.site}:{string(patient.issuer)}")
    system = context.patient_systems.get(patient.issuer, own)
    return identifier(system, string(patient.patient_id), "MR")


def _national_identifiers(context: Context) -> Iterator[Json]:
    """Of the order behind the study, which names the same patient by other numbers too."""
    order = context.case.order
    if context.vn_core and order:
        yield from national_identifiers(order.patients, context.patient_systems)


def _imaging_study(context: Context) -> Entry:
    case = context.case
    known_as = dicom_identifier(case.study.study_instance_uid)
    made: Json = {
        "resourceType": "ImagingStudy",
        "identifier": [known_as],
        "status": "available",
        "subject": PATIENT,
    }
    if accession := string(accession_number(case)):
        system = phoi_system(f"accessions:{context.site}")
        made["identifier"].append(identifier(system, accession, "ACSN"))
    if case.study.started_at:
        # Modalities write no time zone, and a FHIR time needs one: the day is all that is sure.
        made["started"] = case.study.started_at.date().isoformat()
    if description := string(case.study.description):
        made["description"] = description
    if case.choice:
        made["series"] = [
            {
                "uid": case.choice.series_instance_uid,
                "modality": {"system": DCM, "code": "CT", "display": "Computed Tomography"},
                "numberOfInstances": len(case.choice.instances),
            }
        ]
    return Entry("imaging-study", made, matching(known_as), create_only=True)


def _device(context: Context) -> Entry:
    model = context.case.result.identity.model
    known_as = identifier(DEVICES, f"{model.device_uid}/{context.phoi_version}")
    made = {
        "resourceType": "Device",
        "identifier": [known_as, dicom_identifier(model.device_uid)],
        "status": "active",
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": model.name, "type": "model-name"}],
        "type": {"text": "AI lung nodule detection software"},
        "version": [
            {"type": {"text": "model"}, "value": model.version},
            {"type": {"text": "Phoi"}, "value": context.phoi_version},
        ],
    }
    return Entry("device", made, matching(known_as), create_only=True)


# --- what Phoi says ------------------------------------------------------------------------------


def _outcome(context: Context) -> Entry:
    case = context.case
    outcome = reported_outcome(case)
    nodules = reported_nodules(case)
    count: Json = {"code": concept(NODULE_COUNT)}
    if outcome in _NO_COUNT:
        count["dataAbsentReason"] = coded(f"{_TERMINOLOGY}/data-absent-reason", *_NO_COUNT[outcome])
    else:
        count["valueInteger"] = len(nodules)
    known_as = identifier(OUTCOMES_OF_REPORTS, context.number)
    made = _observation(context, known_as, OUTCOME_OF_TRIAGE, _STATUS[case.status]) | {
        "valueCodeableConcept": concept(outcome_term(case)),
        "interpretation": [_interpretation(_flag(outcome, nodules))],
        "device": DEVICE,
        "component": [count],
    }
    if case.result.completeness and outcome:
        completeness = COMPLETENESSES[case.result.completeness]
        made["component"].append(_concept_component(COMPLETENESS, completeness))
    if (priority := stated_priority(case)) is not None:
        made["component"].append(_concept_component(SUGGESTED_PRIORITY, PRIORITIES[priority]))
    return Entry("outcome", made, matching(known_as))


def _flag(outcome: Outcome | None, nodules: Sequence[ReportedNodule]) -> str:
    if outcome is Outcome.NEGATIVE:
        return "N"
    if outcome is not Outcome.POSITIVE:
        return "IND"
    return "AA" if any(nodule.urgent for nodule in nodules) else "A"


def _nodule(context: Context, nodule: ReportedNodule, status: str) -> Entry:
    known_as = dicom_identifier(nodule.tracking_uid)
    made = _observation(context, known_as, NODULE_OF_LUNG, status)
    if nodule.nodule:
        made["device"] = DEVICE
    else:
        made["meta"] = {"security": [_BY_CLINICIAN]}
        if nodule.review:
            made["performer"] = [_reviewer(context.site, nodule.review)]
    if nodule.site:
        made["bodySite"] = concept(nodule.site)
    made["interpretation"] = [_interpretation("AA" if nodule.urgent else "A")]
    made["component"] = list(_components(nodule))
    return Entry(f"nodule:{nodule.tracking_uid}", made, matching(known_as))


def _observation(context: Context, known_as: Json, term: Term, status: str) -> Json:
    made: Json = {
        "resourceType": "Observation",
        "meta": {"security": [_BY_AI]},
        "identifier": [known_as],
        "status": status,
        "category": [coded(f"{_TERMINOLOGY}/observation-category", "imaging", "Imaging")],
        "code": concept(term),
        "subject": PATIENT,
        "issued": instant(reported_at(context.case)),
        "derivedFrom": [IMAGING_STUDY],
    }
    if context.case.study.started_at:
        made["effectiveDateTime"] = context.case.study.started_at.date().isoformat()
    return made


def _diagnostic_report(context: Context, kept: Sequence[ReportedNodule]) -> Entry:
    case = context.case
    known_as = identifier(REPORTS, context.number, "FILL")
    lines = impression(case)
    words = [vi for _, vi in lines] + [en for en, _ in lines]
    results = ["outcome", *(f"nodule:{nodule.tracking_uid}" for nodule in kept)]
    made: Json = {
        "resourceType": "DiagnosticReport",
        "meta": {"security": [_BY_AI]},
        "identifier": [known_as],
        "status": _STATUS[case.status],
        "category": [coded(f"{_TERMINOLOGY}/v2-0074", "RAD", "Radiology")],
        "code": concept(TRIAGE_REPORT),
        "subject": PATIENT,
        "issued": instant(reported_at(case)),
        "result": [reference("Observation", key) for key in results],
        "imagingStudy": [IMAGING_STUDY],
        "conclusion": "\n".join(map(string, words)),
        "conclusionCode": [concept(outcome_term(case))],
    }
    if case.study.started_at:
        made["effectiveDateTime"] = case.study.started_at.date().isoformat()
    if based_on := _imaging_order(context):
        made["basedOn"] = [based_on]
    if case.review:
        made["meta"]["security"].append(_BY_CLINICIAN)
        made["resultsInterpreter"] = [_reviewer(context.site, case.review)]
    return Entry("report", made, matching(known_as))


def _imaging_order(context: Context) -> Json | None:
    """The imaging order, which is the EMR's own: by its number, in the placer's namespace."""
    order = context.case.order
    for number, kind in ((order.placer, "PLAC"), (order.filler, "FILL")) if order else ():
        if value := string(number.value):
            system = phoi_system(f"orders:{context.site}:{string(number.namespace)}")
            return {"type": "ServiceRequest", "identifier": identifier(system, value, kind)}
    return None


def _task(context: Context) -> Entry:
    case = context.case
    known_as = identifier(TASKS, context.number)
    made = {
        "resourceType": "Task",
        "identifier": [known_as],
        "status": _task_status(case),
        "intent": "proposal",
        "code": concept(REVIEW_OF_TRIAGE),
        "focus": IMAGING_STUDY,
        "for": PATIENT,
        "authoredOn": instant(case.result.analysed_at),
        "lastModified": instant(reported_at(case)),
        "requester": DEVICE,
        "reasonReference": REPORT,
    }
    if (priority := told_priority(case)) is not None:
        made["priority"] = priority.value
    return Entry("task", made, matching(known_as))


def _task_status(case: ReportedCase) -> str:
    if case.status is ReportStatus.WITHDRAWN:
        return "cancelled"
    return "completed" if case.review else "requested"


def _provenance(context: Context, told: Sequence[ReportedNodule]) -> Entry:
    """Of all that is said, or taken back, here and now."""
    case = context.case
    targets = [reference("Observation", f"nodule:{nodule.tracking_uid}") for nodule in told]
    made = {
        "resourceType": "Provenance",
        # R4's Provenance has no identifier: the document that it came with is its tag.
        "meta": {"tag": [{"system": DOCUMENTS, "code": context.document}]},
        "target": [REPORT, reference("Observation", "outcome"), *targets],
        "recorded": instant(reported_at(case)),
        "agent": list(_agents(context)),
        "entity": [{"role": "source", "what": IMAGING_STUDY}],
    }
    if case.status is ReportStatus.WITHDRAWN:
        made["activity"] = coded(f"{_TERMINOLOGY}/v3-DataOperation", "NULLIFY", "nullify")
    return Entry("provenance", made, tagged(DOCUMENTS, context.document), create_only=True)


def _agents(context: Context) -> Iterator[Json]:
    """The model, and who signed; a withdrawal is the hospital's, not that of what it recalls."""
    if context.case.status is ReportStatus.WITHDRAWN:
        hospital = {
            "type": "Organization",
            "identifier": identifier(SITES, context.site),
            "display": context.site,
        }
        yield {"type": _participant("enterer", "Enterer"), "who": hospital}
        return
    yield {"type": _participant("author", "Author"), "who": DEVICE}
    if review := context.case.review:
        reviewer = _reviewer(context.site, review)
        yield {"type": _participant("verifier", "Verifier"), "who": reviewer}


def _reviewer(site: str, review: SignedReview) -> Json:
    return {
        "type": "Practitioner",
        "identifier": identifier(phoi_system(f"accounts:{site}"), string(review.reviewer)),
        "display": string(review.reviewer_name),
    }


def _participant(code: str, display: str) -> Json:
    return coded(f"{_TERMINOLOGY}/provenance-participant-type", code, display)


def _interpretation(code: str) -> Json:
    return coded(f"{_TERMINOLOGY}/v3-ObservationInterpretation", code, _INTERPRETATIONS[code])


# --- one nodule ----------------------------------------------------------------------------------


def _components(reported: ReportedNodule) -> Iterator[Json]:
    yield _string_component(TRACKING_IDENTIFIER, reported.tracking_id)
    yield _string_component(TRACKING_UID, reported.tracking_uid)
    if reported.center_lps_mm:
        center = " ".join(f"{mm:.1f}" for mm in reported.center_lps_mm)
        yield _string_component(CENTER, center)
    if reported.mean_diameter_mm is not None:
        yield _quantity_component(MEAN_DIAMETER, reported.mean_diameter_mm, "mm")
    if reported.nodule:
        finding = reported.nodule.finding
        yield _concept_component(LATERALITY, SIDES[finding.side])
        yield _concept_component(ATTENUATION_CLASS, ATTENUATIONS[finding.attenuation])
        yield _quantity_component(CERTAINTY, 100 * finding.probability, "%")
        if reported.measured_by_model:
            yield from _measured_by_model(finding)
    if reported.size_class:
        category = lung_rads_category(reported.size_class.lung_rads)
        yield _concept_component(LUNG_RADS, category)
        if reported.size_class.fleischner:
            yield _string_component(FLEISCHNER, reported.size_class.fleischner)
        yield _string_component(SIZE_CLASS_BASIS, reported.size_class.basis)
    if reported.verdict:
        yield _concept_component(REVIEW_VERDICT, VERDICTS[reported.verdict])


def _measured_by_model(finding: Finding) -> Iterator[Json]:
    yield _quantity_component(LONG_AXIS, finding.long_axis_mm, "mm")
    yield _quantity_component(SHORT_AXIS, finding.short_axis_mm, "mm")
    yield _quantity_component(VOLUME, finding.volume_mm3, "mm3")
    if finding.solid_diameter_mm is not None:
        yield _quantity_component(SOLID_DIAMETER, finding.solid_diameter_mm, "mm")


def _concept_component(code: Term, value: Term) -> Json:
    return {"code": concept(code), "valueCodeableConcept": concept(value)}


def _quantity_component(code: Term, value: float, unit: str) -> Json:
    return {"code": concept(code), "valueQuantity": quantity(value, unit)}


def _string_component(code: Term, value: str) -> Json:
    return {"code": concept(code), "valueString": str(value)}
