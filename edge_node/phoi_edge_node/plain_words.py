"""What an answer of a destination means, and what to do about it, in words. Pure.

A destination's reason is short and exact ("status 0xA900"); whoever finds a document that did not
arrive is told here what that says, in English and Vietnamese. The exact reason stands beside it,
for the other side's administrator.

Sources: PS3.4 Table B.2-1 and PS3.7 Annex C (C-STORE), dcm4chee's ``StoreService`` (A77x), HL7
v2.5.1 tables 0008 and 0357, RFC 9110, section 15 (HTTP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from phoi_edge_node.ports import DocumentKind


@dataclass(frozen=True)
class PlainWords:
    """One sentence on what happened and one on what to do, each in English and Vietnamese."""

    en: str
    vi: str
    remedy_en: str
    remedy_vi: str


_THEN_RESEND = ("then send again.", "rồi gửi lại.")


def _words(en: str, vi: str, remedy_en: str, remedy_vi: str) -> PlainWords:
    return PlainWords(en, vi, f"{remedy_en}, {_THEN_RESEND[0]}", f"{remedy_vi}, {_THEN_RESEND[1]}")


# Patterns of reasons, in the order in which they are tried.
TABLE: tuple[tuple[str, PlainWords], ...] = (
    # --- C-STORE
    (
        r"status 0xA771",
        _words(
            "The PACS has hidden this object before, by a rejection note.",
            "PACS đã ẩn đối tượng này từ trước, theo một phiếu loại bỏ (rejection note).",
            "If that was a mistake, have the PACS administrator restore it",
            "Nếu đó là nhầm lẫn, nhờ quản trị PACS khôi phục đối tượng",
        ),
    ),
    (
        r"status 0xA77[789]",
        _words(
            "The PACS knows the patient of this study by other data, or misses a patient ID.",
            "PACS lưu bệnh nhân của ca này với dữ liệu khác, hoặc thiếu mã bệnh nhân.",
            "Have the PACS administrator compare the patient's data with those of the study",
            "Nhờ quản trị PACS đối chiếu dữ liệu bệnh nhân với dữ liệu của ca",
        ),
    ),
    (
        r"status 0xA7",
        _words(
            "The PACS says, time after time, that it has no room for the object.",
            "PACS nhiều lần báo không đủ chỗ cho đối tượng.",
            "Have the PACS administrator look at its disk and its limits",
            "Nhờ quản trị PACS xem ổ đĩa và các giới hạn của nó",
        ),
    ),
    (
        r"status 0xA9",
        _words(
            "The PACS says that the object does not fit its kind.",
            "PACS báo nội dung đối tượng không khớp với loại của nó.",
            "Have the PACS vendor look up the exact reason in its log and report it to Phoi",
            "Nhờ hãng PACS xem lý do chính xác trong nhật ký và báo cho nhóm Phoi",
        ),
    ),
    (
        r"status 0xC",
        _words(
            "The PACS could not understand or store the object, time after time.",
            "PACS không hiểu hoặc không lưu được đối tượng, dù đã thử nhiều lần.",
            "Have the PACS administrator look into its log: often its database or disk",
            "Nhờ quản trị PACS xem nhật ký: thường do cơ sở dữ liệu hoặc ổ đĩa",
        ),
    ),
    (
        r"status 0x0110",
        _words(
            "The PACS failed while it stored the object, time after time.",
            "PACS gặp lỗi khi lưu đối tượng, dù đã thử nhiều lần.",
            "Have the PACS administrator look into its log",
            "Nhờ quản trị PACS xem nhật ký",
        ),
    ),
    (
        r"status 0x0122|presentation context|takes nothing of what was proposed",
        _words(
            "The PACS does not take this kind of object.",
            "PACS không nhận loại đối tượng này.",
            "Have the PACS allow this SOP class, or leave it out with archives.objects",
            "Nhờ PACS cho phép loại (SOP class) này, hoặc bỏ nó bằng archives.objects",
        ),
    ),
    (
        r"status 0x0124",
        _words(
            "The PACS does not let Phoi store.",
            "PACS không cho Phoi lưu.",
            "Have the PACS administrator grant storing to Phoi's AE title",
            "Nhờ quản trị PACS cấp quyền lưu cho AE title của Phoi",
        ),
    ),
    (
        r"status 0x0111",
        _words(
            "The PACS holds another object under the same identifier.",
            "PACS đã có một đối tượng khác mang cùng mã định danh.",
            "Have the PACS administrator look at that object",
            "Nhờ quản trị PACS kiểm tra đối tượng đó",
        ),
    ),
    (
        r"status 0x",
        _words(
            "The PACS refused the object.",
            "PACS từ chối đối tượng.",
            "Give the PACS administrator the status below",
            "Đưa mã trạng thái bên dưới cho quản trị PACS",
        ),
    ),
    # --- HL7 v2, ERR-3 before MSA-1
    (
        r"answered [AC][ER].*\b101\b",
        _words(
            "The EMR misses a field that it requires.",
            "Bệnh án điện tử báo thiếu một trường bắt buộc.",
            "Fill the field named below by the mapping file (hl7.mapping)",
            "Bổ sung trường nêu bên dưới bằng tệp ánh xạ (hl7.mapping)",
        ),
    ),
    (
        r"answered [AC][ER].*\b(102|103)\b",
        _words(
            "The EMR does not accept the value of a field.",
            "Bệnh án điện tử không chấp nhận giá trị của một trường.",
            "Change the field named below by the mapping file (hl7.mapping)",
            "Sửa trường nêu bên dưới bằng tệp ánh xạ (hl7.mapping)",
        ),
    ),
    (
        r"answered [AC][ER].*\b(200|201|203)\b",
        _words(
            "The EMR does not take ORU^R01 messages of this version.",
            "Bệnh án điện tử không nhận bản tin ORU^R01 của phiên bản này.",
            "Have the EMR allow ORU^R01, or change the version by hl7.mapping",
            "Nhờ bệnh án điện tử cho phép ORU^R01, hoặc đổi phiên bản bằng hl7.mapping",
        ),
    ),
    (
        r"answered [AC][ER].*\b204\b",
        _words(
            "The EMR does not know the patient or the order.",
            "Bệnh án điện tử không biết bệnh nhân hoặc phiếu chỉ định này.",
            "Have the patient or order entered, or merged, in the EMR",
            "Nhập hoặc gộp bệnh nhân, phiếu chỉ định trong bệnh án điện tử",
        ),
    ),
    (
        r"answered [AC][ER].*\b206\b",
        _words(
            "Somebody has had the record open in the EMR all the time.",
            "Hồ sơ đang bị khóa trong bệnh án điện tử suốt thời gian gửi.",
            "Close the record there",
            "Đóng hồ sơ ở đó",
        ),
    ),
    (
        r"answered [AC]E",
        _words(
            "The EMR answered time after time that it failed on the message.",
            "Bệnh án điện tử nhiều lần báo lỗi khi xử lý bản tin.",
            "Have the EMR's administrator look into its interface log",
            "Nhờ quản trị bệnh án điện tử xem nhật ký giao tiếp",
        ),
    ),
    (
        r"answered [AC]R",
        _words(
            "The EMR rejected the message.",
            "Bệnh án điện tử từ chối bản tin.",
            "Have its administrator look up why in its interface log; hl7.mapping changes fields",
            "Nhờ quản trị xem lý do trong nhật ký giao tiếp; hl7.mapping sửa được các trường",
        ),
    ),
    # --- MLflow, before HTTP: its answers name it
    (
        r"^MLflow answered|not a usage report",
        _words(
            "MLflow refused the usage figures.",
            "MLflow từ chối số liệu sử dụng.",
            "Give the code below to whoever runs MLflow",
            "Đưa mã bên dưới cho người vận hành MLflow",
        ),
    ),
    # --- FHIR
    (
        r"^HTTP 403",
        _words(
            "The FHIR server does not let Phoi write, or look up whether something is there.",
            "Máy chủ FHIR không cho Phoi ghi, hoặc không cho tìm xem đã có dữ liệu chưa.",
            "Have its administrator grant writing by transaction; if it asks for the right to "
            "search too, add system/*.read to fhir.oauth2.scope",
            "Nhờ quản trị cấp quyền ghi bằng giao dịch; nếu máy chủ đòi cả quyền tìm, thêm "
            "system/*.read vào fhir.oauth2.scope",
        ),
    ),
    (
        r"^HTTP 501|speak FHIR|takes transactions",
        _words(
            "The FHIR server takes no transactions.",
            "Máy chủ FHIR không nhận giao dịch (transaction).",
            "Have its administrator grant writing by transaction",
            "Nhờ quản trị cấp quyền ghi bằng giao dịch",
        ),
    ),
    (
        r"^HTTP (409|412)",
        _words(
            "The FHIR server holds something that contradicts the document.",
            "Máy chủ FHIR đang giữ dữ liệu mâu thuẫn với tài liệu này.",
            "Have its administrator look for duplicates of the patient or the report",
            "Nhờ quản trị tìm bản trùng của bệnh nhân hoặc báo cáo",
        ),
    ),
    (
        r"^HTTP (400|422)",
        _words(
            "The FHIR server finds the document not valid by its own rules.",
            "Máy chủ FHIR cho rằng tài liệu không hợp lệ theo quy tắc riêng của nó.",
            "Have its administrator look up which rule, and tell the Phoi project",
            "Nhờ quản trị xem quy tắc nào, và báo cho nhóm Phoi",
        ),
    ),
    (
        r"^HTTP 413",
        _words(
            "The FHIR server finds the document too large.",
            "Máy chủ FHIR cho rằng tài liệu quá lớn.",
            "Have its administrator, or its proxy's, raise the limit",
            "Nhờ quản trị máy chủ hoặc proxy nâng giới hạn",
        ),
    ),
    (
        r"^HTTP 5",
        _words(
            "The FHIR server failed on the document, time after time.",
            "Máy chủ FHIR nhiều lần gặp lỗi với tài liệu này.",
            "Have its administrator look into its log",
            "Nhờ quản trị xem nhật ký máy chủ",
        ),
    ),
    (
        r"^HTTP 4",
        _words(
            "The FHIR server refused the document.",
            "Máy chủ FHIR từ chối tài liệu.",
            "Check fhir.base_url; give the code below to its administrator",
            "Kiểm tra fhir.base_url; đưa mã bên dưới cho quản trị",
        ),
    ),
    # --- ours
    (
        r"is no DICOM file|file cannot be sent|internal error",
        _words(
            "Phoi itself failed: this is a fault of ours.",
            "Chính Phoi bị lỗi.",
            "Report it with the words below",
            "Hãy báo lỗi kèm dòng bên dưới",
        ),
    ),
)
_COMPILED = tuple((re.compile(pattern), words) for pattern, words in TABLE)

# No setting leaves a rejection note out, and none makes an archive follow it.
_BY_HAND_EN = (
    "Have the PACS administrator hide or delete by hand every object of this study whose series"
    " description begins with 'Phoi AI lung nodules' and that is older than this note."
)
_BY_HAND_VI = (
    "Nhờ quản trị PACS ẩn hoặc xóa bằng tay mọi đối tượng của ca này có mô tả chuỗi bắt đầu bằng"
    " 'Phoi AI lung nodules' và cũ hơn phiếu này."
)
NOTES: tuple[tuple[str, PlainWords], ...] = (
    (
        r"status 0x0122|presentation context|takes nothing of what was proposed",
        PlainWords(
            "The PACS takes no rejection notes: it still shows the withdrawn objects.",
            "PACS không nhận phiếu loại bỏ: các đối tượng đã thu hồi vẫn hiển thị.",
            _BY_HAND_EN,
            _BY_HAND_VI,
        ),
    ),
    (
        r"status 0xA77",
        PlainWords(
            "The PACS cannot follow the rejection note: it still shows the withdrawn objects.",
            "PACS không thực hiện được phiếu loại bỏ: các đối tượng đã thu hồi vẫn hiển thị.",
            _BY_HAND_EN,
            _BY_HAND_VI,
        ),
    ),
)
_COMPILED_NOTES = tuple((re.compile(pattern), words) for pattern, words in NOTES)

UNKNOWN = _words(
    "The destination did not take the document.",
    "Nơi nhận không nhận tài liệu.",
    "Give the words below to its administrator",
    "Đưa dòng bên dưới cho quản trị nơi nhận",
)


def explain(reason: str, kind: DocumentKind) -> PlainWords:
    """What the reason of a dead letter means; ``UNKNOWN`` where no rule knows it."""
    rules = _COMPILED
    if kind is DocumentKind.REJECTION_NOTE:
        rules = (*_COMPILED_NOTES, *rules)
    return next((words for pattern, words in rules if pattern.search(reason)), UNKNOWN)
