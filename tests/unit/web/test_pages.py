"""The pages, asked of a real server over HTTP, in front of the in-memory desk."""

from __future__ import annotations

import gzip
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.routing import APIRoute
from phoi_edge_node.desk import CommitmentView, DamagedImage, Phase, ReceivingView
from phoi_edge_node.errors import Conflict
from phoi_edge_node.orders import ImagingOrder, OrderNumber
from phoi_edge_node.policies import LIVES
from phoi_edge_node.result import Completeness, Outcome, Priority, ToldPriority, Verdict
from phoi_edge_node.settings import SiteMode, SiteSettings, WebSettings
from phoi_edge_node.study import DeliveryState
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.web import operations
from phoi_edge_node.web.app import create_app, server_config
from phoi_edge_node.web.security import SignInBrake
from phoi_edge_node.web.texts import TEXTS, say
from phoi_models.geometry import Geometry, Triple
from phoi_models.phantom import flipped
from phoi_models.volume import Volume
from support.fake_desk import ADMIN, PASSWORD, REVIEWER, FakeDesk, sample_desk
from support.web_server import Stage, serving

UPRIGHT = Geometry(
    (30, 40, 48),
    (2.5, 2.0, 2.0),
    (-47.0, -39.0, -37.5),
    ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
)
LEFT: Triple = (21.0, 5.0, 10.0)
RIGHT: Triple = (-21.0, -5.0, -10.0)
NODULES = [(LEFT, 8.0), (RIGHT, 6.0)]
STUDY = "/studies/1.2.1"


def make_volume() -> Volume:
    rng = np.random.default_rng(1)
    return Volume(rng.integers(-1000, 400, UPRIGHT.shape, dtype=np.int16), UPRIGHT)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def desk(clock: FakeClock) -> FakeDesk:
    return sample_desk(clock, make_volume(), NODULES)


