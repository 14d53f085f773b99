"""The FHIR client before servers that say no, say nonsense, or say nothing."""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
from phoi_edge_node.fhir import capability
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import (
    Delivered,
    Document,
    DocumentKind,
    Erred,
    Refused,
    Unreachable,
)
from phoi_edge_node.settings import FhirSettings
from phoi_edge_node.testing import FakeClock
from structlog.testing import capture_logs
from support.certificates import Certificates
from support.fhir_peers import fhir_peer

BUNDLE = Document(DocumentKind.FHIR_BUNDLE, "2.25.1", b'{"resourceType":"Bundle"}')
ACCEPTED = b'{"resourceType":"Bundle","type":"transaction-response"}'
NO_TOKEN = Unreachable("the file fhir.bearer_token_file holds no token that can be read")
NO_FILE = Unreachable("the file fhir.bearer_token_file cannot be read")
LOGIN_PAGE = b"<html><body>Please log in</body></html>"


def to(base_url: str, timeout_s: float = 5.0, token: Path | None = None) -> FhirDestination:
    return FhirDestination(
        FhirSettings(base_url=base_url, timeout_s=timeout_s, bearer_token_file=token)
    )


def outcome(*codes: object) -> bytes:
    issues = [{"severity": "error", "code": c, "diagnostics": "Nguyễn"} for c in codes]
    return json.dumps({"resourceType": "OperationOutcome", "issue": issues}).encode()


@pytest.mark.parametrize("status", [400, 404, 405, 410, 412, 413, 415, 422, 501])
def test_a_refusal_is_for_good(status: int) -> None:
    with fhir_peer(status, outcome("invalid", "invalid", "required")) as peer:
        assert to(peer.base_url).send(BUNDLE) == Refused(f"HTTP {status} (invalid, required)")


@pytest.mark.parametrize("status", [403, 409, 500])
def test_what_may_be_mended_is_tried_some_times(status: int) -> None:
    with fhir_peer(status, outcome("exception")) as peer:
        assert to(peer.base_url).send(BUNDLE) == Erred(f"HTTP {status} (exception)")


@pytest.mark.parametrize("status", [301, 408, 425, 429, 502, 503, 504, 507, 522])
def test_a_passing_trouble_is_tried_again(status: int) -> None:
    with fhir_peer(status, b"") as peer:
        assert to(peer.base_url).send(BUNDLE) == Unreachable(f"HTTP {status}")


@pytest.mark.parametrize("status", [404, 405, 410, 500, 501])
def test_a_proxy_whose_server_is_away_refuses_nothing(status: int) -> None:
    with fhir_peer(status, b"<html>no such page</html>") as peer:
        assert isinstance(to(peer.base_url).send(BUNDLE), Unreachable)


WAITS = [
    ("30", 30.0),
    ("86400", 3600.0),  # no longer than an hour
    ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
    ("Fri, 02 Jan 2026 03:03:05 GMT", 0.0),
    ("soon", 0.0),
    ("-5", 0.0),
]


@pytest.mark.parametrize(("retry_after", "seconds"), WAITS)
def test_a_server_that_asks_for_patience_gets_it(retry_after: str, seconds: float) -> None:
    clock = FakeClock()
    headers = {"Retry-After": retry_after}
    with fhir_peer(503, b"", headers=headers) as peer:
        emr = FhirDestination(FhirSettings(base_url=peer.base_url, timeout_s=5), clock)
        assert emr.send(BUNDLE) == Unreachable("HTTP 503")
        clock.advance(seconds - 1)
        again = emr.send(BUNDLE)
        asked = len(peer.requests)
        clock.advance(1)
        emr.check()
    if seconds:
        assert again == Unreachable("the server asked to be left alone for 1 s more")
        assert asked == 1
    assert len(peer.requests) == asked + 1


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


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["201 Created", "200", "304 Not Modified"], Delivered("HTTP 200")),
        (["200 OK", "400", "412"], Erred("HTTP 200, but 2 of 3 resources were not stored")),
    ],
)
def test_each_resource_of_a_transaction_must_be_stored(
    statuses: list[str], expected: Delivered | Erred
) -> None:
    entries = [{"response": {"status": status}} for status in statuses]
    body = json.dumps(json.loads(ACCEPTED) | {"entry": entries}).encode()
    with fhir_peer(200, body) as peer:
        assert to(peer.base_url).send(BUNDLE) == expected


