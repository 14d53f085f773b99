"""The review page in a real browser: what a radiologist sees, presses and signs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from phoi_edge_node.desk import Judgement, Phase
from phoi_edge_node.result import Disposition, Outcome, Priority, Verdict
from phoi_edge_node.settings import SiteSettings, WebSettings
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.web.app import create_app
from phoi_models.geometry import Triple
from phoi_models.phantom import flipped, gantry_tilted
from phoi_models.reading.dicom_series import read_volume
from phoi_models.volume import Volume
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.fake_desk import ADMIN, PASSWORD, FakeDesk, ball, result, sample_desk
from support.real_ct import lidc_idri_0001
from support.web_server import Stage, serving

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NODULE: Triple = (56.0, 86.0, -116.0)  # the real one, left lung, posterior
SECOND: Triple = (-70.0, 20.0, -180.0)
SHOWN = 'canvas[data-shown]:not([data-shown=""])'


@pytest.fixture(scope="module")
def chest() -> Volume:
    volume, _ = read_volume(sorted(lidc_idri_0001().rglob("*.dcm")))
    return volume


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=20_000)  # a busy machine is no failure
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Stage, str]]:
    stage = Stage()
    with serving(stage) as port:
        yield stage, f"http://127.0.0.1:{port}"


@dataclass
class Room:
    """A browser window in front of a desk."""

    page: Page
    desk: FakeDesk
    address: str
    complaints: list[str]

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def open_study(self, uid: str = "1.2.1") -> None:
        self.open(f"/studies/{uid}")
        self.page.wait_for_selector(SHOWN)

    @property
    def slice_shown(self) -> int:
        return int(self.page.locator("#canvas").get_attribute("data-shown") or -1)

    def wait_for_slice(self, index: int) -> None:
        self.page.wait_for_selector(f'canvas[data-shown="{index}"]')

    def brightness(self, x: float, y: float) -> float:
        """Mean grey, 0 to 255, of 5 x 5 pixels of the canvas around a place on it."""
        value: float = self.page.locator("#canvas").evaluate(
            """(canvas, [x, y]) => {
                const ratio = window.devicePixelRatio;
                const {data} = canvas.getContext("2d").getImageData(
                    Math.round(x * ratio) - 2, Math.round(y * ratio) - 2, 5, 5);
                let sum = 0;
                for (let i = 0; i < data.length; i += 4) sum += data[i];
                return sum / (data.length / 4);
            }""",
            [x, y],
        )
        return value

    def picture(self) -> str:
        """The canvas as it is, marks and letters too."""
        self.page.wait_for_timeout(150)
        # What was asked for is painted in the next frame: on a busy machine, that comes later.
        picture: str = self.page.locator("#canvas").evaluate(
            """async (canvas) => {
                for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
                return canvas.toDataURL();
            }"""
        )
        return picture

    @property
    def width(self) -> float:
        """Of the picture, without the track beside it."""
        box = self.page.locator("#canvas").bounding_box()
        assert box
        return box["width"] - 18

    def on_canvas(self, volume: Volume, lps: Triple) -> tuple[float, float]:
        """Where an upright place lies on the fitted canvas, by this test's own arithmetic."""
        box = self.page.locator("#canvas").bounding_box()
        assert box
        geometry = volume.geometry
        size = [n * s for n, s in zip(geometry.shape[1:], geometry.spacing_mm[1:], strict=True)]
        scale = min(self.width / size[1], box["height"] / size[0])
        centre = geometry.index_to_lps([(n - 1) / 2 for n in geometry.shape])
        return (
            self.width / 2 + (lps[0] - centre[0]) * scale,
            box["height"] / 2 + (lps[1] - centre[1]) * scale,
        )


@pytest.fixture
def room(browser: Browser, served: tuple[Stage, str], chest: Volume) -> Iterator[Room]:
    clock = FakeClock()
    desk = sample_desk(clock, chest, [(NODULE, 30.0), (SECOND, 6.0)])
    stage, address = served
    stage.app = create_app(desk, WebSettings(), SiteSettings(), clock, b"k" * 32)
    context = browser.new_context(viewport={"width": 1366, "height": 768}, locale="vi-VN")
    page = context.new_page()
    page.set_default_timeout(30_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(address) else complaints.append(r.url))
    page.goto(address)
    page.fill("[name=username]", ADMIN.username)
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector(".worklist")
    yield Room(page, desk, address, complaints)
    context.close()
    assert not complaints