@pytest.fixture
def app(desk: FakeDesk, clock: FakeClock) -> FastAPI:
    site = SiteSettings(name="bv-test", mode=SiteMode.PACS)
    return create_app(desk, WebSettings(), site, clock, b"k" * 32)


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, httpx.Client]]:
    stage = Stage()
    with (
        serving(stage) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield stage, client


@pytest.fixture
def client(app: FastAPI, stage: tuple[Stage, httpx.Client]) -> httpx.Client:
    """A browser without cookies, in front of a fresh application."""
    stage[0].app = app
    stage[1].cookies.clear()
    return stage[1]


def csrf_of(response: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', response.text)
    assert found
    return found[1]


def sign_in(
    client: httpx.Client, username: str = REVIEWER.username, password: str = PASSWORD
) -> httpx.Response:
    token = csrf_of(client.get("/login"))
    fields = {"csrf": token, "username": username, "password": password}
    return client.post("/login", data=fields)


@pytest.fixture
def reviewer(client: httpx.Client) -> httpx.Client:
    assert sign_in(client).status_code == 303
    return client


def post(
    client: httpx.Client, path: str, fields: Mapping[str, object], *, script: bool = True
) -> httpx.Response:
    data = {"csrf": csrf_of(client.get("/report"))} | {k: str(v) for k, v in fields.items()}
    headers = {"X-Requested-With": "fetch"} if script else {}
    return client.post(path, data=data, headers=headers)


def routes(app: FastAPI, method: str) -> list[str]:
    values = {"uid": "1.2.1", "revision": "1", "index": "0", "delivery_id": "31"}
    paths = {route.path for route in _walk(app) if method in (route.methods or ())}
    return sorted(path.format(**values) for path in paths)


def _walk(router: object) -> Iterator[APIRoute]:
    """Every route, also of included routers, which newer versions keep in a tree."""
    for route in getattr(router, "routes", ()):
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from _walk(getattr(route, "original_router", route))


# --- signing in ------------------------------------------------------------------------------


OPEN_TO_ALL = {"/login", "/logout", "/language", "/healthz", "/readyz"}


def test_every_page_needs_a_person(app: FastAPI, client: httpx.Client) -> None:
    paths = set(routes(app, "GET")) - OPEN_TO_ALL
    assert len(paths) >= 10
    for path in paths:
        response = client.get(path)
        assert response.status_code == 303, path
        assert response.headers["location"] == f"/login?after={path}"
        scripted = client.get(path, headers={"X-Requested-With": "fetch"})
        assert scripted.status_code == 401, path


def test_every_post_needs_a_form_of_ours(app: FastAPI, reviewer: httpx.Client) -> None:
    paths = routes(app, "POST")
    assert len(paths) >= 10
    for path in paths:
        assert reviewer.post(path, data={}).status_code in {403, 422}, path
        forged = {"csrf": "x" * 43, "tracking_uid": "2.25.7710", "verdict": "accepted"}
        forged |= {"username": "a", "password": "b", "language": "en", "target": "everything"}
        forged |= {"revision": "1", "judgements_seen": "0", "text": "x"}
        forged |= {"slice_index": "1", "row": "1", "column": "1"}
        response = reviewer.post(path, data=forged)
        assert response.status_code == 403, path


def test_every_change_needs_a_person(app: FastAPI, client: httpx.Client, desk: FakeDesk) -> None:
    token = csrf_of(client.get("/login"))
    for path in set(routes(app, "POST")) - OPEN_TO_ALL:
        fields = {"csrf": token, "tracking_uid": "2.25.7710", "verdict": "accepted"}
        fields |= {"revision": "1", "judgements_seen": "0", "text": "x", "target": "everything"}
        fields |= {"slice_index": "1", "row": "1", "column": "1"}
        assert client.post(path, data=fields).status_code == 401, path
    assert not desk.paused
    assert not desk.studies["1.2.1"].history


def test_signing_in_and_out(client: httpx.Client, desk: FakeDesk) -> None:
    response = sign_in(client)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # plain HTTP on 127.0.0.1; with TLS see below
    page = client.get("/")
    assert REVIEWER.display_name in page.text
    assert client.post("/logout", data={"csrf": csrf_of(page)}).status_code == 303
    assert client.get("/").status_code == 303
    actions = [(entry.username, entry.action) for entry in desk.entries]
    assert actions == [
        ("bs.lan", "sign_in"),
        ("bs.lan", "view_worklist"),
        ("bs.lan", "sign_out"),
    ]


def test_a_stolen_cookie_is_worthless_after_signing_out(reviewer: httpx.Client) -> None:
    cookies = dict(reviewer.cookies)
    reviewer.post("/logout", data={"csrf": csrf_of(reviewer.get("/report"))})
    reviewer.cookies.update(cookies)
    assert reviewer.get("/").status_code == 303


def test_a_session_ends_by_itself(reviewer: httpx.Client, clock: FakeClock) -> None:
    clock.advance(timedelta(hours=12).total_seconds() + 1)
    assert reviewer.get("/").status_code == 303


def test_a_wrong_password_is_refused_and_soon_braked(client: httpx.Client, desk: FakeDesk) -> None:
    for _ in range(SignInBrake.PER_USER):
        response = sign_in(client, password="wrong horse")
        assert response.status_code == 401
    assert sign_in(client).status_code == 429  # even the right one, for a while
    assert {entry.action for entry in desk.entries} == {"sign_in_failed"}
    assert "wrong horse" not in str(desk.entries)


def test_with_tls_cookies_are_secure(desk: FakeDesk, clock: FakeClock, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    settings = WebSettings(port=0, tls_certificate=certificate, tls_key=key)
    app = create_app(desk, settings, SiteSettings(), clock, b"k" * 32)
    trusted = ssl.create_default_context(cafile=certificate)
    with (
        serving(app, settings) as port,
        httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=60) as client,
    ):
        response = sign_in(client)
        assert "Secure" in response.headers["set-cookie"]
        assert "Strict-Transport-Security" in response.headers
        assert client.get("/").status_code == 200


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def test_only_an_administrator_reads_the_audit(client: httpx.Client) -> None:
    sign_in(client)
    assert client.get("/audit").status_code == 403
    client.cookies.clear()
    sign_in(client, ADMIN.username)
    page = client.get("/audit")
    assert page.status_code == 200
    assert "sign_in" in page.text


# --- headers, health, errors -----------------------------------------------------------------


def test_headers_protect_every_page(reviewer: httpx.Client) -> None:
    for path in ("/", STUDY, "/healthz", "/static/viewer.js", "/nowhere"):
        headers = reviewer.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        wanted = "no-cache" if path.startswith("/static") else "no-store"
        assert headers["cache-control"] == wanted


def test_pages_hold_no_inline_script_or_style(reviewer: httpx.Client) -> None:
    for path in ("/", STUDY, "/operations", "/deliveries", "/kpis", "/report"):
        html = reviewer.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", html)
        assert not re.search(r"\s(style|on[a-z]+)=", html)


def test_health_tells_nothing_about_patients(client: httpx.Client, desk: FakeDesk) -> None:
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").status_code == 200
    desk.not_ready = ("the database does not answer",)
    response = client.get("/readyz")
    assert (response.status_code, response.text) == (503, "the database does not answer\n")


def test_what_does_not_exist(reviewer: httpx.Client) -> None:
    for path in ("/nowhere", "/studies/9.9.9", f"{STUDY}/revisions/1/slices/30"):
        assert reviewer.get(path).status_code == 404, path
    assert reviewer.get(f"{STUDY}/revisions/1/slices/-1").status_code == 404
    assert reviewer.get(f"{STUDY}/revisions/2/slices/0").status_code == 409
    assert reviewer.get("/studies/robert'); drop").status_code == 422


def test_an_error_page_does_not_echo_its_address(reviewer: httpx.Client) -> None:
    for path in ("/nguyen-thi-anh-tuyet", "/studies/nguyen-thi-anh-tuyet"):
        response = reviewer.get(path)
        assert response.is_client_error
        assert "tuyet" not in response.text


def test_an_unexpected_error_shows_and_logs_no_patient(
    reviewer: httpx.Client, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(limit: int) -> None:
        raise RuntimeError("INSERT ... VALUES ('Nguyễn Thị Ánh Tuyết')")

    monkeypatch.setattr(desk, "worklist", broken)
    with structlog.testing.capture_logs() as logs:
        response = reviewer.get("/")
    assert response.status_code == 500
    assert "Tuyết" not in response.text + str(logs)
    assert logs[0]["error"] == "RuntimeError"
    assert any(place.startswith("worklist.py:") for place in logs[0]["places"])


def test_the_server_keeps_no_access_log(app: FastAPI) -> None:
    assert not server_config(app, WebSettings()).access_log


# --- worklist --------------------------------------------------------------------------------


def uids(html: str) -> list[str]:
    return re.findall(r'data-uid="([0-9.]+)"', html)


def test_the_worklist_is_sorted_by_priority_then_age(reviewer: httpx.Client) -> None:
    shown = uids(reviewer.get("/?show=all").text)
    # Stat first; then by age, what Phoi could not judge among the routine; signed last.
    assert shown == [
        "1.2.1",
        "1.2.3",
        "1.2.5",
        "1.2.4",
        "1.2.2",
        "1.2.6",
        "1.2.7",
        "1.2.8",
        "1.2.9",
    ]


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ("open", {"1.2.1", "1.2.2", "1.2.3", "1.2.4", "1.2.5", "1.2.6", "1.2.7", "1.2.8"}),
        ("review", {"1.2.1", "1.2.2", "1.2.3"}),
        ("working", {"1.2.6", "1.2.7", "1.2.8"}),
        ("problems", {"1.2.3", "1.2.4", "1.2.5"}),  # 3: a delivery failed
        ("signed", {"1.2.9"}),
    ],
)
def test_parts_of_the_worklist(reviewer: httpx.Client, show: str, expected: set[str]) -> None:
    assert set(uids(reviewer.get(f"/?show={show}").text)) == expected
    assert set(uids(reviewer.get(f"/worklist/rows?show={show}").text)) == expected


def test_only_a_negative_study_reads_like_one(reviewer: httpx.Client, desk: FakeDesk) -> None:
    html = reviewer.get("/?show=all").text
    rows = {row[0]: row[1] for row in re.findall(r'data-uid="([\d.]+)"(.*?)</tr>', html, re.S)}
    for uid, study in desk.studies.items():
        negative = study.result is not None and study.result.outcome is Outcome.NEGATIVE
        assert ("Không thấy nốt" in rows[uid]) == negative
        assert ("outcome-negative" in rows[uid]) == negative
    for uid in ("1.2.4", "1.2.5"):
        assert "Thường" not in rows[uid]  # nobody judged its priority


def test_a_study_that_changed_after_signing_stands_on_top_and_says_so(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    study = desk.studies["1.2.2"]
    assert "Thay đổi sau khi trả kết quả" not in reviewer.get("/?show=all").text
    study.changed_after_signing = True
    html = reviewer.get("/?show=problems").text
    assert uids(html)[0] == "1.2.2"
    assert "Thay đổi sau khi trả kết quả" in html
    assert "SAU KHI TRẢ KẾT QUẢ" in reviewer.get("/studies/1.2.2").text


def test_images_that_came_after_the_others_were_removed_are_a_problem_and_said(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    study = desk.studies["1.2.2"]
    assert TEXTS["study.late_images"][0] not in reviewer.get("/studies/1.2.2").text
    study.late_images = True
    html = reviewer.get("/?show=problems").text
    assert "1.2.2" in uids(html)
    assert TEXTS["worklist.late_images"][0] in html
    assert TEXTS["study.late_images"][0] in reviewer.get("/studies/1.2.2").text


@pytest.mark.parametrize("how", Completeness)
def test_how_a_study_is_known_to_be_whole_is_shown(
    reviewer: httpx.Client, desk: FakeDesk, how: Completeness
) -> None:
    study = desk.studies["1.2.2"]
    assert study.result
    study.result = replace(study.result, completeness=how)
    unconfirmed = how is Completeness.UNCONFIRMED
    page = reviewer.get("/studies/1.2.2").text
    assert TEXTS[f"completeness.{how.value}"][0] in page
    assert ("⚠ CHƯA XÁC NHẬN ĐỦ ẢNH" in page) is unconfirmed
    assert ("⚠ Chưa xác nhận đủ ảnh" in reviewer.get("/?show=all").text) is unconfirmed


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (None, set()),
        (ToldPriority(Priority.URGENT), set()),
        (ToldPriority(Priority.STAT, "night"), {"by_rule"}),
        (ToldPriority(None, "night"), {"by_rule", "nothing_told"}),
        (ToldPriority(Priority.STAT, "", as_ordered=True), {"as_ordered"}),
    ],
)
def test_why_this_priority_is_told_is_shown(
    reviewer: httpx.Client, desk: FakeDesk, told: ToldPriority | None, shown: set[str]
) -> None:
    study = desk.studies["1.2.2"]
    assert study.result
    study.result = replace(study.result, told_priority=told)
    page = unescape(reviewer.get("/studies/1.2.2").text)
    keys = ("by_rule", "nothing_told", "as_ordered")
    texts = {key: TEXTS[f"priority.{key}"][0].format(rule="night") for key in keys}
    assert {key for key, text in texts.items() if text in page} == shown


def test_the_figures_say_gently_that_nobody_signs(
    reviewer: httpx.Client, desk: FakeDesk, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = TEXTS["kpis.nobody_signs"][0].format(count=7)
    assert asked not in reviewer.get("/kpis").text
    kpis = replace(desk.kpis(), nobody_signs=7, last_signed_at=clock.now())
    monkeypatch.setattr(desk, "kpis", lambda: kpis)
    page = reviewer.get("/kpis").text
    assert asked in page
    assert TEXTS["kpis.last_signed"][0].split("{")[0] in page


def test_a_study_whose_images_were_removed_says_so_and_keeps_its_result(
    reviewer: httpx.Client, desk: FakeDesk, clock: FakeClock
) -> None:
    uid, study = next((u, s) for u, s in desk.studies.items() if s.result and s.result.nodules)
    assert "canvas" in reviewer.get(f"/studies/{uid}").text
    study.images_removed_at = clock.now()
    html = reviewer.get(f"/studies/{uid}").text
    assert "Ảnh đã được xóa khỏi Phoi lúc" in html
    assert "canvas" not in html


def test_watching_the_worklist_is_logged_once_not_at_every_refresh(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    reviewer.get("/")
    for _ in range(3):
        reviewer.get("/worklist/rows")
    assert [entry.action for entry in desk.entries].count("view_worklist") == 1


def test_the_other_language_is_remembered(reviewer: httpx.Client) -> None:
    page = reviewer.get("/")
    assert '<html lang="vi">' in page.text
    fields = {"csrf": csrf_of(page), "language": "en", "after": STUDY}
    response = reviewer.post("/language", data=fields)
    assert response.headers["location"] == STUDY
    page = reviewer.get(STUDY)
    assert '<html lang="en">' in page.text
    assert "LEFT lung" in page.text
    assert "Phổi TRÁI" not in page.text


def test_markup_in_a_header_stays_text(reviewer: httpx.Client, desk: FakeDesk) -> None:
    study = desk.studies["1.2.2"]
    study.header = type(study.header)(
        **{**vars(study.header), "description": "<script>alert(1)</script>"}
    )
    html = reviewer.get("/").text
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


# --- study -----------------------------------------------------------------------------------


def test_a_study_shows_who_what_and_how_sure(reviewer: httpx.Client, desk: FakeDesk) -> None:
    html = reviewer.get(STUDY).text
    for text in (
        "Nguyễn Thị Ánh Tuyết", "BN-4201", "CT2026-171", "8.0 mm", "Phổi TRÁI", "Phổi PHẢI",
        "97 %", "Lung-RADS 4A", "phoi-lung-nodule 1.0.0", "không phải khả năng ung thư",
        "không phải chẩn đoán", "đỉnh phổi đủ",
    ):  # fmt: skip
        assert text in html, text
    assert desk.entries[-1].action == "view_study"
    assert desk.entries[-1].study_instance_uid == "1.2.1"


def test_a_study_shows_who_asks_what_and_how_urgently(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    assert "Chỉ định" not in reviewer.get(STUDY).text
    desk.studies["1.2.1"].order = ImagingOrder(
        placer=OrderNumber("P-77"),
        requester="Lê^Hữu^Trác",
        clinical_question="Nốt > 8 mm?",
        priority=Priority.STAT,
    )
    html = reviewer.get(STUDY).text
    for text in ("Chỉ định", "P-77", "Lê Trác Hữu", "Nốt &gt; 8 mm?", "priority-stat"):
        assert text in html, text


def test_a_study_that_cannot_be_analysed_says_so_in_both_languages(reviewer: httpx.Client) -> None:
    html = reviewer.get("/studies/1.2.4").text
    assert "Lát cắt quá dày." in html
    assert "The slices are too thick." in html
    assert "slices of 8 mm" in html
    assert "Không được coi là âm tính" in html
    assert "<canvas" not in html
    assert 'data-act="sign"' not in html


@pytest.mark.parametrize("number", range(1, 10))
def test_every_phase_has_a_page(reviewer: httpx.Client, number: int) -> None:
    for part in ("", "/status"):
        assert reviewer.get(f"/studies/1.2.{number}{part}").status_code == 200


@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2), (2,)])
def test_left_is_left_in_every_storage_order(
    reviewer: httpx.Client, desk: FakeDesk, flips: tuple[int, ...]
) -> None:
    volume = flipped(make_volume(), *flips)
    desk.studies["1.2.1"].volume = volume
    data = reviewer.get(f"{STUDY}/revisions/1/viewer.json").json()
    assert data["labels"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    # The browser's own arithmetic, with the matrices that it is given.
    offset = np.array(LEFT) - data["origin_lps_mm"]
    index = np.array(data["lps_to_index"]) @ offset
    assert index[2] > data["shape"][2] / 2
    nearest = [round(i) for i in index]
    body = reviewer.get(f"{STUDY}/revisions/1/slices/{nearest[0]}").content
    pixels = np.frombuffer(body, "<i2").reshape(data["shape"][1:])
    z, y, x = (round(i) for i in volume.geometry.lps_to_index(LEFT))
    assert pixels[nearest[1], nearest[2]] == volume.hu[z, y, x]


def test_slices_travel_compressed(reviewer: httpx.Client) -> None:
    with reviewer.stream("GET", f"{STUDY}/revisions/1/slices/0") as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert len(gzip.decompress(raw)) == 40 * 48 * 2


# --- review ----------------------------------------------------------------------------------


def decide(client: httpx.Client, uid: str, verdict: str, **fields: object) -> httpx.Response:
    return post(client, f"{STUDY}/decisions", {"tracking_uid": uid, "verdict": verdict, **fields})


def test_a_review_from_the_first_mark_to_the_signature(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    study = desk.studies["1.2.1"]
    first, second = (n.tracking_uid for n in desk.study("1.2.1").nodules)
    early = post(reviewer, f"{STUDY}/sign", {"revision": 1, "judgements_seen": 0})
    assert early.status_code == 409

    response = decide(reviewer, first, "modified", mean_diameter_mm=9.5)
    assert response.headers["x-phoi-selected"] == first
    assert "9.5 mm" in response.text
    assert "Fleischner &gt;8 mm" in response.text  # the class follows the reviewer's size
    assert decide(reviewer, second, "rejected", reason="vessel", note="nhánh").status_code == 200
    assert post(reviewer, f"{STUDY}/undo", {}).headers["x-phoi-selected"] == second
    assert decide(reviewer, second, "accepted").status_code == 200

    verdicts = {uid: said.verdict for uid, said in study.standing.items()}
    assert verdicts == {first: Verdict.MODIFIED, second: Verdict.ACCEPTED}
    rejected = study.history[1]
    assert rejected.disposition.reason == "vessel: nhánh"
    assert rejected.disposition.reviewer == rejected.undone_by == "bs.lan"

    stale = post(reviewer, f"{STUDY}/sign", {"revision": 1, "judgements_seen": 2})
    assert stale.status_code == 409  # somebody judged after this page was drawn
    signed = post(reviewer, f"{STUDY}/sign", {"revision": 1, "judgements_seen": 3})
    assert (signed.status_code, signed.headers["location"]) == (303, STUDY)

    html = reviewer.get(STUDY).text
    assert "Đã ký bởi BS. Nguyễn Thị Lan" in html
    assert "data-act=" not in html
    assert decide(reviewer, first, "accepted").status_code == 409
    assert desk.studies["1.2.1"].row.phase is Phase.SIGNED


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": "modified"},
        {"verdict": "modified", "mean_diameter_mm": 0},
        {"verdict": "modified", "mean_diameter_mm": "nan"},
        {"verdict": "modified", "mean_diameter_mm": 301},
        {"verdict": "rejected"},
        {"verdict": "rejected", "reason": "because"},
        {"verdict": "missed"},
        {"verdict": "maybe"},
        {"verdict": "accepted", "note": "x" * 501},
    ],
)
def test_half_a_judgement_is_none(
    reviewer: httpx.Client, desk: FakeDesk, fields: dict[str, object]
) -> None:
    uid = desk.study("1.2.1").nodules[0].tracking_uid
    response = post(reviewer, f"{STUDY}/decisions", {"tracking_uid": uid, **fields})
    assert response.status_code == 422
    assert not desk.studies["1.2.1"].history


@pytest.mark.parametrize("flips", [(), (1, 2), (0, 2)])
def test_a_missed_nodule_is_kept_in_patient_coordinates(
    reviewer: httpx.Client, desk: FakeDesk, flips: tuple[int, ...]
) -> None:
    desk.studies["1.2.1"].volume = flipped(make_volume(), *flips)
    # Display index of RIGHT: slices count from the head, columns from the patient's right.
    index = {"slice_index": 29 - 11, "row": 17, "column": 13}
    response = post(reviewer, f"{STUDY}/missed", {"revision": 1, **index, "mean_diameter_mm": 7})
    assert response.status_code == 200
    (said,) = desk.study("1.2.1").missed
    assert said.correction.center_lps_mm == pytest.approx(RIGHT)
    assert said.correction.mean_diameter_mm == 7.0
    assert said.tracking_uid == response.headers["x-phoi-selected"]


@pytest.mark.parametrize("index", [(-1, 0, 0), (0, 40, 0), (0, 0, "inf"), (30, 1, 1)])
def test_nothing_is_missed_outside_the_picture(
    reviewer: httpx.Client, desk: FakeDesk, index: tuple[object, object, object]
) -> None:
    fields = dict(zip(("slice_index", "row", "column"), index, strict=True))
    assert post(reviewer, f"{STUDY}/missed", {"revision": 1, **fields}).status_code == 422
    assert not desk.studies["1.2.1"].history


def test_a_judgement_of_another_revision_is_refused_in_words(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    response = decide(reviewer, "2.25.999", "accepted")
    assert response.status_code == 409
    assert "không có nốt này" in response.json()["error"]


# --- operations ------------------------------------------------------------------------------


def test_pausing_and_resuming(reviewer: httpx.Client, desk: FakeDesk) -> None:
    for target in ("everything", "model:phoi-lung-nodule", "destination:pacs"):
        assert post(reviewer, "/operations/pause", {"target": target}).status_code == 303
    assert set(desk.paused) == {
        "everything", "model:phoi-lung-nodule", "destination:pacs",
    }  # fmt: skip
    assert "Đang tạm dừng: everything" in reviewer.get("/").text
    assert post(reviewer, "/operations/resume", {"target": "everything"}).status_code == 303
    assert "everything" not in desk.paused
    assert post(reviewer, "/operations/pause", {"target": "moon"}).status_code == 409


def test_operations_show_links_and_dead_letters(reviewer: httpx.Client, desk: FakeDesk) -> None:
    html = reviewer.get("/operations").text
    for text in ("Mất kết nối", "connection refused", "lâu nhất 42 phút"):
        assert text in html
    lane = html.split('data-circuit="emr-hl7"')[1].split("</td>")[0]
    assert "Tạm ngừng gửi" in lane
    assert "đã 40 phút · hỏi lại lúc" in lane
    assert "data-circuit" not in html.replace('data-circuit="emr-hl7"', "")
    assert 'href="/deliveries">✕ 1<' in html


def test_dead_letters_say_why_in_words_and_go_again_one_by_one(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    html = reviewer.get("/deliveries").text
    section = html.split('data-destination="emr-fhir"')[1].split("</section>")[0]
    assert "không hợp lệ theo quy tắc" in section
    assert "HTTP 422" in section, "the exact reason, for the other administrator"
    assert 'href="/studies/' in section
    response = post(reviewer, "/deliveries/33/resend", {"after": "/deliveries"})
    assert (response.status_code, response.headers["location"]) == (303, "/deliveries")
    assert desk.resent == [33]
    evil = {"after": "https://elsewhere.example"}
    assert post(reviewer, "/deliveries/33/resend", evil).status_code == 422


def test_all_dead_letters_of_a_destination_go_again(reviewer: httpx.Client, desk: FakeDesk) -> None:
    fields = {"destination": "emr-fhir"}
    assert post(reviewer, "/deliveries/resend-dead", fields).status_code == 303
    assert desk.resent == [33]
    assert post(reviewer, "/deliveries/resend-dead", {"destination": "moon"}).status_code == 409


def test_dead_letters_of_a_destination_that_is_no_more_stay_to_be_seen(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    study = desk.studies["1.2.4"]
    letter = replace(study.deliveries[-1], destination="old-pacs", state=DeliveryState.DEAD)
    study.deliveries = (letter,)
    section = reviewer.get("/deliveries").text.split('data-destination="old-pacs"')[1]
    assert "Cấu hình không còn nơi nhận này" in section
    assert "<form" not in section.split("</section>")[0]


def test_no_lane_hides_the_dead_letters_of_another(
    reviewer: httpx.Client, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DEAD_LETTERS", 2)
    study = desk.studies["1.2.4"]
    dead = replace(study.deliveries[-1], state=DeliveryState.DEAD)
    many = [replace(dead, destination="pacs", delivery_id=100 + n) for n in range(3)]
    study.deliveries = (*many, replace(dead, destination="emr-hl7", delivery_id=1))
    html = reviewer.get("/deliveries").text
    shown = {part.split('"')[0]: part for part in html.split('data-destination="')[1:]}
    assert [shown[lane].count('/resend"') for lane in ("emr-hl7", "pacs")] == [1, 2]
    assert say("vi", "deliveries.count", count=3) in shown["pacs"]
    assert say("vi", "deliveries.latest", count=2) in shown["pacs"]


def test_without_dead_letters_the_page_says_so(reviewer: httpx.Client, desk: FakeDesk) -> None:
    for study in desk.studies.values():
        study.deliveries = ()
    assert "Mọi thứ đã được gửi" in reviewer.get("/deliveries").text


def test_a_problem_is_reported_with_a_reference(reviewer: httpx.Client, desk: FakeDesk) -> None:
    response = post(reviewer, "/report", {"text": "Ảnh không hiện"}, script=False)
    assert "P0001" in response.text
    assert desk.reports == ["Ảnh không hiện"]


def test_figures_of_use(reviewer: httpx.Client) -> None:
    html = reviewer.get("/kpis").text
    assert "0.51" in html  # 61 rejected marks in 120 signed studies
    assert "48 giây" in html


# --- the study's life ------------------------------------------------------------------------


def test_every_state_is_on_the_operations_page_with_its_age(reviewer: httpx.Client) -> None:
    html = reviewer.get("/operations").text
    for life, states in LIVES.items():
        for state in states:
            row = html.split(f'data-life="{life.value}" data-state="{state.value}"')[1]
            assert "5 giờ" in row.split("</tr>")[0]
    assert "báo cho bạn" in html
    assert 'href="/studies/1.2.7"' in html


def test_threads_in_trouble_and_a_refused_champion_are_shown(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    assert "Báo động" not in reviewer.get("/operations").text
    desk.not_ready = ("the thread analyst-0 has died: restart Phoi, and report it",)
    desk.champion_refused = "the signature is nobody's who is trusted"
    html = reviewer.get("/operations").text
    assert "analyst-0 has died" in html
    assert "nobody&#39;s who is trusted" in html


def test_what_receiving_refuses_sets_aside_and_archives_lack_is_shown(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    assert "Cam kết lưu trữ" not in reviewer.get("/operations").text
    desk.receiving = ReceivingView(("images are refused: 1 MB of disk are free",), 7)
    desk.commitments = (CommitmentView("pacs", asked=3, committed=250, failed=11),)
    desk.commitment_refused = ("archive-2",)
    html = reviewer.get("/operations").text
    assert "1 MB of disk are free" in html
    assert "7 ảnh bị cách ly" in html
    assert "archive-2 từ chối yêu cầu cam kết" in html
    row = html.split('data-archive="pacs"')[1].split("</tr>")[0]
    assert [cell.split("<")[0] for cell in row.split('class="num">')[1:]] == ["3", "250", "11"]


def test_a_study_that_cannot_be_read_is_acknowledged_not_signed(
    reviewer: httpx.Client, desk: FakeDesk
) -> None:
    page = reviewer.get("/studies/1.2.4")
    assert "/studies/1.2.4/acknowledge" in page.text
    assert "/acknowledge" not in reviewer.get(STUDY).text
    assert post(reviewer, f"{STUDY}/acknowledge", {"revision": 1}, script=False).status_code == 409
    assert (
        post(reviewer, "/studies/1.2.4/acknowledge", {"revision": 1}, script=False).status_code
        == 303
    )
    assert desk.studies["1.2.4"].acknowledged_by == REVIEWER.username
    page = reviewer.get("/studies/1.2.4")
    assert "/studies/1.2.4/acknowledge" not in page.text
    assert f"{REVIEWER.username} đã xem" in page.text
    assert "1.2.4" not in uids(reviewer.get("/").text)
    assert "1.2.4" in uids(reviewer.get("/?show=signed").text)


def test_what_waits_says_behind_how_many_until_when_and_why(
    reviewer: httpx.Client, desk: FakeDesk, clock: FakeClock
) -> None:
    study = desk.studies["1.2.7"]
    study.ahead, study.trouble = 4, "no worker answers"
    study.retry_at = clock.now() + timedelta(minutes=2)
    for path in ("/", "/studies/1.2.7"):
        html = reviewer.get(path).text
        for text in ("4 ca trước", "thử lại lúc", "no worker answers"):
            assert text in html, (path, text)


def test_every_conflict_is_said_in_both_languages() -> None:
    for conflict in Conflict:
        assert f"conflict.{conflict.name.lower()}" in TEXTS


def test_a_conflict_is_told_in_the_readers_language(reviewer: httpx.Client) -> None:
    response = post(reviewer, f"{STUDY}/undo", {})
    assert response.status_code == 409
    assert "Không có gì để hoàn tác" in response.text


def test_damaged_images_are_named_on_the_page_of_their_study(
    reviewer: httpx.Client, desk: FakeDesk, clock: FakeClock
) -> None:
    desk.studies["1.2.1"].damages = (
        DamagedImage("1.2.840.99.1", clock.now(), back=False),
        DamagedImage("1.2.840.99.2", clock.now(), back=True),
    )
    asked, back = reviewer.get(STUDY).text.split("1.2.840.99.1</small>")
    assert "đã yêu cầu gửi lại" in asked
    assert "đã nhận lại" in back.split("1.2.840.99.2</small>")[0]
