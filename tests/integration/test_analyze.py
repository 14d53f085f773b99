"""``phoi analyze`` and ``phoi send``, as a person runs them, with a test model of bright blobs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from phoi_edge_node.stand_ins.program import free_port
from phoi_models.command_line import main
from phoi_models.volume import Volume
from pydicom import dcmread
from support.chests import plain_chest
from support.dcmtk import storescp
from support.dicom_phantom import POSITIONS, Position, SeriesOptions, acquire, write_series
from support.inference import QUICK, install, new_home

LEFT_NODULE = (75.0, 30.0, 20.0)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Shell:
    """Runs ``phoi`` in this process, which spares each test the imports."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def phoi(self, *arguments: object) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["phoi", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return Done(int(str(ended.value.code or 0)), said.out, said.err)

    def analyze(self, path: Path, scratch: Path, *, status: int = 0) -> dict[str, Any]:
        done = self.phoi("analyze", path, "--json", scratch / "out.json")
        assert done.status == status, done.stderr
        document: dict[str, Any] = json.loads((scratch / "out.json").read_text(encoding="utf-8"))
        return document


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that holds the test model under the real one's name."""
    folder = tmp_path_factory.mktemp("home")
    made = new_home(folder)
    install(made, folder / "bundle", **{**QUICK, "name": "phoi-lung-nodule"})
    return made.root


