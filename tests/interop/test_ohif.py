"""OHIF in Chromium shows our segmentation on the nodule, and our report's measurements.

With ``PHOI_PICTURES=docs/pictures`` what it shows is kept there.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from interop import ohif
from numpy.typing import NDArray
from phoi_edge_node.stand_ins.program import free_port
from phoi_models.home import Home
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from pydicom import Dataset
from support.dcmtk import storescu
from support.orthanc import DICOM_WEB
from support.outside import wait_for
from support.pacs_site import PHOI, ROUTING, Pacs, running_edge
from support.seg_reader import read_segments

CHROMIUM = "/usr/bin/chromium"
# WebGL without a graphics card.
FLAGS = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WARM = 60  # by how much red exceeds blue, of 255, where a segment is drawn; the page itself is blue
NEAR_PX = 4.0
PATIENCE_S = 480.0  # software rendering, and a real analysis, on few and busy cores
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Viewed:
    """A study in the PACS, and OHIF in front of it.

    Attributes:
        images: headers of the CT by Instance Number.
    """

    address: str
    study: str
    report: Dataset
    segmentation: Dataset
    images: Mapping[int, Dataset]


@pytest.fixture(scope="module")
def viewed(
    ct_folder: Path, ohif_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Viewed]:
    """The CT routed to a real edge node with the shipped model, and its results back."""
    folder = tmp_path_factory.mktemp("ohif")
    home, port = Home(folder / "home"), free_port()
    _phoi("models", "init", home=home)
    pacs = Pacs(folder / "orthanc", port, plugins=(DICOM_WEB,))
    pacs.start(ROUTING)
    try:
        with running_edge(folder / "edge", home, port, _settings(pacs, port)):
            study = _scan(pacs, ct_folder)
            # The segmentation goes out before the report and the summary.
            wait_for("results", lambda: set(pacs.modalities(study)) >= {"SR", "OT"}, PATIENCE_S)
        datasets = pacs.datasets(study)
        found = {str(dataset.Modality): dataset for dataset in datasets}
        assert "SEG" in found, "the model found no nodule in this CT, so there is nothing to view"
        images = {int(d.InstanceNumber): d for d in datasets if d.Modality == "CT"}
        whole = pacs.file(found["SEG"].SOPInstanceUID)
        with ohif.served(ohif_folder, pacs.http_port) as address:
            yield Viewed(address, study, found["SR"], whole, images)
    finally:
        pacs.stop()


def _phoi(*arguments: str, home: Home) -> None:
    subprocess.run([PHOI, *arguments], env={**os.environ, "PHOI_HOME": str(home.root)}, check=True)


def _settings(pacs: Pacs, port: int) -> str:
    return f"""
site = {{ name = "ohif", mode = "pacs" }}
dicom = {{ port = {port}, quiet_time_s = 1, minimum_free_disk_mb = 10 }}

[[archives]]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs.dicom_port}
"""


def _scan(pacs: Pacs, folder: Path) -> str:
    """Store the CT in the PACS; its Study Instance UID."""
    folders = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    sent = storescu(pacs.dicom_port, *folders, called="ORTHANC", environment={"TCP_NODELAY": "1"})
    assert sent.returncode == 0, sent.stderr
    (study,) = pacs.orthanc.resources("studies")
    tags = pacs.orthanc.http.get(f"/studies/{study}").json()["MainDicomTags"]
    return str(tags["StudyInstanceUID"])


@pytest.fixture
def page(viewed: Viewed) -> Iterator[Page]:
    """OHIF with the study open and its welcome tour put away."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=120_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{viewed.address}/viewer?StudyInstanceUIDs={viewed.study}")
        page.get_by_text("Skip all").click()
        yield page
        browser.close()


def open_series(page: Page, modality: str) -> None:
    """As a person does: a double click on it in the list of series."""
    label = page.locator('[data-cy="series-modality-label"]', has_text=re.compile(f"^{modality}$"))
    label.first.dblclick()


