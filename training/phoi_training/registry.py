"""MLflow's model registry: register signed bundles, and promote one only if it is better.

A registered version is a run's artefact folder ``bundle`` and tags that say which bundle it is.
The alias ``champion`` is what sites follow. Whoever can write to MLflow can move it, so sites trust
the bundle's signature and not the registry.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from phoi_models.bundle import Bundle, sign_bundle
from phoi_models.errors import PhoiError
from phoi_models.signing import TrustStore

ALIAS = "champion"
ARTIFACTS = "bundle"
ADOPTED = "phoi-adopted"  # experiment of the bundles that were trained elsewhere


class RegistryError(PhoiError):
    """MLflow does not hold what was asked for, or does not answer."""


class NotBetter(PhoiError):
    """The version does not beat the champion on the evaluation set, so it is not promoted."""


@dataclass(frozen=True)
class Score:
    """How well one bundle did on one evaluation set.

    Attributes:
        value: the higher the better, 0 to 1: the mean sensitivity of the FROC (CPM).
        dataset_digest: of the evaluation set; only scores on the same set compare.
    """

    value: float
    dataset_digest: str


@dataclass(frozen=True)
class Promotion:
    """What was decided, as the audit keeps it.

    Attributes:
        version, previous: numbers in the registry; ``previous`` is "" if there was no champion.
        score, previous_score: on the same set; the latter None if there was no champion.
        forced_because: why it was to be taken even if not better; "" if it had to be better.
    """

    name: str
    version: str
    previous: str
    score: float
    previous_score: float | None
    dataset_digest: str
    by: str
    forced_because: str


class Registry:
    """One MLflow server's registry.

    Args:
        tracking_uri: of the server.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri, tracking_uri)

    def register(
        self, folder: Path, run_id: str, key: Ed25519PrivateKey, now: datetime
    ) -> ModelVersion:
        """Sign the bundle in ``folder`` and register it as a new version, made by ``run_id``.

        The same bundle again is the version that it is already.

        Raises:
            BadBundle: the folder holds no complete bundle.
            RegistryError: MLflow does not answer.
        """
        with plain_errors():
            bundle = self._signed(folder, key, now)
            if known := self._by_hash(bundle.manifest.name, bundle.bundle_hash):
                return known
            self._client.log_artifacts(run_id, str(folder), ARTIFACTS)
            artifact_uri = self._client.get_run(run_id).info.artifact_uri
            return self._client.create_model_version(
                bundle.manifest.name,
                source=f"{artifact_uri}/{ARTIFACTS}",
                run_id=run_id,
                tags=_tags(bundle),
                description=f"{bundle.manifest.name} {bundle.manifest.version}",
            )

    def adopt(self, bundle: Path, key: Ed25519PrivateKey, now: datetime) -> ModelVersion:
        """Register a bundle that no run of this server trained, such as the one Phoi comes with.

        Later versions can then be compared with it. Its run holds its parameters and its model
        card, and says that it was adopted: how it was trained is in the card only.

        Args:
            bundle: folder, signed or not; it is not changed.
            key: of this installation, to sign the registered copy.
            now: with a time zone.

        Raises:
            BadBundle: the folder holds no complete bundle.
            RegistryError: MLflow does not answer.
        """
        with tempfile.TemporaryDirectory() as scratch, plain_errors():
            folder = Path(scratch) / bundle.name
            shutil.copytree(bundle, folder)
            signed = self._signed(folder, key, now)
            if known := self._by_hash(signed.manifest.name, signed.bundle_hash):
                return known
            run = self._client.create_run(self._experiment(ADOPTED), run_name=bundle.name)
            run_id = run.info.run_id
            for name, value in signed.parameters.model_dump(mode="json").items():
                self._client.log_param(run_id, name, value)
            self._client.set_tag(run_id, "phoi.adopted", "true")
            version = self.register(folder, run_id, key, now)
            self._client.set_terminated(run_id)
            return version

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))

    def _signed(self, folder: Path, key: Ed25519PrivateKey, now: datetime) -> Bundle:
        """Sign as newer than every version here and every bundle that a site signed for itself.

        Sites count the models that come with Phoi 1, 2, 3, ...; a sequence in seconds since 1970
        is above them all.
        """
        name = sign_bundle(folder, key, created=now).name
        self._ensure_model(name)
        sequences = [int(version.tags.get("sequence", 0)) for version in self._versions(name)]
        sequence = max(1 + max(sequences, default=0), int(now.timestamp()))
        sign_bundle(folder, key, sequence=sequence, created=now)
        return Bundle.load(folder, TrustStore.of([key.public_key()]))

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(name)

    def _versions(self, name: str) -> list[ModelVersion]:
        versions: list[ModelVersion] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
            versions += page
            token = page.token
            if not token:
                return versions

    def _by_hash(self, name: str, bundle_hash: str) -> ModelVersion | None:
        for version in self._versions(name):
            if version.tags.get("bundle_hash") == bundle_hash:
                return version
        return None

    def champion(self, name: str) -> ModelVersion | None:
        """The version with the alias ``champion``; None while there is none.

        Raises:
            RegistryError: no such model, or MLflow does not answer.
        """
        with plain_errors():
            aliases: Mapping[str, Any] = self._client.get_registered_model(name).aliases
            number = aliases.get(ALIAS)
            return None if number is None else self._client.get_model_version(name, str(number))

    @contextmanager
    def bundle(self, name: str, version: str, trust: TrustStore) -> Iterator[Bundle]:
        """Fetch and verify a version's bundle into a folder that is gone afterwards.

        Raises:
            RegistryError: no such version.
            UntrustedBundle, BadBundle: see ``Bundle.load``.
        """
        with tempfile.TemporaryDirectory() as scratch:
            with plain_errors():
                source = self._client.get_model_version_download_uri(name, version)
                download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=self._uri)
            yield Bundle.load(Path(scratch) / ARTIFACTS, trust)

    def promote(
        self,
        name: str,
        version: str,
        evaluate: Callable[[Bundle], Score],
        trust: TrustStore,
        *,
        by: str,
        now: datetime,
        force_because: str = "",
    ) -> Promotion:
        """Make a version the champion, if it beats the present one or there is none.

        Both are evaluated now, on the same set. The decision is kept as a tag of the registered
        model, named by its time, so that later promotions leave it as it is.

        Args:
            name: registered model.
            version: its number in the registry.
            evaluate: scores a bundle.
            trust: whose bundles may be run here.
            by: who promotes.
            now: with a time zone.
            force_because: takes it even if it is not better; the reason is kept.

        Raises:
            NotBetter: it scores the same or less, and no reason was given to take it all the same.
            RegistryError: no such version, or MLflow does not answer.
            UntrustedBundle: a bundle is not to be trusted; no reason overrides that.
        """
        previous = self.champion(name)
        score = self._score(name, version, evaluate, trust)
        standing = self._score(name, previous.version, evaluate, trust) if previous else None
        if standing and score.value <= standing.value and not force_because:
            raise NotBetter(
                f"{name} version {version} scores {score.value:.3f} and the champion "
                f"{standing.value:.3f} on the same set: it is not better, so not promoted"
            )
        promotion = Promotion(
            name=name,
            version=version,
            previous=str(previous.version) if previous else "",
            score=score.value,
            previous_score=standing.value if standing else None,
            dataset_digest=score.dataset_digest,
            by=by,
            forced_because=force_because,
        )
        self._record(promotion, now)
        return promotion

    def _score(
        self, name: str, version: str, evaluate: Callable[[Bundle], Score], trust: TrustStore
    ) -> Score:
        with self.bundle(name, version, trust) as bundle:
            return evaluate(bundle)

    def _record(self, promotion: Promotion, now: datetime) -> None:
        """First the audit, then the alias: no promotion without its entry."""
        key = f"promotion.{now.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
        entry = json.dumps(asdict(promotion), sort_keys=True)
        with plain_errors():
            self._client.set_registered_model_tag(promotion.name, key, entry)
            self._client.set_registered_model_alias(promotion.name, ALIAS, promotion.version)


def _tags(bundle: Bundle) -> dict[str, str]:
    return {
        "bundle_hash": bundle.bundle_hash,
        "device_uid": bundle.identity().device_uid,
        "version": bundle.manifest.version,
        "sequence": str(bundle.manifest.sequence),
        "key_id": bundle.key_id,
    }


@contextmanager
def plain_errors() -> Iterator[None]:
    """MLflow's errors as one line that a person can act on."""
    # Else a server that is away is only told of after four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        yield
    except MlflowException as error:
        first_line = str(error).partition("\n")[0]
        if "Max retries exceeded" in first_line:
            first_line = "no answer: does it run, and is --tracking-uri right?"
        raise RegistryError(f"MLflow: {first_line}") from None
