"""The coded terms and the bilingual words of what Phoi tells EMRs. Pure.

Sources: SNOMED CT and DICOM PS3.16 (as IHE AI Results uses them), LOINC, and Phoi's own coding
scheme where none of them has a code. A term carries the English of its scheme and the Vietnamese
that a radiologist reads.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from phoi_models.errors import NotAnalysableReason
from phoi_models.findings import Attenuation, Lobe, Side

from phoi_edge_node.ports import ReportStatus
from phoi_edge_node.result import Completeness, Outcome, Priority, Verdict

MANUFACTURER = "Phoi project"

# A UUID-derived OID (PS3.5 B.2), from uuid5(NAMESPACE_OID, "phoi"). It never changes.
PHOI_OID = "2.25.33529231347228113120783545962963699828"


class Scheme(Enum):
    """A coding scheme: its name in HL7 v2 and DICOM, and its URI in FHIR."""

    SCT = ("SCT", "http://snomed.info/sct")
    DCM = ("DCM", "http://dicom.nema.org/resources/ontology/DCM")
    LN = ("LN", "http://loinc.org")
    UCUM = ("UCUM", "http://unitsofmeasure.org")
    PHOI = ("99PHOI", f"urn:oid:{PHOI_OID}")

    @property
    def designator(self) -> str:
        """Coding Scheme Designator (0008,0102), and HL7 v2 name of coding system."""
        return self.value[0]

    @property
    def uri(self) -> str:
        """FHIR code system URI."""
        return self.value[1]


@dataclass(frozen=True)
class Term:
    """One coded concept.

    Attributes:
        en: display name in the scheme's English.
        vi: Vietnamese.
    """

    code: str
    scheme: Scheme
    en: str
    vi: str


def _sct(code: str, en: str, vi: str) -> Term:
    return Term(code, Scheme.SCT, en, vi)


def _dcm(code: str, en: str, vi: str) -> Term:
    return Term(code, Scheme.DCM, en, vi)


def _phoi(code: str, en: str, vi: str) -> Term:
    return Term(code, Scheme.PHOI, en, vi)


# --- the report and its parts ------------------------------------------------------------------

TRIAGE_REPORT = _phoi(
    "nodule-triage",
    "AI triage of chest CT for lung nodules",
    "AI sàng lọc nốt phổi trên CT ngực",
)
STUDY_INSTANCE_UID = _dcm("113014", "DICOM Study", "Ca chụp DICOM")
OUTCOME_OF_TRIAGE = _phoi("outcome", "AI triage outcome", "Kết luận của AI")
NODULE_COUNT = _phoi("nodule-count", "Number of lung nodules", "Số nốt phổi")
SUGGESTED_PRIORITY = _phoi(
    "reading-priority", "Suggested reading priority", "Mức ưu tiên đọc được đề xuất"
)
COMPLETENESS = _phoi("completeness", "Completeness of the study", "Tính đầy đủ của ca chụp")
IMPRESSION = _dcm("121073", "Impression", "Nhận định")
TRACKING_IDENTIFIER = _dcm("112039", "Tracking Identifier", "Tên theo dõi")
TRACKING_UID = _dcm("112040", "Tracking Unique Identifier", "UID theo dõi")
REVIEW_OF_TRIAGE = _phoi("review", "Review of the AI triage", "Xem lại kết quả AI")
REVIEW_VERDICT = _phoi("verdict", "Radiologist's verdict", "Đánh giá của bác sĩ")

# --- one nodule --------------------------------------------------------------------------------

NODULE_OF_LUNG = _sct("786838002", "Nodule of lung", "Nốt phổi")
FINDING_SITE = _sct("363698007", "Finding site", "Vị trí")
LATERALITY = _sct("272741003", "Laterality", "Bên")
LONG_AXIS = _sct("103339001", "Long axis", "Trục dài")
SHORT_AXIS = _sct("103340004", "Short axis", "Trục ngắn")
MEAN_DIAMETER = _sct("81827009", "Diameter", "Đường kính trung bình")
VOLUME = _sct("118565006", "Volume", "Thể tích")
CERTAINTY = _dcm("111012", "Certainty of Finding", "Xác suất là nốt")
ATTENUATION_CLASS = _phoi("attenuation", "Attenuation class", "Loại tỷ trọng")
SOLID_DIAMETER = _phoi(
    "solid-diameter", "Mean diameter of the solid part", "Đường kính trung bình phần đặc"
)
LUNG_RADS = _sct("1362105002", "Lung-RADS category", "Phân loại Lung-RADS")
FLEISCHNER = _phoi("fleischner-2017", "Fleischner 2017 size class", "Nhóm kích thước Fleischner")
SIZE_CLASS_BASIS = _phoi("size-class-basis", "Basis of the size class", "Cơ sở phân nhóm")
CENTER = _phoi(
    "center-lps-mm", "Centre, DICOM patient coordinates, mm", "Tâm, tọa độ bệnh nhân DICOM, mm"
)

SIDES: Mapping[Side, Term] = {
    Side.LEFT: _sct("7771000", "Left", "Bên trái"),
    Side.RIGHT: _sct("24028007", "Right", "Bên phải"),
}
LUNGS: Mapping[Side, Term] = {
    Side.LEFT: _sct("44029006", "Left lung structure", "Phổi trái"),
    Side.RIGHT: _sct("3341006", "Right lung structure", "Phổi phải"),
}
LUNG = _sct("39607008", "Lung structure", "Phổi")
LOBES: Mapping[Lobe, Term] = {
    Lobe.RIGHT_UPPER: _sct("42400003", "Structure of upper lobe of right lung", "Thùy trên phải"),
    Lobe.RIGHT_MIDDLE: _sct("72481006", "Structure of middle lobe of right lung", "Thùy giữa phải"),
    Lobe.RIGHT_LOWER: _sct("266005", "Structure of lower lobe of right lung", "Thùy dưới phải"),
    Lobe.LEFT_UPPER: _sct("44714003", "Structure of upper lobe of left lung", "Thùy trên trái"),
    Lobe.LEFT_LOWER: _sct("41224006", "Structure of lower lobe of left lung", "Thùy dưới trái"),
}
ATTENUATIONS: Mapping[Attenuation, Term] = {
    Attenuation.SOLID: _sct("35702001", "Solid", "Đặc"),
    Attenuation.PART_SOLID: _phoi("part-solid", "Part-solid", "Bán đặc"),
    Attenuation.NON_SOLID: _dcm("112120", "Ground glass opacity", "Kính mờ"),
}


def lung_rads_category(category: str) -> Term:
    """A provisional, size-based category ("2", "3", "4A", "4B"): no scheme has codes for them."""
    return _phoi(f"lung-rads-{category}", f"Lung-RADS {category}", f"Lung-RADS {category}")


# --- outcomes ----------------------------------------------------------------------------------

# Only NEGATIVE may be read as "nothing was found": the word stands in no other text.
OUTCOMES: Mapping[Outcome, Term] = {
    Outcome.POSITIVE: _phoi("positive", "LUNG NODULE FOUND", "CÓ NỐT PHỔI"),
    Outcome.NEGATIVE: _phoi(
        "negative", "NEGATIVE: no lung nodule found", "ÂM TÍNH: không thấy nốt phổi"
    ),
    Outcome.LIMITED: _phoi(
        "limited",
        "LIMITED: lungs may not be wholly shown, nodules may be missed",
        "HẠN CHẾ: hình có thể không thấy hết hai phổi, có thể bỏ sót nốt",
    ),
    Outcome.NOT_ANALYSABLE: _phoi(
        "not_analysable",
        "NOT ANALYSABLE: AI could not read these images",
        "KHÔNG PHÂN TÍCH ĐƯỢC: AI không đọc được hình này",
    ),
    Outcome.FAILED: _phoi(
        "failed", "AI FAILED: nothing was analysed", "AI BỊ LỖI: chưa phân tích được gì"
    ),
}
# In the place of an outcome, where what was told before must not be used.
WITHDRAWN = _phoi(
    "withdrawn", "AI RESULT WITHDRAWN: do not use", "ĐÃ THU HỒI KẾT QUẢ AI: không dùng"
)
COMPLETENESSES: Mapping[Completeness, Term] = {
    Completeness.CONFIRMED: _phoi(
        "confirmed",
        "All images came, by the archive's count",
        "Đã nhận đủ hình theo số đếm của PACS",
    ),
    Completeness.BY_GEOMETRY: _phoi(
        "by-geometry",
        "No gaps, all of the lungs shown; archive not asked",
        "Không thiếu lát cắt, thấy hết phổi; chưa hỏi PACS",
    ),
    Completeness.UNCONFIRMED: _phoi(
        "unconfirmed",
        "COMPLETENESS UNCONFIRMED: images of this study may be missing",
        "CHƯA XÁC NHẬN ĐỦ HÌNH: ca chụp có thể còn thiếu hình",
    ),
}
LUNG_PARTS_VI: Mapping[str, str] = {
    "apex": "đỉnh phổi",
    "base": "đáy phổi",
    "sides": "phần ngoài của phổi",
}
REASONS_VI: Mapping[NotAnalysableReason, str] = {
    NotAnalysableReason.NO_CT_IMAGES: "không có hình CT",
    NotAnalysableReason.NO_SUITABLE_SERIES: "không có chuỗi hình phù hợp",
    NotAnalysableReason.TOO_FEW_SLICES: "quá ít lát cắt",
    NotAnalysableReason.SLICES_TOO_THICK: "lát cắt quá dày",
    NotAnalysableReason.MISSING_SLICES: "thiếu lát cắt",
    NotAnalysableReason.DUPLICATE_SLICES: "lát cắt bị trùng",
    NotAnalysableReason.NOT_AXIAL: "không phải lát cắt ngang",
    NotAnalysableReason.INCONSISTENT_GEOMETRY: "hình học các lát cắt không thống nhất",
    NotAnalysableReason.UNREADABLE_PIXELS: "không đọc được điểm ảnh",
    NotAnalysableReason.NOT_HOUNSFIELD: "điểm ảnh không theo thang Hounsfield",
    NotAnalysableReason.NO_LUNGS: "không thấy phổi trên hình",
}
PRIORITIES: Mapping[Priority, Term] = {
    Priority.ROUTINE: _phoi("routine", "Routine", "Thường quy"),
    Priority.URGENT: _phoi("urgent", "Urgent", "Khẩn"),
    Priority.STAT: _phoi("stat", "Stat", "Tối khẩn"),
}
VERDICTS: Mapping[Verdict, Term] = {
    Verdict.ACCEPTED: _phoi("accepted", "Accepted", "Đồng ý"),
    Verdict.MODIFIED: _phoi("modified", "Modified", "Đã sửa"),
    Verdict.REJECTED: _phoi("rejected", "Rejected", "Loại bỏ"),
    Verdict.MISSED: _phoi(
        "missed", "Missed by AI, marked by the reviewer", "AI bỏ sót, bác sĩ thêm"
    ),
}
STATUS_NOTICES: Mapping[ReportStatus, tuple[str, str]] = {
    ReportStatus.PRELIMINARY: (
        "AI result, preliminary: not verified by a physician. Not a diagnosis.",
        "Kết quả AI, sơ bộ: chưa được bác sĩ xác nhận. Không phải là chẩn đoán.",
    ),
    ReportStatus.FINAL: (
        "AI result, reviewed and signed by a physician.",
        "Kết quả AI, đã được bác sĩ xem và ký.",
    ),
    ReportStatus.CORRECTED: (
        "CORRECTED: replaces the report signed before. Reviewed and signed by a physician.",
        "ĐÃ SỬA: thay cho kết quả đã ký trước đây. Đã được bác sĩ xem và ký.",
    ),
    ReportStatus.WITHDRAWN: (
        "AI RESULT WITHDRAWN: do not use what was told of this study before.",
        "KẾT QUẢ AI ĐÃ BỊ THU HỒI: không dùng những gì đã báo về ca chụp này.",
    ),
}


def plain_text(text: str) -> str:
    """Text that any message can carry: control characters and line ends become spaces.

    HL7 v2 ends a segment at CR and MLLP a message at FS; FHIR forbids most of U+0000 to U+001F;
    UTF-8 cannot encode a lone surrogate.
    """
    return "".join(
        " " if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} else c for c in text
    ).strip()