def test_no_redirect_is_followed() -> None:
    with (
        fhir_peer(200, ACCEPTED) as elsewhere,
        fhir_peer(307, b"", headers={"Location": elsewhere.base_url}) as peer,
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
    assert missing == NO_FILE
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
    with fhir_peer(200, ACCEPTED + b" " * 2000, drip_s=0.05) as peer:  # for 100 s and more
        begun = time.monotonic()
        outcome = to(peer.base_url, timeout_s=0.3).send(BUNDLE)
    assert outcome == Unreachable("no answer within 0.3 s")
    assert time.monotonic() - begun < 30  # of which a busy machine may need much


def test_headers_that_drip_hold_us_no_longer_than_the_timeout() -> None:
    with fhir_peer(200, ACCEPTED, drip_s=0.05, drips="headers") as peer:
        begun = time.monotonic()
        outcome = to(peer.base_url, timeout_s=0.3).send(BUNDLE)
    assert outcome == Unreachable("no answer within 0.3 s")
    assert time.monotonic() - begun < 30  # of which a busy machine may need much


def test_a_server_that_reads_nothing_holds_us_no_longer_than_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # in whose backlog we wait
        port = server.getsockname()[1]
        large = replace(BUNDLE, content=b" " * (32 << 20))
        outcome = to(f"http://127.0.0.1:{port}", timeout_s=0.3).send(large)
    assert outcome == Unreachable("no answer within 0.3 s")


def test_a_renewed_certificate_is_taken_up(tmp_path: Path) -> None:
    theirs = Certificates(tmp_path / "theirs").issue("emr")
    others = Certificates(tmp_path / "others").issue("emr")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(theirs.certificate, theirs.key)
    authority = tmp_path / "authority.pem"
    with fhir_peer(200, ACCEPTED, tls=tls) as peer:
        told = {"base_url": peer.base_url, "timeout_s": 5, "tls_ca": authority}
        emr = FhirDestination(FhirSettings.model_validate(told))
        for of, outcome in ((others, Unreachable), (theirs, Delivered), (theirs, Delivered)):
            authority.write_bytes(of.authority.read_bytes())
            assert isinstance(emr.send(BUNDLE), outcome)
        authority.unlink()
        assert isinstance(emr.send(BUNDLE), Unreachable)


def test_an_answer_without_end_is_cut() -> None:
    with fhir_peer(200, b" " * (17 << 20)) as peer:
        outcome = to(peer.base_url).send(BUNDLE)
    assert isinstance(outcome, Unreachable)
    assert "exceeds" in outcome.reason


def statement(version: str = "4.0.1", *interactions: str) -> bytes:
    rest = {"mode": "server", "interaction": [{"code": code} for code in interactions]}
    told = {"resourceType": "CapabilityStatement", "fhirVersion": version, "rest": [rest]}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (statement("4.0.1", "transaction"), Delivered),
        (statement("4.3.0", "batch", "transaction"), Delivered),
        (statement("4.0.1", "batch"), Refused),
        (statement("4.0.1"), Refused),
        (statement("3.0.2", "transaction"), Refused),
        (statement("5.0.0", "transaction"), Refused),
        (statement("40", "transaction"), Refused),
        (LOGIN_PAGE, Unreachable),
    ],
)
def test_check_asks_whether_it_is_an_r4_server_with_transactions(
    body: bytes, expected: type
) -> None:
    with fhir_peer(200, body) as peer:
        assert isinstance(to(peer.base_url).check(), expected)
    assert peer.requests[0][:2] == ("GET", "/fhir/metadata")


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "does not accept Phoi's credentials"), (404, "is fhir.base_url right?"), (503, "503")],
)
def test_check_says_why_it_was_told_nothing(status: int, words: str) -> None:
    with fhir_peer(status, b"") as peer:
        outcome = to(peer.base_url).check()
    assert isinstance(outcome, Unreachable)
    assert words in outcome.reason


def test_what_a_server_does_not_name_is_told_each_time_and_logged_once() -> None:
    with fhir_peer(200, statement("4.0.1", "transaction")) as peer, capture_logs() as logs:
        emr = to(peer.base_url)
        first, second = emr.check(), emr.check()
    assert first == second
    assert isinstance(first, Delivered)
    assert "does not name the format json; the resources Device, DiagnosticReport" in first.receipt
    [line] = logs
    assert (line["log_level"], line["found"]) == ("warning", first.receipt)


def test_a_server_that_names_all_is_logged_once_too() -> None:
    conditions = {"conditionalCreate": True, "conditionalUpdate": True}
    named = [{"type": name, **conditions} for name in (*capability.CREATED, *capability.UPDATED)]
    told = json.loads(statement("4.0.1", "transaction"))
    told["rest"][0]["resource"] = named
    whole = json.dumps(told | {"format": ["json"]}).encode()
    with fhir_peer(200, whole) as peer, capture_logs() as logs:
        emr = to(peer.base_url)
        first = emr.check()
        emr.check()
    assert isinstance(first, Delivered)
    [line] = logs
    assert (line["log_level"], line["found"]) == ("info", first.receipt)


def test_a_private_authority_and_our_own_certificate(tmp_path: Path) -> None:
    issued = Certificates(tmp_path / "ca")
    ours, theirs = issued.issue("phoi"), issued.issue("emr")
    stranger = Certificates(tmp_path / "other").issue("phoi")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(theirs.certificate, theirs.key)
    tls.load_verify_locations(theirs.authority)
    tls.verify_mode = ssl.CERT_REQUIRED

    def emr(**files: Path) -> FhirDestination:
        told = {"base_url": peer.base_url, "timeout_s": 5} | files
        return FhirDestination(FhirSettings.model_validate(told))

    with fhir_peer(200, ACCEPTED, tls=tls) as peer:
        known = {"tls_ca": ours.authority}
        pair = {"tls_certificate": ours.certificate, "tls_key": ours.key}
        other = {"tls_certificate": stranger.certificate, "tls_key": stranger.key}
        assert isinstance(emr(**known, **pair).send(BUNDLE), Delivered)
        untrusted = emr(**pair).send(BUNDLE)
        refused = emr(**known, **other).send(BUNDLE)
        broken = emr(tls_ca=tmp_path / "none.pem").send(BUNDLE)
    assert isinstance(untrusted, Unreachable)
    assert "set fhir.tls_ca" in untrusted.reason
    assert isinstance(refused, Unreachable)
    assert isinstance(broken, Unreachable)
    assert "cannot be used" in broken.reason
    assert len(peer.requests) == 1
