"""What the edge needs to know of an instance, from its header, decoded to Unicode.

Text is decoded from the bytes as they stand in the file: pydicom's own conversion would warn of
values that break the rules, and so print patient data.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache
from pathlib import Path

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import TEXT_VR_DELIMS

from phoi_edge_node.dicom.header_scan import BadHeader as BadHeader
from phoi_edge_node.dicom.header_scan import scan, scan_file_meta
from phoi_edge_node.dicom.uids import is_uid
from phoi_edge_node.ports import ReceivedInstance
from phoi_edge_node.result import Patient, StudyHeader

# Multi-byte sets whose text may by chance be valid UTF-8; every other label is doubted.
_NOT_MISTAKEN_FOR_UTF8 = frozenset({"GB18030", "GBK"})
_WITHOUT_EXTENSIONS = _NOT_MISTAKEN_FOR_UTF8 | {"ISO_IR 192"}
_ESCAPE = b"\x1b"  # announces another character set of ISO 2022 inside a value

_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
)


_TAGS = frozenset(int(Tag(keyword)) for keyword in _KEYWORDS)
_TRANSFER_SYNTAX_UID = 0x00020010
_SENDING_AE_TITLE = 0x00020017
_SOP_INSTANCE_UID = 0x00080018
_LONGEST_KEPT = 4096  # bytes of values
_LONGEST_CODE = 16  # VRs CS and AE (PS3.5 6.2)
_LONGEST_TEXT = 1024
_LONGEST_HEADER = 4 * 1024 * 1024  # of a file; pixels follow long before


@dataclass(frozen=True)
class InstanceHeader:
    """What one instance says of itself.

    Attributes:
        sending_ae_title: Sending Application Entity Title (0002,0017), or "".

    Raises:
        BadHeader: a UID is missing or is none (PS3.5 9.1).
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    sending_ae_title: str
    modality: str
    study: StudyHeader

    def __post_init__(self) -> None:
        for name, uid in (
            ("SOP Class UID", self.sop_class_uid),
            ("SOP Instance UID", self.sop_instance_uid),
            ("Series Instance UID", self.series_instance_uid),
            ("Study Instance UID", self.study.study_instance_uid),
            ("Transfer Syntax UID", self.transfer_syntax_uid),
        ):
            if not is_uid(uid):
                raise BadHeader(f"the header has no valid {name}")


def read_header(source: Path | bytes) -> InstanceHeader:
    """Parse the header of a DICOM file; no pixels are read.

    Args:
        source: a file, or the bytes of one, in DICOM's file format.

    Raises:
        BadHeader: it cannot be parsed, or lacks a UID.
        OSError: the file cannot be read.
    """
    content = source if isinstance(source, bytes) else _beginning(source)
    meta, offset = scan_file_meta(content, {_TRANSFER_SYNTAX_UID, _SENDING_AE_TITLE})
    return read_data_set_header(
        memoryview(content)[offset:],
        _ascii(meta.get(_TRANSFER_SYNTAX_UID, b"")),
        _ascii(meta.get(_SENDING_AE_TITLE, b""))[:_LONGEST_CODE],
    )


def read_data_set_header(
    data_set: bytes | memoryview, transfer_syntax_uid: str, sending_ae_title: str = ""
) -> InstanceHeader:
    """Parse the header of an encoded data set; no pixels are read.

    Args:
        data_set: without file meta information.

    Raises:
        BadHeader: it cannot be parsed, or lacks a UID.
    """
    values = scan(data_set, transfer_syntax_uid, _TAGS)
    sop_instance_uid = _ascii(values.pop(_SOP_INSTANCE_UID, b""))
    described = _described if sum(map(len, values.values())) < _LONGEST_KEPT else _describe
    sop_class_uid, series_instance_uid, modality, study = described(tuple(values.items()))
    return InstanceHeader(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=series_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        sending_ae_title=sending_ae_title,
        modality=modality,
        study=study,
    )


def _describe(values: tuple[tuple[int, bytes], ...]) -> tuple[str, str, str, StudyHeader]:
    """SOP Class UID, Series Instance UID, Modality, and the study, from their raw values."""
    dataset = Dataset()
    for tag, value in values:
        # As raw as it lies there: ``text`` decodes it.
        dataset[tag] = RawDataElement(
            BaseTag(tag), None, len(value), value, 0, is_implicit_VR=True, is_little_endian=True
        )
    series = (text(dataset, k) for k in ("SOPClassUID", "SeriesInstanceUID", "Modality"))
    sop_class_uid, series_instance_uid, modality = series
    return sop_class_uid, series_instance_uid, modality[:_LONGEST_CODE], study_header(dataset)


