"""The coded concepts of the DICOM objects (PS3.16; IHE AI Results; Phoi's own scheme 99PHOI)."""

from __future__ import annotations

from phoi_models.errors import NotAnalysableReason
from phoi_models.size_class import Basis
from pydicom.sr.coding import Code

from phoi_edge_node.terms import Scheme, Term


def coded(term: Term) -> Code:
    """A term of the core as a DICOM code."""
    return Code(term.code, term.scheme.designator, term.en)


def not_analysable_reason(reason: NotAnalysableReason) -> Code:
    """Why nothing was analysed."""
    return Code(reason.value, Scheme.PHOI.designator, reason.value.replace("_", " "))


def lung_rads_category(category: str) -> Code:
    """A provisional, size-based category ("2", "3", "4A", "4B"): no scheme has codes for them."""
    meaning = f"Lung-RADS {category} by size, if baseline screening (provisional)"
    return Code(f"lung-rads-{category}", Scheme.PHOI.designator, meaning)


def fleischner_class(text: str) -> Code:
    """A Fleischner 2017 size class: "<6 mm", "100-250 mm3", ..."""
    return Code(f"fl {text}", Scheme.PHOI.designator, f"Fleischner {text}")


def size_class_basis(basis: Basis) -> Code:
    """The measurement that decided the size classes."""
    return Code(basis.value, Scheme.PHOI.designator, basis.value.replace("_", " "))


# --- the report -------------------------------------------------------------------------------

IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
CT_UNSPECIFIED_BODY_REGION = Code("25045-6", "LN", "CT unspecified body region")  # CID 100
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
IMPRESSION = Code("121073", "DCM", "Impression")
COMMENT = Code("121106", "DCM", "Comment")
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = Code("en", "RFC5646", "English")
VIETNAMESE = Code("vi", "RFC5646", "Vietnamese")
REASON = Code("reason", Scheme.PHOI.designator, "Reason for not analysing")

# --- key objects ------------------------------------------------------------------------------

OF_INTEREST = Code("113000", "DCM", "Of Interest")
REJECTED_FOR_SAFETY = Code("113037", "DCM", "Rejected for Patient Safety Reasons")
KEY_OBJECT_DESCRIPTION = Code("113012", "DCM", "Key Object Description")
SOURCE = Code("260753009", "SCT", "Source")

# --- who ----------------------------------------------------------------------------------------

PERSON = Code("121006", "DCM", "Person")
DEVICE = Code("121007", "DCM", "Device")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

# --- one nodule -------------------------------------------------------------------------------

NODULE = Code("27925004", "SCT", "Nodule")
MORPHOLOGICALLY_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
CENTER = Code("111010", "DCM", "Center")
MEAN = Code("373098007", "SCT", "Mean")
SUM_OF_SEGMENTED_VOXELS = Code("126030", "DCM", "Sum of segmented voxel volumes")
ATTENUATION_COEFFICIENT = Code("112031", "DCM", "Attenuation Coefficient")

MILLIMETER = Code("mm", "UCUM", "mm")
CUBIC_MILLIMETER = Code("mm3", "UCUM", "mm3")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "%")
