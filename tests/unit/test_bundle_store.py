"""The bundle store, the tar form of a bundle, and the shipped models."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phoi_models.bundle import Bundle, sign_bundle
from phoi_models.bundle_store import BundleStore, UnknownModel, pack, unpack
from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.home import Home, find_home
from phoi_models.identity import ModelIdentity
from phoi_models.shipped import compute_pins, initialise, read_pins
from phoi_models.signing import TrustStore
from support.bundles import write_bundle

NOW = datetime(2026, 11, 23, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUST = TrustStore.of([KEY.public_key()])


def make(folder: Path, version: str, sequence: int, key: Ed25519PrivateKey = KEY) -> Path:
    sign_bundle(write_bundle(folder, version=version), key, sequence=sequence, created=NOW)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source", "1.0.0", 1)


def test_an_installed_bundle_is_found_by_its_identity(store: BundleStore, source: Path) -> None:
    installed = store.install(source, TRUST)

    assert store.load(installed.identity(), TRUST).onnx == installed.onnx
    assert store.newest("test-blobs") == installed.identity()
    folder = store.root / "test-blobs" / f"1.0.0-{installed.bundle_hash[:12]}"
    assert installed.folder == folder
    assert {p.name for p in store.root.iterdir()} == {"test-blobs", ".lock"}


def test_versions_lie_side_by_side_newest_first(store: BundleStore, tmp_path: Path) -> None:
    for version, sequence in (("1.0.0", 1), ("1.9.0", 2), ("1.10.0", 3)):
        store.install(make(tmp_path / version, version, sequence), TRUST)

    assert [m.identity.version for m in store.models()] == ["1.10.0", "1.9.0", "1.0.0"]


def test_installing_twice_changes_nothing(store: BundleStore, source: Path) -> None:
    first = store.install(source, TRUST)
    second = store.install(source, TRUST)

    assert second.folder == first.folder
    assert len(store.models()) == 1


def test_an_older_bundle_needs_a_decision(store: BundleStore, source: Path, tmp_path: Path) -> None:
    store.install(make(tmp_path / "newer", "2.0.0", 2), TRUST)

    with pytest.raises(UntrustedBundle, match="older"):
        store.install(source, TRUST)
    store.install(source, TRUST, allow_older=True)

    assert store.newest("test-blobs").version == "2.0.0"


def test_a_bundle_that_is_refused_leaves_nothing(store: BundleStore, source: Path) -> None:
    (source / "LICENSE").write_text("changed")

    with pytest.raises(UntrustedBundle):
        store.install(source, TRUST)

    assert {p.name for p in store.root.iterdir()} == {".lock"}


def test_what_an_interrupted_installation_left_is_removed(store: BundleStore, source: Path) -> None:
    left = store.root / ".incoming-left"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    assert store.models() == ()

    store.install(source, TRUST)

    assert not left.exists()


def test_a_damaged_bundle_is_refused_and_replaced(store: BundleStore, source: Path) -> None:
    installed = store.install(source, TRUST)
    (installed.folder / "LICENSE").write_text("damaged")

    with pytest.raises(UntrustedBundle):
        store.load(installed.identity(), TRUST)
    store.install(source, TRUST)

    assert store.load(installed.identity(), TRUST).bundle_hash == installed.bundle_hash


def test_a_new_signature_replaces_a_revoked_one(
    store: BundleStore, source: Path, tmp_path: Path
) -> None:
    installed = store.install(source, TRUST)
    trust = TRUST.trusting(OTHER_KEY.public_key()).revoking(installed.key_id)

    again = store.install(make(tmp_path / "again", "1.0.0", 2, OTHER_KEY), trust)

    assert again.bundle_hash == installed.bundle_hash
    assert store.load(installed.identity(), trust).key_id != installed.key_id


def test_one_broken_folder_hides_no_other_model(store: BundleStore, source: Path) -> None:
    installed = store.install(source, TRUST)
    broken = store.root / "test-blobs" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")

    assert store.newest("test-blobs") == installed.identity()


def test_an_unknown_model_is_named(store: BundleStore) -> None:
    with pytest.raises(UnknownModel, match="phoi models init"):
        store.newest("test-blobs")
    with pytest.raises(UnknownModel, match="not installed"):
        store.load(ModelIdentity("test-blobs", "1.0.0", "0" * 64), TRUST)


def test_a_bundle_travels_as_tar(store: BundleStore, source: Path) -> None:
    chunks = list(pack(source))

    installed = store.install_tar(chunks, TRUST)

    assert installed.bundle_hash == Bundle.load(source, TRUST).bundle_hash
    assert chunks == list(pack(installed.folder))
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert tar.getnames() == sorted(tar.getnames())
        assert len(tar.getnames()) == 5


def _tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a/./b", "a\\b"])
def test_a_tar_cannot_write_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(UntrustedBundle):
        unpack([_tar([(tarfile.TarInfo(name), b"evil")])], folder)

    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_a_tar_holds_plain_files_only(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "/etc/passwd"

    with pytest.raises(UntrustedBundle):
        unpack([_tar([(entry, b"")])], tmp_path)


def test_a_tar_holds_each_name_once(tmp_path: Path) -> None:
    twice = [(tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2")]
    nested = [(tarfile.TarInfo("b"), b"1"), (tarfile.TarInfo("b/c"), b"2")]

    for entries in (twice, nested):
        with pytest.raises(UntrustedBundle, match="twice"):
            unpack([_tar(entries)], tmp_path)


def test_too_large_a_tar_is_refused_before_it_is_written(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("large")
    entry.size = 1 << 40

    with pytest.raises(BadBundle, match="too large"):
        unpack([entry.tobuf()], tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_tar_that_breaks_off_is_refused(store: BundleStore, source: Path) -> None:
    content = b"".join(pack(source))

    with pytest.raises((BadBundle, UntrustedBundle)):
        store.install_tar([content[: len(content) // 2]], TRUST)

    assert store.models() == ()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), chunk=st.integers(1, 5000)
)
def test_no_flipped_bit_of_a_tar_gets_in(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    source = make(folder / "source", "1.0.0", 1)
    sent = Bundle.load(source, TRUST)
    content = bytearray(b"".join(pack(source)))
    content[int(position * len(content))] ^= 1 << bit
    pieces = [bytes(content[i : i + chunk]) for i in range(0, len(content), chunk)]

    # A flip in padding or in an unused header field may pass; what is installed is never changed.
    try:
        installed = BundleStore(folder / "store").install_tar(pieces, TRUST)
    except (BadBundle, UntrustedBundle):
        return
    assert installed.bundle_hash == sent.bundle_hash
    assert installed.onnx == sent.onnx


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    write_bundle(folder / "test-blobs")
    (folder / "pins.json").write_text(json.dumps(compute_pins(folder)))
    return folder


def test_set_up_signs_and_installs_the_shipped_model(tmp_path: Path, shipped: Path) -> None:
    home = Home(tmp_path / "home")

    (bundle,) = initialise(home, NOW, shipped)
    key = home.signing_key.read_bytes()
    (again,) = initialise(home, NOW, shipped)

    assert BundleStore(home.models).load(bundle.identity(), TrustStore.load(home.trust))
    assert again.folder == bundle.folder
    assert home.signing_key.read_bytes() == key
    assert not (shipped / "test-blobs" / "manifest.json").exists()


def test_a_new_release_is_newer_than_the_last(tmp_path: Path, shipped: Path) -> None:
    home = Home(tmp_path / "home")
    initialise(home, NOW, shipped)
    write_bundle(shipped / "test-blobs", version="1.1.0")
    (shipped / "pins.json").write_text(json.dumps(compute_pins(shipped)))

    initialise(home, NOW, shipped)

    assert BundleStore(home.models).newest("test-blobs").version == "1.1.0"


def test_a_shipped_model_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, shipped: Path
) -> None:
    (shipped / "test-blobs/LICENSE").write_text("changed")

    with pytest.raises(UntrustedBundle, match="released"):
        initialise(Home(tmp_path / "home"), NOW, shipped)


def test_the_committed_pins_are_those_of_the_committed_models() -> None:
    assert compute_pins() == read_pins(), "run scripts/pin-models and review what it writes"


def test_the_home_is_where_the_environment_says(tmp_path: Path) -> None:
    assert find_home({"PHOI_HOME": str(tmp_path)}).root == tmp_path
    assert find_home({"XDG_DATA_HOME": str(tmp_path)}).root == tmp_path / "phoi"
    assert find_home({}).root == Path.home() / ".local/share/phoi"