# The slices of a series say the same, hundreds of times.
_described = lru_cache(maxsize=64)(_describe)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LONGEST_HEADER)


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def study_header(dataset: Dataset) -> StudyHeader:
    """What an instance says of its study; absent or malformed values become empty ones."""
    sex = _short(dataset, "PatientSex")
    return StudyHeader(
        study_instance_uid=_short(dataset, "StudyInstanceUID"),
        patient=Patient(
            patient_id=_short(dataset, "PatientID"),
            issuer=_short(dataset, "IssuerOfPatientID"),
            name=_short(dataset, "PatientName"),
            birth_date=_date(_short(dataset, "PatientBirthDate")),
            sex=sex if sex in {"M", "F", "O"} else "",
        ),
        accession_number=_short(dataset, "AccessionNumber"),
        study_id=_short(dataset, "StudyID"),
        description=_short(dataset, "StudyDescription"),
        referring_physician=_short(dataset, "ReferringPhysicianName"),
        started_at=_moment(_short(dataset, "StudyDate"), _short(dataset, "StudyTime")),
    )


def text(dataset: Dataset, keyword: str) -> str:
    """The value of a text element, decoded, without padding; "" where there is none.

    Mislabelled text is tolerated: bytes that are valid UTF-8 are read as such even where the
    character set names a single-byte one or none, since other text hardly ever is valid UTF-8.
    """
    raw = dataset.get_item(Tag(keyword))
    value = raw.value if raw is not None else None
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = _decode(value, _character_sets(dataset))
    # PostgreSQL takes no NUL in a text, wherever it stands.
    return str(value).replace("\0", "").strip(" ")


def _short(dataset: Dataset, keyword: str) -> str:
    """A text that the index keeps. No honest one is cut: 64 characters are what their VRs allow."""
    return text(dataset, keyword)[:_LONGEST_TEXT]


def instance_from_file(root: Path, path: str) -> ReceivedInstance:
    """Describe a file that lies in the instance store, or in any folder.

    Args:
        path: relative to ``root``.

    Raises:
        BadHeader: it is no usable DICOM file.
    """
    file = root / path
    content = file.read_bytes()
    header = read_header(content)
    received = datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)
    return ReceivedInstance(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        series_instance_uid=header.series_instance_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        path=path,
        sha256=hashlib.sha256(memoryview(content)[data_set_offset(content) :]).hexdigest(),
        size=len(content),
        modality=header.modality,
        calling_ae_title=header.sending_ae_title,
        received_at=received,
        study=header.study,
    )


def data_set_offset(content: bytes) -> int:
    """Where the data set begins, after the file meta information (PS3.10 7.1); 0 if unknown."""
    meta_starts = 132
    if content[128:meta_starts] != b"DICM" or content[132:136] != b"\x02\x00\x00\x00":
        return 0
    return 144 + int.from_bytes(content[140:144], "little")


def _character_sets(dataset: Dataset) -> tuple[str, ...]:
    raw = dataset.get_item(Tag("SpecificCharacterSet"))
    value = raw.value if raw is not None else None
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    terms = value.split("\\") if isinstance(value, str) else list(value or [])
    return tuple(str(term).strip(" \0") for term in terms)


def _decode(value: bytes, character_sets: tuple[str, ...]) -> str:
    first = next(iter(character_sets), "") or "ISO_IR 6"
    known = [term for term in character_sets if term in python_encoding]
    if _ESCAPE in value and _extends(first, known):
        return decode_bytes(value, convert_encodings(known), TEXT_VR_DELIMS)
    if first not in _NOT_MISTAKEN_FOR_UTF8:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return value.decode(python_encoding.get(first, "latin-1"), "replace")


def _extends(first: str, known: list[str]) -> bool:
    """Does an escape mean another character set here, and not just a damaged byte?

    Only where such sets are named, and never in those without code extensions (PS3.3 C.12.1.1.2).
    """
    return first not in _WITHOUT_EXTENSIONS and (
        first.startswith("ISO 2022") or len(set(known)) > 1
    )


def _date(value: str) -> date | None:
    try:
        return datetime.strptime(value.replace(".", ""), "%Y%m%d").date()  # noqa: DTZ007  no zone
    except ValueError:
        return None


def _moment(day: str, clock: str) -> datetime | None:
    """Study Date and Time (DA and TM, PS3.5 6.2), whose end may be left out."""
    parsed = _date(day)
    digits = re.match(r"\d*", clock.replace(":", ""))
    hhmmss = (digits.group() if digits else "").ljust(6, "0")[:6]
    try:
        at = time(int(hhmmss[:2]), int(hhmmss[2:4]), min(int(hhmmss[4:]), 59))
    except ValueError:
        at = time()
    return datetime.combine(parsed, at) if parsed else None
