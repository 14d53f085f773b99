"""Nothing runs that is not signed, whole and trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from phoi_models.bundle import Bundle, Form, parse_parameters, sign_bundle
from phoi_models.errors import BadBundle, PhoiError, UntrustedBundle
from phoi_models.signing import (
    SignedManifest,
    TrustStore,
    create_signing_key,
    key_id,
    load_signing_key,
    parse_public_pem,
    public_pem,
    sign_manifest,
)
from support.bundles import parameters, write_bundle

NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUST = TrustStore.of([KEY.public_key()])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = write_bundle(tmp_path / "bundle")
    sign_bundle(folder, KEY, sequence=3, created=NOW)
    return folder


def test_a_signed_bundle_is_read(bundle: Path) -> None:
    loaded = Bundle.load(bundle, TRUST)

    assert loaded.manifest.name == "test-blobs"
    assert loaded.manifest.created == "2026-11-23T08:30:00Z"
    assert loaded.key_id == key_id(KEY.public_key())
    assert loaded.onnx == {Form.FLOAT32: (bundle / "models/model.onnx").read_bytes()}
    assert loaded.parameters.operating_points["sensitive"].probability == 0.2
    assert loaded.identity("sensitive").bundle_hash == loaded.bundle_hash


def test_the_bundle_hash_does_not_depend_on_who_signs(bundle: Path) -> None:
    first = Bundle.load(bundle, TRUST)
    sign_bundle(bundle, OTHER_KEY, sequence=9, created=NOW)
    second = Bundle.load(bundle, TrustStore.of([OTHER_KEY.public_key()]))

    assert second.bundle_hash == first.bundle_hash
    assert second.identity().device_uid == first.identity().device_uid


def test_the_bundle_hash_changes_with_every_file(bundle: Path) -> None:
    before = Bundle.load(bundle, TRUST).bundle_hash
    (bundle / "docs/README.md").write_text("other words\n")

    assert sign_bundle(bundle, KEY, created=NOW).bundle_hash != before


def _flip_a_weight(folder: Path) -> None:
    path = folder / "models/model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lower_a_threshold(folder: Path) -> None:
    path = folder / "configs/metadata.json"
    path.write_text(path.read_text().replace("0.5", "0.1"))


def _add_a_file(folder: Path) -> None:
    (folder / "models/extra.onnx").write_bytes(b"")


def _add_a_hidden_file(folder: Path) -> None:
    (folder / ".hidden").write_bytes(b"")


def _remove_a_file(folder: Path) -> None:
    (folder / "LICENSE").unlink()


def _link_a_file_outside(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "LICENSE").rename(outside)
    (folder / "LICENSE").symlink_to(outside)


def _link_a_folder_outside(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "docs").rename(outside)
    (folder / "docs").symlink_to(outside)


def _link_the_manifest(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "manifest.json").rename(outside)
    (folder / "manifest.json").symlink_to(outside)


def _raise_the_sequence(folder: Path) -> None:
    _edit_manifest(folder, lambda manifest: manifest["payload"].update(sequence=4))


def _break_the_signature(folder: Path) -> None:
    _edit_manifest(folder, lambda manifest: manifest.update(signature="AAAA"))


def _garble_the_signature(folder: Path) -> None:
    _edit_manifest(folder, lambda manifest: manifest.update(signature="not base64!"))


def _name_another_key(folder: Path) -> None:
    _edit_manifest(folder, lambda manifest: manifest.update(key_id=key_id(OTHER_KEY.public_key())))


def _edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "tamper",
    [
        _flip_a_weight,
        _lower_a_threshold,
        _add_a_file,
        _add_a_hidden_file,
        _remove_a_file,
        _link_a_file_outside,
        _link_a_folder_outside,
        _link_the_manifest,
        _raise_the_sequence,
        _break_the_signature,
        _garble_the_signature,
        _name_another_key,
    ],
)
def test_a_changed_bundle_is_refused(bundle: Path, tamper: Callable[[Path], None]) -> None:
    tamper(bundle)

    with pytest.raises(UntrustedBundle):
        Bundle.load(bundle, TRUST)


def test_an_unsigned_bundle_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()

    with pytest.raises(BadBundle, match="signed"):
        Bundle.load(bundle, TRUST)


@pytest.mark.parametrize(
    "name", ["../LICENSE", "/etc/passwd", "docs/../LICENSE", "", "a//b", "a\n"]
)
def test_a_manifest_with_a_path_that_leaves_the_bundle_is_refused(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["payload"]["files"][name] = manifest["payload"]["files"]["LICENSE"]

    with pytest.raises(BadBundle, match="malformed"):
        SignedManifest.parse(json.dumps(manifest).encode())


def test_a_stranger_is_not_trusted(bundle: Path) -> None:
    with pytest.raises(UntrustedBundle, match="not trusted here"):
        Bundle.load(bundle, TrustStore.of([OTHER_KEY.public_key()]))


@pytest.mark.parametrize("what", ["key", "bundle"])
def test_what_is_revoked_is_refused(bundle: Path, what: str) -> None:
    loaded = Bundle.load(bundle, TRUST)
    revoked = loaded.key_id if what == "key" else loaded.bundle_hash

    with pytest.raises(UntrustedBundle, match="revoked"):
        Bundle.load(bundle, TRUST.revoking(revoked))


def test_metadata_and_manifest_must_name_the_same_model(bundle: Path) -> None:
    signed = SignedManifest.parse((bundle / "manifest.json").read_bytes())
    renamed = signed.payload.model_copy(update={"name": "another-model"})
    (bundle / "manifest.json").write_bytes(sign_manifest(renamed, KEY).serialize())

    with pytest.raises(BadBundle, match="different models"):
        Bundle.load(bundle, TRUST)


def test_a_signature_covers_nothing_but_a_manifest(bundle: Path) -> None:
    payload = SignedManifest.parse((bundle / "manifest.json").read_bytes()).payload

    assert payload.signed_bytes().startswith(b"phoi-bundle-manifest\n")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm"),
        ({"spacing_mm": float("nan")}, "spacing_mm"),
        ({"window_hu": [400.0, -1000.0]}, "window_hu"),
        ({"patch_shape": [96, 96, 97]}, "patch_shape"),
        ({"margin": 48}, "margin"),
        ({"margin": 45}, "margin"),
        ({"operating_points": {"sensitive": {"probability": 0.2}}}, "default"),
        ({"operating_points": {"default": {"probability": 1.5}}}, "probability"),
        ({"kind": "segmentation"}, "kind"),
        ({"name": "../evil"}, "name"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changes: dict[str, object], where: str) -> None:
    metadata = json.dumps({"phoi": parameters(**changes)}).encode()

    with pytest.raises(BadBundle, match=where):
        parse_parameters(metadata)


@pytest.mark.parametrize("metadata", [b"", b"[]", b"{}", b'{"phoi": 1}', b"\xff"])
def test_metadata_without_parameters_are_refused(metadata: bytes) -> None:
    with pytest.raises(BadBundle, match=r"metadata\.json"):
        parse_parameters(metadata)


@pytest.mark.parametrize("lacking", ["LICENSE", "docs/README.md", "models/model.onnx"])
def test_an_incomplete_bundle_is_not_signed(tmp_path: Path, lacking: str) -> None:
    folder = write_bundle(tmp_path)
    (folder / lacking).unlink()

    with pytest.raises(BadBundle, match=lacking):
        sign_bundle(folder, KEY, created=NOW)


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "installation.pem"
    created = create_signing_key(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signing_key(path).private_bytes_raw() == created.private_bytes_raw()
    with pytest.raises(PhoiError, match="already"):
        create_signing_key(path)
    path.chmod(0o640)
    with pytest.raises(PhoiError, match="chmod 600"):
        load_signing_key(path)


def test_a_private_key_never_lies_in_the_source_tree() -> None:
    with pytest.raises(PhoiError, match="source tree"):
        create_signing_key(Path(__file__).parent / "key.pem")


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("not a key")
    path.chmod(0o600)

    with pytest.raises(PhoiError, match="no Ed25519"):
        load_signing_key(path)
    with pytest.raises(PhoiError, match="no Ed25519"):
        parse_public_pem(b"not a key")


def test_a_trust_store_survives_storage(tmp_path: Path) -> None:
    path = tmp_path / "home" / "trust.json"
    assert TrustStore.load(path) == TrustStore()
    other = parse_public_pem(public_pem(OTHER_KEY.public_key()))

    TRUST.trusting(other).revoking("ab" * 32).save(path)
    stored = TrustStore.load(path)

    assert stored.keys.keys() == {key_id(KEY.public_key()), key_id(OTHER_KEY.public_key())}
    assert stored.revoked == {"ab" * 32}
    path.write_text(path.read_text().replace('": "', '": "?'))
    with pytest.raises(PhoiError, match="damaged"):
        TrustStore.load(path)


def test_a_moved_bundle_is_still_the_same(bundle: Path, tmp_path: Path) -> None:
    before = Bundle.load(bundle, TRUST).bundle_hash
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")

    assert Bundle.load(moved, TRUST).bundle_hash == before
