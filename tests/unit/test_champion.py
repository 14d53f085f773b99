"""Following the champion: whatever goes wrong, the present model goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from phoi_edge_node.champion import Champion, ChampionFollower, ChampionState
from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable, RegistryUnavailable
from phoi_edge_node.ports import InferenceService
from phoi_models.bundle import sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.identity import ModelIdentity
from phoi_models.signing import TrustStore
from support.bundles import write_bundle

KEY = Ed25519PrivateKey.generate()
NAME = "test-blobs"


@dataclass
class FolderRegistry:
    """A registry in a folder: ``<root>/<version>/``. It may be down, or stop in the middle."""

    root: Path
    current: Champion | None = None
    down: bool = False
    stop_after: int | None = None
    fetched: list[str] = field(default_factory=list)

    def publish(self, version: int, key: Ed25519PrivateKey = KEY) -> Path:
        folder = write_bundle(self.root / str(version), name=NAME, version=f"{version}.0.0")
        manifest = sign_bundle(folder, key, sequence=version)
        self.current = Champion(NAME, str(version), manifest.bundle_hash, str(folder))
        return folder

    def champion(self, name: str) -> Champion | None:
        if self.down:
            raise RegistryUnavailable("down")
        return self.current

    def fetch(self, champion: Champion, name: str, target: Path, limit: int) -> None:
        self.fetched.append(name)
        have = target.stat().st_size if target.exists() else 0
        rest = (Path(champion.location) / name).read_bytes()[have:]
        stop = self.stop_after if name == "models/model.onnx" else None
        with target.open("ab") as file:
            file.write(rest[:stop])
        if stop is not None and len(rest) > stop:
            raise RegistryUnavailable("the line was cut")


@dataclass
class Loader:
    """The one thing that a follower asks of inference."""

    loaded: list[ModelIdentity] = field(default_factory=list)
    error: Exception | None = None

    def load(self, model: ModelIdentity) -> None:
        if self.error:
            raise self.error
        self.loaded.append(model)


@dataclass
class Site:
    registry: FolderRegistry
    store: BundleStore
    loader: Loader
    trust: TrustStore
    incoming: Path
    model: ModelIdentity

    def follower(self) -> ChampionFollower:
        service: InferenceService = self.loader  # type: ignore[assignment]  # load() is all it uses
        return ChampionFollower(
            self.registry, self.store, lambda: self.trust, service, self.incoming
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that runs version 1."""
    registry = FolderRegistry(tmp_path / "registry")
    trust = TrustStore.of([KEY.public_key()])
    store = BundleStore(tmp_path / "store")
    bundle = store.install(registry.publish(1), trust)
    model = bundle.identity("sensitive")
    return Site(registry, store, Loader(), trust, tmp_path / "incoming", model)


def test_a_new_champion_is_installed_and_loaded_at_the_same_operating_point(site: Site) -> None:
    site.registry.publish(2)
    check = site.follower().check(site.model)
    assert check.state is ChampionState.CHANGED
    assert (check.model.version, check.model.operating_point) == ("2.0.0", "sensitive")
    assert check.model.device_uid != site.model.device_uid
    assert site.loader.loaded == [check.model]
    assert site.store.load(check.model, site.trust).bundle_hash == check.model.bundle_hash
    assert site.store.load(site.model, site.trust)  # running analyses keep theirs
    assert list(site.incoming.iterdir()) == []


def test_the_same_champion_is_not_fetched_again(site: Site) -> None:
    assert site.follower().check(site.model).state is ChampionState.UNCHANGED
    site.registry.current = None
    assert site.follower().check(site.model).state is ChampionState.UNCHANGED
    assert site.registry.fetched == []