@dataclass(frozen=True)
class Viewport:
    """Where an image lies on the screen: fitted, in its middle."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, page: Page) -> Viewport:
        box = page.locator("canvas.cornerstone-canvas").first.bounding_box()
        assert box
        return cls(box["x"], box["y"], box["width"], box["height"])

    def on_screen(self, columns_rows: NDArray[np.floating], image: Dataset) -> NDArray[np.float64]:
        """Screen pixels (x, y) of places (column, row) of an image, as DICOM counts them."""
        size = np.array([image.Columns, image.Rows], float)
        mm = np.array(image.PixelSpacing, float)[::-1]
        scale = min(np.array([self.width, self.height]) / (size * mm))
        middle = np.array([self.left + self.width / 2, self.top + self.height / 2])
        place: NDArray[np.float64] = middle + (columns_rows - size / 2) * mm * scale
        return place


def shown_slice(page: Page) -> int:
    """Instance Number of the slice, as OHIF writes it in the corner."""
    text = page.locator('[data-cy="viewport-overlay-bottom-right"]').first.inner_text()
    found = re.search(r"I:\s*(\d+)", text)
    assert found, text
    return int(found[1])


def tinted(page: Page) -> NDArray[np.float64]:
    """Screen pixels (x, y) of the viewport on which segments are drawn."""
    box = Viewport.of(page)
    screen = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), int)
    y, x = np.nonzero(screen[..., 0] - screen[..., 2] > WARM)
    inside = (
        (x > box.left) & (x < box.left + box.width) & (y > box.top) & (y < box.top + box.height)
    )
    return np.stack([x[inside], y[inside]], axis=-1).astype(float)


def wait_until_still(page: Page) -> None:
    """OHIF flashes a segment to which it goes."""
    last = b""

    def is_still() -> bool:
        nonlocal last
        before, last = last, page.screenshot()
        page.wait_for_timeout(500)
        return before == last

    wait_for("still picture", is_still)


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("PHOI_PICTURES"):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(256).save(Path(folder) / name, optimize=True)


def items(dataset: Dataset) -> Iterator[Dataset]:
    """Every content item of a report, depth first."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


def test_the_segmentation_lies_on_the_nodule(viewed: Viewed, page: Page) -> None:
    segments = read_segments(viewed.segmentation)
    open_series(page, "SEG")
    page.locator('[data-cy="yes-hydrate-btn"]').click()
    page.locator('[data-cy="panelSegmentation-btn"]').click()
    row = page.locator('[data-cy="data-row-title"]', has_text="Nodule 1").first
    expect(row).to_be_visible()
    row.click()  # goes to its middle
    slices = {uid: number for number, d in viewed.images.items() for uid in [d.SOPInstanceUID]}
    of_nodule = {slices[uid] for uid in segments[1].sources}
    middle = sorted(of_nodule)[len(of_nodule) // 2]
    wait_for("slice of the nodule", lambda: abs(shown_slice(page) - middle) <= 2)
    wait_for("tint", lambda: len(tinted(page)) > 0)
    wait_until_still(page)
    keep(page, "ohif-segmentation.png")

    image = viewed.images[shown_slice(page)]
    places = [
        place + 0.5
        for segment in segments.values()
        for place, uid in zip(segment.rows_columns, segment.sources, strict=True)
        if uid == image.SOPInstanceUID
    ]
    columns_rows = np.array(places)[:, ::-1]
    expected, seen = Viewport.of(page).on_screen(columns_rows, image), tinted(page)
    np.testing.assert_allclose(seen.min(axis=0), expected.min(axis=0), atol=NEAR_PX)
    np.testing.assert_allclose(seen.max(axis=0), expected.max(axis=0), atol=NEAR_PX)
    np.testing.assert_allclose(seen.mean(axis=0), expected.mean(axis=0), atol=NEAR_PX)


def test_the_report_shows_the_nodules_axes_and_their_lengths(viewed: Viewed, page: Page) -> None:
    open_series(page, "SR")
    drawing = page.locator("svg.svg-layer").first
    long_axis = next(
        item.MeasuredValueSequence[0].NumericValue
        for item in items(viewed.report)
        if item.ValueType == "NUM"
        and item.ConceptNameCodeSequence[0].CodeMeaning.lower() == "long axis"
    )
    expect(drawing).to_contain_text(f"{float(long_axis):.2f} mm", ignore_case=True)
    wait_until_still(page)
    keep(page, "ohif-report.png")

    long, short = [i for i in items(viewed.report) if i.ValueType == "SCOORD"][:2]
    image = viewed.images[shown_slice(page)]
    (source,) = long.ContentSequence[0].ReferencedSOPSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID, "it goes to the key image"
    box = Viewport.of(page)
    ends = [
        box.on_screen(np.reshape(np.array(line.GraphicData, float), (2, 2)), image)
        for line in (long, short)
    ]
    lines = drawing.locator("line").evaluate_all(
        "lines => lines.map(l => ['x1', 'y1', 'x2', 'y2'].map(a => +l.getAttribute(a)))"
    )
    drawn = np.reshape(np.array(lines[:2], float), (2, 2, 2)) + np.array([box.left, box.top])
    np.testing.assert_allclose(drawn, ends, atol=NEAR_PX)
