"""The FHIR client before servers that say no, say nonsense, or say nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import Delivered, Document, DocumentKind, Refused, Unreachable
from phoi_edge_node.settings import FhirSettings
from support.fhir_peers import fhir_peer

BUNDLE = Document(DocumentKind.FHIR_BUNDLE, "2.25.1", b'{"resourceType":"Bundle"}')
ACCEPTED = b'{"resourceType":"Bundle","type":"transaction-response"}'
NO_TOKEN = Unreachable("the file fhir.bearer_token_file holds no token that can be read")
LOGIN_PAGE = b"<html><body>Please log in</body></html>"


def to(base_url: str, timeout_s: float = 5.0, token: Path | None = None) -> FhirDestination:
    return FhirDestination(
        FhirSettings(base_url=base_url, timeout_s=timeout_s, bearer_token_file=token)
    )


def outcome(*codes: object) -> bytes:
    issues = [{"severity": "error", "code": c, "diagnostics": "Nguyễn"} for c in codes]
    return json.dumps({"resourceType": "OperationOutcome", "issue": issues}).encode()


@pytest.mark.parametrize("status", [400, 403, 404, 412, 422])
def test_a_refusal_is_for_good(status: int) -> None:
    with fhir_peer(status, outcome("invalid", "invalid", "required")) as peer:
        assert to(peer.base_url).send(BUNDLE) == Refused(f"HTTP {status} (invalid, required)")


@pytest.mark.parametrize("status", [301, 401, 408, 409, 429, 500, 502, 503])
def test_a_passing_trouble_is_tried_again(status: int) -> None:
    with fhir_peer(status, b"") as peer:
        assert to(peer.base_url).send(BUNDLE) == Unreachable(f"HTTP {status}")


def test_codes_are_told_and_words_are_not() -> None:
    strange = outcome("Nguyễn Thị Ánh Tuyết", 7, None, "x" * 99, "duplicate")
    with fhir_peer(422, strange) as peer:
        assert to(peer.base_url).send(BUNDLE) == Refused("HTTP 422 (duplicate)")


@pytest.mark.parametrize("body", [b"[]", b'{"issue":{}}', b'{"issue":["x"]}', b"[" * 100_000])
def test_any_body_may_come_with_a_refusal(body: bytes) -> None:
    with fhir_peer(422, body) as peer:
        assert to(peer.base_url).send(BUNDLE) == Refused("HTTP 422")


@pytest.mark.parametrize("body", [LOGIN_PAGE, b"", b'{"resourceType":"OperationOutcome"}'])
def test_success_without_a_transaction_response_is_none(body: bytes) -> None:
    with fhir_peer(200, body) as peer:
        outcome = to(peer.base_url).send(BUNDLE)
    assert isinstance(outcome, Unreachable)
    assert "base_url" in outcome.reason


def test_no_redirect_is_followed() -> None:
    with (
        fhir_peer(200, ACCEPTED) as elsewhere,
        fhir_peer(307, b"", location=elsewhere.base_url) as peer,
    ):
        assert isinstance(to(peer.base_url).send(BUNDLE), Unreachable)
    assert elsewhere.requests == []


def test_the_token_is_read_for_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with fhir_peer(200, ACCEPTED) as peer:
        emr = to(peer.base_url, token=token)
        missing = emr.send(BUNDLE)
        for value in ("first", "second"):
            token.write_text(f"{value}\n")
            assert emr.send(BUNDLE) == Delivered("HTTP 200")
    assert missing == NO_TOKEN
    assert [header for *_, header in peer.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("content", ["", "mật khẩu", "two words", "two\nlines"])
def test_a_token_that_no_header_can_carry_is_not_sent(tmp_path: Path, content: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    with fhir_peer(200, ACCEPTED) as peer:
        assert to(peer.base_url, token=token).send(BUNDLE) == NO_TOKEN
    assert peer.requests == []


def test_a_proxy_of_the_environment_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with fhir_peer(200, ACCEPTED) as peer, fhir_peer(200, ACCEPTED) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url)
        monkeypatch.setenv("http_proxy", proxy.base_url)
        assert isinstance(to(peer.base_url).send(BUNDLE), Delivered)
    assert proxy.requests == []


def test_a_server_that_drips_holds_us_no_longer_than_the_timeout() -> None:
    with fhir_peer(200, ACCEPTED, drip_s=0.05) as peer:
        begun = time.monotonic()
        outcome = to(peer.base_url, timeout_s=0.3).send(BUNDLE)
    assert outcome == Unreachable("no answer within 0.3 s")
    assert time.monotonic() - begun < 2.0


def test_an_answer_without_end_is_cut() -> None:
    with fhir_peer(200, b" " * (17 << 20)) as peer:
        outcome = to(peer.base_url).send(BUNDLE)
    assert isinstance(outcome, Unreachable)
    assert "exceeds" in outcome.reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1"}', Delivered),
        (b'{"resourceType":"CapabilityStatement","fhirVersion":"3.0.2"}', Refused),
        (LOGIN_PAGE, Unreachable),
    ],
)
def test_check_asks_whether_it_is_an_r4_server(body: bytes, expected: type) -> None:
    with fhir_peer(200, body) as peer:
        assert isinstance(to(peer.base_url).check(), expected)
    assert peer.requests[0][:2] == ("GET", "/fhir/metadata")
