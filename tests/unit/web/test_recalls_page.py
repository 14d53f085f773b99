"""The page of recalls, and what others show of them, in front of the in-memory desk."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from phoi_edge_node.desk import Phase
from phoi_edge_node.recalled import CURRENT_MODEL
from phoi_edge_node.settings import SiteSettings, WebSettings
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.web.app import create_app
from phoi_edge_node.web.texts import say
from support.fake_desk import ADMIN, PASSWORD, REVIEWER, FakeDesk, sample_desk
from support.values import small_volume
from support.web_server import Stage, serving

MODEL = "phoi-lung-nodule@1.0.0"
RECALL = {"model": MODEL, "confirmed": MODEL, "reason": "marks vessels", "pause": "true"}


@pytest.fixture
def desk() -> FakeDesk:
    return sample_desk(FakeClock(), small_volume(), [])


@pytest.fixture
def client(desk: FakeDesk) -> Iterator[httpx.Client]:
    app = create_app(desk, WebSettings(), SiteSettings(name="bv"), desk.clock, b"k" * 32)
    stage = Stage()
    stage.app = app
    with (
        serving(stage) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        yield client


def csrf(client: httpx.Client, path: str) -> dict[str, str]:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(path).text)
    assert found
    return {"csrf": found[1]}


def sign_in(client: httpx.Client, username: str) -> None:
    fields = {"username": username, "password": PASSWORD} | csrf(client, "/login")
    assert client.post("/login", data=fields).status_code == 303


@pytest.fixture
def admin(client: httpx.Client) -> httpx.Client:
    sign_in(client, ADMIN.username)
    return client


def test_only_an_administrator_sees_or_does_it(client: httpx.Client, desk: FakeDesk) -> None:
    sign_in(client, REVIEWER.username)
    assert client.get("/recalls").status_code == 403
    assert client.post("/recalls", data=RECALL | csrf(client, "/report")).status_code == 403
    assert desk.recall_book.asked == []
    assert 'href="/recalls"' not in client.get("/").text


def test_nothing_is_listed_before_something_is_asked_for(admin: httpx.Client) -> None:
    page = admin.get("/recalls").text
    assert "data-action" not in page
    assert say("vi", "recalls.never") in page
    assert MODEL.partition("@")[0] in page, "the models that were used are offered"


def test_the_list_says_what_would_become_of_each(admin: httpx.Client) -> None:
    page = admin.get("/recalls", params={"model": MODEL, "calling_ae": "CT1"}).text
    assert re.findall(r'data-action="(\w+)"', page) == ["withdraw", "leave_signed"]
    assert say("vi", "recalls.unknown", count=4) in page
    signed_too = admin.get("/recalls", params={"model": MODEL, "signed": "true"}).text
    assert re.findall(r'data-action="(\w+)"', signed_too) == ["withdraw", "withdraw"]


def test_it_is_recalled_once_its_name_was_typed(admin: httpx.Client, desk: FakeDesk) -> None:
    fields = RECALL | {"replacement": CURRENT_MODEL} | csrf(admin, "/report")
    assert admin.post("/recalls", data=fields).status_code == 303
    (request,) = desk.recall_book.asked
    assert request.criteria.model == MODEL
    assert (request.reason, request.asked_by) == ("marks vessels", ADMIN.username)
    assert request.pause
    assert not request.signed_too
    page = admin.get("/recalls").text
    assert "marks vessels" in page
    assert say("vi", "recalls.state.under_way") in page
    assert "no worker offers it" in page


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"confirmed": "phoi-lung-nodule@1.0.1"}, "confirm"),
        ({"model": "", "confirmed": ""}, None),
        ({"replacement": MODEL}, "replacement"),
        ({"replacement": "no version"}, "replacement"),
        ({"reason": "  "}, "reason"),
        ({"reason": ""}, "reason"),
        ({"last": "9999-12-31", "confirmed": f"{MODEL} 9999-12-31"}, None),
        ({"first": "2026-02-30", "confirmed": f"{MODEL} 2026-02-30"}, None),
    ],
)
def test_nothing_is_recalled_by_mistake(
    admin: httpx.Client, desk: FakeDesk, changed: dict[str, str], why: str | None
) -> None:
    answer = admin.post("/recalls", data=RECALL | changed | csrf(admin, "/report"))
    assert answer.status_code == 422
    assert desk.recall_book.asked == []
    if why:
        assert say("vi", f"recalls.refused.{why}") in answer.text


@pytest.mark.parametrize("day", ["9999-12-31", "0001-01-01", "2026-02-30", "yesterday"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_no_day_breaks_the_page(admin: httpx.Client, end: str, day: str) -> None:
    assert admin.get("/recalls", params={"model": MODEL, end: day}).status_code in {200, 422}


def test_a_refused_recall_gives_back_what_was_filled_in(admin: httpx.Client) -> None:
    filled = {"replacement": CURRENT_MODEL, "reason": 'marks "vessels"', "confirmed": "typo"}
    form = RECALL | filled | csrf(admin, "/report")
    del form["pause"]  # a box that is not checked
    page = admin.post("/recalls", data=form).text
    assert re.search(r'name="replacement" [^>]*value="current"', page)
    assert re.search(r'name="reason" [^>]*value="marks &#34;vessels&#34;"', page)
    assert re.search(r'name="pause" value="true">', page)
    assert re.search(r'name="confirmed" required autocomplete="off">', page), "typed anew"
    assert re.search(
        r'name="pause" value="true" checked>', admin.get(f"/recalls?model={MODEL}").text
    )


def test_spaces_around_what_was_typed_mean_nothing(admin: httpx.Client, desk: FakeDesk) -> None:
    spaced = {"calling_ae": "CT1 ", "confirmed": f" {MODEL} CT1 ", "replacement": " current "}
    answer = admin.post("/recalls", data=RECALL | spaced | csrf(admin, "/report"))
    assert answer.status_code == 303
    (request,) = desk.recall_book.asked
    assert (request.criteria.calling_ae_title, request.replacement) == ("CT1", CURRENT_MODEL)


def test_a_withdrawn_study_is_plain_to_see_and_shows_no_result(
    admin: httpx.Client, desk: FakeDesk
) -> None:
    uid, study = next((uid, s) for uid, s in desk.studies.items() if s.phase is Phase.READY)
    study.phase, study.result = Phase.WITHDRAWN, None
    rows = admin.get("/worklist/rows?show=problems").text
    assert say("vi", "phase.withdrawn") in rows
    page = admin.get(f"/studies/{uid}").text
    assert say("vi", "study.withdrawn") in page
    assert 'data-act="sign"' not in page


def test_a_signed_result_that_was_recalled_is_on_top_until_somebody_looks(
    admin: httpx.Client, desk: FakeDesk
) -> None:
    uid, study = next((uid, s) for uid, s in desk.studies.items() if s.signed_at)
    study.recalled = True
    rows = admin.get("/worklist/rows").text
    assert re.findall(r'data-uid="([^"]+)"', rows)[0] == uid
    assert say("vi", "worklist.recalled") in rows
    assert say("vi", "study.recalled") in admin.get(f"/studies/{uid}").text
    form = csrf(admin, f"/studies/{uid}")
    assert admin.post(f"/studies/{uid}/recalled", data=form).status_code == 303
    assert not study.recalled
    assert admin.post(f"/studies/{uid}/recalled", data=form).status_code == 409
