"""What an archive answers decides whether a document is delivered, refused, or tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from phoi_edge_node.dicom.archive import DicomArchive
from phoi_edge_node.dicom.headers import data_set_offset
from phoi_edge_node.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    SendOutcome,
    Unreachable,
)
from phoi_edge_node.settings import ArchiveSettings
from phoi_edge_node.stand_ins.program import free_port
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from support.dcmtk import storescp
from support.dicom_peers import answering_scp, report_file

DOCUMENT = Document(DocumentKind.STRUCTURED_REPORT, "2.25.7", report_file("2.25.7"))


def archive(port: int, ae_title: str = "ARCHIVE") -> DicomArchive:
    settings = ArchiveSettings(ae_title=ae_title, host="127.0.0.1", port=port, timeout_s=5)
    return DicomArchive(settings, "PHOI")


def test_the_archive_gets_the_frozen_bytes(tmp_path: Path) -> None:
    with storescp(tmp_path, "+B") as peer:
        assert archive(peer.peer.port).send(DOCUMENT) == Delivered("status 0x0000")
        (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    sent = DOCUMENT.content[data_set_offset(DOCUMENT.content) :]
    assert content[data_set_offset(content) :] == sent


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x0000, Delivered),
        (0xB000, Delivered),  # coerced, and stored
        (0xB007, Delivered),
        (0xA700, Unreachable),
        (0xA702, Unreachable),
        (0x0213, Unreachable),
        (None, Unreachable),  # the association is aborted
        (0x0110, Erred),
        (0xC000, Erred),
        (0xC123, Erred),
        (0xA703, Erred),  # "out of resources" as well, but not for ever
        (0xA7FF, Erred),
        (0xA770, Refused),  # what dcm4chee says of rejection notes and patients
        (0xA771, Refused),
        (0xA772, Refused),
        (0xA774, Refused),
        (0xA779, Refused),
        (0xA900, Refused),
        (0x0122, Refused),
        (0x0124, Refused),
        (0x0111, Refused),
    ],
)
def test_what_a_status_means(status: int | None, expected: type[SendOutcome]) -> None:
    with answering_scp(status) as port:
        outcome = archive(port).send(DOCUMENT)
    assert isinstance(outcome, expected)
    if status and not isinstance(outcome, Delivered):
        assert outcome.reason == f"status 0x{status:04X}"


def test_an_archive_that_holds_a_rejection_note_already_has_it() -> None:
    """The answer to the first try was lost, and dcm4chee takes no note twice."""
    note = Document(DocumentKind.REJECTION_NOTE, "2.25.7", report_file("2.25.7"))
    with answering_scp(0xA770) as port:
        assert archive(port).send(note) == Delivered("status 0xA770")
    with answering_scp(0xA774) as port:
        # One object of it was rejected for another reason: none of the others is hidden.
        assert archive(port).send(note) == Refused("status 0xA774")


def test_an_archive_that_takes_no_sr_refuses_for_good() -> None:
    with answering_scp(0x0000, sop_class=SegmentationStorage) as port:
        assert isinstance(archive(port).send(DOCUMENT), Refused)
        assert isinstance(archive(port).check(), Delivered)


def test_an_archive_that_does_not_know_us_is_an_administrators_matter() -> None:
    """The association is rejected, not the document: nothing is given up."""
    with answering_scp(0x0000, allowed_calling_ae_titles=("OTHER",)) as port:
        for outcome in (archive(port).send(DOCUMENT), archive(port).check()):
            assert isinstance(outcome, Unreachable)
            assert "rejected the association" in outcome.reason


def test_an_archive_gets_the_objects_of_its_settings_and_always_what_withdraws_them() -> None:
    settings = ArchiveSettings(ae_title="A", host="127.0.0.1", port=104, objects=frozenset({"sc"}))
    kinds = {DocumentKind.SECONDARY_CAPTURE, DocumentKind.REJECTION_NOTE}
    assert set(DicomArchive(settings, "PHOI").accepts) == kinds
    assert set(archive(104).accepts) == kinds | {
        DocumentKind.SEGMENTATION,
        DocumentKind.STRUCTURED_REPORT,
        DocumentKind.KEY_OBJECTS,
    }


def test_an_association_says_which_program_asks_for_it() -> None:
    told = []

    def note(event: evt.Event) -> None:
        asked: Any = event.assoc.requestor
        told.append((asked.implementation_class_uid, asked.implementation_version_name))

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Verification)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_ACCEPTED, note)]
    )
    assert server is not None
    try:
        assert isinstance(archive(int(server.server_address[1])).check(), Delivered)
    finally:
        server.shutdown()
    assert told == [(IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME)]


def test_nobody_there() -> None:
    assert isinstance(archive(free_port()).check(), Unreachable)


def test_a_host_that_does_not_exist() -> None:
    settings = ArchiveSettings(ae_title="A", host="no-such-host.invalid", port=104, timeout_s=2)
    assert isinstance(DicomArchive(settings, "PHOI").send(DOCUMENT), Unreachable)


def test_bytes_that_are_no_dicom_file_are_refused() -> None:
    document = Document(DocumentKind.STRUCTURED_REPORT, "2.25.8", b"nonsense")
    assert isinstance(archive(free_port()).send(document), Refused)