def test_a_cut_line_is_taken_up_where_it_broke(site: Site) -> None:
    site.registry.publish(2)
    whole = (site.registry.root / "2/models/model.onnx").stat().st_size
    site.registry.stop_after = whole - 10
    first = site.follower().check(site.model)
    assert (first.state, first.model) == (ChampionState.POSTPONED, site.model)
    assert (site.incoming / "test-blobs-2/models/model.onnx").stat().st_size == whole - 10
    site.registry.stop_after, site.registry.fetched = None, []
    assert site.follower().check(site.model).state is ChampionState.CHANGED
    assert "models/model.onnx" in site.registry.fetched
    assert "LICENSE" not in site.registry.fetched  # it was here already


def tamper_network(folder: Path) -> None:
    path = folder / "models/model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def tamper_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    signed = json.loads(path.read_text())
    signed["payload"]["sequence"] = 99
    path.write_text(json.dumps(signed))


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def sign_by_a_stranger(folder: Path) -> None:
    sign_bundle(folder, Ed25519PrivateKey.generate(), sequence=2)


def put_another_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    write_bundle(folder, name=NAME, version="3.0.0")
    sign_bundle(folder, KEY, sequence=3)


@pytest.mark.parametrize(
    "spoil",
    [
        tamper_network,
        tamper_manifest,
        spoil_manifest,
        sign_by_a_stranger,
        put_another_in_its_place,
    ],
)
def test_a_bundle_that_is_not_to_be_trusted_is_refused_and_told(
    site: Site, spoil: Callable[[Path], None]
) -> None:
    spoil(site.registry.publish(2))
    follower = site.follower()
    check = follower.check(site.model)
    assert (check.state, check.model) == (ChampionState.REFUSED, site.model)
    assert check.detail
    assert site.loader.loaded == []
    assert [m.identity.version for m in site.store.models()] == ["1.0.0"]
    # Looked at again, it is refused again, and not fetched again.
    site.registry.fetched = []
    assert follower.check(site.model) == check
    assert site.registry.fetched == []


def test_a_key_that_is_trusted_later_opens_the_door(site: Site) -> None:
    publisher = Ed25519PrivateKey.generate()
    site.registry.publish(2, publisher)
    follower = site.follower()
    assert follower.check(site.model).state is ChampionState.REFUSED
    site.trust = site.trust.trusting(publisher.public_key())
    assert follower.check(site.model).state is ChampionState.CHANGED


def test_a_site_goes_back_only_to_what_it_ran_before(site: Site) -> None:
    first = site.registry.current
    site.registry.publish(2)
    second = site.follower().check(site.model).model
    site.registry.current = first
    assert site.follower().check(second).model == site.model
    # But a site that never ran version 1 does not take it over version 2.
    for stored in site.store.models():
        if stored.identity.version == "1.0.0":
            shutil.rmtree(stored.folder)
    check = site.follower().check(second)
    assert (check.state, check.model) == (ChampionState.REFUSED, second)
    assert "older" in check.detail


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (InferenceUnavailable("no worker answers"), ChampionState.POSTPONED),
        (InferenceFailed("the bundle does not load"), ChampionState.REFUSED),
    ],
)
def test_a_model_that_no_worker_loads_is_not_used(
    site: Site, error: Exception, state: ChampionState
) -> None:
    site.registry.publish(2)
    site.loader.error = error
    check = site.follower().check(site.model)
    assert (check.state, check.model, check.detail) == (state, site.model, str(error))
    site.loader.error = None
    assert site.follower().check(site.model).state is ChampionState.CHANGED


def test_a_registry_that_is_down_changes_nothing(site: Site) -> None:
    site.registry.down = True
    check = site.follower().check(site.model)
    assert (check.state, check.model) == (ChampionState.POSTPONED, site.model)


@pytest.mark.parametrize("change", [{"version": "../../x"}, {"bundle_hash": ""}])
def test_what_a_registry_says_is_checked_before_it_names_a_folder(change: dict[str, str]) -> None:
    good = Champion(NAME, "2", "ab" * 32, "mlflow-artifacts:/1/a/artifacts/bundle")
    with pytest.raises(ValueError, match="version"):
        replace(good, **change)
