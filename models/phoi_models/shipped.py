"""The models that come with Phoi. They are pinned by hash, and signed by each installation.

``bundles/<name>/`` holds an unsigned bundle, ``bundles/pins.json`` the SHA-256 of each file.
No private key can be shipped with source code, so `phoi models init` makes one on the spot.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from phoi_models.bundle import Bundle, bundle_files, sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.home import Home
from phoi_models.signing import TrustStore, create_signing_key, load_signing_key

SHIPPED = Path(__file__).parent / "bundles"
Pins = Mapping[str, Mapping[str, str]]


def compute_pins(shipped: Path = SHIPPED) -> Pins:
    """SHA-256 (hex) of every file of every shipped bundle, by bundle and file name."""
    return {
        folder.name: {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in sorted(bundle_files(folder).items())
        }
        for folder in sorted(shipped.iterdir())
        if folder.is_dir() and folder.name != "__pycache__"
    }


def read_pins(shipped: Path = SHIPPED) -> Pins:
    """The committed pins.

    Raises:
        BadBundle: they are missing or malformed.
    """
    try:
        pins: Pins = json.loads((shipped / "pins.json").read_text())
    except (OSError, ValueError):
        raise BadBundle("the pins of the shipped models cannot be read: install again") from None
    return pins


def initialise(home: Home, now: datetime, shipped: Path = SHIPPED) -> tuple[Bundle, ...]:
    """Make this installation's key if it has none, trust it, sign and install the shipped models.

    Running it again changes nothing.

    Args:
        home: where keys and models go.
        now: UTC, written into new manifests.
        shipped: folder of the unsigned bundles.

    Raises:
        UntrustedBundle: a shipped file is not the pinned one.
    """
    key = _own_key(home)
    trust = TrustStore.load(home.trust)
    if key.public_key() not in trust.keys.values():
        trust = trust.trusting(key.public_key())
        trust.save(home.trust)
    if compute_pins(shipped) != read_pins(shipped):
        raise UntrustedBundle("a model file is not the one that was released: install again")
    store = BundleStore(home.models)
    return tuple(
        _sign_and_install(shipped / name, store, trust, key, now) for name in read_pins(shipped)
    )


def next_sequence(store: BundleStore, name: str) -> int:
    """One more than that of every installed bundle of ``name``."""
    return 1 + max((m.sequence for m in store.models() if m.identity.name == name), default=0)


def _own_key(home: Home) -> Ed25519PrivateKey:
    if home.signing_key.exists():
        return load_signing_key(home.signing_key)
    return create_signing_key(home.signing_key)


def _sign_and_install(
    folder: Path, store: BundleStore, trust: TrustStore, key: Ed25519PrivateKey, now: datetime
) -> Bundle:
    with tempfile.TemporaryDirectory(prefix="phoi-") as temporary:
        copy = Path(temporary, folder.name)
        shutil.copytree(folder, copy)
        sign_bundle(copy, key, sequence=next_sequence(store, folder.name), created=now)
        return store.install(copy, trust)
