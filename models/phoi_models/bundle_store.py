"""Where verified bundles lie: ``<root>/<name>/<version>-<hash12>/``. Also their tar form."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from phoi_models.bundle import MAX_BUNDLE_BYTES, Bundle, bundle_files, read_manifest
from phoi_models.errors import BadBundle, PhoiError, UntrustedBundle
from phoi_models.files import sync_folder
from phoi_models.identity import ModelIdentity
from phoi_models.signing import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, TrustStore

_CHUNK = 1 << 20
_INCOMING = ".incoming-"


class UnknownModel(PhoiError):
    """The store holds no such model."""


@dataclass(frozen=True)
class StoredModel:
    """What a store says it holds, read from a manifest that is verified only when loaded."""

    identity: ModelIdentity
    sequence: int
    folder: Path


@dataclass(frozen=True)
class BundleStore:
    """A folder of bundles. Several processes may use it at once.

    Attributes:
        root: need not exist yet.
    """

    root: Path

    def models(self) -> tuple[StoredModel, ...]:
        """All bundles, by name, newest (highest sequence) first.

        A folder without a readable manifest is left out: its model is not installed.
        """
        found = []
        for path in sorted(self.root.glob(f"[!.]*/*/{MANIFEST_NAME}")):
            with suppress(BadBundle, UntrustedBundle):
                found.append(_stored(path.parent))
        return tuple(sorted(found, key=lambda model: (model.identity.name, -model.sequence)))

    def newest(self, name: str) -> ModelIdentity:
        """The bundle of ``name`` with the highest sequence.

        Raises:
            UnknownModel: the store holds none.
        """
        for model in self.models():
            if model.identity.name == name:
                return model.identity
        raise UnknownModel(f"no model {name} is installed: run `phoi models init`")

    def load(self, identity: ModelIdentity, trust: TrustStore) -> Bundle:
        """Verify and read exactly the bundle that ``identity`` pins.

        Raises:
            UnknownModel: the store does not hold it.
            UntrustedBundle, BadBundle: see ``Bundle.load``.
        """
        for model in self.models():
            if model.identity.bundle_hash == identity.bundle_hash:
                bundle = Bundle.load(model.folder, trust)
                if bundle.bundle_hash != identity.bundle_hash:
                    raise UntrustedBundle("the bundle changed while it was read")
                return bundle
        raise UnknownModel(f"model {identity.name} {identity.version} is not installed here")

    def install(self, source: Path, trust: TrustStore, *, allow_older: bool = False) -> Bundle:
        """Copy a bundle into the store; it appears complete, durable and verified, or not at all.

        Args:
            source: folder of the bundle. One that is here already is only verified.
            trust: whose bundles to take.
            allow_older: take one that is older (by sequence) than the newest of its name.

        Raises:
            UntrustedBundle: its signature or content is not to be trusted, or it is older.
            BadBundle: it is incomplete or malformed.
        """
        with self._incoming() as folder:
            for name, path in bundle_files(source).items():
                copy = folder / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy, follow_symlinks=False)
            read_manifest(source)
            shutil.copyfile(source / MANIFEST_NAME, folder / MANIFEST_NAME, follow_symlinks=False)
            return self._admit(folder, trust, allow_older=allow_older)

    def install_tar(
        self,
        chunks: Iterable[bytes],
        trust: TrustStore,
        *,
        pinned_hash: str | None = None,
        allow_older: bool = False,
    ) -> Bundle:
        """Install a bundle from its tar form; see ``install`` and ``pack``.

        Args:
            chunks: the tar.
            trust: whose bundles to take.
            pinned_hash: take the bundle of this hash and no other; it may then be an older one.
            allow_older: see ``install``.
        """
        with self._incoming() as folder:
            unpack(chunks, folder)
            if pinned_hash not in (None, read_manifest(folder).payload.bundle_hash):
                raise UntrustedBundle("another bundle arrived than the one that was asked for")
            return self._admit(folder, trust, allow_older=allow_older or pinned_hash is not None)

    def _admit(self, folder: Path, trust: TrustStore, *, allow_older: bool) -> Bundle:
        bundle = Bundle.load(folder, trust)
        manifest = bundle.manifest
        present = {m.identity.bundle_hash: m for m in self.models()}
        if known := present.get(bundle.bundle_hash):
            with suppress(BadBundle, UntrustedBundle):
                return Bundle.load(known.folder, trust)
            # Damaged, or signed with a key that counts no more: this copy replaces it.
            shutil.rmtree(known.folder)
        elif not allow_older:
            self._refuse_older(manifest)
        target = self.root / manifest.name / f"{manifest.version}-{bundle.bundle_hash[:12]}"
        target.parent.mkdir(exist_ok=True)
        _sync_tree(folder)
        folder.rename(target)
        sync_folder(target.parent)
        return Bundle.load(target, trust)

    def _refuse_older(self, manifest: Manifest) -> None:
        sequences = [m.sequence for m in self.models() if m.identity.name == manifest.name]
        if manifest.sequence < max(sequences, default=0):
            raise UntrustedBundle(
                f"{manifest.name} {manifest.version} (sequence {manifest.sequence}) is older "
                f"than what is installed (sequence {max(sequences)}): "
                "`--allow-older` goes back on purpose"
            )

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A folder to fill, under a lock; what an interrupted installation left is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self.root.glob(f"{_INCOMING}*"):
                shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            folder.chmod(0o755)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _stored(folder: Path) -> StoredModel:
    manifest = read_manifest(folder).payload
    identity = ModelIdentity(manifest.name, manifest.version, manifest.bundle_hash)
    return StoredModel(identity, manifest.sequence, folder)


def pack(folder: Path) -> Iterator[bytes]:
    """The bundle in ``folder`` as an uncompressed tar, in chunks of about 1 MB.

    The same bundle always gives the same bytes.
    """
    files = {**bundle_files(folder), MANIFEST_NAME: folder / MANIFEST_NAME}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
            yield from _drain(buffer)
    yield from _drain(buffer)


def unpack(chunks: Iterable[bytes], folder: Path) -> None:
    """Write the files of a tar into the empty ``folder``. Only plain files with plain names.

    Raises:
        BadBundle: not a tar, too large, or too many files.
        UntrustedBundle: an entry that could write outside the folder.
    """
    budget, count = MAX_BUNDLE_BYTES + MAX_MANIFEST_BYTES, 0
    try:
        # In stream mode tarfile only ever calls read() of what it is given.
        stream = cast("IO[bytes]", _Stream(chunks))
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                budget, count = budget - entry.size, count + 1
                if budget < 0 or count > 300:
                    raise BadBundle("the bundle is too large")
                _extract(tar, entry, folder)
    except (tarfile.TarError, EOFError):
        raise BadBundle("the bundle did not arrive as a complete tar") from None


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    parts = entry.name.split("/")
    if not entry.isreg() or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise UntrustedBundle("the tar holds something that is not a plain file")
    content = tar.extractfile(entry)
    path = folder.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            shutil.copyfileobj(cast("IO[bytes]", content), file, _CHUNK)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise UntrustedBundle("the tar holds one name twice") from None


class _Stream:
    """Reads chunks as one stream of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, None)) is not None:
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _drain(buffer: io.BytesIO) -> Iterator[bytes]:
    """What has been written so far, in chunks; empties the buffer."""
    content = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]


def _sync_tree(folder: Path) -> None:
    """Make all files and names under ``folder`` durable."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))
