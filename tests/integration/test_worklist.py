"""The order behind a study, asked of DCMTK's and of Orthanc's modality worklist."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from phoi_edge_node.dicom.worklist import ModalityWorklist
from phoi_edge_node.errors import SourceUnavailable
from phoi_edge_node.order_lookup import TRIES, WAIT_S, OrderLookup
from phoi_edge_node.orders import (
    HospitalMessage,
    ImagingOrder,
    OrderAction,
    OrderNumber,
    PatientKey,
    ToldOrder,
)
from phoi_edge_node.result import Patient, Priority, StudyHeader
from phoi_edge_node.settings import WorklistSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.stand_ins.program import free_port, process
from phoi_edge_node.testing import FakeClock
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from support import values
from support.dcmtk import wait_until_listening
from support.orthanc import WORKLISTS, orthanc
from support.outside import wait_for

STUDY = values.header()
STAT = ("ACC1", "BN-0042", "20260102", "CT", "STAT", "1.2.3")


def _write(folder: Path, items: Sequence[tuple[str, ...]]) -> None:
    """Worklist files, as both servers read them."""
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    for number, (accession, patient, day, modality, priority, uid) in enumerate(items):
        step = Dataset()
        step.Modality, step.ScheduledStationAETitle = modality, "CT1"
        step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = day, "0800"
        step.ScheduledPerformingPhysicianName = step.ScheduledProcedureStepDescription = "x"
        step.ScheduledProcedureStepID = f"S{number}"
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
        item.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.9.{number}")
        item.SpecificCharacterSet = "ISO_IR 192"
        item.AccessionNumber, item.PatientID, item.StudyInstanceUID = accession, patient, uid
        item.PatientName, item.PatientBirthDate, item.PatientSex = "Nguyễn^Ánh", "19610504", "F"
        item.RequestingPhysician = "Lê^Trác"
        item.RequestedProcedureID = f"R{number}"
        item.RequestedProcedureDescription = "CT ngực"
        item.RequestedProcedurePriority = priority
        item.ReasonForTheRequestedProcedure = "Nốt phổi?"
        item.PlacerOrderNumberImagingServiceRequest = f"P{number}"
        item.ScheduledProcedureStepSequence = [step]
        item.save_as(folder / f"{number}.wl", enforce_file_format=True)


@contextmanager
def _served_by(program: str, folder: Path, items: Sequence[tuple[str, ...]]) -> Iterator[int]:
    """A worklist SCP with AE title RIS; its port."""
    _write(folder / "RIS", items)
    if program == "orthanc":
        section = {"Enable": True, "Database": str(folder / "RIS")}
        with orthanc(
            folder / "orthanc", plugins=(WORKLISTS,), Worklists=section, DicomAet="RIS"
        ) as ris:
            yield ris.dicom_port
        return
    port = free_port()
    command = ["/usr/bin/wlmscpfs", "-nse", "-dfr", "-dfp", str(folder), str(port)]
    with process(command, subprocess.DEVNULL, subprocess.DEVNULL):
        wait_until_listening(port)
        yield port


def _worklist(port: int) -> ModalityWorklist:
    settings = WorklistSettings(ae_title="RIS", host="127.0.0.1", port=port, timeout_s=10)
    return ModalityWorklist(settings, "PHOI")


@pytest.mark.parametrize("program", ["wlmscpfs", "orthanc"])
def test_the_order_is_found(program: str, tmp_path: Path) -> None:
    items = [
        STAT,
        ("ACC2", "BN-0042", "20260102", "MR", "LOW", "1.2.4"),
        ("ACC3", "BN-7", "20260102", "CT", "HIGH", "1.2.5"),
        ("ACC4", "BN-8", "20260102", "CT", "HIGH", "1.2.6"),
        ("ACC5", "BN-8", "20260102", "CT", "HIGH", "1.2.7"),
    ]
    with _served_by(program, tmp_path, items) as port:
        worklist = _worklist(port)
        assert worklist.order_for(STUDY) == ImagingOrder(
            placer=OrderNumber("P0"),
            accession_number="ACC1",
            study_instance_uid="1.2.3",
            patients=(PatientKey("BN-0042"),),
            requester="Lê^Trác",
            clinical_question="Nốt phổi?",
            procedure="CT ngực",
            priority=Priority.STAT,
        )
        # Without an accession number: by patient, day and modality, if it is for this study.
        found = worklist.order_for(_of("BN-0042"))
        assert found
        assert (found.accession_number, found.study_instance_uid) == ("ACC1", "1.2.3")
        # Nor an order of the day for another study: of the head, say, that is still to come.
        assert worklist.order_for(_of("BN-7")) is None
        assert worklist.order_for(replace(STUDY, study_instance_uid="1.2.8")) is None
        assert worklist.order_for(_of("BN-8")) is None
        assert worklist.order_for(_of("BN-7", day=3)) is None
        assert worklist.order_for(_of("")) is None
        # Nor another patient's, nor everybody's.
        stranger = replace(STUDY, patient=Patient("BN-9", "", "", None, ""))
        assert worklist.order_for(stranger) is None
        assert worklist.order_for(_of("*")) is None
        assert worklist.order_for(replace(STUDY, accession_number="ACC?")) is None
        assert worklist.order_for(replace(STUDY, accession_number="NONE")) is None


def _of(patient_id: str, day: int = 2) -> StudyHeader:
    return replace(
        STUDY,
        patient=Patient(patient_id, "", "", None, ""),
        accession_number="",
        started_at=datetime(2026, 1, day, 9, 30),  # noqa: DTZ001 - DICOM writes no time zone
    )


def test_a_worklist_that_is_away_or_offers_no_worklist_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable):
        _worklist(free_port()).order_for(STUDY)


class _Asked:
    """Stands for the worklist; answers with an order, nothing, or trouble."""

    def __init__(self, *answers: ImagingOrder | Exception | None) -> None:
        self.answers = list(answers)
        self.studies: list[str] = []

    def order_for(self, study: StudyHeader) -> ImagingOrder | None:
        self.studies.append(study.study_instance_uid)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[SqlStore]:
    engine = open_engine(f"sqlite:///{tmp_path / 'phoi.sqlite'}")
    yield SqlStore(engine, clock)
    engine.dispose()


def test_a_study_is_asked_about_until_its_order_is_known(store: SqlStore, clock: FakeClock) -> None:
    order = ImagingOrder(
        accession_number="ACC1", patients=(PatientKey("BN-0042"),), priority=Priority.STAT
    )
    asked = _Asked(SourceUnavailable("away"), None, order)
    lookup = OrderLookup(store, asked, clock)
    assert not lookup.ask_next()
    store.add_instance(values.instance(1))
    for _ in range(3):
        assert lookup.ask_next()
        assert not lookup.ask_next()
        clock.advance(WAIT_S)
    assert store.order_of("1.2.3") == order
    assert not lookup.ask_next()
    store.complete_study("1.2.3", Priority.ROUTINE)
    assert [a.priority for a in store.analyses("1.2.3")] == [Priority.STAT]


def test_what_a_message_says_is_later_than_the_worklist(store: SqlStore, clock: FakeClock) -> None:
    known = ImagingOrder(
        placer=OrderNumber("P1"),
        accession_number="ACC1",
        procedure="CT ngực",
        patients=(PatientKey("BN-0042"),),
    )
    store.add_instance(values.instance(1))
    assert OrderLookup(store, _Asked(known), clock).ask_next()
    slow = clock.now() - timedelta(minutes=5)
    stat = replace(known, priority=Priority.STAT)
    placed = ToldOrder(OrderAction.UPDATE, stat)
    store.take_message(HospitalMessage("stat", slow, orders=(placed,)))
    assert store.order_of("1.2.3") == stat
    cancelled = ToldOrder(OrderAction.CANCEL, stat)
    store.take_message(HospitalMessage("cancel", slow, orders=(cancelled,)))
    assert store.order_of("1.2.3") is None


def test_the_worklist_fills_in_what_no_message_said(store: SqlStore, clock: FakeClock) -> None:
    told = ImagingOrder(
        placer=OrderNumber("P1"), priority=Priority.STAT, patients=(PatientKey("BN-0042"),)
    )
    placed = ToldOrder(OrderAction.PLACE, told)
    store.take_message(HospitalMessage("placed", clock.now(), orders=(placed,)))
    store.add_instance(values.instance(1))
    listed = replace(told, accession_number="ACC1", priority=Priority.ROUTINE)
    assert OrderLookup(store, _Asked(listed), clock).ask_next()
    assert store.order_of("1.2.3") == replace(told, accession_number="ACC1")


def test_it_gives_up_and_the_study_goes_on(store: SqlStore, clock: FakeClock) -> None:
    asked = _Asked(*[SourceUnavailable("away")] * 10)
    lookup = OrderLookup(store, asked, clock)
    store.add_instance(values.instance(1))
    for _ in range(10):
        lookup.ask_next()
        clock.advance(WAIT_S)
    assert len(asked.studies) == TRIES
    assert store.complete_study("1.2.3", Priority.ROUTINE)


def test_one_study_without_an_answer_holds_up_no_other(store: SqlStore, clock: FakeClock) -> None:
    asked = _Asked()
    lookup = OrderLookup(store, asked, clock)
    for uid in ("1.2.3", "1.2.4"):
        store.add_instance(values.instance(1, uid))
    wait_for("both", lambda: lookup.ask_next() and len(asked.studies) == 2)
    assert set(asked.studies) == {"1.2.3", "1.2.4"}
