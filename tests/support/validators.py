"""Other people's DICOM validators. A missing tool fails the test that asks for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray

DCIODVFY = "/usr/bin/dciodvfy"
DSRDUMP = "/usr/bin/dsrdump"
DCMDUMP = "/usr/bin/dcmdump"
DCM2JSON = "/usr/bin/dcm2json"
GDCMINFO = "/usr/bin/gdcminfo"
PIXELMED = "/usr/share/java/pixelmed.jar"

# The warnings of dciodvfy that stand, each with the reason why.
_JUDGED = {
    # The images have none, and nothing is made up.
    r"<(StudyTime|StudyID|StudyDate|PatientID)\(.*needed to build DICOMDIR$",
    # A name that the images hold in this form; it is copied letter for letter.
    r"<PatientName\(0010,0010\)> - Value dubious for this VR \[PN\] .*Retired Person Name form$",
    # PS3.3 C.7.5.2 has it since 2020 (CP-1935); dciodvfy is older.
    r"<DeviceUID\(0018,1002\)> - Attribute is not present in standard DICOM IOD$",
    # Phoi's own coding scheme, identified by its UID as PS3.3 C.12.1.1.1 asks for.
    r"<CodingSchemeDesignator\(0008,0102\)> - Unrecognized defined term = <99PHOI>$",
    r"<CodingSchemeUID\(0008,010c\)> - Unrecognized defined term = <2\.25\.[0-9]+>$",
}
_PLACE = re.compile(r"</?(?:[^>]*/)?([A-Za-z]+\([0-9a-f]{4},[0-9a-f]{4}\))(?:\[[0-9]+\])?>")

# The one false error of PixelMed's SR validator that our reports meet. It tries a measurement
# group of TID 1501 as one of TID 1411 too, because both have the same concept name, and misses the
# region that only TID 1411 asks for.
_TRIED_AS_TID_1411 = re.compile(
    r"Error: Template 1411 VolumetricROIMeasurements/\[Row 1\] CONTAINER [^/]*/\[Row (?:5|7|10)\] "
    r".*: within (?P<place>[0-9.]+): .*: Missing conditional content item$"
)


def dciodvfy_errors(path: Path) -> list[str]:
    """The errors that David Clunie's dciodvfy finds in a file, by the present standard."""
    return [line for line in _dciodvfy(path) if line.startswith("Error")]


def dciodvfy_warnings(path: Path) -> list[str]:
    """Its warnings, less those that are judged above."""
    warnings = (_PLACE.sub(r"<\1>", line) for line in _dciodvfy(path) if "Warning" in line)
    return [line for line in warnings if not any(re.search(known, line) for known in _JUDGED)]


def _dciodvfy(path: Path) -> list[str]:
    # It exits 1 where it finds an error, and tells everything on its standard error.
    done = subprocess.run(
        [DCIODVFY, "-new", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    lines = (done.stdout + done.stderr).splitlines()
    if not lines:
        raise RuntimeError(f"{DCIODVFY} said nothing: it did not run")
    return lines


def pixelmed_lines(path: Path) -> list[str]:
    """All that PixelMed's DicomSRValidator says of a report."""
    command = [
        "java",
        "-XX:TieredStopAtLevel=1",  # it runs for seconds only: a third less
        # The templates, written as XSLT, are larger than the JRE's limits for XPath.
        "-Djdk.xml.xpathTotalOpLimit=0",
        "-Djdk.xml.xpathExprOpLimit=0",
        "-Djdk.xml.xpathExprGrpLimit=0",
        "-cp",
        PIXELMED,
        "com.pixelmed.validate.DicomSRValidator",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    return (done.stdout + done.stderr).splitlines()


def pixelmed_errors(path: Path) -> list[str]:
    """The errors of PixelMed's SR validator, less the one that is known to be false."""
    lines = pixelmed_lines(path)
    if not re.search(r"Found Root Template TID_(1500|2010)", "\n".join(lines)):
        raise RuntimeError("PixelMed's validator checked no template: " + "; ".join(lines[-3:]))
    report = pydicom.dcmread(path)
    errors = (line for line in lines if line.startswith("Error"))
    return [line for line in errors if not _tried_as_tid_1411(line, report)]


def _tried_as_tid_1411(line: str, report: pydicom.Dataset) -> bool:
    """The error is the known false one, and the group it tells of says itself that it is 1501."""
    found = _TRIED_AS_TID_1411.match(line)
    if not found:
        return False
    item = report
    for number in found["place"].split(".")[1:]:  # the root is 1
        item = item.ContentSequence[int(number) - 1]
    return str(item.ContentTemplateSequence[0].TemplateIdentifier) == "1501"


def dsrdump(path: Path) -> str:
    """The content tree of a report as DCMTK reads it, in UTF-8."""
    command = [DSRDUMP, "+U8", "+Pc", "+Pl", str(path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


def dcmdump_value(path: Path, tag: str) -> str:
    """The value of one element, for example of "0010,0010", as DCMTK reads it, in UTF-8."""
    command = [DCMDUMP, "+U8", "+P", tag, str(path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return done.stdout.decode().split("[", 1)[1].rsplit("]", 1)[0].strip()


def dcm2json(path: Path) -> Mapping[str, Any]:
    """A data set in the DICOM JSON model (PS3.18 F) as DCMTK writes it."""
    done = subprocess.run([DCM2JSON, str(path)], capture_output=True, check=True, timeout=60)
    dataset: Mapping[str, Any] = json.loads(done.stdout)
    return dataset


@dataclass(frozen=True)
class ReadSegment:
    """One segment as dcmqi and ITK read it.

    Attributes:
        center_lps_mm: mean of its voxels, LPS, mm.
    """

    number: int
    label: str
    volume_mm3: float
    center_lps_mm: NDArray[np.float64]


def dcmqi_segments(path: Path, folder: Path) -> Sequence[ReadSegment]:
    """The segments of a segmentation, by number, as dcmqi (3D Slicer's reader) makes them images.

    Args:
        folder: an empty one, for what dcmqi writes.
    """
    _dcmqi("segimage2itkimage", path, "--outputDirectory", str(folder), "-t", "nrrd")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found = []
    for number, attributes in enumerate(meta["segmentAttributes"], start=1):
        image: Any = SimpleITK.ReadImage(str(folder / f"{number}.nrrd"))
        places = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1].astype(float)
        center = image.TransformContinuousIndexToPhysicalPoint(places.mean(axis=0).tolist())
        volume = len(places) * float(np.prod(image.GetSpacing()))
        label = str(attributes[0]["SegmentLabel"])
        found.append(ReadSegment(number, label, volume, np.asarray(center)))
    return found


def dcmqi_groups(path: Path, folder: Path) -> Sequence[Mapping[str, Any]]:
    """The measurement groups of a TID 1500 report as dcmqi reads them."""
    target = folder / "report.json"
    _dcmqi("tid1500reader", path, "--outputMetadata", str(target))
    groups: Sequence[Mapping[str, Any]] = json.loads(target.read_text(encoding="utf-8")).get(
        "Measurements", []
    )
    return groups


def _dcmqi(program: str, path: Path, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name(program)), "--inputDICOM", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"{program} cannot read it: {(done.stdout + done.stderr)[-500:]}")


def gdcminfo(path: Path) -> str:
    """What GDCM makes of an image."""
    done = subprocess.run([GDCMINFO, str(path)], capture_output=True, check=True, timeout=60)
    return done.stdout.decode()
