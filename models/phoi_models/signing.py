"""Keys, signed manifests and whom to trust.

A bundle's manifest lists every file with its SHA-256. It is signed with Ed25519 (RFC 8032) over
the canonical JSON of its payload: sorted keys, no spaces, ASCII.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from phoi_models.errors import BadBundle, PhoiError, UntrustedBundle
from phoi_models.files import write_atomically

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
# Signed before the payload, so that a signature made for anything else never fits a manifest.
_DOMAIN = b"phoi-bundle-manifest\n"

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[
    str, StringConstraints(pattern=rf"^{_SEGMENT}(/{_SEGMENT}){{0,4}}$", max_length=200)
]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
ModelVersion = Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+-]{0,31}$")]


class FileEntry(BaseModel):
    """One file of a bundle: SHA-256 (hex) and size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: Sha256
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """What is signed.

    Attributes:
        format: of the manifest itself.
        name: registered model name.
        version: human version.
        sequence: counts up with every bundle of this name; an older one is not installed unasked.
        created: UTC, ISO 8601.
        files: every file of the bundle but the manifest, by its path with "/" inside the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    name: ModelName
    version: ModelVersion
    sequence: int = Field(ge=1)
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    files: dict[FileName, FileEntry] = Field(min_length=1, max_length=256)

    @property
    def bundle_hash(self) -> str:
        """SHA-256 (hex) of name, version and files: the same whoever signs, and whenever."""
        content = self.model_dump(include={"name", "version", "files"})
        return hashlib.sha256(_canonical(content)).hexdigest()

    def signed_bytes(self) -> bytes:
        """The bytes that a signature covers."""
        return _DOMAIN + _canonical(self.model_dump())


class SignedManifest(BaseModel):
    """A manifest, the key that signed it, and the signature (base64)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    payload: Manifest
    key_id: Sha256
    signature: str

    @classmethod
    def parse(cls, content: bytes) -> SignedManifest:
        """Read a manifest. Nothing in it is to be trusted before ``TrustStore.verify``.

        Raises:
            BadBundle: not a manifest of a format known here.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise BadBundle(f"{MANIFEST_NAME} is malformed at {where or 'its start'}") from None

    def serialize(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def sign_manifest(manifest: Manifest, key: Ed25519PrivateKey) -> SignedManifest:
    """Sign ``manifest`` with ``key``."""
    signature = base64.b64encode(key.sign(manifest.signed_bytes())).decode()
    return SignedManifest(payload=manifest, key_id=key_id(key.public_key()), signature=signature)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def create_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make a new private key at ``path``, readable by its owner only.

    Raises:
        PhoiError: a key is there already, or the path lies inside Phoi's source tree.
    """
    source_tree = Path(__file__).resolve().parents[2]
    if (source_tree / "pyproject.toml").exists() and path.resolve().is_relative_to(source_tree):
        raise PhoiError("a private key must not lie in the source tree: set PHOI_HOME elsewhere")
    if path.exists():
        raise PhoiError(f"there is a key already: {path}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    write_atomically(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        mode=0o600,
    )
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key at ``path``.

    Raises:
        PhoiError: it is missing, others can read it, or it is no Ed25519 key.
    """
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except FileNotFoundError:
        raise PhoiError(f"no signing key at {path}: run `phoi models init` first") from None
    if mode & 0o077:
        raise PhoiError(f"others can read the private key: run `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PhoiError(f"{path} holds no Ed25519 private key")
    return key


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM, to hand to those who shall trust it."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def parse_public_pem(content: bytes) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        PhoiError: it is no Ed25519 public key in PEM.
    """
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PhoiError("this is no Ed25519 public key in PEM")
    return key


class _TrustFile(BaseModel):
    """The stored form of a trust store: public keys as base64 by key id, and revoked ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: dict[Sha256, str] = {}
    revoked: list[Sha256] = []


@dataclass(frozen=True)
class TrustStore:
    """Whose bundles may run here.

    Attributes:
        keys: trusted public keys by key id.
        revoked: key ids and bundle hashes that never count again, even if signed and trusted.
    """

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, keys: Iterable[Ed25519PublicKey]) -> TrustStore:
        """A store that trusts exactly ``keys``."""
        return cls({key_id(key): key for key in keys})

    @classmethod
    def load(cls, path: Path) -> TrustStore:
        """Read a stored trust store; a missing file trusts nobody.

        Raises:
            PhoiError: the file is damaged.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return cls()
        try:
            stored = _TrustFile.model_validate_json(content)
            keys = [
                Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
                for key in stored.keys.values()
            ]
        except ValueError:  # pydantic's, base64's and cryptography's errors all are
            raise PhoiError(f"{path} is damaged: restore it, or trust your keys anew") from None
        return replace(cls.of(keys), revoked=frozenset(stored.revoked))

    def save(self, path: Path) -> None:
        """Store it, atomically."""
        stored = _TrustFile(
            keys={
                name: base64.b64encode(key.public_bytes_raw()).decode()
                for name, key in sorted(self.keys.items())
            },
            revoked=sorted(self.revoked),
        )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, (stored.model_dump_json(indent=2) + "\n").encode())

    def trusting(self, key: Ed25519PublicKey) -> TrustStore:
        """This store with one more key."""
        return replace(self, keys={**self.keys, key_id(key): key})

    def revoking(self, identifier: str) -> TrustStore:
        """This store with a key id or a bundle hash revoked."""
        return replace(self, revoked=self.revoked | {identifier})

    def verify(self, signed: SignedManifest) -> Manifest:
        """The manifest, once its signature is proven to be a trusted key's.

        Raises:
            UntrustedBundle: unknown or revoked key, revoked bundle, or a wrong signature.
        """
        name = f"{signed.payload.name} {signed.payload.version}"
        if signed.key_id in self.revoked:
            raise UntrustedBundle(f"{name} is signed with a revoked key")
        if signed.payload.bundle_hash in self.revoked:
            raise UntrustedBundle(f"{name} has been revoked")
        key = self.keys.get(signed.key_id)
        if key is None:
            raise UntrustedBundle(
                f"{name} is signed with a key not trusted here ({signed.key_id[:12]}): "
                "`phoi models trust KEY` trusts its public key"
            )
        try:
            signature = base64.b64decode(signed.signature, validate=True)
            key.verify(signature, signed.payload.signed_bytes())
        except (binascii.Error, InvalidSignature):
            raise UntrustedBundle(f"the signature of {name} is wrong: never run it") from None
        return signed.payload


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
