"""Sessions, tokens and the brake."""

from __future__ import annotations

from datetime import timedelta

import pytest
from phoi_edge_node.accounts import hash_password, password_matches
from phoi_edge_node.testing import FakeClock
from phoi_edge_node.web.security import Sessions, Signer, SignInBrake
from phoi_edge_node.web.session import local_path

KEY = b"k" * 32


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sessions(clock: FakeClock) -> Sessions:
    return Sessions(KEY, clock, timedelta(hours=12))


def test_a_session_names_its_user_until_it_expires(sessions: Sessions, clock: FakeClock) -> None:
    token = sessions.issue("bs.lan")
    clock.advance(12 * 3600)
    assert sessions.username(token) == "bs.lan"
    clock.advance(1)
    assert sessions.username(token) is None


def test_another_node_with_the_same_key_accepts_it_and_one_without_does_not(
    sessions: Sessions, clock: FakeClock
) -> None:
    token = sessions.issue("bs.lan")
    assert Sessions(KEY, clock, timedelta(hours=12)).username(token) == "bs.lan"
    assert Sessions(b"x" * 32, clock, timedelta(hours=12)).username(token) is None


def test_an_ended_session_is_worth_nothing(sessions: Sessions) -> None:
    token, other = sessions.issue("bs.lan"), sessions.issue("bs.lan")
    sessions.end(token)
    assert sessions.username(token) is None
    assert sessions.username(other) == "bs.lan"


def test_a_session_from_the_future_is_refused(sessions: Sessions, clock: FakeClock) -> None:
    clock.advance(3600)
    token = sessions.issue("bs.lan")
    clock.advance(-3600)
    assert sessions.username(token) is None


@pytest.mark.parametrize("change", ["", "x", ".", "a.b", "ữ.ữ"])
def test_what_is_not_ours_is_refused(sessions: Sessions, change: str) -> None:
    assert sessions.username(change) is None
    token = sessions.issue("bs.lan")
    assert sessions.username(token + (change or "y")) is None
    payload, signature = token.split(".")
    assert sessions.username(f"{payload[:-2]}AA.{signature}") is None


def test_a_token_for_one_purpose_is_none_for_another() -> None:
    assert not Signer(KEY, "csrf").valid("text", Signer(KEY, "session").signature("text"))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(b"short", "csrf")


def test_the_brake_holds_one_user_of_one_address_for_a_while(clock: FakeClock) -> None:
    brake = SignInBrake(clock)
    for _ in range(SignInBrake.PER_USER):
        assert brake.open("10.0.0.1", "bs.lan")
        brake.failed("10.0.0.1", "bs.lan")
    assert not brake.open("10.0.0.1", "bs.lan")
    assert brake.open("10.0.0.1", "admin")
    assert brake.open("10.0.0.2", "bs.lan")  # nobody can lock a colleague out
    clock.advance(SignInBrake.WINDOW_S)
    assert brake.open("10.0.0.1", "bs.lan")


def test_the_brake_holds_an_address_that_tries_many_users(clock: FakeClock) -> None:
    brake = SignInBrake(clock)
    for number in range(SignInBrake.PER_ADDRESS):
        brake.failed("10.0.0.1", f"user{number}")
    assert not brake.open("10.0.0.1", "somebody")


def test_success_forgives_the_user(clock: FakeClock) -> None:
    brake = SignInBrake(clock)
    for _ in range(SignInBrake.PER_USER - 1):
        brake.failed("10.0.0.1", "bs.lan")
    brake.succeeded("10.0.0.1", "bs.lan")
    brake.failed("10.0.0.1", "bs.lan")
    assert brake.open("10.0.0.1", "bs.lan")


def test_passwords() -> None:
    stored = hash_password("mật khẩu dài")
    assert stored.startswith("$argon2id$")
    assert password_matches(stored, "mật khẩu dài")
    assert not password_matches(stored, "mật khẩu sai")
    assert not password_matches(None, "nobody has this password")
    assert not password_matches("not a hash", "mật khẩu dài")
    with pytest.raises(ValueError, match="10 characters"):
        hash_password("short")


@pytest.mark.parametrize(
    ("path", "led_to"),
    [
        ("/studies/1.2.3", "/studies/1.2.3"),
        ("", "/"),
        ("/", "/"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a?b=c", "/"),
    ],
)
def test_after_signing_in_one_stays_here(path: str, led_to: str) -> None:
    assert local_path(path) == led_to
