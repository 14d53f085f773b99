"""OAuth 2.0 client credentials before oidc-provider, which takes RFC 6749 by the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from phoi_edge_node.fhir.client import FhirDestination
from phoi_edge_node.ports import Delivered, Document, DocumentKind, Unreachable
from phoi_edge_node.settings import FhirOAuth2Settings, FhirSettings
from support.fhir_peers import fhir_peer
from support.signing_keys import SIGNING_KEYS, write_key

BUNDLE = Document(DocumentKind.FHIR_BUNDLE, "2.25.1", b'{"resourceType":"Bundle"}')
ACCEPTED = b'{"resourceType":"Bundle","type":"transaction-response"}'
SECRET = "a b:c/+%&="  # all that RFC 6749 allows besides letters and digits must come through


@pytest.mark.parametrize(("kind", "algorithm"), [("rsa", "RS384"), ("p384", "ES384")])
def test_a_secret_and_a_key_get_tokens(
    node_program: Any, tmp_path: Path, kind: str, algorithm: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET, encoding="utf-8")
    key = write_key(tmp_path, SIGNING_KEYS[kind]())
    arguments = (SECRET, tmp_path / "keys.json", algorithm)
    with (
        node_program("oidc_server.mjs", *arguments) as server,
        fhir_peer(200, ACCEPTED) as peer,
    ):
        token_url = f"http://127.0.0.1:{server['port']}/token"

        def send(**oauth2: object) -> object:
            told = FhirOAuth2Settings.model_validate({"token_url": token_url} | oauth2)
            settings = FhirSettings(base_url=peer.base_url, oauth2=told)
            return FhirDestination(settings).send(BUNDLE)

        by_secret = send(client_id="phoi:bvdk/1", client_secret_file=secret)
        by_key = [send(client_id="phoi", private_key_file=key, key_id="phoi-1") for _ in range(2)]
        secret.write_text("another", encoding="utf-8")
        refused = send(client_id="phoi:bvdk/1", client_secret_file=secret)
    assert [by_secret, *by_key] == [Delivered("HTTP 200")] * 3
    assert isinstance(refused, Unreachable)
    assert "(invalid_client)" in refused.reason
    tokens = {header for *_, header in peer.requests}
    assert len(tokens) == 3
    assert all(token.startswith("Bearer ") for token in tokens)
