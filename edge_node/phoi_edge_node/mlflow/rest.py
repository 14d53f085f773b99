"""The few calls of MLflow's REST interface that an edge needs, and what its answers mean.

No text of an answer is passed on: a server may echo what was sent. Error codes are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from phoi_edge_node.errors import EdgeError
from phoi_edge_node.settings import MlflowSettings

TIMEOUT_S = 30.0
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
# Wrong credentials and busy servers get mended without the bytes changing.
_PASSING = frozenset({401, 403, 408, 425, 429})


class MlflowUnreachable(EdgeError):
    """MLflow gave no usable answer. Passing: try again later."""


class MlflowRefused(EdgeError):
    """MLflow understood and said no.

    Attributes:
        code: MLflow's error code, for example ``RESOURCE_DOES_NOT_EXIST``.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"MLflow answered {status} {code}")
        self.code = code


class MlflowRest:
    """A connection to one MLflow server.

    Args:
        settings: address and, if the server asks for one, the file of the bearer token.
        transport: replaces the network in tests.
    """

    def __init__(
        self, settings: MlflowSettings, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._token_file = settings.token_file
        self._http = httpx.Client(
            base_url=settings.tracking_uri.rstrip("/"), timeout=TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, call: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Ask for something, for example ``get("experiments/get-by-name", {...})``.

        Raises:
            MlflowUnreachable: no answer, or one that will pass.
            MlflowRefused: any other answer than success.
        """
        with self._request("GET", f"{_API}/{call}", params=parameters) as response:
            return _json(response)

    def post(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change something; raises as ``get``."""
        with self._request("POST", f"{_API}/{call}", json=body) as response:
            return _json(response)

    def health(self) -> None:
        """Ask whether the server is there and lets us in; raises as ``get``."""
        self.post("experiments/search", {"max_results": 1})

    def upload(self, artifact_uri: str, name: str, file: Path) -> None:
        """Put ``file`` below a proxied artefact folder as ``name``; raises as ``get``."""
        path = _artifact_path(artifact_uri, name)
        with file.open("rb") as content, self._request("PUT", path, content=content):
            pass

    def download(self, artifact_uri: str, name: str, target: Path, limit: int) -> None:
        """Fetch one artefact into ``target``; bytes that are already there are not sent again.

        Raises:
            MlflowUnreachable: as ``get``; what has arrived stays, for the next try.
            MlflowRefused: as ``get``, or the file is larger than ``limit`` bytes.
        """
        have = target.stat().st_size if target.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        path = _artifact_path(artifact_uri, name)
        try:
            with self._request("GET", path, headers=headers) as response:
                appends = response.status_code == httpx.codes.PARTIAL_CONTENT
                _append(response, target, have if appends else 0, limit)
        except MlflowRefused as refusal:
            if refusal.code != "416":  # nothing is left to send
                raise

    @contextmanager
    def _request(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        headers = {**options.pop("headers", {}), **self._authorization()}
        try:
            with self._http.stream(method, path, headers=headers, **options) as response:
                _require_success(response)
                yield response
        except httpx.HTTPError as error:
            raise MlflowUnreachable(f"MLflow: {type(error).__name__}") from None

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MlflowUnreachable(
                f"MLflow: token_file cannot be read ({type(error).__name__})"
            ) from None
        return {"Authorization": f"Bearer {token}"}


def text_at(answer: Any, *path: str) -> str:
    """The text at a path of names inside an answer.

    Raises:
        MlflowUnreachable: the answer has no such text, so no MLflow gave it.
    """
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(answer, str):
        raise MlflowUnreachable(f"MLflow: the answer lacks {'.'.join(path)}")
    return answer


def _require_success(response: httpx.Response) -> None:
    status = response.status_code
    if response.is_success:
        return
    if status in _PASSING or response.is_server_error or response.is_redirect:
        hint = ": check mlflow.token_file" if status in {401, 403} else ""
        raise MlflowUnreachable(f"MLflow answered {status}{hint}")
    response.read()
    try:
        code = str(_json(response).get("error_code", status))
    except MlflowUnreachable:
        code = str(status)
    raise MlflowRefused(status, code if code.replace("_", "").isalnum() else str(status))


def _json(response: httpx.Response) -> dict[str, Any]:
    response.read()
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise MlflowUnreachable("MLflow: the answer is no JSON object: is tracking_uri right?")
    return content


def _append(response: httpx.Response, target: Path, have: int, limit: int) -> None:
    with target.open("ab") as file:
        file.truncate(have)
        for chunk in response.iter_bytes():
            have += len(chunk)
            if have > limit:
                raise MlflowRefused(response.status_code, "ARTIFACT_TOO_LARGE")
            file.write(chunk)


def _artifact_path(artifact_uri: str, name: str) -> str:
    """The proxy's path of an artefact.

    Raises:
        MlflowRefused: the artefacts are not served by the tracking server's proxy.
    """
    parts = urlsplit(artifact_uri)
    if parts.scheme != "mlflow-artifacts":
        # `mlflow server --serve-artifacts` is the default; an edge holds no keys to a bucket.
        raise MlflowRefused(200, "ARTIFACTS_NOT_PROXIED")
    return f"{_ARTIFACTS}/{quote(parts.path.strip('/'))}/{quote(name)}"
