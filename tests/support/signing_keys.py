"""Keys with which a client signs its assertions, and the key sets that servers register."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey, RSAKey

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
SIGNING_KEYS: dict[str, Callable[[], PrivateKey]] = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


def write_key(folder: Path, key: PrivateKey) -> Path:
    """PEM in ``key.pem``, and the public half as a key set in ``keys.json``."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(pem)
    kind = RSAKey if isinstance(key, rsa.RSAPrivateKey) else ECKey
    public = kind.import_key(pem, {"kid": "phoi-1"}).as_dict(private=False)
    (folder / "keys.json").write_text(json.dumps({"keys": [public]}))
    return folder / "key.pem"
