"""What every object of a result carries alike: patient, study, maker, time; and its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from phoi_models.identity import ModelIdentity
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from phoi_edge_node.dicom import codes
from phoi_edge_node.dicom.headers import text
from phoi_edge_node.dicom.lossy import LossyCompression
from phoi_edge_node.dicom.source import copy_patient_and_study
from phoi_edge_node.dicom.uids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    series_of,
)
from phoi_edge_node.result import StudyHeader
from phoi_edge_node.terms import MANUFACTURER

UTF_8 = "ISO_IR 192"


@dataclass(frozen=True)
class NewInstance:
    """The identity of an object that is made. Each lies in a series of its own.

    Attributes:
        series_number, series_description: as a radiologist's list of series shows them.
    """

    sop_instance_uid: str
    series_number: int
    series_description: str

    @property
    def series_instance_uid(self) -> str:
        """Follows from the instance's."""
        return series_of(self.sop_instance_uid)


@dataclass(frozen=True)
class Stamp:
    """Who made an object, when, and of whom it is.

    Attributes:
        header: of an instance of the study.
        at: time of the result, aware, in the zone of the header's times.
        lossy: what the images lost; None where nothing.
    """

    header: Dataset
    study: StudyHeader
    model: ModelIdentity
    phoi_version: str
    at: datetime
    lossy: LossyCompression | None = None

    @property
    def software_versions(self) -> list[str]:
        """Software Versions (0018,1020): of the model, then of Phoi."""
        return [self.model.version, f"phoi {self.phoi_version}"]

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:
        """What a reader must know of the images, in English and Vietnamese."""
        return (self.lossy.remark,) if self.lossy else ()

    def put_on(self, dataset: Dataset, instance: NewInstance) -> None:
        """Write it over whatever the object's maker put there."""
        dataset.SpecificCharacterSet = UTF_8
        copy_patient_and_study(self.header, self.study, dataset)
        if text(self.header, "TimezoneOffsetFromUTC"):
            dataset.TimezoneOffsetFromUTC = self.at.strftime("%z")
        dataset.SOPInstanceUID = instance.sop_instance_uid
        dataset.SeriesInstanceUID = instance.series_instance_uid
        dataset.SeriesNumber = instance.series_number
        dataset.SeriesDescription = instance.series_description
        dataset.InstanceNumber = 1
        self._put_time(dataset)
        self._put_equipment(dataset)

    def _put_time(self, dataset: Dataset) -> None:
        day, time = self.at.strftime("%Y%m%d"), self.at.strftime("%H%M%S")
        dataset.SeriesDate = dataset.ContentDate = dataset.InstanceCreationDate = day
        dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = time

    def _put_equipment(self, dataset: Dataset) -> None:
        """Device UID changes with every retraining (IHE AI Results, 4.139)."""
        maker = Dataset()
        maker.Manufacturer = dataset.Manufacturer = MANUFACTURER
        maker.ManufacturerModelName = dataset.ManufacturerModelName = self.model.name
        maker.SoftwareVersions = dataset.SoftwareVersions = self.software_versions
        maker.DeviceSerialNumber = dataset.DeviceSerialNumber = self.model.bundle_hash
        maker.DeviceUID = self.model.device_uid
        maker.PurposeOfReferenceCodeSequence = [code_item(codes.PROCESSING_EQUIPMENT)]
        dataset.ContributingEquipmentSequence = [maker]


def code_item(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def to_bytes(dataset: Dataset) -> bytes:
    """A DICOM file (PS3.10), Explicit VR Little Endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset.file_meta = meta
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