def test_from_the_worklist_to_the_worst_nodule_by_keyboard(room: Room, chest: Volume) -> None:
    first = room.page.locator(".worklist tbody tr").first
    expect(first).to_contain_text("Nguyễn Thị Ánh Tuyết")
    expect(first).to_contain_text("Khẩn")
    room.page.keyboard.press("j")
    room.page.keyboard.press("Enter")
    room.page.wait_for_selector(SHOWN)
    assert room.page.url.endswith("/studies/1.2.1")
    expect(room.page.locator(".patient")).to_contain_text("BN-4201")
    # Slice counted from the head; on it a white nodule in dark lung, on the viewer's right.
    upwards = round(float(chest.geometry.lps_to_index(NODULE)[0]))
    assert room.slice_shown == chest.geometry.shape[0] - 1 - upwards
    assert room.on_canvas(chest, NODULE)[0] > room.width / 2
    room.page.keyboard.press("h")
    room.picture()
    nodule = room.brightness(*room.on_canvas(chest, (NODULE[0] + 4, NODULE[1] + 4, NODULE[2])))
    lung = room.brightness(*room.on_canvas(chest, (NODULE[0] + 10, NODULE[1] - 45, NODULE[2])))
    assert nodule > 180
    assert lung < 110


def test_scrolling_windows_and_zoom(room: Room, chest: Volume) -> None:
    room.open_study()
    start = room.slice_shown
    room.page.keyboard.press("j")
    room.wait_for_slice(start + 1)
    room.page.keyboard.press("ArrowUp")
    room.wait_for_slice(start)
    canvas = room.page.locator("#canvas")
    canvas.hover()
    room.page.mouse.wheel(0, 120)
    room.wait_for_slice(start + 1)
    room.page.mouse.wheel(0, -120)
    room.wait_for_slice(start)
    lung = room.on_canvas(chest, (NODULE[0] + 10, NODULE[1] - 45, NODULE[2]))
    assert room.brightness(*lung) > 20
    room.page.keyboard.press("2")
    expect(room.page.locator('[data-tool="mediastinum"]')).to_have_attribute("aria-pressed", "true")
    room.picture()
    assert room.brightness(*lung) < 5  # lung is black in the mediastinal window
    room.page.keyboard.press("End")
    room.wait_for_slice(chest.geometry.shape[0] - 1)


def test_a_whole_review_by_keys_and_clicks(room: Room, chest: Volume) -> None:
    page, desk = room.page, room.desk
    room.open_study()
    sign = page.locator('[data-act="sign"]')
    second = page.locator(".mark").nth(1).locator(".verdict")
    expect(sign).to_be_disabled()
    page.keyboard.press("s")
    expect(page.locator("dialog[open]")).to_have_count(0)

    page.keyboard.press("m")
    page.fill("#modify-dialog [name=mean_diameter_mm]", "28.5")
    page.keyboard.press("Enter")
    expect(page.locator(".mark").first).to_contain_text("28.5 mm")
    expect(page.locator(".mark.selected .badge")).to_have_text("2")  # on to the next undecided

    page.keyboard.press("r")
    page.locator('#reject-dialog button[value="vessel"]').click()
    expect(second).to_have_text("Bác bỏ")
    page.keyboard.press("u")
    expect(second).to_have_text("Chưa quyết định")
    page.keyboard.press("r")
    page.locator("#reject-dialog [name=note]").fill("nhánh mạch")
    page.keyboard.press("Enter")  # in the remark: chooses no reason
    expect(page.locator("#reject-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#reject-dialog")).to_be_hidden()
    page.keyboard.press("r")
    expect(page.locator('#reject-dialog button[value="vessel"]')).to_be_focused()
    page.keyboard.press("2")
    expect(second).to_have_text("Bác bỏ")

    missed: Triple = (-60.0, 30.0, -116.0)
    page.keyboard.press("p")  # back to the first nodule and its slice
    room.wait_for_slice(chest.geometry.shape[0] - 1 - 90)
    page.keyboard.press("x")
    x, y = room.on_canvas(chest, missed)
    page.locator("#canvas").click(position={"x": x, "y": y})
    page.fill("#missed-dialog [name=mean_diameter_mm]", "7")
    page.keyboard.press("Enter")
    expect(page.locator(".mark")).to_have_count(3)
    expect(page.locator(".mark.selected .badge")).to_have_text("3")

    expect(sign).to_be_enabled()
    page.keyboard.press("s")
    expect(page.locator("#sign-dialog")).to_contain_text("Nguyễn Thị Ánh Tuyết")
    page.locator("#sign-dialog button.primary").click()
    expect(page.locator(".signed-line")).to_contain_text(ADMIN.display_name)
    expect(page.locator("[data-act]")).to_have_count(0)

    study = desk.studies["1.2.1"]
    verdicts = [said.verdict for said in study.standing.values()]
    assert sorted(verdicts) == [Verdict.MISSED, Verdict.MODIFIED, Verdict.REJECTED]
    assert [j.disposition.reason for j in study.history] == ["", "vessel", "scar", ""]
    (said,) = desk.study("1.2.1").missed
    assert said.correction.center_lps_mm == pytest.approx((*missed[:2], -115.0), abs=0.8)
    assert study.row.phase is Phase.SIGNED


