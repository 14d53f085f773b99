"""OAuth 2.0 client credentials before an authorisation server that was not written here."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import Delivered, Document, DocumentKind, SendOutcome, Unreachable
from phoi_edge_node.settings import FhirOAuth2Settings, FhirSettings
from phoi_edge_node.system import RandomUids
from phoi_edge_node.testing import FakeClock
from support.fhir_peers import fhir_peer
from support.oauth_server import Authorisation, Client, authorisation_server
from support.signing_keys import SIGNING_KEYS, write_key

BUNDLE = Document(DocumentKind.FHIR_BUNDLE, "2.25.1", b'{"resourceType":"Bundle"}')
CLIENT = "phoi-bvdk"
SECRET = "k7_Tq-0.x~9"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    return file


@pytest.fixture
def server() -> Iterator[Authorisation]:
    with authorisation_server(Client(CLIENT, "client_secret_basic", secret=SECRET)) as told:
        yield told


def emr(
    server: Authorisation, oauth2: FhirOAuth2Settings, clock: FakeClock | None = None
) -> FhirDestination:
    settings = FhirSettings(base_url=server.base_url, oauth2=oauth2, timeout_s=10)
    return FhirDestination(settings, clock)


def by_secret(secret_file: Path, **changes: str) -> FhirOAuth2Settings:
    told = {"client_id": CLIENT, "client_secret_file": secret_file} | changes
    return FhirOAuth2Settings.model_validate(told)


@pytest.mark.parametrize("announced", ["smart", "statement"])
def test_a_secret_gets_a_token_where_the_server_says(
    server: Authorisation, secret_file: Path, announced: str
) -> None:
    server.announced = announced
    assert emr(server, by_secret(secret_file)).send(BUNDLE) == Delivered("HTTP 200")
    [form] = server.forms
    assert form == {"grant_type": "client_credentials", "scope": "system/*.write"}


def test_nobody_says_where(server: Authorisation, secret_file: Path) -> None:
    server.announced = ""
    outcome = emr(server, by_secret(secret_file)).send(BUNDLE)
    assert isinstance(outcome, Unreachable)
    assert "set fhir.oauth2.token_url" in outcome.reason
    told = by_secret(secret_file, token_url=server.token_url)
    assert isinstance(emr(server, told).send(BUNDLE), Delivered)


@pytest.mark.parametrize("url", ["https://[bad", "tokens", "https://"])
def test_a_server_that_names_no_address_says_nothing(
    server: Authorisation, secret_file: Path, url: str
) -> None:
    base_url, server.token_url = server.base_url, url
    settings = FhirSettings(base_url=base_url, oauth2=by_secret(secret_file))
    assert "set fhir.oauth2.token_url" in _reason(FhirDestination(settings).send(BUNDLE))


def test_id_and_secret_are_form_encoded_before_they_are_joined(secret_file: Path) -> None:
    secret_file.write_text("a b:c/đ+%", encoding="utf-8")
    with fhir_peer(200, b"{}") as peer:
        oauth2 = by_secret(secret_file, client_id="phoi:1", token_url=peer.base_url)
        FhirDestination(FhirSettings(base_url=peer.base_url, oauth2=oauth2)).send(BUNDLE)
    [(_, _, header)] = peer.requests
    told = b64decode(header.removeprefix("Basic ")).decode()
    assert [unquote_plus(part) for part in told.split(":")] == ["phoi:1", "a b:c/đ+%"]


@pytest.mark.parametrize("kind", SIGNING_KEYS)
def test_a_key_signs_an_assertion(tmp_path: Path, kind: str) -> None:
    key = write_key(tmp_path, SIGNING_KEYS[kind]())
    client = Client("phoi", "private_key_jwt", keys=tmp_path / "keys.json")
    oauth2 = FhirOAuth2Settings(client_id="phoi", private_key_file=key, key_id="phoi-1")
    with authorisation_server(client) as server:
        for _ in range(2):  # another assertion each time: the server takes no jti twice
            settings = FhirSettings(base_url=server.base_url, oauth2=oauth2)
            assert isinstance(FhirDestination(settings).send(BUNDLE), Delivered)
    claims, _ = server.assertions
    assert claims["iss"] == claims["sub"] == "phoi"
    assert claims["aud"] == server.token_url
    assert 0 < claims["exp"] - claims["iat"] <= 300


def test_a_token_serves_until_shortly_before_it_ends(
    server: Authorisation, secret_file: Path
) -> None:
    clock = FakeClock()
    destination = emr(server, by_secret(secret_file), clock)
    for _ in range(3):
        assert isinstance(destination.send(BUNDLE), Delivered)
    clock.advance(239)
    assert isinstance(destination.send(BUNDLE), Delivered)
    assert len(server.forms) == 1
    clock.advance(2)
    assert isinstance(destination.send(BUNDLE), Delivered)
    assert len(server.forms) == 2


def test_a_token_that_is_refused_is_renewed_once(server: Authorisation, secret_file: Path) -> None:
    destination = emr(server, by_secret(secret_file))
    assert isinstance(destination.send(BUNDLE), Delivered)
    server.end_all_tokens()
    assert isinstance(destination.send(BUNDLE), Delivered)
    assert len(server.forms) == 2


def test_a_server_that_takes_no_token_is_not_asked_for_ever(
    server: Authorisation, secret_file: Path
) -> None:
    with fhir_peer(401, b"") as peer:
        settings = FhirSettings(
            base_url=peer.base_url, oauth2=by_secret(secret_file, token_url=server.token_url)
        )
        outcome = FhirDestination(settings).send(BUNDLE)
    assert outcome == Unreachable("HTTP 401: the server does not accept Phoi's credentials")
    assert len(peer.requests) == len(server.forms) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client_id": "somebody"}, "(invalid_client)"),
        ({"scope": "patient/*.read"}, "(invalid_scope)"),
    ],
)
def test_a_refusal_is_told_in_plain_words(
    server: Authorisation, secret_file: Path, changes: dict[str, str], words: str
) -> None:
    outcome = emr(server, by_secret(secret_file, **changes)).check()
    assert isinstance(outcome, Unreachable)
    assert words in outcome.reason
    assert server.shown == 0


def test_what_is_wrong_on_our_side_is_told_without_the_secret(
    server: Authorisation, secret_file: Path, tmp_path: Path
) -> None:
    secret_file.write_text("another", encoding="utf-8")
    wrong = emr(server, by_secret(secret_file)).send(BUNDLE)
    secret_file.unlink()
    missing = emr(server, by_secret(secret_file)).send(BUNDLE)
    weak = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    oauth2 = FhirOAuth2Settings(client_id="phoi", private_key_file=weak)
    unfit = emr(server, oauth2).send(BUNDLE)
    weak.write_text("no key", encoding="utf-8")
    unreadable = emr(server, oauth2).send(BUNDLE)
    assert [_reason(o) for o in (missing, unfit)] == [
        "the file fhir.oauth2.client_secret_file cannot be read",
        "fhir.oauth2.private_key_file must be RSA of 2048 bits or more, or EC on the curve P-384",
    ]
    assert "invalid_client" in _reason(wrong)
    assert "another" not in _reason(wrong)
    assert "no private key" in _reason(unreadable)


def _reason(outcome: SendOutcome) -> str:
    assert isinstance(outcome, Unreachable)
    return outcome.reason


ANSWERS = {
    "nothing": {},
    "no bearer": {"access_token": "abc", "token_type": "mac"},
    "a token that no header can carry": {"access_token": "a\nb", "token_type": "Bearer"},
    "a number": {"access_token": 7, "token_type": "Bearer"},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_without_a_token_is_none(secret_file: Path, answer: dict[str, object]) -> None:
    with fhir_peer(200, json.dumps(answer).encode()) as peer:
        oauth2 = by_secret(secret_file, token_url=peer.base_url)
        settings = FhirSettings(base_url=peer.base_url, oauth2=oauth2)
        assert "authorisation server" in _reason(FhirDestination(settings).send(BUNDLE))
    assert len(peer.requests) == 1


@pytest.mark.parametrize(("life", "renewed_after_s"), [(20, 10), (None, 60), (-1, 60), ("x", 60)])
def test_a_short_life_or_none_told(secret_file: Path, life: object, renewed_after_s: float) -> None:
    token = {"access_token": "abc", "token_type": "bearer", "expires_in": life}
    clock = FakeClock()
    with fhir_peer(200, json.dumps(token).encode()) as peer:
        oauth2 = by_secret(secret_file, token_url=f"{peer.base_url}/token")
        destination = FhirDestination(
            FhirSettings(base_url=peer.base_url, oauth2=oauth2), clock, RandomUids()
        )
        for seconds in (0, renewed_after_s - 1, 2):
            clock.advance(seconds)
            destination.send(BUNDLE)
    asked = [path for _, path, _ in peer.requests]
    assert asked == ["/fhir/token", "/fhir", "/fhir", "/fhir/token", "/fhir"]
