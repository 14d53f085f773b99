"""Other people's DICOM validators. A missing tool fails the test that asks for it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pydicom

DCIODVFY = "/usr/bin/dciodvfy"
DSRDUMP = "/usr/bin/dsrdump"
DCMDUMP = "/usr/bin/dcmdump"
GDCMINFO = "/usr/bin/gdcminfo"
PIXELMED = "/usr/share/java/pixelmed.jar"

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
    if "Found Root Template TID_1500" not in "\n".join(lines):
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


def gdcminfo(path: Path) -> str:
    """What GDCM makes of an image."""
    done = subprocess.run([GDCMINFO, str(path)], capture_output=True, check=True, timeout=60)
    return done.stdout.decode()