def test_dragging_across_a_missed_nodule_measures_it(room: Room, chest: Volume) -> None:
    room.open_study("1.2.2")
    z = float(chest.geometry.index_to_lps([66, 0, 0])[2])
    ends = [room.on_canvas(chest, (50.0, y, z)) for y in (0.0, 12.0)]
    box = room.page.locator("#canvas").bounding_box()
    assert box
    room.page.keyboard.press("x")
    room.page.mouse.move(box["x"] + ends[0][0], box["y"] + ends[0][1])
    room.page.mouse.down()
    room.page.mouse.move(box["x"] + ends[1][0], box["y"] + ends[1][1])
    room.page.mouse.up()
    diameter = room.page.locator("#missed-dialog [name=mean_diameter_mm]").input_value()
    assert float(diameter) == pytest.approx(12.0, abs=0.8)
    room.page.keyboard.press("Enter")
    expect(room.page.locator(".mark")).to_have_count(1)
    (said,) = room.desk.study("1.2.2").missed
    assert said.correction.center_lps_mm == pytest.approx((50.0, 6.0, z), abs=1.0)


def test_a_refused_judgement_is_said_and_nothing_is_lost(room: Room) -> None:
    room.open_study()
    room.desk.studies["1.2.1"].signed_at = room.desk.clock.now()
    room.page.keyboard.press("a")
    expect(room.page.locator("#failure")).to_contain_text("Không lưu được")
    expect(room.page.locator(".mark").first).to_contain_text("Chưa quyết định")
    room.complaints.clear()  # the browser itself reports the 409


def test_what_a_colleague_does_is_announced(room: Room) -> None:
    room.open_study()
    study = room.desk.studies["1.2.1"]
    nodule = room.desk.study("1.2.1").nodules[0]
    said = Disposition(nodule.tracking_uid, Verdict.ACCEPTED, "bs.lan", room.desk.clock.now())
    study.history.append(Judgement(said))
    expect(room.page.locator("#changed")).to_be_visible()


def test_the_worklist_updates_by_itself(room: Room, served: tuple[Stage, str]) -> None:
    row = room.page.locator('tr[data-uid="1.2.6"]')
    expect(row).to_contain_text("Đang phân tích")
    room.page.fill("#filter", "dang thuy")  # without accents
    expect(room.page.locator(".worklist tbody tr:visible")).to_have_count(1)
    study = room.desk.studies["1.2.6"]
    study.phase = Phase.READY
    study.result = result("1.2.6", Outcome.NEGATIVE, (), Priority.ROUTINE, at=study.received_at)
    expect(row).to_contain_text("Không thấy nốt")
    expect(room.page.locator(".worklist tbody tr:visible")).to_have_count(1)

    stage, _ = served
    stage.app = None  # every request now fails
    expect(room.page.locator("#lost")).to_be_visible()
    room.complaints.clear()


@pytest.mark.parametrize("flips", [(0,), (1, 2), (0, 2)])
def test_every_storage_order_is_the_same_picture(
    room: Room, flips: tuple[int, ...], chest: Volume
) -> None:
    """Slices in reverse order, a patient on the belly, feet first."""
    show(room, chest)
    wanted = room.picture()
    x, y = room.on_canvas(chest, (NODULE[0] + 4, NODULE[1] + 4, NODULE[2]))
    assert x > room.width / 2
    assert room.brightness(x, y) > 180
    show(room, flipped(chest, *flips))
    expect(room.page.locator(".mark").first).to_contain_text("Phổi TRÁI")
    assert room.picture() == wanted


def test_a_tilted_gantry_shows_the_left_nodule_on_the_right(room: Room, chest: Volume) -> None:
    fine = chest.geometry
    geometry = replace(fine, shape=(133, 128, 128), spacing_mm=(2.5, 2.8125, 2.8125))
    coarse = Volume(np.ascontiguousarray(chest.hu[:, ::4, ::4]), geometry)
    show(room, gantry_tilted(coarse, 15.0))
    expect(room.page.locator(".mark").first).to_contain_text("Phổi TRÁI")
    data = room.page.request.get(f"{room.address}/studies/1.2.1/revisions/1/viewer.json").json()
    assert data["labels"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


def show(room: Room, volume: Volume) -> None:
    study = room.desk.studies["1.2.1"]
    study.volume = volume
    study.result = result(
        "1.2.1", Outcome.POSITIVE, [ball(volume, NODULE, 30.0, 0.9)], at=study.received_at
    )
    room.open_study()


@pytest.mark.parametrize("width", [1366, 1024, 420])
def test_nothing_is_wider_than_the_screen(room: Room, width: int) -> None:
    room.page.set_viewport_size({"width": width, "height": 768})
    for path in ("/", "/studies/1.2.1", "/studies/1.2.4", "/operations", "/kpis", "/report"):
        room.open(path)
        wide = room.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, (path, width)


def test_english_is_one_click_away(room: Room) -> None:
    room.open_study()
    room.page.get_by_role("button", name="English").click()
    room.page.wait_for_selector(SHOWN)
    expect(room.page.locator(".mark").first).to_contain_text("LEFT lung")
    expect(room.page.locator("footer")).to_contain_text("not a diagnosis")
