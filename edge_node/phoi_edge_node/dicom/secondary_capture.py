"""Secondary Capture Image (PS3.3 A.8.1): the summary as a picture that any viewer shows."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from phoi_edge_node.dicom.source import frame_number
from phoi_edge_node.dicom.stamp import NewInstance, Stamp


def make_secondary_capture(
    page: Image.Image, sources: Sequence[Dataset], instance: NewInstance, stamp: Stamp
) -> Dataset:
    """One RGB picture in a series of its own. Modality OT: no viewer may take it for CT.

    Args:
        page: RGB.
        sources: name the images that are shown on it.
    """
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientOrientation = ""
    dataset.DerivationDescription = "Summary of an AI result"
    dataset.BurnedInAnnotation = "YES"  # the patient's name is on it, on purpose
    dataset.LossyImageCompression = "00"
    if sources:
        dataset.SourceImageSequence = [_reference(source) for source in sources]
        if stamp.lossy:
            stamp.lossy.put_on(dataset)
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = page.height, page.width
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    pixels = page.tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB"
    stamp.put_on(dataset, instance)
    return dataset


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame := frame_number(source):
        item.ReferencedFrameNumber = frame
    return item
