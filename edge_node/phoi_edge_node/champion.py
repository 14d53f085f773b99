"""Following the champion: pull, verify, install, load; only then is it the model of new analyses.

Running analyses are not touched, for each is pinned to its model when it begins, and the old model
stays installed. Whatever goes wrong, the present model goes on.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from phoi_models.bundle import MAX_BUNDLE_BYTES
from phoi_models.bundle_store import BundleStore, UnknownModel
from phoi_models.errors import BadBundle, UntrustedBundle
from phoi_models.identity import ModelIdentity
from phoi_models.signing import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    SignedManifest,
    TrustStore,
)

from phoi_edge_node.errors import InferenceFailed, InferenceUnavailable, RegistryUnavailable
from phoi_edge_node.ports import InferenceService


@dataclass(frozen=True)
class Champion:
    """What the registry says of the version that sites shall run. Not to be trusted.

    Attributes:
        version: the registry's own number of it; a new bundle gets a new one.
        bundle_hash: of the bundle, as its publisher tagged it.
        location: where the registry keeps the bundle's files.

    Raises:
        ValueError: the version or the hash is not of its form. They become names of folders.
    """

    name: str
    version: str
    bundle_hash: str
    location: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{1,9}", self.version):
            raise ValueError("a registry numbers its versions")
        if not re.fullmatch(r"[0-9a-f]{64}", self.bundle_hash):
            raise ValueError("a published version is tagged with its bundle's hash")


class Registry(Protocol):
    """A registry of models."""

    def champion(self, name: str) -> Champion | None:
        """The champion of a registered model; None while there is none.

        Raises:
            RegistryUnavailable: it does not answer.
        """
        ...

    def fetch(self, champion: Champion, name: str, target: Path, limit: int) -> None:
        """Fetch one file of a bundle into ``target``, going on behind the bytes that are there.

        Raises:
            RegistryUnavailable: not all came; what came stays. Also if there are over ``limit``.
        """
        ...


class ChampionState(StrEnum):
    """What a look at the registry led to."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    POSTPONED = "postponed"  # something passing: the next look tries again
    REFUSED = "refused"  # the bundle is not to be trusted, or does not run


@dataclass(frozen=True)
class ChampionCheck:
    """The outcome of a look.

    Attributes:
        model: for new analyses from now on.
        detail: for an operator: one English sentence.
    """

    state: ChampionState
    model: ModelIdentity
    detail: str = ""


class ChampionFollower:
    """Keeps a site on the champion of one registered model.

    Args:
        registry: where to look.
        store: where bundles are installed; the workers' own.
        trust: reads whom this installation trusts now.
        inference: loads models.
        incoming: folder for files on their way; what is there after a lost connection is used.
    """

    def __init__(
        self,
        registry: Registry,
        store: BundleStore,
        trust: Callable[[], TrustStore],
        inference: InferenceService,
        incoming: Path,
    ) -> None:
        self._registry = registry
        self._store = store
        self._trust = trust
        self._inference = inference
        self._incoming = incoming
        self._refused: tuple[Champion, TrustStore, str] | None = None

    def check(self, current: ModelIdentity) -> ChampionCheck:
        """Look once; install and load a new champion. Never raises for what others do."""
        try:
            champion = self._registry.champion(current.name)
            if champion is None:
                return ChampionCheck(ChampionState.UNCHANGED, current, "no champion is named yet")
            if champion.bundle_hash == current.bundle_hash:
                return ChampionCheck(ChampionState.UNCHANGED, current)
            model = self._installed(champion, current)
            self._inference.load(model)
        except (RegistryUnavailable, InferenceUnavailable) as error:
            return ChampionCheck(ChampionState.POSTPONED, current, str(error))
        except (UntrustedBundle, BadBundle, InferenceFailed) as error:
            return ChampionCheck(ChampionState.REFUSED, current, str(error))
        return ChampionCheck(
            ChampionState.CHANGED, model, f"{model.name} {model.version} follows {current.version}"
        )

    def _installed(self, champion: Champion, current: ModelIdentity) -> ModelIdentity:
        """The champion, installed. A refused one is not fetched again while nothing changes."""
        trust = self._trust()
        if self._refused and self._refused[:2] == (champion, trust):
            raise UntrustedBundle(self._refused[2])
        try:
            installed = self._find(champion, trust) or self._pull(champion, trust)
        except (UntrustedBundle, BadBundle) as error:
            self._refused = (champion, trust, str(error))
            raise
        return ModelIdentity(
            installed.name,
            installed.version,
            installed.bundle_hash,
            current.operating_point,
        )

    def _find(self, champion: Champion, trust: TrustStore) -> Manifest | None:
        """The bundle, if it is installed and good. So a site goes back to what it ran before."""
        named = ModelIdentity(champion.name, champion.version, champion.bundle_hash)
        try:
            return self._store.load(named, trust).manifest
        except (UnknownModel, BadBundle, UntrustedBundle):
            return None

    def _pull(self, champion: Champion, trust: TrustStore) -> Manifest:
        """Fetch and install. One older than what is installed is refused: see ``install``."""
        folder = self._incoming / f"{champion.name}-{champion.version}"
        folder.mkdir(parents=True, exist_ok=True)
        manifest = self._fetch_manifest(champion, trust, folder)
        for name, entry in manifest.files.items():
            self._fetch_file(champion, name, entry, folder / name)
        installed = self._store.install(folder, trust).manifest
        shutil.rmtree(folder, ignore_errors=True)
        return installed

    def _fetch_manifest(self, champion: Champion, trust: TrustStore, folder: Path) -> Manifest:
        """The verified manifest: before anything large is fetched."""
        path = folder / MANIFEST_NAME
        path.unlink(missing_ok=True)
        self._registry.fetch(champion, MANIFEST_NAME, path, MAX_MANIFEST_BYTES)
        manifest = trust.verify(SignedManifest.parse(path.read_bytes()))
        if (manifest.name, manifest.bundle_hash) != (champion.name, champion.bundle_hash):
            raise UntrustedBundle("the registry's tags and the bundle's manifest differ")
        if sum(entry.size for entry in manifest.files.values()) > MAX_BUNDLE_BYTES:
            raise BadBundle("the bundle is too large")
        return manifest

    def _fetch_file(self, champion: Champion, name: str, entry: FileEntry, path: Path) -> None:
        if _is(path, entry):
            return
        if path.exists() and path.stat().st_size >= entry.size:
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._registry.fetch(champion, name, path, entry.size)
        if not _is(path, entry):
            path.unlink()
            raise UntrustedBundle(f"{name} is not the file that was signed")


def _is(path: Path, entry: FileEntry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
