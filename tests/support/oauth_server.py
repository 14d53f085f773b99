"""An authorisation server, and a FHIR server behind it, that were not written here.

Authlib holds the rules: HTTP Basic and signed assertions (RFC 6749, RFC 7523), grants, scopes, the
life of tokens and whether they are shown (RFC 6750). Only the wiring stands here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from flask import Flask, Response, request
from joserfc import jwt
from joserfc.jwk import KeySet
from werkzeug.serving import make_server

SCOPE = "system/*.write"
STATEMENT = {
    "resourceType": "CapabilityStatement",
    "fhirVersion": "4.0.1",
    "format": ["json"],
    "rest": [{"mode": "server", "interaction": [{"code": "transaction"}]}],
}
ACCEPTED = {"resourceType": "Bundle", "type": "transaction-response"}


@dataclass
class Client(ClientMixin):  # type: ignore[misc]  # authlib says nothing of its types
    """One registered client."""

    client_id: str
    method: str
    secret: str = ""
    keys: Path | None = None

    def get_client_id(self) -> str:
        return self.client_id

    def get_allowed_scope(self, scope: str) -> str:
        return " ".join(s for s in scope.split() if s == SCOPE)

    def check_client_secret(self, client_secret: str) -> bool:
        return bool(self.secret) and client_secret == self.secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.method

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"


@dataclass
class Issued(TokenMixin):  # type: ignore[misc]
    """One token. It ends when the test says so."""

    access_token: str
    scope: str
    ended: bool = False

    def is_expired(self) -> bool:
        return self.ended

    def is_revoked(self) -> bool:
        return False

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Authorisation:
    """What the server knows and was asked.

    Attributes:
        announced: where it says that tokens are got: "smart", "statement" or "".
        forms: of every token request.
        assertions: the claims of each that was accepted.
        shown: number of requests to the FHIR server that were let in.
    """

    base_url: str = ""
    token_url: str = ""
    announced: str = "smart"
    life_s: int = 300
    clients: dict[str, Client] = field(default_factory=dict)
    tokens: dict[str, Issued] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    assertions: list[dict[str, Any]] = field(default_factory=list)
    shown: int = 0

    def end_all_tokens(self) -> None:
        """As if they were revoked."""
        for token in self.tokens.values():
            token.ended = True


@contextmanager
def authorisation_server(*clients: Client) -> Iterator[Authorisation]:
    """Serve both on one port of 127.0.0.1."""
    told = Authorisation(clients={client.client_id: client for client in clients})
    app = Flask(__name__)
    _serve_tokens(app, told)
    _serve_fhir(app, told)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    told.base_url = f"http://127.0.0.1:{server.port}/fhir"
    told.token_url = f"http://127.0.0.1:{server.port}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _serve_tokens(app: Flask, told: Authorisation) -> None:
    class Assertion(JWTBearerClientAssertion):  # type: ignore[misc]
        CLIENT_AUTH_METHOD = "private_key_jwt"

        def get_audiences(self) -> list[str]:
            return [told.token_url]

        def validate_jti(self, claims: dict[str, Any], jti: str) -> bool:
            return all(jti != earlier["jti"] for earlier in told.assertions)

        def resolve_client_public_key(self, client: Client) -> KeySet:
            assert client.keys is not None
            return KeySet.import_key_set(json.loads(client.keys.read_text()))

        def process_assertion_claims(self, assertion: str, resolve_key: KeySet) -> dict[str, Any]:
            # SMART's two; the library's own list holds neither.
            claims = jwt.decode(assertion, resolve_key, algorithms=["RS384", "ES384"]).claims
            self.verify_claims(claims)
            told.assertions.append(claims)
            return claims

    class Grant(ClientCredentialsGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "private_key_jwt")

    def keep(token: dict[str, Any], asked: object) -> None:
        told.tokens[token["access_token"]] = Issued(token["access_token"], token["scope"])

    app.config["OAUTH2_TOKEN_EXPIRES_IN"] = {"client_credentials": told.life_s}
    app.config["OAUTH2_SCOPES_SUPPORTED"] = [SCOPE]
    authorisation = AuthorizationServer(app, query_client=told.clients.get, save_token=keep)
    authorisation.register_client_auth_method("private_key_jwt", Assertion())
    authorisation.register_grant(Grant)

    @app.post("/token")
    def token() -> Response:
        told.forms.append(request.form.to_dict())
        response: Response = authorisation.create_token_response()
        return response


def _serve_fhir(app: Flask, told: Authorisation) -> None:
    class Validator(BearerTokenValidator):  # type: ignore[misc]
        def authenticate_token(self, token_string: str) -> Issued | None:
            return told.tokens.get(token_string)

    protector = ResourceProtector()
    protector.register_token_validator(Validator())

    @app.get("/fhir/.well-known/smart-configuration")
    def smart() -> tuple[dict[str, Any], int]:
        found = told.announced == "smart"
        return ({"token_endpoint": told.token_url}, 200) if found else ({}, 404)

    @app.get("/fhir/metadata")
    def metadata() -> dict[str, Any]:  # open to all, as R4 asks
        return _with_oauth_uris(told) if told.announced == "statement" else STATEMENT

    @app.post("/fhir")
    def transaction() -> dict[str, Any]:
        with protector.acquire(SCOPE):
            told.shown += 1
            return ACCEPTED


def _with_oauth_uris(told: Authorisation) -> dict[str, Any]:
    uris = {
        "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
        "extension": [{"url": "token", "valueUri": told.token_url}],
    }
    rest = STATEMENT["rest"][0] | {"security": {"extension": [uris]}}  # type: ignore[operator]
    return STATEMENT | {"rest": [rest]}
