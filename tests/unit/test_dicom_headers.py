"""Headers decode to Unicode, even mislabelled ones, and give away nothing when they are bad."""

from __future__ import annotations

import io
from datetime import date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.headers import (
    BadHeader,
    data_set_offset,
    instance_from_file,
    read_header,
    study_header,
)
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

NAME = "Nguyễn^Thị Ánh Tuyết"


def encoded(
    name: bytes = NAME.encode(),
    character_set: str | list[str] | None = "ISO_IR 192",
    transfer_syntax: str = ExplicitVRLittleEndian,
    **elements: object,
) -> bytes:
    """A DICOM file whose Patient's Name has exactly these bytes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.Modality = "CT"
    if character_set is not None:
        dataset.SpecificCharacterSet = character_set
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    # A stand-in of the same length: pydicom would encode a name, the bytes must stay as they are.
    padded = name + b" " * (len(name) % 2)
    dataset.PatientName = "Z" * len(padded)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    content = buffer.getvalue()
    assert content.count(b"Z" * len(padded)) == 1
    return content.replace(b"Z" * len(padded), padded)


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=4, max_size=15)
)
def test_any_utf8_name_survives(name: str) -> None:
    name = name.replace("\\", "")
    assert read_header(encoded(name.encode())).study.patient.name == name


@pytest.mark.parametrize(
    ("name", "character_set", "expected"),
    [
        (NAME.encode(), "ISO_IR 192", NAME),
        (NAME.encode(), None, NAME),  # UTF-8 without a label
        (NAME.encode(), "ISO_IR 100", NAME),  # UTF-8 labelled Latin-1
        ("Buc^Jérôme".encode("latin-1"), "ISO_IR 100", "Buc^Jérôme"),
        ("Buc^Jérôme".encode("latin-1"), None, "Buc^Jérôme"),
        ("Buc^Jérôme".encode("latin-1"), "ISO_IR 192", "Buc^J�r�me"),
        ("Wang^XiaoDong=王^小东".encode("gb18030"), "GB18030", "Wang^XiaoDong=王^小东"),
        (
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",  # PS3.5 H.3.1
            ["", "ISO 2022 IR 87"],
            "Yamada^Tarou=山田^太郎",
        ),
        ("Люкceмбypг".encode("iso8859_5"), "ISO_IR 144", "Люкceмбypг"),
        (b"Plain^Name", "NO SUCH SET", "Plain^Name"),
        # A damaged byte that happens to be an escape: it announces no other character set.
        ("Nguy\x1b^Thị".encode(), "ISO_IR 192", "Nguy\x1b^Thị"),
        ("Nguy\x1b(B^Thị".encode(), "ISO_IR 192", "Nguy\x1b(B^Thị"),
        ("Nguy\x1b^Thị".encode(), ["ISO_IR 192", "ISO 2022 IR 87"], "Nguy\x1b^Thị"),
        (b"Nguy\x1b^Thi", "NO SUCH SET", "Nguy\x1b^Thi"),
        (b"Buc^J\xe9r\x1bme", "ISO_IR 100", "Buc^Jér\x1bme"),
    ],
)
def test_names_decode(name: bytes, character_set: str | list[str] | None, expected: str) -> None:
    content = encoded(name, None)
    if character_set is not None:
        content = encoded(name, "ISO_IR 100", PatientID="1")
        dataset_labels = character_set if isinstance(character_set, list) else [character_set]
        content = relabel(content, "\\".join(dataset_labels))
    assert read_header(content).study.patient.name == expected


def relabel(content: bytes, label: str) -> bytes:
    """Change Specific Character Set, which pydicom would not let pass."""
    old = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
    value = label.encode() + b" " * (len(label) % 2)
    assert old in content
    return content.replace(old, b"\x08\x00\x05\x00CS" + len(value).to_bytes(2, "little") + value)


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_whole_header(transfer_syntax: str) -> None:
    header = read_header(
        encoded(
            transfer_syntax=transfer_syntax,
            PatientID="BN 1 ",
            IssuerOfPatientID="BVDK",
            PatientBirthDate="19600229",
            PatientSex="F",
            AccessionNumber="A1",
            StudyDate="20260315",
            StudyTime="083015.25",
            StudyDescription="CT ngực",
        )
    )
    assert (header.sop_class_uid, header.sop_instance_uid) == (CTImageStorage, "1.2.3")
    assert (header.series_instance_uid, header.modality) == ("1.2.5", "CT")
    assert header.transfer_syntax_uid == transfer_syntax
    study = header.study
    assert study.study_instance_uid == "1.2.4"
    assert (study.patient.patient_id, study.patient.issuer) == ("BN 1", "BVDK")
    assert (study.patient.birth_date, study.patient.sex) == (date(1960, 2, 29), "F")
    assert (study.accession_number, study.description) == ("A1", "CT ngực")
    assert study.started_at == datetime(2026, 3, 15, 8, 30, 15)  # noqa: DTZ001  no zone


@pytest.mark.parametrize(
    ("day", "clock", "expected"),
    [
        ("20260315", "", datetime(2026, 3, 15)),  # noqa: DTZ001
        ("20260315", "08", datetime(2026, 3, 15, 8)),  # noqa: DTZ001
        ("20260315", "0830", datetime(2026, 3, 15, 8, 30)),  # noqa: DTZ001
        ("2026.03.15", "08:30:00", datetime(2026, 3, 15, 8, 30)),  # noqa: DTZ001  old ACR-NEMA
        ("20260315", "235960", datetime(2026, 3, 15, 23, 59, 59)),  # noqa: DTZ001  leap second
        ("20260315", "nonsense", datetime(2026, 3, 15)),  # noqa: DTZ001
        ("", "0830", None),
        ("nonsense", "0830", None),
    ],
)
def test_study_date_and_time(day: str, clock: str, expected: datetime | None) -> None:
    dataset = Dataset()
    dataset.add_new("StudyDate", "LO", day)
    dataset.add_new("StudyTime", "LO", clock)
    assert study_header(dataset).started_at == expected


@pytest.mark.parametrize("uid", ["", "1.2.x", "../../etc/passwd", "1" * 65])
@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"]
)
@pytest.mark.filterwarnings("ignore:(Invalid value for VR UI|The value length):UserWarning")
def test_a_bad_uid_is_a_bad_header(keyword: str, uid: str) -> None:
    content = encoded()
    dataset = dcmread(io.BytesIO(content))
    setattr(dataset, keyword, uid)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=False)
    with pytest.raises(BadHeader) as caught:
        read_header(buffer.getvalue())
    assert "passwd" not in str(caught.value)


def test_texts_fit_the_index_whatever_a_header_holds() -> None:
    assert read_header(encoded(b"Nguyen\0^Anh")).study.patient.name == "Nguyen^Anh"
    dataset = dcmread(io.BytesIO(encoded()))
    dataset.add_new("Modality", "LO", "M" * 60)
    dataset.add_new("PatientID", "LT", "1" * 5000)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=False)
    header = read_header(buffer.getvalue())
    assert (len(header.modality), len(header.study.patient.patient_id)) == (16, 1024)


@given(st.binary(max_size=300))
def test_noise_is_a_bad_header(noise: bytes) -> None:
    with pytest.raises(BadHeader):
        read_header(noise)


@given(cut=st.integers(0, 330), data=st.data())
def test_a_damaged_header_is_bad_or_whole_and_gives_no_patient_data_away(
    cut: int, data: st.DataObject
) -> None:
    content = bytearray(encoded(PatientID="SECRET-ID"))
    for place in data.draw(st.lists(st.integers(132, len(content) - 1), max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    header, refusal = None, ""
    try:
        header = read_header(bytes(content[: len(content) - cut]))
    except BadHeader as error:
        refusal = str(error)
    assert (header is None) != (refusal == "")
    assert "SECRET" not in refusal
    assert "Nguy" not in refusal


def test_a_file_describes_itself(tmp_path: Path) -> None:
    content = encoded()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").write_bytes(content)

    instance = instance_from_file(tmp_path, "a/x.dcm")

    assert instance.path == "a/x.dcm"
    assert instance.size == len(content)
    assert instance.study.patient.name == NAME
    # The hash does not depend on the file meta information, which every receiver writes anew.
    longer = dcmread(tmp_path / "a" / "x.dcm")
    longer.file_meta.SendingApplicationEntityTitle = "CT1"
    longer.save_as(tmp_path / "a" / "y.dcm")
    again = instance_from_file(tmp_path, "a/y.dcm")
    assert again.sha256 == instance.sha256
    assert (instance.calling_ae_title, again.calling_ae_title) == ("", "CT1")


def test_the_data_set_begins_after_the_file_meta_information() -> None:
    content = encoded()
    offset = data_set_offset(content)
    assert content[offset : offset + 4] == b"\x08\x00\x05\x00"
    assert data_set_offset(b"no DICOM") == 0
