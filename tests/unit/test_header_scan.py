"""What a crafted header costs, and that an honest one is read as pydicom reads it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phoi_edge_node.dicom.header_scan import BadHeader, scan, scan_file_meta
from phoi_edge_node.dicom.headers import read_data_set_header
from pydicom import Dataset, Sequence, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

CORPUS = Path(__file__).parents[1] / "corpus" / "headers"
SOP_INSTANCE_UID, PATIENT_ID, STUDY_UID = 0x00080018, 0x00100020, 0x0020000D
WANTED = (SOP_INSTANCE_UID, PATIENT_ID, STUDY_UID)
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def data_set(transfer_syntax: str, *, undefined_lengths: bool = True) -> bytes:
    """A CT header with nested and private sequences before what identifies it."""
    innermost, item, dataset = Dataset(), Dataset(), Dataset()
    innermost.StudyInstanceUID = "9.9.9"  # another study's: not that of this instance
    innermost.PatientID = "OTHER"
    item.ReferencedSOPInstanceUID = "1.2.99"
    item.ReferencedSeriesSequence = Sequence([innermost, innermost])
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.ReferencedStudySequence = Sequence([item, item])
    private = dataset.private_block(0x0009, "PHOI TEST", create=True)
    private.add_new(0x01, "SQ", Sequence([item]))
    private.add_new(0x02, "UN", b"1234")
    dataset.PatientID = "BN-1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.PixelData = bytes(64)
    dataset["PixelData"].VR = "OW"
    for sequence in (dataset[0x00081110], dataset[0x00091001]):
        sequence.is_undefined_length = undefined_lengths
        for member in sequence.value:
            member.is_undefined_length_sequence_item = undefined_lengths
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    content = buffer.getvalue()
    return content[scan_file_meta(content, ())[1] :]


@pytest.mark.parametrize("undefined_lengths", [True, False])
@pytest.mark.parametrize("transfer_syntax", SYNTAXES)
def test_what_identifies_an_instance_is_found_beneath_no_sequence(
    *, transfer_syntax: str, undefined_lengths: bool
) -> None:
    encoded = data_set(transfer_syntax, undefined_lengths=undefined_lengths)
    assert scan(encoded, transfer_syntax, WANTED) == {
        SOP_INSTANCE_UID: b"1.2.3\0",
        PATIENT_ID: b"BN-1",
        STUDY_UID: b"1.2.4\0",
    }


def test_a_mislabelled_encoding_is_seen() -> None:
    explicit, implicit = data_set(ExplicitVRLittleEndian), data_set(ImplicitVRLittleEndian)
    right = scan(explicit, ExplicitVRLittleEndian, WANTED)
    assert scan(explicit, ImplicitVRLittleEndian, WANTED) == right
    assert scan(implicit, ExplicitVRLittleEndian, WANTED) == right


@pytest.mark.parametrize("uid", ["1.2.840.01.5", "1", "0" * 64])
def test_sloppy_uids_are_taken(uid: str) -> None:
    assert read_data_set_header(with_uid(uid), ExplicitVRLittleEndian).sop_instance_uid == uid


@pytest.mark.parametrize("uid", ["1..2", ".1", "1.", "1.2.3.a", "1/2", "1" * 65, "...."])
def test_what_cannot_be_a_uid_is_refused(uid: str) -> None:
    with pytest.raises(BadHeader):
        read_data_set_header(with_uid(uid), ExplicitVRLittleEndian)


def with_uid(uid: str) -> bytes:
    elements = ((0x0008, 0x0016, CTImageStorage), (0x0008, 0x0018, uid))
    rest = ((0x0020, 0x000D, "1.2.4"), (0x0020, 0x000E, "1.2.5"))
    return b"".join(
        struct.pack("<HH2sH", group, number, b"UI", len(value)) + value.encode()
        for group, number, value in (*elements, *rest)
    )


ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
EMPTY_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
SEQUENCE = struct.pack("<HH2sHL", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF)


def deflated(content: bytes) -> bytes:
    """Raw deflate of ``content`` a hundred times over."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(packer.compress(content) for _ in range(100)) + packer.flush()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "nested a hundred thousand deep": (
        ExplicitVRLittleEndian,
        lambda: (SEQUENCE + ITEM) * 100_000,
    ),
    "a million empty items": (ExplicitVRLittleEndian, lambda: SEQUENCE + EMPTY_ITEM * 1_000_000),
    "a sequence that never ends": (ExplicitVRLittleEndian, lambda: SEQUENCE + ITEM),
    "a million empty elements": (
        ExplicitVRLittleEndian,
        lambda: struct.pack("<HH2sH", 0x0008, 0x0060, b"CS", 0) * 1_000_000,
    ),
    "an element that claims 4 GiB": (
        ExplicitVRLittleEndian,
        lambda: struct.pack("<HH2sHL", 0x0008, 0x0018, b"UN", 0, 0xFFFFFFFE) + b"1.2",
    ),
    "a value of undefined length": (
        ImplicitVRLittleEndian,
        lambda: struct.pack("<HHL", 0x0008, 0x0018, 0xFFFFFFFF) + b"1.2.3.4.",
    ),
    "half a megabyte that inflates to a hundred": (
        DeflatedExplicitVRLittleEndian,
        lambda: deflated(bytes(1_000_000)),
    ),
    "a deflated million of items": (
        DeflatedExplicitVRLittleEndian,
        lambda: deflated(SEQUENCE + EMPTY_ITEM * 10_000),
    ),
    "an identity that stands there twice": (
        ExplicitVRLittleEndian,
        lambda: with_uid("1.2.3")[:60] * 2,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_and_is_refused(name: str) -> None:
    transfer_syntax, make = BOMBS[name]
    content = make()
    tracemalloc.start()
    try:
        with pytest.raises(BadHeader):
            read_data_set_header(content, transfer_syntax)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000  # a deflated data set may grow to 4 MiB, for a moment twice


@given(data=st.data(), transfer_syntax=st.sampled_from(SYNTAXES))
def test_damage_ends_in_a_bad_header_or_in_a_header(
    data: st.DataObject, transfer_syntax: str
) -> None:
    content = bytearray(data_set(transfer_syntax))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        header = read_data_set_header(bytes(content[:cut]), transfer_syntax)
    except BadHeader:
        return
    assert set(header.sop_instance_uid) <= set("0123456789.")


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_broke_a_parser_is_refused(path: Path) -> None:
    """Small ones of all that was tried; named by what they do."""
    with pytest.raises(BadHeader):
        read_data_set_header(path.read_bytes(), ExplicitVRLittleEndian)