@pytest.fixture
def shell(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("PHOI_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")  # tables are not to be cut
    return Shell(capsys, monkeypatch)


@pytest.fixture(scope="module")
def chest() -> Volume:
    return plain_chest([(LEFT_NODULE, 20.0)])


@pytest.mark.parametrize(
    ("position", "reversed_numbering", "tilt"),
    [
        *((position, False, 0.0) for position in POSITIONS),
        ("FFS", True, 0.0),
        ("HFS", True, 15.0),
        ("FFP", False, -15.0),
    ],
)
def test_left_is_left_however_the_patient_was_scanned(
    shell: Shell,
    chest: Volume,
    tmp_path: Path,
    position: Position,
    *,
    reversed_numbering: bool,
    tilt: float,
) -> None:
    options = SeriesOptions(
        position=position, reversed_numbering=reversed_numbering, gantry_tilt_degrees=tilt
    )
    write_series(tmp_path / "ct", chest, options)

    document = shell.analyze(tmp_path / "ct", tmp_path)

    (finding,) = document["findings"]
    assert finding["side"] == "left"
    assert np.linalg.norm(np.subtract(finding["center_lps_mm"], LEFT_NODULE)) < 4


def test_the_document_says_all_that_was_promised(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", chest)

    done = shell.phoi("analyze", tmp_path / "ct", "--json", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())

    assert done.status == 0
    assert document["study_instance_uid"] == SeriesOptions().study_instance_uid
    assert document["series_instance_uid"] == SeriesOptions().series_instance_uid
    assert document["series_reason"] == "the only suitable series: 80 slices of 4 mm"
    assert document["model"]["name"] == "phoi-lung-nodule"
    assert document["model"]["version"] == "1.0.0"
    assert document["model"]["device_uid"].startswith("2.25.")
    assert document["outcome"] == "positive"
    assert document["suggested_priority"] == "urgent"
    (finding,) = document["findings"]
    assert abs(finding["mean_diameter_mm"] - 20) < 3
    assert finding["long_axis_mm"] >= finding["short_axis_mm"]
    assert finding["attenuation"] == "solid"
    assert 0 < finding["probability"] <= 1
    assert finding["lobe"] is None or isinstance(finding["lobe"], str)
    assert finding["size_class"]["lung_rads"] == "4B"
    timing = document["timing_s"]
    assert {"read", "detect", "total"} <= set(timing)
    assert timing["total"] >= timing["read"] + timing["detect"] - 0.01
    for said in ("1 suspected nodule", "left", "Lung-RADS 4B", "Fleischner >8 mm", "urgent"):
        assert said in done.stdout
    # Every key is described.
    reference = Path(__file__).parents[2] / "docs" / "reference" / "analyze-json.md"
    described = reference.read_text(encoding="utf-8")
    for key in (*document, *finding):
        assert f"`{key}`" in described


def test_a_nifti_file_is_analysed_like_the_series(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    turned = acquire(chest, "FFP")
    image: Any = SimpleITK.GetImageFromArray(turned.hu)
    geometry = turned.geometry
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_lps_mm)
    image.SetDirection(np.array(geometry.axes_lps)[::-1].T.ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nii.gz"))

    document = shell.analyze(tmp_path / "ct.nii.gz", tmp_path)

    assert document["study_instance_uid"] is document["series_instance_uid"] is None
    (finding,) = document["findings"]
    assert finding["side"] == "left"
    assert np.linalg.norm(np.subtract(finding["center_lps_mm"], LEFT_NODULE)) < 4


def test_missing_slices_are_not_analysable_and_read_like_nothing_else(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", chest, SeriesOptions(missing=(40,)))

    document = shell.analyze(tmp_path / "ct", tmp_path, status=3)

    assert document["outcome"] == "not_analysable"
    assert document["not_analysable"] == {
        "reason": "missing_slices",
        "detail": "1 of 80 slices are missing",
    }
    assert document["study_instance_uid"] == SeriesOptions().study_instance_uid
    assert "findings" not in document
    assert "suggested_priority" not in document


def test_a_body_without_lungs_is_not_analysable(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    solid = Volume(np.where(chest.hu == -850, 40, chest.hu).astype(np.int16), chest.geometry)
    write_series(tmp_path / "ct", solid)
    document = shell.analyze(tmp_path / "ct", tmp_path, status=3)
    assert document["not_analysable"]["reason"] == "no_lungs"


def test_lungs_that_are_cut_off_are_limited_never_negative(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test model takes the edge of a volume for a blob: this one keeps nothing.
    home = new_home(tmp_path / "home")
    strict = {"default": {"probability": 0.9999}}
    names_nothing = {**QUICK, "name": "phoi-lung-nodule", "operating_points": strict}
    install(home, tmp_path / "bundle", **names_nothing)
    monkeypatch.setenv("PHOI_HOME", str(home.root))
    whole = plain_chest()
    write_series(tmp_path / "whole", whole)
    write_series(tmp_path / "cut", whole, SeriesOptions(missing=tuple(range(20))))

    assert shell.analyze(tmp_path / "whole", tmp_path)["outcome"] == "negative"
    cut = shell.analyze(tmp_path / "cut", tmp_path)

    assert cut["outcome"] == "limited"
    assert "apex" in cut["detail"]


def test_errors_are_one_plain_line(shell: Shell, chest: Volume, tmp_path: Path) -> None:
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir()
    write_series(mixed, plain_chest(spacing_mm=(5.0, 30.0, 30.0)), SeriesOptions(study=1))
    write_series(mixed, plain_chest(spacing_mm=(5.0, 30.0, 30.0)), SeriesOptions(study=2))
    for where, said in (
        (tmp_path / "nowhere", "no such file or folder"),
        (empty, "no DICOM images there"),
        (mixed, "holds 2 studies"),
    ):
        done = shell.phoi("analyze", where)
        assert done.status == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_a_model_it_says_how_to_get_one(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOI_HOME", str(tmp_path / "nobody"))
    done = shell.phoi("analyze", tmp_path)
    assert done.status == 1
    assert "run `phoi models init` first" in done.stderr


def test_foreign_and_damaged_files_are_left_out(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    folder = tmp_path / "ct"
    paths = write_series(folder, chest)
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "sub").mkdir()
    shutil.copy(paths[3], folder / "sub" / "again.dcm")
    (folder / "cut.dcm").write_bytes(paths[0].read_bytes()[:300])

    done = shell.phoi("analyze", folder)

    assert done.status == 0, done.stderr
    assert "1 damaged or foreign DICOM files were left out" in done.stderr


def test_send_stores_every_file(shell: Shell, chest: Volume, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", plain_chest(spacing_mm=(20.0, 30.0, 30.0)))
    with storescp(tmp_path / "archive") as archive:
        address = f"ARCHIVE@127.0.0.1:{archive.peer.port}"
        done = shell.phoi("send", tmp_path / "ct", "--to", address)
        kept = {dcmread(path).SOPInstanceUID for path in archive.folder.iterdir()}
    assert done.status == 0, done.stderr
    assert f"{len(paths)} of {len(paths)} files stored by ARCHIVE" in done.stderr
    assert kept == {dcmread(path).SOPInstanceUID for path in paths}


def test_send_fails_plainly(shell: Shell, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", plain_chest(spacing_mm=(20.0, 30.0, 30.0)))
    port = free_port()
    for address, said in (
        (f"ARCHIVE@127.0.0.1:{port}", "cannot be reached"),
        ("127.0.0.1:104", "is no DICOM address"),
    ):
        done = shell.phoi("send", tmp_path / "ct", "--to", address)
        assert done.status == 1
        assert said in done.stderr
    assert shell.phoi("send", tmp_path / "no", "--to", f"A@h:{port}").status == 1


def test_the_objects_that_an_archive_would_get_are_written(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", chest)
    done = shell.phoi("analyze", tmp_path / "ct", "--objects", tmp_path / "made")
    assert done.status == 0, done.stderr
    made = {path.stem: dcmread(path) for path in (tmp_path / "made").iterdir()}
    assert {kind: dataset.Modality for kind, dataset in made.items()} == {
        "seg": "SEG",
        "sr": "SR",
        "sc": "OT",
        "kos": "KO",
    }
    (study,) = {dataset.StudyInstanceUID for dataset in made.values()}
    assert study == dcmread(next((tmp_path / "ct").glob("*.dcm"))).StudyInstanceUID


def test_a_study_that_cannot_be_analysed_gives_objects_too(shell: Shell, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", plain_chest(spacing_mm=(60.0, 6.0, 6.0)))
    done = shell.phoi("analyze", tmp_path / "ct", "--objects", tmp_path / "made")
    assert done.status == 3, done.stderr
    assert {path.stem for path in (tmp_path / "made").iterdir()} == {"sr", "sc"}


def test_objects_of_a_file_that_names_no_patient_are_not_made_up(
    shell: Shell, chest: Volume, tmp_path: Path
) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(chest.hu), str(tmp_path / "ct.nii.gz"))
    done = shell.phoi("analyze", tmp_path / "ct.nii.gz", "--objects", tmp_path / "made")
    assert done.status == 1
    assert "--objects needs DICOM files" in done.stderr
    assert not (tmp_path / "made").exists()
