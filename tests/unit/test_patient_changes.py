"""A patient who was merged or corrected: what goes out carries the new identity, and all of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from phoi_edge_node.dicom.source import copy_patient_and_study
from phoi_edge_node.result import Patient
from pydicom import Dataset
from support import values


def _images() -> Dataset:
    qualifier = Dataset()
    qualifier.UniversalEntityID = "1.2.3"
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientID, header.IssuerOfPatientID, header.TypeOfPatientID = "OLD-1", "BV-A", "RFID"
    header.IssuerOfPatientIDQualifiersSequence = [qualifier]
    header.PatientName, header.PatientBirthDate, header.PatientSex = "Sai^Tên", "19000101", "M"
    header.AccessionNumber = "ACC1"
    return header


def _told_of(patient: Patient) -> Dataset:
    target = Dataset()
    copy_patient_and_study(_images(), replace(values.header(), patient=patient), target)
    return target


def test_a_merged_patient_goes_out_under_the_new_number_alone() -> None:
    target = _told_of(Patient("NEW-2", "", "Đúng^Tên", date(1961, 5, 4), "F"))
    assert (target.PatientID, target.PatientName) == ("NEW-2", "Đúng^Tên")
    assert (target.PatientBirthDate, target.PatientSex) == ("19610504", "F")
    assert "IssuerOfPatientID" not in target
    assert "IssuerOfPatientIDQualifiersSequence" not in target
    assert "TypeOfPatientID" not in target
    assert _told_of(Patient("NEW-2", "BV-B", "", None, "")).IssuerOfPatientID == "BV-B"


def test_a_corrected_patient_keeps_the_number_and_who_gave_it() -> None:
    target = _told_of(Patient("OLD-1", "BV-A", "Đúng^Tên", None, ""))
    assert (target.PatientID, target.IssuerOfPatientID) == ("OLD-1", "BV-A")
    assert target.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"
    assert target.PatientName == "Đúng^Tên"
