"""Register, promote and follow, through MLflow's own server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow import MlflowClient
from phoi_edge_node.champion import ChampionFollower, ChampionState
from phoi_edge_node.mlflow.registry import MlflowRegistry
from phoi_edge_node.mlflow.rest import MlflowRest
from phoi_edge_node.settings import MlflowSettings
from phoi_edge_node.stand_ins.program import free_port
from phoi_edge_node.testing import FakeInference
from phoi_models.bundle import Bundle, sign_bundle
from phoi_models.bundle_store import BundleStore
from phoi_models.errors import UntrustedBundle
from phoi_models.findings import LungCoverage, VolumeAnalysis
from phoi_models.signing import TrustStore
from phoi_training.registry import NotBetter, Registry, RegistryError, Score
from support.bundles import write_bundle

KEY = Ed25519PrivateKey.generate()
TRUST = TrustStore.of([KEY.public_key()])
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Training:
    """A training site that publishes test bundles under a name of its own."""

    def __init__(self, uri: str, folder: Path, name: str) -> None:
        self.client = MlflowClient(uri, uri)
        self.registry = Registry(uri)
        self.name = name
        self._folder = folder
        experiments = self.client.search_experiments(filter_string=f"name = '{name}'")
        self._experiment = (
            experiments[0].experiment_id if experiments else self.client.create_experiment(name)
        )

    def publish(self, version: str, key: Ed25519PrivateKey = KEY) -> str:
        """Register a bundle; its number in the registry."""
        run_id = self.client.create_run(self._experiment).info.run_id
        folder = write_bundle(self._folder / version, name=self.name, version=version)
        return str(self.registry.register(folder, run_id, key, NOW).version)

    def promote(self, version: str, scores: Mapping[str, float], reason: str = "") -> None:
        """Promote by scores for each bundle's own version."""

        def evaluate(bundle: Bundle) -> Score:
            return Score(scores[bundle.manifest.version], "set-1")

        self.registry.promote(
            self.name, version, evaluate, TRUST, by="tester", now=NOW, force_because=reason
        )

    def champion(self) -> str | None:
        """Number of the champion."""
        found = self.registry.champion(self.name)
        return None if found is None else str(found.version)


@pytest.fixture
def training(
    request: pytest.FixtureRequest, tmp_path: Path, mlflow_settings: MlflowSettings
) -> Training:
    name = request.node.name.replace("_", "-").partition("[")[0][:60]
    return Training(mlflow_settings.tracking_uri, tmp_path / "bundles", name)


@pytest.fixture
def rest(mlflow_settings: MlflowSettings) -> Iterator[MlflowRest]:
    with MlflowRest(mlflow_settings) as rest:
        yield rest


def test_a_registered_version_says_which_bundle_it_is(training: Training) -> None:
    number = training.publish("1.0.0")
    version = training.client.get_model_version(training.name, number)
    with training.registry.bundle(training.name, number, TRUST) as bundle:
        assert version.tags["bundle_hash"] == bundle.bundle_hash
        assert version.tags["device_uid"] == bundle.identity().device_uid
        first = bundle.manifest.sequence
        assert first == NOW.timestamp()
    assert training.publish("1.0.0") == number  # the same bundle is the same version
    with training.registry.bundle(training.name, training.publish("1.1.0"), TRUST) as bundle:
        assert bundle.manifest.sequence == first + 1


def test_a_version_is_promoted_only_if_it_is_better(training: Training) -> None:
    one, worse, equal, better = (training.publish(f"{n}.0.0") for n in range(1, 5))
    assert training.champion() is None
    scores = {"1.0.0": 0.70, "2.0.0": 0.65, "3.0.0": 0.70, "4.0.0": 0.71}
    training.promote(one, scores)
    with pytest.raises(NotBetter, match=r"0\.650.*0\.700"):
        training.promote(worse, scores)
    with pytest.raises(NotBetter, match=r"0\.700.*0\.700.*not better"):
        training.promote(equal, scores)
    assert training.champion() == one
    training.promote(better, scores)
    assert training.champion() == better


def test_a_forced_promotion_keeps_its_reason(training: Training) -> None:
    one, two = training.publish("1.0.0"), training.publish("2.0.0")
    scores = {"1.0.0": 0.7, "2.0.0": 0.6}
    training.promote(one, scores)
    training.promote(two, scores, reason="1.0.0 was recalled")
    tags = training.client.get_registered_model(training.name).tags
    (entry,) = [json.loads(v) for k, v in tags.items() if "recalled" in v]
    assert (entry["version"], entry["previous"], entry["by"]) == (two, one, "tester")
    assert (entry["score"], entry["previous_score"]) == (0.6, 0.7)
    assert entry["dataset_digest"] == "set-1"


def test_no_reason_promotes_a_bundle_of_a_stranger(training: Training) -> None:
    number = training.publish("1.0.0", key=Ed25519PrivateKey.generate())
    with pytest.raises(UntrustedBundle):
        training.promote(number, {"1.0.0": 0.9}, reason="I like it")
    assert training.champion() is None


def test_what_mlflow_does_not_hold_is_said_in_one_line(training: Training) -> None:
    for name, version in ((training.name, "99"), ("nothing", "1")):
        with pytest.raises(RegistryError) as told:
            training.registry.promote(
                name, version, lambda _: Score(1, ""), TRUST, by="tester", now=NOW
            )
        assert "\n" not in str(told.value)


class Site:
    """A site that follows the champion."""

    def __init__(self, rest: MlflowRest, folder: Path, first: Path) -> None:
        self.store = BundleStore(folder / "store")
        self.model = self.store.install(first, TRUST).identity()
        nothing = VolumeAnalysis((), LungCoverage(apex=True, base=True, volume_ml=4000))
        self.inference = FakeInference(self.model, nothing)
        self.follower = ChampionFollower(
            MlflowRegistry(rest), self.store, lambda: TRUST, self.inference, folder / "incoming"
        )


def test_a_site_pulls_what_is_promoted_and_nothing_else(
    training: Training, rest: MlflowRest, tmp_path: Path
) -> None:
    one = training.publish("1.0.0")
    site = Site(rest, tmp_path, tmp_path / "bundles/1.0.0")
    assert site.follower.check(site.model).state is ChampionState.UNCHANGED  # none is named yet
    training.promote(one, {"1.0.0": 0.7})
    two = training.publish("2.0.0")
    assert site.follower.check(site.model).state is ChampionState.UNCHANGED
    training.promote(two, {"1.0.0": 0.7, "2.0.0": 0.8})
    check = site.follower.check(site.model)
    assert (check.state, check.model.version) == (ChampionState.CHANGED, "2.0.0")
    assert check.model.device_uid != site.model.device_uid
    assert check.model in site.inference.models()
    assert site.follower.check(check.model).state is ChampionState.UNCHANGED


def test_a_bundle_tampered_with_in_the_registry_is_refused(
    training: Training, rest: MlflowRest, tmp_path: Path
) -> None:
    training.promote(training.publish("1.0.0"), {"1.0.0": 0.7})
    site = Site(rest, tmp_path, tmp_path / "bundles/1.0.0")
    two = training.publish("2.0.0")
    training.promote(two, {"1.0.0": 0.7, "2.0.0": 0.8})
    evil = tmp_path / "model.onnx"
    content = bytearray((tmp_path / "bundles/2.0.0/models/model.onnx").read_bytes())
    content[len(content) // 2] ^= 0xFF
    evil.write_bytes(content)
    run_id = training.client.get_model_version(training.name, two).run_id
    training.client.log_artifact(run_id, str(evil), "bundle/models")
    check = site.follower.check(site.model)
    assert (check.state, check.model) == (ChampionState.REFUSED, site.model)
    assert "models/model.onnx" in check.detail
    assert [m.identity.version for m in site.store.models()] == ["1.0.0"]


def test_a_half_fetched_file_goes_on_where_it_stopped(
    training: Training, rest: MlflowRest, tmp_path: Path
) -> None:
    training.promote(training.publish("1.0.0"), {"1.0.0": 0.7})
    champion = MlflowRegistry(rest).champion(training.name)
    assert champion is not None
    whole = (tmp_path / "bundles/1.0.0/models/model.onnx").read_bytes()
    target = tmp_path / "part"
    marker = np.random.default_rng(1).bytes(100)
    target.write_bytes(marker)  # not the file's own start: so it is seen that it was kept
    MlflowRegistry(rest).fetch(champion, "models/model.onnx", target, len(whole))
    assert target.read_bytes() == marker + whole[100:]


def test_a_registry_that_is_away_is_told(tmp_path: Path) -> None:
    with MlflowRest(MlflowSettings(tracking_uri=f"http://127.0.0.1:{free_port()}")) as nobody:
        bundle_folder = write_bundle(tmp_path / "b", name="away", version="1.0.0")
        sign_bundle(bundle_folder, KEY)
        site = Site(nobody, tmp_path, bundle_folder)
        assert site.follower.check(site.model).state is ChampionState.POSTPONED


def test_training_soon_says_that_mlflow_is_away() -> None:
    with pytest.raises(RegistryError, match="no answer"):
        Registry(f"http://127.0.0.1:{free_port()}").champion("any")


def test_a_bundle_trained_elsewhere_is_registered_once_with_its_parameters(
    training: Training, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "shipped", name=training.name, version="1.0.0")
    before = sorted(path.name for path in bundle.rglob("*"))
    version = training.registry.adopt(bundle, KEY, NOW)
    assert sorted(path.name for path in bundle.rglob("*")) == before, "the bundle is not changed"
    assert training.registry.adopt(bundle, KEY, NOW).version == version.version
    run = training.client.get_run(str(version.run_id))
    assert run.data.tags["phoi.adopted"] == "true"
    assert run.data.params["version"] == "1.0.0"
    assert run.info.status == "FINISHED"
    training.promote(str(version.version), {"1.0.0": 0.5})
    assert training.champion() == str(version.version)
